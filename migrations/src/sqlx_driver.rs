//! Runs refinery over the Postgres driver that the programs use anyway, which saves a second driver and TLS setup.

use refinery::Migration;
use refinery_core::traits::r#async::{AsyncMigrate, AsyncQuery, AsyncTransaction};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, Row as _};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Rewriting a large table may take longer than the programs' statement timeout allows. Waiting for a lock must be short, because
/// others queue behind us. Set for the transaction only, because a pooler may give the session to others.
const LIMITS: &str = "set local statement_timeout = 0; set local lock_timeout = '3s'";

/// A connection that implements refinery's traits.
pub(crate) struct SqlxClient<'c>(pub(crate) &'c mut PgConnection);

impl AsyncTransaction for SqlxClient<'_> {
    type Error = sqlx::Error;

    async fn execute<'a, T: Iterator<Item = &'a str> + Send + 'a>(
        &'a mut self,
        queries: T,
    ) -> Result<usize, Self::Error> {
        let mut transaction = self.0.begin().await?;
        sqlx::raw_sql(LIMITS).execute(&mut *transaction).await?;
        let mut count = 0;
        for query in queries {
            // The SQL was embedded at build time, or is refinery's own.
            sqlx::raw_sql(AssertSqlSafe(query))
                .execute(&mut *transaction)
                .await?;
            count += 1;
        }
        transaction.commit().await?;
        Ok(count)
    }
}

impl AsyncQuery<Vec<Migration>> for SqlxClient<'_> {
    async fn query<'a>(&'a mut self, query: &'a str) -> Result<Vec<Migration>, Self::Error> {
        let rows = sqlx::raw_sql(AssertSqlSafe(query))
            .fetch_all(&mut *self.0)
            .await?;
        rows.iter()
            .map(|row| {
                let (version, name): (i32, String) = (row.try_get(0)?, row.try_get(1)?);
                let (applied_on, checksum): (String, String) = (row.try_get(2)?, row.try_get(3)?);
                let applied_on = OffsetDateTime::parse(&applied_on, &Rfc3339).map_err(unreadable)?;
                Ok(Migration::applied(
                    version,
                    name,
                    applied_on,
                    checksum.parse().map_err(unreadable)?,
                ))
            })
            .collect()
    }
}

impl AsyncMigrate for SqlxClient<'_> {}

fn unreadable(error: impl std::error::Error + Send + Sync + 'static) -> sqlx::Error {
    sqlx::Error::Decode(Box::new(error))
}
