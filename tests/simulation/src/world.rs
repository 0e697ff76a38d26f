//! A whole run: hosts, network, clients and faults, moved on event by event.

use crate::clients::{Client, Operated};
use crate::coverage::Coverage;
use crate::faults::{Budget, Fault, Tally};
use crate::host::{Call, Host};
use crate::invariants::{Checks, Verdict, Violation};
use crate::network::{Network, Port};
use crate::plan::{Plan, MS, SECOND};
use crate::random::Random;
use crate::strain::Allowance;
use crate::trace::Trace;
use spare_core::{Input, Output};
use spare_protocol::messages::PeerMessage;
use spare_protocol::{Position, ReplicaId, SeatId};
use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

/// Something that will happen.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    /// The engine hands a manager what it has for it.
    Drain {
        host: usize,
        life: u32,
    },
    /// The engine sequences what a manager multicast.
    Sequence {
        host: usize,
        life: u32,
    },
    Peer {
        from: usize,
        to: usize,
        message: Box<PeerMessage>,
    },
    Tick {
        host: usize,
        life: u32,
        at: u64,
    },
    Flush {
        host: usize,
        life: u32,
    },
    Synced {
        host: usize,
        life: u32,
        count: usize,
    },
    Called {
        host: usize,
        life: u32,
        replica: ReplicaId,
        call: Call,
        works: bool,
    },
    Speaks {
        host: usize,
        life: u32,
        replica: ReplicaId,
    },
    /// A client does something.
    Client(usize),
    /// Clients come all at once.
    Rush,
    /// A client loses patience.
    Impatient {
        client: usize,
        attempt: u64,
    },
    /// The engines notice who is there.
    Form {
        flap: bool,
    },
    Start {
        host: usize,
    },
    /// The members of a suspended ring turn off everybody else.
    Fence {
        ring: usize,
    },
    Lease,
    NextFault,
    Fault(Fault),
    /// The end of the healing phase may have come.
    Look,
}

#[derive(Debug)]
struct Scheduled {
    at: u64,
    order: u64,
    event: Event,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Scheduled) -> bool {
        (self.at, self.order) == (other.at, other.order)
    }
}

impl Eq for Scheduled {}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Scheduled) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Scheduled {
    fn cmp(&self, other: &Scheduled) -> Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

/// The phases of a run, in their order; a run only goes on to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// The first view forms and the first replicas are built.
    Beginning,
    /// Faults are injected while clients send: safety must hold.
    Safety,
    /// No new faults; clients go on.
    Healing,
    /// Clients send nothing new: what is under way must end.
    Ending,
    Over,
}

pub(crate) struct World {
    pub(crate) plan: Plan,
    pub(crate) now: u64,
    pub(crate) phase: Phase,
    pub(crate) phase_since: u64,
    pub(crate) hosts: Vec<Host>,
    pub(crate) ports: Vec<Port>,
    pub(crate) network: Network,
    /// The seats that an operator wants the group to have.
    pub(crate) seats: Vec<SeatId>,
    pub(crate) clients: Vec<Client>,
    pub(crate) history: Vec<Operated>,
    pub(crate) budget: Budget,
    pub(crate) tally: Tally,
    pub(crate) checks: Checks,
    pub(crate) coverage: Coverage,
    pub(crate) trace: Trace,
    pub(crate) steps: u64,
    pub(crate) violation: Option<Violation>,
    pub(crate) fault_random: Random,
    pub(crate) guest_random: Random,
    pub(crate) poisons_left: u64,
    pub(crate) poison_next: bool,
    pub(crate) allowance: Allowance,
    /// Until then what a replica suffers may come from a machine or a network that failed.
    pub(crate) trouble_until: u64,
    /// When a correct replica was lost last by a request: it ended, or what it executed was aborted.
    pub(crate) fewer_since: u64,
    /// When one was by the request before that.
    pub(crate) fewer_before: u64,
    /// The aborted write that cost replicas last.
    pub(crate) fewer_of: Option<Position>,
    pub(crate) answered_last: u64,
    /// Who became a member while the others were cut off ([`World::part_at_a_return`]).
    pub(crate) newest_member: Option<usize>,
    pub(crate) scrub_asked: bool,
    /// A scrub at the end showed the same everywhere.
    pub(crate) scrubbed: bool,
    queue: BinaryHeap<Reverse<Scheduled>>,
    scheduled: u64,
    outputs: Vec<Output>,
}

impl World {
    pub(crate) fn new(plan: Plan, trace: bool) -> World {
        let mut random = plan.random.clone();
        let hosts: Vec<Host> = (0..plan.hosts).map(|_| Host::new(random.fork())).collect();
        let ports = vec![Port::default(); plan.hosts];
        let mut network = Network::new(plan.hosts, random.fork());
        network.fences = plan.fences;
        let clients = (0..plan.clients)
            .map(|c| Client::new(c, random.fork(), plan.hosts))
            .collect();
        let limit = usize::from(plan.faults) + usize::from(plan.beyond);
        let mut world = World {
            now: SECOND,
            phase: Phase::Beginning,
            phase_since: 0,
            hosts,
            ports,
            network,
            seats: plan.config.seats.clone(),
            clients,
            history: Vec::new(),
            budget: Budget::new(limit),
            tally: Tally::default(),
            checks: Checks::default(),
            coverage: Coverage::default(),
            trace: Trace::new(trace),
            steps: 0,
            violation: None,
            fault_random: random.fork(),
            guest_random: random.fork(),
            poisons_left: 4,
            poison_next: false,
            allowance: Allowance::default(),
            trouble_until: u64::MAX,
            fewer_since: 0,
            fewer_before: 0,
            fewer_of: None,
            answered_last: 0,
            newest_member: None,
            scrub_asked: false,
            scrubbed: false,
            queue: BinaryHeap::new(),
            scheduled: 0,
            outputs: Vec::new(),
            plan,
        };
        world
            .trace
            .line(0, None, format_args!("{:?}", world.plan.config));
        for host in &mut world.hosts {
            host.listed.clone_from(&world.seats);
        }
        if world.plan.adds {
            world.begin_without_the_last();
        }
        if world.plan.strain.calm {
            for host in &mut world.hosts {
                host.call_trouble = 0;
                host.steady = true;
            }
        }
        let keys_kept = world.plan.keys_kept();
        for client in &mut world.clients {
            client.first_kept_for = keys_kept;
        }
        if world.plan.strain.stalls {
            world.clients[0].floods = true;
        }
        for host in 0..world.seats.len() {
            world.schedule(SECOND + host as u64 * MS, Event::Start { host });
        }
        world.schedule(3 * SECOND, Event::Look);
        // How fast replicas are is known to nobody before the first requests are decided.
        let apart = if world.plan.overrun { 20 * MS } else { 0 };
        for client in 0..world.clients.len() {
            let at = 2 * SECOND + client as u64 * apart;
            world.schedule(at, Event::Client(client));
        }
        if world.plan.strain.crowd {
            world.schedule(8 * SECOND, Event::Rush);
        }
        if world.plan.leases {
            world.schedule(SECOND, Event::Lease);
        }
        world
    }

    pub(crate) fn schedule(&mut self, at: u64, event: Event) {
        self.scheduled += 1;
        self.queue.push(Reverse(Scheduled {
            at,
            order: self.scheduled,
            event,
        }));
    }

    pub(crate) fn hold(&mut self, verdict: Verdict) {
        if let (Err(violation), None) = (verdict, &self.violation) {
            self.trace.line(
                self.now,
                None,
                format_args!("VIOLATION {}: {}", violation.rule, violation.detail),
            );
            self.violation = Some(violation);
        }
    }

    /// Runs until the end, or until a rule is broken (with more than f faults: until the end).
    pub(crate) fn run(&mut self) {
        while self.phase != Phase::Over && (self.violation.is_none() || self.plan.beyond) {
            let Some(Reverse(next)) = self.queue.pop() else {
                break;
            };
            self.now = self.now.max(next.at);
            self.happen(next.event);
        }
        if self.violation.is_none() {
            self.judge_the_end();
        }
    }

    /// The manager of a host, if it runs in the life in which something was begun, and if the host is not
    /// frozen: then the event comes later.
    fn awake(&mut self, host: usize, life: u32, event: Event) -> Option<Event> {
        let h = &self.hosts[host];
        if h.life != life || h.core.is_none() {
            return None;
        }
        if h.frozen_until > self.now {
            let at = h.frozen_until;
            self.schedule(at, event);
            return None;
        }
        Some(event)
    }

    fn happen(&mut self, event: Event) {
        let at_host = match &event {
            Event::Drain { host, life }
            | Event::Sequence { host, life }
            | Event::Tick { host, life, .. }
            | Event::Flush { host, life }
            | Event::Synced { host, life, .. }
            | Event::Called { host, life, .. }
            | Event::Speaks { host, life, .. } => Some((*host, *life)),
            Event::Peer { to, .. } => Some((*to, self.hosts[*to].life)),
            _ => None,
        };
        let event = match at_host {
            Some((host, life)) => match self.awake(host, life, event) {
                Some(event) => event,
                None => return,
            },
            None => event,
        };
        match event {
            Event::Drain { host, .. } => self.drain(host),
            Event::Sequence { host, .. } => self.sequence(host),
            Event::Peer { from, to, message } => {
                let from = crate::network::seat(from);
                let message = *message;
                self.input(to, Input::Peer { from, message });
            }
            Event::Tick { host, at, .. } => {
                if self.hosts[host].tick_at == at {
                    self.hosts[host].tick_at = u64::MAX;
                    self.input(host, Input::Tick);
                }
            }
            Event::Flush { host, .. } => {
                self.hosts[host].flush_scheduled = false;
                self.input(host, Input::Flush);
            }
            Event::Synced { host, count, .. } => self.synced(host, count),
            Event::Called {
                host,
                replica,
                call,
                works,
                ..
            } => {
                self.called(host, replica, call, works);
            }
            Event::Speaks { host, replica, .. } => self.speaks(host, replica),
            Event::Client(client) => self.client_acts(client),
            Event::Rush => self.rush(),
            Event::Impatient { client, attempt } => self.client_loses_patience(client, attempt),
            Event::Form { flap } => self.form(flap),
            Event::Start { host } => self.start(host),
            Event::Fence { ring } => self.fence(ring),
            Event::Lease => self.renew_leases(),
            Event::NextFault => self.next_fault(),
            Event::Fault(fault) => self.suffer(fault),
            Event::Look => self.look(),
        }
    }

    /// One step of a core, and what follows from it.
    pub(crate) fn input(&mut self, host: usize, input: Input) {
        let now = self.hosts[host].now(self.now);
        let flush = matches!(input, Input::Flush);
        let mut outputs = std::mem::take(&mut self.outputs);
        if self.trace.is_on() {
            self.trace_input(host, &input);
        }
        let Some(core) = self.hosts[host].core.as_mut() else {
            return;
        };
        self.steps += 1;
        core.step_into(now, input, &mut outputs);
        let deadline = core.next_deadline();
        self.check_replaced(host, &outputs);
        for output in outputs.drain(..) {
            self.perform(host, output);
        }
        self.judge_step(host);
        self.outputs = outputs;
        let h = &mut self.hosts[host];
        let life = h.life;
        if let Some(deadline) = deadline {
            let at = deadline.0.saturating_sub(h.monotonic_offset).max(self.now);
            if at < h.tick_at {
                h.tick_at = at;
                self.schedule(at, Event::Tick { host, life, at });
            }
        }
        let h = &mut self.hosts[host];
        if !flush && !h.flush_scheduled {
            h.flush_scheduled = true;
            let at = self.now + 40;
            self.schedule(at, Event::Flush { host, life });
        }
    }

    fn trace_input(&mut self, host: usize, input: &Input) {
        match input {
            Input::Flush | Input::Tick => {}
            other => self
                .trace
                .line(self.now, Some(host), format_args!("<- {other:?}")),
        }
    }
}
