//! The group engine as Corosync's closed process groups give it (virtual synchrony), and the messages
//! beside it.
//!
//! - A *ring* is a membership with one total order of messages. Every member takes them with a lag of its
//!   own.
//! - Members that move together from one ring to the next have delivered the same in the old one. Members
//!   that part may have delivered different beginnings of it; what their own group sent after the cut
//!   they deliver in their transitional membership, or it is lost with what was not sequenced yet.
//! - A ring is primary with a majority of all seats; of two seats, with both, or as the witness says.
//!   Two rings are never primary at once, but a member may learn late that its ring is none any more.
//! - Where lost hosts are turned off there is no witness. Half of all seats, if they cannot decide, know that
//!   nobody else can; once the others are off, their ring is followed by one that is primary.

use crate::random::Random;
use spare_protocol::messages::Envelope;
use spare_protocol::SeatId;
use std::collections::VecDeque;
use std::rc::Rc;

/// A membership and its messages.
#[derive(Clone, Debug)]
pub(crate) struct Ring {
    pub(crate) members: Vec<usize>,
    pub(crate) primary: bool,
    /// Not primary, and no other can be.
    pub(crate) suspended: bool,
    /// Primary because everybody else was turned off.
    pub(crate) fenced: bool,
    /// Every position that was acknowledged before it formed is at or below this.
    pub(crate) acknowledged: u64,
    pub(crate) log: Vec<(usize, Rc<Envelope>)>,
}

/// Something that a manager is to deliver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Item {
    View(usize),
    Message(usize, usize),
}

/// A manager's end of the group engine.
#[derive(Clone, Debug, Default)]
pub(crate) struct Port {
    /// The engine runs and forms rings with the others.
    pub(crate) joined: bool,
    /// The ring that the engine is in; its manager may not know it yet.
    pub(crate) ring: Option<usize>,
    /// Multicast and not sequenced.
    pub(crate) outbox: VecDeque<Rc<Envelope>>,
    pub(crate) sequence_at: u64,
    /// Messages whose turn came while the ring did not work: they are sequenced once it does.
    pub(crate) stalled: usize,
    pub(crate) inbox: VecDeque<(u64, Item)>,
    pub(crate) drain_scheduled: bool,
    /// Messages that the manager delivered in `ring`.
    pub(crate) consumed: usize,
    /// Extra lag.
    pub(crate) lag: u64,
}

impl Port {
    pub(crate) fn push(&mut self, at: u64, item: Item) -> u64 {
        let last = self.inbox.back().map_or(0, |(at, _)| *at);
        let at = at.max(last);
        self.inbox.push_back((at, item));
        at
    }
}

/// All rings, and which hosts reach each other.
#[derive(Clone, Debug)]
pub(crate) struct Network {
    pub(crate) random: Random,
    /// `links[a][b]`: messages from a reach b.
    pub(crate) links: Vec<Vec<bool>>,
    pub(crate) rings: Vec<Ring>,
    /// Of a thousand peer messages so many are lost.
    pub(crate) loss: u64,
    /// The seat that the witness lets go on alone, of two.
    pub(crate) witness: Option<usize>,
    /// Hosts that are lost are turned off; there is no witness.
    pub(crate) fences: bool,
    pub(crate) healed: bool,
}

/// A ring that formed, with the items that its members deliver before.
pub(crate) struct Formed {
    pub(crate) ring: usize,
    pub(crate) members: Vec<usize>,
}

impl Network {
    pub(crate) fn new(hosts: usize, random: Random) -> Network {
        Network {
            random,
            links: vec![vec![true; hosts]; hosts],
            rings: Vec::new(),
            loss: 5,
            witness: None,
            fences: false,
            healed: false,
        }
    }

    pub(crate) fn connect_all(&mut self) {
        for row in &mut self.links {
            row.fill(true);
        }
    }

    fn linked(&self, a: usize, b: usize) -> bool {
        self.links[a][b] && self.links[b][a]
    }

    /// Whether all members of the ring that this host's engine is in reach each other.
    pub(crate) fn ring_works(&self, ports: &[Port], host: usize) -> bool {
        let Some(ring) = ports[host].ring.and_then(|r| self.rings.get(r)) else {
            return false;
        };
        let there = |m: &usize| ports[*m].joined && ports[*m].ring == ports[host].ring;
        let hears = |m: &usize| *m == host || self.linked(host, *m);
        ring.members.iter().all(|m| there(m) && hears(m))
    }

    /// Groups of hosts that all reach each other.
    fn components(&mut self, ports: &[Port]) -> Vec<Vec<usize>> {
        let mut left: Vec<usize> = (0..ports.len()).filter(|h| ports[*h].joined).collect();
        self.random.shuffle(&mut left);
        let mut components: Vec<Vec<usize>> = Vec::new();
        for host in left {
            let home = components
                .iter()
                .position(|c| c.iter().all(|m| self.linked(*m, host)));
            match home {
                Some(home) => components[home].push(host),
                None => components.push(vec![host]),
            }
        }
        for component in &mut components {
            component.sort_unstable();
        }
        components.sort();
        components
    }

    /// Forms the rings that the links allow. `flap`: even those that exist already.
    pub(crate) fn form(
        &mut self,
        ports: &mut [Port],
        now: u64,
        acknowledged: u64,
        flap: bool,
    ) -> Vec<Formed> {
        let components = self.components(ports);
        let seats = ports.len();
        let mut formed = Vec::new();
        let mut plans = Vec::new();
        let granted = self.ask_witness(&components, seats, ports);
        for component in components {
            let current = ports[component[0]].ring;
            let together = component.iter().all(|m| ports[*m].ring == current);
            let ring = current.and_then(|r| self.rings.get(r));
            let fenced = together && ring.is_some_and(|r| r.fenced && r.members == component);
            let primary = match seats {
                2 => component.len() == 2 || granted == component.first().copied(),
                _ => component.len() * 2 > seats,
            };
            let primary = primary || fenced;
            let suspended = !primary && self.fences && component.len() * 2 >= seats;
            let stays = ring.is_some_and(|r| r.members == component && r.primary == primary);
            if together && stays && !flap {
                continue;
            }
            // A minority that was cut off may notice nothing before it is back. (Of two hosts one alone
            // can become primary: an engine tells it first that it is cut off.)
            let unaware = !primary
                && !suspended
                && seats > 2
                && !self.healed
                && current.is_some()
                && self.random.permille(200);
            if !unaware {
                plans.push((component, primary, suspended, fenced));
            }
        }
        for (members, primary, suspended, fenced) in plans {
            let ring = Ring {
                members,
                primary,
                suspended,
                fenced,
                acknowledged,
                log: Vec::new(),
            };
            formed.push(self.open(ports, now, ring));
        }
        formed
    }

    /// Everybody else is off: the members of a suspended ring go on in one that is primary.
    pub(crate) fn go_on(
        &mut self,
        ports: &mut [Port],
        now: u64,
        acknowledged: u64,
        ring: usize,
    ) -> Formed {
        let ring = Ring {
            members: self.rings[ring].members.clone(),
            primary: true,
            suspended: false,
            fenced: true,
            acknowledged,
            log: Vec::new(),
        };
        self.open(ports, now, ring)
    }

    fn open(&mut self, ports: &mut [Port], now: u64, ring: Ring) -> Formed {
        let members = ring.members.clone();
        let number = self.rings.len();
        self.leave_together(ports, &members, now);
        self.rings.push(ring);
        for member in &members {
            let lag = self.lag(ports[*member].lag);
            let port = &mut ports[*member];
            port.ring = Some(number);
            port.consumed = 0;
            port.push(now + lag, Item::View(number));
        }
        Formed {
            ring: number,
            members,
        }
    }

    fn ask_witness(
        &mut self,
        components: &[Vec<usize>],
        seats: usize,
        ports: &[Port],
    ) -> Option<usize> {
        if seats != 2 || self.fences || components.iter().any(|c| c.len() == 2) {
            self.witness = None;
            return None;
        }
        let alone: Vec<usize> = components.iter().map(|c| c[0]).collect();
        let holder = self
            .witness
            .filter(|w| alone.contains(w) && ports[*w].joined);
        if holder.is_none() {
            let answers = self.healed || self.random.permille(800);
            self.witness = self.random.pick(&alone).filter(|_| answers);
        }
        self.witness
    }

    /// Each group that comes from one ring agrees on what it delivered there.
    fn leave_together(&mut self, ports: &mut [Port], members: &[usize], now: u64) {
        let mut sources: Vec<usize> = members.iter().filter_map(|m| ports[*m].ring).collect();
        sources.sort_unstable();
        sources.dedup();
        for source in sources {
            let group: Vec<usize> = members
                .iter()
                .copied()
                .filter(|m| ports[*m].ring == Some(source))
                .collect();
            let length = self.rings[source].log.len();
            let delivered = group.iter().map(|m| ports[*m].consumed).max().unwrap_or(0);
            let delivered = delivered.min(length);
            let cut = match self.random.below(10) {
                0..=4 => length,
                5..=7 => delivered,
                _ => delivered + self.random.index(length - delivered + 1),
            };
            let own_tail_lost = self.random.permille(400);
            let unsequenced_lost = own_tail_lost || self.random.permille(300);
            let tail: Vec<usize> = (cut..length)
                .filter(|i| !own_tail_lost && group.contains(&self.rings[source].log[*i].0))
                .collect();
            for member in &group {
                let lag = self.lag(ports[*member].lag);
                let port = &mut ports[*member];
                let beyond =
                    |item: &Item| matches!(item, Item::Message(r, i) if *r == source && *i >= cut);
                port.inbox.retain(|(_, item)| !beyond(item));
                // What it has not received yet but the others have, it is sent now.
                for index in &tail {
                    port.push(now + lag, Item::Message(source, *index));
                }
                if unsequenced_lost {
                    port.outbox.clear();
                }
            }
        }
    }

    pub(crate) fn lag(&mut self, extra: u64) -> u64 {
        let mut lag = self.random.skewed(30, 400) + extra;
        if self.random.permille(3) {
            lag += self.random.below(15_000);
        }
        lag
    }

    /// When a peer message arrives: never, once, or twice.
    pub(crate) fn arrivals(&mut self, from: usize, to: usize, now: u64) -> [Option<u64>; 2] {
        let lost = !self.links[from][to] || self.random.permille(self.loss);
        if lost {
            return [None, None];
        }
        let mut delay = || {
            let late = self.random.permille(20);
            self.random.skewed(50, 3000) + if late { self.random.below(400_000) } else { 0 }
        };
        let (first, second) = (now + delay(), now + delay());
        let twice = self.random.permille(20);
        [Some(first), twice.then_some(second)]
    }
}

pub(crate) fn seat(host: usize) -> SeatId {
    SeatId(u16::try_from(host).unwrap_or(u16::MAX))
}
