//! Each kind of misbehaviour of one replica, caused from inside it by an attacker with root rights:
//! no wrong page and no failed request reaches a client, no correct replica is convicted, and
//! afterwards the group has its full number of replicas again.

use crate::suite::{ensure_clean, Part, Scale, Suite, REPLACED_LIMIT};
use crate::trial;
use anyhow::{ensure, Result};
use libtest_mimic::Trial;
use spare_protocol::admin::{EventKind, Mode};
use spare_rig::{Closed, Door, Hypervisor};
use std::time::{Duration, Instant};

/// Longer than the vote timeout: the slow replica's vote is missed.
const STALL: Duration = Duration::from_millis(4000);
/// How often a passive is given a reason to be woken, until it is.
const WAKES_MAX: u16 = 10;
const ATTACKER: &str = "/usr/lib/spare/spare-attacker";

/// What must become of the misbehaving replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// It lied, and that can be shown.
    Convicted,
    /// It is of no use any more, by whatever way that is noticed.
    Gone,
    /// The replica may cope with it, or be convicted.
    Any,
}

impl Misbehaviour {
    /// Whether it would harm the machine of replicas that share its kernel: the attacker refuses it there.
    fn needs_a_machine(self) -> bool {
        let Attack::Disaster(command) = self.attack else {
            return false;
        };
        ["panic", "forkbomb"]
            .iter()
            .any(|end| command.ends_with(end))
    }
}

#[derive(Clone, Copy, Debug)]
struct Misbehaviour {
    name: &'static str,
    attack: Attack,
    fate: Fate,
    /// Whose misbehaviour the shortened run shows with virtual machines. With process replicas it shows all,
    /// in a tenth of the time: what remains is where it matters that there is a machine (its kernel, its
    /// channel), and the plain lie.
    short: &'static [Part],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Attack {
    /// A lying program in the place of the service, with these options.
    Liar(&'static str),
    /// A shell command that ends.
    Command(&'static str),
    /// A shell command that does not end, or takes the guest down.
    Disaster(&'static str),
}

const MISBEHAVIOURS: [Misbehaviour; 11] = [
    Misbehaviour {
        name: "always_sends_wrong_pages",
        attack: Attack::Liar("--mode always"),
        fate: Fate::Convicted,
        short: &[Part::Active],
    },
    Misbehaviour {
        name: "sends_one_wrong_page",
        attack: Attack::Liar("--mode once"),
        fate: Fate::Convicted,
        short: &[],
    },
    Misbehaviour {
        name: "sends_right_pages_but_a_wrong_update",
        attack: Attack::Liar("--mode update"),
        fate: Fate::Convicted,
        short: &[],
    },
    Misbehaviour {
        name: "is_wrong_and_late",
        attack: Attack::Liar("--mode late --delay-ms 3000"),
        fate: Fate::Convicted,
        short: &[],
    },
    Misbehaviour {
        name: "had_its_database_tampered_with",
        attack: Attack::Command(
            "psql -q -h /run/postgresql -U postgres auction -c 'UPDATE items SET max_bid = max_bid + 1'",
        ),
        fate: Fate::Convicted,
        short: &[],
    },
    Misbehaviour {
        name: "hangs",
        attack: Attack::Disaster("kill -STOP $(pidof spare-shim | tr ' ' '\\n' | grep -vx 1)"),
        fate: Fate::Gone,
        short: &[],
    },
    Misbehaviour {
        name: "lost_its_application",
        attack: Attack::Disaster("kill -KILL $(pidof auction)"),
        fate: Fate::Gone,
        short: &[],
    },
    Misbehaviour {
        name: "has_a_kernel_panic",
        attack: Attack::Disaster("exec /usr/lib/spare/spare-attacker panic"),
        fate: Fate::Gone,
        short: &[Part::Active],
    },
    Misbehaviour {
        name: "floods_its_channel_with_garbage",
        attack: Attack::Disaster("exec /usr/lib/spare/spare-attacker flood --kind garbage --bytes 50000000"),
        fate: Fate::Convicted,
        short: &[Part::Passive],
    },
    Misbehaviour {
        name: "floods_its_channel_with_giant_lengths",
        attack: Attack::Disaster("exec /usr/lib/spare/spare-attacker flood --kind lengths --bytes 50000000"),
        fate: Fate::Convicted,
        short: &[],
    },
    Misbehaviour {
        name: "runs_a_fork_bomb",
        attack: Attack::Disaster("exec /usr/lib/spare/spare-attacker forkbomb"),
        fate: Fate::Any,
        short: &[Part::Active],
    },
];

pub(crate) fn trials(scale: Scale, hypervisor: Hypervisor) -> Vec<Trial> {
    let all = scale == Scale::Full || hypervisor == Hypervisor::Process;
    let mut trials = Vec::new();
    for misbehaviour in MISBEHAVIOURS {
        if hypervisor == Hypervisor::Process && misbehaviour.needs_a_machine() {
            continue;
        }
        let name = misbehaviour.name;
        if all || misbehaviour.short.contains(&Part::Active) {
            trials.push(trial(
                format!("an_active_that_{name}_is_masked"),
                move |s| told(s, |s| active(s, misbehaviour, scale)),
            ));
        }
        if all || misbehaviour.short.contains(&Part::Passive) {
            trials.push(trial(
                format!("a_passive_that_{name}_is_masked"),
                move |s| told(s, |s| passive(s, misbehaviour, scale)),
            ));
        }
    }
    trials
}

/// Runs `test`; when it fails, what the group noted meanwhile is shown.
fn told(suite: &mut Suite, test: impl FnOnce(&mut Suite) -> Result<()>) -> Result<()> {
    let seen = suite.newest_event().unwrap_or(0);
    let result = test(suite);
    if result.is_err() {
        for event in suite.events_after(seen).unwrap_or_default() {
            println!("{} {:?}: {}", event.at_us / 1000, event.kind, event.text);
        }
    }
    result
}

fn active(suite: &mut Suite, misbehaviour: Misbehaviour, scale: Scale) -> Result<()> {
    suite.wait_until_complete()?;
    let seen = suite.newest_event()?;
    let target = suite.replica(1, Part::Active)?;
    let loading = suite.begin_load(scale.choose(200, 2_000), None);
    let attacked = attack(suite, &target, Part::Active, misbehaviour.attack);
    let report = suite.end_load(loading)?;
    attacked?;
    ensure_clean(&report)?;
    settle(suite, &target, misbehaviour, seen)
}

/// A passive is asked only when an active is slow; so one is, now and then.
fn passive(suite: &mut Suite, misbehaviour: Misbehaviour, scale: Scale) -> Result<()> {
    suite.wait_until_complete()?;
    let seen = suite.newest_event()?;
    let target = suite.replica(0, Part::Passive)?;
    attack(suite, &target, Part::Passive, misbehaviour.attack)?;
    for wake in 0..WAKES_MAX {
        // Mostly the passive of the slow replica's own seat is the first to say `I_DO`.
        let slow = suite.replica(wake % 2, Part::Active)?;
        let loading = suite.begin_load(scale.choose(200, 1_000), Some(0.3));
        let stalled = suite.stall(&slow, STALL, &loading);
        let report = suite.end_load(loading)?;
        stalled?;
        ensure_clean(&report)?;
        let events = suite.events_after(seen)?;
        let noticed = |kind| {
            let mut of_target = events
                .iter()
                .filter(|e| e.replica.as_deref() == Some(target.as_str()));
            of_target.any(|e| e.kind == kind)
        };
        let woken_enough = misbehaviour.fate == Fate::Any && noticed(EventKind::Woken);
        if woken_enough || noticed(EventKind::Convicted) || noticed(EventKind::Lost) {
            break;
        }
    }
    settle(suite, &target, misbehaviour, seen)
}

fn attack(suite: &Suite, target: &str, part: Part, attack: Attack) -> Result<()> {
    suite.behind_the_door(target, part, async |door: &mut Door| {
        match attack {
            Attack::Liar(options) => {
                let liar = format!("exec {ATTACKER} liar --socket /run/service/http.sock {options}");
                door.start(&liar).await?;
                let wait = "for i in $(seq 100); do test -S /run/service/http.sock.real && exit; sleep 0.1; done; exit 1";
                run_until_caught(door, wait).await?;
            }
            Attack::Command(command) => {
                run_until_caught(door, command).await?;
            }
            Attack::Disaster(command) => {
                door.start(command).await?;
                // It happens inside; give it time to begin before a passive is paused again.
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        }
        Ok(())
    })
}

/// Runs a command of an attack. Under load its effect may be noticed, and the guest destroyed, before
/// the command's answer: what became of the guest is judged afterwards.
async fn run_until_caught(door: &mut Door, command: &str) -> Result<()> {
    match door.run(command).await {
        Ok(said) => ensure!(said.code == 0, "{command}: {}", said.output),
        Err(e) if e.is::<Closed>() => {}
        Err(e) => return Err(e),
    }
    Ok(())
}

/// Waits until the group is complete again, and looks at what became of whom.
fn settle(suite: &mut Suite, target: &str, misbehaviour: Misbehaviour, seen: u64) -> Result<()> {
    let begun = Instant::now();
    // A replica that is only silent is given up when it cannot be brought up to date: writes are
    // needed for that.
    while !is_settled(suite, target, misbehaviour)? && begun.elapsed() < REPLACED_LIMIT {
        let report = suite.load(300, Some(0.6))?;
        ensure_clean(&report)?;
    }
    if misbehaviour.fate == Fate::Any {
        // If it did not cope, it does not get through a scrub either, and is replaced.
        let scrub = suite.runtime.block_on(suite.deployment.admin().scrub())?;
        ensure!(scrub.equal, "the roots differ: {:?}", scrub.roots);
    }
    suite.wait_until_complete()?;
    let convicted = suite.convicted_after(seen)?;
    ensure!(
        convicted.iter().all(|r| r == target),
        "convicted: {convicted:?}; only {target} misbehaved"
    );
    if misbehaviour.fate == Fate::Convicted {
        ensure!(convicted == [target], "{target} was not convicted");
    }
    ensure!(
        is_settled(suite, target, misbehaviour)?,
        "{target} is still in service"
    );
    for event in suite.events_after(seen)? {
        if event.kind == EventKind::Alarm {
            println!("alarm: {}", event.text);
        }
    }
    Ok(())
}

fn is_settled(suite: &Suite, target: &str, misbehaviour: Misbehaviour) -> Result<bool> {
    let status = suite.status()?;
    let mut replicas = status.seats.iter().flat_map(|s| &s.replicas);
    let in_service = replicas.any(|r| r.replica == target);
    let gone = !in_service || misbehaviour.fate == Fate::Any;
    Ok(gone && status.mode == Mode::Serving)
}
