//! What is shown once everything is in the tables: row counts, where things listen, and what to try next.

use std::path::Path;

use indicatif::HumanCount;
use sqlx::{PgPool, Row as _};

use crate::examples::Cast;
use crate::programs::Programs;
use crate::screen::Screen;
use crate::servers::{STREAM, Servers};

/// A number with thousands separators.
pub(crate) fn count(number: impl TryInto<u64>) -> String {
    HumanCount(number.try_into().unwrap_or(u64::MAX)).to_string()
}

/// The number of rows in all tables.
pub(crate) struct Totals {
    /// Rows of `directory.directories`.
    pub directories: i64,
    /// Rows of `directory.users`.
    pub users: i64,
    /// Rows of `directory.groups`.
    pub groups: i64,
    /// Rows of `directory.memberships`.
    pub memberships: i64,
}

impl Totals {
    /// Counts the rows.
    pub(crate) async fn read(pool: &PgPool) -> anyhow::Result<Totals> {
        let row = sqlx::query(
            "select
                (select count(*) from directory.directories),
                (select count(*) from directory.users),
                (select count(*) from directory.groups),
                (select count(*) from directory.memberships)",
        );
        let row = row.fetch_one(pool).await?;
        Ok(Totals {
            directories: row.try_get(0)?,
            users: row.try_get(1)?,
            groups: row.try_get(2)?,
            memberships: row.try_get(3)?,
        })
    }

    /// The counts in words.
    pub(crate) fn words(&self) -> String {
        format!(
            "{} directories, {} users, {} groups, {} memberships",
            count(self.directories),
            count(self.users),
            count(self.groups),
            count(self.memberships)
        )
    }
}

/// The counts per directory.
pub(crate) async fn tables(pool: &PgPool, screen: &Screen) -> anyhow::Result<()> {
    let found = sqlx::query(
        "select
            d.name, d.type, d.state, u.active, u.inactive,
            (select count(*) from directory.groups g where g.directory_id = d.id),
            (select count(*) from directory.memberships m where m.directory_id = d.id)
        from directory.directories d
        cross join lateral (
            select count(*) filter (where active) as active, count(*) filter (where not active) as inactive
            from directory.users where directory_id = d.id
        ) u
        order by d.id",
    );
    let mut rows = Vec::new();
    let mut totals = [0; 4];
    for row in found.fetch_all(pool).await? {
        let mut cells = Vec::new();
        for column in 0..3 {
            cells.push(row.try_get::<Option<String>, _>(column)?.unwrap_or_default());
        }
        for (index, total) in totals.iter_mut().enumerate() {
            let number: i64 = row.try_get(3 + index)?;
            *total += number;
            cells.push(count(number));
        }
        rows.push(cells);
    }
    let words = ["all", "", ""].map(str::to_owned);
    rows.push(words.into_iter().chain(totals.map(count)).collect());
    screen.heading("What is in the tables");
    screen.table(
        &[
            "directory",
            "type",
            "state",
            "active users",
            "not active",
            "groups",
            "memberships",
        ],
        &rows,
    );
    Ok(())
}

/// Prints where everything listens, beginning with `first`.
pub(crate) fn places(
    screen: &Screen,
    servers: &Servers,
    programs: &mut Programs,
    first: Vec<(String, String)>,
    logs: &Path,
) {
    let mut places = first;
    for service in programs.every() {
        let url = service.admin_url();
        let place = format!("{url}/metrics  /readyz  /livez   (pid {})", service.pid());
        places.push((service.name().to_owned(), place));
    }
    places.push(("Postgres".to_owned(), psql(servers)));
    places.push((
        "NATS".to_owned(),
        format!("{}   (stream {STREAM})", servers.nats.url()),
    ));
    places.push(("the programs' logs".to_owned(), logs.display().to_string()));
    let width = places.iter().map(|(name, _)| name.chars().count()).max();
    let width = width.unwrap_or_default();
    for (name, place) in places {
        screen.line(&format!("  {name:<width$}   {place}"));
    }
}

/// The command that opens a session in the database.
pub(crate) fn psql(servers: &Servers) -> String {
    format!("psql {}", servers.postgres.url())
}

/// Prints things to try while everything runs. `holder` is the process id of the active projector.
pub(crate) fn suggestions(screen: &Screen, servers: &Servers, api: &str, cast: &Cast, holder: Option<&str>) {
    let user = &cast.user;
    let change = |body: &str| {
        vec![
            format!("curl -s -o /dev/null {api}/_sim/changes -H content-type:application/json \\"),
            format!("  -d '{body}'"),
        ]
    };
    let mut suspend = change(&format!(r#"{{"change":"suspend_user","user":"{user}"}}"#));
    suspend.push(format!("{} \\", psql(servers)));
    suspend.push("  -c \"select name, state, active from directory.users".to_owned());
    suspend.push(format!("      where id = '{user}'\""));
    let meaning = format!(r"{} -c '\d+ directory.users'", psql(servers));
    let inner = format!(r#"{{"change":"delete_user","user":"{user}"}}"#);
    let silently = change(&format!(
        "{{\"change\":\"silently\",\n        \"inner\":{inner}}}"
    ));
    let mut ideas = vec![
        (
            "suspend the person from the first question, then query their row",
            suspend,
        ),
        ("make a burst of random changes", change(r#"{"burst":500}"#)),
        ("read what every column of a view means", vec![meaning]),
        (
            "delete that person without an event: the next sweep finds out",
            silently,
        ),
    ];
    if let Some(pid) = holder {
        ideas.push((
            "kill the active projector: the standby takes over within seconds",
            vec![format!("kill -9 {pid}")],
        ));
    }
    screen.heading("Try next, from another terminal");
    for (idea, commands) in ideas {
        screen.line(&format!("  {idea}"));
        for command in commands {
            screen.line(&format!("    {command}"));
        }
    }
}

/// The process id of the active projector.
pub(crate) async fn holder(pool: &PgPool) -> anyhow::Result<Option<String>> {
    let holder: Option<String> =
        sqlx::query_scalar("select holder from dsync.progress where lane = 'all' and held_until > now()")
            .fetch_optional(pool)
            .await?
            .flatten();
    Ok(holder.and_then(|holder| Some(holder.split_once('-')?.0.to_owned())))
}
