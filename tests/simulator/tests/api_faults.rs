//! The state API when things go wrong or happen at the wrong moment: limits, errors, lagging reads, halved lists, and
//! changes scripted between two pages.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should fail loudly")]

mod support;

use std::time::Duration;

use serde_json::{Value, json};
use support::{get, sim_with, walk};
use workos_sim::{Change, DirectoryOptions, Endpoint, RateLimits, Seed, Trigger, peak};

#[tokio::test]
async fn a_walk_survives_what_happens_between_its_pages() {
    let (sim, directory, seeded) = sim_with(
        DirectoryOptions::default(),
        &Seed {
            users: 30,
            ..Seed::default()
        },
    )
    .await;
    // Delete the cursor of the first page and a user not yet read; add a new user before the start of the list.
    let cursor = seeded.users[20].clone();
    let unread = seeded.users[5].clone();
    sim.script(
        Trigger::after(Endpoint::Users),
        vec![
            Change::DeleteUser {
                user: cursor.clone(),
                removals: false,
            },
            Change::DeleteUser {
                user: unread.clone(),
                removals: false,
            },
            Change::CreateUser {
                directory: directory.clone(),
                set: serde_json::Map::new(),
            },
        ],
    );
    let seen = walk(&sim, &format!("/directory_users?directory={directory}&limit=10")).await;
    assert_eq!(sim.unfired(), 0);
    assert_eq!(sim.script_errors(), []);
    let expected: Vec<String> = seeded
        .users
        .iter()
        .rev()
        .filter(|id| **id != unread)
        .cloned()
        .collect();
    assert_eq!(
        seen, expected,
        "the user deleted after being read, but neither the new user nor the one deleted before being read"
    );
    let ascending = walk(
        &sim,
        &format!("/directory_users?directory={directory}&limit=10&order=asc"),
    )
    .await;
    assert_eq!(ascending.len(), 29);
}

#[tokio::test]
async fn a_gate_holds_an_answer() {
    let (sim, directory, seeded) = sim_with(
        DirectoryOptions::default(),
        &Seed {
            users: 3,
            ..Seed::default()
        },
    )
    .await;
    let mut gate = sim.gate(Trigger::before(Endpoint::Users).containing("directory="));
    let asking = {
        let sim = sim.clone();
        let path = format!("/directory_users?directory={directory}");
        tokio::spawn(async move { walk(&sim, &path).await })
    };
    assert!(gate.reached().await);
    sim.change(Change::DeleteUser {
        user: seeded.users[0].clone(),
        removals: false,
    })
    .unwrap();
    gate.release();
    assert_eq!(asking.await.unwrap().len(), 2, "it read the world after the gate");
}

#[tokio::test]
async fn limits_are_kept_and_refusals_are_bare_strings() {
    let (sim, directory, _) = sim_with(DirectoryOptions::default(), &Seed::default()).await;
    sim.tune(|tuning| {
        tuning.limits = RateLimits {
            retry_after: true,
            ..RateLimits::published()
        }
    });
    let path = format!("/directory_users?directory={directory}");
    // One client, so that all six requests fall within one second.
    let client = support::http();
    let mut statuses = Vec::new();
    for _ in 0..6 {
        let request = client
            .get(format!("{}{path}", sim.url()))
            .bearer_auth(sim.api_key());
        let answer = request.send().await.unwrap();
        statuses.push((answer.status().as_u16(), answer.json::<Value>().await.unwrap()));
    }
    assert!(statuses[..4].iter().all(|(status, _)| *status == 200));
    assert!(
        statuses[4..]
            .iter()
            .all(|answer| *answer == (429, json!("Ratelimited")))
    );
    let refused = client
        .get(format!("{}{path}", sim.url()))
        .bearer_auth(sim.api_key());
    assert!(
        refused
            .send()
            .await
            .unwrap()
            .headers()
            .contains_key("retry-after")
    );
    let (other, _) = get(&sim, &format!("/directory_groups?directory={directory}")).await;
    assert_eq!(other, 200, "the limit applies to users only");
    let requests = sim.requests();
    assert_eq!(
        peak(&requests, Duration::from_secs(1), |request| request.endpoint
            == Endpoint::Users),
        7
    );
    assert_eq!(sim.request_counts()[&Endpoint::Users][&429], 3);
    assert_eq!(requests[0].directory.as_deref(), Some(directory.as_str()));
}

#[tokio::test]
async fn lagging_reads_show_the_past() {
    let (sim, directory, seeded) = sim_with(
        DirectoryOptions::default(),
        &Seed {
            users: 2,
            ..Seed::default()
        },
    )
    .await;
    sim.clock().advance(Duration::from_mins(1));
    let path = format!("/directory_users?directory={directory}");
    let before = walk(&sim, &path).await;
    sim.change(Change::DeleteUser {
        user: seeded.users[0].clone(),
        removals: false,
    })
    .unwrap();
    sim.create_user(&directory).unwrap();
    sim.tune(|tuning| {
        tuning.faults.lagging = 100;
        tuning.faults.lag = Duration::from_secs(5);
    });
    assert_eq!(walk(&sim, &path).await, before);
    let gone = format!("/directory_users/{}", seeded.users[0]);
    assert_eq!(get(&sim, &gone).await.0, 200);
    sim.clock().advance(Duration::from_secs(6));
    assert_ne!(walk(&sim, &path).await, before);
    assert_eq!(get(&sim, &gone).await.0, 404);
}

#[tokio::test]
async fn half_a_list_comes_with_200() {
    let (sim, directory, seeded) = sim_with(
        DirectoryOptions::default(),
        &Seed {
            users: 40,
            ..Seed::default()
        },
    )
    .await;
    let path = format!("/directory_users?directory={directory}");
    sim.tune(|tuning| tuning.faults.cut_short = 100);
    assert_eq!(
        walk(&sim, &path).await.len(),
        5,
        "half of the first page, and no cursor"
    );
    sim.tune(|tuning| {
        tuning.faults.cut_short = 0;
        tuning.faults.halved.insert(directory.clone());
    });
    let half = walk(&sim, &path).await;
    assert!((8..32).contains(&half.len()), "{}", half.len());
    assert_eq!(walk(&sim, &path).await, half, "the same half every time");
    let missing = seeded.users.iter().find(|id| !half.contains(id)).unwrap();
    assert_eq!(get(&sim, &format!("/directory_users/{missing}")).await.0, 200);
}

#[tokio::test]
async fn errors_and_slow_answers() {
    let (sim, ..) = sim_with(DirectoryOptions::default(), &Seed::default()).await;
    sim.tune(|tuning| tuning.faults.errors = 50);
    let mut statuses = Vec::new();
    for _ in 0..40 {
        statuses.push(get(&sim, "/directories").await.0);
    }
    let failed = statuses.iter().filter(|status| **status == 500).count();
    assert!((8..32).contains(&failed), "{failed}");
    sim.tune(|tuning| {
        tuning.faults.errors = 0;
        tuning.faults.hangs = 100;
        tuning.faults.hang_for = Duration::from_hours(1);
    });
    let request = support::http()
        .get(format!("{}/directories", sim.url()))
        .bearer_auth(sim.api_key());
    let error = request
        .timeout(Duration::from_millis(50))
        .send()
        .await
        .unwrap_err();
    assert!(error.is_timeout());
}
