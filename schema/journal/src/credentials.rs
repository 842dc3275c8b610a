//! The credentials file. It is read again for each connection, so renewing it, before it expires or after, needs no
//! restart.

use std::io;
use std::path::{Path, PathBuf};

use async_nats::{Auth, AuthError, ConnectOptions};
use nkeys::KeyPair;

/// Options to log in with this file. Fails if the file is not usable now.
pub(crate) async fn login(path: PathBuf) -> io::Result<ConnectOptions> {
    prove(&path, &[]).await?;
    Ok(ConnectOptions::with_auth_callback(move |nonce| {
        let path = path.clone();
        async move { prove(&path, &nonce).await.map_err(AuthError::new) }
    }))
}

/// Our identity, and the broker's `nonce` signed with our key. The error reveals nothing of the file's content.
async fn prove(path: &Path, nonce: &[u8]) -> io::Result<Auth> {
    let text = tokio::fs::read_to_string(path).await?;
    let invalid = || io::Error::from(io::ErrorKind::InvalidData);
    let [jwt, seed] = parts(&text).ok_or_else(invalid)?;
    let key = KeyPair::from_seed(seed).map_err(|_| invalid())?;
    let mut auth = Auth::new();
    auth.signature = Some(key.sign(nonce).map_err(|_| invalid())?);
    auth.jwt = Some(jwt.to_owned());
    Ok(auth)
}

/// The user's JWT and the seed of their key: the lines that follow the two `BEGIN` lines.
fn parts(text: &str) -> Option<[&str; 2]> {
    let mut lines = text.lines().map(str::trim);
    let mut part = |name: &str| {
        lines.find(|line| line.starts_with("---") && line.contains("BEGIN") && line.contains(name))?;
        lines.next().filter(|part| !part.is_empty())
    };
    Some([part("JWT")?, part("SEED")?])
}

#[cfg(test)]
mod tests {
    use super::parts;

    #[test]
    fn both_parts_are_found_and_nothing_else_is() {
        let text = "-----BEGIN NATS USER JWT-----\r\neyJ0.x-_y\r\n------END NATS USER JWT------\r\n\r\n\
            ******** IMPORTANT ********\r\n-----BEGIN USER NKEY SEED-----\r\nSUAB\r\n------END USER NKEY SEED------\r\n";
        assert_eq!(parts(text), Some(["eyJ0.x-_y", "SUAB"]));
        for odd in [
            "",
            "eyJ0",
            "-----BEGIN NATS USER JWT-----\n",
            "-----BEGIN NATS USER JWT-----\na\n",
        ] {
            assert_eq!(parts(odd), None, "{odd:?}");
        }
    }
}
