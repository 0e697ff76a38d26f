//! How long Corosync keeps a ring together in which messages are missing for good.
//!
//! It gives such a ring up after `totem.fail_recv_const` rounds of the token, 2500 by default. That is a second while
//! the token hurries, 21 minutes where an idle ring's token is held back, and 12 minutes where losses while the ring was
//! formed left one node in its recovery: there the token is sent again only each time it is taken for lost
//! (corosync/corosync#445). The number is read in every round, so it can be lowered in the middle of one.
//!
//! A node that is through with its recovery and waits for the others answers nobody until they have found together, which is
//! when messages that are missing for good keep them apart. Nothing can be lowered there any more: so the number is
//! moderate all the time, and lowered further where that still helps.

use rust_corosync::{cmap, CsError};

/// The setting as an operator makes it, in rounds of the token; a change of it takes effect at once.
const ROUNDS_KEY: &str = "totem.fail_recv_const";
/// The number of rounds that Corosync goes by at present: the setting, or its own default.
const ROUNDS_NOW_KEY: &str = "runtime.config.totem.fail_recv_const";
/// Corosync's own default.
const ROUNDS_DEFAULT: u32 = 2500;
/// What it is made if it is Corosync's own default: at half a second each, less than half a minute. A network that loses
/// two thirds of all packets loses one and the same so often in a row once in 10⁸ times.
const ROUNDS_MODERATE: u32 = 50;
/// Few enough to be over in seconds at 0.3 s each. Nobody else has a reason to configure it, so it tells what a process
/// left that did not live to take it back.
const ROUNDS_SHORT: u32 = 11;

/// A connection to Corosync's map that is there before it is needed: none is made while a ring is formed.
pub(super) struct FailRecvConst {
    map: cmap::Handle,
    /// While the number is lowered, the one that it had before.
    usual: Option<u32>,
}

impl FailRecvConst {
    /// Takes back what an earlier run of this process left.
    pub(super) fn connect() -> rust_corosync::Result<FailRecvConst> {
        let map = cmap::initialize(cmap::Map::Icmap)?;
        let mut fail_recv = FailRecvConst { map, usual: None };
        if fail_recv.now()? == ROUNDS_SHORT {
            fail_recv.usual = Some(ROUNDS_MODERATE);
            fail_recv.restore();
        }
        fail_recv.moderate();
        Ok(fail_recv)
    }

    /// Has the number moderate, unless an operator chose one. Reading Corosync's configuration anew undoes that.
    pub(super) fn moderate(&mut self) {
        if self.usual.is_some() {
            return;
        }
        let moderated = self.now().and_then(|now| match now {
            ROUNDS_DEFAULT => cmap::set_u32(&self.map, ROUNDS_KEY, ROUNDS_MODERATE),
            _ => Ok(()),
        });
        if let Err(e) = moderated {
            tracing::warn!(
                "Corosync may keep a ring for minutes in which nothing is ordered: {ROUNDS_KEY} cannot be set to \
                 {ROUNDS_MODERATE} ({e})"
            );
        }
    }

    fn now(&self) -> rust_corosync::Result<u32> {
        match cmap::get(&self.map, ROUNDS_NOW_KEY) {
            Ok(cmap::Data::UInt32(rounds)) => Ok(rounds),
            Ok(_) | Err(CsError::CsErrNotExist) => Ok(ROUNDS_DEFAULT),
            Err(error) => Err(error),
        }
    }

    /// Has Corosync give the ring up after a few more rounds, if messages are missing in it.
    pub(super) fn lower(&mut self) {
        let shortened = self.now().and_then(|usual| {
            self.usual.get_or_insert(usual);
            cmap::set_u32(&self.map, ROUNDS_KEY, ROUNDS_SHORT)
        });
        if let Err(e) = shortened {
            tracing::warn!("Corosync keeps the ring: {ROUNDS_KEY} cannot be lowered ({e})");
        }
    }

    /// From here on Corosync waits as long as before.
    pub(super) fn restore(&mut self) {
        let Some(usual) = self.usual else {
            return;
        };
        match cmap::set_u32(&self.map, ROUNDS_KEY, usual) {
            Ok(()) => self.usual = None,
            // Tried again with the next message.
            Err(CsError::CsErrTryAgain) => {}
            Err(e) => {
                self.usual = None;
                tracing::warn!(
                    "Corosync would give up any ring after {ROUNDS_SHORT} rounds of its token: {ROUNDS_KEY} cannot be \
                     set back to {usual} ({e}); restart corosync on this host"
                );
            }
        }
    }
}
