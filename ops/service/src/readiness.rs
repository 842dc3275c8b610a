//! Can this process do its job now? Checked again on every request, so that the answer is never out of date.

use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, join_all};

type Ask = Arc<dyn Fn() -> BoxFuture<'static, Result<(), String>> + Send + Sync>;

/// Named checks, all of which must pass. Cheap to clone; clones share their checks.
#[derive(Clone, Default)]
pub struct Readiness(Arc<Mutex<Vec<Check>>>);

#[derive(Clone)]
struct Check {
    name: &'static str,
    limit: Duration,
    ask: Ask,
}

/// A check that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// The check's name.
    pub name: &'static str,
    /// What is wrong, for an operator.
    pub reason: String,
}

impl Readiness {
    /// Adds a check. `ask` is called on every request and must answer within `limit`. Its error is shown on the admin
    /// endpoint and must not contain secrets.
    pub fn check<F, E>(
        &self,
        name: &'static str,
        limit: Duration,
        ask: impl Fn() -> F + Send + Sync + 'static,
    ) where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: fmt::Display,
    {
        let ask: Ask = Arc::new(move || ask().map(|answer| answer.map_err(|e| e.to_string())).boxed());
        self.checks().push(Check { name, limit, ask });
    }

    /// Runs all checks concurrently. Returns those that failed, in the order in which they were added.
    pub async fn missing(&self) -> Vec<Missing> {
        let checks = self.checks().clone();
        let answers = join_all(checks.into_iter().map(|check| async move {
            let reason = match tokio::time::timeout(check.limit, (check.ask)()).await {
                Ok(Ok(())) => return None,
                Ok(Err(reason)) => reason,
                Err(_) => format!("no answer within {:?}", check.limit),
            };
            Some(Missing {
                name: check.name,
                reason,
            })
        }))
        .await;
        answers.into_iter().flatten().collect()
    }

    fn checks(&self) -> std::sync::MutexGuard<'_, Vec<Check>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_millis(50);

    #[tokio::test]
    async fn nothing_to_check_is_ready() {
        assert_eq!(Readiness::default().missing().await, []);
    }

    #[tokio::test]
    async fn what_fails_or_hangs_is_named_in_order() {
        let readiness = Readiness::default();
        readiness.check("hangs", SOON, std::future::pending::<Result<(), String>>);
        readiness.check("works", SOON, || async { Ok::<_, String>(()) });
        readiness
            .clone()
            .check("fails", SOON, || async { Err("is down") });
        let missing = readiness.missing().await;
        assert_eq!(
            missing.iter().map(|m| m.name).collect::<Vec<_>>(),
            ["hangs", "fails"]
        );
        assert_eq!(missing[0].reason, "no answer within 50ms");
        assert_eq!(missing[1].reason, "is down");
    }

    #[tokio::test]
    async fn every_question_is_asked_afresh() {
        let up = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let readiness = Readiness::default();
        let seen = Arc::clone(&up);
        readiness.check("server", SOON, move || {
            let up = seen.load(std::sync::atomic::Ordering::SeqCst);
            async move { if up { Ok(()) } else { Err("is down") } }
        });
        assert_eq!(readiness.missing().await.len(), 1);
        up.store(true, std::sync::atomic::Ordering::SeqCst);
        assert_eq!(readiness.missing().await, []);
    }
}
