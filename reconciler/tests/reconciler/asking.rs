//! How WorkOS is asked: within its limits, patiently, and as its own SDK would.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use reconciler::workos::client::{ApiError, Trouble};
use reconciler::workos::objects::Read;
use reconciler::workos::pages::{List, Pages, id_of};
use workos_sim::{DirectoryOptions, Endpoint, RateLimits, Request, Seed, peak};

use crate::official::official;
use crate::scripted::{client, client_bearing, scripted, scripted_with};
use crate::stand::{Stand, drift};

#[tokio::test]
async fn the_limits_are_kept_and_used() -> anyhow::Result<()> {
    let stand = Stand::up().await?;
    stand.sim.tune(|tuning| {
        tuning.limits = RateLimits {
            count_single_users: true,
            ..RateLimits::published()
        };
    });
    let mut directories = Vec::new();
    for _ in 0..3 {
        let directory = stand.sim.create_directory(DirectoryOptions::newer())?;
        stand.sim.seed(
            &directory,
            &Seed {
                users: 400,
                groups: 30,
                ..Seed::default()
            },
        )?;
        directories.push(directory);
    }
    stand.log_all().await?;
    stand.agrees().await?;
    stand.settle();
    stand.sim.take_requests();
    let report = stand.pass().await;
    ensure!(
        !report.has_drift() && !report.is_incomplete(),
        "{}",
        report.text()
    );
    let requests = stand.sim.take_requests();
    let refused = requests.iter().filter(|request| request.status == 429).count();
    ensure!(refused == 0, "{refused} refused");
    for directory in directories {
        let of = |request: &Request| {
            request.endpoint == Endpoint::Users && request.directory.as_deref() == Some(&directory)
        };
        let most = peak(&requests, Duration::from_secs(1), of);
        ensure!(most <= 4, "{most} in a second");
        let times: Vec<Duration> = requests
            .iter()
            .filter(|request| of(request))
            .map(|request| request.at)
            .collect();
        let span = times[times.len() - 1].abs_diff(times[0]);
        #[expect(clippy::cast_precision_loss, reason = "a few dozen")]
        let rate = (times.len() - 1) as f64 / span.as_secs_f64();
        ensure!(
            rate >= 0.95 * 4.0,
            "only {rate:.2} a second over {} requests",
            times.len()
        );
    }
    Ok(())
}

#[tokio::test]
async fn refusals_errors_and_silence_are_waited_out() -> anyhow::Result<()> {
    for retry_after in [true, false] {
        let stand = Stand::up().await?;
        stand.sim.tune(|tuning| {
            // Tighter than the limits we know, so that we get 429 again and again.
            tuning.limits = RateLimits {
                users_per_second: Some(2),
                retry_after,
                ..RateLimits::published()
            };
            tuning.faults.errors = 5;
            tuning.faults.hangs = 1;
            tuning.faults.hang_for = Duration::from_secs(20);
            tuning.faults.slow = 5;
        });
        let directory = stand.sim.create_directory(DirectoryOptions::newer())?;
        stand.sim.seed(
            &directory,
            &Seed {
                users: 250,
                groups: 8,
                ..Seed::default()
            },
        )?;
        stand.log(|number, _| number % 4 != 0).await?;
        stand.settle();
        let report = stand.sweep(&directory).await?;
        ensure!(!drift(&report).is_empty());
        let requests = stand.sim.requests();
        ensure!(
            requests.iter().any(|request| request.status == 429),
            "never refused"
        );
        ensure!(
            requests.iter().any(|request| request.status >= 500),
            "never failed"
        );
        stand.agrees().await?;
    }
    Ok(())
}

const WAIT: &str = "Retry-After: 1";

/// In production, patience is a minute and WorkOS says `Retry-After: 60`. Here, too, the wait is longer than our
/// patience.
#[tokio::test]
async fn what_429_tells_us_to_wait_is_waited_whatever_our_patience() -> anyhow::Result<()> {
    let gone = || "{}".to_owned();
    let (url, asked) =
        scripted_with(vec![(429, WAIT, gone()), (429, WAIT, gone()), (404, "", gone())]).await?;
    let api = client_bearing(&url, Duration::from_millis(500))?;
    let began = Instant::now();
    let read = api.user("d1", "u1").await?;
    ensure!(matches!(read, Read::Gone(_)), "{read:?}");
    ensure!(
        began.elapsed() >= Duration::from_secs(2),
        "not waited: {:?}",
        began.elapsed()
    );
    ensure!(asked.await?.len() == 3);
    Ok(())
}

#[tokio::test]
async fn what_503_tells_us_to_wait_is_waited_whatever_our_patience() -> anyhow::Result<()> {
    // The date is two seconds after the answer's own `Date`.
    for wait in ["Retry-After: 2", "Retry-After: Fri, 28 Apr 2023 20:05:33 GMT"] {
        let (url, asked) =
            scripted_with(vec![(503, wait, String::new()), (404, "", "{}".to_owned())]).await?;
        let api = client_bearing(&url, Duration::from_millis(500))?;
        let began = Instant::now();
        let slow = api.user("d1", "u1").await?;
        ensure!(matches!(slow, Read::Gone(_)), "{slow:?}");
        ensure!(
            began.elapsed() >= Duration::from_secs(2),
            "{wait}: {:?}",
            began.elapsed()
        );
        ensure!(asked.await?.len() == 2);
    }
    Ok(())
}

/// In the end a request is given up, or it would keep its place forever. The next request must wait, too.
#[tokio::test]
async fn who_gives_up_after_429_leaves_the_others_waiting() -> anyhow::Result<()> {
    // Told how long; not told, with no patience left; told "0", which says nothing.
    for (header, least) in [
        (WAIT, Duration::from_secs(1)),
        ("", Duration::from_millis(100)),
        ("Retry-After: 0", Duration::from_millis(100)),
    ] {
        let (url, _asked) =
            scripted_with(vec![(429, header, "{}".to_owned()), (404, "", "{}".to_owned())]).await?;
        let api = client_bearing(&url, Duration::from_millis(10))?;
        let began = Instant::now();
        let refused = api.group("d1", "g1").await;
        ensure!(
            matches!(refused, Err(ApiError::Unavailable(Trouble::TooMany))),
            "{header:?}: {refused:?}"
        );
        ensure!(api.requests() == 1);
        api.group("d1", "g2").await?;
        ensure!(began.elapsed() >= least, "{header:?}: {:?}", began.elapsed());
    }
    Ok(())
}

#[tokio::test]
async fn our_client_and_the_official_one_list_the_same() -> anyhow::Result<()> {
    let stand = Stand::up().await?;
    let directory = stand.sim.create_directory(DirectoryOptions::default())?;
    stand.sim.seed(
        &directory,
        &Seed {
            users: 230,
            groups: 3,
            ..Seed::default()
        },
    )?;
    let mut ours = Vec::new();
    let mut pages = Pages::of(&stand.work.api, List::users(&directory));
    while let Some(page) = pages.next().await? {
        ours.extend(page.objects.iter().filter_map(|object| id_of(object)));
    }
    ensure!(pages.walked().is_some() && ours.len() == 230);
    let theirs = official_users(&stand, &directory).await?;
    ensure!(ours == theirs, "{} and {}", ours.len(), theirs.len());
    Ok(())
}

async fn official_users(stand: &Stand, directory: &str) -> anyhow::Result<Vec<String>> {
    let client = official(&stand.sim);
    let mut params = workos::directory_sync::ListUsersParams {
        directory: Some(directory.to_owned()),
        limit: Some(100),
        ..Default::default()
    };
    let mut users = Vec::new();
    loop {
        let page = client.directory_sync().list_users(params.clone()).await?;
        users.extend(page.data.into_iter().map(|user| user.id));
        params.after = page.list_metadata.after;
        if params.after.is_none() {
            return Ok(users);
        }
    }
}

#[tokio::test]
async fn a_cursor_whose_object_is_gone_is_walked_around() -> anyhow::Result<()> {
    let (url, asked) = scripted(vec![
        (
            200,
            r#"{"data":[{"id":"u3"},{"id":"u2"}],"list_metadata":{"before":null,"after":"u2"}}"#,
        ),
        (400, r#"{"message":"no such cursor"}"#),
        (
            200,
            r#"{"data":[{"id":"u1"}],"list_metadata":{"before":null,"after":null}}"#,
        ),
    ])
    .await?;
    let api = client(&url)?;
    let mut pages = Pages::of(&api, List::users("d1"));
    let mut ids = Vec::new();
    while let Some(page) = pages.next().await? {
        ids.extend(page.objects.iter().filter_map(|object| id_of(object)));
    }
    ensure!(ids == ["u3", "u2", "u1"] && pages.walked().is_some(), "{ids:?}");
    let asked = asked.await?;
    ensure!(
        asked[1].contains("after=u2") && asked[2].contains("after=u3"),
        "{asked:?}"
    );
    Ok(())
}

#[tokio::test]
async fn a_walk_that_fails_circles_or_is_no_list_is_never_complete() -> anyhow::Result<()> {
    let page = r#"{"data":[{"id":"u2"}],"list_metadata":{"before":null,"after":"u2"}}"#;
    let other = r#"{"data":[{"id":"u1"}],"list_metadata":{"before":null,"after":"u1"}}"#;
    for (answers, words) in [
        (vec![(200, page), (401, "{}")], "does not accept the API key"),
        (vec![(200, page), (200, page)], "does not end"),
        (vec![(200, page), (200, other), (200, page)], "does not end"),
        (vec![(200, page), (200, "{}")], "cannot be read"),
        (vec![(200, page), (200, "<html>")], "cannot be read"),
        (
            vec![(404, "<html>nobody here</html>")],
            "refuses the request with status 404",
        ),
        (vec![(404, r#"{"message":"gone"}"#)], "not found"),
    ] {
        let (url, _asked) = scripted(answers).await?;
        let api = client(&url)?;
        let mut pages = Pages::of(&api, List::groups("d1"));
        let error = loop {
            match pages.next().await {
                Ok(Some(_)) => {}
                Ok(None) => anyhow::bail!("{words}: it ended well"),
                Err(error) => break error,
            }
        };
        ensure!(error.to_string().contains(words), "{error} is not {words:?}");
        ensure!(pages.walked().is_none());
    }
    Ok(())
}

#[tokio::test]
async fn neither_the_key_nor_anything_personal_is_logged() -> anyhow::Result<()> {
    let stand = Stand::in_real_time().await?;
    let directory = stand.sim.create_directory(DirectoryOptions::default())?;
    let seeded = stand.sim.seed(&directory, &Seed::default())?;
    stand.log(|number, _| number % 2 == 0).await?;
    let mut program = stand
        .program()
        .env("RUST_LOG", "debug,async_nats=info")
        .env("EVENTS_POLL_INTERVAL", "1s")
        .env("SWEEP_CLOCK_MARGIN", "1s")
        .start()
        .await?;
    stand.agrees_soon().await?;
    let truth = stand.sim.truth();
    let user = &truth.directories[&directory].users[&seeded.users[0]];
    let email = user.email.as_deref().context("no address")?;
    program.keeps_secrets(&[stand.sim.api_key(), email])?;
    program.terminate().await
}
