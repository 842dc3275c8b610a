//! A certificate authority of a test's own, and what it certifies.

use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use tempfile::TempDir;

/// An authority that only those who are given [`Authority::certificate`] believe.
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
    /// A new one.
    pub fn new() -> anyhow::Result<Authority> {
        let dir = tempfile::Builder::new().prefix("dsync-authority-").tempdir()?;
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        // A name of its own: of two with one name and different keys it is the signature that is wrong, not the issuer.
        let name = dir.path().display().to_string();
        params.distinguished_name.push(DnType::CommonName, name);
        std::fs::write(dir.path().join("ca.pem"), params.self_signed(&key)?.pem())?;
        Ok(Authority {
            issuer: Issuer::new(params, key),
            dir,
        })
    }

    /// The file that makes others believe it.
    pub fn certificate(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    /// A certificate for a server that has these names or addresses; the files live as long as the authority.
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

    /// Puts a new certificate and key in the place of an identity's.
    pub fn renew(&self, identity: &Identity, names: &[&str]) -> anyhow::Result<()> {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let key = KeyPair::generate()?;
        let certificate = CertificateParams::new(names)?.signed_by(&key, &self.issuer)?;
        replace(&identity.key, &key.serialize_pem())?;
        replace(&identity.cert, &certificate.pem())
    }
}

/// Never half written.
fn replace(path: &Path, text: &str) -> anyhow::Result<()> {
    let new = path.with_extension("new");
    std::fs::write(&new, text)?;
    Ok(std::fs::rename(new, path)?)
}
