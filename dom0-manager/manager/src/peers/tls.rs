//! Certificates: a manager speaks with those hosts only whose certificates the group's authority signed,
//! and takes each for the host that its certificate names.

use crate::config;
use rustls::client::verify_server_name;
use rustls::crypto::{ring, CryptoProvider};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::{ParsedCertificate, VerifierBuilderError, WebPkiClientVerifier};
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use spare_protocol::SeatId;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What `[peers]` names cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CredentialsError {
    #[error("cannot read {path} ({key}): {cause}")]
    Unreadable {
        path: PathBuf,
        key: &'static str,
        cause: pem::Error,
    },
    #[error("{path} ({key}) holds no certificate in PEM")]
    Empty { path: PathBuf, key: &'static str },
    #[error("{path} (peers.authority): {cause}")]
    Authority { path: PathBuf, cause: rustls::Error },
    #[error(
        "{path} (peers.certificate): it is not for this host, \"{host}\" (group.host): {cause}"
    )]
    OtherHost {
        path: PathBuf,
        host: String,
        cause: Uncertified,
    },
    #[error(
        "{path} (peers.key) can be used by everybody on this host (mode {mode:o}); run chmod o= on it"
    )]
    OpenKey { path: PathBuf, mode: u32 },
    #[error("peers.key does not belong to peers.certificate, or cannot be used: {0}")]
    Key(rustls::Error),
    #[error("TLS cannot be used: {0}")]
    Tls(rustls::Error),
    #[error("peers.authority cannot be used: {0}")]
    Verifier(VerifierBuilderError),
}

/// Why a certificate is not for a host.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Uncertified {
    #[error("it sent no certificate")]
    NotSent,
    #[error("there is no certificate")]
    Empty,
    #[error("{0}")]
    Name(rustls::Error),
    #[error("{0}")]
    NoHostName(rustls::pki_types::InvalidDnsNameError),
}

/// Whoever dialled is none of the hosts.
#[derive(Debug, thiserror::Error)]
#[error("its certificate is not that of one of the hosts {}: {cause}", hosts.join(", "))]
pub(crate) struct Stranger {
    hosts: Vec<String>,
    cause: Uncertified,
}

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
    pub(crate) fn read(
        peers: &config::Peers,
        service: &str,
        name: &str,
    ) -> Result<Credentials, CredentialsError> {
        let chain = certificates(&peers.certificate, "peers.certificate")?;
        let mut roots = RootCertStore::empty();
        for root in certificates(&peers.authority, "peers.authority")? {
            roots
                .add(root)
                .map_err(|cause| CredentialsError::Authority {
                    path: peers.authority.clone(),
                    cause,
                })?;
        }
        certifies(&chain, name).map_err(|cause| CredentialsError::OtherHost {
            path: peers.certificate.clone(),
            host: name.to_owned(),
            cause,
        })?;
        Ok(Credentials {
            service: service.to_owned(),
            roots: Arc::new(roots),
            chain,
            key: private_key(&peers.key)?,
            provider: Arc::new(ring::default_provider()),
        })
    }

    /// How this host presents itself where it dials, and whom it accepts there.
    pub(crate) fn client(&self, purpose: Purpose) -> Result<Arc<ClientConfig>, CredentialsError> {
        let mut config = ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&TLS13])
            .map_err(CredentialsError::Tls)?
            .with_root_certificates(Arc::clone(&self.roots))
            .with_client_auth_cert(self.chain.clone(), self.key.clone_key())
            .map_err(CredentialsError::Key)?;
        config.alpn_protocols = vec![purpose.protocol(&self.service)];
        Ok(Arc::new(config))
    }

    /// How this host presents itself where it is dialled, and whom it accepts there.
    pub(crate) fn server(&self) -> Result<Arc<ServerConfig>, CredentialsError> {
        let roots = Arc::clone(&self.roots);
        let verifier =
            WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&self.provider))
                .build()
                .map_err(CredentialsError::Verifier)?;
        let mut config = ServerConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&TLS13])
            .map_err(CredentialsError::Tls)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(self.chain.clone(), self.key.clone_key())
            .map_err(CredentialsError::Key)?;
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

    /// The purpose whose protocol (ALPN) the handshake agreed on.
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
) -> Result<(SeatId, String), Stranger> {
    let mut cause = Uncertified::NotSent;
    for (seat, name) in hosts {
        match certifies(chain.unwrap_or_default(), name) {
            Ok(()) => return Ok((*seat, name.clone())),
            Err(found) => cause = found,
        }
    }
    let hosts = hosts.iter().map(|(_, name)| name.clone()).collect();
    Err(Stranger { hosts, cause })
}

/// Whether the first certificate is for host `name`; if not, what it is for.
fn certifies(chain: &[CertificateDer<'static>], name: &str) -> Result<(), Uncertified> {
    let first = chain.first().ok_or(Uncertified::Empty)?;
    let certificate = ParsedCertificate::try_from(first).map_err(Uncertified::Name)?;
    let wanted = ServerName::try_from(name.to_owned()).map_err(Uncertified::NoHostName)?;
    verify_server_name(&certificate, &wanted).map_err(Uncertified::Name)
}

fn certificates(
    path: &Path,
    key: &'static str,
) -> Result<Vec<CertificateDer<'static>>, CredentialsError> {
    let path = path.to_owned();
    let all = CertificateDer::pem_file_iter(&path).and_then(Iterator::collect);
    match all {
        Ok(all) if Vec::is_empty(&all) => Err(CredentialsError::Empty { path, key }),
        Ok(all) => Ok(all),
        Err(cause) => Err(CredentialsError::Unreadable { path, key, cause }),
    }
}

/// The key, which nobody else may be able to read.
fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, CredentialsError> {
    let unreadable = |cause| CredentialsError::Unreadable {
        path: path.to_owned(),
        key: "peers.key",
        cause,
    };
    let metadata = std::fs::metadata(path).map_err(|e| unreadable(pem::Error::Io(e)))?;
    let mode = metadata.permissions().mode();
    if mode & 0o007 != 0 {
        return Err(CredentialsError::OpenKey {
            path: path.to_owned(),
            mode: mode & 0o777,
        });
    }
    PrivateKeyDer::from_pem_file(path).map_err(unreadable)
}
