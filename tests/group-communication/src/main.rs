//! How fast messages are ordered over Corosync, against a program that only calls CPG.

mod bare;
mod bench;
mod engine;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(
    about,
    after_help = "The last line is JSON. Needs root, and Corosync installed: the two hosts \
    are network namespaces."
)]
struct Arguments {
    #[command(flatten)]
    bench: bench::Options,
    #[command(subcommand)]
    role: Option<Role>,
}

/// What the hosts' processes run.
#[derive(Subcommand)]
enum Role {
    /// A member of a group that does what it is told on its input.
    #[command(hide = true)]
    Member(engine::Options),
    /// A program that sends one message a multicast.
    #[command(hide = true)]
    Bare(bare::Options),
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    match arguments.role {
        Some(Role::Member(options)) => engine::run(&options),
        Some(Role::Bare(options)) => bare::run(&options),
        None => bench::run(&arguments.bench),
    }
}
