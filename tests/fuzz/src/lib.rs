//! Every decoder of SPARE that reads bytes from outside, each as one function of arbitrary bytes.
//!
//! A function panics if the decoder panics, if it takes more memory than its limit, or if a property
//! of what it made of the bytes does not hold. The same functions are called by
//! - the tests of this crate, on stable Rust: with every file of the committed corpus (`corpus/TARGET/`),
//!   with arbitrary bytes, with mutated files of the corpus, and with hostile ones;
//! - libFuzzer, for as long as one likes: `scripts/fuzz`, with the programs in `targets/`.
//!
//! The limit is on the memory that a decoder holds at once, beyond its input, for each byte of input
//! and in all. What it says is small: what is decoded may be larger in memory than on the wire, and a
//! list that grows is there twice while it moves.
//!
//! | target | what it decodes | who writes the bytes | limit | property |
//! |---|---|---|---|---|
//! | `guest_frames` | `FrameDecoder`, `FromGuest` | guest | 4 × + 4 KiB | same frames however bytes arrive; messages round trip |
//! | `guest_channel` | the manager's end of a guest's channel: sessions, sequence, texts for operators | guest | 8 × + 128 KiB | the same rule broken however bytes arrive; texts short and harmless to a terminal |
//! | `guest_reply` | `HttpReply`, normalisation, the agreed reply as HTTP | guest | 8 × + 64 KiB | a normalised reply is one, without headers of the connection |
//! | `guest_console` | the serial console's log, the search for a panic | guest | 4 × + 4 KiB | printable; found however bytes arrive |
//! | `client_connection` | the gateway: HTTP/1.1 requests | client | 16 × + 128 KiB | every request that is taken round trips and reaches the service |
//! | `http_messages` | `HttpRequest`, `HttpReply`, the shim's request to the service, evidence | client, guest | 3 × + 16 KiB | round trip; the agreed headers once, no header of the connection |
//! | `auction_form` | the demo's queries, forms, amounts, routes | client | 128 × + 4 KiB | values within their bounds; text never becomes markup |
//! | `agreed_headers` | the demo's agreed time, seed and class | shim | 16 × + 4 KiB | a time that is read can be shown |
//! | `group_message` | `Envelope`, `OrderedMessage` | peer | 16 × + 4 MiB | round trip |
//! | `peer_message` | `PeerMessage` | peer | 16 × + 4 MiB | round trip |
//! | `peer_link` | frames of managers' connections, `LinkMessage` | peer | 40 × + 6 MiB | same messages however bytes arrive |
//! | `peer_snapshot` | questions about snapshots and their answers | peer | 40 × + 6 MiB | same messages however bytes arrive |
//! | `ring_packets` | the engine's packets in Corosync: batches, parts, claims | peer | 32 × + 4 KiB | no more comes out than went in; claims round trip |
//! | `corosync_conf` | a `corosync.conf` that is there already | operator | 400 × + 16 KiB | a cluster that is accepted has hosts |
//! | `manager_frames` | `ToGuest`, the shim's `Session` | manager | 80 × + 1 KiB | same arrivals however bytes arrive; round trip |
//! | `update` | `Update::from_bytes`, `merge`, `StateRoot::note` | peer, manager | 256 × + 4 KiB | round trip; merged with itself canonical; one root |
//! | `agreed_state` | `AgreedState::apply`, `into_update` | peer | 512 × + 4 KiB | the whole is canonical |
//! | `ordered_log` | `LogReader`, `LogRecord` | disk | 4 × + 16 KiB | no more records than there are bytes for; what was appended is read |
//! | `store_segment` | the durable log: a segment's batches and records | disk | 16 × + 4 MiB | no more than there are bytes for |
//! | `store_values` | manifests, nodes of the state, kept keys, notes on replicas, `synced` | disk | 16 × + 4 MiB | round trip |
//! | `store_backup` | `read_backup` | operator (backup) | 16 × + 4 MiB | chunks as long as the manifest says |
//! | `leaves_file` | the leaves of the pristine state, `LtHash::from_bytes` | disk (image) | 192 × + 8 KiB | round trip, equal roots |
//! | `change_stream` | PostgreSQL's messages, copied data, `pgoutput`, write set, errors | database | 256 × + 256 MiB | the captured update is canonical, however bytes arrive |
//! | `database_value` | the binary format of 14 types | database | 2 × + 1 MiB | round trip; decimal numbers canonical |
//! | `table_copy` | rows of a binary copy | database | 16384 × + 1 MiB | same rows however bytes arrive |
//! | `service_reply` | the service's HTTP reply | service | 8 × + 64 KiB | round trip |
//! | `guest_config` | `guest.toml` | operator (image) | 1000 × + 1 MiB | what is accepted has one transport |
//! | `agent_config` | `agent.toml` | operator | 1000 × + 1 MiB | errors name the file |
//! | `manager_config` | `spare.toml` | operator | 512 × + 64 MiB | errors say something |
//! | `normalise_rules` | `[normalise]`: regular expressions | operator | 512 × + 64 MiB | a right reply stays one |
//! | `image_description` | `image.toml`, up to the domain's XML; the note of images' hashes, QEMU's user | operator (image), disk, libvirt | 1000 × + 1 MiB | its command line never becomes markup |
//! | `agent_names` | names over D-Bus and from libvirt, the note on KVM | manager, libvirt, disk | 32 × + 4 KiB | one name each; nobody else's domain |
//! | `addresses` | URLs, addresses, requests of the warm-up | operator | 32 × + 1 KiB | what is accepted has the parts it needs |
//! | `events_query` | the query of `GET /v1/events` | operator | 16 × + 4 KiB | none beyond panic and limit |
//! | `admin_answer` | JSON answers of the admin API, and their text | manager | 24 × + 4 KiB | round trip; text harmless to a terminal |
//! | `server_reply` | HTTP replies to the command | manager, service | 8 × + 1 MiB | status and length in bounds |
//! | `pages_file` | `Pages`, `RecordedPage` | disk | 4 × + 16 KiB | every position found is read |
//! | `replay_difference` | a logged request, a recorded page and a reply, compared | disk, guest | 4 × + 16 KiB | round trip |
//! | `auction_page` | pages as the emulated client checks them | service | 64 × + 16 KiB | none beyond panic and limit |
//!
//! No decoders of their own have: the group engine `local` (it hands on what it is given), the output
//! plugin of PostgreSQL (it is given a number), `spare-init` (it looks for a line in files of the guest's
//! own kernel and database). libvirt's and D-Bus's own messages are decoded by their libraries.

pub mod database;
pub mod host;
pub mod manager;
pub mod meter;
pub mod operator;
pub mod peers;
pub mod protocol;
pub mod script;
pub mod seeds;
pub mod service;
pub mod shim;
pub mod store;
pub mod strategies;

use meter::Limit;

/// One decoder, or a few that read the same bytes.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name: that of its function, of its folder in the corpus and of its libFuzzer program.
    pub name: &'static str,
    /// Feeds it bytes; panics when something is wrong.
    pub run: fn(&[u8]),
    /// What it may take of memory.
    pub limit: Limit,
}

const fn target(name: &'static str, run: fn(&[u8]), limit: Limit) -> Target {
    Target { name, run, limit }
}

/// The whole of a libFuzzer program: the function to call.
#[macro_export]
macro_rules! libfuzzer {
    ($target:path) => {
        #[global_allocator]
        static METER: $crate::meter::Meter = $crate::meter::Meter;

        libfuzzer_sys::fuzz_target!(|bytes: &[u8]| $target(bytes));
    };
}

/// All targets, in the order of the table.
pub const TARGETS: &[Target] = &[
    target("guest_frames", protocol::guest_frames, protocol::STREAM),
    target(
        "guest_channel",
        manager::guest_channel,
        manager::GUEST_CHANNEL,
    ),
    target("guest_reply", manager::guest_reply, manager::NORMALISE),
    target("guest_console", host::guest_console, host::CONSOLE),
    target(
        "client_connection",
        manager::client_connection,
        manager::CLIENT,
    ),
    target("http_messages", protocol::http_messages, protocol::HTTP),
    target("auction_form", service::auction_form, service::FORM),
    target("agreed_headers", service::agreed_headers, service::HEADERS),
    target(
        "group_message",
        protocol::group_message,
        protocol::GROUP_MESSAGE,
    ),
    target(
        "peer_message",
        protocol::peer_message,
        protocol::PEER_MESSAGE,
    ),
    target("peer_link", peers::peer_link, peers::STREAM),
    target("peer_snapshot", peers::peer_snapshot, peers::STREAM),
    target("ring_packets", peers::ring_packets, peers::PACKETS),
    target("corosync_conf", peers::corosync_conf, peers::CONF),
    target(
        "manager_frames",
        protocol::manager_frames,
        protocol::TO_GUEST,
    ),
    target("update", protocol::update, protocol::UPDATE),
    target(
        "agreed_state",
        protocol::agreed_state,
        protocol::AGREED_STATE,
    ),
    target("ordered_log", protocol::ordered_log, protocol::RECORDS),
    target("store_segment", store::store_segment, store::SEGMENT),
    target("store_values", store::store_values, store::VALUES),
    target("store_backup", store::store_backup, store::BACKUP),
    target("leaves_file", shim::leaves_file, shim::LEAVES),
    target("change_stream", shim::change_stream, shim::CHANGE_STREAM),
    target("database_value", shim::database_value, shim::VALUE),
    target("table_copy", shim::table_copy, shim::TABLE_COPY),
    target("service_reply", shim::service_reply, shim::SERVICE_REPLY),
    target("guest_config", shim::guest_config, shim::CONFIG),
    target("agent_config", host::agent_config, shim::CONFIG),
    target("manager_config", manager::manager_config, manager::RULES),
    target("normalise_rules", manager::normalise_rules, manager::RULES),
    target("image_description", host::image_description, shim::CONFIG),
    target("agent_names", host::agent_names, host::NAMES),
    target("addresses", operator::addresses, operator::ADDRESS),
    target("events_query", manager::events_query, manager::QUERY),
    target("admin_answer", operator::admin_answer, operator::ANSWER),
    target(
        "server_reply",
        operator::server_reply,
        operator::SERVER_REPLY,
    ),
    target("pages_file", operator::pages_file, protocol::RECORDS),
    target(
        "replay_difference",
        operator::replay_difference,
        protocol::RECORDS,
    ),
    target("auction_page", operator::auction_page, operator::PAGE),
];
