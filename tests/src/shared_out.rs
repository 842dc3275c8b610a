//! Shares work among concurrent workers, each of which takes the next piece.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::task::JoinSet;

/// Runs `each` on all `pieces`, from the last to the first, with this many workers. Fails with the first error.
pub async fn shared_out<P, D>(
    pieces: Vec<P>,
    workers: usize,
    each: impl Fn(P) -> D + Clone + Send + 'static,
) -> anyhow::Result<()>
where
    P: Send + 'static,
    D: Future<Output = anyhow::Result<()>> + Send,
{
    let queue = Arc::new(Mutex::new(pieces));
    let mut tasks = JoinSet::new();
    for _ in 0..workers {
        let (queue, each) = (queue.clone(), each.clone());
        tasks.spawn(async move {
            loop {
                let next = queue.lock().unwrap_or_else(PoisonError::into_inner).pop();
                let Some(piece) = next else { return anyhow::Ok(()) };
                each(piece).await?;
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok(())
}
