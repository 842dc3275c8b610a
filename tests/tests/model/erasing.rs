//! An erasure and a batch that was read before it.

use anyhow::ensure;
use projector::store;
use tests::Postgres;

use crate::{pictured, records, somebody_waits, texts};

/// What a batch knows of someone is old news if it had to wait for that person's erasure.
#[tokio::test]
async fn who_is_erased_while_a_batch_waits_is_left_out_of_it() -> anyhow::Result<()> {
    let postgres = Postgres::migrated().await?;
    let pool = postgres.pool().await?;
    let records = records(7);
    let texts = texts(&records);
    let picture = pictured(&texts, &records);
    let (of_users, of_memberships) = (picture.users.keys(), picture.memberships.keys());
    let mut known = of_users.chain(of_memberships.map(|(_, user)| user));
    let person = known.next().map(ToString::to_string).unwrap();

    let mut erasure = pool.begin().await?;
    sqlx::query("select pg_advisory_xact_lock(hashtext('dsync erasures'), 0)")
        .execute(&mut *erasure)
        .await?;
    let mut batch = pool.begin().await?;
    let writing = store::write(&mut batch, &picture);
    let erasing = async {
        somebody_waits(&pool, "locktype = 'advisory'").await?;
        sqlx::query("insert into dsync.erased (user_id, erased_at) values ($1, now())")
            .bind(&person)
            .execute(&mut *erasure)
            .await?;
        anyhow::Ok(erasure.commit().await?)
    };
    let (effects, erased) = tokio::join!(writing, erasing);
    erased?;
    ensure!(effects?.erased.contains(&person), "the batch does not know of it");
    batch.commit().await?;

    let rows: i64 = sqlx::query_scalar(
        "select (select count(*) from dsync.users where id = $1) + (select count(*) from dsync.memberships where user_id = $1)",
    )
    .bind(&person)
    .fetch_one(&pool)
    .await?;
    ensure!(rows == 0, "{rows} rows of someone who was erased");
    let others: i64 = sqlx::query_scalar("select count(*) from dsync.users")
        .fetch_one(&pool)
        .await?;
    ensure!(others > 0, "nobody else was written either");
    Ok(())
}
