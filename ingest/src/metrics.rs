//! The metrics of this program.

use prometheus::{Histogram, HistogramOpts, IntCounterVec, IntGauge, Opts, Registry};

use crate::answer::Answer;

const OUTCOMES: [&str; 9] = [
    "accepted",
    "duplicate",
    "ignored",
    "quarantined",
    "unauthorized",
    "forbidden",
    "too_large",
    "incomplete",
    "unavailable",
];

/// The metrics of `dsync-ingest`. Cheap to clone; clones count together.
#[derive(Clone)]
pub struct Metrics {
    /// `dsync_ingest_webhooks_total{outcome}`: webhooks by outcome. A probe of another path or method does not count.
    webhooks: IntCounterVec,
    /// `dsync_ingest_publish_seconds`: how long the log took to acknowledge a webhook, failures included.
    pub publish_seconds: Histogram,
    /// `dsync_ingest_inflight`: webhooks being read, checked or stored now.
    pub inflight: IntGauge,
}

impl Metrics {
    /// Registers the metrics, with each outcome at zero. An error when they are already registered.
    pub fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let webhooks = Opts::new("dsync_ingest_webhooks_total", "Webhooks by outcome.");
        let publish = HistogramOpts::new(
            "dsync_ingest_publish_seconds",
            "How long the log took to acknowledge a webhook, failures included.",
        );
        let steps = [
            0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 3.0,
        ];
        let metrics = Self {
            webhooks: IntCounterVec::new(webhooks, &["outcome"])?,
            publish_seconds: Histogram::with_opts(publish.buckets(steps.to_vec()))?,
            inflight: IntGauge::new(
                "dsync_ingest_inflight",
                "Webhooks being read, checked or stored now.",
            )?,
        };
        for outcome in OUTCOMES {
            metrics.webhooks.with_label_values(&[outcome]);
        }
        registry.register(Box::new(metrics.webhooks.clone()))?;
        registry.register(Box::new(metrics.publish_seconds.clone()))?;
        registry.register(Box::new(metrics.inflight.clone()))?;
        Ok(metrics)
    }

    /// Counts an answer.
    pub fn answered(&self, answer: Answer) {
        if let Some(outcome) = answer.outcome() {
            self.webhooks.with_label_values(&[outcome]).inc();
        }
    }
}
