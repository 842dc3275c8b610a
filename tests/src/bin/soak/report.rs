//! The report: strikes by kind, the longest time to recover, and what was acknowledged, lost and duplicated.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::json;

use crate::plan::{Kind, Round};
use crate::stage::Supervision;
use crate::verdict::Verdict;

/// The counts from a run.
#[derive(Debug, Default)]
pub(crate) struct Report {
    seed: u64,
    kinds: BTreeMap<Kind, Tally>,
    pairs: Tally,
}

/// Strikes of one kind.
#[derive(Debug, Default)]
struct Tally {
    strikes: usize,
    /// The number of strikes by target.
    targets: BTreeMap<String, usize>,
    /// The longest strike.
    lasted: Duration,
    /// Times to recover, with descriptions of the strikes, longest last. Rounds of two strikes count only as pairs.
    recoveries: Vec<(Duration, String)>,
}

impl Tally {
    fn recovered(&mut self, took: Duration, from: String) {
        self.recoveries.push((took, from));
        self.recoveries.sort();
    }

    fn longest(&self) -> String {
        let longest = self.recoveries.last();
        longest.map_or_else(String::new, |(took, from)| {
            format!("{:.1} s ({from})", took.as_secs_f64())
        })
    }

    fn median(&self) -> String {
        let middle = self.recoveries.get(self.recoveries.len() / 2);
        middle.map_or_else(String::new, |(took, _)| format!("{:.1} s", took.as_secs_f64()))
    }
}

impl Report {
    pub(crate) fn new(seed: u64) -> Report {
        Report {
            seed,
            ..Report::default()
        }
    }

    /// Counts a round from which everything recovered.
    pub(crate) fn count(&mut self, round: &Round, took: Duration) {
        for blow in round {
            let tally = self.kinds.entry(blow.strike.kind()).or_default();
            tally.strikes += 1;
            *tally.targets.entry(blow.strike.target()).or_default() += 1;
            tally.lasted = tally.lasted.max(blow.lasts);
            if round.len() == 1 {
                tally.recovered(
                    took,
                    format!("{}, {:.1} s", blow.strike.target(), blow.lasts.as_secs_f64()),
                );
            }
        }
        if round.len() > 1 {
            let both: Vec<String> = round
                .iter()
                .map(|blow| format!("{} {}", blow.strike.kind().as_str(), blow.strike.target()))
                .collect();
            self.pairs.strikes += 1;
            self.pairs.recovered(took, both.join(" + "));
        }
    }

    /// All strikes.
    pub(crate) fn strikes(&self) -> usize {
        self.kinds.values().map(|tally| tally.strikes).sum()
    }

    /// For people.
    pub(crate) fn show(&self, verdict: &Verdict, supervision: &Supervision) {
        println!("\nseed {}: {} strikes", self.seed, self.strikes());
        println!(
            "{:<24} {:>7}  {:>9}  {:>9}  longest recovery (after)",
            "kind", "strikes", "lasted", "median"
        );
        for (kind, tally) in &self.kinds {
            let lasted = format!("{:.1} s", tally.lasted.as_secs_f64());
            let (strikes, median, longest) = (tally.strikes, tally.median(), tally.longest());
            println!(
                "{:<24} {strikes:>7}  {lasted:>9}  {median:>9}  {longest}",
                kind.as_str()
            );
        }
        let (pairs, median, longest) = (self.pairs.strikes, self.pairs.median(), self.pairs.longest());
        println!(
            "{:<24} {pairs:>7}  {:>9}  {median:>9}  {longest}",
            "pairs at the same time", ""
        );
        println!(
            "webhooks acknowledged    {} for {} events",
            verdict.acknowledged, verdict.events
        );
        println!("lost                     {}", verdict.lost.len());
        println!(
            "duplicated effects       {} in {} changes",
            verdict.duplicated_effects.len(),
            verdict.changes
        );
        println!(
            "stored twice in the log  {} of {} records",
            verdict.stored_twice, verdict.logged
        );
        for (command, (done, failed)) in &verdict.commands {
            println!("{command:<24} {done} done, {failed} failed");
        }
        println!("dead letters             {}", verdict.dead_letters);
        println!("ended by themselves      {}", supervision.ended.len());
        println!(
            "restarts by a supervisor broker {} (health check failed), Postgres {} (had ended by itself)",
            supervision.broker_restarts, supervision.postgres_restarts
        );
        println!("restarts by hand         0");
        let named = verdict.lost.iter().map(|event| format!("lost: {event}"));
        let named = named.chain(verdict.duplicated_effects.iter().cloned());
        for line in named.take(20).chain(verdict.wrong.iter().cloned()) {
            println!("WRONG {line}");
        }
        for words in &supervision.ended {
            println!("ENDED {words}");
        }
    }

    /// The report as a JSON object, for programs.
    pub(crate) fn json(&self, verdict: &Verdict, supervision: &Supervision) -> serde_json::Value {
        let of = |tally: &Tally| {
            let recoveries: Vec<f64> = tally
                .recoveries
                .iter()
                .map(|(took, _)| took.as_secs_f64())
                .collect();
            json!({
                "strikes": tally.strikes,
                "targets": tally.targets,
                "lasted": tally.lasted.as_secs_f64(),
                "recoveries": recoveries,
                "longest": tally.longest(),
            })
        };
        let kinds: BTreeMap<&str, _> = self
            .kinds
            .iter()
            .map(|(kind, tally)| (kind.as_str(), of(tally)))
            .collect();
        json!({
            "seed": self.seed,
            "good": verdict.is_good() && supervision.ended.is_empty(),
            "strikes": self.strikes(),
            "kinds": kinds,
            "pairs": of(&self.pairs),
            "events": verdict.events,
            "acknowledged": verdict.acknowledged,
            "lost": verdict.lost.len(),
            "changes": verdict.changes,
            "duplicated_effects": verdict.duplicated_effects.len(),
            "logged": verdict.logged,
            "stored_twice": verdict.stored_twice,
            "dead_letters": verdict.dead_letters,
            "commands": verdict.commands,
            "wrong": verdict.wrong,
            "ended": supervision.ended,
            "broker_restarts": supervision.broker_restarts,
            "postgres_restarts": supervision.postgres_restarts,
        })
    }
}
