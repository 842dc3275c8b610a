//! Decides from a seed which faults strike where, in which order and for how long. Pure.

use std::fmt;
use std::time::Duration;

use rand::prelude::*;
use tests::Cut;

/// One in this many rounds has two strikes at once.
const PAIRS: u32 = 6;
/// The number of projectors that run.
pub(crate) const PROJECTORS: usize = 2;
/// How far a clock jumps, in seconds.
const JUMP: i64 = 600;
/// Longer than the leases of lanes, requests to the log and pings on half-open connections; shorter than other
/// timeouts.
const MIDDLING: Duration = Duration::from_millis(6_500);

/// A process that can be struck.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Place {
    Ingest,
    Projector(usize),
    Reconciler,
    Nats,
    Postgres,
}

/// A connection between two programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Link {
    WorkosIngest,
    IngestNats,
    ProjectorNats(usize),
    ProjectorPostgres(usize),
    ReconcilerNats,
    ReconcilerPostgres,
    ReconcilerWorkos,
}

/// A kind of strike, as shown in the report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Kill,
    Freeze,
    Terminate,
    Cut,
    Slow,
    Silence,
    Refuse,
    DiskFull,
    Clock,
}

/// One thing that goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Strike {
    /// SIGKILL.
    Kill(Place),
    /// SIGSTOP, then SIGCONT.
    Freeze(Place),
    /// SIGTERM, or a server's own way to be stopped.
    Terminate(Place),
    /// All connections are cut.
    Cut(Link, Cut),
    /// Connections are limited to this many bytes per second.
    Slow(Link, u32),
    /// Connections stay open, but nothing passes.
    Silence(Link),
    /// Connections are cut, and new ones are refused.
    Refuse(Link),
    /// A server's disk is full.
    DiskFull(Place),
    /// A clock jumps by this many seconds, and back.
    Clock(Place, i64),
}

/// A strike and how long it lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Blow {
    pub(crate) strike: Strike,
    pub(crate) lasts: Duration,
}

/// Strikes at the same time: one, or two in different places.
pub(crate) type Round = Vec<Blow>;

/// What is possible in this run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Means {
    /// Whether the servers can have disks of their own, which can be filled.
    pub(crate) disks: bool,
    /// The longest strike.
    pub(crate) longest: Duration,
}

/// Plans as many rounds as `strikes` need. The same seed and means give the same plan. Every kind comes up equally
/// often.
pub(crate) fn plan(seed: u64, strikes: usize, means: Means) -> Vec<Round> {
    let mut rng = StdRng::seed_from_u64(seed);
    let (mut rounds, mut made, mut kinds) = (Vec::new(), 0, Vec::new());
    while made < strikes {
        let mut round: Round = Vec::new();
        let wanted = if rng.random_ratio(1, PAIRS) && made + 2 <= strikes {
            2
        } else {
            1
        };
        while round.len() < wanted {
            if kinds.is_empty() {
                kinds = Kind::possible(means);
                kinds.shuffle(&mut rng);
            }
            let Some(kind) = kinds.pop() else { break };
            let blow = blow(&mut rng, kind, means.longest);
            if round.iter().all(|other| other.strike.is_elsewhere(blow.strike)) {
                round.push(blow);
            } else {
                kinds.push(kind);
            }
        }
        made += round.len();
        rounds.push(round);
    }
    rounds
}

fn blow(rng: &mut StdRng, kind: Kind, longest: Duration) -> Blow {
    let ours = [
        Place::Ingest,
        Place::Projector(rng.random_range(0..PROJECTORS)),
        Place::Reconciler,
    ];
    let server = if rng.random_bool(0.5) {
        Place::Nats
    } else {
        Place::Postgres
    };
    let ours = ours[rng.random_range(0..ours.len())];
    // Three in five hit dsync's own programs.
    let place = if rng.random_ratio(3, 5) { ours } else { server };
    let link = link(rng);
    let strike = match kind {
        Kind::Kill => Strike::Kill(place),
        Kind::Freeze => Strike::Freeze(place),
        Kind::Terminate => Strike::Terminate(place),
        Kind::Cut if rng.random_bool(0.5) => Strike::Cut(link, Cut::Finish),
        Kind::Cut => Strike::Cut(link, Cut::Reset),
        Kind::Slow => Strike::Slow(link, rng.random_range(200..20_000)),
        Kind::Silence => Strike::Silence(link),
        Kind::Refuse => Strike::Refuse(link),
        Kind::DiskFull => Strike::DiskFull(server),
        Kind::Clock => Strike::Clock(ours, if rng.random_bool(0.5) { JUMP } else { -JUMP }),
    };
    let lasts = match (kind, rng.random_range(0..100)) {
        (Kind::Freeze | Kind::Silence, 0..8) => longest,
        (Kind::Freeze | Kind::Silence, 8..30) => MIDDLING.min(longest),
        (Kind::Cut, _) => Duration::ZERO,
        _ => Duration::from_millis(rng.random_range(200..2_000)),
    };
    Blow { strike, lasts }
}

fn link(rng: &mut StdRng) -> Link {
    let projector = rng.random_range(0..PROJECTORS);
    let links = [
        Link::WorkosIngest,
        Link::IngestNats,
        Link::ProjectorNats(projector),
        Link::ProjectorPostgres(projector),
        Link::ReconcilerNats,
        Link::ReconcilerPostgres,
        Link::ReconcilerWorkos,
    ];
    links[rng.random_range(0..links.len())]
}

impl Kind {
    pub(crate) const EVERY: [Kind; 9] = [
        Kind::Kill,
        Kind::Freeze,
        Kind::Terminate,
        Kind::Cut,
        Kind::Slow,
        Kind::Silence,
        Kind::Refuse,
        Kind::DiskFull,
        Kind::Clock,
    ];

    fn possible(means: Means) -> Vec<Kind> {
        let mut kinds = Kind::EVERY.to_vec();
        kinds.retain(|kind| means.disks || *kind != Kind::DiskFull);
        kinds
    }

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Kind::Kill => "kill -9",
            Kind::Freeze => "SIGSTOP",
            Kind::Terminate => "SIGTERM",
            Kind::Cut => "connections cut",
            Kind::Slow => "connections slowed",
            Kind::Silence => "connections black-holed",
            Kind::Refuse => "connections refused",
            Kind::DiskFull => "disk full",
            Kind::Clock => "clock jumps",
        }
    }
}

impl Strike {
    pub(crate) fn kind(self) -> Kind {
        match self {
            Strike::Kill(_) => Kind::Kill,
            Strike::Freeze(_) => Kind::Freeze,
            Strike::Terminate(_) => Kind::Terminate,
            Strike::Cut(..) => Kind::Cut,
            Strike::Slow(..) => Kind::Slow,
            Strike::Silence(_) => Kind::Silence,
            Strike::Refuse(_) => Kind::Refuse,
            Strike::DiskFull(_) => Kind::DiskFull,
            Strike::Clock(..) => Kind::Clock,
        }
    }

    /// Where the strike hits, in words.
    pub(crate) fn target(self) -> String {
        match self {
            Strike::Kill(place)
            | Strike::Freeze(place)
            | Strike::Terminate(place)
            | Strike::DiskFull(place)
            | Strike::Clock(place, _) => place.to_string(),
            Strike::Cut(link, _) | Strike::Slow(link, _) | Strike::Silence(link) | Strike::Refuse(link) => {
                link.to_string()
            }
        }
    }

    /// Whether recovery from the strike includes that catch-up makes progress again.
    pub(crate) fn concerns_catch_up(self) -> bool {
        let target = self.target();
        ["reconciler", "NATS", "Postgres"]
            .iter()
            .any(|name| target.starts_with(name))
    }

    fn is_elsewhere(self, other: Strike) -> bool {
        self.target() != other.target()
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Place::Ingest => "ingest",
            Place::Projector(_) => "projector",
            Place::Reconciler => "reconciler",
            Place::Nats => "NATS",
            Place::Postgres => "Postgres",
        })
    }
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Link::WorkosIngest => "WorkOS–ingest",
            Link::IngestNats => "ingest–NATS",
            Link::ProjectorNats(_) => "projector–NATS",
            Link::ProjectorPostgres(_) => "projector–Postgres",
            Link::ReconcilerNats => "reconciler–NATS",
            Link::ReconcilerPostgres => "reconciler–Postgres",
            Link::ReconcilerWorkos => "reconciler–WorkOS",
        })
    }
}

#[cfg(test)]
mod checks {
    use super::*;

    const MEANS: Means = Means {
        disks: true,
        longest: Duration::from_secs(65),
    };

    #[test]
    fn a_seed_replays_and_another_differs() {
        assert_eq!(plan(1, 100, MEANS), plan(1, 100, MEANS));
        assert_ne!(plan(1, 100, MEANS), plan(2, 100, MEANS));
    }

    #[test]
    fn every_kind_comes_up_equally_often_and_pairs_strike_two_places() {
        let rounds = plan(3, 900, MEANS);
        let blows: Vec<Blow> = rounds.iter().flatten().copied().collect();
        assert_eq!(blows.len(), 900);
        for kind in Kind::EVERY {
            let count = blows.iter().filter(|blow| blow.strike.kind() == kind).count();
            assert!((99..=101).contains(&count), "{count} of {kind:?}");
        }
        let pairs: Vec<&Round> = rounds.iter().filter(|round| round.len() == 2).collect();
        assert!(pairs.len() > 50, "{} pairs", pairs.len());
        assert!(
            pairs
                .iter()
                .all(|pair| pair[0].strike.target() != pair[1].strike.target())
        );
        let long = blows.iter().filter(|blow| blow.lasts == MEANS.longest).count();
        assert!((8..30).contains(&long), "{long} long ones");
    }

    #[test]
    fn without_disks_none_is_filled() {
        let means = Means {
            disks: false,
            ..MEANS
        };
        assert!(
            plan(1, 100, means)
                .iter()
                .flatten()
                .all(|blow| blow.strike.kind() != Kind::DiskFull)
        );
    }
}
