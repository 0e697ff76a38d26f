//! The real agent with process replicas, through its D-Bus interface. Needs root.
//!
//! What is missing is printed and the test skipped; with `SPARE_TEST_REQUIRE=1` a skip is a failure.

#![allow(clippy::unwrap_used)] // a test may panic

mod image;
#[path = "../real_libvirt/rig.rs"]
mod rig;

use rig::Rig;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

/// How soon a change of state must be reported.
const REPORT_MAX: Duration = Duration::from_secs(1);
/// A shell starts at once; on a busy machine a little later.
const START_MAX: Duration = Duration::from_secs(20);

#[tokio::main]
async fn main() {
    let mut rig = match Rig::start().await {
        Ok(rig) => rig,
        Err(reason) => {
            eprintln!("SKIPPED real_processes: {reason}");
            let required = std::env::var_os("SPARE_TEST_REQUIRE").is_some();
            std::process::exit(i32::from(required));
        }
    };
    let before = traces();
    starts_in_namespaces_of_its_own(&mut rig).await;
    its_ports_take_connections_whatever_it_does(&mut rig).await;
    uses_no_processor_while_paused(&mut rig).await;
    a_second_of_the_same_name_is_refused(&mut rig).await;
    is_found_by_the_next_agent_running_or_paused(&mut rig).await;
    is_kept_in_quarantine(&mut rig).await;
    a_crash_is_reported_at_once(&mut rig).await;
    an_agent_killed_at_work_leaves_nothing_half_done(&mut rig).await;
    destroy_all_leaves_nothing(&mut rig).await;
    assert_eq!(traces(), before, "mounts or cgroups are left");
    rig.print_latencies();
}

async fn starts_in_namespaces_of_its_own(rig: &mut Rig) {
    let begun = Instant::now();
    rig.call("Create", &("0.1", image::NAME)).await.unwrap();
    rig.expect("0.1", "running", &["created"], START_MAX).await;
    rig.wait_for_console("0.1", image::UP, START_MAX).await;
    println!("up after {:?}", begun.elapsed());
    for said in [
        "I am 1 on spare-guest with org.spare.shim.0=",
        "interfaces lo\n",
        "sysrq refused",
        "old root \n",
    ] {
        rig.wait_for_console("0.1", said, START_MAX).await;
    }
    let (_, accelerator) = rig.host().await;
    assert_eq!(accelerator, "process");
    // What it writes is for nobody outside.
    let folder = rig.path("state/processes").metadata().unwrap();
    assert_eq!(folder.permissions().mode() & 0o777, 0o700);
    let error = rig.open("0.1", "org.spare.door.0").await.unwrap_err();
    assert_eq!(error, "org.spare.Agent1.Error.NoSuchPort");
}

/// What listens there in a real image is tested with the shim; here it is the kernel's part.
async fn its_ports_take_connections_whatever_it_does(rig: &mut Rig) {
    for paused in [false, true] {
        if paused {
            rig.call("Pause", &("0.1",)).await.unwrap();
        }
        let mut stream = rig.open("0.1", "org.spare.shim.0").await.unwrap();
        stream
            .write_all(b"waits for somebody to accept it")
            .unwrap();
    }
    rig.call("Unpause", &("0.1",)).await.unwrap();
    rig.forget_signals().await;
}

async fn uses_no_processor_while_paused(rig: &mut Rig) {
    rig.call("Pause", &("0.1",)).await.unwrap();
    rig.expect("0.1", "paused", &["paused"], REPORT_MAX).await;
    rig.call("Pause", &("0.1",)).await.unwrap();
    let (before, memory_kib) = rig.usage("0.1").await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let (after, _) = rig.usage("0.1").await;
    println!(
        "paused: {} us of processor in 2 s, {memory_kib} KiB held",
        (after - before) / 1000
    );
    assert_eq!(after, before);
    assert!(memory_kib > 0);
    rig.call("Unpause", &("0.1",)).await.unwrap();
    rig.expect("0.1", "running", &["unpaused"], REPORT_MAX)
        .await;
    rig.call("Unpause", &("0.1",)).await.unwrap();
    let (before, _) = rig.usage("0.1").await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (after, _) = rig.usage("0.1").await;
    assert!(after - before > 100_000_000, "an unpaused replica works");
    assert!(rig.nices("0.1").iter().all(|nice| *nice == 0));
    rig.call("Prioritise", &("0.1", 5)).await.unwrap();
    assert!(rig.nices("0.1").iter().all(|nice| *nice == 5));
    rig.call("Prioritise", &("0.1", 0)).await.unwrap();
    for _ in 0..5 {
        for _ in 0..10 {
            rig.call("Pause", &("0.1",)).await.unwrap();
            rig.call("Unpause", &("0.1",)).await.unwrap();
        }
        // A client that lets too many of them wait hears no answers either.
        rig.forget_signals().await;
    }
}

async fn a_second_of_the_same_name_is_refused(rig: &mut Rig) {
    let error = rig.call("Create", &("0.1", image::NAME)).await.unwrap_err();
    assert_eq!(error, "org.spare.Agent1.Error.ReplicaExists");
    let error = rig.call("Create", &("0.2", "missing")).await.unwrap_err();
    assert_eq!(error, "org.spare.Agent1.Error.NoSuchImage");
    let error = rig.call("Pause", &("0.2",)).await.unwrap_err();
    assert_eq!(error, "org.spare.Agent1.Error.NoSuchReplica");
    assert_eq!(rig.list().await, [("0.1".to_owned(), "running".to_owned())]);
}

async fn is_found_by_the_next_agent_running_or_paused(rig: &mut Rig) {
    let process = rig.process("0.1");
    for (paused, state) in [(false, "running"), (true, "paused")] {
        if paused {
            rig.call("Pause", &("0.1",)).await.unwrap();
        }
        rig.kill_agent();
        rig.start_agent().await.unwrap();
        assert_eq!(rig.list().await, [("0.1".to_owned(), state.to_owned())]);
        assert_eq!(rig.process("0.1"), process);
        rig.open("0.1", "org.spare.shim.0").await.unwrap();
    }
    let (before, _) = rig.usage("0.1").await;
    rig.call("Unpause", &("0.1",)).await.unwrap();
    rig.expect("0.1", "running", &["unpaused"], REPORT_MAX)
        .await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(rig.usage("0.1").await.0 > before, "it works again");
}

async fn is_kept_in_quarantine(rig: &mut Rig) {
    rig.call("Create", &("0.2", image::NAME)).await.unwrap();
    rig.expect("0.2", "running", &["created"], START_MAX).await;
    rig.wait_for_console("0.2", image::UP, START_MAX).await;
    let folder = rig.quarantine("0.2").await.unwrap();
    rig.expect("0.2", "paused", &["paused"], REPORT_MAX).await;
    rig.expect("0.2", "stopped", &["quarantined"], REPORT_MAX)
        .await;
    let text = |file: &str| std::fs::read_to_string(folder.join(file)).unwrap();
    assert_eq!(text("disk/written"), "change\n");
    assert!(text("console.log").contains(image::UP));
    let processes = text("processes.txt");
    assert!(processes.contains("memory of these processes was not kept"));
    assert!(processes.contains("sleep 1000"), "{processes}");
    assert_eq!(rig.list().await, [("0.1".to_owned(), "running".to_owned())]);
}

/// Of an agent's own replica and of one that it took over, paused and running.
async fn a_crash_is_reported_at_once(rig: &mut Rig) {
    rig.call("Create", &("0.3", image::NAME)).await.unwrap();
    rig.expect("0.3", "running", &["created"], START_MAX).await;
    rig.call("Pause", &("0.3",)).await.unwrap();
    rig.expect("0.3", "paused", &["paused"], REPORT_MAX).await;
    if is_frozen_by_a_legacy_cgroup("0.3") {
        // It lets nothing die.
        rig.call("Unpause", &("0.3",)).await.unwrap();
        rig.expect("0.3", "running", &["unpaused"], REPORT_MAX)
            .await;
    }
    for replica in ["0.1", "0.3"] {
        let begun = Instant::now();
        rig.kill_guest(replica);
        rig.expect(replica, "stopped", &["crashed"], REPORT_MAX)
            .await;
        println!("a killed replica is reported after {:?}", begun.elapsed());
        let error = rig.call("Unpause", &(replica,)).await.unwrap_err();
        assert_eq!(error, "org.spare.Agent1.Error.NotRunning");
        let error = rig.open(replica, "org.spare.shim.0").await.unwrap_err();
        assert_eq!(error, "org.spare.Agent1.Error.NotRunning");
    }
    let stopped = |replica: &str| (replica.to_owned(), "stopped".to_owned());
    assert_eq!(rig.list().await, [stopped("0.1"), stopped("0.3")]);
    // What a dead replica left can be kept as well.
    let folder = rig.quarantine("0.1").await.unwrap();
    assert!(folder.join("disk/written").exists());
    // An agent that starts now sees that it has ended.
    rig.kill_agent();
    rig.start_agent().await.unwrap();
    assert_eq!(rig.list().await, [stopped("0.3")]);
    rig.call("Destroy", &("0.3",)).await.unwrap();
    assert!(rig.list().await.is_empty());
}

/// Killed at moments of all kinds while it creates a replica, and while it destroys one.
async fn an_agent_killed_at_work_leaves_nothing_half_done(rig: &mut Rig) {
    let mut halves = 0;
    for moment in 0..24 {
        let moment = Duration::from_micros(moment * 1500);
        for method in ["Create", "Destroy"] {
            let exists = !rig.list().await.is_empty();
            if exists == (method == "Create") {
                continue;
            }
            let done = match method {
                "Create" => {
                    tokio::time::timeout(moment, rig.call(method, &("0.4", image::NAME))).await
                }
                _ => tokio::time::timeout(moment, rig.call(method, &("0.4",))).await,
            };
            assert!(done.is_err() || done == Ok(Ok(())), "{method}: {done:?}");
            rig.kill_agent();
            halves += usize::from(
                rig.left_overs()
                    .iter()
                    .any(|f| f.join("unfinished").exists()),
            );
            rig.start_agent().await.unwrap();
            let list = rig.list().await;
            let left = rig.left_overs();
            // All of it, or nothing of it.
            match list.as_slice() {
                [] => assert!(left.is_empty(), "{method}, {moment:?}: {left:?}"),
                [(_, state)] => assert_eq!(state, "running", "{method}, {moment:?}: {left:?}"),
                more => panic!("{more:?}"),
            }
        }
    }
    println!("killed {halves} times in the middle of something");
    assert!(halves > 0, "never in the middle of something");
    if !rig.list().await.is_empty() {
        rig.call("Destroy", &("0.4",)).await.unwrap();
    }
    assert!(rig.left_overs().is_empty(), "{:?}", rig.left_overs());
}

async fn destroy_all_leaves_nothing(rig: &mut Rig) {
    for replica in ["0.5", "1.1", "1.2"] {
        rig.call("Create", &(replica, image::NAME)).await.unwrap();
    }
    let process = rig.process("1.1");
    rig.call("Pause", &("0.5",)).await.unwrap();
    rig.call("Pause", &("1.1",)).await.unwrap();
    rig.call("Destroy", &("1.1",)).await.unwrap();
    assert!(!std::path::Path::new(&format!("/proc/{process}")).exists());
    rig.kill_agent();
    rig.destroy_all();
    rig.start_agent().await.unwrap();
    assert!(rig.list().await.is_empty());
    assert!(rig.left_overs().is_empty(), "{:?}", rig.left_overs());
}

fn is_frozen_by_a_legacy_cgroup(replica: &str) -> bool {
    let pid = std::process::id();
    let group = format!("spare-test{pid}-{}", replica.replace('.', "-"));
    let hierarchy = std::path::Path::new("/sys/fs/cgroup/freezer");
    hierarchy.join(group).exists()
}

/// What replicas could leave on this machine: mounts and cgroups of ours.
fn traces() -> Vec<String> {
    let pid = std::process::id();
    let (folder, group) = (format!("spare-real-{pid}"), format!("spare-test{pid}-"));
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    let mut found: Vec<String> = mounts
        .lines()
        .filter(|line| line.contains(&folder))
        .map(str::to_owned)
        .collect();
    for hierarchy in ["unified", "freezer", ""] {
        let folder = std::path::Path::new("/sys/fs/cgroup").join(hierarchy);
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
        found.extend(names.filter(|name| name.starts_with(&group)));
    }
    found
}
