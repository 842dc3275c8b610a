//! Work that several do at the same time, each taking the next piece.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::task::JoinSet;

/// Has so many workers do `each` of `pieces`, from the last to the first. Fails with the first that fails.
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
