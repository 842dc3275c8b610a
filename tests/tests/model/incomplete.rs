//! Building from a log that lacks its beginning: while it loses more, and when not every directory can be listed.

use anyhow::{Context as _, ensure};
use indicatif::ProgressBar;
use projector::beside::{Build, Error};
use projector::reach::Reach;
use projector::store::shadow::Seed;
use projector::store::{differing, losses};
use service::clock::Clock;
use sqlx::PgPool;
use tests::eventually;

use crate::rebuilding::{Applied, BOUND, applied, tools};
use crate::tables;

/// Inserting many rows takes time, and meanwhile the log goes on dropping entries by age.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_log_drops_while_it_begins_to_be_compared_is_no_difference() -> anyhow::Result<()> {
    let Applied {
        pool, journal, last, ..
    } = &applied().await?;
    let mut connection = pool.acquire().await?;
    let mut build = Build::begin(&mut connection, journal, Clock::system().now()).await?;
    ensure!(build.reach() == Reach::Beginning);
    for seq in 1..=last / 2 {
        ensure!(journal.erase(seq).await?);
    }
    build.seed(&mut connection, Seed::Everything).await?;
    let first = journal
        .entry(last / 2 + 1)
        .await?
        .context("an entry is missing")?
        .appended_at;
    ensure!(
        matches!(build.reach(), Reach::Since(at) if at >= first),
        "{:?}",
        build.reach()
    );
    let bar = ProgressBar::hidden();
    build.catch_up(&mut connection, &bar).await?;
    build.compare(&mut connection, false, &bar).await?;
    let found = differing::list(&mut connection, false, 10).await?;
    ensure!(found.is_empty(), "{found:?}");
    Ok(())
}

/// A record that the log loses may be somebody's removal, which the live rows reflect.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_built_without_what_the_log_loses_meanwhile() -> anyhow::Result<()> {
    let Applied {
        pool, journal, last, ..
    } = &applied().await?;
    let bar = ProgressBar::hidden();
    let mut connection = pool.acquire().await?;
    let mut build = Build::begin(&mut connection, journal, Clock::system().now()).await?;
    ensure!(journal.erase(last / 2).await?);
    let refused = build.compare(&mut connection, false, &bar).await.err();
    ensure!(
        matches!(refused, Some(Error::Lost(after)) if after == last / 2 - 1),
        "{refused:?}"
    );
    // A build that begins now knows of the loss.
    connection.close_on_drop();
    drop(connection);
    let verified = tools(pool, journal).verify().await?;
    ensure!(verified.complete_since.is_some() && verified.records == last - 1);
    Ok(())
}

/// All rows, with every register: those of a directory, and all others.
async fn in_and_out(pool: &PgPool, directory: &str) -> anyhow::Result<(Vec<String>, Vec<String>)> {
    let rows = tables(pool).await?;
    Ok(rows.into_iter().partition(|row| row.contains(directory)))
}

/// The directory cannot be listed, and a person must decide whether it is gone. A rebuild neither waits for it nor
/// touches it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_whose_own_deletion_is_held_is_left_as_it_is() -> anyhow::Result<()> {
    let Applied {
        pool, journal, last, ..
    } = &applied().await?;
    for seq in 1..=last / 2 {
        ensure!(journal.erase(seq).await?);
    }
    sqlx::raw_sql(
        "insert into dsync.sweeps (directory_id) values ('directory_1'), ('directory_2'), ('directory_3');
         insert into dsync.held_deletions (directory_id, entity) values ('directory_2', 'directory')",
    )
    .execute(pool)
    .await?;
    let (held, others) = in_and_out(pool, "directory_2").await?;
    ensure!(held.len() > 5 && others.len() > 5);
    let tools = tools(pool, journal);
    let rebuilding = tokio::spawn(async move { tools.rebuild(true).await });
    // As the reconciler does for directories that exist.
    eventually(BOUND, async || {
        let listed = "update dsync.sweeps set relisted_at = now()
             where relist_at is not null and directory_id <> 'directory_2'";
        let listed = sqlx::query(listed).execute(pool).await?.rows_affected();
        ensure!(listed == 2, "{listed} directories are requested, not 2");
        Ok(())
    })
    .await?;
    let rebuilt = tokio::time::timeout(BOUND, rebuilding)
        .await
        .context("the rebuild waits forever")???;
    ensure!(rebuilt.unlisted == ["directory_2"], "{:?}", rebuilt.unlisted);
    ensure!(rebuilt.text().contains("directory_2"), "{}", rebuilt.text());
    let (held_after, others_after) = in_and_out(pool, "directory_2").await?;
    ensure!(held_after == held, "{held:#?} {held_after:#?}");
    ensure!(
        others_after != others,
        "the rebuild changed nothing, although the log lacks half of its entries"
    );
    Ok(())
}

/// No lane ever reads what was erased from the end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rebuild_does_not_wait_until_lanes_read_what_was_erased_from_the_logs_end() -> anyhow::Result<()> {
    let Applied {
        pool, journal, last, ..
    } = &applied().await?;
    let created = journal.identity().await?.context("no log")?.created;
    losses::overwritten(pool, created, &[*last]).await?;
    ensure!(journal.erase(*last).await?);
    sqlx::raw_sql(
        "update dsync.progress set seq = seq - 1, seq_appended_at = null where lane = 'all';
         insert into dsync.rewinds (stream, old_created, old_seq, new_created, new_seq)
         select stream, stream_created, 0, stream_created, 0 from dsync.progress where lane = 'all';
         insert into dsync.sweeps (directory_id) values ('directory_1')",
    )
    .execute(pool)
    .await?;
    let tools = tools(pool, journal);
    let rebuilding = tokio::spawn(async move { tools.rebuild(true).await });
    eventually(BOUND, async || {
        let listed = "update dsync.sweeps set relisted_at = now() where relist_at is not null";
        let listed = sqlx::query(listed).execute(pool).await?.rows_affected();
        ensure!(listed == 1, "nothing is requested yet");
        Ok(())
    })
    .await?;
    tokio::time::timeout(BOUND, rebuilding)
        .await
        .context("the rebuild waits forever")???;
    Ok(())
}
