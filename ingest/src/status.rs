//! The subcommand `status`: the log as the broker reports it, and the running service as it reports itself.

use std::net::SocketAddr;

use journal::Journal;
use service::boot::Context;
use service::healthcheck;
use service::status::{Part, Screen, Told};

const WEBHOOKS: &str = "dsync_ingest_webhooks_total{outcome=\"";

/// Gathers the whole screen.
pub async fn gather(context: &Context, journal: &Journal, admin_addr: SocketAddr) -> Screen {
    let now = context.clock.now();
    let service = Part::gathered("service", async {
        let (ready, lines) = healthcheck::metrics(admin_addr).await?;
        let state = if ready { "ready" } else { "not ready: see /readyz" };
        let part = Part::new("service").fact("state", Told::text(Some(state)));
        anyhow::Ok(part.table("webhooks", &["outcome", "count"], counts(&lines), 0))
    });
    let (log, service) = tokio::join!(Box::pin(journal::status(journal, now)), Box::pin(service));
    Screen::new("dsync-ingest", env!("CARGO_PKG_VERSION"), now, vec![log, service])
}

/// How many webhooks had each outcome since the service started.
fn counts(metrics: &[String]) -> Vec<Vec<Told>> {
    let counted = metrics.iter().filter_map(|line| {
        let (outcome, count) = line.strip_prefix(WEBHOOKS)?.split_once("\"} ")?;
        Some((outcome, count.parse().ok()?))
    });
    counted
        .map(|(outcome, count)| vec![Told::text(Some(outcome)), Told::count(count)])
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_are_read_from_metrics() {
        let lines = [
            "# TYPE x counter",
            "dsync_ingest_webhooks_total{outcome=\"accepted\"} 12",
            "dsync_ingest_inflight 3",
        ];
        let lines: Vec<String> = lines.into_iter().map(str::to_owned).collect();
        assert_eq!(
            counts(&lines),
            [vec![Told::text(Some("accepted")), Told::count(12)]]
        );
    }
}
