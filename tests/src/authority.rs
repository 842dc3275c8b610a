//! A test's own certificate authority, and the certificates it issues.

use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use tempfile::TempDir;

/// An authority that is trusted only by those who are given [`Authority::certificate`].
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    dir: TempDir,
}

/// A server's certificate chain and its key, as PEM files.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The certificate.
    pub cert: PathBuf,
    /// The private key.
    pub key: PathBuf,
}

impl Authority {
    /// Creates an authority.
    pub fn new() -> anyhow::Result<Authority> {
        let dir = tempfile::Builder::new().prefix("dsync-authority-").tempdir()?;
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        // A unique name. If two authorities shared a name, a certificate from the wrong one would fail by its
        // signature, not by its issuer.
        let name = dir.path().display().to_string();
        params.distinguished_name.push(DnType::CommonName, name);
        std::fs::write(dir.path().join("ca.pem"), params.self_signed(&key)?.pem())?;
        Ok(Authority {
            issuer: Issuer::new(params, key),
            dir,
        })
    }

    /// The authority's own certificate, a file for those who are to trust it.
    pub fn certificate(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    /// Issues a certificate for a server with these names or addresses. Its files live as long as the authority.
    pub fn certify(&self, names: &[&str]) -> anyhow::Result<Identity> {
        let stem = names.join("_");
        let path = |kind: &str| self.dir.path().join(format!("{stem}.{kind}.pem"));
        let identity = Identity {
            cert: path("cert"),
            key: path("key"),
        };
        self.renew(&identity, names)?;
        Ok(identity)
    }

    /// Replaces an identity's certificate and key with new ones.
    pub fn renew(&self, identity: &Identity, names: &[&str]) -> anyhow::Result<()> {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let key = KeyPair::generate()?;
        let certificate = CertificateParams::new(names)?.signed_by(&key, &self.issuer)?;
        replace(&identity.key, &key.serialize_pem())?;
        replace(&identity.cert, &certificate.pem())
    }
}

/// Replaces a file atomically.
fn replace(path: &Path, text: &str) -> anyhow::Result<()> {
    let new = path.with_extension("new");
    std::fs::write(&new, text)?;
    Ok(std::fs::rename(new, path)?)
}
