//! The complete list of the programs' metrics: names, types and labels. A metric that is only in the list, or only in a
//! program, is a mistake in one of the two.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, ensure};

const COUNTER: &str = "counter";
const GAUGE: &str = "gauge";
const HISTOGRAM: &str = "histogram";

/// Name, type, labels.
type Metric = (&'static str, &'static str, &'static [&'static str]);

pub(crate) const INGEST: &[Metric] = &[
    ("dsync_build_info", GAUGE, &["version"]),
    ("dsync_ingest_inflight", GAUGE, &[]),
    ("dsync_ingest_publish_seconds", HISTOGRAM, &[]),
    ("dsync_ingest_webhooks_total", COUNTER, &["outcome"]),
    ("dsync_ready", GAUGE, &[]),
];

pub(crate) const PROJECTOR: &[Metric] = &[
    ("dsync_build_info", GAUGE, &["version"]),
    ("dsync_projector_batch_events", HISTOGRAM, &[]),
    ("dsync_projector_batch_retries_total", COUNTER, &[]),
    ("dsync_projector_batch_seconds", HISTOGRAM, &[]),
    ("dsync_projector_dead_letters", GAUGE, &[]),
    ("dsync_projector_deprovision_seconds", HISTOGRAM, &[]),
    ("dsync_projector_events_total", COUNTER, &["event", "outcome"]),
    ("dsync_projector_freshness_seconds", HISTOGRAM, &[]),
    ("dsync_projector_history_backlog", GAUGE, &[]),
    ("dsync_projector_lane_batches_total", COUNTER, &["lane"]),
    ("dsync_projector_lane_batches_total", COUNTER, &["lane"]),
    ("dsync_projector_lane_held", GAUGE, &["lane"]),
    ("dsync_projector_log_lost_entries_total", COUNTER, &[]),
    ("dsync_projector_log_rewinds_total", COUNTER, &[]),
    ("dsync_projector_pending_messages", GAUGE, &[]),
    ("dsync_ready", GAUGE, &[]),
];

pub(crate) const RECONCILER: &[Metric] = &[
    ("dsync_build_info", GAUGE, &["version"]),
    (
        "dsync_reconciler_api_requests_total",
        COUNTER,
        &["endpoint", "status"],
    ),
    ("dsync_reconciler_drift_total", COUNTER, &["entity", "kind"]),
    ("dsync_reconciler_events_recovered_total", COUNTER, &["event"]),
    ("dsync_reconciler_held_deletions", GAUGE, &[]),
    ("dsync_reconciler_oldest_sweep_timestamp_seconds", GAUGE, &[]),
    ("dsync_reconciler_caught_up_timestamp_seconds", GAUGE, &[]),
    ("dsync_reconciler_sweep_seconds", HISTOGRAM, &[]),
    ("dsync_ready", GAUGE, &[]),
];

/// Values that a label must show, even if they have not occurred.
pub(crate) const VALUES: &[(&str, &str, &[&str])] = &[
    (
        "dsync_ingest_webhooks_total",
        "outcome",
        &[
            "accepted",
            "duplicate",
            "ignored",
            "quarantined",
            "unauthorized",
            "forbidden",
            "too_large",
            "unavailable",
        ],
    ),
    (
        "dsync_projector_events_total",
        "outcome",
        &["applied", "stale", "dead"],
    ),
    ("dsync_projector_lane_batches_total", "lane", &["all", "removals"]),
    ("dsync_projector_lane_held", "lane", &["all", "removals"]),
    (
        "dsync_reconciler_drift_total",
        "kind",
        &["missing", "extra", "differs"],
    ),
    (
        "dsync_reconciler_drift_total",
        "entity",
        &["directory", "user", "group", "membership"],
    ),
];

/// Compares a program's `/metrics` with the list.
pub(crate) fn complete(text: &str, list: &[Metric]) -> anyhow::Result<()> {
    let helps = comments(text, "# HELP ");
    let kinds = comments(text, "# TYPE ");
    let names: BTreeSet<&str> = kinds.keys().copied().collect();
    let listed: BTreeSet<&str> = list.iter().map(|(name, ..)| *name).collect();
    ensure!(
        names == listed,
        "missing: {:?}; not in the list: {:?}",
        listed.difference(&names),
        names.difference(&listed)
    );
    for (name, kind, labels) in list {
        let help = helps.get(name).copied().unwrap_or_default();
        ensure!(help.len() > 10, "{name} has no help: {help:?}");
        ensure!(kinds[name] == *kind, "{name} is a {}", kinds[name]);
        ensure!(
            (*kind == COUNTER) == name.ends_with("_total"),
            "{name} is a {kind}"
        );
        let sample = if *kind == HISTOGRAM {
            format!("{name}_count")
        } else {
            (*name).to_owned()
        };
        let mut samples = 0;
        for found in samples_of(text, &sample) {
            let found: BTreeSet<&str> = found.keys().copied().collect();
            ensure!(
                found == labels.iter().copied().collect(),
                "{name} has the labels {found:?}"
            );
            samples += 1;
        }
        ensure!(samples > 0, "{name} has no samples");
    }
    for (name, label, values) in VALUES.iter().filter(|(name, ..)| listed.contains(name)) {
        let shown: BTreeSet<&str> = samples_of(text, name)
            .filter_map(|labels| labels.get(label).copied())
            .collect();
        let lacks: Vec<_> = values.iter().filter(|value| !shown.contains(**value)).collect();
        ensure!(lacks.is_empty(), "{name} lacks {label} {lacks:?}");
    }
    Ok(())
}

fn comments<'a>(text: &'a str, prefix: &str) -> BTreeMap<&'a str, &'a str> {
    let lines = text.lines().filter_map(|line| line.strip_prefix(prefix));
    lines.filter_map(|line| line.split_once(' ')).collect()
}

/// The labels of each sample with this name. (None of dsync's values contains a comma or a quote.)
fn samples_of<'a>(text: &'a str, name: &str) -> impl Iterator<Item = BTreeMap<&'a str, &'a str>> {
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(move |line| {
            let (series, _) = line.rsplit_once(' ')?;
            let (found, labels) = series.split_once('{').unwrap_or((series, "}"));
            (found == name).then(|| {
                let labels = labels.trim_end_matches('}').split(',');
                labels
                    .filter_map(|label| label.split_once('='))
                    .map(|(label, value)| (label, value.trim_matches('"')))
                    .collect()
            })
        })
}

/// The names in a query that can only be dsync's metrics or rules.
pub(crate) fn ours(query: &str) -> BTreeSet<String> {
    let part_of_name = |letter: char| letter.is_ascii_alphanumeric() || "_:".contains(letter);
    query
        .split(|letter| !part_of_name(letter))
        .filter(|word| word.starts_with("dsync_") || word.starts_with("dsync:"))
        .map(str::to_owned)
        .collect()
}

#[tokio::test]
async fn a_name_in_a_query_is_found() -> anyhow::Result<()> {
    let found = ours(r#"1 - rate(dsync_a_bucket{le="1", job="dsync-x"}[5m]) > dsync:b:c5m"#);
    let expected = ["dsync:b:c5m", "dsync_a_bucket"].map(str::to_owned);
    ensure!(found == BTreeSet::from(expected), "{found:?}");
    samples_of("a{b=\"c\"} 1\n", "a")
        .next()
        .context("no sample was found")?;
    Ok(())
}
