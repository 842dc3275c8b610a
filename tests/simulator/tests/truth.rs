//! Events against the truth: a small, independently written fold of everything emitted arrives at the same state as
//! `Truth`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should fail loudly")]

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};
use workos_sim::{Change, Clock, DirectoryOptions, Millis, RoleShape, Seed, Truth, World};

const NOON: Millis = Millis(1_768_478_400_000);

/// The result of folding events in the order of emission, written independently of the truth.
#[derive(Default)]
struct Folded {
    directories: BTreeMap<String, Value>,
    users: BTreeMap<String, Value>,
    groups: BTreeMap<String, Value>,
    memberships: BTreeSet<(String, String)>,
}

impl Folded {
    fn take(&mut self, event: &Value) {
        let data = &event["data"];
        let id = |object: &Value| object["id"].as_str().unwrap().to_owned();
        match event["event"].as_str().unwrap() {
            "dsync.activated" | "dsync.deactivated" => drop(self.directories.insert(id(data), data.clone())),
            "dsync.deleted" => drop(self.directories.remove(&id(data))),
            "dsync.user.created" | "dsync.user.updated" => drop(self.users.insert(id(data), data.clone())),
            "dsync.user.deleted" => drop(self.users.remove(&id(data))),
            "dsync.group.created" | "dsync.group.updated" => drop(self.groups.insert(id(data), data.clone())),
            "dsync.group.deleted" => drop(self.groups.remove(&id(data))),
            "dsync.group.user_added" => {
                self.users.insert(id(&data["user"]), data["user"].clone());
                self.memberships.insert((id(&data["group"]), id(&data["user"])));
            }
            "dsync.group.user_removed" => {
                let pair = (id(&data["group"]), id(&data["user"]));
                self.memberships.remove(&pair);
                if let Some(user) = self.users.get_mut(&pair.1) {
                    *user = data["user"].clone();
                }
            }
            _ => {}
        }
    }

    fn agrees_with(&self, truth: &Truth) {
        let lives = |object: &Value| {
            self.directories
                .contains_key(object["directory_id"].as_str().unwrap())
        };
        for one in truth.directories.values() {
            let told = &self.directories[&one.directory.id];
            assert_eq!(
                (&told["state"], &told["name"]),
                (&json!(one.directory.state), &json!(one.directory.name))
            );
            for (id, row) in &one.users {
                let told = &self.users[id];
                assert_eq!(told["state"], json!(row.state), "{id}");
                assert_eq!(told["email"], json!(row.email), "{id}");
                assert_eq!(told["job_title"], json!(row.job_title), "{id}");
                assert_eq!(told["updated_at"], json!(row.updated_at), "{id}");
                assert_eq!(told["custom_attributes"], json!(row.custom_attributes), "{id}");
                let roles = told["roles"].as_array().unwrap().iter();
                let roles: Vec<&str> = roles.map(|role| role["slug"].as_str().unwrap()).collect();
                assert_eq!(json!(roles), json!(row.roles), "{id}");
            }
            for (id, row) in &one.groups {
                assert_eq!(self.groups[id]["name"], json!(row.name), "{id}");
            }
        }
        let [directories, users, groups, memberships] = truth.counts();
        assert_eq!(self.directories.len(), directories);
        assert_eq!(self.users.values().filter(|user| lives(user)).count(), users);
        assert_eq!(self.groups.values().filter(|group| lives(group)).count(), groups);
        let live = |(group, user): &&(String, String)| {
            self.groups.get(group).is_some_and(lives) && self.users.get(user).is_some_and(lives)
        };
        let told: BTreeSet<&(String, String)> = self.memberships.iter().filter(live).collect();
        let expected: BTreeSet<_> = truth
            .directories
            .values()
            .flat_map(|one| &one.memberships)
            .collect();
        assert_eq!(told.len(), memberships);
        assert_eq!(told, expected);
    }
}

#[test]
fn events_add_up_to_the_truth() {
    for seed in 0..20 {
        let mut world = World::new(Clock::fixed(NOON), seed);
        for roles in [RoleShape::Both, RoleShape::Both] {
            let options = DirectoryOptions {
                roles,
                ..DirectoryOptions::default()
            };
            let directory = world
                .apply(Change::CreateDirectory { options })
                .unwrap()
                .created
                .unwrap();
            world
                .seed(
                    &directory,
                    &Seed {
                        users: 20,
                        groups: 6,
                        ..Seed::default()
                    },
                )
                .unwrap();
        }
        world.burst(&[], 400).unwrap();
        if seed % 4 == 0 {
            let directory = world.truth().directories.keys().next().unwrap().clone();
            world.apply(Change::DeleteDirectory { directory }).unwrap();
        }
        let mut folded = Folded::default();
        for event in world.events() {
            folded.take(&event.json());
        }
        folded.agrees_with(&world.truth());
    }
}
