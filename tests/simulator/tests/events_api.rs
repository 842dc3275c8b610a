//! The Events API: order, cursors, ranges, retention, and events that appear late.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should fail loudly")]

mod support;

use std::{collections::BTreeSet, time::Duration};

use serde_json::Value;
use support::{get, official, sim_with, walk};
use workos_sim::{Change, DirectoryOptions, Millis, Seed, Sim};

const TYPES: &str =
    "events[]=dsync.user.created&events[]=dsync.group.created&events[]=dsync.group.user_added";
const DAY: Duration = Duration::from_hours(24);

fn ids(sim: &Sim) -> Vec<String> {
    sim.events().iter().map(|event| event.id.clone()).collect()
}

#[tokio::test]
async fn oldest_first_whatever_is_asked_and_byte_for_byte() {
    let (sim, ..) = sim_with(
        DirectoryOptions::awkward(),
        &Seed {
            users: 20,
            ..Seed::default()
        },
    )
    .await;
    let wanted: Vec<String> = ids(&sim)[1..].to_vec();
    assert_eq!(
        walk(&sim, &format!("/events?{TYPES}&limit=7&order=desc")).await,
        wanted
    );
    let request = support::http()
        .get(format!("{}/events?{TYPES}&limit=100", sim.url()))
        .bearer_auth(sim.api_key());
    let text = request.send().await.unwrap().text().await.unwrap();
    for event in &sim.events()[1..] {
        assert!(text.contains(event.body()), "{}", event.id);
    }
}

#[tokio::test]
async fn the_official_sdk_lists_them() {
    let (sim, ..) = sim_with(
        DirectoryOptions::default(),
        &Seed {
            users: 20,
            ..Seed::default()
        },
    )
    .await;
    let client = official(&sim);
    let kinds = [
        "dsync.activated",
        "dsync.user.created",
        "dsync.group.created",
        "dsync.group.user_added",
    ];
    let mut params = workos::events::ListEventsParams::new(kinds.map(String::from).to_vec());
    let mut seen = Vec::new();
    loop {
        let page = client.events().list_events(params.clone()).await.unwrap();
        seen.extend(page.data.into_iter().map(|event| event.id));
        params.after = page.list_metadata.after;
        if params.after.is_none() {
            break;
        }
    }
    assert_eq!(seen, ids(&sim), "despite the SDK's `events=a,b` and `order=desc`");
}

#[tokio::test]
async fn cursors_and_ranges() {
    let (sim, directory, _) = sim_with(
        DirectoryOptions::default(),
        &Seed {
            users: 5,
            ..Seed::default()
        },
    )
    .await;
    let first = ids(&sim);
    sim.clock().advance(20 * DAY);
    let later = sim.clock().now();
    sim.create_user(&directory).unwrap();
    let newest = ids(&sim).last().unwrap().clone();
    let after = format!(
        "/events?events=dsync.user.created&after={}",
        first.last().unwrap()
    );
    assert_eq!(walk(&sim, &after).await, std::slice::from_ref(&newest));
    let ranged = format!(
        "/events?events=dsync.user.created&range_start={later}&range_end={}",
        later.plus(DAY)
    );
    assert_eq!(walk(&sim, &ranged).await, std::slice::from_ref(&newest));
    let before = format!(
        "/events?events=dsync.user.created&range_start={}&range_end={later}",
        later.minus(25 * DAY)
    );
    assert_eq!(walk(&sim, &before).await.len(), 5);
    for (query, status) in [
        ("events=dsync.user.created&after=event_unknown".to_owned(), 400),
        (
            format!("events=dsync.user.created&range_start={}", later.minus(31 * DAY)),
            400,
        ),
        (
            "events=dsync.user.created&range_start=2026-01-15T12:00:00%2B00:00".to_owned(),
            400,
        ),
        (
            format!(
                "events=dsync.user.created&range_start={}&range_end={later}",
                later.plus(DAY)
            ),
            400,
        ),
        (String::new(), 422),
        ("events=dsync.user.created&limit=0".to_owned(), 422),
    ] {
        assert_eq!(get(&sim, &format!("/events?{query}")).await.0, status, "{query}");
    }
    let both = format!("/events?events=dsync.user.created&after={newest}&range_start={later}");
    assert!(walk(&sim, &both).await.is_empty());
    sim.tune(|tuning| tuning.events.range_overrides_after = true);
    assert_eq!(walk(&sim, &both).await, [newest]);
    sim.tune(|tuning| tuning.events.after_needs_range = true);
    assert_eq!(get(&sim, &after).await.0, 400);
    assert_eq!(get(&sim, &both).await.0, 200);
    sim.tune(|tuning| tuning.events.after_excludes_range = true);
    assert_eq!(get(&sim, &both).await.0, 400);
}

#[tokio::test]
async fn what_is_out_of_retention_is_gone_and_its_cursors_refused() {
    let (sim, directory, _) = sim_with(
        DirectoryOptions::default(),
        &Seed {
            users: 5,
            ..Seed::default()
        },
    )
    .await;
    let old = ids(&sim).last().unwrap().clone();
    sim.clock().advance(91 * DAY);
    sim.create_user(&directory).unwrap();
    let (status, _) = get(&sim, &format!("/events?events=dsync.user.created&after={old}")).await;
    assert_eq!(status, 400);
    assert_eq!(walk(&sim, "/events?events=dsync.user.created").await.len(), 1);
}

#[tokio::test]
async fn held_back_events_appear_late_and_out_of_order() {
    let (sim, directory, _) = sim_with(
        DirectoryOptions::default(),
        &Seed {
            users: 0,
            groups: 0,
            ..Seed::default()
        },
    )
    .await;
    sim.tune(|tuning| tuning.events.holdback = Duration::from_secs(20));
    let (mut naive, mut cursor) = (BTreeSet::new(), String::new());
    for _ in 0..40 {
        sim.create_user(&directory).unwrap();
        sim.clock().advance(Duration::from_secs(1));
        // A consumer that moves its cursor to the newest event it has seen.
        let (_, page) = get(
            &sim,
            &format!("/events?events=dsync.user.created&limit=100{cursor}"),
        )
        .await;
        let seen = page["data"]
            .as_array()
            .unwrap()
            .iter()
            .map(|event: &Value| event["id"].as_str().unwrap());
        naive.extend(seen.map(str::to_owned));
        if let Some(newest) = naive.last() {
            cursor = format!("&after={newest}");
        }
    }
    sim.clock().advance(Duration::from_secs(20));
    let all = walk(&sim, "/events?events=dsync.user.created&limit=100").await;
    assert_eq!(all.len(), 40, "nothing is held back for good");
    assert!(
        naive.len() < 35,
        "the naive consumer should have missed some: {}",
        naive.len()
    );
}

#[tokio::test]
async fn by_organization() {
    let (sim, directory, _) = sim_with(
        DirectoryOptions::default(),
        &Seed {
            users: 2,
            ..Seed::default()
        },
    )
    .await;
    let other = sim.create_directory(DirectoryOptions::default()).unwrap();
    sim.create_user(&other).unwrap();
    let organization = sim.truth().directories[&directory]
        .directory
        .organization_id
        .clone()
        .unwrap();
    let listed = walk(
        &sim,
        &format!("/events?events=dsync.user.created&organization_id={organization}"),
    )
    .await;
    assert_eq!(listed.len(), 2);
    sim.change(Change::DeleteDirectory { directory: other }).unwrap();
    assert!(
        Millis::parse_zulu(
            sim.events().last().unwrap().json()["created_at"]
                .as_str()
                .unwrap()
        )
        .is_some()
    );
}
