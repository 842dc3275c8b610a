//! The subcommand `erase`: one person is forgotten, in the database and in the log, with a receipt.
//!
//! The database first: from its commit on, whatever is said of the person is left out. Then the log, message by message
//! so that the broker overwrites their bytes; then what waits in the dead letters. Every step may be repeated, and a
//! second run finishes what a first one could not.
//!
//! What is left is the id (in the list of erased ids, in history's numbers and times) and whatever other people's
//! attributes say, a manager's name say: those are theirs.

use std::io::Write;

use journal::{Entry, Journal};
use serde::Serialize;
use service::postgres::answered;
use sqlx::PgPool;
use time::OffsetDateTime;

use crate::config::Output;
use crate::erase_marks::Marks;
use crate::store::erase::{self as store, Forgotten, Outcome};
use crate::store::erased;

/// Subjects of messages that may speak of anybody.
const OF_ANYBODY: &[&str] = &["dsync.quarantine", "dsync.*.other.*", "dsync.*.token.*"];

/// What was removed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Receipt {
    /// The user's id.
    pub user_id: String,
    /// Whether there was a row of the user.
    pub row: bool,
    /// Rows of memberships removed.
    pub memberships: u64,
    /// Rows of history whose values were blanked.
    pub history: u64,
    /// Messages of the log under the user's own subjects that were overwritten.
    pub log_messages: u64,
    /// Other messages that spoke of the person: quarantined, or of unknown kinds.
    pub other_messages: u64,
    /// Dead letters removed.
    pub dead_letters: u64,
    /// Other directory users with the same address or provider's id, who were not erased.
    pub namesakes: Vec<String>,
}

/// Why nobody was erased.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// It could not be anyone's id.
    #[error("not the id of a directory user")]
    NotAnId,
    /// The person is live.
    #[error(
        "this person is still in the directory: remove them there first, or they are erased from here while they keep \
         their access elsewhere. Use --force to erase them anyway; what the directory says of them later is left out"
    )]
    Live,
    /// The database failed.
    #[error("the database: {}", service::postgres::described(.0))]
    Database(#[from] sqlx::Error),
    /// The log failed. What the database knew is gone; run the command again.
    #[error("the database has forgotten, but not the log yet ({0}): run this again")]
    Log(#[from] journal::Error),
}

/// Erases the user `id`.
pub async fn erase(
    pool: &PgPool,
    journal: &Journal,
    id: &str,
    force: bool,
    now: OffsetDateTime,
) -> Result<Receipt, Refused> {
    if !schema::ids::is_id(id) {
        return Err(Refused::NotAnId);
    }
    let Outcome::Forgotten(Forgotten {
        row,
        memberships,
        history,
        marks,
    }) = store::forget(pool, id, force, now).await?
    else {
        return Err(Refused::Live);
    };
    let mut marks = Marks::new(id, marks);
    let log = Log { pool, journal };
    // Noted before what tells them is gone: whoever finishes this needs them.
    learn(log, id, &mut marks).await?;
    store::keep_marks(pool, id, marks.said()).await?;
    let log_messages = own_messages(log, id).await?;
    let other_messages = messages_of_anybody(log, &marks).await?;
    let dead_letters = dead_letters(pool, id, &marks).await?;
    drain(pool, journal).await?;
    let namesakes = store::namesakes(pool, marks.said()).await?;
    store::keep_marks(pool, id, &[]).await?;
    Ok(Receipt {
        user_id: id.to_owned(),
        row,
        memberships,
        history,
        log_messages,
        other_messages,
        dead_letters,
        namesakes,
    })
}

/// The log, and where it is noted what it lost.
#[derive(Clone, Copy)]
struct Log<'a> {
    pool: &'a PgPool,
    journal: &'a Journal,
}

/// What is filed under the person.
fn own_subjects(id: &str) -> [String; 2] {
    [
        format!("dsync.*.user.{id}.>"),
        format!("dsync.*.membership.*.{id}.>"),
    ]
}

/// Learns from it what else they are known by.
async fn learn(log: Log<'_>, id: &str, marks: &mut Marks) -> Result<(), Refused> {
    if log.journal.identity().await?.is_none() {
        return Ok(());
    }
    for filter in own_subjects(id) {
        let mut seq = 1;
        while let Some(entry) = log.journal.first_at(seq, &filter).await? {
            marks.learn(&entry.record.body);
            seq = entry.seq + 1;
        }
    }
    Ok(())
}

/// Overwrites it.
async fn own_messages(log: Log<'_>, id: &str) -> Result<u64, Refused> {
    let mut count = 0;
    for filter in own_subjects(id) {
        count += overwrite(log, &filter, |_| true).await?;
    }
    Ok(count)
}

async fn messages_of_anybody(log: Log<'_>, marks: &Marks) -> Result<u64, Refused> {
    let mut count = 0;
    for filter in OF_ANYBODY {
        count += overwrite(log, filter, |entry| marks.are_in(&entry.record.body)).await?;
    }
    Ok(count)
}

/// Overwrites the messages under `filter` that are `meant`; how many.
async fn overwrite(
    log: Log<'_>,
    filter: &str,
    mut meant: impl FnMut(&Entry) -> bool,
) -> Result<u64, Refused> {
    let Some(identity) = log.journal.identity().await? else {
        return Ok(0);
    };
    let (mut seq, mut count) = (1, 0);
    while let Some(entry) = log.journal.first_at(seq, filter).await? {
        if meant(&entry) {
            // Noted first: what is gone and not noted looks like an entry that the broker lost.
            erased::overwritten(log.pool, identity.created, &[entry.seq]).await?;
            count += u64::from(log.journal.erase(entry.seq).await?);
        }
        seq = entry.seq + 1;
    }
    Ok(count)
}

async fn dead_letters(pool: &PgPool, id: &str, marks: &Marks) -> sqlx::Result<u64> {
    let (mut last, mut count) = (0, 0);
    loop {
        let letters = store::letters(pool, last).await?;
        let Some(end) = letters.last() else {
            return Ok(count);
        };
        last = end.id;
        for letter in letters {
            if crate::erase_marks::user_of(&letter.subject) == Some(id) || marks.are_in(&letter.body) {
                store::drop_letter(pool, letter.id).await?;
                count += 1;
            }
        }
    }
}

/// Purges from the log what was noted when it was read: late records of erased people. Returns how many.
pub async fn drain(pool: &PgPool, journal: &Journal) -> Result<u64, Refused> {
    let Some(log) = journal.identity().await? else {
        return Ok(0);
    };
    let mut count = 0;
    for seq in answered(erased::due_purges(pool, log.created)).await? {
        answered(erased::overwritten(pool, log.created, &[seq])).await?;
        journal.erase(seq).await?;
        answered(erased::purged(pool, log.created, seq)).await?;
        count += 1;
    }
    Ok(count)
}

/// Carries out the subcommand and prints to `out`. Answers whether it was done.
pub async fn run(
    pool: &PgPool,
    journal: &Journal,
    ask: &crate::config::Whom,
    output: Output,
    now: OffsetDateTime,
    out: &mut impl Write,
) -> anyhow::Result<bool> {
    if ask.undo {
        let undone = store::undo(pool, &ask.user).await?;
        if output.json {
            writeln!(
                out,
                "{}",
                serde_json::json!({"user_id": ask.user, "undone": undone})
            )?;
        } else if undone {
            writeln!(
                out,
                "{}: what is said of this person from now on is applied again; what was erased stays erased",
                ask.user
            )?;
        } else {
            writeln!(out, "{}: was not erased", ask.user)?;
        }
        return Ok(undone);
    }
    let receipt = erase(pool, journal, &ask.user, ask.force, now).await?;
    if output.json {
        writeln!(out, "{}", serde_json::to_string(&receipt)?)?;
    } else {
        print(&receipt, out)?;
    }
    Ok(true)
}

fn print(receipt: &Receipt, out: &mut impl Write) -> std::io::Result<()> {
    writeln!(out, "erased {}", receipt.user_id)?;
    writeln!(out, "  user row            {}", u8::from(receipt.row))?;
    writeln!(out, "  memberships         {}", receipt.memberships)?;
    writeln!(out, "  history rows        {} (values blanked)", receipt.history)?;
    writeln!(out, "  log messages        {}", receipt.log_messages)?;
    writeln!(out, "  other log messages  {}", receipt.other_messages)?;
    writeln!(out, "  dead letters        {}", receipt.dead_letters)?;
    writeln!(
        out,
        "What is said of this person later is left out and purged from the log."
    )?;
    if !receipt.namesakes.is_empty() {
        writeln!(out, "Not erased, but with the same address or provider's id:")?;
        for id in &receipt.namesakes {
            writeln!(out, "  {id}")?;
        }
    }
    Ok(())
}
