//! The lab's command; `scripts/lab` builds and calls it.

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use spare_lab::rules::{Fault, Ways};
use spare_lab::{device, fence, names, run_delay, FenceMode, Lab, Options, Shared, Status};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

/// Virtual hosts on this machine: booted systems with Corosync and libvirt, whose links can be cut.
#[derive(Parser)]
#[command(name = "lab")]
struct Arguments {
    /// Which lab: labs with different names do not see one another
    #[arg(long, env = "SPARE_LAB", default_value = names::DEFAULT_LAB)]
    lab: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Set up hosts h1, h2, …, a witness and a client, and boot them
    Up {
        #[arg(long, default_value_t = 2)]
        hosts: usize,
        /// With a witness (the default)
        #[arg(long, overrides_with = "no_witness")]
        witness: bool,
        /// Without one: two hosts rely on fencing
        #[arg(long)]
        no_witness: bool,
        /// Corosync notices a lost host after about 2.1 times this
        #[arg(long, value_name = "MS", default_value_t = 1000)]
        token_ms: u32,
        /// A folder of this machine that all hosts see, read-only
        #[arg(long, value_name = "FOLDER:IN-HOST")]
        share: Vec<String>,
    },
    /// End and remove everything of the lab, also what a crashed program left behind
    Down {
        /// Leave the hosts' disks to be looked at
        #[arg(long)]
        keep_disks: bool,
    },
    /// Show hosts, links and the fence device
    Status,
    /// Run a command in a host, as root
    Run {
        host: String,
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Switch a host on and wait until it has booted
    Start {
        host: String,
        /// Do not wait
        #[arg(long)]
        no_wait: bool,
    },
    /// Shut a host down
    Stop { host: String },
    /// End a host as a loss of power would
    Crash { host: String },
    /// Stop time for a host
    Freeze { host: String },
    /// Let a frozen host go on
    Thaw { host: String },
    /// Let nothing through between two hosts
    Cut {
        #[command(flatten)]
        link: Link,
    },
    /// Make everything between two hosts late
    Delay {
        #[command(flatten)]
        link: Link,
        ms: u32,
    },
    /// Lose a part of what is sent between two hosts
    Loss {
        #[command(flatten)]
        link: Link,
        #[arg(value_parser = clap::value_parser!(u8).range(0..=100))]
        percent: u8,
    },
    /// Make the link between two hosts, or all links, as new
    Heal {
        #[arg(requires = "to")]
        from: Option<String>,
        to: Option<String>,
    },
    /// End a host as the fence agent does; fails as the fence device fails
    Fence { host: String },
    /// Let the fence device work, fail, or hang
    FenceMode {
        #[arg(value_enum)]
        mode: FenceMode,
    },
    #[command(hide = true)]
    FenceDevice,
    #[command(hide = true)]
    FenceAgent {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    #[command(hide = true)]
    DelayFrames { delays: String },
}

#[derive(clap::Args)]
struct Link {
    from: String,
    to: String,
    /// Only from the first to the second
    #[arg(long)]
    one_way: bool,
}

impl Link {
    fn change(&self, lab: &Lab, change: impl FnMut(&mut Fault)) -> Result<()> {
        let ways = match self.one_way {
            true => Ways::One,
            false => Ways::Both,
        };
        lab.change_link(&self.from, &self.to, ways, change)
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match execute(arguments) {
        Ok(code) => ExitCode::from(u8::try_from(code).unwrap_or(1)),
        Err(e) => {
            eprintln!("lab: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn execute(Arguments { lab: name, command }: Arguments) -> Result<i32> {
    match command {
        Command::Up {
            hosts,
            witness: _,
            no_witness,
            token_ms,
            share,
        } => {
            let shared = share.iter().map(|pair| shared(pair));
            let options = Options {
                lab: name,
                hosts,
                faults: u16::try_from(hosts - 1)?,
                witness: !no_witness,
                token_ms,
                shared: shared.collect::<Result<_>>()?,
            };
            Lab::up(&options, &say)?;
            return Ok(0);
        }
        Command::Down { keep_disks } => {
            Lab::down(&name, keep_disks)?;
            return Ok(0);
        }
        Command::FenceAgent { arguments } => return Ok(fence::agent(&arguments)),
        Command::DelayFrames { delays } => {
            run_delay(&serde_json::from_str(&delays)?)?;
            return Ok(0);
        }
        _ => {}
    }
    in_lab(&Lab::open(&name)?, command)
}

fn in_lab(lab: &Lab, command: Command) -> Result<i32> {
    let begun = Instant::now();
    match command {
        Command::Status => show(&lab.status()?),
        Command::Run { host, command } => return lab.host(&host)?.attach(command),
        Command::Start { host, no_wait } => {
            lab.host(&host)?.power_on()?;
            if !no_wait {
                lab.host(&host)?.wait_until_booted()?;
                say(&format!(
                    "{host} is up after {:.1} s",
                    begun.elapsed().as_secs_f64()
                ));
            }
        }
        Command::Stop { host } => lab.host(&host)?.stop()?,
        Command::Crash { host } => lab.host(&host)?.crash()?,
        Command::Freeze { host } => lab.host(&host)?.freeze()?,
        Command::Thaw { host } => lab.host(&host)?.thaw()?,
        Command::Cut { link } => link.change(lab, |f| f.cut = true)?,
        Command::Delay { link, ms } => link.change(lab, |f| f.delay_ms = ms)?,
        Command::Loss { link, percent } => link.change(lab, |f| f.loss_percent = percent)?,
        Command::Heal { from, to } => lab.heal(from.as_deref().zip(to.as_deref()))?,
        Command::Fence { host } => lab.fence(&host)?,
        Command::FenceMode { mode } => lab.set_fence_mode(mode)?,
        Command::FenceDevice => device::serve(lab)?,
        // Commands that need no lab were executed before.
        Command::Up { .. }
        | Command::Down { .. }
        | Command::FenceAgent { .. }
        | Command::DelayFrames { .. } => {}
    }
    Ok(0)
}

fn shared(pair: &str) -> Result<Shared> {
    let (source, target) = (pair.split_once(':'))
        .with_context(|| format!("--share: {pair:?} is not FOLDER:IN-HOST"))?;
    Ok(Shared {
        source: std::path::absolute(source)?,
        target: PathBuf::from(target),
    })
}

fn say(line: &str) {
    eprintln!("lab: {line}");
}

fn show(status: &Status) {
    for (name, address, power) in &status.hosts {
        println!("{name:8} {address:12} {power}");
    }
    for (direction, fault) in status.rules.faults() {
        print!("{} -> {}:", direction.from, direction.to);
        if fault.cut {
            print!(" cut");
        }
        if fault.loss_percent > 0 {
            print!(" loses {}%", fault.loss_percent);
        }
        if fault.delay_ms > 0 {
            print!(" delays {} ms", fault.delay_ms);
        }
        println!();
    }
    if status.fence != FenceMode::Works {
        println!("the fence device {:?}", status.fence);
    }
}
