//! What must be true at the end: everything acknowledged is in the log, the tables show the truth, and the history has
//! each change once and adds up to the tables.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::ensure;
use futures_util::StreamExt as _;
use tests::{History, agrees, eventually};
use workos_sim::Acknowledged;

use crate::operator::{self, Deeds};
use crate::stage::Stage;

/// The most differences shown.
const SHOWN: usize = 5;

/// The results of the final checks.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    /// Events emitted.
    pub(crate) events: usize,
    /// Webhooks answered with 200.
    pub(crate) acknowledged: usize,
    /// Events among them that are not in the log as acknowledged.
    pub(crate) lost: Vec<String>,
    /// Records in the log.
    pub(crate) logged: usize,
    /// Ids that are in the log more than once, which only wastes space.
    pub(crate) stored_twice: usize,
    /// Rows of the history.
    pub(crate) changes: usize,
    /// Rows of the history that are inconsistent, change nothing, or do not follow from those before.
    pub(crate) duplicated_effects: Vec<String>,
    /// Records that could not be applied.
    pub(crate) dead_letters: i64,
    /// The operator's commands by name: how many were done, and how many failed.
    pub(crate) commands: BTreeMap<&'static str, (usize, usize)>,
    /// Everything else that is wrong.
    pub(crate) wrong: Vec<String>,
}

impl Verdict {
    pub(crate) fn is_good(&self) -> bool {
        self.lost.is_empty()
            && self.duplicated_effects.is_empty()
            && self.dead_letters == 0
            && self.wrong.is_empty()
    }
}

impl Stage {
    /// Waits for everything to arrive, at most `patience` for each step, and checks the result. Strikes and changes in
    /// the world must have stopped.
    pub(crate) async fn verdict(&mut self, deeds: Deeds, patience: Duration) -> anyhow::Result<Verdict> {
        let mut verdict = Verdict {
            commands: deeds.counts,
            wrong: deeds.wrong,
            ..Verdict::default()
        };
        self.delivery.hurry();
        match self.delivery.drained_within(patience).await {
            Ok(counts) if counts.gave_up == 0 => {}
            other => verdict
                .wrong
                .push(format!("not everything was delivered: {other:?}")),
        }
        let truth = self.world.sim.truth();
        let mut shows = eventually(patience, async || agrees(&self.pool, &truth).await).await;
        if shows.is_ok() {
            // It must stay so: neither late events nor sweeps may spoil it.
            shows = tests::holds(Duration::from_secs(3), async || agrees(&self.pool, &truth).await).await;
        }
        verdict
            .wrong
            .extend(shows.err().map(|error| format!("{error:#}")));
        let events = self.world.sim.events();
        verdict.events = events.len();
        let acknowledged = self.delivery.acknowledged();
        verdict.acknowledged = acknowledged.len();
        let log = self.log().await?;
        verdict.logged = log.values().map(Vec::len).sum();
        verdict.stored_twice = log.values().filter(|sources| sources.len() > 1).count();
        let about_erased: BTreeSet<String> = events
            .iter()
            .filter(|event| deeds.erased.iter().any(|id| event.body().contains(id)))
            .map(|event| event.id.clone())
            .collect();
        verdict.lost = lost(&acknowledged, &log);
        verdict.lost.retain(|event| !about_erased.contains(event));
        let dead = sqlx::query_scalar("select count(*) from dsync.dead_letters");
        verdict.dead_letters = dead.fetch_one(&self.pool).await?;
        let told = eventually(patience, async || {
            let backlog = sqlx::query_scalar::<_, i64>(
                "select (select count(*) from dsync.history_backlog) + (select count(*) from dsync.group_history_backlog)",
            );
            ensure!(
                backlog.fetch_one(&self.pool).await? == 0,
                "the history is not completely written"
            );
            Ok(())
        })
        .await;
        verdict.wrong.extend(told.err().map(|error| format!("{error:#}")));
        verdict.wrong.extend(operator::verified(self, patience).await);
        let history = History::read(&self.pool).await?.without_users(&deeds.erased);
        verdict.changes = history.ids().len();
        verdict.duplicated_effects = history.faults();
        let strays = history.strays(&self.pool).await?;
        if !strays.is_empty() {
            verdict.wrong.push(format!(
                "the history does not add up to the tables in {} rows: {:?}",
                strays.len(),
                &strays[..strays.len().min(SHOWN)]
            ));
        }
        Ok(verdict)
    }

    /// For every id in the log, the sources of its records.
    async fn log(&self) -> anyhow::Result<BTreeMap<String, Vec<String>>> {
        let nats = async_nats::connect(self.nats.url()).await?;
        let stream = async_nats::jetstream::new(nats).get_stream("DSYNC").await?;
        let state = stream.cached_info().state.clone();
        let mut log: BTreeMap<String, Vec<String>> = BTreeMap::new();
        if state.messages == 0 {
            return Ok(log);
        }
        let consumer = stream
            .create_consumer(async_nats::jetstream::consumer::pull::OrderedConfig {
                headers_only: true,
                ..Default::default()
            })
            .await?;
        let mut messages = consumer.messages().await?;
        while let Some(message) = messages.next().await {
            let message = message?;
            let header = |name: &str| message.headers.as_ref()?.get(name).map(ToString::to_string);
            let (id, source) = (header("Nats-Msg-Id"), header("Dsync-Source"));
            // Remove the suffix of a further message id, used where the broker never decided on the first one.
            let id = id.unwrap_or_default();
            log.entry(id.split('.').next().unwrap_or_default().to_owned())
                .or_default()
                .push(source.unwrap_or_default());
            let position = message.info().map_err(|error| anyhow::anyhow!("{error}"))?;
            if position.stream_sequence >= state.last_sequence {
                break;
            }
        }
        Ok(log)
    }
}

/// Acknowledged events that are not in the log as acknowledged. A webhook that was answered "accepted" must be there as
/// a webhook. Had it been lost and recovered by catch-up, its record would have the Events API as its source.
fn lost(acknowledged: &[Acknowledged], log: &BTreeMap<String, Vec<String>>) -> Vec<String> {
    let mut lost = BTreeSet::new();
    for Acknowledged { event, answer } in acknowledged {
        let sources = log.get(event).map(Vec::as_slice).unwrap_or_default();
        let first = answer.contains("accepted");
        if sources.is_empty() || (first && !sources.iter().any(|source| source == "webhook")) {
            lost.insert(event.clone());
        }
    }
    lost.into_iter().collect()
}

#[cfg(test)]
mod checks {
    use super::*;

    #[test]
    fn what_was_acknowledged_must_be_there_as_it_was_said() {
        let said = |event: &str, answer: &str| Acknowledged {
            event: event.to_owned(),
            answer: answer.to_owned(),
        };
        let log = [("a", "webhook"), ("b", "events_api"), ("c", "events_api")];
        let log = log
            .map(|(id, source)| (id.to_owned(), vec![source.to_owned()]))
            .into();
        let acknowledged = [
            said("a", r#"{"status":"accepted"}"#),
            said("b", r#"{"status":"duplicate"}"#),
            // Lost, and recovered by catch-up.
            said("c", r#"{"status":"accepted"}"#),
            said("d", r#"{"status":"duplicate"}"#),
        ];
        assert_eq!(lost(&acknowledged, &log), ["c", "d"]);
    }
}
