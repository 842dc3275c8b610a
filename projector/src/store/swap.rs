//! Replaces live rows with those built beside, keeps the old ones, and restores them on request.
//!
//! Rows are replaced, not tables. So views, policies, triggers and readers are not affected, and a reader sees either the
//! whole replacement or none of it. Only rows that differ are written, so the transaction is short. History does not
//! record it, because nothing happened in the directories.

use schema::timestamp::Timestamp;
use sqlx::{AssertSqlSafe, PgConnection};
use time::OffsetDateTime;

use super::shadow::{TABLES, Table};
use super::{backlog, lock, progress, seq, taken};
use crate::lane::Lane;
use crate::store::progress::Position;

/// Where both lanes stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stand {
    /// The lane `all`.
    pub all: Position,
    /// The lane `removals`.
    pub removals: Position,
}

/// Waits until nobody writes the projection, and keeps all writers out to the end of the transaction. Returns where the
/// lanes stand; `None` if they have not begun.
pub async fn stop_writers(connection: &mut PgConnection) -> sqlx::Result<Option<Stand>> {
    // A build may otherwise be silent for longer, but here every removal waits for it.
    lock::limit(connection).await?;
    sqlx::raw_sql("set local lock_timeout = '60s'; set local dsync.history = 'off'")
        .execute(&mut *connection)
        .await?;
    lock::erasures(connection).await?;
    // While the rows are still the ones that this history is about.
    backlog::write_all(connection).await?;
    stand(connection).await
}

/// Where the lanes stand; `None` if they have not begun.
pub async fn stand(connection: &mut PgConnection) -> sqlx::Result<Option<Stand>> {
    let all = progress::position(&mut *connection, Lane::All).await?;
    let removals = progress::position(connection, Lane::Removals).await?;
    Ok(all.zip(removals).map(|(all, removals)| Stand { all, removals }))
}

/// Deletes the rows kept from rebuilds before `newest`: only the newest can be undone.
pub async fn forget_earlier(connection: &mut PgConnection, newest: i64) -> sqlx::Result<()> {
    sqlx::query!("delete from dsync.replaced where rebuild_id < $1", newest)
        .execute(connection)
        .await?;
    Ok(())
}

/// Records a rebuild that replaces `rows` rows while the lanes stand at `stand`. Returns its number.
pub async fn begin(connection: &mut PgConnection, stand: Stand, rows: i64) -> sqlx::Result<i64> {
    sqlx::query_scalar!(
        r#"
        insert into dsync.rebuilds (stream_created, seq, removals_seq, rows_replaced)
        values ($1, $2, $3, $4) returning id
        "#,
        OffsetDateTime::from(stand.all.stream_created),
        seq(stand.all.seq),
        seq(stand.removals.seq),
        rows,
    )
    .fetch_one(connection)
    .await
}

/// Replaces the rows of `table` that differ and are not held with those built beside, and keeps the old ones.
pub async fn replace(connection: &mut PgConnection, table: Table, rebuild: i64) -> sqlx::Result<()> {
    let (name, entity) = (table.name, table.entity);
    let columns = table.columns(connection).await?;
    let listed = columns.join(", ");
    let beside: Vec<String> = columns.iter().map(|column| format!("s.{column}")).collect();
    let beside = beside.join(", ");
    let person = match entity {
        "user" => "c.id",
        "membership" => "c.user_id",
        _ => "''",
    };
    let (live, told) = (table.is_of("l"), table.is_of("s"));
    let these = format!("c.entity = '{entity}' and not c.held");
    let keep = format!(
        "insert into dsync.replaced (rebuild_id, entity, id, user_id, image)
         select $1, '{entity}', c.id, {person}, to_jsonb(l) from pg_temp.differing as c
         left join dsync.{name} as l on {live} where {these}"
    );
    sqlx::query(AssertSqlSafe(keep))
        .bind(rebuild)
        .execute(&mut *connection)
        .await?;
    for statement in [
        format!("delete from dsync.{name} as l using pg_temp.differing as c where {live} and {these}"),
        format!(
            "insert into dsync.{name} ({listed}) select {beside} from pg_temp.differing as c
             join pg_temp.{name} as s on {told} where {these} order by c.id, c.user_id"
        ),
    ] {
        sqlx::query(AssertSqlSafe(statement))
            .execute(&mut *connection)
            .await?;
    }
    Ok(())
}

/// A rebuild that can be undone.
#[derive(Debug, Clone, Copy)]
pub struct Rebuild {
    /// Its number.
    pub id: i64,
    /// When it replaced rows.
    pub done_at: OffsetDateTime,
    /// How many of the old rows are still kept.
    pub kept: i64,
    /// How many rows it replaced.
    pub rows: i64,
}

/// The newest rebuild, if it was not undone. Locks it.
pub async fn newest(connection: &mut PgConnection) -> sqlx::Result<Option<Rebuild>> {
    sqlx::query_as!(
        Rebuild,
        r#"
        select b.id, b.done_at, b.rows_replaced as rows,
            (select count(*) from dsync.replaced as r where r.rebuild_id = b.id) as "kept!"
        from dsync.rebuilds as b
        where b.undone_at is null and b.id = (select max(id) from dsync.rebuilds)
        for update
        "#,
    )
    .fetch_optional(connection)
    .await
}

/// A lane that an undo sent back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SentBack {
    /// Which lane.
    pub lane: Lane,
    /// Where it stands.
    pub seq: u64,
    /// Where it stood before the undo.
    pub stood_at: u64,
}

/// The lanes that an undo sent back and that do not stand where they stood before. Until they do, the tables know more than
/// the log says up to the lanes' positions.
pub async fn sent_back(connection: &mut PgConnection) -> sqlx::Result<Vec<SentBack>> {
    let mut found = Vec::new();
    for lane in Lane::EVERY {
        let row = sqlx::query!(
            r#"
            select p.seq, max(case p.lane when 'all' then b.undone_seq else b.undone_removals_seq end) as "stood_at!"
            from dsync.progress as p
            join dsync.rebuilds as b on b.undone_stream = p.stream_created
            where p.lane = $1
            group by p.seq
            having max(case p.lane when 'all' then b.undone_seq else b.undone_removals_seq end) > p.seq
            "#,
            lane.as_str(),
        )
        .fetch_optional(&mut *connection)
        .await?;
        found.extend(row.map(|row| SentBack {
            lane,
            seq: row.seq.unsigned_abs(),
            stood_at: row.stood_at.unsigned_abs(),
        }));
    }
    Ok(found)
}

/// Restores what `rebuild` replaced, and moves the lanes back to where they stood then, so that what was applied since is
/// applied again to the restored rows.
///
/// What an erased person's records said of groups cannot be applied again, so it stays.
pub async fn undo(connection: &mut PgConnection, rebuild: i64) -> sqlx::Result<()> {
    let known = "select jsonb_agg(l)::text from dsync.groups as l join dsync.replaced as c on c.id = l.id
         where c.rebuild_id = $1 and c.entity = 'group' and l.id in (select group_id from dsync.said_of_groups)";
    let known: Option<String> = sqlx::query_scalar(known)
        .bind(rebuild)
        .fetch_one(&mut *connection)
        .await?;
    for table in TABLES {
        let (name, entity) = (table.name, table.entity);
        let columns = table.columns(connection).await?;
        let images: Vec<String> = columns.iter().map(|column| format!("i.{column}")).collect();
        let (listed, images) = (columns.join(", "), images.join(", "));
        for statement in [
            format!(
                "delete from dsync.{name} as l using dsync.replaced as c
                 where c.rebuild_id = $1 and c.entity = '{entity}' and {}",
                table.is_of("l"),
            ),
            format!(
                "insert into dsync.{name} ({listed}) select {images} from dsync.replaced as c
                 cross join lateral jsonb_populate_record(null::dsync.{name}, c.image) as i
                 where c.rebuild_id = $1 and c.entity = '{entity}' and c.image is not null
                     and c.user_id not in (select user_id from dsync.erased)
                 order by c.id, c.user_id"
            ),
        ] {
            sqlx::query(AssertSqlSafe(statement))
                .bind(rebuild)
                .execute(&mut *connection)
                .await?;
        }
    }
    if let Some(known) = known {
        taken::keep(connection, &known).await?;
    }
    sqlx::query!(
        r#"
        update dsync.rebuilds as b
        set undone_at = now(), undone_stream = a.stream_created, undone_seq = a.seq, undone_removals_seq = r.seq
        from dsync.progress as a, dsync.progress as r
        where b.id = $1 and a.lane = 'all' and r.lane = 'removals'
        "#,
        rebuild,
    )
    .execute(&mut *connection)
    .await?;
    sqlx::query!(
        r#"
        update dsync.progress as p
        set seq_appended_at = null,
            seq = case
                when p.stream_created <> b.stream_created then 0
                -- The log was set back since, and gave some of the same sequences to other messages.
                when exists (select from dsync.rewinds as r where r.noticed_at >= b.done_at) then 0
                when p.lane = 'all' then least(p.seq, b.seq)
                else least(p.seq, b.removals_seq)
            end
        from dsync.rebuilds as b where b.id = $1
        "#,
        rebuild,
    )
    .execute(&mut *connection)
    .await?;
    sqlx::query!("delete from dsync.replaced where rebuild_id = $1", rebuild)
        .execute(connection)
        .await?;
    Ok(())
}

/// Asks the reconciler to list every directory completely. Returns the time of the request.
pub async fn ask_for_lists(connection: &mut PgConnection) -> sqlx::Result<Timestamp> {
    let asked = sqlx::query_scalar!(
        r#"
        with asked as (
            update dsync.sweeps set relist_at = now(), retry_at = null returning relist_at
        )
        select now() as "asked!" from (select count(*) from asked) as all_of_them
        "#,
    )
    .fetch_one(connection)
    .await?;
    Ok(asked.into())
}

/// How many directories were listed completely since `asked`, and how many were to be. A directory connected since then is
/// not among them: the log has it from its first day. One whose own deletion is held back cannot be listed, and counts as
/// done.
pub async fn listed(connection: &mut PgConnection, asked: Timestamp) -> sqlx::Result<(u64, u64)> {
    let row = sqlx::query!(
        r#"
        select
            count(*) filter (
                where s.relisted_at >= $1 or exists (
                    select from dsync.held_deletions as h
                    where h.directory_id = s.directory_id and h.entity = 'directory'
                )
            ) as "listed!",
            count(*) as "all!"
        from dsync.sweeps as s
        where s.relist_at >= $1
        "#,
        OffsetDateTime::from(asked),
    )
    .fetch_one(connection)
    .await?;
    Ok((row.listed.unsigned_abs(), row.all.unsigned_abs()))
}

/// The directories that were to be listed since `asked` and were not.
pub async fn unlisted(connection: &mut PgConnection, asked: Timestamp) -> sqlx::Result<Vec<String>> {
    sqlx::query_scalar!(
        "select directory_id from dsync.sweeps
         where relist_at >= $1 and (relisted_at is null or relisted_at < $1) order by directory_id",
        OffsetDateTime::from(asked),
    )
    .fetch_all(connection)
    .await
}
