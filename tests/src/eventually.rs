//! Waiting for something to become or to stay true, by polling with a time limit instead of a fixed sleep.

use std::time::{Duration, Instant};

use anyhow::Context as _;

/// The pause between attempts: short at first, then a tenth of the time waited so far.
const SHORTEST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(250);

/// Repeats `attempt` until it succeeds, and returns its result. After `bound`, fails with the last error. An attempt
/// that hangs is abandoned then.
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
            Err(_) => {}
        }
        // `timeout` never ends an attempt that fails without waiting, not even when no time is left.
        if start.elapsed() >= bound {
            let error = last.unwrap_or_else(|| anyhow::anyhow!("the attempt never returned"));
            return Err(error).with_context(|| format!("not within {bound:?}"));
        }
        let pause = (start.elapsed() / 10).clamp(SHORTEST_PAUSE, LONGEST_PAUSE);
        tokio::time::sleep(pause.min(bound.saturating_sub(start.elapsed()))).await;
    }
}

/// Repeats `check` for `span`, and fails as soon as it does. For things that must *not* happen.
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

#[cfg(test)]
mod tests {
    use super::*;

    const BOUND: Duration = Duration::from_millis(30);

    #[tokio::test]
    async fn what_never_comes_true_ends_with_its_last_error() {
        let mut attempts = 0;
        let error = eventually(BOUND, async || {
            attempts += 1;
            anyhow::bail!("not at attempt {attempts}") as anyhow::Result<()>
        });
        let error = tokio::time::timeout(Duration::from_secs(20), error)
            .await
            .expect("it ends")
            .unwrap_err();
        let error = format!("{error:#}");
        assert!(error.starts_with("not within 30ms: not at attempt "), "{error}");
    }

    #[tokio::test]
    async fn an_attempt_that_hangs_is_given_up() {
        let error = eventually(BOUND, async || std::future::pending::<anyhow::Result<()>>().await).await;
        assert_eq!(
            format!("{:#}", error.unwrap_err()),
            "not within 30ms: the attempt never returned"
        );
    }
}
