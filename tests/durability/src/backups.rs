//! `spare backup` and `spare restore`.

use crate::suite::Suite;
use crate::trial;
use anyhow::{ensure, Result};
use libtest_mimic::Trial;
use std::path::Path;
use std::process::Command;

pub(crate) fn trials() -> Vec<Trial> {
    vec![trial(
        "a_backup_made_while_serving_starts_the_group_again",
        backup_and_restore,
    )]
}

/// `spare backup FILE`, which checks what it wrote; returns what it says.
pub(crate) fn backup(suite: &Suite, file: &Path) -> Result<String> {
    let made = Command::new(spare_rig::binaries()?.join("spare"))
        .arg("backup")
        .arg("--admin")
        .arg(suite.deployment.admin_socket())
        .arg(file)
        .output()?;
    let text = String::from_utf8_lossy(&made.stdout).into_owned();
    ensure!(
        made.status.success() && text.contains("checked"),
        "{text}{}",
        String::from_utf8_lossy(&made.stderr)
    );
    Ok(text)
}

async fn backup_and_restore(suite: &mut Suite) -> Result<()> {
    let early = suite.load();
    early.wait_for(200).await?;
    suite.check(early).await?;
    // More of it goes on while the backup is made; what of that is in it is left open.
    let during = suite.load();
    during.wait_for(20).await?;
    let program = spare_rig::binaries()?.join("spare");
    let file = suite.deployment.folder().join("auction.backup");
    println!("{}", backup(suite, &file)?.trim());
    let writes = during.close().await?;
    let gateway = suite.gateway();
    suite.book.check(&gateway, &writes).await?;

    let restore = |file: &Path, suite: &Suite| -> Result<(bool, String)> {
        let done = Command::new(&program)
            .arg("restore")
            .arg("--config")
            .arg(suite.deployment.manager_configuration())
            .arg(file)
            .output()?;
        let mut text = String::from_utf8_lossy(&done.stdout).into_owned();
        text.push_str(&String::from_utf8_lossy(&done.stderr));
        Ok((done.status.success(), text))
    };
    let (done, text) = restore(&file, suite)?;
    ensure!(
        !done && text.contains("in use"),
        "over a manager that runs: {text}"
    );
    suite.deployment.kill_everything()?;
    let (done, text) = restore(&file, suite)?;
    ensure!(
        !done && text.contains("move it away"),
        "over a store: {text}"
    );
    let store = suite.deployment.store();
    std::fs::remove_dir_all(store.join("seat-0"))?;
    std::fs::remove_dir_all(store.join("seat-1"))?;
    // A byte less is no backup.
    let mut bytes = std::fs::read(&file)?;
    bytes.pop();
    let damaged = file.with_extension("damaged");
    std::fs::write(&damaged, &bytes)?;
    let (done, text) = restore(&damaged, suite)?;
    ensure!(!done, "damaged: {text}");
    let (done, text) = restore(&file, suite)?;
    ensure!(done, "{text}");
    println!("{}", text.trim());
    suite.revive().await?;
    // What was acknowledged before the backup is there; what came after it is as if it never had been.
    let lost = suite.book.restored(&gateway, &writes).await?;
    println!("{} of {} writes came after the backup", lost, writes.len());
    suite.write(50).await?;
    suite.scrub().await
}
