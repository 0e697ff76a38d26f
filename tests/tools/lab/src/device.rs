//! The lab's fence device, which really cuts a virtual host's power.
//!
//! It is a process outside of all hosts, reached through a socket that they see: cutting links does not cut it
//! off, as with a power switch on a network of its own. It does one thing after the other, and does what it was
//! asked for also when who asked is dead by then.

use crate::fence::Action;
use crate::host::Power;
use crate::lab::Lab;
use crate::state::FenceMode;
use anyhow::{bail, Context, Result};
use std::fs::Permissions;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

/// The longest that a word to the device may be.
const REQUEST_BYTES_MAX: u64 = 256;

/// The device: serves until it is killed.
///
/// # Errors
/// When its socket cannot be made.
pub fn serve(lab: &Lab) -> Result<()> {
    let socket = &lab.device_socket();
    let listener = UnixListener::bind(socket).context("cannot make the device's socket")?;
    // Whoever is on a host may ask, as with a device that has no password: managers do not run as root.
    std::fs::set_permissions(socket, Permissions::from_mode(0o666))?;
    for connection in listener.incoming() {
        let mut connection = connection?;
        let answer =
            answer(lab, &connection).unwrap_or_else(|e| format!("{e:#}").replace('\n', " "));
        println!("answered: {answer}");
        // Who asked may be dead by now.
        let _ = writeln!(connection, "{answer}");
    }
    Ok(())
}

fn answer(lab: &Lab, connection: &UnixStream) -> Result<String> {
    connection.set_read_timeout(Some(Duration::from_secs(1)))?;
    let mut line = String::new();
    BufReader::new(connection.take(REQUEST_BYTES_MAX)).read_line(&mut line)?;
    let (word, host) = line.trim().split_once(' ').context("not ACTION HOST")?;
    let action = Action::parse(word).context("no such action")?;
    println!("asked for: {word} {host}");
    match lab.fence_mode() {
        FenceMode::Works => {}
        FenceMode::Fails => bail!("this device was told to fail"),
        FenceMode::Hangs => loop {
            std::thread::sleep(Duration::from_millis(100));
            if lab.fence_mode() != FenceMode::Hangs {
                bail!("this device hung");
            }
        },
    }
    switch(lab, action, host)
}

fn switch(lab: &Lab, action: Action, host: &str) -> Result<String> {
    let ok = || "ok".to_owned();
    if action == Action::Monitor {
        return Ok(ok());
    }
    let host = lab.host(host)?;
    match action {
        Action::Status if host.power() == Power::Off => return Ok("off".to_owned()),
        Action::On if host.power() == Power::Off => host.power_on()?,
        Action::Off => host.crash()?,
        Action::Reboot => {
            host.crash()?;
            host.power_on()?;
        }
        Action::Status | Action::On | Action::Monitor | Action::Metadata => {}
    }
    Ok(ok())
}
