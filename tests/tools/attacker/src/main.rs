//! What somebody who took over a guest could do to it, for tests.
//!
//! Only test images contain this program. Their init starts `spare-attacker door`, which gives the
//! test a root shell over a virtio-serial port of its own; the other commands are started through
//! that shell. Whatever they do happens inside one guest, and is what the other replicas have to
//! cope with.

use anyhow::{Context, Result};
use clap::{Parser, Subcommand, ValueEnum};
use std::path::PathBuf;
use std::time::Duration;

mod door;
mod flood;
mod http;
mod liar;
mod pidfd;
mod ports;
mod trouble;

/// Faults from inside a guest, for tests.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run shell commands that arrive on a virtio-serial port.
    Door {
        /// The name of the port.
        #[arg(long, default_value = "org.spare.door.0")]
        port: String,
    },
    /// Take the place of the service and lie.
    Liar(LiarArguments),
    /// Write bytes that are no frames into the shim's own channel to its manager.
    Flood {
        /// What to write.
        #[arg(long, value_enum)]
        kind: flood::Kind,
        /// How many bytes.
        #[arg(long)]
        bytes: u64,
    },
    /// Fork until nothing goes any more.
    Forkbomb,
    /// Crash the kernel.
    Panic,
}

#[derive(clap::Args)]
struct LiarArguments {
    /// The service's socket. The real one is moved aside to SOCKET.real.
    #[arg(long)]
    socket: PathBuf,
    /// What to do to the requests that pass through.
    #[arg(long, value_enum)]
    mode: LiarMode,
    /// Lie only while this file exists; mode `once` removes it with the lie.
    #[arg(long)]
    arm: Option<PathBuf>,
    /// How late mode `late` is.
    #[arg(long, default_value_t = 1000)]
    delay_ms: u64,
    /// What mode `update` does to the database before a POST.
    #[arg(long, default_value = liar::WRONG_UPDATE)]
    sql: String,
}

#[derive(Clone, Copy, ValueEnum)]
enum LiarMode {
    /// Every page is wrong in one digit.
    Always,
    /// One page is wrong in one digit.
    Once,
    /// Every page is late, and wrong in one digit.
    Late,
    /// Every page is right, but a POST changes more than it should.
    Update,
    /// No request is answered.
    Hang,
}

impl LiarArguments {
    fn into_liar(self) -> liar::Liar {
        let deed = match self.mode {
            LiarMode::Always => liar::Deed::WrongPage(Duration::ZERO),
            LiarMode::Once => liar::Deed::OneWrongPage,
            LiarMode::Late => liar::Deed::WrongPage(Duration::from_millis(self.delay_ms)),
            LiarMode::Update => liar::Deed::WrongUpdate(self.sql),
            LiarMode::Hang => liar::Deed::Hang,
        };
        liar::Liar::new(self.socket, deed, self.arm)
    }
}

fn main() -> Result<()> {
    match Arguments::parse().command {
        Command::Door { port } => door::run(&port).context("the door"),
        Command::Liar(arguments) => arguments.into_liar().run(),
        Command::Flood { kind, bytes } => flood::run(kind, bytes),
        Command::Forkbomb => trouble::forkbomb(),
        Command::Panic => trouble::panic_kernel(),
    }
}
