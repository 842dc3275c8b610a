//! What is held stays held until somebody approves it or `WorkOS` lists it again, and what is approved ends.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::ensure;
use reconciler::difference::Entity;
use reconciler::key::ObjectKey;
use reconciler::store::held;
use service::postgres::PoolSettings;
use service::settings::Secret;
use tests::Postgres;

/// A customer's provider that empties large groups. What is held is recorded anew by every sweep.
#[tokio::test]
async fn very_many_held_deletions_can_be_recorded_again() -> anyhow::Result<()> {
    let postgres = Postgres::migrated().await?;
    // Compared one by one, they would take well over a minute.
    let settings = PoolSettings {
        application_name: "test",
        max_connections: 2,
        statement_timeout: Duration::from_secs(20),
    };
    let pool = service::postgres::pool(&Secret::from(postgres.url().as_str()), &settings)?;
    let keys: Vec<ObjectKey> = (0..100_000)
        .map(|number| {
            let group = format!("directory_group_01M832YW3GB1X6H4Q65T{:06}", number % 300);
            ObjectKey::membership(&group, &format!("directory_user_01M832YW3GB1X6H4Q65T{number:06}"))
        })
        .collect();
    for these in [&keys[..], &keys[..], &keys[..50_000], &keys[10..]] {
        held::replace(&pool, "d1", Entity::Membership, these).await?;
        let held = held::of(&pool, "d1", Entity::Membership).await?;
        ensure!(
            held.iter().collect::<BTreeSet<_>>() == these.iter().collect(),
            "{} held",
            held.len()
        );
    }
    held::remove(&pool, "d1", Entity::Membership, &keys).await?;
    ensure!(held::of(&pool, "d1", Entity::Membership).await?.is_empty());
    Ok(())
}
