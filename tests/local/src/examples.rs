//! Three questions that an application asks of the tables, each with SQL to copy and its answer.

use anyhow::Context as _;
use sqlx::query::Query;
use sqlx::{PgPool, Row as _};

use crate::screen::Screen;

/// One question.
pub(crate) struct Example {
    question: String,
    /// Every column is text; `$1` and up are `values`.
    sql: &'static str,
    values: Vec<String>,
}

/// A person and a group to ask about.
pub(crate) struct Cast {
    /// The person's id.
    pub user: String,
    email: String,
    organization: String,
    group: String,
    group_name: String,
}

const MAY_SIGN_IN: &str = "\
select u.name, u.active::text, u.role, string_agg(g.name, ', ' order by g.name) as groups
from directory.users u
left join directory.memberships m on m.user_id = u.id
left join directory.groups g on g.id = m.group_id
where u.organization_id = $1
  and lower(u.email) = lower($2)
group by u.id, u.name, u.active, u.role";

const LOST_ACCESS: &str = "\
select to_char(c.occurred_at, 'HH24:MI:SS') as since,
  coalesce(c.after ->> 'state', 'deleted') as now, c.before ->> 'name' as name,
  c.before ->> 'email' as email, d.name as directory
from directory.changes c
left join directory.directories d on d.id = c.directory_id
where c.entity = 'user'
  and (c.before ->> 'active')::boolean
  and not coalesce((c.after ->> 'active')::boolean, false)
order by c.change_id desc
limit 5";

const MEMBERS: &str = "\
select u.name, u.job_title, u.email, u.active::text
from directory.memberships m
join directory.users u on u.id = m.user_id
where m.group_id = $1
order by u.name
limit 5";

impl Cast {
    /// Picks somebody active, who is in three groups if possible, and the largest of those groups.
    pub(crate) async fn choose(pool: &PgPool) -> anyhow::Result<Cast> {
        let row = sqlx::query(
            "select u.id, u.email, u.organization_id, g.id, g.name
            from directory.users u
            join directory.memberships m on m.user_id = u.id
            join directory.groups g on g.id = m.group_id
            where u.active and u.name is not null and u.email is not null and u.organization_id is not null
                and u.role is not null and g.name is not null
            order by
                u.directory_id,
                abs(3 - (select count(*) from directory.memberships mine where mine.user_id = u.id)),
                (select count(*) from directory.memberships theirs where theirs.group_id = g.id) desc,
                u.id
            limit 1",
        );
        let row = row
            .fetch_one(pool)
            .await
            .context("the tables have nobody to use in the example questions")?;
        Ok(Cast {
            user: row.try_get(0)?,
            email: row.try_get(1)?,
            organization: row.try_get(2)?,
            group: row.try_get(3)?,
            group_name: row.try_get(4)?,
        })
    }

    /// The questions.
    pub(crate) fn examples(&self) -> [Example; 3] {
        [
            Example {
                question: "May this person sign in, and what are they part of?".to_owned(),
                sql: MAY_SIGN_IN,
                values: vec![self.organization.clone(), self.email.clone()],
            },
            Example {
                question: "Who has lost access lately?".to_owned(),
                sql: LOST_ACCESS,
                values: Vec::new(),
            },
            Example {
                question: format!("Who is in the group {}?", self.group_name),
                sql: MEMBERS,
                values: vec![self.group.clone()],
            },
        ]
    }
}

impl Example {
    /// Runs the query, and prints question, SQL and answer.
    pub(crate) async fn show(&self, pool: &PgPool, screen: &Screen) -> anyhow::Result<()> {
        let query = self.values.iter().fold(sqlx::query(self.sql), Query::bind);
        let answer = query
            .fetch_all(pool)
            .await
            .with_context(|| self.question.clone())?;
        screen.heading(&self.question);
        for line in self.to_copy().lines() {
            screen.line(&format!("    {line}"));
        }
        screen.line("");
        let Some(first) = answer.first() else {
            screen.line("  (nobody)");
            return Ok(());
        };
        let header: Vec<&str> = first.columns().iter().map(sqlx::Column::name).collect();
        let mut rows = Vec::new();
        for row in &answer {
            let cells = (0..row.len()).map(|column| row.try_get::<Option<String>, _>(column));
            let cells = cells.map(|cell| cell.map(Option::unwrap_or_default));
            rows.push(cells.collect::<Result<Vec<String>, _>>()?);
        }
        screen.table(&header, &rows);
        Ok(())
    }

    /// The SQL with its values filled in, as a person would type it.
    fn to_copy(&self) -> String {
        let mut sql = self.sql.to_owned();
        for (index, value) in self.values.iter().enumerate() {
            sql = sql.replace(
                &format!("${}", index + 1),
                &format!("'{}'", value.replace('\'', "''")),
            );
        }
        sql
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_can_be_pasted() {
        let example = Example {
            question: String::new(),
            sql: "select $1, $2",
            values: vec!["it's".into(), "b".into()],
        };
        assert_eq!(example.to_copy(), "select 'it''s', 'b'");
    }
}
