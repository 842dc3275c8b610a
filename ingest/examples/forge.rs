//! Sends a million forged requests, with honest ones beside them. Shows how many forgeries are accepted (there must be
//! none), how much memory they cost, and how they affect the honest requests.
//!
//! ```text
//! cargo build --release -p ingest --bins && cargo run --release -p ingest --example forge [REQUESTS [SEED]]
//! ```
//!
//! Prints a table. Exits with 1 if a forgery was accepted, or an honest webhook was not.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, ensure};
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use tests::{Nats, Program, Running};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const SECRET: &str = "whsec_of_the_forge_0123456789";
/// Connections that attack.
const ATTACKERS: u64 = 16;
/// The pause between two honest webhooks.
const HONEST_EVERY: Duration = Duration::from_millis(10);
const REPORT_EVERY: u64 = 100_000;
/// Honest webhooks sent before the attack, and again after it, for comparison.
const APART: u64 = 2_000;

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let mut args = std::env::args().skip(1);
    let requests: u64 = args.next().map_or(Ok(1_000_000), |n| n.parse())?;
    let seed: u64 = args.next().map_or(Ok(1), |n| n.parse())?;
    println!("{requests} requests, seed {seed}, {ATTACKERS} attackers");
    let nats = Nats::start().await?;
    let ingest = Program::new("dsync-ingest")
        .env("NATS_URL", nats.url())
        .env("WORKOS_WEBHOOK_SECRET", SECRET)
        .env("RUST_LOG", "error")
        .start()
        .await?;
    let address = ingest.listen_url().replace("http://", "");
    let mut honest = Honest::new(&address).await?;
    let before = honest.many(APART).await?;
    println!("{:>10} {:>10} {:>10}", "answered", "RSS kB", "requests/s");
    println!("{:>10} {:>10}", 0, rss(&ingest)?);
    let tally = Arc::new(Tally::default());
    let during = under_attack(&ingest, &mut honest, (requests, seed), &tally).await?;
    let after = honest.many(APART).await?;
    println!(
        "{:>10} {:>10}  at the end",
        tally.done.load(Ordering::Relaxed),
        rss(&ingest)?
    );
    for (when, times) in [("before", before), ("during", during), ("after", after)] {
        let (count, p50, p99) = percentiles(times);
        println!("honest, {when}: {count} stored, p50 {p50:?}, p99 {p99:?}");
    }
    println!("answers to forgeries: {}", tally.statuses());
    let metrics = ingest.metrics().await?;
    let stored = metrics.count("dsync_ingest_webhooks_total", &[("outcome", "accepted")]);
    let accepted = tally.accepted.load(Ordering::Relaxed);
    println!(
        "accepted: {accepted} forgeries; stored in all: {stored}, honest: {}",
        honest.count
    );
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let right = accepted == 0 && (stored - honest.count as f64).abs() < 0.5;
    Ok(if right {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Sends all the forgeries, with an honest webhook now and then. Returns how long the honest ones took.
async fn under_attack(
    ingest: &Running,
    honest: &mut Honest,
    (requests, seed): (u64, u64),
    tally: &Arc<Tally>,
) -> anyhow::Result<Vec<Duration>> {
    let start = Instant::now();
    let attackers: Vec<_> = (0..ATTACKERS)
        .map(|n| {
            let share = requests / ATTACKERS + u64::from(n < requests % ATTACKERS);
            let forger = Forger::new(seed.wrapping_mul(1_000).wrapping_add(n));
            tokio::spawn(attack(honest.address.clone(), forger, share, tally.clone()))
        })
        .collect();
    let (mut times, mut reported) = (Vec::new(), 0);
    while attackers.iter().any(|attacker| !attacker.is_finished()) {
        times.extend(honest.many(1).await?);
        tokio::time::sleep(HONEST_EVERY).await;
        let done = tally.done.load(Ordering::Relaxed);
        if done / REPORT_EVERY > reported {
            reported = done / REPORT_EVERY;
            let rate = u128::from(done) * 1000 / start.elapsed().as_millis().max(1);
            println!("{done:>10} {:>10} {rate:>10}", rss(ingest)?);
        }
    }
    for attacker in attackers {
        attacker.await??;
    }
    Ok(times)
}

/// The program's resident memory, in kB.
fn rss(program: &Running) -> anyhow::Result<u64> {
    let pid = program.pid().context("ingest is not running")?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .context("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").trim().parse()?)
}

fn percentiles(mut times: Vec<Duration>) -> (usize, Duration, Duration) {
    times.sort_unstable();
    let at = |share: usize| times.get(times.len() * share / 100).copied().unwrap_or_default();
    (times.len(), at(50), at(99))
}

fn now_ms() -> u128 {
    #[expect(clippy::disallowed_methods, reason = "signs for the program's own clock")]
    let now = SystemTime::now();
    now.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis()
}

fn signature(secret: &str, time: u128, body: &[u8]) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("any length");
    mac.update(time.to_string().as_bytes());
    mac.update(b".");
    mac.update(body);
    hex::encode(mac.finalize().into_bytes())
}

fn request(header: Option<&[u8]>, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let line = format!("POST /webhooks/workos HTTP/1.1\r\nHost: ingest\r\nContent-Length: {length}\r\n");
    let mut request = line.into_bytes();
    if let Some(header) = header {
        request.extend_from_slice(b"WorkOS-Signature: ");
        request.extend_from_slice(header);
        request.extend_from_slice(b"\r\n");
    }
    request.extend_from_slice(b"\r\n");
    request.extend_from_slice(body);
    request
}

/// Sends a request and reads the whole answer. Returns its status, and whether the connection stays open.
async fn exchange(stream: &mut TcpStream, request: &[u8]) -> anyhow::Result<(u16, bool)> {
    // The answer may arrive, and the connection close, before the whole request is sent.
    let sent = stream.write_all(request).await;
    let mut answer = Vec::new();
    let mut piece = [0; 4096];
    loop {
        let read = stream.read(&mut piece).await?;
        ensure!(read > 0, "connection closed without an answer");
        answer.extend_from_slice(&piece[..read]);
        let Some(end) = answer.windows(4).position(|four| four == b"\r\n\r\n") else {
            continue;
        };
        let head = String::from_utf8_lossy(&answer[..end]).to_lowercase();
        let value = |name: &str| {
            head.lines()
                .find_map(|line| line.strip_prefix(name).map(str::trim))
        };
        let length: usize = value("content-length:").map_or(Ok(0), str::parse)?;
        if answer.len() >= end + 4 + length {
            let status = head.split(' ').nth(1).context("a status")?.parse()?;
            return Ok((status, sent.is_ok() && value("connection:") != Some("close")));
        }
    }
}

/// Sends webhooks as WorkOS would, one after the other.
struct Honest {
    stream: TcpStream,
    address: String,
    count: u64,
}

impl Honest {
    async fn new(address: &str) -> anyhow::Result<Honest> {
        Ok(Honest {
            stream: TcpStream::connect(address).await?,
            address: address.to_owned(),
            count: 0,
        })
    }

    /// Sends `many` webhooks, each of which must be stored. Returns how long each took.
    async fn many(&mut self, many: u64) -> anyhow::Result<Vec<Duration>> {
        let mut times = Vec::new();
        for _ in 0..many {
            self.count += 1;
            let body = body(self.count, "honest");
            let time = now_ms();
            let header = format!("t={time}, v1={}", signature(SECRET, time, &body));
            let request = request(Some(header.as_bytes()), &body);
            let start = Instant::now();
            let (status, kept) = exchange(&mut self.stream, &request).await?;
            times.push(start.elapsed());
            ensure!(status == 200, "an honest webhook was answered {status}");
            if !kept {
                self.stream = TcpStream::connect(&self.address).await?;
            }
        }
        Ok(times)
    }
}

fn body(id: u64, who: &str) -> Vec<u8> {
    format!(
        r#"{{"id":"event_{who}_{id}","event":"dsync.user.updated","created_at":"2026-01-01T00:00:00Z","data":{{"id":"u{id}",
            "directory_id":"d","state":"active","updated_at":"2026-01-01T00:00:00Z"}}}}"#
    )
    .into_bytes()
}

/// How the forgeries were answered.
#[derive(Default)]
struct Tally {
    done: AtomicU64,
    accepted: AtomicU64,
    refused: AtomicU64,
    too_large: AtomicU64,
    malformed: AtomicU64,
    busy: AtomicU64,
    other: AtomicU64,
    closed: AtomicU64,
}

impl Tally {
    fn add(&self, status: Option<u16>) {
        let place = match status {
            Some(200..300) => &self.accepted,
            Some(401) => &self.refused,
            Some(413) => &self.too_large,
            Some(400 | 431) => &self.malformed,
            Some(503) => &self.busy,
            Some(_) => &self.other,
            None => &self.closed,
        };
        place.fetch_add(1, Ordering::Relaxed);
        self.done.fetch_add(1, Ordering::Relaxed);
    }

    fn statuses(&self) -> String {
        [
            ("2xx", &self.accepted),
            ("401", &self.refused),
            ("413", &self.too_large),
            ("400/431", &self.malformed),
            ("503", &self.busy),
            ("other", &self.other),
            ("closed unanswered", &self.closed),
        ]
        .map(|(what, count)| format!("{what} {}", count.load(Ordering::Relaxed)))
        .join(", ")
    }
}

async fn attack(address: String, mut forger: Forger, share: u64, tally: Arc<Tally>) -> anyhow::Result<()> {
    let mut stream = TcpStream::connect(&address).await?;
    for _ in 0..share {
        let request = forger.next();
        let answer = exchange(&mut stream, &request).await.ok();
        tally.add(answer.map(|(status, _)| status));
        if !answer.is_some_and(|(_, kept)| kept) {
            stream = TcpStream::connect(&address).await?;
        }
    }
    Ok(())
}

/// Makes forgeries of every kind, in an order that depends on the seed.
struct Forger {
    state: u64,
    count: u64,
}

impl Forger {
    fn new(seed: u64) -> Forger {
        Forger {
            state: seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1,
            count: 0,
        }
    }

    /// A number below `end`, by xorshift64*.
    fn below(&mut self, end: u64) -> u64 {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        (self.state.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 32) % end
    }

    fn next(&mut self) -> Vec<u8> {
        self.count += 1;
        let now = now_ms();
        let body = body(self.count, "forged");
        let right = signature(SECRET, now, &body);
        let of = |time: u128, mac: &str| format!("t={time}, v1={mac}").into_bytes();
        let signed_at = |time: u128| of(time, &signature(SECRET, time, &body));
        let header = match self.below(20) {
            0 => return request(None, &body),
            1 => Vec::new(),
            2 => of(now, &signature("whsec_guessed", now, &body)),
            3 => of(now, &signature("", now, &body)),
            4 => of(now, &"0".repeat(64)),
            // Signed with the right secret, but an hour ago (a replay), tomorrow, or for another time.
            5 => signed_at(now - 3_600_000),
            6 => signed_at(now + 86_400_000),
            7 => of(now + 1, &right),
            // A valid signature of another body, of this one without the added space, of its beginning only, and of
            // more than is sent.
            8 => return request(Some(&of(now, &right)), &self::body(self.count + 1, "forged")),
            9 => return request(Some(&of(now, &right)), &[&body[..], b" "].concat()),
            10 => of(now, &signature(SECRET, now, &body[..40])),
            11 => return request(Some(&of(now, &right)), &body[..body.len() / 2]),
            12 => of(now, &right[..62]),
            13 => format!("t={now}, t={now}, v1={right}").into_bytes(),
            14 => format!("v0={right}, t={now}").into_bytes(),
            15 => format!("t={now}, v1={right}").repeat(200).into_bytes(),
            16 => (0..60)
                .map(|_| b' ' + u8::try_from(self.below(95)).unwrap_or(0))
                .collect(),
            17 => [b"t=1, v1=\xff\xfe", &right.as_bytes()[..8]].concat(),
            // A mebibyte, but only one time in fifty: otherwise this would measure the network.
            18 if self.below(50) == 0 => return request(Some(&of(now, &right)), &vec![b'x'; 1 << 20]),
            18 => return b"POST /webhooks/workos HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n".to_vec(),
            _ => {
                let mut mac = hex::decode(&right).unwrap_or_default();
                let bit = self.below(256);
                mac[usize::try_from(bit / 8).unwrap_or(0)] ^= 1 << (bit % 8);
                of(now, &hex::encode(mac))
            }
        };
        request(Some(&header), &body)
    }
}
