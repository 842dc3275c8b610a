//! The reconciler's metrics, one field each. Names and labels are part of the interface.

use prometheus::{Histogram, HistogramOpts, IntCounterVec, IntGauge, Opts, Registry};
use schema::event::TYPES;

use crate::difference::{Entity, Kind};

/// The reconciler's metrics.
#[derive(Clone)]
pub struct Metrics {
    /// Differences found by sweeps, by kind of object and kind of difference.
    pub drift: IntCounterVec,
    /// Requests to `WorkOS`, by endpoint and status (or `timeout`, `error`).
    pub api_requests: IntCounterVec,
    /// Events that the log did not have until the catch-up appended them, by type.
    pub events_recovered: IntCounterVec,
    /// Seconds a sweep of one directory took.
    pub sweep_seconds: Histogram,
    /// When the least recently swept directory was swept, in seconds since the Unix epoch.
    pub oldest_sweep: IntGauge,
    /// Until when the catch-up has read events, in seconds since the Unix epoch; 0 if it is off or never began.
    pub caught_up: IntGauge,
    /// Deletions that are held back.
    pub held_deletions: IntGauge,
}

/// Metrics are created once, with constant names, so an invalid one is a bug.
const VALID: &str = "a valid metric, registered once";

impl Metrics {
    /// Creates the metrics and registers them.
    pub fn new(registry: &Registry) -> Self {
        let counters = |name: &str, help: &str, labels: &[&str]| {
            let counters = IntCounterVec::new(Opts::new(name, help), labels).expect(VALID);
            registry.register(Box::new(counters.clone())).expect(VALID);
            counters
        };
        let gauge = |name: &str, help: &str| {
            let gauge = IntGauge::new(name, help).expect(VALID);
            registry.register(Box::new(gauge.clone())).expect(VALID);
            gauge
        };
        let sweep_seconds = Histogram::with_opts(
            HistogramOpts::new(
                "dsync_reconciler_sweep_seconds",
                "Seconds a sweep of one directory took.",
            )
            .buckets(vec![
                0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3600.0,
            ]),
        )
        .expect(VALID);
        registry.register(Box::new(sweep_seconds.clone())).expect(VALID);
        let drift = counters(
            "dsync_reconciler_drift_total",
            "Differences found by sweeps, by kind of object and kind of difference.",
            &["entity", "kind"],
        );
        for entity in Entity::EVERY {
            for kind in Kind::EVERY {
                drift.with_label_values(&[entity.as_str(), kind.as_str()]);
            }
        }
        let events_recovered = counters(
            "dsync_reconciler_events_recovered_total",
            "Events that the log did not have until the catch-up appended them, by type.",
            &["event"],
        );
        for event in TYPES {
            events_recovered.with_label_values(&[event]);
        }
        Self {
            drift,
            api_requests: counters(
                "dsync_reconciler_api_requests_total",
                "Requests to WorkOS, by endpoint and status.",
                &["endpoint", "status"],
            ),
            events_recovered,
            sweep_seconds,
            oldest_sweep: gauge(
                "dsync_reconciler_oldest_sweep_timestamp_seconds",
                "When the least recently swept directory was swept, or first known if it never was.",
            ),
            caught_up: gauge(
                "dsync_reconciler_caught_up_timestamp_seconds",
                "Until when the catch-up has read the Events API; 0 if it is off or never began.",
            ),
            held_deletions: gauge(
                "dsync_reconciler_held_deletions",
                "Deletions held back until someone approves them.",
            ),
        }
    }
}
