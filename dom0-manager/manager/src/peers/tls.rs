//! Certificates: a manager speaks with those hosts only whose certificates the group's authority signed,
//! and takes each for the host that its certificate names.

use crate::config;
use anyhow::{bail, Context, Result};
use rustls::client::verify_server_name;
use rustls::crypto::{ring, CryptoProvider};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use spare_protocol::SeatId;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

/// What a connection is for; both ends agree on it in the handshake, on the version, and on the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Messages from the one who dialled.
    Messages,
    /// A snapshot for the one who dialled.
    Snapshot,
}

impl Purpose {
    fn protocol(self, service: &str) -> Vec<u8> {
        let what = match self {
            Purpose::Messages => "messages",
            Purpose::Snapshot => "snapshot",
        };
        format!("spare-{what}/1 {service}").into_bytes()
    }
}

/// This host's certificate and key, and the authority's certificate.
pub(crate) struct Credentials {
    service: String,
    roots: Arc<RootCertStore>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    provider: Arc<CryptoProvider>,
}

impl Credentials {
    /// Reads the files that `[peers]` names, for host `name`.
    ///
    /// # Errors
    /// When one cannot be used, or the certificate is for another name.
    pub(crate) fn read(peers: &config::Peers, service: &str, name: &str) -> Result<Credentials> {
        let chain = certificates(&peers.certificate, "peers.certificate")?;
        let mut roots = RootCertStore::empty();
        for root in certificates(&peers.authority, "peers.authority")? {
            let added = roots.add(root);
            added.with_context(|| format!("{} (peers.authority)", peers.authority.display()))?;
        }
        let explain = || format!("{} (peers.certificate)", peers.certificate.display());
        certifies(&chain, name)
            .map_err(|found| {
                anyhow::anyhow!("it is not for this host, \"{name}\" (group.host): {found}")
            })
            .with_context(explain)?;
        Ok(Credentials {
            service: service.to_owned(),
            roots: Arc::new(roots),
            chain,
            key: private_key(&peers.key)?,
            provider: Arc::new(ring::default_provider()),
        })
    }

    /// For connections to others.
    pub(crate) fn client(&self, purpose: Purpose) -> Result<Arc<ClientConfig>> {
        let mut config = ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&TLS13])?
            .with_root_certificates(Arc::clone(&self.roots))
            .with_client_auth_cert(self.chain.clone(), self.key.clone_key())
            .context("peers.key does not belong to peers.certificate, or cannot be used")?;
        config.alpn_protocols = vec![purpose.protocol(&self.service)];
        Ok(Arc::new(config))
    }

    /// For connections from others.
    pub(crate) fn server(&self) -> Result<Arc<ServerConfig>> {
        let roots = Arc::clone(&self.roots);
        let verifier =
            WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&self.provider))
                .build()?;
        let mut config = ServerConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&TLS13])?
            .with_client_cert_verifier(verifier)
            .with_single_cert(self.chain.clone(), self.key.clone_key())
            .context("peers.key does not belong to peers.certificate, or cannot be used")?;
        config.alpn_protocols = [Purpose::Messages, Purpose::Snapshot]
            .map(|p| p.protocol(&self.service))
            .into();
        Ok(Arc::new(config))
    }

    /// This host's certificate, first.
    #[cfg(test)]
    pub(super) fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// What the handshake agreed on.
    pub(crate) fn purpose(&self, agreed: Option<&[u8]>) -> Option<Purpose> {
        [Purpose::Messages, Purpose::Snapshot]
            .into_iter()
            .find(|p| agreed == Some(p.protocol(&self.service).as_slice()))
    }
}

/// Which of these hosts a verified certificate is for.
///
/// # Errors
/// Tells whose it is instead.
pub(crate) fn whose(
    chain: Option<&[CertificateDer<'static>]>,
    hosts: &[(SeatId, String)],
) -> Result<(SeatId, String), String> {
    let chain = chain.unwrap_or_default();
    let mut why = "it sent no certificate".to_owned();
    for (seat, name) in hosts {
        match certifies(chain, name) {
            Ok(()) => return Ok((*seat, name.clone())),
            Err(found) => why = found,
        }
    }
    let names: Vec<&str> = hosts.iter().map(|(_, name)| name.as_str()).collect();
    Err(format!(
        "its certificate is not that of one of the hosts {}: {why}",
        names.join(", ")
    ))
}

/// Whether the first certificate is for host `name`; if not, what it is for.
fn certifies(chain: &[CertificateDer<'static>], name: &str) -> Result<(), String> {
    let first = chain.first().ok_or("there is no certificate")?;
    let certificate = ParsedCertificate::try_from(first).map_err(|e| e.to_string())?;
    let wanted = ServerName::try_from(name.to_owned()).map_err(|e| e.to_string())?;
    verify_server_name(&certificate, &wanted).map_err(|e| e.to_string())
}

fn certificates(path: &Path, key: &str) -> Result<Vec<CertificateDer<'static>>> {
    let explain = || format!("cannot read {} ({key})", path.display());
    let all = CertificateDer::pem_file_iter(path).with_context(explain)?;
    let all: Vec<_> = all.collect::<Result<_, _>>().with_context(explain)?;
    if all.is_empty() {
        bail!("{} ({key}) holds no certificate in PEM", path.display());
    }
    Ok(all)
}

/// The key, which nobody else may be able to read.
fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>> {
    let explain = || format!("cannot read {} (peers.key)", path.display());
    let mode = std::fs::metadata(path)
        .with_context(explain)?
        .permissions()
        .mode();
    if mode & 0o007 != 0 {
        bail!(
            "{} (peers.key) can be used by everybody on this host (mode {:o}); run chmod o= on it",
            path.display(),
            mode & 0o777
        );
    }
    PrivateKeyDer::from_pem_file(path).with_context(explain)
}
