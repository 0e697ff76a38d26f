//! A parting at the worst moment: a manager is a member again, and nobody of those who were members before it knows
//! so for good. Cut off from them it waits for one of them; cut off from yet more, where half of all are in doubt, it
//! waits suspended.

use crate::plan::MS;
use crate::world::World;
use spare_core::{Core, ManagerState, Notice};

impl World {
    /// Parts the hosts, now and then, if this is the moment.
    pub(crate) fn part_at_a_return(&mut self, host: usize, notice: &Notice) {
        let Notice::ManagerState { from, to } = notice else {
            return;
        };
        match (from, to) {
            (ManagerState::CatchingUp, ManagerState::Serving) => self.cut_members_off(host),
            (ManagerState::Syncing, ManagerState::Waiting) if self.newest_member == Some(host) => {
                self.newest_member = None;
                self.leave_half(host);
            }
            _ => {}
        }
    }

    /// This host is a member from here on. Those that were members before are cut off, if they are few.
    fn cut_members_off(&mut self, host: usize) {
        let serves = |h: &usize| {
            let core = self.hosts[*h].core.as_ref();
            core.map(Core::state) == Some(ManagerState::Serving)
        };
        let others = (0..self.hosts.len()).filter(|h| *h != host);
        let members: Vec<usize> = others.filter(serves).collect();
        let few = !members.is_empty() && members.len() * 2 < self.hosts.len();
        if few && self.fault_random.permille(500) {
            self.newest_member = Some(host);
            self.cut_off(&members, 200);
        }
    }

    /// This host and as many others as make half of all are cut off.
    fn leave_half(&mut self, host: usize) {
        let mut half = vec![host];
        let linked = |h: &usize| *h != host && self.network.links[host][*h];
        let others = (0..self.hosts.len()).filter(linked);
        half.extend(others.take(self.hosts.len() / 2 - 1));
        self.cut_off(&half, 2 * MS);
    }
}
