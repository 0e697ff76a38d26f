//! Small scripts as agents.

use super::*;
use crate::assumption::Assumption;
use crate::evidence::Archive;
use bytes::Bytes;
use spare_group_communication::guarded::{guarded, Guarded};
use spare_group_communication::{Closed, Delivery, GroupChannel, NotSent};
use spare_protocol::SeatId;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;
use tokio::sync::mpsc;

const LIMIT: Duration = Duration::from_secs(20);

/// A folder with an agent, which writes what it is told into the file `told`.
struct Script {
    folder: PathBuf,
}

impl Script {
    fn new(name: &str, body: &str) -> Script {
        let folder =
            std::env::temp_dir().join(format!("spare-fence-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("folder");
        let script = Script { folder };
        let told = script.folder.join("told");
        let text = format!(
            "#!/bin/sh\nall=$(cat)\naction=$(echo \"$all\" | sed -n 's/^action=//p')\necho \"$all\" >> {}\n{body}\n",
            told.display()
        );
        // Written under another name: it must not be open for writing anywhere when it runs.
        let path = script.folder.join("agent.new");
        std::fs::write(&path, text).expect("write");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("mode");
        std::fs::rename(path, script.program()).expect("rename");
        script
    }

    fn program(&self) -> PathBuf {
        self.folder.join("agent")
    }

    fn agent(&self, limit: Duration) -> Agent {
        Agent {
            program: self.program().display().to_string(),
            parameters: [("port".to_owned(), "h2".to_owned())].into(),
            limit,
        }
    }

    fn told(&self) -> String {
        std::fs::read_to_string(self.folder.join("told")).unwrap_or_default()
    }

    fn settings(&self) -> config::Fencing {
        config::Fencing {
            agent: self.program().display().to_string(),
            parameters: [("key".to_owned(), "k".to_owned())].into(),
            hosts: [(
                "h1".to_owned(),
                [("port".to_owned(), "vm1".to_owned())].into(),
            )]
            .into(),
            delay_ms: 1,
            timeout_s: 10,
        }
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

const WORKS: &str = "case $action in off) exit 0;; status) exit 2;; esac; exit 1";

#[tokio::test]
async fn an_agent_is_told_on_its_input_and_asked_whether_it_is_so() {
    let script = Script::new("works", WORKS);
    let done = script.agent(LIMIT).turn_off().await;
    done.expect("it does both");
    assert_eq!(
        script.told(),
        "action=off\nport=h2\naction=status\nport=h2\n"
    );
}

#[tokio::test]
async fn an_agent_that_fails_lies_or_hangs_never_counts_as_success() {
    for (name, body, named) in [
        ("fails", "echo no such plug >&2; exit 1", "no such plug"),
        ("lies", "exit 0", "and then that it is on"),
        (
            "unsure",
            "case $action in off) exit 0;; esac; exit 1",
            "action=status",
        ),
        ("killed", "kill -9 $$", "was killed"),
        (
            "floods",
            "head -c 300000 /dev/zero >&2; exit 1",
            "ended with 1",
        ),
    ] {
        let script = Script::new(name, body);
        let refused = script.agent(LIMIT).turn_off().await.expect_err(name);
        let refused = refused.to_string();
        assert!(refused.contains(named), "{name}: {refused}");
    }
    let script = Script::new("hangs", "exec sleep 100");
    let refused = script.agent(Duration::from_millis(300)).turn_off().await;
    let refused = refused.expect_err("hangs").to_string();
    assert!(refused.contains("no answer"));
    let missing = Agent {
        program: "/nonexistent/agent".to_owned(),
        ..script.agent(LIMIT)
    };
    assert!(missing.turn_off().await.is_err());
}

/// An engine that delivers what the test says, and what is multicast.
struct Engine {
    deliveries: mpsc::UnboundedReceiver<Delivery>,
    sender: mpsc::UnboundedSender<Delivery>,
}

impl GroupChannel for Engine {
    fn multicast(&self, bytes: Bytes) -> Result<(), NotSent> {
        let message = Delivery::Message { from: 0, bytes };
        self.sender.send(message).map_err(|_| Closed.into())
    }

    async fn receive(&mut self) -> Result<Delivery, Closed> {
        self.deliveries.recv().await.ok_or(Closed)
    }

    fn try_receive(&mut self) -> Option<Delivery> {
        self.deliveries.try_recv().ok()
    }

    fn majority_decides(&self) -> bool {
        true
    }
}

/// Host h0 of two, and its engine.
struct Host {
    group: Guarded<Engine>,
    engine: mpsc::UnboundedSender<Delivery>,
    fencing: Arc<Fencing>,
    event_log: Arc<EventLog>,
    suspended: watch::Sender<bool>,
    _task: JoinSet<()>,
}

impl Host {
    fn new(settings: Option<&config::Fencing>) -> Host {
        let (sender, deliveries) = mpsc::unbounded_channel();
        let engine = Engine {
            deliveries,
            sender: sender.clone(),
        };
        let (group, guard) = guarded(engine, vec![0, 1]);
        let archive = Archive::new(PathBuf::new(), 1, 0);
        let event_log = Arc::new(EventLog::new(
            SeatId(0),
            vec![SeatId(0)],
            archive,
            Assumption::new(1, Duration::from_secs(3600)),
        ));
        let host = |seat: u16| config::Host {
            name: format!("h{seat}"),
            seat,
            address: ([127, 0, 0, 1], 7400 + seat).into(),
        };
        let hosts = vec![host(0), host(1)];
        let (suspended, told) = watch::channel(true);
        let fencing = Fencing::new(guard, told, hosts, settings, Arc::clone(&event_log));
        let fencing = Arc::new(fencing);
        let mut task = JoinSet::new();
        task.spawn(Arc::clone(&fencing).run());
        Host {
            group,
            engine: sender,
            fencing,
            event_log,
            suspended,
            _task: task,
        }
    }

    /// The engine tells of a membership; returns whether it may decide.
    async fn membership(&mut self, ring: u64, members: &[u16], primary: bool) -> bool {
        let members = members.to_vec();
        let view = Delivery::View {
            ring,
            members,
            primary,
        };
        self.engine.send(view).expect("open");
        self.next_view(LIMIT).await.expect("a view")
    }

    /// Whether the next view may decide; none if none comes in time.
    async fn next_view(&mut self, limit: Duration) -> Option<bool> {
        match tokio::time::timeout(limit, self.group.receive()).await {
            Ok(Ok(Delivery::View { primary, .. })) => Some(primary),
            Ok(Ok(Delivery::Suspended { .. })) => Some(false),
            Ok(other) => panic!("{other:?}"),
            Err(_) => None,
        }
    }

    async fn said(&self, text: &str) -> bool {
        let until = tokio::time::Instant::now() + Duration::from_secs(5);
        let mut after = 0;
        loop {
            let events = self.event_log.events_after(after, until).await;
            match events.last() {
                Some(last) => after = last.number,
                None => return false,
            }
            if events.iter().any(|e| e.text.contains(text)) {
                return true;
            }
        }
    }
}

const SHORT: Duration = Duration::from_millis(500);

#[tokio::test]
async fn the_survivor_goes_on_once_the_lost_host_was_turned_off() {
    let script = Script::new("survivor", WORKS);
    let mut host = Host::new(Some(&script.settings()));
    assert!(host.membership(1, &[0, 1], true).await);
    assert!(!host.membership(2, &[0], false).await);
    assert_eq!(host.next_view(LIMIT).await, Some(true));
    assert!(script.told().starts_with("action=off\nkey=k\nport=vm1\n"));
    assert!(host.said("h1 is off").await);
    assert!(host.fencing.confirm("h1").is_err());
}

#[tokio::test]
async fn a_host_that_has_yet_to_take_over_the_state_turns_nobody_off() {
    let script = Script::new("joining", WORKS);
    let mut host = Host::new(Some(&script.settings()));
    host.suspended.send_replace(false);
    assert!(host.membership(1, &[0, 1], true).await);
    assert!(!host.membership(2, &[0], false).await);
    assert_eq!(host.next_view(SHORT * 4).await, None);
    assert_eq!(script.told(), "");
    host.suspended.send_replace(true);
    assert_eq!(host.next_view(LIMIT).await, Some(true));
}

#[tokio::test]
async fn a_host_that_stood_still_waits_before_it_turns_others_off() {
    let script = Script::new("stood-still", WORKS);
    let mut host = Host::new(Some(&script.settings()));
    assert!(host.membership(1, &[0, 1], true).await);
    tokio::time::sleep(TICK * 2).await;
    // Nothing else runs meanwhile: the runtime has this thread only.
    std::thread::sleep(Duration::from_micros(STALL.0) * 2);
    assert!(!host.membership(2, &[0], false).await);
    assert_eq!(host.next_view(SETTLING + SHORT).await, None);
    assert_eq!(script.told(), "");
    // It saw itself alone for a moment.
    assert!(host.membership(3, &[0, 1], true).await);
    tokio::time::sleep(SETTLING_AFTER_STALL).await;
    assert_eq!(script.told(), "");
}

#[tokio::test]
async fn with_an_agent_that_fails_the_survivor_waits_for_an_operators_word() {
    let script = Script::new("refuses", "echo unreachable >&2; exit 1");
    let mut host = Host::new(Some(&script.settings()));
    assert!(host.membership(1, &[0, 1], true).await);
    assert!(!host.membership(2, &[0], false).await);
    assert!(host.said("unreachable").await);
    assert_eq!(host.next_view(SHORT).await, None);
    assert!(host.fencing.confirm("h7").is_err());
    assert!(host.fencing.confirm("h0").is_err());
    assert_eq!(host.fencing.confirm("h1"), Ok(()));
    assert_eq!(host.next_view(LIMIT).await, Some(true));
}

#[tokio::test]
async fn a_host_that_is_late_at_the_start_is_not_turned_off() {
    let script = Script::new("late", WORKS);
    let mut host = Host::new(Some(&script.settings()));
    assert!(!host.membership(1, &[0], false).await);
    assert_eq!(host.next_view(SHORT).await, None);
    assert_eq!(script.told(), "");
    assert!(host.said("spare fence confirm").await);
}

#[tokio::test]
async fn without_an_agent_nobody_is_turned_off_and_the_reason_is_told() {
    let mut host = Host::new(None);
    assert!(host.membership(1, &[0, 1], true).await);
    assert!(!host.membership(2, &[0], false).await);
    assert!(host.said("there is no quorum without it").await);
    assert_eq!(host.next_view(SHORT).await, None);
}
