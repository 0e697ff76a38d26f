//! The program that writes the seeds.

use std::process::Command;

#[test]
fn with_an_argument_it_writes_nothing_and_says_so() {
    let done = Command::new(env!("CARGO_BIN_EXE_spare-fuzz-seeds"))
        .arg("--help")
        .output()
        .expect("it runs");
    assert!(!done.status.success());
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(said.contains("takes no arguments"), "{said}");
    assert!(done.stdout.is_empty());
}
