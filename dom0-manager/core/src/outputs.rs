//! What one step asks the daemon to do, in order.

use crate::io::{Notice, Output};
use spare_protocol::messages::{Envelope, OrderedMessage, PeerMessage};
use spare_protocol::{ReplicaId, SeatId};

/// The outputs of the step that is under way, and how this manager speaks to the others in it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outputs {
    list: Vec<Output>,
    /// The epoch of the group's state: what is multicast says so.
    epoch: u64,
    /// The version of the protocol that the group speaks: what came with a later one is not said.
    version: u16,
    /// Nobody may act on what this manager says.
    muted: bool,
}

impl Outputs {
    /// What is multicast from now on belongs to this epoch, in a group that speaks this version of the protocol.
    pub(crate) fn speak_in(&mut self, epoch: u64, version: u16) {
        self.epoch = epoch;
        self.version = version;
    }

    /// A suspended manager says nothing: what matters is said again in a ring that is primary.
    pub(crate) fn mute(&mut self, muted: bool) {
        self.muted = muted;
    }

    pub(crate) fn push(&mut self, output: Output) {
        self.list.push(output);
    }

    pub(crate) fn notice(&mut self, notice: Notice) {
        self.list.push(Output::Notice(notice));
    }

    pub(crate) fn alarm(&mut self, text: String) {
        self.notice(Notice::Alarm(text));
    }

    pub(crate) fn multicast(&mut self, message: OrderedMessage) {
        if !self.muted && message.since() <= self.version {
            let epoch = self.epoch;
            self.push(Output::Multicast(Envelope { epoch, message }));
        }
    }

    pub(crate) fn send(&mut self, to: SeatId, message: PeerMessage) {
        self.push(Output::SendPeer { to, message });
    }

    /// A replica is remembered across restarts of the manager as one that never executed a request, or that did.
    pub(crate) fn put_in_service(&mut self, replica: ReplicaId, clean: bool) {
        self.push(Output::PutInService { replica, clean });
    }

    /// Exchanges the outputs for those in `list`.
    pub(crate) fn swap(&mut self, list: &mut Vec<Output>) {
        std::mem::swap(&mut self.list, list);
    }
}
