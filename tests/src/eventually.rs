//! Waiting for something to become true, or to stay so: polling with a bound, never a fixed sleep.

use std::time::{Duration, Instant};

use anyhow::Context as _;

/// Between two attempts: short at first, then a tenth of what has been waited already.
const SHORTEST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(250);

/// Repeats `attempt` until it succeeds, and returns what it gave; after `bound`, its last error. An attempt that hangs is
/// given up when the bound is reached.
pub async fn eventually<T>(
    bound: Duration,
    mut attempt: impl AsyncFnMut() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let start = Instant::now();
    let mut last = None;
    loop {
        let left = bound.saturating_sub(start.elapsed());
        match tokio::time::timeout(left, attempt()).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(error)) => last = Some(error),
            Err(_) => {
                let error = last.unwrap_or_else(|| anyhow::anyhow!("the attempt never came back"));
                return Err(error).with_context(|| format!("not within {bound:?}"));
            }
        }
        let pause = (start.elapsed() / 10).clamp(SHORTEST_PAUSE, LONGEST_PAUSE);
        tokio::time::sleep(pause.min(bound.saturating_sub(start.elapsed()))).await;
    }
}

/// Repeats `check` for as long as `span` and fails as soon as it fails: for what must *not* happen.
pub async fn holds(span: Duration, mut check: impl AsyncFnMut() -> anyhow::Result<()>) -> anyhow::Result<()> {
    let start = Instant::now();
    loop {
        check().await?;
        if start.elapsed() >= span {
            return Ok(());
        }
        tokio::time::sleep(LONGEST_PAUSE.min(span)).await;
    }
}
