//! Hosts that are added and removed: an operator writes other seats into all configurations, and the managers find
//! them when they start.

use crate::faults::Fault;
use crate::network::seat;
use crate::plan::{seats, MS, SECOND};
use crate::world::{Event, World};
use spare_protocol::SeatId;

impl World {
    /// One host is to come later: nobody but itself knows of it.
    pub(crate) fn begin_without_the_last(&mut self) {
        let last = self.hosts.len() - 1;
        self.seats = seats(last);
        for host in &mut self.hosts[..last] {
            host.listed = seats(last);
        }
    }

    /// The last host is added: it starts before the others know of it, or later.
    pub(crate) fn add_host(&mut self) -> bool {
        let host = self.hosts.len() - 1;
        if self.seats.contains(&seat(host)) {
            return false;
        }
        self.later(10 * MS, 20 * SECOND, Event::Start { host });
        self.configure(seats(self.hosts.len()));
        true
    }

    /// A host that is gone for good is removed, if enough are left.
    pub(crate) fn remove_host(&mut self, host: usize) -> bool {
        let gone = seat(host);
        let left: Vec<SeatId> = self.seats.iter().copied().filter(|s| *s != gone).collect();
        if left.len() < self.plan.config.quorum() {
            return false;
        }
        self.configure(left);
        true
    }

    fn configure(&mut self, seats: Vec<SeatId>) {
        for host in 0..self.hosts.len() {
            self.hosts[host].listed.clone_from(&seats);
            let restart = Event::Fault(Fault::ManagerCrashes(host));
            self.later(10 * MS, 20 * SECOND, restart);
        }
        self.seats = seats;
    }

    /// What an operator was in the middle of is done.
    pub(crate) fn finish_configuring(&mut self) {
        if self.plan.adds {
            self.add_host();
        }
        for host in 0..self.hosts.len() {
            if self.hosts[host].runs_with != self.hosts[host].listed {
                self.crash_now(host, false);
            }
        }
    }
}
