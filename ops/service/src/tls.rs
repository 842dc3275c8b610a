//! TLS for our servers, with certificate and key from files that are reloaded when they change.
//!
//! To renew a certificate, replace the two files. New connections then get the new certificate, and existing ones
//! continue. While the files cannot be used (half written, say), the old certificate stays. Clients are not asked for
//! certificates.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert, ServerConfig};
use rustls::sign::CertifiedKey;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use crate::settings::SettingError;

/// The settings' names.
const CERT: &str = "TLS_CERT";
const KEY: &str = "TLS_KEY";

/// How often the files are checked.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// A server's side of TLS. Cheap to clone; clones share the certificate.
#[derive(Clone)]
pub struct Tls {
    acceptor: TlsAcceptor,
    current: Arc<Current>,
    files: Arc<Files>,
}

impl Tls {
    /// TLS with the certificate chain and the private key (both PEM) in these files. `None` if neither is given. An
    /// error, naming `TLS_CERT` or `TLS_KEY`, if only one is given or a file cannot be used.
    pub fn given(cert: Option<&Path>, key: Option<&Path>) -> Result<Option<Self>, SettingError> {
        let files = match (cert, key) {
            (None, None) => return Ok(None),
            (Some(_), None) => return Err(SettingError::malformed(KEY, "is not set, but TLS_CERT is")),
            (None, Some(_)) => return Err(SettingError::malformed(CERT, "is not set, but TLS_KEY is")),
            (Some(cert), Some(key)) => Files {
                cert: cert.to_owned(),
                key: key.to_owned(),
            },
        };
        let certified = files.load()?;
        let current = Arc::new(Current(RwLock::new(Arc::new(certified))));
        let mut config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| SettingError::malformed(CERT, format!("cannot be served: {error}")))?
            .with_no_client_auth()
            .with_cert_resolver(current.clone());
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Some(Self {
            acceptor: TlsAcceptor::from(Arc::new(config)),
            current,
            files: Arc::new(files),
        }))
    }

    /// Performs the handshake. Call it with a timeout, because a peer may never answer.
    pub(crate) async fn accept(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        self.acceptor.accept(stream).await
    }

    /// Reads the files again whenever they have changed, until `shutdown`.
    pub async fn keep_fresh(self, shutdown: CancellationToken) {
        let mut failed = None;
        while shutdown
            .run_until_cancelled(tokio::time::sleep(LOOK_EVERY))
            .await
            .is_some()
        {
            match self.files.load() {
                Ok(new) => {
                    failed = None;
                    if self.current.replace(new) {
                        tracing::info!("the TLS certificate was renewed");
                    }
                }
                Err(error) if failed.as_ref() == Some(&error) => {}
                Err(error) => {
                    tracing::warn!(%error, "the TLS certificate cannot be renewed; keeping the old one");
                    failed = Some(error);
                }
            }
        }
    }
}

struct Files {
    cert: PathBuf,
    key: PathBuf,
}

impl Files {
    fn load(&self) -> Result<CertifiedKey, SettingError> {
        let unusable = |env, error: &dyn std::fmt::Display| {
            SettingError::malformed(env, format!("cannot be used: {error}"))
        };
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(&self.cert)
            .and_then(Iterator::collect)
            .map_err(|error| unusable(CERT, &error))?;
        if chain.is_empty() {
            return Err(unusable(CERT, &"it contains no certificate"));
        }
        // Errors about the key are not shown in detail.
        let key = PrivateKeyDer::from_pem_file(&self.key)
            .map_err(|_| unusable(KEY, &"it cannot be read, or contains no private key"))?;
        CertifiedKey::from_der(chain, key, &default_provider())
            .map_err(|_| unusable(KEY, &"it is not the key of TLS_CERT's certificate"))
    }
}

/// The current certificate.
#[derive(Debug)]
struct Current(RwLock<Arc<CertifiedKey>>);

impl Current {
    /// Replaces the certificate by `new`. Returns whether they differ.
    fn replace(&self, new: CertifiedKey) -> bool {
        let mut current = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let differs = current.cert != new.cert;
        *current = Arc::new(new);
        differs
    }
}

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let current = self.0.read().unwrap_or_else(PoisonError::into_inner);
        Some(Arc::clone(&current))
    }
}
