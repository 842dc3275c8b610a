//! Removals, and how soon they are visible.

use std::time::{Duration, Instant};

use sqlx::postgres::PgListener;
use sqlx::{Connection as _, PgConnection};

use crate::webhooks::{Client, request};

/// Times since the webhook was sent.
pub(crate) struct Removal {
    /// Until ingest answered.
    pub(crate) answered: Duration,
    /// Until the person was no longer shown.
    pub(crate) visible: Duration,
}

/// Reads whether people are shown, woken by `directory_changes` as an application would be: one that asked again and
/// again would take a core from the programs.
pub(crate) struct Reader {
    listener: PgListener,
    connection: PgConnection,
}

impl Reader {
    /// Connects to the database at `url`.
    pub(crate) async fn to(url: &str) -> anyhow::Result<Self> {
        let mut listener = PgListener::connect(url).await?;
        listener.listen("directory_changes").await?;
        Ok(Self {
            listener,
            connection: PgConnection::connect(url).await?,
        })
    }

    /// Waits until the user `id` is no longer shown.
    async fn until_hidden(&mut self, id: &str) -> anyhow::Result<()> {
        while sqlx::query_scalar::<_, bool>("select exists (select from directory.users where id = $1)")
            .bind(id)
            .fetch_one(&mut self.connection)
            .await?
        {
            self.listener.recv().await?;
        }
        // What woke nobody must not wake the next.
        while self.listener.next_buffered().is_some() {}
        Ok(())
    }
}

impl Removal {
    /// Sends an event that removes the user `id`, and waits until the user is no longer shown.
    pub(crate) async fn by(
        event: &str,
        id: &str,
        client: &mut Client,
        reader: &mut Reader,
    ) -> anyhow::Result<Self> {
        let webhook = request(event);
        let began = Instant::now();
        client.send(&webhook).await?;
        let answered = began.elapsed();
        reader.until_hidden(id).await?;
        Ok(Self {
            answered,
            visible: began.elapsed(),
        })
    }
}

/// Picks one of these times.
type Step = fn(&Removal) -> Duration;

/// Prints the percentiles of some removals.
pub(crate) fn told(what: &str, removals: &[Removal]) {
    println!("{what}, {} removals:", removals.len());
    let steps: [(&str, Step); 2] = [("answered", |one| one.answered), ("visible", |one| one.visible)];
    for (step, of) in steps {
        let mut times: Vec<Duration> = removals.iter().map(of).collect();
        times.sort();
        let at =
            |percent: usize| times[(times.len() * percent / 100).min(times.len() - 1)].as_secs_f64() * 1e3;
        println!(
            "  {step} after p50 {:.1} ms, p99 {:.1} ms, at most {:.1} ms",
            at(50),
            at(99),
            at(100)
        );
    }
}
