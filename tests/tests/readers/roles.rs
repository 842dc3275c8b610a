//! Roles: the same as a second, independent computation from rules and memberships, and changed as the preview showed.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, ensure};
use projector::roles::apply;
use projector::roles_file::{AttributeRule, DefaultRule, GroupRule, Rules, Scalar};
use rand::prelude::*;
use serde_json::{Value, json};
use sqlx::PgPool;
use tests::{Postgres, Program, agrees};
use workos_sim::{DirectoryOptions, Options, Seed, Sim, Truth};

use super::{events, rows, tell, text, write};

/// Source, group and priority, by user and role.
type Granted = BTreeMap<(String, String), (String, Option<String>, i64)>;

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

async fn shown(pool: &PgPool) -> anyhow::Result<Granted> {
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

fn moment(second: u32) -> String {
    format!("2026-01-01T00:00:{second:02}.000Z")
}

fn person(second: u32, more: &Value) -> Value {
    let mut user = json!({
        "id": "u1", "directory_id": "d1", "organization_id": "org_1", "state": "active", "email": "Ann@Example.com",
        "idp_id": "idp-1", "custom_attributes": {"department": "Eng"}, "role": {"slug": "member"}, "updated_at": moment(second)
    });
    user.as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    user
}

fn event(id: &str, kind: &str, second: u32, data: Value) -> Value {
    json!({"id": id, "event": kind, "created_at": moment(second), "data": data})
}

fn joined(id: &str, second: u32) -> Value {
    let group = json!({"id": "g1", "directory_id": "d1", "organization_id": "org_1", "name": "Staff", "updated_at": moment(1)});
    event(
        id,
        "dsync.group.user_added",
        second,
        json!({"directory_id": "d1", "user": person(1, &json!({})), "group": group}),
    )
}

/// Also if two defaults give the same role. When the less specific one had the greater priority, nobody used to get the
/// role.
#[tokio::test]
async fn the_nearest_default_counts_whatever_its_priority() -> anyhow::Result<()> {
    let postgres = Postgres::migrated().await?;
    let pool = postgres.pool().await?;
    let data = person(1, &json!({"role": null}));
    tell(&pool, event("e1", "dsync.user.created", 1, data)).await?;
    let rules = Rules::parse(
        "[[default]]\nrole = 'guest'\npriority = 9\n[[default]]\nrole = 'guest'\norganization = 'org_1'
         [[default]]\nrole = 'visitor'\npriority = 10\norganization = 'org_2'",
    )?;
    apply(&pool, &rules, true).await?;
    let found = rows(&pool, "select role, source, priority from directory.user_roles").await?;
    ensure!(
        found == [json!({"role": "guest", "source": "default", "priority": 0})],
        "{found:?}"
    );
    Ok(())
}

const FILE: &str = "
    [priorities]
    admin = 10
    [[group]]
    role = 'admin'
    name = 'Staff'
    [[group]]
    role = 'auditor'
    name = 'Nobody knows'
    [[attribute]]
    role = 'engineer'
    path = ['department']
    value = 'Eng'
    [[default]]
    role = 'guest'
";

async fn why(pool: &PgPool) -> anyhow::Result<BTreeMap<String, String>> {
    let found = rows(
        pool,
        "select role, concat_ws(' ', source, group_name, because, event_id) as why from directory.explain('u1')",
    )
    .await?;
    Ok(found
        .iter()
        .map(|row| {
            (
                row["role"].as_str().unwrap().to_owned(),
                row["why"].as_str().unwrap().to_owned(),
            )
        })
        .collect())
}

#[tokio::test]
async fn a_role_is_explained_and_a_login_answered() -> anyhow::Result<()> {
    let postgres = Postgres::migrated().await?;
    let pool = postgres.pool().await?;
    let rules = Rules::parse(FILE)?;
    apply(&pool, &rules, true).await?;
    tell(&pool, event("e1", "dsync.user.created", 1, person(1, &json!({})))).await?;
    tell(&pool, joined("e2", 2)).await?;
    let all = why(&pool).await?;
    ensure!(
        all["admin"] == "group Staff the user joined the group e2",
        "{all:?}"
    );
    ensure!(
        all["engineer"] == "attribute the user became active e1"
            || all["engineer"] == "attribute the attribute took the value e1",
        "{all:?}"
    );
    ensure!(all["member"].ends_with(" e1") && all.len() == 3, "{all:?}");
    tell(
        &pool,
        event(
            "e3",
            "dsync.user.updated",
            3,
            person(3, &json!({"state": "suspended"})),
        ),
    )
    .await?;
    ensure!(why(&pool).await?.is_empty());
    tell(&pool, event("e4", "dsync.user.updated", 4, person(4, &json!({})))).await?;
    ensure!(why(&pool).await?["admin"] == "group Staff the user became active e4");
    let mut more = rules.clone();
    more.groups.push(GroupRule {
        role: "late".to_owned(),
        ..rules.groups[0].clone()
    });
    apply(&pool, &more, true).await?;
    let all = why(&pool).await?;
    ensure!(
        all["late"] == "group Staff the rule was added" && all["admin"].ends_with("e4"),
        "{all:?}"
    );

    let asked =
        |organization: &str, who: &str| format!("select * from directory.login('{organization}', '{who}')");
    for who in ["ann@example.com", "ANN@EXAMPLE.COM", "idp-1"] {
        let answer = rows(&pool, asked("org_1", who)).await?.remove(0);
        let expected = json!({
            "provisioned": true, "active": true, "user_id": "u1", "directory_id": "d1", "directory_state": null,
            "role": "admin", "roles": ["admin", "member", "late", "engineer"], "group_ids": ["g1"],
            "group_names": ["Staff"], "matches": 1
        });
        ensure!(answer == expected, "{answer}");
    }
    let nobody = rows(&pool, asked("org_2", "ann@example.com")).await?.remove(0);
    ensure!(
        nobody["provisioned"] == false && nobody["active"] == false && nobody["roles"] == json!([]),
        "{nobody}"
    );
    tell(
        &pool,
        event(
            "e5",
            "dsync.user.updated",
            5,
            person(5, &json!({"state": "inactive"})),
        ),
    )
    .await?;
    let out = rows(&pool, asked("org_1", "idp-1")).await?.remove(0);
    ensure!(
        out["provisioned"] == true && out["active"] == false && out["roles"] == json!([]),
        "{out}"
    );
    // A returning person, with another id and the same address.
    tell(
        &pool,
        event("e6", "dsync.user.created", 6, person(6, &json!({"id": "u0"}))),
    )
    .await?;
    let back = rows(&pool, asked("org_1", "ann@example.com")).await?.remove(0);
    ensure!(
        back["user_id"] == "u0" && back["active"] == true && back["matches"] == 2,
        "{back}"
    );
    ensure!(back["roles"] == json!(["member", "engineer"]), "{back}");
    Ok(())
}

/// One person's id at the identity provider is another person's email address. Whoever signs in with the address is
/// never taken for the person with the id.
#[tokio::test]
async fn whose_address_it_is_signs_in_whatever_ids_others_have() -> anyhow::Result<()> {
    let postgres = Postgres::migrated().await?;
    let pool = postgres.pool().await?;
    let jane = json!({"id": "jane", "email": "JSmith@example.com", "idp_id": "100", "created_at": "2020-01-01T00:00:00Z"});
    let john = json!({"id": "john", "email": "john@example.com", "idp_id": "jsmith@example.com"});
    let nobody = json!({"id": "nobody", "email": "", "idp_id": ""});
    for (event_id, who) in [("e1", &jane), ("e2", &john), ("e3", &nobody)] {
        tell(&pool, event(event_id, "dsync.user.created", 1, person(1, who))).await?;
    }
    let found = async |who: &str| {
        let sql = format!("select user_id, active, matches from directory.login('org_1', '{who}')");
        anyhow::Ok(rows(&pool, sql).await?.remove(0))
    };
    let jane_signs_in = found("jsmith@example.com").await?;
    ensure!(
        jane_signs_in == json!({"user_id": "jane", "active": true, "matches": 1}),
        "{jane_signs_in}"
    );
    ensure!(found("100").await?["user_id"] == "jane");
    ensure!(found("john@example.com").await?["user_id"] == "john");
    // An empty address matches nobody, even though somebody's address is empty.
    ensure!(found("").await? == json!({"user_id": null, "active": false, "matches": 0}));
    // Once Jane is deactivated, she is not let in as John.
    let mut left = jane.clone();
    left["state"] = json!("inactive");
    tell(&pool, event("e4", "dsync.user.updated", 4, person(4, &left))).await?;
    let jane_left = found("jsmith@example.com").await?;
    ensure!(
        jane_left == json!({"user_id": "jane", "active": false, "matches": 1}),
        "{jane_left}"
    );
    // It is nobody's address any more, so it is an id like any other.
    tell(&pool, event("e5", "dsync.user.deleted", 5, person(5, &jane))).await?;
    ensure!(found("jsmith@example.com").await?["user_id"] == "john");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_shows_before_it_applies() -> anyhow::Result<()> {
    let postgres = Postgres::migrated().await?;
    let pool = postgres.pool().await?;
    tell(
        &pool,
        event("e1", "dsync.user.created", 1, person(1, &json!({"role": null}))),
    )
    .await?;
    let dir = tempfile::tempdir()?;
    let file = |name: &str, content: &str| -> anyhow::Result<String> {
        let path = dir.path().join(name);
        std::fs::write(&path, content)?;
        Ok(path.display().to_string())
    };
    let piped = async |args: &[&str], input: &str| {
        let program = args.iter().fold(
            Program::new("dsync-projector")
                .env("DATABASE_URL", postgres.url())
                .arg("roles"),
            |program, arg| program.arg(*arg),
        );
        program.run_with_input(input.as_bytes().to_vec()).await
    };
    let run = async |args: &[&str]| piped(args, "").await;
    let path = file("roles.toml", FILE)?;
    let shown = run(&["apply", &path]).await?;
    ensure!(shown.status.code() == Some(1), "{shown:?}");
    for line in [
        "+ engineer",
        "u1",
        "1 roles gained, 0 lost",
        "not applied",
        "\"Nobody knows\"",
    ] {
        ensure!(shown.stdout.contains(line), "{line} is not in {}", shown.stdout);
    }
    ensure!(shown_roles(&pool).await?.is_empty(), "applied without --yes");
    let same = piped(&["apply", "-"], FILE).await?;
    ensure!(
        same.status.code() == Some(1) && same.stdout == shown.stdout,
        "{same:?}"
    );
    let applied = run(&["apply", &path, "--yes"]).await?;
    ensure!(
        applied.status.success() && applied.stdout.contains("applied as version 1"),
        "{applied:?}"
    );
    ensure!(shown_roles(&pool).await? == ["engineer"]);
    let again = run(&["apply", &path, "--yes"]).await?;
    ensure!(
        again.status.success() && again.stdout.contains("already"),
        "{again:?}"
    );
    let printed = run(&["show"]).await?;
    let copy = file("copy.toml", &printed.stdout)?;
    let same = run(&["apply", &copy, "--yes", "--json"]).await?;
    let same: Value = serde_json::from_str(&same.stdout).context("JSON")?;
    ensure!(same["changed"] == false && same["version"] == 1, "{same}");
    let empty = piped(&["apply", "-", "--yes"], "").await?;
    ensure!(
        empty.status.code() == Some(1) && empty.stderr.contains("nothing came on standard input"),
        "{empty:?}"
    );
    let wrong = piped(&["apply", "-"], "x = ").await?;
    ensure!(
        wrong.status.code() == Some(1) && wrong.stderr.matches("TOML parse error").count() == 1,
        "{wrong:?}"
    );
    let wrong = run(&["apply", &file("wrong.toml", "[[group]]\nrole = 'a'")?]).await?;
    ensure!(
        wrong.status.code() == Some(1) && wrong.stderr.contains("group rule 1"),
        "{wrong:?}"
    );
    ensure!(
        text(&pool, "select count(*) from dsync.role_versions")
            .await?
            .as_deref()
            == Some("2")
    );
    Ok(())
}

async fn shown_roles(pool: &PgPool) -> anyhow::Result<Vec<String>> {
    Ok(shown(pool).await?.into_keys().map(|(_, role)| role).collect())
}
