//! Real sockets on loopback, and certificates made here.

use super::connection::connect;
use super::*;
use crate::config;
use bytes::Bytes;
use rcgen::{CertificateParams, CertifiedIssuer, KeyPair};
use rustls::pki_types::ServerName;
use spare_protocol::channel::Outcome;
use spare_protocol::messages::{outcome_hash, DecidedRequest, RequestId};
use spare_protocol::versions::PROTOCOL_VERSION;
use spare_protocol::{Class, Hash, Position};
use spare_store::{BackupError, Durability, Event, KeyWindow, Options, Store};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(20);

/// Signs certificates, and keeps their files until it is dropped.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    folder: PathBuf,
}

impl Authority {
    fn new(name: &str) -> Authority {
        let folder =
            std::env::temp_dir().join(format!("spare-peers-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("folder");
        let mut params = CertificateParams::new(Vec::<String>::new()).expect("params");
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("key");
        let issuer = CertifiedIssuer::self_signed(params, key).expect("authority");
        std::fs::write(folder.join("authority.crt"), issuer.pem()).expect("write");
        Authority { issuer, folder }
    }

    /// The files of host `name`, with a certificate for `certified`.
    fn files(&self, name: &str, certified: &str) -> config::Peers {
        let key = KeyPair::generate().expect("key");
        let params = CertificateParams::new(vec![certified.to_owned()]).expect("params");
        let certificate = params.signed_by(&key, &self.issuer).expect("signed");
        let at = |ending: &str| self.folder.join(format!("{name}.{ending}"));
        std::fs::write(at("crt"), certificate.pem()).expect("write");
        std::fs::write(at("key"), key.serialize_pem()).expect("write");
        let private = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(at("key"), private).expect("mode");
        config::Peers {
            listen: None,
            certificate: at("crt"),
            key: at("key"),
            authority: self.folder.join("authority.crt"),
            bulk_mib_per_s: 100,
        }
    }

    fn credentials(&self, name: &str) -> Arc<Credentials> {
        let files = self.files(name, name);
        Arc::new(Credentials::read(&files, "shop", name).expect("credentials"))
    }
}

impl Drop for Authority {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn host(seat: u16, address: SocketAddr) -> Host {
    Host {
        name: format!("h{seat}"),
        seat,
        address,
    }
}

async fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("address");
    (listener, address)
}

/// One manager's end: what it sends with, and what arrives.
struct End {
    peers: Peers,
    arrived: mpsc::Receiver<Input>,
    behind: mpsc::UnboundedReceiver<Position>,
    _tasks: JoinSet<()>,
}

const IMAGE: Hash = Hash([7; 32]);

fn options(durability: Durability) -> Options {
    let window = KeyWindow::new(1_000_000_000, 1000);
    Options::new(durability, IMAGE, window)
}

/// An end without anything in its store.
fn start(listener: TcpListener, credentials: Arc<Credentials>, others: Vec<Host>) -> End {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let folder = format!("spare-peers-{}-store-{number}", std::process::id());
    let folder = std::env::temp_dir().join(folder);
    std::fs::create_dir_all(&folder).expect("folder");
    let (store, _) = Store::open(&folder, &options(Durability::Memory), |_| {}).expect("store");
    std::fs::remove_dir_all(&folder).expect("remove");
    start_with(listener, credentials, others, Arc::new(store))
}

fn start_with(
    listener: TcpListener,
    credentials: Arc<Credentials>,
    others: Vec<Host>,
    store: Arc<Store>,
) -> End {
    let network = Network {
        listener,
        credentials,
        others,
        bulk_bytes_per_s: 100 << 20,
    };
    let (inputs, arrived) = mpsc::channel(16);
    let (behind_sender, behind) = mpsc::unbounded_channel();
    let local = LocalSeat {
        inputs,
        behind: behind_sender,
        store,
    };
    let mut tasks = JoinSet::new();
    let peers = network.start(local, &mut tasks).expect("start");
    End {
        peers,
        arrived,
        behind,
        _tasks: tasks,
    }
}

impl End {
    /// Sends the message until it arrives at the other end, as the core does.
    async fn get_through(&self, to: &mut End, (from, seat): (u16, u16), message: &PeerMessage) {
        let begun = tokio::time::Instant::now();
        loop {
            assert!(begun.elapsed() < LIMIT, "{message:?} does not arrive");
            self.peers.send(SeatId(from), SeatId(seat), message.clone());
            let arrived = tokio::time::timeout(Duration::from_millis(300), to.arrived.recv());
            match arrived.await {
                Ok(Some(Input::Peer {
                    from: sender,
                    message: found,
                })) => {
                    assert_eq!(sender, SeatId(from));
                    if found == *message {
                        return;
                    }
                }
                Ok(other) => panic!("{other:?}"),
                Err(_) => {}
            }
        }
    }
}

fn fetch(position: u64) -> PeerMessage {
    PeerMessage::Fetch {
        position: Position(position),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_go_both_ways_large_ones_too_and_again_after_one_manager_was_restarted() {
    let authority = Authority::new("both-ways");
    let ((l0, a0), (l1, a1)) = (listener().await, listener().await);
    let mut first = start(l0, authority.credentials("h0"), vec![host(1, a1)]);
    let mut second = start(l1, authority.credentials("h1"), vec![host(0, a0)]);
    first.get_through(&mut second, (0, 1), &fetch(1)).await;
    second.get_through(&mut first, (1, 0), &fetch(2)).await;
    assert!(first.peers.reaches(SeatId(1)) && !first.peers.reaches(SeatId(7)));
    let large = PeerMessage::Agreed {
        position: Position(3),
        outcome: Some(Outcome::Reply(Bytes::from(vec![7; 17 << 20]))),
        update: Bytes::from(vec![8; 3 << 20]),
    };
    first.peers.send(SeatId(0), SeatId(1), large.clone());
    let arrived = tokio::time::timeout(LIMIT, second.arrived.recv()).await;
    let Ok(Some(Input::Peer { message, .. })) = arrived else {
        panic!("it does not arrive");
    };
    assert!(message == large);
    first.peers.send_log_begins(SeatId(1), Position(9));
    let told = tokio::time::timeout(LIMIT, second.behind.recv()).await;
    assert_eq!(told, Ok(Some(Position(9))));

    drop(second);
    let l1 = loop {
        // Its last connections may still be closing.
        match TcpListener::bind(a1).await {
            Ok(listener) => break listener,
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    };
    let mut second = start(l1, authority.credentials("h1"), vec![host(0, a0)]);
    first.get_through(&mut second, (0, 1), &fetch(4)).await;
    second.get_through(&mut first, (1, 0), &fetch(5)).await;
}

/// A link that is up, over which nothing is carried.
fn stalled_link(authority: &Authority) -> (Dialler, Link) {
    let client = authority.credentials("h0").client(Purpose::Messages);
    let address = "127.0.0.1:1".parse().expect("address");
    let (dialler, link) =
        Dialler::new("h1", address, client.expect("client"), 1 << 20).expect("a name");
    link.set_up();
    (dialler, link)
}

fn agreed(bytes: usize) -> Outgoing {
    Outgoing {
        version: PROTOCOL_VERSION,
        message: LinkMessage::Peer(PeerMessage::Agreed {
            position: Position(1),
            outcome: None,
            update: Bytes::from(vec![0; bytes]),
        }),
    }
}

#[test]
fn a_long_record_keeps_no_other_message_out_and_what_waits_has_a_budget_in_bytes() {
    let authority = Authority::new("budget");
    let (mut dialler, link) = stalled_link(&authority);
    let mut long = record(1);
    long.update = Bytes::from(vec![0; 300 << 20]);
    let part = || Outgoing {
        version: PROTOCOL_VERSION,
        message: LinkMessage::Peer(PeerMessage::Log {
            records: vec![long.clone()],
        }),
    };
    // Of any length, but no second one.
    link.send(part());
    link.send(part());
    for _ in 0..100 {
        link.send(agreed(1 << 20));
    }
    let waiting = dialler.waiting();
    assert_eq!(waiting.bulk, 1);
    assert!((60..64).contains(&waiting.urgent), "{}", waiting.urgent);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_arrive_in_whatever_version_the_group_speaks() {
    let authority = Authority::new("versions");
    let ((l0, a0), (l1, a1)) = (listener().await, listener().await);
    let first = start(l0, authority.credentials("h0"), vec![host(1, a1)]);
    let mut second = start(l1, authority.credentials("h1"), vec![host(0, a0)]);
    for version in FIRST_VERSION..=PROTOCOL_VERSION {
        first.peers.speak(version);
        let log = PeerMessage::Log {
            records: vec![record(u64::from(version))],
        };
        first.get_through(&mut second, (0, 1), &log).await;
    }
}

#[test]
fn a_seat_in_this_process_that_does_not_keep_up_costs_no_memory() {
    let queues = crate::handle::Queues::new(SeatId(1));
    let peers = Peers::here(std::slice::from_ref(&queues.handle));
    let mut inputs = queues.inputs;
    for position in 0..10_000 {
        peers.send(SeatId(0), SeatId(1), fetch(position));
    }
    let taken = std::iter::from_fn(|| inputs.try_recv().ok()).count();
    assert_eq!(taken, 4096);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_sent_while_a_connection_is_down_is_dropped() {
    let authority = Authority::new("down");
    let ((l0, _), (l1, a1)) = (listener().await, listener().await);
    drop(l1);
    let first = start(l0, authority.credentials("h0"), vec![host(1, a1)]);
    for position in 0..100_000 {
        first.peers.send(SeatId(0), SeatId(1), fetch(position));
    }
    assert!(!first.peers.reaches(SeatId(1)));
    first.peers.send(SeatId(0), SeatId(9), fetch(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_for_another_name_is_refused_and_both_names_are_told() {
    let authority = Authority::new("names");
    // At the address of h1 listens h2.
    let (l2, a2) = listener().await;
    let _second = start(l2, authority.credentials("h2"), vec![host(0, a2)]);
    let client = authority
        .credentials("h0")
        .client(Purpose::Messages)
        .expect("client");
    let wanted = ServerName::try_from("h1").expect("name");
    let refused = connect(a2, &wanted, &client).await.expect_err("refused");
    let text = format!("{refused:#}");
    assert!(text.contains("h1") && text.contains("h2"), "{text}");

    // Who is not in the configuration is told apart by its certificate.
    let stranger = authority.credentials("h9");
    let hosts = [(SeatId(0), "h0".to_owned()), (SeatId(1), "h1".to_owned())];
    let refused = tls::whose(Some(stranger.chain()), &hosts)
        .expect_err("refused")
        .to_string();
    assert!(
        refused.contains("h9") && refused.contains("h0, h1"),
        "{refused}"
    );
    let known = authority.credentials("h1");
    let found = tls::whose(Some(known.chain()), &hosts);
    assert_eq!(found.expect("known"), (SeatId(1), "h1".to_owned()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_of_another_authority_are_refused_at_both_ends() {
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let ((l0, a0), (l1, a1)) = (listener().await, listener().await);
    let mut first = start(l0, ours.credentials("h0"), vec![host(1, a1)]);
    let mut second = start(l1, theirs.credentials("h1"), vec![host(0, a0)]);
    for position in 0..20 {
        first.peers.send(SeatId(0), SeatId(1), fetch(position));
        second.peers.send(SeatId(1), SeatId(0), fetch(position));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(first.arrived.try_recv().is_err() && second.arrived.try_recv().is_err());
    let client = ours
        .credentials("h0")
        .client(Purpose::Messages)
        .expect("client");
    let wanted = ServerName::try_from("h1").expect("name");
    let refused = connect(a1, &wanted, &client).await.expect_err("refused");
    assert!(
        format!("{refused:#}").contains("certificate"),
        "{refused:#}"
    );
}

#[test]
fn files_that_cannot_be_used_are_named() {
    let authority = Authority::new("files");
    let wrong = authority.files("h0", "other");
    let refused = Credentials::read(&wrong, "shop", "h0")
        .err()
        .expect("refused");
    let text = format!("{refused:#}");
    assert!(text.contains("h0.crt") && text.contains("other"), "{text}");

    let open = authority.files("h1", "h1");
    let everybody = std::fs::Permissions::from_mode(0o644);
    std::fs::set_permissions(&open.key, everybody).expect("mode");
    let refused = Credentials::read(&open, "shop", "h1")
        .err()
        .expect("refused");
    assert!(format!("{refused:#}").contains("h1.key"), "{refused:#}");
}

/// A write with a key whose reply and update are long.
fn record(position: u64) -> DecidedRequest {
    use spare_protocol::update::{RowOp, TableUpdate, Update, Value};
    let text: String = (0..3000u64)
        .map(|i| format!("{:x}", position * 7919 + i * i))
        .collect();
    let update = Update {
        tables: vec![TableUpdate {
            table: "public.items".into(),
            columns: vec!["id".into(), "text".into()],
            key: vec![0],
            truncated: false,
            ops: vec![RowOp::Put {
                row: vec![Value::Int(position as i64), Value::Text(text.clone())],
                before: None,
            }],
        }],
        sequences: Vec::new(),
    };
    let outcome = Outcome::Reply(Bytes::from(text));
    let update = Bytes::from(update.to_bytes());
    DecidedRequest {
        position: Position(position),
        epoch: 1,
        id: RequestId {
            seat: SeatId(0),
            number: position,
        },
        class: Class::Write,
        key: Some(Hash::of(&position.to_le_bytes())),
        time_us: position as i64,
        seed: [3; 32],
        request: Bytes::from_static(b"POST /"),
        reply_hash: outcome_hash(&outcome),
        update_hash: Hash::of(&update),
        outcome: Some(outcome),
        update,
    }
}

/// A store with so many records and a snapshot of all of them.
fn filled(folder: &std::path::Path, records: u64) -> Store {
    std::fs::create_dir_all(folder).expect("folder");
    let (sender, events) = std::sync::mpsc::channel();
    let report = move |event| drop(sender.send(event));
    let (store, _) = Store::open(folder, &options(Durability::Disk), report).expect("store");
    for position in 1..=records {
        store.append(&record(position)).expect("append");
    }
    store.safe(Position(records)).expect("safe");
    store.snapshot(Position(records), None).expect("ask");
    loop {
        match events.recv().expect("an event") {
            Event::Snapshot(_) => return store,
            Event::Failed(error) | Event::Trouble(error) => panic!("{error}"),
            Event::Progress => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_is_fetched_what_has_arrived_is_not_fetched_again_and_it_makes_a_store() {
    let authority = Authority::new("snapshot");
    let (l0, a0) = listener().await;
    let store = Arc::new(filled(&authority.folder.join("full"), 500));
    let first = start_with(
        l0,
        authority.credentials("h0"),
        Vec::new(),
        Arc::clone(&store),
    );
    let source = Source {
        host: host(0, a0),
        credentials: authority.credentials("h1"),
    };
    let folder = authority.folder.join("fetched");
    // Nobody knows h1 there.
    assert!(source.fetch(&folder).await.is_err());
    drop(first);
    let (l0, a0) = listener().await;
    let _first = start_with(l0, authority.credentials("h0"), vec![host(1, a0)], store);
    let source = Source {
        host: host(0, a0),
        ..source
    };
    let fetched = source
        .fetch(&folder)
        .await
        .expect("fetched")
        .expect("a snapshot");
    assert_eq!(fetched.manifest.position, Position(500));
    let mut chunks = Vec::new();
    let listed = fetched.manifest.each_chunk(|chunk| {
        chunks.push(chunk);
        Ok::<_, BackupError>(fetched.chunk(chunk)?)
    });
    listed.expect("all are there");
    assert!(chunks.len() > 2, "{}", chunks.len());

    // One is gone, one is cut short, and one is of no snapshot.
    let at = |i: usize| folder.join(chunks[i].hash.to_string());
    let untouched = std::fs::metadata(at(2))
        .expect("there")
        .modified()
        .expect("time");
    std::fs::remove_file(at(0)).expect("remove");
    std::fs::write(at(1), b"torn").expect("write");
    std::fs::write(folder.join("other"), b"x").expect("write");
    let fetched = source
        .fetch(&folder)
        .await
        .expect("fetched")
        .expect("a snapshot");
    assert!(!folder.join("other").exists());
    let found = std::fs::metadata(at(2))
        .expect("there")
        .modified()
        .expect("time");
    assert_eq!(found, untouched);

    let new = authority.folder.join("new");
    let wrong = Store::install(&new, Hash([8; 32]), &fetched.manifest, |_| Ok(Vec::new()));
    assert!(matches!(wrong, Err(BackupError::OtherImage { .. })));
    Store::install(&new, IMAGE, &fetched.manifest, |chunk| {
        Ok(fetched.chunk(chunk)?)
    })
    .expect("installed");
    let (store, resumed) = Store::open(&new, &options(Durability::Disk), |_| {}).expect("store");
    assert_eq!(resumed.damage, []);
    assert_eq!(
        (resumed.safe, resumed.last),
        (Position(500), Some(record(500)))
    );
    assert_eq!(resumed.keys.len(), 500);
    store.append(&record(501)).expect("the next one");
}
