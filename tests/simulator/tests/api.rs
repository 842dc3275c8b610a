//! The state API over HTTP: the official SDK as a client that checks every object, memberships from both sides,
//! refusals, and the endpoints for use with curl.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should fail loudly")]

mod support;

use serde_json::{Value, json};
use support::{get, official, sim_with, walk};
use workos_sim::{Change, DirectoryOptions, Seed, Sim};

#[tokio::test]
async fn the_official_sdk_reads_everything() {
    for options in [DirectoryOptions::default(), DirectoryOptions::newer()] {
        let filled = options.groups_field;
        let (sim, directory, _) = sim_with(
            options,
            &Seed {
                users: 25,
                groups: 4,
                ..Seed::default()
            },
        )
        .await;
        let client = official(&sim);
        let api = client.directory_sync();
        let listed = api
            .list_directories(workos::directory_sync::ListDirectoriesParams::default())
            .await
            .unwrap();
        assert_eq!(listed.data.len(), 1);
        assert_eq!(listed.data[0].state.as_str(), "linked");
        assert_eq!(listed.data[0].metadata.as_ref().unwrap().users.active, 25);
        assert_eq!(api.get_directory(&directory).await.unwrap().id, directory);

        let truth = sim.truth().directories[&directory].clone();
        let mut params = workos::directory_sync::ListUsersParams {
            directory: Some(directory.clone()),
            ..Default::default()
        };
        let mut users = Vec::new();
        loop {
            let page = api.list_users(params.clone()).await.unwrap();
            users.extend(page.data);
            params.after = page.list_metadata.after;
            if params.after.is_none() {
                break;
            }
        }
        assert_eq!(users.len(), 25);
        assert!(
            users.windows(2).all(|pair| pair[0].id > pair[1].id),
            "newest first by default"
        );
        for user in &users {
            let row = &truth.users[&user.id];
            assert_eq!(user.role.as_ref().map(|role| role.slug.clone()), row.role);
            #[expect(deprecated, reason = "older teams still read it")]
            let groups: Vec<(String, String)> = user
                .groups
                .iter()
                .map(|group| (group.id.clone(), user.id.clone()))
                .collect();
            let expected: Vec<_> = truth
                .memberships
                .iter()
                .filter(|pair| pair.1 == user.id)
                .cloned()
                .collect();
            assert_eq!(groups, if filled { expected } else { Vec::new() });
        }
        let one = api.get_user(&users[0].id).await.unwrap();
        assert_eq!(one.updated_at, truth.users[&one.id].updated_at);

        let groups = workos::directory_sync::ListGroupsParams {
            directory: Some(directory.clone()),
            ..Default::default()
        };
        let groups = api.list_groups(groups).await.unwrap().data;
        assert_eq!(groups.len(), 4);
        assert_eq!(api.get_group(&groups[0].id).await.unwrap().name, groups[0].name);
    }
}

#[tokio::test]
async fn memberships_are_the_same_from_both_sides() {
    let (sim, directory, seeded) = sim_with(DirectoryOptions::newer(), &Seed::default()).await;
    let truth = sim.truth().directories[&directory].memberships.clone();
    assert!(!truth.is_empty());
    let mut by_group = std::collections::BTreeSet::new();
    for group in &seeded.groups {
        let users = walk(&sim, &format!("/directory_users?group={group}&limit=7")).await;
        by_group.extend(users.into_iter().map(|user| (group.clone(), user)));
    }
    let mut by_user = std::collections::BTreeSet::new();
    for user in &seeded.users {
        let groups = walk(&sim, &format!("/directory_groups?user={user}")).await;
        by_user.extend(groups.into_iter().map(|group| (group, user.clone())));
    }
    assert_eq!(by_group, truth);
    assert_eq!(by_user, truth);
}

#[tokio::test]
async fn refusals() {
    let (sim, directory, seeded) = sim_with(DirectoryOptions::default(), &Seed::default()).await;
    let bare = reqwest::get(format!("{}/directories", sim.url())).await.unwrap();
    assert_eq!(bare.status(), 401);
    for (path, status) in [
        ("/directories/directory_none", 404),
        ("/directory_users?directory=directory_none", 404),
        ("/directory_users?group=directory_group_none", 404),
        ("/directory_groups?user=directory_user_none", 404),
        ("/directory_users/directory_user_none", 404),
        ("/directory_users", 422),
        ("/directories?limit=101", 422),
        ("/directories?order=sideways", 422),
        ("/organizations", 404),
    ] {
        let (found, body) = get(&sim, path).await;
        assert_eq!(found, status, "{path}");
        assert!(body["message"].is_string(), "{path}: {body}");
    }
    sim.change(Change::DeleteDirectory { directory }).unwrap();
    let (status, _) = get(&sim, &format!("/directory_users/{}", seeded.users[0])).await;
    assert_eq!(status, 404, "a deleted directory's contents are gone, too");
}

#[tokio::test]
async fn the_date_is_the_simulators() {
    let (sim, ..) = sim_with(DirectoryOptions::default(), &Seed::default()).await;
    let request = support::http()
        .get(format!("{}/directories", sim.url()))
        .bearer_auth(sim.api_key());
    let answer = request.send().await.unwrap();
    assert_eq!(answer.headers()["date"], sim.clock().now().http_date());
    assert_eq!(answer.headers().get_all("date").iter().count(), 1);
}

#[tokio::test]
async fn a_person_with_curl() {
    let (sim, directory, seeded) = sim_with(DirectoryOptions::default(), &Seed::default()).await;
    let post = async |body: Value| {
        let request = support::http()
            .post(format!("{}/_sim/changes", sim.url()))
            .json(&body);
        let answer = request.send().await.unwrap();
        (answer.status().as_u16(), answer.json::<Value>().await.unwrap())
    };
    let user = &seeded.users[0];
    let (status, outcome) =
        post(json!({ "change": "update_user", "user": user, "set": { "job_title": "Cook" } })).await;
    assert_eq!((status, outcome["events"].as_array().unwrap().len()), (200, 1));
    let (status, outcome) =
        post(json!({ "change": "silently", "inner": { "change": "delete_user", "user": user } })).await;
    assert_eq!((status, &outcome["events"]), (200, &json!([])));
    let (status, _) = post(json!({ "burst": 20 })).await;
    assert_eq!(status, 200);
    let (status, _) = post(json!({ "seed": { "users": 3 }, "directory": directory })).await;
    assert_eq!(status, 200);
    let (status, refusal) = post(json!({ "change": "delete_user", "user": user })).await;
    assert_eq!(status, 422);
    assert!(
        refusal["error"].as_str().unwrap().contains(user.as_str()),
        "{refusal}"
    );
    assert_eq!(post(json!({ "wish": 1 })).await.0, 422);
    let (_, truth) = get(&sim, "/_sim/truth").await;
    assert_eq!(truth, serde_json::to_value(sim.truth()).unwrap());
    let (_, numbers) = get(&sim, "/_sim/stats").await;
    assert_eq!(numbers["events"], json!(sim.events().len()));
}

#[tokio::test]
async fn an_address_that_is_taken_is_an_error() {
    let first = Sim::start(workos_sim::Options::default()).await.unwrap();
    let listen = first.url().trim_start_matches("http://").parse().unwrap();
    let options = workos_sim::Options {
        listen,
        ..workos_sim::Options::default()
    };
    assert!(
        Sim::start(options)
            .await
            .unwrap_err()
            .to_string()
            .contains("cannot listen")
    );
}
