//! A catch-up that breaks off: the next one continues where it was, whatever it was reading.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use reconciler::catch_up::{CatchUp, Settings};
use reconciler::work::{Failure, Work};
use reconciler::workos::client::ApiError;
use tests::eventually;
use workos_sim::{DirectoryOptions, Seed};

use crate::catching_up::HOLDBACK;
use crate::scripted::{client, client_bearing, failing, scripted};
use crate::stand::{BOUND, LIMITS, Stand};

const POSITION: &str =
    "select extract(epoch from position)::bigint from dsync.duties where duty = 'catch_up'";

const SETTINGS: Settings = Settings {
    every: Duration::from_secs(1),
    holdback: HOLDBACK,
};

/// A catch-up whose server returns `pages` pages of events, and no more.
async fn cut_off_after(stand: &Stand, pages: usize) -> anyhow::Result<CatchUp> {
    let asked = Arc::new(AtomicUsize::new(0));
    let fails =
        move |path: &str| path.starts_with("/events") && asked.fetch_add(1, Ordering::SeqCst) >= pages;
    let (url, _) = failing(&stand.sim, fails).await?;
    let work = Work {
        api: client_bearing(&url, Duration::from_millis(100))?,
        ..stand.work.clone()
    };
    Ok(CatchUp::new(work, SETTINGS))
}

#[tokio::test]
async fn a_catch_up_that_began_anew_and_broke_off_goes_on_where_it_was() -> anyhow::Result<()> {
    let stand = Stand::up().await?;
    stand.catch_up(HOLDBACK).poll().await?;
    let directory = stand.sim.create_directory(DirectoryOptions::default())?;
    for _ in 0..6 {
        stand.sim.seed(
            &directory,
            &Seed {
                users: 40,
                ..Seed::default()
            },
        )?;
        stand.advance(Duration::from_hours(24));
    }
    stand.log_all().await?;
    stand.pass().await;
    stand.catch_up(HOLDBACK).poll().await?;
    sqlx::query(
        "insert into dsync.rewinds (stream, old_created, old_seq, new_created, new_seq)
        values ('DSYNC', now(), 1, now(), 0)",
    )
    .execute(&stand.pool)
    .await?;
    // Two months without events and three pages; then three more pages.
    let mut position = 0;
    for pages in [5, 3] {
        let cut_off = cut_off_after(&stand, pages).await?.poll().await;
        ensure!(cut_off.is_err(), "not cut off: {cut_off:?}");
        let now = stand.count(POSITION).await?;
        ensure!(now > position, "began anew: {now} after {position}");
        position = now;
        stand.advance(Duration::from_secs(15));
    }
    let polled = stand.catch_up(HOLDBACK).poll().await?.context("no lease")?;
    let all = stand.sim.events().len();
    ensure!(all > 600 && polled.listed < all / 2, "{polled:?}, {all} in all");
    ensure!(
        stand.count("select count(again_at) from dsync.sweeps").await? == 0,
        "taken for away too long"
    );
    // What is acknowledged is not read again.
    let polled = stand.catch_up(HOLDBACK).poll().await?.context("no lease")?;
    ensure!(polled.listed == 0, "{polled:?}");
    Ok(())
}

#[tokio::test]
async fn a_poll_that_breaks_off_does_not_set_the_position_back() -> anyhow::Result<()> {
    let stand = Stand::up().await?;
    stand.catch_up(HOLDBACK).poll().await?;
    let directory = stand.sim.create_directory(DirectoryOptions::default())?;
    stand.sim.seed(
        &directory,
        &Seed {
            users: 150,
            ..Seed::default()
        },
    )?;
    stand.advance(Duration::from_secs(30));
    stand.catch_up(HOLDBACK).poll().await?;
    let before = stand.count(POSITION).await?;
    ensure!(
        cut_off_after(&stand, 1).await?.poll().await.is_err(),
        "not cut off"
    );
    let after = stand.count(POSITION).await?;
    ensure!(after >= before, "set back by {} s", before - after);
    Ok(())
}

/// One catch-up took the lease, started over and broke off, while another was waiting for an answer.
#[tokio::test]
async fn a_poll_that_lost_its_lease_meanwhile_does_not_undo_what_another_did() -> anyhow::Result<()> {
    let mut stand = Stand::up().await?;
    let silent = Arc::new(AtomicBool::new(false));
    let is_silent = Arc::clone(&silent);
    let fails = move |path: &str| path.starts_with("/events") && is_silent.load(Ordering::SeqCst);
    let (url, asked) = failing(&stand.sim, fails).await?;
    let slow = Work {
        api: client_bearing(&url, BOUND)?,
        ..stand.another()?
    };
    let mut slow = CatchUp::new(slow, SETTINGS);
    slow.poll().await?.context("no lease")?;
    let directory = stand.sim.create_directory(DirectoryOptions::default())?;
    stand.sim.seed(&directory, &Seed::default())?;
    let all = stand.sim.events().len();
    let polled = slow.poll().await?.context("no lease")?;
    ensure!(polled.recovered == all, "{polled:?} of {all}");

    silent.store(true, Ordering::SeqCst);
    asked.lock().unwrap_or_else(PoisonError::into_inner).clear();
    let mut waiting = tokio::spawn(async move {
        let polled = slow.poll().await;
        (slow, polled)
    });
    eventually(BOUND, async || {
        let asked = asked.lock().unwrap_or_else(PoisonError::into_inner);
        ensure!(!asked.is_empty(), "nothing asked");
        Ok(())
    })
    .await?;
    stand.nats.wipe().await?;
    eventually(BOUND, async || Ok(stand.journal.ensure(&LIMITS).await?)).await?;
    eventually(BOUND, async || {
        let rewinds = stand.count("select count(*) from dsync.rewinds").await?;
        ensure!(rewinds > 0, "the loss is not noticed");
        Ok(())
    })
    .await?;
    let run_out = "update dsync.duties set held_until = now() - interval '1 s'";
    sqlx::query(run_out).execute(&stand.pool).await?;
    ensure!(cut_off_after(&stand, 0).await?.poll().await.is_err());
    let anew = stand.count(POSITION).await?;
    sqlx::query(run_out).execute(&stand.pool).await?;
    silent.store(false, Ordering::SeqCst);
    let (mut slow, polled) = tokio::time::timeout(BOUND, &mut waiting).await??;
    ensure!(matches!(polled, Err(Failure::LeaseLost)), "{polled:?}");
    ensure!(stand.count(POSITION).await? == anew, "undone");
    // And the events it knew were in a log that no longer exists.
    let polled = slow.poll().await?.context("no lease")?;
    ensure!(polled.recovered == all, "{polled:?} of {all}");
    stand.agrees_soon().await
}

const REFUSED: &str = r#"{"message":"cursor"}"#;

fn page(events: &str, after: &str) -> String {
    format!(r#"{{"data":[{events}],"list_metadata":{{"before":null,"after":{after}}}}}"#)
}

fn event(number: u32) -> String {
    format!(
        r#"{{"id":"event_{number}","event":"dsync.group.created","created_at":"2023-04-28T20:05:0{number}Z","data":{{"id":"g{number}","directory_id":"d1"}}}}"#
    )
}

/// A catch-up that reads from a scripted server, on that server's time.
fn scripted_catch_up(stand: &Stand, url: &str) -> anyhow::Result<CatchUp> {
    let work = Work {
        api: client(url)?,
        clock: service::clock::Clock::fixed(time::macros::datetime!(2023-04-28 20:05:31 UTC)),
        ..stand.work.clone()
    };
    Ok(CatchUp::new(work, SETTINGS))
}

#[tokio::test]
async fn where_every_cursor_is_refused_it_ends() -> anyhow::Result<()> {
    let mut answers = vec![(200, page("", "null"))];
    for _ in 0..2 {
        let full = page(&format!("{},{}", event(1), event(2)), "\"event_2\"");
        answers.extend([(200, full), (400, REFUSED.to_owned()), (400, REFUSED.to_owned())]);
    }
    let (url, _) = scripted(answers).await?;
    let stand = Stand::up().await?;
    let polled = scripted_catch_up(&stand, &url)?.poll().await;
    ensure!(
        matches!(polled, Err(Failure::Api(ApiError::Refused(400)))),
        "{polled:?}"
    );
    Ok(())
}

#[tokio::test]
async fn where_cursors_lead_in_a_circle_it_ends() -> anyhow::Result<()> {
    let mut answers = vec![(200, page("", "null"))];
    for number in [1, 2, 1] {
        answers.push((200, page(&event(number), &format!("\"event_{number}\""))));
    }
    let (url, _) = scripted(answers).await?;
    let stand = Stand::up().await?;
    let polled = scripted_catch_up(&stand, &url)?.poll().await;
    ensure!(
        matches!(polled, Err(Failure::Api(ApiError::Circle))),
        "{polled:?}"
    );
    Ok(())
}

#[tokio::test]
async fn a_cursor_that_is_refused_goes_on_by_time_and_has_all_swept() -> anyhow::Result<()> {
    let refused = REFUSED.to_owned();
    let (url, asked) = scripted(vec![
        (200, page("", "null")),
        (200, page(&format!("{},{}", event(1), event(2)), "\"event_2\"")),
        (400, refused.clone()),
        (400, refused.clone()),
        (200, page(&format!("{},{}", event(2), event(3)), "\"event_3\"")),
        (400, refused.clone()),
        (400, refused.clone()),
        (200, page(&event(3), "null")),
    ])
    .await?;
    let stand = Stand::up().await?;
    sqlx::query("insert into dsync.sweeps (directory_id, swept_at) values ('d1', now())")
        .execute(&stand.pool)
        .await?;
    let mut catch_up = scripted_catch_up(&stand, &url)?;
    let polled = catch_up.poll().await?.context("no lease")?;
    ensure!(polled.recovered == 3, "{polled:?}");
    let asked = asked.await?;
    // A little before the last event read: it is not documented whether a range includes its bounds.
    ensure!(
        asked[4].contains("range_start=2023-04-28T20%3A05%3A01"),
        "{asked:?}"
    );
    ensure!(
        stand.count("select count(again_at) from dsync.sweeps").await? == 1,
        "not due"
    );
    Ok(())
}
