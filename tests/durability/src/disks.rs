//! Disks that misbehave.

use crate::suite::{options, with_own, Suite};
use crate::trial;
use anyhow::{ensure, Context, Result};
use libtest_mimic::Trial;
use spare_rig::{Hypervisor, Options};
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// For a manager to end by itself.
const END_LIMIT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_secs(1);

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("disk_use_is_in_the_status", disk_use),
        trial(
            "a_second_manager_cannot_open_the_same_store",
            second_manager,
        ),
        trial(
            "a_store_that_is_gone_begins_anew_with_what_the_other_seat_has",
            lost_store,
        ),
        trial(
            "a_service_whose_stores_are_all_gone_is_not_begun_anew_by_itself",
            lost_stores,
        ),
        trial(
            "flipped_bits_are_named_and_put_right_from_the_other_seat",
            flipped_bits,
        ),
        trial(
            "flipped_bits_in_all_stores_are_named_and_not_served",
            flipped_everywhere,
        ),
        trial(
            "on_a_full_disk_clients_get_503_and_nothing_acknowledged_is_lost",
            full_disk,
        ),
        Trial::test("memory_says_what_it_gives_up", || {
            memory().map_err(|e| format!("{e:#}").into())
        }),
    ]
}

async fn disk_use(suite: &mut Suite) -> Result<()> {
    suite.write(100).await?;
    let status = suite.complete().await?;
    let store = suite.deployment.store();
    for seat in &status.seats {
        let folder = store.join(format!("seat-{}", seat.seat));
        let there = bytes_in(&folder)?;
        let told = seat.disk.total_bytes();
        println!("seat {}: {told} bytes told, {there} there", seat.seat);
        // It goes on growing, and locks and lists are not counted.
        ensure!(
            seat.disk.log_bytes > 0 && told <= there && told + (1 << 20) > there,
            "seat {}: {told} bytes told, {there} there",
            seat.seat
        );
    }
    let text = spare_client::render::status(&status);
    ensure!(text.contains("TOTAL") && text.contains("iB"), "{text}");
    Ok(())
}

fn bytes_in(folder: &Path) -> Result<u64> {
    let mut sum = 0;
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        sum += match entry.file_type()?.is_dir() {
            true => bytes_in(&entry.path())?,
            false => entry.metadata()?.len(),
        };
    }
    Ok(sum)
}

async fn second_manager(suite: &mut Suite) -> Result<()> {
    let configuration = std::fs::read_to_string(suite.deployment.manager_configuration())?;
    let other = suite.deployment.folder().join("second.toml");
    let socket = suite.deployment.folder().join("second.sock");
    let configuration: Vec<String> = configuration
        .lines()
        .map(|line| match line {
            line if line.starts_with("listen") => "listen = \"127.0.0.1:0\"".to_owned(),
            line if line.ends_with("admin.sock\"") => format!("socket = \"{}\"", socket.display()),
            line => line.to_owned(),
        })
        .collect();
    std::fs::write(&other, configuration.join("\n"))?;
    let program = spare_rig::binaries()?.join("spare-manager");
    let output = std::process::Command::new(program)
        .arg("--config")
        .arg(&other)
        .output()?;
    let text = String::from_utf8_lossy(&output.stderr);
    ensure!(
        !output.status.success() && text.contains("in use by another replica manager"),
        "{text}"
    );
    // Nothing happened to the first one's replicas.
    suite.write(20).await
}

async fn lost_store(suite: &mut Suite) -> Result<()> {
    for seat in [0, 1] {
        let clients = suite.load();
        clients.wait_for(300).await?;
        suite.deployment.kill_everything()?;
        let writes = clients.close().await?;
        std::fs::remove_dir_all(suite.deployment.store().join(format!("seat-{seat}")))?;
        suite.revive().await?;
        let gateway = suite.gateway();
        suite.book.check(&gateway, &writes).await?;
        suite.book.check_totals(&gateway).await?;
        ensure!(
            suite
                .deployment
                .manager_log()
                .contains(&format!("the store of seat {seat} is gone")),
            "nobody says so"
        );
    }
    suite.scrub().await
}

/// What the manager says that does not start.
async fn refused(suite: &mut Suite) -> Result<String> {
    // It ends before anybody can connect, or soon after.
    let started = suite.deployment.start_manager().await;
    let text = match started {
        Err(error) => format!("{error:#}"),
        Ok(()) => suite.deployment.manager_has_ended(END_LIMIT).await?,
    };
    suite.deployment.end_manager();
    Ok(text)
}

async fn lost_stores(suite: &mut Suite) -> Result<()> {
    suite.write(100).await?;
    suite.deployment.kill_manager()?;
    let store = suite.deployment.store();
    let copy = suite.deployment.folder().join("manager/copy");
    run("cp", &["-a".as_ref(), store.as_os_str(), copy.as_os_str()])?;
    for seat in [0, 1] {
        std::fs::remove_dir_all(store.join(format!("seat-{seat}")))?;
    }
    let folder = store.display().to_string();
    let ways = [&folder, "spare restore FILE", "spare begin-anew"];
    let told = |text: &str, why: &str| -> Result<()> {
        println!("{text}");
        let all = ways.iter().all(|way| text.contains(way));
        ensure!(all && text.contains(why), "{text}");
        Ok(())
    };
    told(&refused(suite).await?, "it had stores here")?;
    // Not even when all of the folder is gone, as long as replicas are there, running or not.
    std::fs::remove_dir_all(&store)?;
    told(&refused(suite).await?, "the agent has replicas of it")?;
    suite.deployment.kill_everything()?;
    suite.deployment.start_agent().await?;
    told(&refused(suite).await?, "the agent has replicas of it")?;
    // An operator may give up what clients wrote.
    let given_up = std::process::Command::new(spare_rig::binaries()?.join("spare"))
        .arg("begin-anew")
        .arg("--config")
        .arg(suite.deployment.manager_configuration())
        .status()?;
    ensure!(given_up.success(), "spare begin-anew: {given_up}");
    suite.revive().await?;
    let lost = suite.book.check_totals(&suite.gateway()).await;
    ensure!(lost.is_err(), "nothing is lost");
    // The stores are put back: all of it is there again.
    suite.deployment.kill_everything()?;
    std::fs::remove_dir_all(&store)?;
    std::fs::rename(&copy, &store)?;
    suite.revive().await?;
    suite.book.check_totals(&suite.gateway()).await?;
    suite.scrub().await
}

/// The segments of a seat's log, oldest first.
fn segments(suite: &Suite, seat: u16) -> Result<Vec<PathBuf>> {
    let folder = suite.deployment.store().join(format!("seat-{seat}/log"));
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "seg") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Flips a bit in the middle of the longest of the files.
fn flip(files: &[PathBuf]) -> Result<PathBuf> {
    let length = |p: &PathBuf| std::fs::metadata(p).map_or(0, |m| m.len());
    let longest = files.iter().max_by_key(|p| length(p)).context("no file")?;
    let file = File::options().read(true).write(true).open(longest)?;
    let middle = length(longest) / 2;
    let mut byte = [0];
    file.read_exact_at(&mut byte, middle)?;
    file.write_all_at(&[byte[0] ^ 0x10], middle)?;
    Ok(longest.clone())
}

async fn flipped_bits(suite: &mut Suite) -> Result<()> {
    for seat in [0, 1] {
        let clients = suite.load();
        clients.wait_for(300).await?;
        suite.deployment.kill_everything()?;
        let writes = clients.close().await?;
        let file = flip(&segments(suite, seat)?)?;
        println!("a bit of {} is flipped", file.display());
        suite.revive().await?;
        let gateway = suite.gateway();
        suite.book.check(&gateway, &writes).await?;
        suite.book.check_totals(&gateway).await?;
        let log = suite.deployment.manager_log();
        let told: Vec<&str> = log
            .lines()
            .filter(|l| l.contains("the store of seat") || l.contains("damaged"))
            .collect();
        println!("{}", told.join("\n"));
        ensure!(
            log.contains(&format!("the store of seat {seat} was put right"))
                || log.contains(&format!("the store of seat {seat} was put aside")),
            "nobody says so"
        );
    }
    suite.scrub().await
}

async fn flipped_everywhere(suite: &mut Suite) -> Result<()> {
    suite.write(100).await?;
    suite.deployment.kill_everything()?;
    let store = suite.deployment.store();
    let copy = suite.deployment.folder().join("manager/copy");
    run("cp", &["-a".as_ref(), store.as_os_str(), copy.as_os_str()])?;
    for seat in [0, 1] {
        flip(&segments(suite, seat)?)?;
    }
    suite.deployment.start_agent().await?;
    let text = refused(suite).await?;
    println!("{text}");
    ensure!(
        text.contains("is damaged") && text.contains("Restore a backup"),
        "{text}"
    );
    std::fs::remove_dir_all(&store)?;
    std::fs::rename(&copy, &store)?;
    suite.revive().await?;
    suite.book.check_totals(&suite.gateway()).await
}

fn run(program: &str, arguments: &[&std::ffi::OsStr]) -> Result<()> {
    let status = std::process::Command::new(program)
        .args(arguments)
        .status()?;
    ensure!(status.success(), "{program} {arguments:?}: {status}");
    Ok(())
}

/// The store on a small file system of its own, until the test is over.
struct Small(PathBuf);

impl Drop for Small {
    fn drop(&mut self) {
        // A failed test may have left a manager there.
        let _ = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}

/// What other programs write leaves little room on a disk.
fn fill(file: &Path) -> Result<()> {
    const LEFT: u64 = 512 << 10;
    let mut open = File::options();
    let mut file = open.create(true).append(true).open(file)?;
    let free = nix::sys::statvfs::fstatvfs(&file)?;
    let free = free.blocks_available() * free.fragment_size();
    let zeros = vec![0; usize::try_from(free.saturating_sub(LEFT))?];
    match file.write_all(&zeros) {
        // The manager was faster.
        Err(error) if error.kind() == std::io::ErrorKind::StorageFull => Ok(()),
        done => Ok(done?),
    }
}

async fn full_disk(suite: &mut Suite) -> Result<()> {
    use nix::mount::{mount, MsFlags};
    suite.write(20).await?;
    suite.deployment.kill_everything()?;
    let store = suite.deployment.store();
    let aside = suite.deployment.folder().join("manager/aside");
    std::fs::rename(&store, &aside)?;
    std::fs::create_dir(&store)?;
    let owner = std::fs::metadata(&aside)?;
    let mebibytes = bytes_in(&aside)? / (1 << 20) + 4;
    let none: Option<&str> = None;
    let size = format!("size={mebibytes}m");
    mount(
        Some("tmpfs"),
        &store,
        Some("tmpfs"),
        MsFlags::empty(),
        Some(size.as_str()),
    )?;
    let small = Small(store.clone());
    use std::os::unix::fs::MetadataExt;
    std::os::unix::fs::chown(&store, Some(owner.uid()), Some(owner.gid()))?;
    run(
        "cp",
        &["-aT".as_ref(), aside.as_os_str(), store.as_os_str()],
    )?;
    suite.revive().await?;
    let clients = suite.load();
    // Snapshots make room, the more the longer the log was: that is taken away too.
    let others = store.join("of-others");
    let begun = std::time::Instant::now();
    let ended = loop {
        match suite.deployment.manager_has_ended(POLL).await {
            Err(_) if begun.elapsed() < END_LIMIT => fill(&others)?,
            ended => break ended?,
        }
    };
    println!("{ended}");
    ensure!(ended.contains("make room on this disk"), "{ended}");
    let writes = clients.close().await?;
    std::fs::remove_file(&others)?;
    let larger = format!("size={}m", mebibytes + 512);
    mount(
        none,
        &store,
        none,
        MsFlags::MS_REMOUNT,
        Some(larger.as_str()),
    )?;
    suite.revive().await?;
    let gateway = suite.gateway();
    suite.book.check(&gateway, &writes).await?;
    suite.book.check_totals(&gateway).await?;
    suite.scrub().await?;
    // Back to where it was, with what came since.
    suite.deployment.end_manager();
    std::fs::remove_dir_all(&aside)?;
    run(
        "cp",
        &["-aT".as_ref(), store.as_os_str(), aside.as_os_str()],
    )?;
    drop(small);
    std::fs::remove_dir(&store)?;
    std::fs::rename(&aside, &store)?;
    suite.revive().await?;
    suite.book.check_totals(&suite.gateway()).await
}

fn memory() -> Result<()> {
    let options = Options {
        store: vec!["durability = \"memory\"".to_owned()],
        ..options(Hypervisor::Process)
    };
    with_own(&options, async |suite: &mut Suite| {
        suite.write(50).await?;
        let log = suite.deployment.manager_log();
        ensure!(
            log.contains("all that clients wrote since its start is lost, acknowledged or not"),
            "{log}"
        );
        let status = suite.complete().await?;
        let text = spare_client::render::status(&status);
        ensure!(text.contains("NOT DURABLE"), "{text}");
        suite.deployment.kill_everything()?;
        suite.revive().await?;
        let lost = suite.book.check_totals(&suite.gateway()).await;
        ensure!(lost.is_err(), "nothing is lost");
        Ok(())
    })
}
