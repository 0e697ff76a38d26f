//! A program in the place of a manager that was taken over, as its user, against the real agent: it gets its own
//! service's replicas and nothing else (`docs/operators/security.md`). Each attack is a test. Needs root, for the agent;
//! replicas are processes.
//!
//! What is missing is printed and the tests are skipped; with `SPARE_TEST_REQUIRE=1` a skip is a failure.

#![allow(clippy::unwrap_used)] // a test may panic

mod host;
#[allow(
    dead_code,
    reason = "`real_processes`, which has this image too, needs more of it"
)]
#[path = "../real_processes/image.rs"]
mod image;
mod manager;
#[allow(
    dead_code,
    reason = "the images' description alone is needed; the rest is what `real_processes` runs"
)]
#[path = "../real_libvirt/rig.rs"]
mod rig;

use host::{lines, missing, Host, USER};
use libtest_mimic::{Arguments, Failed, Trial};
use manager::{ATTACK, DONE};
use std::os::unix::fs::{chown, symlink, MetadataExt, PermissionsExt};
use std::path::Path;

fn main() {
    if let Some(attack) = std::env::var_os(ATTACK) {
        let attack = attack.into_string().unwrap();
        let arguments: Vec<String> = std::env::args().skip(1).collect();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        runtime
            .unwrap()
            .block_on(manager::attack(&attack, &arguments));
        return;
    }
    let mut arguments = Arguments::from_args();
    // A program cannot be started while another test that was just forked has it open for writing.
    arguments.test_threads = Some(1);
    let missing = missing();
    if let Some(reason) = &missing {
        eprintln!("SKIPPED taken_over_manager: {reason}");
        if std::env::var_os("SPARE_TEST_REQUIRE").is_some() {
            std::process::exit(1);
        }
    }
    let trials = trials()
        .into_iter()
        .map(|trial| trial.with_ignored_flag(missing.is_some()));
    libtest_mimic::run(&arguments, trials.collect()).exit();
}

macro_rules! trial {
    ($test:ident) => {
        Trial::test(stringify!($test), || {
            $test();
            Ok::<(), Failed>(())
        })
    };
}

fn trials() -> Vec<Trial> {
    vec![
        trial!(exchanging_the_agents_socket_for_a_link_gives_no_file_away),
        trial!(a_state_folder_in_a_folder_of_the_managers_is_refused),
        trial!(a_link_in_the_place_of_the_state_folder_is_refused),
        trial!(images_in_a_folder_of_the_managers_are_refused),
        trial!(an_image_that_is_a_link_to_a_folder_of_the_managers_is_refused),
        trial!(an_image_with_a_file_that_is_a_link_is_refused),
        trial!(an_image_with_a_file_that_the_manager_can_write_to_is_refused),
        trial!(an_image_with_a_description_of_the_managers_is_refused),
        trial!(an_image_whose_content_was_changed_is_refused),
        trial!(a_test_image_is_refused),
        trial!(replicas_are_not_made_without_end),
        trial!(no_replica_gets_a_priority_before_the_agents_own),
        trial!(what_a_replica_has_cannot_be_read_past_the_agent),
        trial!(a_program_that_a_replica_left_cannot_be_run_with_roots_rights),
        trial!(odd_names_lead_to_nothing),
        trial!(the_agents_memory_is_bounded_and_no_replica_by_it),
    ]
}

/// Says so if a text has not all of these in it.
#[track_caller]
fn expect(said: &str, parts: &[&str]) {
    for part in parts {
        assert!(said.contains(part), "{part:?} is not in: {said}");
    }
}

fn exchanging_the_agents_socket_for_a_link_gives_no_file_away() {
    let mut host = Host::new();
    let folder = host.managers_folder("run");
    let victim = host.path("victim");
    std::fs::write(&victim, "of root").unwrap();
    let (socket, link) = (host.socket(), victim.display().to_string());
    let racer = host.begin("exchange", &[&socket, &link]);
    let said = host.refusal();
    assert_eq!(lines(&racer.wait_with_output().unwrap()), [DONE]);
    let name = folder.display().to_string();
    expect(
        &said,
        &[&name, "belongs to user 65534", "chown root", "agent.sock"],
    );
    let is = std::fs::metadata(&victim).unwrap();
    assert_eq!((is.uid(), is.mode() & 0o777), (0, 0o644));
}

fn a_state_folder_in_a_folder_of_the_managers_is_refused() {
    let mut host = Host::new();
    let above = host.managers_folder("lib");
    host.place("state_dir", above.join("agent"));
    let said = host.refusal();
    expect(&said, &["state_dir", "belongs to user 65534", "chown root"]);
    assert!(!above.join("agent").exists());
}

fn a_link_in_the_place_of_the_state_folder_is_refused() {
    let mut host = Host::new();
    let (target, link) = (host.path("etc"), host.path("link"));
    std::fs::create_dir(&target).unwrap();
    std::fs::set_permissions(&target, PermissionsExt::from_mode(0o700)).unwrap();
    symlink(&target, &link).unwrap();
    host.place("state_dir", link);
    expect(&host.refusal(), &["state_dir", "is a link"]);
    let mode = std::fs::metadata(&target).unwrap().mode();
    assert_eq!(mode & 0o777, 0o700, "it was opened for others");
    assert_eq!(std::fs::read_dir(&target).unwrap().count(), 0);
}

fn images_in_a_folder_of_the_managers_are_refused() {
    let mut host = Host::new();
    let images = host.path("images");
    chown(&images, Some(USER.1), None).unwrap();
    expect(&host.refusal(), &["images", "belongs to user 65534"]);
}

/// Moves the image into a folder of the manager's, with all that is in it.
fn give_away(image: &Path, to: &Path) {
    std::fs::rename(image, to).unwrap();
    chown(to, Some(USER.1), None).unwrap();
    for file in std::fs::read_dir(to).unwrap() {
        chown(file.unwrap().path(), Some(USER.1), None).unwrap();
    }
}

fn an_image_that_is_a_link_to_a_folder_of_the_managers_is_refused() {
    let mut host = Host::new();
    let (image, elsewhere) = (host.path("images/tiny"), host.path("elsewhere"));
    give_away(&image, &elsewhere);
    symlink(&elsewhere, &image).unwrap();
    host.start("");
    let said = host.create("0.1", "tiny");
    expect(&said, &["BadImage", "elsewhere", "belongs to user 65534"]);
}

fn an_image_with_a_file_that_is_a_link_is_refused() {
    let mut host = Host::new();
    let (file, elsewhere) = (host.path("images/tiny/root.tar"), host.path("root.tar"));
    std::fs::rename(&file, &elsewhere).unwrap();
    symlink(&elsewhere, &file).unwrap();
    host.start("");
    let said = host.create("0.1", "tiny");
    expect(&said, &["BadImage", "root.tar is a link"]);
}

fn an_image_with_a_file_that_the_manager_can_write_to_is_refused() {
    let mut host = Host::new();
    let file = host.path("images/tiny/root.tar");
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o646)).unwrap();
    host.start("");
    let said = host.create("0.1", "tiny");
    expect(&said, &["BadImage", "root.tar (mode 646)", "chmod go-w"]);
}

fn an_image_with_a_description_of_the_managers_is_refused() {
    let mut host = Host::new();
    let file = host.path("images/tiny/image.toml");
    chown(&file, Some(USER.1), None).unwrap();
    host.start("");
    let said = host.create("0.1", "tiny");
    expect(
        &said,
        &["BadImage", "image.toml belongs to user 65534", "chown root"],
    );
}

fn an_image_whose_content_was_changed_is_refused() {
    let mut host = Host::new();
    host.start("");
    assert_eq!(host.create("0.1", "tiny"), DONE);
    let file = host.path("images/tiny/root.tar");
    let mut archive = std::fs::read(&file).unwrap();
    let middle = archive.len() / 2;
    archive[middle] ^= 1;
    std::fs::write(&file, archive).unwrap();
    let said = host.create("0.2", "tiny");
    expect(
        &said,
        &["BadImage", "root.tar is not the file", "sha256", "anew"],
    );
}

fn a_test_image_is_refused() {
    let mut host = Host::new();
    let file = host.path("images/tiny/image.toml");
    let description = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, format!("door = true\n{description}")).unwrap();
    host.start("");
    let said = host.create("0.1", "tiny");
    expect(
        &said,
        &["BadImage", "test image", "door = true in agent.toml"],
    );
}

fn replicas_are_not_made_without_end() {
    let mut host = Host::new();
    host.start("replicas_max = 3");
    let said = host.attack("create-many", &[&host.socket(), "9"]);
    let made = said.iter().filter(|line| *line == DONE).count();
    assert_eq!(made, 3, "{said:?}");
    let refused: Vec<&String> = said.iter().filter(|line| *line != DONE).collect();
    assert_eq!(refused.len(), 6);
    for line in refused {
        expect(line, &["TooManyReplicas", "replicas_max = 3"]);
    }
    // The bound is for those that are there.
    let first = (1..=9).find(|n| said[n - 1] == DONE).unwrap();
    let gone = format!("0.{first}");
    assert_eq!(host.attack("destroy", &[&host.socket(), &gone]), [DONE]);
    assert_eq!(host.create("1.1", "tiny"), DONE);
    expect(&host.create("1.2", "tiny"), &["TooManyReplicas"]);
}

fn no_replica_gets_a_priority_before_the_agents_own() {
    let mut host = Host::new();
    host.start("");
    assert_eq!(host.create("0.1", "tiny"), DONE);
    for nice in ["-20", "-11", "20"] {
        let said = host.attack("prioritise", &[&host.socket(), "0.1", nice]);
        expect(&said.concat(), &["Failed", "is no priority of a replica"]);
    }
    let said = host.attack("prioritise", &[&host.socket(), "0.1", "-10"]);
    assert_eq!(said, [DONE]);
}

fn what_a_replica_has_cannot_be_read_past_the_agent() {
    let mut host = Host::new();
    host.start("");
    assert_eq!(host.create("0.1", "tiny"), DONE);
    let files = [
        "state",
        "state/lock",
        "state/processes",
        "state/processes/0.1/init",
        "state/processes/0.1/changes/written",
        "state/processes/0.1/root/written",
        "state/roots",
        "state/roots/test/sbin/init",
        "state/console/0.1.log",
        "state/quarantine",
        "state/disks",
        "state/channels",
    ];
    let paths = files.map(|file| host.path(file).display().to_string());
    let paths: Vec<&str> = paths.iter().map(String::as_str).collect();
    let said = host.attack("read", &paths);
    assert_eq!(said.len(), files.len());
    for (line, file) in said.iter().zip(files) {
        assert!(line.contains("Permission denied"), "{file}: {line}");
    }
}

fn a_program_that_a_replica_left_cannot_be_run_with_roots_rights() {
    let mut host = Host::new();
    host.start("");
    assert_eq!(host.create("0.1", "tiny"), DONE);
    // As root in the replica can leave it: in its root, which is a layer or a copy.
    let replica = host.path("state/processes/0.1");
    let layer = replica.join("changes");
    let root = if layer.exists() {
        layer
    } else {
        replica.join("root")
    };
    let program = root.join("id");
    std::fs::copy("/usr/bin/id", &program).unwrap();
    std::fs::set_permissions(&program, PermissionsExt::from_mode(0o4755)).unwrap();
    let said = host.attack("run", &[&program.display().to_string()]);
    expect(&said.concat(), &["Permission denied"]);
}

fn odd_names_lead_to_nothing() {
    let mut host = Host::new();
    host.start("");
    let said = host.attack("odd-names", &[&host.socket(), "spare-other-0-1"]);
    assert_eq!(said.len(), 11 * 10);
    for line in said {
        // An image may be called as another service's domain is; there is none.
        let is_refused = line.starts_with("InvalidName") || line.starts_with("NoSuchImage");
        assert!(is_refused, "{line}");
    }
    let files = std::fs::read_dir(host.path("state/processes")).unwrap();
    assert_eq!(files.count(), 0);
}

/// Calls of any size, whose answers nobody reads, cannot take the host's memory.
fn the_agents_memory_is_bounded_and_no_replica_by_it() {
    let mut host = Host::new();
    host.start("");
    assert_eq!(host.create("0.1", "tiny"), DONE);
    let init = std::fs::read_to_string(host.path("state/processes/0.1/init")).unwrap();
    let init = init.split(' ').next().unwrap().parse().unwrap();
    let soft = |process: u32| {
        let limits = std::fs::read_to_string(format!("/proc/{process}/limits")).unwrap();
        let data = limits
            .lines()
            .find(|line| line.starts_with("Max data size"));
        let words: Vec<&str> = data.unwrap().split_whitespace().collect();
        words[3].to_owned()
    };
    assert_eq!(soft(host.agent_process()), (1u64 << 30).to_string());
    assert_eq!(soft(init), soft(std::process::id()));
}
