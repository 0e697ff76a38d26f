//! One total order: what is safe or answered at one manager is at that position at every manager, and
//! the group's state is the same wherever the same messages were delivered.

use super::{hold, Verdict};
use spare_protocol::{Class, Hash, Position};
use std::collections::BTreeMap;

const RULE: &str = "one total order";
/// Rings whose states are remembered.
const PRINTS_MAX: usize = 4096;

#[derive(Debug, Default)]
pub(crate) struct OneTotalOrder {
    /// The digest of the log up to each position that is fixed for ever.
    fixed: Vec<Option<u64>>,
    prints: BTreeMap<(usize, usize), (usize, (u64, Hash))>,
    /// What was executed at each position last: another history may have another request there.
    classes: BTreeMap<Position, Class>,
}

impl OneTotalOrder {
    /// At this position, the log with this digest is final.
    pub(crate) fn fix(&mut self, host: usize, position: Position, digest: u64) -> Verdict {
        let at = usize::try_from(position.0).unwrap_or(usize::MAX);
        if self.fixed.len() <= at {
            self.fixed.resize(at + 1, None);
        }
        let known = *self.fixed[at].get_or_insert(digest);
        hold(RULE, known == digest, || {
            format!("host {host} has another history up to {position} than was fixed before")
        })
    }

    pub(crate) fn fixed(&self, position: Position) -> Option<u64> {
        let at = usize::try_from(position.0).ok()?;
        self.fixed.get(at).copied().flatten()
    }

    /// A replica is to execute a request.
    pub(crate) fn executed(&mut self, position: Position, class: Class) {
        self.classes.insert(position, class);
    }

    pub(crate) fn is_read(&self, position: Position) -> bool {
        self.classes.get(&position) == Some(&Class::Read)
    }

    /// The last write or scrub before this position.
    pub(crate) fn write_before(&self, position: Position) -> Option<Position> {
        let mut before = self.classes.range(..position).rev();
        before.find(|(_, c)| c.is_exclusive()).map(|(p, _)| *p)
    }

    /// After the message at `index` of `ring`, the group's state at `host` is this.
    pub(crate) fn state(
        &mut self,
        host: usize,
        (ring, index): (usize, usize),
        print: (u64, Hash),
    ) -> Verdict {
        let known = *self.prints.entry((ring, index)).or_insert((host, print));
        if self.prints.len() > PRINTS_MAX {
            self.prints.pop_first();
        }
        hold(RULE, known.1 == print, || {
            format!(
                "after message {index} of ring {ring} the group's state at host {host} ({print:?}) differs \
                 from that at host {} ({:?})",
                known.0, known.1
            )
        })
    }
}
