//! Decoders of what managers and hosts tell each other beside the order, of Corosync's packets, and of a
//! `corosync.conf` that somebody else wrote.

use crate::meter::{within, Limit, KIB, MIB};
use crate::script::parts;
use spare_cli::decoders;
use spare_manager::decoders::{peer_stream, PeerStream};

/// Of a stream's buffer, which takes a MiB ahead of what arrived, of a message, and of the same encoded again.
pub const STREAM: Limit = Limit::new(40, 6 * MIB);
/// An empty message takes 4 bytes in a packet and 32 in memory, twice while the list moves; and the packet's copy.
pub const PACKETS: Limit = Limit::new(32, 4 * KIB);
/// A line of two bytes takes two strings in a list.
pub const CONF: Limit = Limit::new(400, 16 * KIB);

/// A stream gives the same messages whether its bytes arrive at once or seven at a time.
fn streams(kind: PeerStream, stream: &[u8]) {
    let whole = within(STREAM, stream.len(), || {
        peer_stream(kind, stream, stream.len())
    });
    assert_eq!(
        peer_stream(kind, stream, 7),
        whole,
        "it matters how bytes arrive"
    );
    let bytes: usize = whole.0.iter().map(Vec::len).sum();
    assert!(bytes <= stream.len(), "messages longer than their frames");
}

/// Messages for another manager's core.
pub fn peer_link(bytes: &[u8]) {
    streams(PeerStream::Link, bytes);
}

/// Questions about snapshots, and answers.
pub fn peer_snapshot(bytes: &[u8]) {
    streams(PeerStream::Questions, bytes);
    streams(PeerStream::Answers, bytes);
}

/// The packets of a script, from one sender.
pub fn ring_packets(bytes: &[u8]) {
    let packets = || parts(bytes).map(|(_, packet)| packet);
    let sent: usize = packets().map(<[u8]>::len).sum();
    let taken = within(PACKETS, bytes.len(), || {
        spare_group_communication::decoders::ring_packets(packets())
    });
    assert!(taken <= sent, "{taken} bytes out of {sent}");
}

/// `spare init --existing`.
pub fn corosync_conf(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    match within(CONF, text.len(), || decoders::corosync_conf(&text)) {
        Ok(hosts) => assert!(hosts > 0, "a cluster without hosts"),
        Err(error) => assert!(!error.is_empty()),
    }
}
