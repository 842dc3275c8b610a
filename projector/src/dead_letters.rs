//! The subcommand `dead-letters`: lists, shows, retries or drops the records that could not be applied.

use std::io::Write;

use schema::json;
use schema::record::Source;
use serde::Serialize;
use service::postgres::{Trouble, described};
use sqlx::{Acquire as _, PgConnection, PgPool};

use crate::config::{DeadLetters, Output};
use crate::fold;
use crate::store;
use crate::store::dead_letters::{self as letters, Letter, Waiting};

/// What became of one dead letter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    /// It was applied and is no longer a dead letter.
    Applied,
    /// It failed again and remains a dead letter.
    Failed {
        /// What is wrong with it.
        reason: String,
    },
    /// It was dropped.
    Dropped,
    /// No waiting dead letter has that id.
    Unknown,
}

/// Runs the subcommand and prints to `out`. Returns whether everything requested was done.
pub async fn run(
    pool: &PgPool,
    action: Option<&DeadLetters>,
    output: Output,
    out: &mut impl Write,
) -> anyhow::Result<bool> {
    match action {
        None | Some(DeadLetters::List) => {
            let waiting = letters::list(pool).await?;
            if output.json {
                writeln!(out, "{}", serde_json::to_string(&waiting)?)?;
            } else {
                table(&waiting, out)?;
            }
            Ok(true)
        }
        Some(DeadLetters::Show { id }) => {
            let Some((letter, body)) = letters::show(pool, *id).await? else {
                anyhow::bail!("there is no waiting dead letter {id}");
            };
            show(&letter, &body, output, out)?;
            Ok(true)
        }
        Some(DeadLetters::Retry { ids, all }) => {
            let ids = if *all {
                letters::list(pool)
                    .await?
                    .iter()
                    .map(|letter| letter.id)
                    .collect()
            } else {
                ids.clone()
            };
            let mut outcomes = Vec::new();
            for id in ids {
                outcomes.push((id, retry(pool, id).await?));
            }
            report(&outcomes, output, out)
        }
        Some(DeadLetters::Drop { ids }) => {
            let mut outcomes = Vec::new();
            for id in ids {
                let dropped = letters::discard(pool, *id).await?;
                outcomes.push((
                    *id,
                    if dropped {
                        Outcome::Dropped
                    } else {
                        Outcome::Unknown
                    },
                ));
            }
            report(&outcomes, output, out)
        }
    }
}

/// Retries one dead letter as the record that it was. Order does not matter: applied later than all others, it changes
/// exactly what it would have changed in its place.
pub async fn retry(pool: &PgPool, id: i64) -> sqlx::Result<Outcome> {
    let mut transaction = pool.begin().await?;
    let Some(letter) = letters::take(&mut transaction, id).await? else {
        return Ok(Outcome::Unknown);
    };
    let outcome = match write(&mut transaction, &letter).await? {
        Ok(()) => {
            letters::delete(&mut *transaction, id).await?;
            Outcome::Applied
        }
        Err(reason) => {
            letters::failed_again(&mut transaction, id, &reason).await?;
            Outcome::Failed { reason }
        }
    };
    transaction.commit().await?;
    Ok(outcome)
}

/// Writes what a dead letter says. The inner error is the fault of the letter itself.
async fn write(connection: &mut PgConnection, letter: &Waiting) -> sqlx::Result<Result<(), String>> {
    let text = match json::storable(&letter.body) {
        Ok(text) => text,
        Err(malformed) => return Ok(Err(malformed.to_string())),
    };
    let picture = match fold::single(&text, letter.source, letter.received_at) {
        Ok(picture) if picture.is_empty() && letter.source != Source::Sweep => {
            return Ok(Err("contains nothing that belongs in the tables".to_owned()));
        }
        Ok(picture) => picture,
        Err(malformed) => return Ok(Err(malformed.to_string())),
    };
    let mut savepoint = connection.begin().await?;
    match store::write(&mut savepoint, &picture).await {
        Ok(_) => {
            savepoint.commit().await?;
            Ok(Ok(()))
        }
        Err(error) if Trouble::of(&error) == Trouble::Data => {
            savepoint.rollback().await?;
            Ok(Err(format!("refused by Postgres: {}", described(&error))))
        }
        Err(error) => Err(error),
    }
}

fn table(waiting: &[Letter], out: &mut impl Write) -> std::io::Result<()> {
    if waiting.is_empty() {
        return writeln!(out, "no dead letters");
    }
    writeln!(
        out,
        "{:>8}  {:<20}  {:<28}  {:>5}  reason",
        "id", "failed", "event", "tries"
    )?;
    for letter in waiting {
        let failed = letter.failed_at.to_string();
        let failed = failed.split('.').next().unwrap_or(&failed);
        writeln!(
            out,
            "{:>8}  {failed:<20}  {:<28}  {:>5}  {}",
            letter.id, letter.event_type, letter.attempts, letter.reason
        )?;
    }
    Ok(())
}

fn show(letter: &Letter, body: &[u8], output: Output, out: &mut impl Write) -> anyhow::Result<()> {
    let body = String::from_utf8_lossy(body);
    if output.json {
        let mut all = serde_json::to_value(letter)?;
        all["body"] = body.into();
        writeln!(out, "{all}")?;
        return Ok(());
    }
    writeln!(out, "id        {}", letter.id)?;
    writeln!(out, "log       {} {}", letter.seq, letter.subject)?;
    writeln!(
        out,
        "event     {} {}",
        letter.event_type,
        letter.event_id.as_deref().unwrap_or("(no id)")
    )?;
    writeln!(out, "reason    {}", letter.reason)?;
    writeln!(out, "tries     {}, last at {}", letter.attempts, letter.failed_at)?;
    writeln!(out, "\n{body}")?;
    Ok(())
}

fn report(outcomes: &[(i64, Outcome)], output: Output, out: &mut impl Write) -> anyhow::Result<bool> {
    if output.json {
        let all: Vec<_> = outcomes
            .iter()
            .map(|(id, outcome)| {
                let mut one = serde_json::to_value(outcome)?;
                one["id"] = (*id).into();
                Ok(one)
            })
            .collect::<serde_json::Result<_>>()?;
        writeln!(out, "{}", serde_json::Value::from(all))?;
    } else {
        for (id, outcome) in outcomes {
            match outcome {
                Outcome::Applied => writeln!(out, "{id}: applied")?,
                Outcome::Failed { reason } => writeln!(out, "{id}: failed again: {reason}")?,
                Outcome::Dropped => writeln!(out, "{id}: dropped")?,
                Outcome::Unknown => writeln!(out, "{id}: no such dead letter is waiting")?,
            }
        }
    }
    Ok(outcomes
        .iter()
        .all(|(_, outcome)| matches!(outcome, Outcome::Applied | Outcome::Dropped)))
}
