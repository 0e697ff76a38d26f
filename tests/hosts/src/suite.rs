//! The lab that all tests share, and what they ask of it.

use crate::service::{Service, IMAGE, IMAGES, PREVIOUS, PROGRAMS};
use crate::wait::{limited, waits_for, within};
use anyhow::{ensure, Context, Result};
use libtest_mimic::Trial;
use spare_lab::rules::Ways;
use spare_lab::{names, Host, Lab, Options, Power, Shared};
use spare_rig::{binaries, build_image, Hypervisor};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Its name: a contributor's own lab is left alone.
const LAB: &str = "hosttests";
/// Until both hosts know each other and the witness again, whatever was done to them.
const ORDER_LIMIT: Duration = Duration::from_secs(90);

/// A lab is up within this, the root of its hosts built from packages if there is none.
const UP_LIMIT: Duration = Duration::from_secs(900);
/// A test takes no longer than this: none of those that CI runs usually takes a minute, and at full length guests are
/// built again and again.
const TEST_LIMIT: Duration = Duration::from_secs(300);
const TEST_LIMIT_FULL: Duration = Duration::from_secs(2400);
/// A Corosync whose nodes do not agree on who is there does not answer.
const QUORUM_LIMIT: Duration = Duration::from_secs(10);
/// For what a host wrote down, where something hangs already.
const JOURNAL_LIMIT: Duration = Duration::from_secs(20);
/// Enough to see the last minutes of a test that failed.
const JOURNAL_LINES: &str = "150";

/// The lab that is up, and what it is like.
static SUITE: Mutex<Option<(Shape, Lab)>> = Mutex::new(None);

/// What a lab is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// Two hosts and a witness.
    Witness,
    /// Two hosts that rely on fencing.
    Fencing,
    /// Three hosts, without a witness, that mask two faults.
    Three,
    /// Three hosts, without a witness, that mask one fault: one host is to spare.
    Spare,
    /// As [`Shape::Spare`], with a witness.
    SpareAndWitness,
}

/// A test over a lab, which is in order when it begins.
pub(crate) fn trial(name: &str, test: fn(&Lab) -> Result<()>) -> Trial {
    timed(name, Shape::Witness, test)
}

/// What a test does with the service.
pub(crate) type Test = fn(&Service<'_>) -> Result<()>;

/// A test with the service on all hosts, which is not everywhere yet when it begins.
pub(crate) fn service_trial(name: &str, shape: Shape, test: Test) -> Trial {
    timed(name, shape, move |lab| {
        let service = Service::on(lab, hypervisor()?)?;
        let done = test(&service);
        // While everything is as the test left it.
        done.map_err(|e| {
            eprintln!("{}", journals(lab));
            e.context(service.described())
        })
    })
}

fn timed(
    name: &str,
    shape: Shape,
    test: impl FnOnce(&Lab) -> Result<()> + Send + 'static,
) -> Trial {
    Trial::test(name, move || {
        let begun = Instant::now();
        let result = with_lab(shape, |lab| {
            put_in_order(lab)?;
            test(lab)
        });
        print!("{:4} s ", begun.elapsed().as_secs());
        result.map_err(|e| format!("{e:#}").into())
    })
}

/// What the lab was like when a test took too long.
fn described(lab: &Lab) -> String {
    let status = match lab.status() {
        Ok(status) => format!("{status:?}"),
        Err(error) => format!("nobody can tell: {error:#}"),
    };
    format!("the lab: {status}\n{}", journals(lab))
}

/// What everybody wrote down lately, the witness too: why a test failed.
pub(crate) fn journals(lab: &Lab) -> String {
    let one = |name: String| match journal(lab, &name) {
        Ok(journal) => format!("--- the journal of {name}\n{journal}"),
        Err(error) => format!("--- no journal of {name}: {error:#}\n"),
    };
    lab.booted().map(one).collect()
}

fn journal(lab: &Lab, host: &str) -> Result<String> {
    let host = lab.host(host)?;
    ensure!(host.power() == Power::On, "it is {}", host.power());
    let mut words = vec!["journalctl", "-q", "--no-pager", "-o", "short-precise"];
    words.extend(["-n", JOURNAL_LINES]);
    for unit in [
        "corosync",
        "corosync-qdevice",
        "corosync-qnetd",
        "spare-manager",
    ] {
        words.extend(["-u", unit]);
    }
    let done = host.run_within(JOURNAL_LIMIT, words)?;
    Ok(String::from_utf8_lossy(&done.stdout).into_owned())
}

/// What replicas run on: guests at full length, processes otherwise, unless `SPARE_HYPERVISOR` says.
fn hypervisor() -> Result<Hypervisor> {
    match std::env::var_os("SPARE_HYPERVISOR") {
        None if !is_full() => Ok(Hypervisor::Process),
        _ => Hypervisor::from_environment(),
    }
}

fn is_full() -> bool {
    std::env::var_os("SPARE_SCALE").is_some_and(|scale| scale == "full")
}

/// For how long something is watched, at full length; half of it otherwise.
pub(crate) fn watched(full: Duration) -> Duration {
    if is_full() {
        full
    } else {
        full / 2
    }
}

/// How often something is repeated.
pub(crate) fn rounds(short: usize, full: usize) -> usize {
    if is_full() {
        full
    } else {
        short
    }
}

fn with_lab(shape: Shape, test: impl FnOnce(&Lab) -> Result<()> + Send + 'static) -> Result<()> {
    let lab = limited(UP_LIMIT, move || up(shape), abandon).context("no lab")?;
    let (limit, tested) = (test_limit(), lab.clone());
    limited(
        limit,
        move || test(&tested),
        || {
            eprintln!("{}", described(&lab));
            abandon();
        },
    )
}

fn test_limit() -> Duration {
    if is_full() {
        TEST_LIMIT_FULL
    } else {
        TEST_LIMIT
    }
}

fn suite() -> MutexGuard<'static, Option<(Shape, Lab)>> {
    SUITE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A lab of this shape: the one that is up, or a new one.
fn up(shape: Shape) -> Result<Lab> {
    if let Some((_, lab)) = suite().as_ref().filter(|(is, _)| *is == shape) {
        return Ok(lab.clone());
    }
    waits_for("the lab to be down");
    // What an interrupted run left, or a lab that is no use here.
    *suite() = None;
    Lab::down(LAB, false)?;
    waits_for("the lab to be up");
    let say = |line: &str| eprintln!("lab: {line}");
    let lab = Lab::up(&options(shape)?, &say)?;
    *suite() = Some((shape, lab.clone()));
    Ok(lab)
}

/// Ends the lab under a test that hangs, and so what that waits for. The next test has a new one.
fn abandon() {
    *suite() = None;
    if let Err(e) = Lab::down(LAB, false) {
        eprintln!("the lab could not be ended: {e:#}");
    }
}

fn options(shape: Shape) -> Result<Options> {
    let shared = |source: PathBuf, target: &str| Shared {
        source,
        target: target.into(),
    };
    let has_two = matches!(shape, Shape::Witness | Shape::Fencing);
    Ok(Options {
        lab: LAB.to_owned(),
        hosts: if has_two { 2 } else { 3 },
        faults: if shape == Shape::Three { 2 } else { 1 },
        witness: matches!(shape, Shape::Witness | Shape::SpareAndWitness),
        token_ms: 1000,
        shared: [(binaries()?, PROGRAMS), (images()?, IMAGES)]
            .into_iter()
            .chain(previous().map(|folder| (folder, PREVIOUS)))
            .map(|(source, target)| shared(source, target))
            .collect(),
    })
}

/// The folder with the programs of an earlier build, which `scripts/build-previous` makes.
pub(crate) fn previous() -> Option<PathBuf> {
    std::env::var_os("SPARE_PREVIOUS").map(PathBuf::from)
}

/// A folder with the guests' image in it, not linked: what the cache forgets meanwhile stays there.
fn images() -> Result<PathBuf> {
    let folder = Path::new(names::DISKS).join(format!("{LAB}-images"));
    let (links, all) = (folder.join("links"), folder.join("all"));
    build_image(IMAGE, &links)?;
    let image = all.join(IMAGE);
    std::fs::create_dir_all(&image)?;
    for file in std::fs::read_dir(links.join(IMAGE))? {
        let file = file?;
        let there = image.join(file.file_name());
        let _ = std::fs::remove_file(&there);
        std::fs::hard_link(file.path(), there)?;
    }
    Ok(all)
}

/// What is left to see when everything else is done.
pub(crate) fn closing_trials() -> Vec<Trial> {
    vec![Trial::test(
        "nothing_of_a_lab_is_left_when_it_is_down",
        || {
            let begun = Instant::now();
            let result = limited(TEST_LIMIT, nothing_is_left, abandon);
            print!("{:4} s ", begun.elapsed().as_secs());
            result.map_err(|e| format!("{e:#}").into())
        },
    )]
}

fn nothing_is_left() -> Result<()> {
    // One that lives, so that there is something to leave.
    with_lab(Shape::Witness, |lab| {
        lab.change_link("h1", "h2", Ways::Both, |f| f.delay_ms = 1)
    })?;
    end()?;
    for folder in ["/run/netns", names::STATE, names::DISKS] {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        let left: Vec<String> = entries
            .map(|e| e.file_name().to_string_lossy().into_owned())
            .filter(|name| name.contains(LAB) && !name.ends_with(".lock"))
            .collect();
        ensure!(left.is_empty(), "left in {folder}: {left:?}");
    }
    for process in std::fs::read_dir("/proc")?.flatten() {
        let groups = std::fs::read_to_string(process.path().join("cgroup")).unwrap_or_default();
        let ours = Path::new("spare-lab").join(LAB).display().to_string();
        let named = process.file_name().to_string_lossy().into_owned();
        // One that only waits to be collected, by this program, is gone.
        let stat = std::fs::read_to_string(process.path().join("stat")).unwrap_or_default();
        let ended = stat
            .rsplit_once(") ")
            .is_none_or(|(_, state)| state.starts_with('Z'));
        ensure!(
            ended || !groups.contains(&ours),
            "process {named} is left: {stat}"
        );
    }
    Ok(())
}

/// Ends the lab, if there is one.
pub(crate) fn end() -> Result<()> {
    let lab = suite().take();
    if lab.is_some() && std::env::var_os("SPARE_LAB_KEEP").is_none() {
        Lab::down(LAB, false)?;
        let images = Path::new(names::DISKS).join(format!("{LAB}-images"));
        if images.exists() {
            std::fs::remove_dir_all(images)?;
        }
    }
    Ok(())
}

fn put_in_order(lab: &Lab) -> Result<()> {
    lab.heal(None)?;
    lab.set_fence_mode(spare_lab::FenceMode::Works)?;
    for name in lab.names() {
        let host = lab.host(&name)?;
        match host.power() {
            Power::Off => host.power_on()?,
            Power::Frozen => host.thaw()?,
            Power::Starting | Power::On => {}
        }
    }
    for name in lab.booted() {
        lab.host(&name)?.wait_until_booted()?;
    }
    let (hosts, witness) = (lab.voters().count(), lab.has_witness());
    for name in lab.voters() {
        let host = lab.host(&name)?;
        within(ORDER_LIMIT, &format!("{name} is one of {hosts}"), || {
            Ok(Quorum::of(&host)?.is(true, hosts, witness))
        })?;
    }
    Ok(())
}

/// What `corosync-quorumtool` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Quorum {
    /// Whether the host may go on.
    pub(crate) quorate: bool,
    /// Hosts in its ring.
    pub(crate) members: usize,
    /// Whether the witness votes for it.
    pub(crate) witness_votes: bool,
}

impl Quorum {
    pub(crate) fn of(host: &Host) -> Result<Quorum> {
        // Its exit code is the quorum's state, or another failure's.
        let done = host.run_within(QUORUM_LIMIT, ["corosync-quorumtool", "-s"])?;
        let text = String::from_utf8_lossy(&done.stdout).into_owned();
        Quorum::parse(&text).with_context(|| format!("on {}: {text}", host.name()))
    }

    fn parse(text: &str) -> Option<Quorum> {
        let value = |key: &str| {
            let line = text.lines().find_map(|l| l.strip_prefix(key))?;
            Some(line.trim().to_owned())
        };
        let own = text.lines().find(|l| l.trim_end().ends_with("(local)"));
        Some(Quorum {
            quorate: value("Quorate:")? == "Yes",
            members: value("Nodes:")?.parse().ok()?,
            // A(live), V(ote), M(aster wins), each with N before it when it is not so.
            witness_votes: own.is_some_and(|l| l.contains(" A,V,")),
        })
    }

    pub(crate) fn is(&self, quorate: bool, members: usize, witness_votes: bool) -> bool {
        *self
            == Quorum {
                quorate,
                members,
                witness_votes,
            }
    }
}
