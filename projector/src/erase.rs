//! The subcommand `erase`: erases one person from the database and the log, and prints a receipt.
//!
//! The database comes first: from its commit on, records about the person are left out. Then the log, message by message
//! so that the broker overwrites their bytes. Then the dead letters. Every step may be repeated, and a second run finishes
//! what the first could not.
//!
//! What remains is the id (in the list of erased ids, and in history with its numbers and times), and whatever the
//! attributes of other people say, such as a manager's name: those belong to the other people.

use std::io::Write;

use journal::{Entry, Identity, Journal};
use schema::json;
use schema::record::{Record, Subject};
use schema::timestamp::Timestamp;
use serde::Serialize;
use service::postgres::answered;
use sqlx::PgPool;
use time::OffsetDateTime;

use crate::config::Output;
use crate::erase_marks::Marks;
use crate::fold::single;
use crate::lane::Lane;
use crate::store::erase::{self as store, Forgotten, Outcome};
use crate::store::taken::{self, SaidOfGroup};
use crate::store::{dead_letters as letters, erased, losses, progress};
use crate::watch::{Verdict, appended_at, judge};

/// Subjects of messages that may be about anybody.
const OF_ANYBODY: &[&str] = &["dsync.quarantine", "dsync.*.other.*", "dsync.*.token.*"];

/// What was removed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Receipt {
    /// The user's id.
    pub user_id: String,
    /// Whether the user had a row.
    pub row: bool,
    /// Membership rows removed.
    pub memberships: u64,
    /// History rows whose values were blanked.
    pub history: u64,
    /// Log messages under the user's own subjects that were overwritten.
    pub log_messages: u64,
    /// Other log messages about the person that were overwritten: quarantined, or of unknown kinds.
    pub other_messages: u64,
    /// Dead letters removed.
    pub dead_letters: u64,
    /// Other directory users with the same email address or identity provider's id. They were not erased.
    pub namesakes: Vec<String>,
}

/// Why the person was not erased, or not completely.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// This cannot be anyone's id.
    #[error("this is not the id of a directory user")]
    NotAnId,
    /// The person is live.
    #[error(
        "this person is still in the directory: remove them there first, otherwise they are erased here but keep their \
         access elsewhere. Use --force to erase them anyway; later records about them are then left out"
    )]
    Live,
    /// The database failed.
    #[error("the database: {}", service::postgres::described(.0))]
    Database(#[from] sqlx::Error),
    /// The log failed. The database has erased the person; run the command again.
    #[error("erased from the database, but not from the log yet ({0}): run this again")]
    Log(#[from] journal::Error),
    /// The broker keeps a message that it was told to delete.
    #[error(
        "erased from the database, but the broker refuses to delete message {0} from the log: see `deny_delete` and `sealed` \
         in `nats stream info`, and run this again"
    )]
    Kept(u64),
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
    // Stored before the messages they come from are gone: a second run may need them to finish.
    learn(log, id, &mut marks).await?;
    store::keep_marks(pool, id, marks.said()).await?;
    // Asked while the marks are stored: a run that goes on after an interruption asks again. At the end, a failure here
    // would be all that keeps the marks of somebody who is otherwise erased.
    let namesakes = store::namesakes(pool, marks.said()).await?;
    let log_messages = own_messages(log, id).await?;
    let other_messages = messages_of_anybody(log, &marks).await?;
    let dead_letters = dead_letters(pool, id, &marks).await?;
    drain(pool, journal).await?;
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

/// The log, and the database that records which of its messages were overwritten.
#[derive(Clone, Copy)]
struct Log<'a> {
    pool: &'a PgPool,
    journal: &'a Journal,
}

/// Subject filters for the person's own messages.
fn own_subjects(id: &str) -> [String; 2] {
    [
        format!("dsync.*.user.{id}.>"),
        format!("dsync.*.membership.*.{id}.>"),
    ]
}

/// Learns from the person's own messages what else they are known by.
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

/// Overwrites the person's own messages; returns how many.
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

/// Overwrites the messages that match `filter` and are `meant`; returns how many.
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
            count += u64::from(take(log, identity.created, &entry).await?);
        }
        seq = entry.seq + 1;
    }
    Ok(count)
}

/// Overwrites `entry` of the log created at `created`. Returns whether it was still there.
async fn take(log: Log<'_>, created: Timestamp, entry: &Entry) -> Result<bool, Refused> {
    // Both are recorded first: what the entry said of others, and that it is not one that the broker lost.
    if let Some(said) = said_of_group(&entry.record) {
        answered(taken::note(log.pool, &said)).await?;
    }
    answered(losses::overwritten(log.pool, created, &[entry.seq])).await?;
    if log.journal.erase(entry.seq).await? {
        return Ok(true);
    }
    // The broker answers in the same way if it does not delete messages at all.
    match log.journal.entry(entry.seq).await? {
        Some(_) => Err(Refused::Kept(entry.seq)),
        None => Ok(false),
    }
}

/// What a membership's record says about the group.
fn said_of_group(record: &Record) -> Option<SaidOfGroup> {
    let text = json::storable(&record.body).ok()?;
    let picture = single(&text, record.source, record.received_at).ok()?;
    let (group, registers) = picture.groups.first_key_value()?;
    let cause = &registers.seen.as_ref()?.cause;
    Some(SaidOfGroup {
        group: group.to_string(),
        event: cause.event.to_string(),
        source: cause.source,
        directory: registers.directory.to_string(),
    })
}

async fn dead_letters(pool: &PgPool, id: &str, marks: &Marks) -> sqlx::Result<u64> {
    let (mut last, mut count) = (0, 0);
    loop {
        let next = letters::next(pool, last).await?;
        let Some(end) = next.last() else {
            return Ok(count);
        };
        last = end.id;
        for letter in next {
            let is_theirs = match Subject::from_log(letter.subject).user() {
                // Whatever the attributes of other people say belongs to them.
                Some(user) => user == id,
                None => marks.are_in(&letter.body),
            };
            if is_theirs {
                letters::delete(pool, letter.id).await?;
                count += 1;
            }
        }
    }
}

/// Whether the log is known not to be the one in which the lanes stand, so that other messages may have the sequences that
/// are queued. The lanes will notice, and queue again what is about erased people.
async fn was_set_back(pool: &PgPool, journal: &Journal, log: Identity) -> Result<bool, Refused> {
    for lane in Lane::EVERY {
        let Some(position) = answered(progress::position(pool, lane)).await? else {
            continue;
        };
        let there = appended_at(journal, position.seq, log).await?;
        if judge(position, log, there, lane) == Verdict::Rewound {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Purges from the log the late records of erased people that were queued when they were read. Returns how many.
pub async fn drain(pool: &PgPool, journal: &Journal) -> Result<u64, Refused> {
    let Some(log) = journal.identity().await? else {
        return Ok(0);
    };
    let mut count = 0;
    // One by one: an erasure that is undone meanwhile takes entries from the queue.
    while let Some(seq) = answered(erased::next_purge(pool, log.created)).await? {
        if count == 0 && was_set_back(pool, journal, log).await? {
            break;
        }
        match journal.entry(seq).await? {
            Some(entry) => take(Log { pool, journal }, log.created, &entry).await?,
            // If the leader's copy is damaged, others may still have the message. They delete it, too.
            None => journal.erase(seq).await?,
        };
        answered(erased::purged(pool, log.created, seq)).await?;
        count += 1;
    }
    Ok(count)
}

/// Runs the subcommand and prints to `out`. Returns whether it was done.
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
                "{}: records about this person are applied again from now on; what was erased stays erased",
                ask.user
            )?;
        } else {
            writeln!(out, "{}: this person was not erased", ask.user)?;
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
        "Later records about this person will be left out and purged from the log."
    )?;
    if !receipt.namesakes.is_empty() {
        writeln!(
            out,
            "Not erased, but with the same email address or identity provider's id:"
        )?;
        for id in &receipt.namesakes {
            writeln!(out, "  {id}")?;
        }
    }
    Ok(())
}
