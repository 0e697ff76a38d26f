//! How to join a group over Corosync, and why that can fail.

use super::close_reason::CloseReason;
use crate::channel::MemberId;
use rust_corosync::CsError;
use std::collections::BTreeMap;

/// The longest name of a group that CPG takes.
pub(super) const GROUP_NAME_MAX: usize = 127;

/// Who joins which group.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The member that joins.
    pub me: MemberId,
    /// The members by the numbers of Corosync's nodes (`nodeid`).
    pub nodes: BTreeMap<u32, MemberId>,
    /// The name of the group, up to 127 bytes. Several groups can share a Corosync.
    pub group: String,
    /// The greatest name of a view that this member has on disk; 0 if there is none.
    pub last_ring: u64,
}

impl Settings {
    /// The settings of `me`, with what is usual for the rest.
    #[must_use]
    pub fn new(me: MemberId, nodes: BTreeMap<u32, MemberId>, group: &str) -> Settings {
        Settings {
            me,
            nodes,
            group: group.to_owned(),
            last_ring: 0,
        }
    }
}

/// Why a group cannot be joined.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// Corosync does not answer.
    #[error(
        "Corosync does not answer on this host ({0}): start it (systemctl start corosync), or see why it \
         ended (journalctl -u corosync)"
    )]
    NotRunning(CsError),
    /// Corosync does not let this user in.
    #[error(
        "Corosync does not let this process in ({0}): name its user in a file in /etc/corosync/uidgid.d \
         (uidgid {{ uid: spare }}) and restart corosync"
    )]
    Refused(CsError),
    /// The settings and Corosync do not agree on who this is.
    #[error(
        "this host is Corosync's node {node}, which {}, but this manager is member {me}: make the list of \
         hosts and `nodelist` in /etc/corosync/corosync.conf agree",
        if *listed { format!("is listed as member {found}") } else { "is not in the list of members".into() }
    )]
    NotInTheList {
        /// What Corosync calls this host.
        node: u32,
        /// The member that this manager is by its own configuration.
        me: MemberId,
        /// Who that node is according to the list, if it is `listed`.
        found: MemberId,
        /// Whether the node is in the list.
        listed: bool,
    },
    /// Both halves of a cluster that is cut in two would be quorate.
    #[error(
        "corosync.conf has `two_node: 1`: both halves of a group that is cut in two would go on. Remove it on all hosts \
         and restart corosync; without a witness, fencing lets one host go on alone"
    )]
    TwoNode,
    /// Another process of this host is in the group.
    #[error("process {process} on this host is in the group already: end it first")]
    Taken {
        /// Its process id on this host.
        process: u32,
    },
    /// CPG takes no such name.
    #[error("the name of the group is longer than 127 bytes, or empty")]
    Name,
    /// A thread cannot be started.
    #[error("starting a thread: {0}")]
    Thread(std::io::Error),
    /// The group was closed while it was joined.
    #[error("the group was closed while it was joined: {0}")]
    Ended(CloseReason),
}

impl JoinError {
    /// Whether it may be otherwise in a moment: Corosync is busy, or an earlier connection of this process is ending.
    pub(super) fn may_pass(&self) -> bool {
        let passing = [
            CsError::CsErrTryAgain,
            CsError::CsErrExist,
            CsError::CsErrTimeout,
        ];
        match self {
            JoinError::NotRunning(e) => passing.contains(e),
            JoinError::Taken { .. } => true,
            _ => false,
        }
    }
}

impl From<CsError> for JoinError {
    fn from(e: CsError) -> JoinError {
        match e {
            CsError::CsErrAccess | CsError::CsErrSecurity => JoinError::Refused(e),
            _ => JoinError::NotRunning(e),
        }
    }
}
