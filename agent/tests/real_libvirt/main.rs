//! The real agent against a real libvirt and real guests, through its D-Bus interface.
//!
//! Needs root, QEMU and a running libvirtd (`SPARE_TEST_URI`, default `qemu:///system`), and the
//! package mirror once for a kernel. What is missing is printed and the test skipped; with
//! `SPARE_TEST_REQUIRE=1` a skip is a failure.

#![allow(clippy::unwrap_used)] // a test may panic

mod image;
mod rig;

use rig::Rig;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// How soon a guest that died must be reported.
const REPORT_MAX: Duration = Duration::from_secs(1);
/// A kernel that panics talks for a while before it reboots.
const PANIC_MAX: Duration = Duration::from_secs(5);
/// A guest boots in a few seconds under TCG; on a busy machine in many.
const BOOT_MAX: Duration = Duration::from_secs(60);

#[tokio::main]
async fn main() {
    let mut rig = match Rig::start().await {
        Ok(rig) => rig,
        Err(reason) => {
            eprintln!("SKIPPED real_libvirt: {reason}");
            let required = std::env::var_os("SPARE_TEST_REQUIRE").is_some();
            std::process::exit(i32::from(required));
        }
    };
    boots_and_answers_on_its_port(&mut rig).await;
    uses_no_processor_while_paused(&mut rig).await;
    has_no_more_than_its_bounds(&rig);
    unpausing_without_end_gives_no_more_real_time_than_a_minutes(&mut rig).await;
    a_second_of_the_same_name_is_refused(&mut rig).await;
    is_taken_over_by_the_next_agent(&mut rig).await;
    is_kept_in_quarantine(&mut rig).await;
    a_killed_guest_is_reported_at_once(&mut rig).await;
    a_panic_and_a_reboot_are_reported(&mut rig).await;
    destroy_all_leaves_nothing(&mut rig).await;
    rig.print_latencies();
}

async fn boots_and_answers_on_its_port(rig: &mut Rig) {
    let booted = Instant::now();
    rig.call("Create", &("0.1", image::NAME)).await.unwrap();
    rig.expect("0.1", "running", &["created"], BOOT_MAX).await;
    rig.wait_for_console("0.1", image::UP, BOOT_MAX).await;
    println!("booted in {:?}", booted.elapsed());
    let mut port = Port::open(rig, "0.1").await;
    assert_eq!(port.ask("hello"), "hello");
    let begun = Instant::now();
    for _ in 0..100 {
        port.ask("again");
    }
    println!("round trip {:?}", begun.elapsed() / 100);
    assert_eq!(port.ask("write"), "written");
    let (host, accelerator) = rig.host().await;
    println!("host {host}, accelerator {accelerator}");
    assert!(["kvm", "tcg"].contains(&accelerator.as_str()));
    let error = rig.open("0.1", "org.spare.door.0").await.unwrap_err();
    assert_eq!(error, "org.spare.Agent1.Error.NoSuchPort");
}

async fn uses_no_processor_while_paused(rig: &mut Rig) {
    rig.call("Pause", &("0.1",)).await.unwrap();
    rig.expect("0.1", "paused", &["paused"], REPORT_MAX).await;
    rig.call("Pause", &("0.1",)).await.unwrap();
    let (before, memory_kib) = rig.usage("0.1").await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let (after, _) = rig.usage("0.1").await;
    println!(
        "paused: {} ms of processor in 2 s, {memory_kib} KiB held",
        (after - before) / 1_000_000
    );
    // The tick of the kernel's own accounting is 10 ms.
    assert!(after - before <= 20_000_000);
    rig.call("Unpause", &("0.1",)).await.unwrap();
    rig.expect("0.1", "running", &["unpaused"], REPORT_MAX)
        .await;
    rig.call("Unpause", &("0.1",)).await.unwrap();
    let (before, _) = rig.usage("0.1").await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (after, _) = rig.usage("0.1").await;
    assert!(after - before > 100_000_000, "an unpaused guest works");
    rig.call("Prioritise", &("0.1", 5)).await.unwrap();
    assert!(rig.nices("0.1").iter().all(|nice| *nice == 5));
    rig.call("Prioritise", &("0.1", 0)).await.unwrap();
    let mut port = Port::open(rig, "0.1").await;
    for _ in 0..20 {
        rig.call("Pause", &("0.1",)).await.unwrap();
        rig.call("Unpause", &("0.1",)).await.unwrap();
        assert_eq!(port.ask("still there"), "still there");
    }
    // The twenty rounds were reported too.
    rig.forget_signals().await;
}

/// As libvirt has it. What QEMU does not need to write stays root's.
fn has_no_more_than_its_bounds(rig: &Rig) {
    let xml = image::domain(&format!("test{}", std::process::id()), "0.1");
    for part in [
        "<feature policy='disable' name='vmx'/>",
        "<feature policy='disable' name='svm'/>",
        "<total_bytes_sec>209715200</total_bytes_sec>",
    ] {
        assert!(xml.contains(part), "{part} is not in {xml}");
    }
    for file in ["vmlinuz", "initrd", "root.img"] {
        let owner = rig.path(&format!("images/tiny/{file}")).metadata().unwrap();
        assert_eq!(owner.uid(), 0, "{file}");
    }
    let disk = rig.path("state/disks/0.1.qcow2").metadata().unwrap();
    assert_eq!(disk.mode() & 0o777, 0o600);
}

fn has_realtime(process: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    // proc(5): field 41 is the policy, 2 is SCHED_RR; the second one, the name, ends with a bracket.
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
    fields[38] == "2"
}

/// What a manager can try that was taken over.
async fn unpausing_without_end_gives_no_more_real_time_than_a_minutes(rig: &mut Rig) {
    let (tried, step) = (Duration::from_secs(4), Duration::from_millis(10));
    rig.call("Prioritise", &("0.1", -10)).await.unwrap();
    let begun = Instant::now();
    let (mut last, mut had) = (begun, Duration::ZERO);
    while begun.elapsed() < tried {
        rig.call("Unpause", &("0.1",)).await.unwrap();
        tokio::time::sleep(step).await;
        if has_realtime(rig.process("0.1")) {
            had += last.elapsed();
        }
        last = Instant::now();
    }
    println!("real time for {had:?} of {tried:?}");
    let most = Duration::from_millis(image::REALTIME_MS);
    // It is looked at between calls that take their time.
    assert!(had > most / 10, "it gets some");
    assert!(had < most * 3 / 2, "it gets no more");
    rig.call("Prioritise", &("0.1", 0)).await.unwrap();
}

async fn a_second_of_the_same_name_is_refused(rig: &mut Rig) {
    let error = rig.call("Create", &("0.1", image::NAME)).await.unwrap_err();
    assert_eq!(error, "org.spare.Agent1.Error.ReplicaExists");
    let error = rig.call("Create", &("0.2", "missing")).await.unwrap_err();
    assert_eq!(error, "org.spare.Agent1.Error.NoSuchImage");
    let error = rig.call("Pause", &("0.2",)).await.unwrap_err();
    assert_eq!(error, "org.spare.Agent1.Error.NoSuchReplica");
}

async fn is_taken_over_by_the_next_agent(rig: &mut Rig) {
    rig.kill_agent();
    rig.start_agent().await.unwrap();
    assert_eq!(rig.list().await, [("0.1".to_owned(), "running".to_owned())]);
    assert_eq!(Port::open(rig, "0.1").await.ask("hello"), "hello");
}

async fn is_kept_in_quarantine(rig: &mut Rig) {
    rig.call("Create", &("0.2", image::NAME)).await.unwrap();
    rig.expect("0.2", "running", &["created"], BOOT_MAX).await;
    rig.wait_for_console("0.2", image::UP, BOOT_MAX).await;
    assert_eq!(Port::open(rig, "0.2").await.ask("write"), "written");
    let folder = rig.quarantine("0.2").await.unwrap();
    rig.expect("0.2", "paused", &["paused"], REPORT_MAX).await;
    rig.expect("0.2", "stopped", &["quarantined"], REPORT_MAX)
        .await;
    for (file, bytes) in [
        ("memory.elf", 64 << 20),
        ("disk.qcow2", 500_000),
        ("console.log", 1000),
    ] {
        let length = folder.join(file).metadata().unwrap().len();
        println!("quarantine: {file} {length} bytes");
        assert!(length >= bytes, "{file}");
    }
    assert_eq!(rig.list().await, [("0.1".to_owned(), "running".to_owned())]);
}

async fn a_killed_guest_is_reported_at_once(rig: &mut Rig) {
    let begun = Instant::now();
    rig.kill_guest("0.1");
    rig.expect("0.1", "stopped", &["crashed"], REPORT_MAX).await;
    println!("a killed guest is reported after {:?}", begun.elapsed());
    assert_eq!(rig.list().await, [("0.1".to_owned(), "stopped".to_owned())]);
    let error = rig.call("Unpause", &("0.1",)).await.unwrap_err();
    assert_eq!(error, "org.spare.Agent1.Error.NotRunning");
    // What a dead guest left can be kept as well; it has no memory any more.
    let folder = rig.quarantine("0.1").await.unwrap();
    assert!(folder.join("disk.qcow2").exists());
    assert!(rig.list().await.is_empty());
}

async fn a_panic_and_a_reboot_are_reported(rig: &mut Rig) {
    for (replica, command, reason) in [("0.3", "panic", "panicked"), ("0.4", "reboot", "shutdown")]
    {
        rig.call("Create", &(replica, image::NAME)).await.unwrap();
        rig.expect(replica, "running", &["created"], BOOT_MAX).await;
        rig.wait_for_console(replica, image::UP, BOOT_MAX).await;
        let mut port = Port::open(rig, replica).await;
        assert_eq!(port.ask("hello"), "hello");
        let begun = Instant::now();
        port.tell(command);
        rig.expect(replica, "stopped", &[reason], PANIC_MAX).await;
        println!("{command}: reported after {:?}", begun.elapsed());
        rig.call("Destroy", &(replica,)).await.unwrap();
    }
}

async fn destroy_all_leaves_nothing(rig: &mut Rig) {
    rig.call("Create", &("0.5", image::NAME)).await.unwrap();
    rig.call("Create", &("1.1", image::NAME)).await.unwrap();
    rig.call("Destroy", &("1.1",)).await.unwrap();
    rig.kill_agent();
    rig.destroy_all();
    rig.start_agent().await.unwrap();
    assert!(rig.list().await.is_empty());
    assert!(rig.left_overs().is_empty(), "{:?}", rig.left_overs());
}

/// What a guest is called with, and how long it is waited for before it is called again.
const CALL: &str = "are you there";
const CALL_AGAIN: Duration = Duration::from_secs(2);

/// A connection to the guest's port; lines out, lines in.
struct Port(BufReader<UnixStream>);

impl Port {
    /// The guest opens its port again a moment after the last connection ended, and what arrives while it
    /// closes it is lost: it is called until it answers.
    async fn open(rig: &Rig, replica: &str) -> Port {
        let stream = rig.open(replica, "org.spare.shim.0").await.unwrap();
        stream.set_read_timeout(Some(CALL_AGAIN)).unwrap();
        let mut port = Port(BufReader::new(stream));
        let begun = Instant::now();
        let mut answer = String::new();
        while !answer.ends_with('\n') {
            assert!(begun.elapsed() < BOOT_MAX, "the guest does not answer");
            port.tell(CALL);
            // A part of a line that has come stays.
            let _ = port.0.read_line(&mut answer);
        }
        port.0.get_ref().set_read_timeout(Some(BOOT_MAX)).unwrap();
        port
    }

    fn tell(&mut self, line: &str) {
        writeln!(self.0.get_mut(), "{line}").unwrap();
    }

    fn ask(&mut self, line: &str) -> String {
        self.tell(line);
        loop {
            let mut answer = String::new();
            self.0.read_line(&mut answer).unwrap();
            // It may have heard several calls.
            if answer.trim_end() != CALL {
                return answer.trim_end().to_owned();
            }
        }
    }
}
