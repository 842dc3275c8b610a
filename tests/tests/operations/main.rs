//! What operators see: metrics, dashboards and alerts, in a real Prometheus that scrapes the running programs. Every
//! alert and panel must link to a section of the runbook. (`promtool test rules`, which `ops/test` runs, checks when
//! alerts fire and what they say.)

#![allow(clippy::unwrap_used, reason = "a test")]

mod dashboards;
mod documents;
mod observed;
mod prometheus;
mod restored;
mod scraped;
#[allow(dead_code, reason = "this test uses less of it than its owner")]
#[path = "../e2e/stand.rs"]
mod stand;
