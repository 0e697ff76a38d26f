//! Keys: of Corosync's links, and the certificates with which managers know one another. Values out, no I/O
//! but the system's randomness.

use crate::init::plan::{Host, Plan};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};

/// What `corosync-keygen` makes.
pub(crate) const LINK_KEY_BYTES: usize = 256;

/// The authority and what it signed. Nothing expires: a group whose certificates all end on one day would
/// end with them. `spare init` anew makes new ones.
pub(crate) struct Certificates {
    /// The authority's certificate, for every host.
    pub(crate) authority: String,
    /// The authority's private key: it goes to no host, only who adds one needs it.
    pub(crate) authority_key: String,
    /// Certificate and key of each host, in the order of the plan.
    pub(crate) hosts: Vec<(String, String)>,
}

/// Makes an authority for this group alone, and a certificate for each host.
///
/// # Errors
/// When a name cannot stand in a certificate.
pub(crate) fn certificates(plan: &Plan) -> Result<Certificates, rcgen::Error> {
    let key = KeyPair::generate()?;
    let params = of_authority(&plan.cluster);
    let authority = params.self_signed(&key)?.pem();
    let authority_key = key.serialize_pem();
    let issuer = Issuer::new(params, key);
    let hosts = plan.hosts.iter().map(|host| certificate(&issuer, host));
    Ok(Certificates {
        authority,
        authority_key,
        hosts: hosts.collect::<Result<_, _>>()?,
    })
}

/// The certificate and key of a host that joins later, signed with the authority's key.
///
/// # Errors
/// When the key is none, or the host's name cannot stand in a certificate.
pub(crate) fn certificate_for(
    cluster: &str,
    authority_key: &str,
    host: &Host,
) -> Result<(String, String), rcgen::Error> {
    let key = KeyPair::from_pem(authority_key)?;
    certificate(&Issuer::new(of_authority(cluster), key), host)
}

fn of_authority(cluster: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    let name = format!("SPARE group {cluster}");
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

/// For a host as server and client: its name is what the others check.
fn certificate(
    issuer: &Issuer<'_, KeyPair>,
    host: &Host,
) -> Result<(String, String), rcgen::Error> {
    let mut params = CertificateParams::new(vec![host.name.clone()])?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    (params.distinguished_name).push(DnType::CommonName, host.name.as_str());
    let addresses = host.addresses.iter().copied().map(SanType::IpAddress);
    params.subject_alt_names.extend(addresses);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    params.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, issuer)?;
    Ok((certificate.pem(), key.serialize_pem()))
}

/// The key of Corosync's links.
#[must_use]
pub(crate) fn link_key() -> [u8; LINK_KEY_BYTES] {
    let mut key = [0; LINK_KEY_BYTES];
    rand::fill(&mut key[..]);
    key
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::init::plan::tests::plan;

    #[test]
    fn every_host_has_a_certificate_and_a_key_of_its_own() {
        let plan = plan(&["h1=10.0.0.1", "h2=fd00::2"]);
        let made = certificates(&plan).unwrap();
        assert_eq!(made.hosts.len(), 2);
        let mut all = vec![&made.authority, &made.authority_key];
        for (certificate, key) in &made.hosts {
            assert!(certificate.starts_with("-----BEGIN CERTIFICATE-----"));
            assert!(key.starts_with("-----BEGIN PRIVATE KEY-----"));
            all.extend([certificate, key]);
        }
        for (at, one) in all.iter().enumerate() {
            assert!(!all[..at].contains(one));
        }
    }

    #[test]
    fn no_two_link_keys_are_equal() {
        assert_ne!(link_key(), link_key());
    }
}
