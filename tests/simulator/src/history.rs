//! Random but plausible histories: a directory's first sync, and bursts of mixed changes. A burst makes only changes
//! that its events fully describe. Others (silent changes, users kept although announced as deleted) are for scripts.

use rand::{RngExt, seq::IndexedRandom};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::{
    change::{Change, ChangeError},
    people,
    versioned::When,
    world::World,
};

/// The size of a first sync.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Seed {
    /// Users, each `dsync.user.created`.
    pub users: usize,
    /// Groups, each `dsync.group.created`.
    pub groups: usize,
    /// The most groups that a user is put into.
    pub groups_per_user: usize,
    /// Whether every third group gives its members a role.
    pub with_roles: bool,
}

impl Default for Seed {
    fn default() -> Self {
        Self {
            users: 50,
            groups: 5,
            groups_per_user: 3,
            with_roles: true,
        }
    }
}

/// What a first sync created, in order.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Seeded {
    /// Ids of the users.
    pub users: Vec<String>,
    /// Ids of the groups.
    pub groups: Vec<String>,
}

/// The live objects of a directory, from which a burst picks.
struct Cast {
    directory: String,
    users: Vec<String>,
    groups: Vec<String>,
    gone: Vec<String>,
}

/// The changes in a burst.
#[derive(Clone, Copy)]
enum Act {
    Join,
    Leave,
    Edit,
    NewUser,
    Deactivate,
    Suspend,
    Reactivate,
    Delete,
    Return,
    NewGroup,
    Rename,
    DropGroup,
    Role,
    Token,
    Unknown,
    Blink,
}

const MIX: [(Act, u32); 16] = [
    (Act::Join, 20),
    (Act::Leave, 14),
    (Act::Edit, 22),
    (Act::NewUser, 10),
    (Act::Deactivate, 5),
    (Act::Suspend, 2),
    (Act::Reactivate, 4),
    (Act::Delete, 5),
    (Act::Return, 4),
    (Act::NewGroup, 3),
    (Act::Rename, 4),
    (Act::DropGroup, 2),
    (Act::Role, 2),
    (Act::Token, 1),
    (Act::Unknown, 1),
    (Act::Blink, 1),
];

const ROLES: [&str; 4] = ["admin", "manager", "editor", "viewer"];

impl World {
    /// Fills a directory as its first sync would.
    pub fn seed(&mut self, directory: &str, seed: &Seed) -> Result<Seeded, ChangeError> {
        let mut seeded = Seeded::default();
        for index in 0..seed.groups {
            let role =
                (seed.with_roles && index % 3 == 0).then(|| ROLES[(index / 3) % ROLES.len()].to_owned());
            seeded.groups.push(self.create_group(directory, None, role)?);
        }
        for _ in 0..seed.users {
            let user = self.create_user(directory, &serde_json::Map::new())?;
            let most = seed.groups_per_user.min(seed.groups);
            let count = self.rng.random_range(0..=most);
            let groups: Vec<String> = seeded.groups.sample(&mut self.rng, count).cloned().collect();
            for group in groups {
                self.add_member(&group, &user)?;
            }
            seeded.users.push(user);
        }
        Ok(seeded)
    }

    /// Makes `count` random changes spread over `directories`, or over all live ones if none are named.
    pub fn burst(&mut self, directories: &[String], count: usize) -> Result<(), ChangeError> {
        let live = |id: &&String| self.directory_at(id, When::Now).is_some();
        let chosen: Vec<&String> = if directories.is_empty() {
            self.directory_ids.iter().filter(live).collect()
        } else {
            directories.iter().collect()
        };
        let mut casts: Vec<Cast> = chosen.into_iter().map(|id| self.cast(id)).collect();
        for _ in 0..count {
            if casts.is_empty() {
                break;
            }
            let index = self.rng.random_range(0..casts.len());
            self.act(&mut casts[index])?;
        }
        Ok(())
    }

    fn cast(&self, directory: &str) -> Cast {
        let users = self.live_users(directory, When::Now);
        let groups = self.live_groups(directory, When::Now);
        Cast {
            directory: directory.to_owned(),
            users: users.map(|user| user.id.clone()).collect(),
            groups: groups.map(|group| group.id.clone()).collect(),
            gone: Vec::new(),
        }
    }

    /// Makes one change. If the directory has no user or no group, creates one instead of the change drawn.
    fn act(&mut self, cast: &mut Cast) -> Result<(), ChangeError> {
        let act = MIX
            .choose_weighted(&mut self.rng, |(_, weight)| *weight)
            .map_or(Act::Edit, |(act, _)| *act);
        let change = self.pick_change(act, cast);
        let makes_user = matches!(change, Change::CreateUser { .. } | Change::ReturnUser { .. });
        if let Some(id) = self.apply(change)?.created {
            if makes_user {
                &mut cast.users
            } else {
                &mut cast.groups
            }
            .push(id);
        }
        Ok(())
    }

    fn pick_change(&mut self, act: Act, cast: &mut Cast) -> Change {
        let directory = cast.directory.clone();
        if cast.users.is_empty() {
            let set = serde_json::Map::new();
            return Change::CreateUser { directory, set };
        }
        if cast.groups.is_empty() {
            return Change::CreateGroup {
                directory,
                name: None,
                role: None,
            };
        }
        let at = self.rng.random_range(0..cast.users.len());
        let user = cast.users[at].clone();
        match act {
            Act::Edit => self.pick_edit(user),
            Act::NewUser => Change::CreateUser {
                directory,
                set: serde_json::Map::new(),
            },
            Act::Deactivate => Change::DeactivateUser { user },
            Act::Suspend => Change::SuspendUser { user },
            Act::Reactivate => Change::ReactivateUser { user },
            Act::Delete => {
                cast.gone.push(cast.users.swap_remove(at));
                let removals = self.rng.random_bool(0.3);
                Change::DeleteUser { user, removals }
            }
            Act::Return => match cast.gone.pop() {
                Some(user) => Change::ReturnUser { user },
                None => Change::ReactivateUser { user },
            },
            Act::Token => Change::CreateToken { directory },
            Act::Unknown => Change::Unknown {
                directory,
                event: "dsync.schedule.changed".to_owned(),
                data: Change::fields(json!({ "object": "schedule" })),
            },
            Act::Blink if self.rng.random_bool(0.5) => Change::DeactivateDirectory { directory },
            Act::Blink => Change::ActivateDirectory { directory },
            of_groups => self.pick_group_change(of_groups, user, cast),
        }
    }

    fn pick_group_change(&mut self, act: Act, user: String, cast: &mut Cast) -> Change {
        let at = self.rng.random_range(0..cast.groups.len());
        let group = cast.groups[at].clone();
        match act {
            Act::Rename => Change::RenameGroup {
                group,
                name: people::team(&mut self.rng),
            },
            Act::DropGroup => {
                cast.groups.swap_remove(at);
                Change::DeleteGroup { group }
            }
            Act::Role => {
                let role = ROLES.choose(&mut self.rng).map(|role| (*role).to_owned());
                let role = role.filter(|_| self.rng.random_bool(0.7));
                Change::AssignRole { group, role }
            }
            Act::Leave => match self.members(&group, When::Now).choose(&mut self.rng) {
                Some(member) => Change::RemoveMember {
                    group,
                    user: member.clone(),
                },
                None => Change::AddMember { group, user },
            },
            Act::NewGroup => Change::CreateGroup {
                directory: cast.directory.clone(),
                name: None,
                role: None,
            },
            _ => Change::AddMember { group, user },
        }
    }

    fn pick_edit(&mut self, user: String) -> Change {
        let set = match self.rng.random_range(0..4) {
            0 => json!({ "last_name": people::word(&mut self.rng) }),
            1 => json!({ "employee_number": self.rng.random_range(1..100_000) }),
            2 => {
                json!({ "email": format!("{}@moved.example.com", people::word(&mut self.rng).to_lowercase()) })
            }
            _ => json!({ "job_title": people::title(&mut self.rng) }),
        };
        Change::UpdateUser {
            user,
            set: Change::fields(set),
        }
    }
}
