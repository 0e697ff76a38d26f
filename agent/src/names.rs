//! Names that reach the hypervisor or the file system: services, replicas, images, domains.
//!
//! The agent touches a domain only if [`Service::replica_of`] takes its name apart.

use crate::error::{Error, Result};
use spare_protocol::ReplicaId;
use std::fmt;

/// Characters of a service's or an image's name at most: they become parts of file names and of
/// the paths of Unix sockets, which end at 108 bytes.
const NAME_CHARS_MAX: usize = 32;

/// Whether `text` consists of lower-case letters, digits and inner dashes, and is not too long.
fn is_plain_name(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    text.len() <= NAME_CHARS_MAX
        && text.starts_with(plain)
        && text.ends_with(plain)
        && text.chars().all(|c| plain(c) || c == '-')
}

/// The service whose replicas this agent may touch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service(String);

impl Service {
    /// Checks a service's name.
    pub fn parse(text: &str) -> Result<Service> {
        if is_plain_name(text) {
            return Ok(Service(text.to_owned()));
        }
        Err(Error::InvalidName(format!(
            "\"{text}\" is not a service's name; write 1 to {NAME_CHARS_MAX} of a-z, 0-9 and inner dashes"
        )))
    }

    /// The name of the domain of one replica.
    #[must_use]
    pub fn domain_of(&self, replica: ReplicaId) -> String {
        format!("spare-{self}-{}-{}", replica.seat, replica.generation)
    }

    /// The name of the domain that tries an accelerator.
    #[must_use]
    pub fn probe_domain(&self) -> String {
        format!("spare-{self}-probe")
    }

    /// The replica whose domain has this name; `None` if the domain is not this service's.
    #[must_use]
    pub fn replica_of(&self, domain: &str) -> Option<ReplicaId> {
        let rest = domain.strip_prefix("spare-")?.strip_prefix(&self.0)?;
        let (seat, generation) = rest.strip_prefix('-')?.split_once('-')?;
        parse_replica(&format!("{seat}.{generation}")).ok()
    }
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a message shows of a name that somebody made up: it may have many megabytes.
pub(crate) fn quoted(text: &str) -> String {
    text.chars().take(2 * NAME_CHARS_MAX).collect()
}

/// Checks a replica's name: `seat.generation`, both without leading zeros or signs.
pub fn parse_replica(text: &str) -> Result<ReplicaId> {
    match text.parse::<ReplicaId>() {
        Ok(replica) if replica.to_string() == text => Ok(replica),
        _ => Err(Error::InvalidName(format!(
            "{:?} is not a replica's name; write seat.generation, for example 0.3",
            quoted(text)
        ))),
    }
}

/// Checks an image's name, so that it can't lead out of the folder of images.
pub fn check_image_name(text: &str) -> Result<()> {
    if is_plain_name(text) {
        return Ok(());
    }
    Err(Error::InvalidName(format!(
        "{:?} is not an image's name; write 1 to {NAME_CHARS_MAX} of a-z, 0-9 and inner dashes",
        quoted(text)
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replica_names_have_one_spelling() {
        for good in ["0.1", "65535.4294967295"] {
            assert_eq!(parse_replica(good).unwrap().to_string(), good);
        }
        for bad in [
            "", "0", "0.", ".1", "00.1", "+0.1", "0.01", "0.1.2", "0.-1", "65536.1", "0/../1",
            "0.1\n", "a.b",
        ] {
            assert!(parse_replica(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_domain_belongs_to_one_service_only() {
        let shop = Service::parse("shop").unwrap();
        let shop2 = Service::parse("shop-2").unwrap();
        let replica = parse_replica("0.3").unwrap();
        assert_eq!(shop.replica_of(&shop.domain_of(replica)), Some(replica));
        assert_eq!(shop.replica_of(&shop2.domain_of(replica)), None);
        assert_eq!(shop2.replica_of(&shop.domain_of(replica)), None);
        for foreign in [
            "shop-0-3",
            "spare-shop-0-03",
            "spare-shop",
            "spare-shop-probe",
            "vm",
        ] {
            assert_eq!(shop.replica_of(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn names_that_could_leave_their_folder_are_refused() {
        for bad in [
            "",
            "-a",
            "a-",
            "..",
            "a/b",
            "A",
            "a_b",
            "a.b",
            &"a".repeat(33),
        ] {
            assert!(Service::parse(bad).is_err(), "{bad:?}");
            assert!(check_image_name(bad).is_err(), "{bad:?}");
        }
        assert!(check_image_name("auction-tiny-test").is_ok());
    }

    #[test]
    fn a_message_shows_the_beginning_of_a_long_name() {
        let long = "9".repeat(1 << 20);
        for error in [
            parse_replica(&long).unwrap_err(),
            check_image_name(&long).unwrap_err(),
        ] {
            let message = error.to_string();
            assert!(message.contains("9999") && message.len() < 300, "{message}");
        }
    }
}
