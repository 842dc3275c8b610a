//! Blanks the values in history of objects that are forgotten.

use service::postgres::answered;
use sqlx::PgConnection;

/// Changes blanked by one statement: less than a second, so that the limit on a statement's time is far away, and writers
/// hardly notice.
pub(super) const CHANGES: i64 = 5_000;

/// How much of an object's history was blanked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Blanked {
    /// How many changes.
    pub(super) count: u64,
    /// The last of them: it and everything before it is blanked.
    pub(super) last: i64,
}

impl Blanked {
    /// None.
    pub(super) const NONE: Self = Self {
        count: 0,
        last: i64::MIN,
    };
}

/// Blanks the history of the user or group `id`, [`CHANGES`] at a time, for as long as the object is not shown.
pub(super) async fn blank(connection: &mut PgConnection, entity: &str, id: &str) -> sqlx::Result<Blanked> {
    let mut blanked = Blanked::NONE;
    loop {
        let part = sqlx::query!(
            r#"
            with part as materialized (
                select max(p.change_id) as last from (
                    select c.change_id from dsync.changes as c
                    where c.entity = $1 and c.entity_id = $2 and c.change_id > $3
                        and not exists (select from directory.users as u where u.id = $2)
                        and not exists (select from directory.groups as g where g.id = $2)
                    order by c.change_id limit $4
                ) as p
            ), blanked as (
                update dsync.changes as c
                set before = dsync.blank(c.before), after = dsync.blank(c.after)
                where c.entity = $1 and c.entity_id = $2 and c.change_id > $3
                    and c.change_id <= (select last from part)
                returning c.change_id
            )
            select p.last, (select count(*) from blanked) as "count!" from part as p
            "#,
            entity,
            id,
            blanked.last,
            CHANGES,
        )
        .fetch_one(&mut *connection);
        let part = answered(part).await?;
        let Some(last) = part.last else { return Ok(blanked) };
        blanked.count += part.count.unsigned_abs();
        blanked.last = last;
    }
}
