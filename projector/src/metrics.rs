//! The projector's metrics, one field each. Their names and labels are part of the interface.

use prometheus::core::Collector;
use prometheus::{
    Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};

use crate::lane::Lane;

/// The projector's metrics.
#[derive(Clone)]
pub struct Metrics {
    /// Records read, by type and outcome: applied, stale or dead.
    pub events: IntCounterVec,
    /// Seconds to apply a batch, up to its commit.
    pub batch_seconds: Histogram,
    /// Records in a batch.
    pub batch_events: Histogram,
    /// Records in the log that the lane `all` has not applied yet.
    pub pending_messages: IntGauge,
    /// Seconds from an event's `created_at` until its change was visible.
    pub freshness_seconds: Histogram,
    /// The same for events that take access away.
    pub deprovision_seconds: Histogram,
    /// Dead letters that are waiting.
    pub dead_letters: IntGauge,
    /// Deleted directories and groups whose history is still being written.
    pub history_backlog: IntGauge,
    /// How many times the log was found to have lost records or to be another log.
    pub log_rewinds: IntCounter,
    /// Entries that the log lost from its middle before they were applied.
    pub log_lost_entries: IntCounter,
    /// 1 on the projector that works a lane.
    pub lane_held: IntGaugeVec,
    /// Batches applied, by lane.
    pub lane_batches: IntCounterVec,
    /// Stretches of work that ended in an error and were restarted.
    pub batch_retries: IntCounter,
}

/// Metrics are created once, with constant names, so an error can only be a mistake in the program.
const VALID: &str = "a valid metric, registered once";

/// Buckets for how long work takes, in seconds.
const WORK: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
];
/// Buckets for how old an event is when it becomes visible, in seconds.
const AGE: &[f64] = &[
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3_600.0,
    86_400.0,
];
/// Buckets for numbers of records.
const SIZE: &[f64] = &[
    1.0, 2.0, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1_000.0, 2_000.0,
];

fn registered<C: Collector + Clone + 'static>(registry: &Registry, collector: prometheus::Result<C>) -> C {
    let collector = collector.expect(VALID);
    registry.register(Box::new(collector.clone())).expect(VALID);
    collector
}

impl Metrics {
    /// Creates the metrics and registers them.
    pub fn new(registry: &Registry) -> Self {
        let histogram = |name: &str, help: &str, buckets: &[f64]| {
            let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
            registered(registry, Histogram::with_opts(options))
        };
        let gauge = |name: &str, help: &str| registered(registry, IntGauge::new(name, help));
        let counter = |name: &str, help: &str| registered(registry, IntCounter::new(name, help));
        let lane_held = registered(
            registry,
            IntGaugeVec::new(
                Opts::new("dsync_projector_lane_held", "1 if this projector works the lane."),
                &["lane"],
            ),
        );
        let lane_batches = registered(
            registry,
            IntCounterVec::new(
                Opts::new("dsync_projector_lane_batches_total", "Batches applied, by lane."),
                &["lane"],
            ),
        );
        for lane in Lane::EVERY {
            lane_held.with_label_values(&[lane.as_str()]).set(0);
            lane_batches.with_label_values(&[lane.as_str()]).reset();
        }
        Self {
            events: registered(
                registry,
                IntCounterVec::new(
                    Opts::new("dsync_projector_events_total", "Records read, by outcome."),
                    &["event", "outcome"],
                ),
            ),
            batch_seconds: histogram(
                "dsync_projector_batch_seconds",
                "Seconds to apply a batch, up to its commit.",
                WORK,
            ),
            batch_events: histogram("dsync_projector_batch_events", "Records in a batch.", SIZE),
            pending_messages: gauge(
                "dsync_projector_pending_messages",
                "Records in the log that the lane `all` has not applied yet.",
            ),
            freshness_seconds: histogram(
                "dsync_projector_freshness_seconds",
                "Seconds from an event's created_at until its change was visible.",
                AGE,
            ),
            deprovision_seconds: histogram(
                "dsync_projector_deprovision_seconds",
                "Seconds from an event's created_at until its change was visible, for events that take access away.",
                AGE,
            ),
            dead_letters: gauge("dsync_projector_dead_letters", "Dead letters that are waiting."),
            history_backlog: gauge(
                "dsync_projector_history_backlog",
                "Deleted directories and groups whose history is still being written.",
            ),
            log_rewinds: counter(
                "dsync_projector_log_rewinds_total",
                "How many times the log was found to have lost records or to be another log.",
            ),
            log_lost_entries: counter(
                "dsync_projector_log_lost_entries_total",
                "Entries that the log lost from its middle before they were applied.",
            ),
            lane_held,
            lane_batches,
            batch_retries: counter(
                "dsync_projector_batch_retries_total",
                "Stretches of work that ended in an error and were restarted.",
            ),
        }
    }

    /// Counts one record.
    pub fn count(&self, event_type: &str, outcome: &str) {
        self.events
            .with_label_values(&[schema::event::label(event_type), outcome])
            .inc();
    }
}
