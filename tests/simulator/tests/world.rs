//! Changes and the events they emit: the envelope of every kind of event, as read by the official models, and the
//! sequences of events for typical histories.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should fail loudly")]

mod support;

use std::collections::BTreeSet;

use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use support::NOON;
use workos_sim::{Absent, Change, ChangeError, Clock, DirectoryOptions, Event, Owner, Seed, Truth, World};

fn world() -> World {
    World::new(Clock::fixed(NOON), 1)
}

fn seeded(options: DirectoryOptions) -> (World, String, String, String) {
    let mut world = world();
    let directory = world
        .apply(Change::CreateDirectory { options })
        .unwrap()
        .created
        .unwrap();
    let created = world
        .seed(
            &directory,
            &Seed {
                users: 6,
                groups: 3,
                ..Seed::default()
            },
        )
        .unwrap();
    (
        world,
        directory,
        created.users[0].clone(),
        created.groups[0].clone(),
    )
}

/// Applies a change and returns its events, parsed.
fn told(world: &mut World, change: Change) -> Vec<Value> {
    let before = world.events().len();
    world.apply(change).unwrap();
    world.events()[before..].iter().map(Event::json).collect()
}

fn kinds(events: &[Value]) -> Vec<&str> {
    events
        .iter()
        .map(|event| event["event"].as_str().unwrap())
        .collect()
}

fn reads<T: DeserializeOwned>(event: &Event) -> bool {
    serde_json::from_str::<T>(event.body()).is_ok()
}

#[test]
fn every_kind_of_event_reads_as_the_official_model() {
    let (mut world, directory, user, group) = seeded(DirectoryOptions::default());
    let (d, u, g) = (|| directory.clone(), || user.clone(), || group.clone());
    let set = Change::fields(json!({ "email": "new@example.com", "department": "Kitchen" }));
    for change in [
        Change::AddMember {
            group: g(),
            user: u(),
        },
        Change::RemoveMember {
            group: g(),
            user: u(),
        },
        Change::AddMember {
            group: g(),
            user: u(),
        },
        Change::UpdateUser { user: u(), set },
        Change::RenameGroup {
            group: g(),
            name: "Renamed".to_owned(),
        },
        Change::CreateToken { directory: d() },
        Change::RevokeToken { directory: d() },
        Change::DeactivateDirectory { directory: d() },
        Change::DeleteUser {
            user: u(),
            removals: true,
        },
        Change::DeleteGroup { group: g() },
        Change::Unknown {
            directory: d(),
            event: "dsync.weather.changed".to_owned(),
            data: serde_json::Map::new(),
        },
        Change::DeleteDirectory { directory: d() },
    ] {
        world.apply(change).unwrap();
    }
    let mut seen = BTreeSet::new();
    for event in world.events() {
        let fits = match event.kind.as_str() {
            "dsync.activated" | "dsync.deactivated" => reads::<workos::DsyncActivated>(event),
            "dsync.deleted" => reads::<workos::DsyncDeleted>(event),
            "dsync.user.created" => reads::<workos::DsyncUserCreated>(event),
            "dsync.user.updated" => reads::<workos::DsyncUserUpdated>(event),
            "dsync.user.deleted" => reads::<workos::DsyncUserDeleted>(event),
            "dsync.group.created" => reads::<workos::DsyncGroupCreated>(event),
            "dsync.group.updated" => reads::<workos::DsyncGroupUpdated>(event),
            "dsync.group.deleted" => reads::<workos::DsyncGroupDeleted>(event),
            "dsync.group.user_added" => reads::<workos::DsyncGroupUserAdded>(event),
            "dsync.group.user_removed" => reads::<workos::DsyncGroupUserRemoved>(event),
            "dsync.token.created" => reads::<workos::DsyncTokenCreated>(event),
            "dsync.token.revoked" => reads::<workos::DsyncTokenRevoked>(event),
            _ => reads::<workos::EventSchema>(event),
        };
        assert!(fits, "{}", event.body());
        assert!(event.body().starts_with(&format!(
            r#"{{"object":"event","id":"{}","event":"{}""#,
            event.id, event.kind
        )));
        assert!(event.json()["context"].is_object());
        seen.insert(event.kind.clone());
    }
    assert_eq!(seen.len(), 14, "{seen:?}");
    let ids: Vec<&str> = world.events().iter().map(|event| event.id.as_str()).collect();
    assert!(ids.windows(2).all(|pair| pair[0] < pair[1]));
}

#[test]
fn memberships_and_roles_do_not_move_updated_at() {
    let (mut world, directory, ..) = seeded(DirectoryOptions::default());
    let user = world.apply(Change::CreateUser {
        directory: directory.clone(),
        set: serde_json::Map::new(),
    });
    let user = user.unwrap().created.unwrap();
    let group = Change::CreateGroup {
        directory,
        name: None,
        role: Some("admin".to_owned()),
    };
    let group = world.apply(group).unwrap().created.unwrap();
    let before = world.truth();
    let added = told(
        &mut world,
        Change::AddMember {
            group: group.clone(),
            user: user.clone(),
        },
    );
    assert_eq!(kinds(&added), ["dsync.group.user_added"]);
    let told_user = &added[0]["data"]["user"];
    assert_eq!(told_user["role"]["slug"], "admin");
    let row = row(&before, &user);
    assert_eq!(told_user["updated_at"], row["updated_at"]);
    assert_eq!(row["role"], "member");

    let assigned = told(
        &mut world,
        Change::AssignRole {
            group: group.clone(),
            role: Some("viewer".to_owned()),
        },
    );
    assert_eq!(kinds(&assigned), ["dsync.user.updated"]);
    assert_eq!(assigned[0]["data"]["roles"], json!([{ "slug": "viewer" }]));
    assert_eq!(assigned[0]["data"]["updated_at"], row["updated_at"]);
    assert_eq!(
        assigned[0]["data"]["previous_attributes"]["role"]["slug"],
        "admin"
    );

    let dropped = told(&mut world, Change::DeleteGroup { group });
    assert_eq!(
        kinds(&dropped),
        ["dsync.group.deleted", "dsync.user.updated"],
        "and no user_removed"
    );
    assert_eq!(dropped[1]["data"]["role"]["slug"], "member");
}

fn row(truth: &Truth, user: &str) -> Value {
    let mut found = truth.directories.values().filter_map(|one| one.users.get(user));
    serde_json::to_value(found.next().unwrap()).unwrap()
}

#[test]
fn going_and_coming_back() {
    let (mut world, _, user, _) = seeded(DirectoryOptions::default());
    let before = row(&world.truth(), &user);
    let gone = told(&mut world, Change::DeactivateUser { user: user.clone() });
    assert_eq!(kinds(&gone), ["dsync.user.updated"]);
    assert_eq!(gone[0]["data"]["state"], "inactive");
    assert_eq!(
        gone[0]["data"]["previous_attributes"],
        json!({ "state": "active" })
    );
    assert_eq!(
        told(&mut world, Change::DeactivateUser { user: user.clone() }),
        Vec::<Value>::new()
    );

    world
        .apply(Change::DeleteUser {
            user: user.clone(),
            removals: false,
        })
        .unwrap();
    let back = told(&mut world, Change::ReturnUser { user: user.clone() });
    assert_eq!(kinds(&back), ["dsync.user.created"]);
    assert_ne!(back[0]["data"]["id"], json!(user));
    assert_eq!(back[0]["data"]["idp_id"], before["idp_id"]);
    assert_eq!(back[0]["data"]["email"], before["email"]);
    assert_eq!(back[0]["data"]["state"], "active");
}

#[test]
fn a_deletion_announced_but_not_made() {
    let (mut world, directory, user, group) = seeded(DirectoryOptions::default());
    world
        .apply(Change::AddMember {
            group: group.clone(),
            user: user.clone(),
        })
        .unwrap();
    let announced = told(&mut world, Change::AnnounceDeleted { user: user.clone() });
    assert_eq!(kinds(&announced), ["dsync.user.deleted"]);
    let kept = &world.truth().directories[&directory];
    assert_eq!(kept.users[&user].state.as_deref(), Some("inactive"));
    assert!(kept.memberships.contains(&(group, user.clone())));
    let again = told(&mut world, Change::ReannounceUser { user: user.clone() });
    assert_eq!(
        kinds(&again),
        ["dsync.user.created"],
        "the user, and nothing about its memberships"
    );
    assert_eq!(again[0]["data"]["id"], json!(user));
    assert!(again[0]["data"]["updated_at"].as_str() > announced[0]["created_at"].as_str());
    let twice = world.apply(Change::ReannounceUser { user: user.clone() });
    assert_eq!(twice, Err(ChangeError::NotAnnouncedDeleted(user)));
}

#[test]
fn a_directory_goes_alone() {
    let (mut world, directory, user, _) = seeded(DirectoryOptions::default());
    let gone = told(
        &mut world,
        Change::DeleteDirectory {
            directory: directory.clone(),
        },
    );
    assert_eq!(kinds(&gone), ["dsync.deleted"]);
    assert!(world.truth().directories.is_empty());
    let late = world.apply(Change::DeactivateUser { user });
    assert!(matches!(late, Err(ChangeError::NotThere { .. })), "{late:?}");
    assert!(world.apply(Change::CreateToken { directory }).is_err());
}

#[test]
fn silent_changes_are_drift() {
    let (mut world, directory, user, group) = seeded(DirectoryOptions::default());
    let events = world.events().len();
    let inner = [
        Change::UpdateUser {
            user: user.clone(),
            set: Change::fields(json!({ "first_name": null })),
        },
        Change::AddMember {
            group: group.clone(),
            user,
        },
        Change::AssignRole {
            group: group.clone(),
            role: Some("owner".to_owned()),
        },
        Change::DeleteGroup { group },
        Change::CreateUser {
            directory,
            set: serde_json::Map::new(),
        },
    ];
    let before = world.truth();
    for change in inner {
        let inner = Box::new(change);
        assert_eq!(
            world.apply(Change::Silently { inner }).unwrap().events,
            Vec::<String>::new()
        );
    }
    assert_eq!(world.events().len(), events);
    assert_ne!(world.truth(), before);
}

#[test]
fn both_shapes_mean_the_same_truth() {
    let truth = |options: DirectoryOptions| {
        let (world, directory, user, _) = seeded(options);
        let row = world.truth().directories[&directory].users[&user].clone();
        (row.email, row.username, row.job_title, row.role)
    };
    assert_eq!(
        truth(DirectoryOptions::default()),
        truth(DirectoryOptions::newer())
    );
    let (world, directory, user, _) = seeded(DirectoryOptions::newer());
    let custom = world.truth().directories[&directory].users[&user]
        .custom_attributes
        .clone()
        .unwrap();
    assert!(custom["email"].is_string() && custom["emails"].is_array());
}

#[test]
fn a_directory_nobody_owns_yet() {
    let options = DirectoryOptions {
        owner: Owner::Nobody,
        absent: Absent::Missing,
        ..DirectoryOptions::default()
    };
    let (mut world, directory, ..) = seeded(options);
    assert!(
        world
            .events()
            .iter()
            .all(|event| !event.body().contains("organization_id"))
    );
    let organization = world
        .apply(Change::CreateOrganization { name: None })
        .unwrap()
        .created
        .unwrap();
    let linked = told(
        &mut world,
        Change::LinkDirectory {
            directory,
            organization: organization.clone(),
        },
    );
    assert_eq!(kinds(&linked), ["dsync.activated"]);
    assert_eq!(linked[0]["data"]["organization_id"], json!(organization));
}

#[test]
fn one_seed_one_history() {
    let history = |seed: u64| {
        let mut world = World::new(Clock::fixed(NOON), seed);
        let options = DirectoryOptions::awkward();
        let directory = world
            .apply(Change::CreateDirectory { options })
            .unwrap()
            .created
            .unwrap();
        world.seed(&directory, &Seed::default()).unwrap();
        world.burst(&[], 300).unwrap();
        let bodies: Vec<String> = world
            .events()
            .iter()
            .map(|event| event.body().to_owned())
            .collect();
        (bodies, world.truth())
    };
    assert_eq!(history(5), history(5));
    assert_ne!(history(5).0, history(6).0);
}

#[test]
fn changes_are_written_as_json() {
    let text = r#"{"change":"silently","inner":{"change":"delete_user","user":"directory_user_1"}}"#;
    let inner = Box::new(Change::DeleteUser {
        user: "directory_user_1".to_owned(),
        removals: false,
    });
    assert_eq!(
        serde_json::from_str::<Change>(text).unwrap(),
        Change::Silently { inner }
    );
    assert!(serde_json::from_str::<Change>(r#"{"change":"delete_user","usr":"x"}"#).is_err());
}

/// The times at which an object comes and goes must differ, so that they order these changes.
#[test]
fn nothing_goes_and_comes_within_a_millisecond() {
    let (mut world, _, user, group) = seeded(DirectoryOptions::default());
    let mut times = Vec::new();
    for _ in 0..5 {
        for change in [
            Change::AddMember {
                group: group.clone(),
                user: user.clone(),
            },
            Change::RemoveMember {
                group: group.clone(),
                user: user.clone(),
            },
        ] {
            times.extend(
                told(&mut world, change)
                    .iter()
                    .map(|event| event["created_at"].to_string()),
            );
        }
    }
    assert!(times.len() >= 9);
    assert!(times.windows(2).all(|pair| pair[0] < pair[1]), "{times:?}");
}
