//! Decoders of `spare-agent`: configuration, image descriptions, names, consoles.

use crate::meter::{within, Limit, KIB};
use crate::shim::CONFIG;
use spare_agent::config::Config;
use spare_agent::decoders;
use spare_agent::image::Image;
use spare_agent::names::{check_image_name, parse_replica, Service};
use spare_agent::qemu::{Accelerator, Guest, Limits};
use spare_protocol::ReplicaId;
use std::path::Path;

/// Of names: the name again, in an error that says that it is none.
pub const NAMES: Limit = Limit::new(32, 4 * KIB);
/// Of a console's output: what arrived last, and a copy.
pub const CONSOLE: Limit = Limit::new(4, 4 * KIB);

/// `agent.toml`.
pub fn agent_config(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let config = within(CONFIG, text.len(), || {
        Config::parse(Path::new("agent.toml"), &text)
    });
    match config {
        Ok(config) => assert!(!config.service().to_string().is_empty()),
        Err(error) => assert!(error.to_string().starts_with("agent.toml")),
    }
}

/// `image.toml`, up to the description that libvirt gets; the note of the hashes of images' files, and what libvirt
/// says of QEMU's user.
pub fn image_description(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Some(line) = decoders::hash_note(&text) {
        assert_eq!(decoders::hash_note(&line).as_ref(), Some(&line));
    }
    if let Some((user, group)) = decoders::qemu_user(&text) {
        for number in [user, group] {
            assert!(text.contains(&number.to_string()), "{number}");
        }
    }
    let described = within(CONFIG, text.len(), || decoders::image_description(&text));
    let Some((cmdline, memory_mib, processors)) = described else {
        return;
    };
    let xml = |cmdline: &str| {
        let image = Image {
            name: "shop".into(),
            kernel: "/vmlinuz".into(),
            initrd: "/initrd".into(),
            root: "/root.img".into(),
            cmdline: cmdline.to_owned(),
            memory_mib,
            processors,
        };
        let guest = Guest {
            domain: "spare-shop-0-1",
            image: &image,
            cmdline,
            accelerator: Accelerator::Tcg,
            overlay: None,
            console: Path::new("/con"),
            ports: &[],
            limits: Limits {
                bounds_memory: true,
                disk_mib_per_s: 200,
            },
            keeps_owners: true,
        };
        guest.xml()
    };
    let markup = |xml: String| xml.matches(['<', '>', '\'']).count();
    assert_eq!(markup(xml(&cmdline)), markup(xml("")), "{cmdline:?}");
}

/// What a manager passes over D-Bus, what libvirt calls its domains, and the agent's own note on KVM.
pub fn agent_names(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    within(NAMES, text.len(), || names(&text));
}

fn names(text: &str) {
    if let Ok(replica) = text.parse::<ReplicaId>() {
        assert_eq!(replica.to_string().parse(), Ok(replica));
    }
    if let Ok(replica) = parse_replica(text) {
        assert_eq!(replica.to_string(), text, "a replica has one name");
    }
    let plain = |text: &str| {
        let dash = |b: u8| b == b'-';
        text.bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || dash(b))
    };
    assert!(check_image_name(text).is_err() || plain(text));
    let replica = ReplicaId {
        seat: spare_protocol::SeatId(1),
        generation: 2,
    };
    if let Ok(service) = Service::parse(text) {
        assert!(plain(text));
        let domain = service.domain_of(replica);
        assert_eq!(service.replica_of(&domain), Some(replica));
    }
    let service = Service::parse("shop").unwrap_or_else(|e| panic!("{e}"));
    if let Some(replica) = service.replica_of(text) {
        assert_eq!(service.domain_of(replica), text, "another's domain");
    }
    let answer = decoders::accelerator_note(text, "boot 1 2");
    assert!(answer.is_none() || text.trim().starts_with("boot 1 2"));
}

/// A guest's serial console, in pieces.
pub fn guest_console(bytes: &[u8]) {
    let (log, panicked) = within(CONSOLE, bytes.len(), || decoders::console(bytes, 4096));
    assert_eq!(log.len(), bytes.len());
    assert!(log.iter().all(|b| matches!(b, b'\n' | b'\t' | b' '..=b'~')));
    for piece_bytes in [1, 7] {
        assert_eq!(decoders::console(bytes, piece_bytes).1, panicked);
    }
}
