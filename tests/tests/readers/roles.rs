//! Roles: the same as a second, independent computation from rules and memberships, and changed as the preview showed.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::ensure;
use projector::roles::apply;
use projector::roles_file::{AttributeRule, DefaultRule, GroupRule, Rules, Scalar};
use rand::prelude::*;
use serde_json::{Value, json};
use sqlx::PgPool;
use tests::{Postgres, agrees};
use workos_sim::{DirectoryOptions, Options, Seed, Sim, Truth};

use super::{events, rows, write};

/// Source, group and priority, by user and role.
pub(super) type Granted = BTreeMap<(String, String), (String, Option<String>, i64)>;

const ROLES: [&str; 5] = ["admin", "editor", "viewer", "finance", "guest"];

fn scoped(organization: Option<&String>, directory: Option<&String>, of: (&Option<String>, &String)) -> bool {
    organization.is_none_or(|id| of.0.as_ref() == Some(id)) && directory.is_none_or(|id| of.1 == id)
}

fn attribute_matches(custom: Option<&Value>, rule: &AttributeRule) -> bool {
    let mut at = custom;
    for key in &rule.path {
        at = at.and_then(|value| value.get(key));
    }
    let wanted = match &rule.value {
        Scalar::Bool(value) => json!(value),
        Scalar::Integer(value) => json!(value),
        Scalar::Text(value) => json!(value),
    };
    at.is_some_and(|value| *value == wanted || value.as_array().is_some_and(|items| items.contains(&wanted)))
}

/// Who has which role, computed person by person from the documentation, without SQL.
fn computed(truth: &Truth, rules: &Rules) -> Granted {
    let mut granted = Granted::new();
    for directory in truth.directories.values() {
        for user in directory.users.values().filter(|user| user.active) {
            let home = (&user.organization_id, &user.directory_id);
            let general = |role: &str| i64::from(rules.priorities.get(role).copied().unwrap_or(0));
            // In order of precedence: the first source that gives a role counts, and within a source the strongest
            // rule.
            let mut candidates: Vec<(u8, String, Option<String>, i64)> = Vec::new();
            let own = user.roles.iter().flatten().chain(&user.role);
            candidates.extend(own.map(|role| (1, role.clone(), None, general(role))));
            for (group_id, _) in directory
                .memberships
                .iter()
                .filter(|(_, member)| *member == user.id)
            {
                let group = &directory.groups[group_id];
                for rule in &rules.groups {
                    let named = rule.id.as_ref() == Some(&group.id)
                        || (rule.name.is_some() && rule.name == group.name)
                        || (rule.idp_id.is_some() && rule.idp_id == group.idp_id);
                    if named && scoped(rule.organization.as_ref(), rule.directory.as_ref(), home) {
                        let priority = rule.priority.map_or_else(|| general(&rule.role), i64::from);
                        candidates.push((2, rule.role.clone(), Some(group_id.clone()), priority));
                    }
                }
            }
            for rule in &rules.attributes {
                if attribute_matches(user.custom_attributes.as_ref(), rule)
                    && scoped(rule.organization.as_ref(), rule.directory.as_ref(), home)
                {
                    let priority = rule.priority.map_or_else(|| general(&rule.role), i64::from);
                    candidates.push((3, rule.role.clone(), None, priority));
                }
            }
            if candidates.is_empty() {
                let nearest = rules
                    .defaults
                    .iter()
                    .filter(|rule| scoped(rule.organization.as_ref(), rule.directory.as_ref(), home))
                    .max_by_key(|rule| (rule.directory.is_some(), rule.organization.is_some()));
                if let Some(rule) = nearest {
                    let priority = rule.priority.map_or_else(|| general(&rule.role), i64::from);
                    candidates.push((4, rule.role.clone(), None, priority));
                }
            }
            candidates.sort_by(|a, b| (a.0, -a.3, &a.2).cmp(&(b.0, -b.3, &b.2)));
            for (rank, role, group, priority) in candidates {
                let source = ["workos", "group", "attribute", "default"][usize::from(rank) - 1].to_owned();
                granted
                    .entry((user.id.clone(), role))
                    .or_insert((source, group, priority));
            }
        }
    }
    granted
}

pub(super) async fn shown(pool: &PgPool) -> anyhow::Result<Granted> {
    let mut granted = Granted::new();
    for row in rows(pool, "select * from directory.user_roles").await? {
        let word = |name: &str| row[name].as_str().map(str::to_owned);
        let key = (word("user_id").unwrap(), word("role").unwrap());
        let value = (
            word("source").unwrap(),
            word("group_id"),
            row["priority"].as_i64().unwrap(),
        );
        ensure!(granted.insert(key, value).is_none(), "two rows: {row}");
    }
    Ok(granted)
}

fn primary(granted: &Granted) -> BTreeMap<String, String> {
    let mut best: BTreeMap<String, (i64, usize, String)> = BTreeMap::new();
    for ((user, role), (source, _, priority)) in granted {
        let rank = ["workos", "group", "attribute", "default"]
            .iter()
            .position(|s| s == source)
            .unwrap();
        let this = (-priority, rank, role.clone());
        let place = best.entry(user.clone()).or_insert_with(|| this.clone());
        if this < *place {
            *place = this;
        }
    }
    best.into_iter()
        .map(|(user, (_, _, role))| (user, role))
        .collect()
}

fn random_rules(rng: &mut StdRng, truth: &Truth) -> Rules {
    let directories: Vec<_> = truth.directories.values().collect();
    let groups: Vec<_> = directories
        .iter()
        .flat_map(|directory| directory.groups.values())
        .collect();
    let users: Vec<_> = directories
        .iter()
        .flat_map(|directory| directory.users.values())
        .collect();
    let scope = |rng: &mut StdRng| {
        let directory = directories.choose(rng).unwrap();
        match rng.random_range(0..4) {
            0 => (directory.directory.organization_id.clone(), None),
            1 => (None, Some(directory.directory.id.clone())),
            _ => (None, None),
        }
    };
    let role = |rng: &mut StdRng| (*ROLES.choose(rng).unwrap()).to_owned();
    let priority = |rng: &mut StdRng| rng.random_bool(0.3).then(|| rng.random_range(-5..50));
    let mut rules = Rules::default();
    for role in ROLES {
        if rng.random_bool(0.5) {
            rules
                .priorities
                .insert(role.to_owned(), rng.random_range(0..5) * 10);
        }
    }
    for _ in 0..rng.random_range(0..8) {
        let group = groups.choose(rng).unwrap();
        let (organization, directory) = scope(rng);
        let mut rule = GroupRule {
            role: role(rng),
            id: None,
            name: None,
            idp_id: None,
            priority: priority(rng),
            organization,
            directory,
        };
        match rng.random_range(0..3) {
            0 => rule.id = Some(group.id.clone()),
            1 => rule.name.clone_from(&group.name),
            _ => rule.idp_id.clone_from(&group.idp_id),
        }
        let names_one = rule.id.is_some() || rule.name.is_some() || rule.idp_id.is_some();
        if names_one && !rules.groups.contains(&rule) {
            rules.groups.push(rule);
        }
    }
    for _ in 0..rng.random_range(0..4) {
        let custom = users.choose(rng).unwrap().custom_attributes.as_ref();
        let Some((key, value)) = custom
            .and_then(Value::as_object)
            .and_then(|all| all.iter().choose(rng))
        else {
            continue;
        };
        let value = match value {
            Value::String(text) => Scalar::Text(text.clone()),
            Value::Number(number) if number.is_i64() => Scalar::Integer(number.as_i64().unwrap()),
            Value::Bool(value) => Scalar::Bool(*value),
            _ => continue,
        };
        let (organization, directory) = scope(rng);
        let rule = AttributeRule {
            role: role(rng),
            path: vec![key.clone()],
            value,
            priority: priority(rng),
            organization,
            directory,
        };
        if !rules.attributes.contains(&rule) {
            rules.attributes.push(rule);
        }
    }
    for _ in 0..rng.random_range(0..3) {
        let (organization, directory) = scope(rng);
        let same = |other: &DefaultRule| other.organization == organization && other.directory == directory;
        if !rules.defaults.iter().any(same) {
            rules.defaults.push(DefaultRule {
                role: role(rng),
                priority: priority(rng),
                organization,
                directory,
            });
        }
    }
    // Only what a file can express.
    Rules::parse(&rules.to_toml().unwrap()).unwrap()
}

fn keys(granted: &Granted) -> BTreeSet<(String, String)> {
    granted.keys().cloned().collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn roles_are_what_the_rules_say_and_change_as_the_preview_said() -> anyhow::Result<()> {
    let postgres = Postgres::migrated().await?;
    let pool = postgres.pool().await?;
    let sim = Sim::start(Options::default()).await?;
    for options in [
        DirectoryOptions::default(),
        DirectoryOptions::newer(),
        DirectoryOptions::awkward(),
    ] {
        let directory = sim.create_directory(options)?;
        let seed = Seed {
            users: 20,
            groups: 6,
            ..Seed::default()
        };
        sim.seed(&directory, &seed)?;
    }
    let mut rng = StdRng::seed_from_u64(6);
    let (mut told, mut rules, mut moved) = (0, Rules::default(), 0);
    for round in 0..30 {
        sim.burst(25)?;
        let new = events(&sim, told);
        told += new.len();
        write(&pool, &new).await?;
        let truth = sim.truth();
        agrees(&pool, &truth).await?;
        let before = computed(&truth, &rules);
        ensure!(
            shown(&pool).await? == before,
            "round {round}: roles differ with the previous rules"
        );

        let applied_before = std::mem::replace(&mut rules, random_rules(&mut rng, &truth));
        let after = computed(&truth, &rules);
        let plan = apply(&pool, &rules, false).await?;
        ensure!(
            shown(&pool).await? == before,
            "round {round}: a preview changed something"
        );
        let named: BTreeSet<_> = plan
            .differences
            .iter()
            .map(|d| ((d.user_id.clone(), d.role.clone()), d.gained))
            .collect();
        let gained = keys(&after)
            .difference(&keys(&before))
            .cloned()
            .map(|key| (key, true))
            .collect::<Vec<_>>();
        let lost = keys(&before)
            .difference(&keys(&after))
            .cloned()
            .map(|key| (key, false))
            .collect::<Vec<_>>();
        moved += gained.len().min(lost.len());
        let expected: BTreeSet<_> = gained.into_iter().chain(lost).collect();
        ensure!(
            named == expected,
            "round {round}: the preview has {:?} in excess and lacks {:?}; before {applied_before:?}, now {rules:?}",
            named.difference(&expected).collect::<Vec<_>>(),
            expected.difference(&named).collect::<Vec<_>>()
        );

        let applied = apply(&pool, &rules, true).await?;
        ensure!(applied.differences == plan.differences && applied.applied == plan.changed);
        ensure!(
            shown(&pool).await? == after,
            "round {round}: roles differ with {rules:?}"
        );
        let strongest = rows(&pool, "select user_id, role from directory.user_primary_role").await?;
        let strongest: BTreeMap<_, _> = strongest
            .iter()
            .map(|row| {
                (
                    row["user_id"].as_str().unwrap().to_owned(),
                    row["role"].as_str().unwrap().to_owned(),
                )
            })
            .collect();
        ensure!(
            strongest == primary(&after),
            "round {round}: another role is the strongest"
        );
        let again = apply(&pool, &rules, true).await?;
        ensure!(
            !again.changed && again.version == applied.version,
            "applying the same rules again changed something"
        );
    }
    ensure!(moved > 20, "the rules change too little to prove anything");
    Ok(())
}
