//! A hypervisor in memory, for tests of everything above the hypervisor.

use crate::error::{Error, Result};
use crate::hypervisor::{Hypervisor, State, StateChange, Usage};
use crate::pids::Process;
use crate::states::States;
use spare_protocol::ReplicaId;
use std::collections::BTreeMap;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use tokio::sync::broadcast;

/// What its ports say to whoever connects.
pub(crate) const GREETING: &[u8] = b"hello from the guest";
/// The image it knows; creating from `HANGS` never returns.
pub(crate) const IMAGE: &str = "shop";
/// The image from which creating hangs.
pub(crate) const HANGS: &str = "hangs";

/// A hypervisor in memory.
pub(crate) struct Double {
    guests: Mutex<BTreeMap<ReplicaId, State>>,
    states: States,
}

impl Double {
    pub(crate) fn new() -> Double {
        Double {
            guests: Mutex::default(),
            states: States::new(),
        }
    }

    fn set(&self, replica: ReplicaId, state: State, reason: &'static str) -> Result<()> {
        match self.guests.lock().unwrap().get_mut(&replica) {
            Some(guest) => *guest = state,
            None => return Err(Error::NoSuchReplica(replica)),
        }
        self.states.saw(replica, state, reason);
        Ok(())
    }
}

impl Hypervisor for Double {
    fn create(&self, replica: ReplicaId, image: &str) -> Result<()> {
        if image == HANGS {
            loop {
                std::thread::park();
            }
        }
        if image != IMAGE {
            return Err(Error::NoSuchImage {
                name: image.to_owned(),
                folder: "/images".into(),
                missing: "image.toml",
            });
        }
        let mut guests = self.guests.lock().unwrap();
        if guests.insert(replica, State::Running).is_some() {
            return Err(Error::ReplicaExists(replica));
        }
        self.states.saw(replica, State::Running, "created");
        Ok(())
    }

    fn pause(&self, replica: ReplicaId) -> Result<()> {
        self.set(replica, State::Paused, "paused")
    }

    fn unpause(&self, replica: ReplicaId, _: Option<&Arc<Process>>) -> Result<()> {
        self.set(replica, State::Running, "unpaused")
    }

    fn destroy(&self, replica: ReplicaId) -> Result<()> {
        self.set(replica, State::Stopped, "destroyed")?;
        self.guests.lock().unwrap().remove(&replica);
        Ok(())
    }

    fn quarantine(&self, replica: ReplicaId) -> Result<PathBuf> {
        self.set(replica, State::Stopped, "quarantined")?;
        self.guests.lock().unwrap().remove(&replica);
        Ok(PathBuf::from(format!("/quarantine/{replica}")))
    }

    fn image_content(&self, image: &str) -> Result<String> {
        Ok(format!("content{image}"))
    }

    fn open_channel(&self, _: ReplicaId, _: &str) -> Result<OwnedFd> {
        let (mut guest, host) = UnixStream::pair().unwrap();
        guest.write_all(GREETING).unwrap();
        Ok(host.into())
    }

    fn list(&self) -> Result<Vec<(ReplicaId, State)>> {
        let guests = self.guests.lock().unwrap();
        Ok(guests.iter().map(|(r, s)| (*r, *s)).collect())
    }

    fn usage(&self, _: ReplicaId) -> Result<Usage> {
        Ok(Usage {
            cpu_ns: 5,
            memory_kib: 7,
        })
    }

    fn prioritise(&self, _: ReplicaId, _: i32) -> Result<()> {
        Ok(())
    }

    fn accelerator(&self) -> Result<&'static str> {
        Ok("tcg")
    }

    fn events(&self) -> broadcast::Receiver<StateChange> {
        self.states.subscribe()
    }
}
