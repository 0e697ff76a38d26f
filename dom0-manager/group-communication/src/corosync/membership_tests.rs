//! The members against a small model of Corosync: rings that form, split and merge, each with one order;
//! readers that lag; nodes that stand still; a witness that chooses.

use super::*;
use proptest::prelude::*;
use std::collections::VecDeque;

const NODES: usize = 4;
/// A node that stood still notices at the latest when it goes on.
const NOW: Duration = Duration::from_secs(1000);

#[derive(Clone, Debug)]
enum Event {
    /// Who is in the group, and whose host was parted from this one.
    Configuration(BTreeSet<Peer>, BTreeSet<Peer>),
    Ring(Ring),
    Message(Peer, Message),
}

#[derive(Clone, Debug)]
enum Message {
    Claim(Claim),
    Ping(u64),
    Data(u64, u32),
}

struct Node {
    membership: Membership,
    stream: VecDeque<Event>,
    quorums: VecDeque<Quorum>,
    /// Sent, and not in the order yet.
    sent: VecDeque<Message>,
    /// In which component of the network it is.
    part: usize,
    ring: Ring,
    /// Who was in the newest configuration that Corosync told of.
    told: BTreeSet<Peer>,
    /// Corosync has not told of its ring.
    untold: bool,
    frozen: bool,
    view: Option<u64>,
    /// What the reader got.
    heard: Vec<Delivery>,
    data: u32,
}

struct World {
    nodes: Vec<Node>,
    rings: u64,
    /// The part that the witness chose, where it matters.
    chosen: usize,
    /// There was a ring of which nobody was told.
    was_untold: bool,
}

fn peer(node: usize) -> Peer {
    Peer {
        node: node as u32,
        process: 7,
    }
}

impl World {
    fn new() -> World {
        let node = |i: usize| Node {
            membership: Membership::new(i as u16, peer(i), Past::on_disk(0), Duration::ZERO),
            stream: VecDeque::new(),
            quorums: VecDeque::new(),
            sent: VecDeque::new(),
            part: 0,
            ring: Ring { node: 0, number: 0 },
            told: BTreeSet::new(),
            untold: false,
            frozen: false,
            view: None,
            heard: Vec::new(),
            data: 0,
        };
        let mut world = World {
            nodes: (0..NODES).map(node).collect(),
            rings: 0,
            chosen: 0,
            was_untold: false,
        };
        world.form_rings();
        world
    }

    /// Every part of the network gets a ring of its nodes that run, unless it has it.
    fn form_rings(&mut self) {
        self.form(true);
    }

    /// Whether nodes are `told` of their ring, or the next one comes before.
    fn form(&mut self, told: bool) {
        let quorate_part = self.quorate_part();
        for part in 0..NODES {
            let nodes: Vec<usize> = (0..NODES)
                .filter(|i| self.nodes[*i].part == part && !self.nodes[*i].frozen)
                .collect();
            let Some(first) = nodes.first() else { continue };
            let old = self.nodes[*first].ring;
            let same = |i: usize| self.nodes[i].ring == old;
            let whole = (0..NODES).all(|i| same(i) == nodes.contains(&i));
            let quorate = quorate_part == Some(part);
            let is_known = !nodes.iter().any(|i| self.nodes[*i].untold);
            if whole && old.number > 0 && (is_known || !told) {
                continue;
            }
            self.rings += 1;
            let ring = Ring {
                node: *first as u32,
                number: self.rings,
            };
            let came_from: Vec<Ring> = nodes.iter().map(|i| self.nodes[*i].ring).collect();
            for (&i, from) in nodes.iter().zip(&came_from) {
                // Leaves first, then joins, then the ring; the ones it comes with are those of its ring.
                let with: BTreeSet<Peer> = (nodes.iter().zip(&came_from))
                    .filter(|(j, f)| **j == i || (*f == from && f.number > 0))
                    .map(|(j, _)| peer(*j))
                    .collect();
                let all: BTreeSet<Peer> = nodes.iter().map(|j| peer(*j)).collect();
                let node = &mut self.nodes[i];
                node.ring = ring;
                node.untold = !told;
                if !told {
                    continue;
                }
                // Those that it was told of, and that came from the same ring.
                let left: BTreeSet<Peer> = node.told.difference(&with).copied().collect();
                let stayed: BTreeSet<Peer> = node.told.intersection(&with).copied().collect();
                node.told.clone_from(&all);
                if !left.is_empty() {
                    let event = Event::Configuration(stayed.clone(), left);
                    node.stream.push_back(event);
                }
                if stayed != all {
                    let event = Event::Configuration(all, BTreeSet::new());
                    node.stream.push_back(event);
                }
                node.stream.push_back(Event::Ring(ring));
                node.quorums.push_back(Quorum {
                    ring,
                    quorate,
                    nodes: nodes.len(),
                    majority: nodes.len() * 2 > NODES,
                });
            }
        }
    }

    /// At most one part is quorate: the one with more than half of the nodes, or half of them and the
    /// witness. Nodes that stand still have no part in it.
    fn quorate_part(&self) -> Option<usize> {
        let size = |p| {
            let of = |n: &&Node| n.part == p && !n.frozen;
            self.nodes.iter().filter(of).count()
        };
        let large = (0..NODES).find(|p| size(*p) * 2 > NODES);
        large.or((size(self.chosen) > 0).then_some(self.chosen))
    }

    fn act(&mut self, i: usize) {
        let node = &mut self.nodes[i];
        let effects: Vec<Effect> = std::mem::take(&mut node.membership.effects);
        for effect in effects {
            match effect {
                Effect::Deliver(delivery) => node.heard.push(delivery),
                Effect::Pause => node.view = None,
                Effect::Enter(view) => node.view = Some(view),
                Effect::Ping(number) => node.sent.push_back(Message::Ping(number)),
                Effect::Warn(_) | Effect::CountAnew => {}
                Effect::Close(why) => panic!("{why}"),
            }
        }
        if let Some(claim) = node.membership.wanted_claim(NOW, 0) {
            node.sent.push_back(Message::Claim(claim));
        }
        if let Some(view) = node.view.filter(|_| node.sent.len() < 3) {
            node.data += 1;
            node.sent.push_back(Message::Data(view, node.data));
        }
    }

    fn read(&mut self, i: usize) {
        let Some(event) = self.nodes[i].stream.pop_front() else {
            return;
        };
        let node = &mut self.nodes[i];
        match event {
            Event::Configuration(peers, parted) => node.membership.configuration(peers, &parted),
            Event::Ring(ring) => node.membership.ring(ring),
            Event::Message(from, Message::Claim(claim)) => node.membership.claim(from, claim, NOW),
            Event::Message(from, Message::Ping(number)) => node.membership.ping(from, number),
            Event::Message(from, Message::Data(view, number)) => {
                if let Some((member, true)) = node.membership.sender(from, view) {
                    node.heard.push(Delivery::Message {
                        from: member,
                        bytes: number.to_le_bytes().to_vec().into(),
                    });
                }
            }
        }
        self.act(i);
    }

    fn quorum(&mut self, i: usize) {
        if let Some(quorum) = self.nodes[i].quorums.pop_front() {
            self.nodes[i].membership.quorum(quorum);
            self.act(i);
        }
    }

    /// The next message of this node gets its place in the order, if no node of its ring stands still.
    fn order(&mut self, i: usize) {
        let ring = self.nodes[i].ring;
        if self.nodes.iter().any(|n| n.ring == ring && n.frozen) {
            return;
        }
        let Some(message) = self.nodes[i].sent.pop_front() else {
            return;
        };
        for node in self.nodes.iter_mut().filter(|n| n.ring == ring) {
            let event = Event::Message(peer(i), message.clone());
            node.stream.push_back(event);
        }
    }

    fn step(&mut self, kind: u8, i: usize, to: usize) {
        match kind {
            0 => {
                self.nodes[i].part = to;
                self.form_rings();
            }
            1 => {
                self.nodes[i].frozen = true;
                self.form_rings();
            }
            2 if self.nodes[i].frozen => {
                self.nodes[i].frozen = false;
                self.nodes[i].membership.hung(NOW);
                self.act(i);
                self.form_rings();
            }
            3 => self.chosen = to,
            // A ring that lasts too short for anybody to be told of it.
            16 if !self.nodes.iter().any(|n| n.untold) => {
                self.nodes[i].part = to;
                self.form(false);
                self.was_untold = true;
            }
            17 if self.nodes.iter().any(|n| n.untold) => {
                self.nodes[i].part = to;
                self.form_rings();
            }
            _ if self.nodes[i].frozen => {}
            4..=8 => self.read(i),
            9 => self.quorum(i),
            _ => self.order(i),
        }
    }

    /// Whatever is under way arrives.
    fn settle(&mut self) {
        for _ in 0..200 {
            for i in (0..NODES)
                .filter(|i| !self.nodes[*i].frozen)
                .collect::<Vec<_>>()
            {
                self.quorum(i);
                self.order(i);
                while !self.nodes[i].stream.is_empty() {
                    self.read(i);
                }
            }
        }
    }

    /// Names name one membership, grow at each member, and what is heard between a view and the next one
    /// is the same, or the beginning of the same where a member took leave.
    fn check(&self) {
        let mut named: BTreeMap<u64, (Vec<MemberId>, bool)> = BTreeMap::new();
        let mut contents: BTreeMap<u64, Vec<Vec<Delivery>>> = BTreeMap::new();
        for (i, node) in self.nodes.iter().enumerate() {
            let mut last: Option<u64> = None;
            for delivery in &node.heard {
                match delivery {
                    Delivery::View {
                        ring,
                        members,
                        primary,
                    } => {
                        assert!(last < Some(*ring), "names grow");
                        assert!(members.contains(&(i as u16)));
                        last = Some(*ring);
                        let known = named.entry(*ring).or_insert((members.clone(), *primary));
                        assert_eq!(*known, (members.clone(), *primary), "one name, one view");
                        contents.entry(*ring).or_default().push(Vec::new());
                    }
                    message => {
                        let view = contents.get_mut(&last.expect("a view comes first"));
                        let heard = view.and_then(|v| v.last_mut()).expect("begun");
                        heard.push(message.clone());
                    }
                }
            }
        }
        if self.was_untold {
            // What is heard in an untold ring, others do not hear, and who heard it takes leave afterwards.
            return;
        }
        for heard in contents.values() {
            let longest = heard.iter().max_by_key(|h| h.len()).expect("one");
            for one in heard {
                assert!(longest.starts_with(one), "one order");
            }
        }
    }

    /// Members that go from one deciding view to the same next one without a word in between heard the same in it.
    fn check_that_who_goes_on_heard_the_same(&self) {
        let mut heard: BTreeMap<(u64, u64), Vec<Delivery>> = BTreeMap::new();
        for node in &self.nodes {
            let mut begun: Option<(u64, Vec<Delivery>)> = None;
            for delivery in &node.heard {
                match delivery {
                    Delivery::View { ring, primary, .. } => {
                        if let (Some((from, now)), true) = (begun.take(), *primary) {
                            let first = heard.entry((from, *ring)).or_insert_with(|| now.clone());
                            assert_eq!(*first, now, "between {from} and {ring}");
                        }
                        begun = primary.then(|| (*ring, Vec::new()));
                    }
                    message => {
                        if let Some((_, now)) = &mut begun {
                            now.push(message.clone());
                        }
                    }
                }
            }
        }
    }

    /// A member that goes from one deciding view to the next without a word in between was not passed by:
    /// no deciding view lies between them by name that it was not in and that had a member of its own …
    fn check_that_nobody_was_passed_by(&self) {
        let primary = |d: &Delivery| match d {
            Delivery::View {
                ring,
                members,
                primary,
            } => Some((*ring, members.clone(), *primary)),
            _ => None,
        };
        let all: BTreeMap<u64, Vec<MemberId>> = (self.nodes.iter())
            .flat_map(|n| n.heard.iter().filter_map(primary))
            .filter(|(_, _, p)| *p)
            .map(|(ring, members, _)| (ring, members))
            .collect();
        for node in &self.nodes {
            let views: Vec<_> = node.heard.iter().filter_map(primary).collect();
            for pair in views.windows(2) {
                let [(from, _, true), (to, members, true)] = pair else {
                    continue;
                };
                for (between, theirs) in all.range(from + 1..*to) {
                    let passed = theirs.iter().any(|m| members.contains(m));
                    assert!(!passed, "{between} lies between {from} and {to}");
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]
    #[test]
    fn views_are_the_same_everywhere(steps in proptest::collection::vec((0u8..18, 0..NODES, 0..NODES), 0..400)) {
        let mut world = World::new();
        world.settle();
        for (kind, node, to) in steps {
            // Changes are rarer than what happens between them.
            let kind = if kind < 4 && to == 3 { 10 } else { kind };
            world.step(kind, node, to);
        }
        world.check();
        world.check_that_who_goes_on_heard_the_same();
        world.check_that_nobody_was_passed_by();
        for node in 0..NODES {
            world.step(2, node, 0);
            world.nodes[node].part = 0;
        }
        world.form_rings();
        world.settle();
        world.check();
        world.check_that_who_goes_on_heard_the_same();
        world.check_that_nobody_was_passed_by();
        for node in &world.nodes {
            let last = node.heard.iter().rev().find_map(|d| match d {
                Delivery::View { members, primary, .. } => Some((members.len(), *primary)),
                _ => None,
            });
            prop_assert_eq!(last, Some((NODES, true)), "all are together again");
        }
    }
}

fn lone(quorate: bool) -> Membership {
    let ring = Ring { node: 0, number: 1 };
    let mut one = Membership::new(0, peer(0), Past::on_disk(99 << 16), Duration::from_secs(20));
    one.configuration([peer(0)].into(), &BTreeSet::new());
    one.quorum(Quorum {
        ring,
        quorate,
        nodes: 1,
        majority: false,
    });
    let claim = one.wanted_claim(NOW, 5).expect("something to say");
    one.claim(peer(0), claim, NOW);
    one
}

fn views(one: &mut Membership) -> Vec<(u64, bool)> {
    let view = |effect| match effect {
        Effect::Deliver(Delivery::View { ring, primary, .. }) => Some((ring >> 16, primary)),
        _ => None,
    };
    one.effects.drain(..).filter_map(view).collect()
}

#[test]
fn names_go_on_where_the_disk_ends() {
    assert_eq!(views(&mut lone(true)), [(101, true)]);
}

#[test]
fn a_quorum_that_comes_and_goes_ends_a_view_at_once_and_makes_a_new_one() {
    let mut one = lone(true);
    let quorum = one.quorum.expect("set");
    one.quorum(Quorum {
        quorate: false,
        ..quorum
    });
    one.quorum(quorum);
    let claim = one.wanted_claim(NOW, 5).expect("a new attempt");
    one.claim(peer(0), claim, NOW);
    assert_eq!(views(&mut one), [(101, true), (102, false), (104, true)]);
}

#[test]
fn a_lone_member_that_stood_still_decides_nothing_until_its_witness_had_time_to_object() {
    let mut one = lone(true);
    one.hung(NOW);
    assert!(!one.is_sure(NOW));
    let claim = one.wanted_claim(NOW, 5).expect("a new attempt");
    assert!(!claim.quorate);
    one.claim(peer(0), claim, NOW);
    let later = NOW + Duration::from_secs(20);
    let claim = one.wanted_claim(later, 5).expect("quorate again");
    one.claim(peer(0), claim, later);
    let told: Vec<bool> = views(&mut one).into_iter().map(|(_, p)| p).collect();
    assert_eq!(told, [true, false, false, true]);
    assert!(one.is_sure(later));
}

#[test]
fn a_lone_member_that_stood_still_decides_with_the_others_as_soon_as_it_is_back_with_them() {
    let mut one = lone(true);
    one.hung(NOW);
    let peers: BTreeSet<Peer> = [peer(0), peer(1)].into();
    let ring = Ring { node: 0, number: 2 };
    let both = |majority| Quorum {
        ring,
        quorate: true,
        nodes: 2,
        majority,
    };
    one.configuration(peers.clone(), &BTreeSet::new());
    one.ring(ring);
    one.quorum(both(false));
    let claim = one.wanted_claim(NOW, 5).expect("something to say");
    assert!(!claim.quorate, "two of four are quorate by the witness");
    one.quorum(both(true));
    let claim = one.wanted_claim(NOW, 5).expect("something else to say");
    assert!(claim.quorate);
    let other = Claim {
        member: 1,
        ..claim.clone()
    };
    one.claim(peer(0), claim, NOW);
    one.claim(peer(1), other, NOW);
    assert_eq!(
        views(&mut one).last().map(|(_, primary)| *primary),
        Some(true)
    );
    // It is alone again.
    let ring = Ring { node: 0, number: 3 };
    one.configuration([peer(0)].into(), &BTreeSet::new());
    one.ring(ring);
    one.quorum(Quorum {
        ring,
        quorate: true,
        nodes: 1,
        majority: false,
    });
    let claim = one.wanted_claim(NOW, 5).expect("something to say");
    assert!(claim.quorate, "its witness's word is new");
}

#[test]
fn two_processes_of_one_member_decide_nothing() {
    let mut one = Membership::new(0, peer(0), Past::on_disk(0), Duration::ZERO);
    one.configuration([peer(0), peer(1)].into(), &BTreeSet::new());
    one.quorum(Quorum {
        ring: Ring { node: 0, number: 1 },
        quorate: true,
        nodes: 2,
        majority: true,
    });
    let claim = one.wanted_claim(NOW, 5).expect("something to say");
    one.claim(peer(1), claim.clone(), NOW);
    one.claim(peer(0), claim, NOW);
    assert_eq!(views(&mut one), [(6, false)]);
}

/// A member of 0 to `size` - 1, all in a view that may decide.
fn together(size: usize) -> (Membership, BTreeSet<Peer>) {
    let mut one = Membership::new(0, peer(0), Past::on_disk(0), Duration::ZERO);
    let peers: BTreeSet<Peer> = (0..size).map(peer).collect();
    one.configuration(peers.clone(), &BTreeSet::new());
    one.quorum(Quorum {
        ring: Ring { node: 0, number: 1 },
        quorate: true,
        nodes: size,
        majority: true,
    });
    let claim = one.wanted_claim(NOW, 5).expect("something to say");
    for (i, from) in peers.iter().enumerate() {
        let member = i as u16;
        one.claim(
            *from,
            Claim {
                member,
                ..claim.clone()
            },
            NOW,
        );
    }
    assert_eq!(views(&mut one).last().map(|(_, p)| *p), Some(true));
    (one, peers)
}

#[test]
fn of_rings_that_parted_and_are_one_again_the_larger_one_goes_on() {
    for (size, away, goes_on) in [(2, 1..2, false), (3, 1..3, false), (3, 1..2, true)] {
        let (mut one, peers) = together(size);
        let away: BTreeSet<Peer> = away.map(peer).collect();
        one.configuration(peers.difference(&away).copied().collect(), &away);
        assert!(views(&mut one).is_empty(), "it may go on alone");
        one.configuration(peers, &BTreeSet::new());
        let told = views(&mut one);
        assert_eq!(told.is_empty(), goes_on, "{size} {away:?}: {told:?}");
    }
}

#[test]
fn a_process_that_left_and_came_back_in_the_same_ring_harms_nobody() {
    let (mut one, peers) = together(2);
    one.configuration([peer(0)].into(), &BTreeSet::new());
    one.configuration(peers, &BTreeSet::new());
    assert!(views(&mut one).is_empty());
}

#[test]
fn who_misses_packets_takes_leave_and_asks_for_another_view() {
    let (mut one, _) = together(2);
    let view = one.view.as_ref().expect("one").name;
    assert_eq!(one.wanted_claim(NOW, 5), None);
    one.missed();
    assert_eq!(views(&mut one).last().map(|(_, p)| *p), Some(false));
    assert_eq!(one.sender(peer(1), view), Some((1, false)), "nor the rest");
    assert!(one.wanted_claim(NOW, 5).is_some());
}
