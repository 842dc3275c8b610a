//! What operators see: metrics, dashboards and alerts, asked of a real Prometheus that scraped the running programs; and
//! that every alert and panel leads to a section of the runbook. (What the alerts say and when: `promtool test rules`,
//! which `ops/test` runs.)

#![allow(clippy::unwrap_used, reason = "a test")]

mod dashboards;
mod documents;
mod observed;
mod prometheus;
mod restored;
mod scraped;
#[allow(dead_code, reason = "this test needs less of it than its owner")]
#[path = "../e2e/stand.rs"]
mod stand;
