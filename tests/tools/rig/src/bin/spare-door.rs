//! Runs a command inside a replica, as an attacker who is root there would: through the door of a test image. A
//! replica that goes away meanwhile was caught: that is no failure of the command.

use anyhow::{bail, Result};
use clap::Parser;
use spare_rig::{Closed, Door};
use std::path::PathBuf;

/// Run a command inside a replica of a test image, as root; prints what it says
#[derive(Parser)]
#[command(version)]
struct Options {
    /// The agent's socket
    #[arg(
        long,
        value_name = "FILE",
        default_value = "/run/spare-agent/agent.sock"
    )]
    agent: PathBuf,
    /// The replica, as in `spare status`
    replica: String,
    /// For the guest's shell
    command: String,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let options = Options::parse();
    let agent = spare_agent_client::connect(&options.agent).await?;
    let mut door = Door::open(&agent, &options.replica).await?;
    let said = match door.run(&options.command).await {
        Err(e) if e.is::<Closed>() => {
            eprintln!("{e}");
            return Ok(());
        }
        said => said?,
    };
    print!("{}", said.output);
    match said.code {
        0 => Ok(()),
        code => bail!("exit code {code}"),
    }
}
