//! The credentials file is read again for each connection, so renewed credentials are used without a restart.

use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use journal::{Connection, Journal};
use nkeys::KeyPair;
use serde_json::{Value, json};
use service::clock::Clock;
use tests::{Nats, NatsOptions, eventually};

use super::{BOUND, settings};

/// A token about `subject`, signed by `issuer`.
fn token(issuer: &KeyPair, subject: &str, exp: Option<i64>, nats: &Value) -> String {
    let part = |value: &Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
    let mut claims = json!({
        "jti": "test", "iat": 1_700_000_000, "iss": issuer.public_key(), "sub": subject, "name": "test", "nats": nats,
    });
    if let Some(exp) = exp {
        claims["exp"] = json!(exp);
    }
    let said = format!(
        "{}.{}",
        part(&json!({"typ": "JWT", "alg": "ed25519-nkey"})),
        part(&claims)
    );
    let signature = issuer.sign(said.as_bytes()).expect("a private key");
    format!("{said}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature))
}

/// Starts a broker that authenticates users by tokens. Returns it with the account that issues them.
async fn broker() -> anyhow::Result<(Nats, KeyPair)> {
    let (operator, system) = (KeyPair::new_operator(), KeyPair::new_account());
    let account = KeyPair::new_account();
    // The operator's tokens about itself and about accounts with storage limits.
    let of_operator = token(
        &operator,
        &operator.public_key(),
        None,
        &json!({"type": "operator", "version": 2}),
    );
    let of_account = |account: &KeyPair, storage: i64| {
        let limits = json!({"subs": -1, "data": -1, "payload": -1, "conn": -1, "leaf": -1, "imports": -1, "exports": -1,
            "wildcards": true, "mem_storage": storage, "disk_storage": storage, "streams": storage, "consumer": storage});
        let id = account.public_key();
        let said = json!({"type": "account", "version": 2, "limits": limits});
        let token = token(&operator, &id, None, &said);
        format!("{id}: {token}")
    };
    let accounts = [of_account(&system, 0), of_account(&account, -1)];
    let nats = Nats::with(NatsOptions {
        more: vec![
            format!("operator: {of_operator}"),
            format!("system_account: {}", system.public_key()),
            "resolver: MEMORY".to_owned(),
            format!("resolver_preload: {{\n{}\n}}", accounts.join("\n")),
        ],
        ..NatsOptions::default()
    })
    .await?;
    Ok((nats, account))
}

/// Issues credentials to a new user for the time `lasts`, and writes them to `path`.
fn issue(account: &KeyPair, lasts: Duration, path: &Path) -> anyhow::Result<()> {
    let user = KeyPair::new_user();
    let exp = (Clock::system().now() + lasts).unix_timestamp();
    let jwt = token(
        account,
        &user.public_key(),
        Some(exp),
        &json!({"type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1}),
    );
    let seed = user.seed()?;
    std::fs::write(
        path,
        format!(
            "-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n\
             -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
        ),
    )?;
    Ok(())
}

#[tokio::test]
async fn credentials_that_were_renewed_are_used_without_a_restart() -> anyhow::Result<()> {
    let (nats, account) = broker().await?;
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("user.creds");
    issue(&account, Duration::from_secs(3), &path)?;
    let journal = Journal::connect(&Connection {
        creds: Some(path.clone()),
        ..settings(&nats)
    })
    .await?;
    eventually(BOUND, async || Ok(journal.identity().await?)).await?;
    // Wait until they have expired and are refused.
    let mut connections = journal.connections();
    eventually(BOUND, async || {
        anyhow::ensure!(journal.identity().await.is_err(), "not expired yet");
        Ok(())
    })
    .await?;
    connections.borrow_and_update();
    issue(&account, Duration::from_hours(1), &path)?;
    eventually(BOUND, async || Ok(journal.identity().await?)).await?;
    assert!(connections.has_changed()?);
    Ok(())
}
