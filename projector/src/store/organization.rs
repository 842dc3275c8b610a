//! The organization of a directory's contents: the directory's own as soon as that is known, and until then whatever the
//! objects say.
//!
//! It is written with each row. This module updates the rows that were there before their directory was known to belong to
//! an organization, or moved to another one.

use std::collections::HashMap;

use schema::ids::DirectoryId;
use sqlx::PgConnection;

use super::written::DirectoryRow;

/// The current organization of each of these directories. Directories that are not known yet are left out.
pub(super) async fn of<'p>(
    connection: &mut PgConnection,
    directories: impl Iterator<Item = &'p DirectoryId<'p>>,
) -> sqlx::Result<HashMap<String, Option<String>>> {
    let ids: Vec<&str> = directories.map(DirectoryId::as_str).collect();
    if ids.is_empty() {
        return Ok(HashMap::new());
    }
    let rows = sqlx::query!(
        "select id, organization_id from directories where id = any($1::text[])",
        &ids as &[&str],
    )
    .fetch_all(connection)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| (row.id, row.organization_id))
        .collect())
}

/// Writes the new organization into the contents of directories whose organization changed.
pub(super) async fn spread(
    connection: &mut PgConnection,
    before: &HashMap<String, Option<String>>,
    now: &[DirectoryRow],
) -> sqlx::Result<()> {
    let changed: Vec<&str> = now
        .iter()
        .filter(|row| before.get(&row.id).cloned().flatten() != row.organization_id)
        .map(|row| row.id.as_str())
        .collect();
    if changed.is_empty() {
        return Ok(());
    }
    sqlx::query!(
        r#"
        update users as u
        set organization_id = coalesce(d.organization_id, u.own_organization_id)
        from directories as d
        where d.id = any($1::text[]) and u.directory_id = d.id
            and u.organization_id is distinct from coalesce(d.organization_id, u.own_organization_id)
        "#,
        &changed as &[&str],
    )
    .execute(&mut *connection)
    .await?;
    sqlx::query!(
        r#"
        update groups as g
        set organization_id = coalesce(d.organization_id, g.own_organization_id)
        from directories as d
        where d.id = any($1::text[]) and g.directory_id = d.id
            and g.organization_id is distinct from coalesce(d.organization_id, g.own_organization_id)
        "#,
        &changed as &[&str],
    )
    .execute(&mut *connection)
    .await?;
    sqlx::query!(
        r#"
        update memberships as m
        set organization_id = coalesce(d.organization_id, m.own_organization_id)
        from directories as d
        where d.id = any($1::text[]) and m.directory_id = d.id
            and m.organization_id is distinct from coalesce(d.organization_id, m.own_organization_id)
        "#,
        &changed as &[&str],
    )
    .execute(connection)
    .await?;
    Ok(())
}
