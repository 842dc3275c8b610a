//! Whether source and tables agree. Compares the views as any reader sees them, and prints the result with figures.

use std::time::{Duration, Instant};

use indicatif::HumanFloatCount;
use tests::Difference;

use crate::flow::{Came, Stage};
use crate::screen::{Screen, WIDTH, clipped};
use crate::summary::{Totals, count};

/// The number of differences shown; there may be thousands.
const SHOWN: usize = 20;
/// How long the reconciler may take to recover what was lost.
const REPAIR_WITHIN: Duration = Duration::from_mins(2);
/// The time between two comparisons.
const LOOK: Duration = Duration::from_millis(500);

/// How a run came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The tables show what the source says.
    Agree,
    /// They do not; the differences were printed.
    Differ,
}

/// Compares every column of every row. Waits for the reconciler to recover what was lost.
pub(crate) async fn check(screen: &Screen, stage: &mut Stage) -> anyhow::Result<Vec<Difference>> {
    let began = Instant::now();
    let bar = screen.spinner("comparing the tables with the source");
    let differences = loop {
        let truth = stage.world.sim.truth();
        let differences = tests::differences(&stage.servers.pool, &truth).await?;
        if differences.is_empty() || began.elapsed() > REPAIR_WITHIN {
            break differences;
        }
        bar.say(format!(
            "waiting for the reconciler to recover lost events: {} differences",
            differences.len()
        ));
        stage.programs.must_run()?;
        tokio::time::sleep(LOOK).await;
    };
    drop(bar);
    let metrics = stage.programs.reconciler.metrics().await?;
    let recovered = metrics.count("dsync_reconciler_events_recovered_total", &[]);
    let lines = [
        format!(
            "compared every column of every row with the source: {} differences",
            count(differences.len())
        ),
        format!(
            "catch-up appended {} events before or instead of their webhooks",
            HumanFloatCount(recovered)
        ),
    ];
    screen.done("check", began, &lines);
    Ok(differences)
}

/// Prints whether they agree.
pub(crate) async fn tell(
    screen: &Screen,
    stage: &Stage,
    differences: &[Difference],
    took: Duration,
) -> anyhow::Result<Verdict> {
    if !differences.is_empty() {
        screen.heading(&format!(
            "Source and database DIFFER in {} places.",
            count(differences.len())
        ));
        for difference in differences.iter().take(SHOWN) {
            screen.line(&format!("  {}", clipped(&difference.to_string(), 2 * WIDTH)));
        }
        if differences.len() > SHOWN {
            screen.line(&format!("  … and {} more", count(differences.len() - SHOWN)));
        }
        return Ok(Verdict::Differ);
    }
    let totals = Totals::read(&stage.servers.pool).await?;
    let came = Came::of(&stage.world.delivery.progress().counts);
    let received = stage.programs.ingest.metrics().await?;
    let duplicates = received.count("dsync_ingest_webhooks_total", &[("outcome", "duplicate")]);
    screen.heading(&format!("Source and database agree: {}.", totals.words()));
    let [webhooks, events] = [came.webhooks, came.events].map(count);
    screen.line(&format!(
        "  sent          {webhooks} webhooks for {events} events"
    ));
    screen.line(&format!("  faults        {}", came.faults()));
    screen.line(&format!(
        "  recognised    {} duplicates",
        HumanFloatCount(duplicates)
    ));
    screen.line(&format!(
        "  took          {:.1} s from start to finish",
        took.as_secs_f64()
    ));
    Ok(Verdict::Agree)
}
