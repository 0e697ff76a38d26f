//! A member of a group, told what to do on its input: `send COUNT LENGTH`, `load LENGTH SECONDS`, `pause` (and take
//! nothing until the next line), `lease`.

use anyhow::{bail, ensure, Context, Result};
use bytes::Bytes;
use spare_group_communication::corosync::{join, CorosyncGroup, Settings};
use spare_group_communication::{Closed, Delivery, GroupChannel};
use std::fmt::Write as _;
use std::io::{BufRead, Write as _};
use std::time::{Duration, Instant};

/// Own messages under way at once when the rate is measured.
const UNDER_WAY_MAX: u64 = 4096;

#[derive(clap::Args)]
pub(crate) struct Options {
    #[arg(long)]
    me: u16,
    #[arg(long)]
    hosts: u16,
    #[arg(long, default_value_t = 0)]
    last_ring: u64,
}

/// A message that can be checked.
fn message(number: u64, length: usize) -> Bytes {
    let mut bytes = vec![(number % 251) as u8; length.max(8)];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    bytes.into()
}

fn number_of(bytes: &Bytes) -> Result<u64> {
    let number = u64::from_le_bytes(bytes[..8].try_into()?);
    let filler = (number % 251) as u8;
    ensure!(bytes[8..].iter().all(|b| *b == filler), "a message changed");
    Ok(number)
}

pub(crate) fn run(options: &Options) -> Result<()> {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .init();
    let nodes = (0..options.hosts).map(|m| (u32::from(m) + 1, m)).collect();
    let mut settings = Settings::new(options.me, nodes, "spare-test");
    settings.last_ring = options.last_ring;
    let group = match join(settings) {
        Ok(group) => group,
        Err(e) => {
            println!("failed {e}");
            return Ok(());
        }
    };
    let (commands, received) = tokio::sync::mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if commands.send(line).is_err() {
                return;
            }
        }
        std::process::exit(0);
    });
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()?;
    runtime.block_on(serve(group, received, options.me))
}

async fn serve(
    mut group: CorosyncGroup,
    mut commands: tokio::sync::mpsc::UnboundedReceiver<String>,
    me: u16,
) -> Result<()> {
    let mut sent = 0;
    loop {
        tokio::select! {
            command = commands.recv() => {
                let command = command.context("the input ended")?;
                let words: Vec<&str> = command.split(' ').collect();
                match words[..] {
                    ["send", count, length] => {
                        let length = length.parse()?;
                        for _ in 0..count.parse()? {
                            group.multicast(message(sent, length))?;
                            sent += 1;
                        }
                    }
                    ["load", length, seconds] => {
                        let time = Duration::from_secs_f64(seconds.parse()?);
                        load(&mut group, me, length.parse()?, time).await?;
                    }
                    ["pause"] => drop(commands.recv().await),
                    ["lease"] => println!("lease {}", lease_ms(&group)),
                    _ => bail!("what is {command}?"),
                }
            }
            first = group.receive() => {
                let mut text = String::new();
                let mut next = Some(first);
                while let Some(delivery) = next {
                    match delivery {
                        Ok(delivery) => tell(&mut text, &delivery)?,
                        Err(Closed) => {
                            let reason = group.closed_because().unwrap_or_default();
                            println!("{text}closed {reason}");
                            return Ok(());
                        }
                    }
                    next = group.try_receive().map(Ok);
                }
                print!("{text}");
                std::io::stdout().flush()?;
            }
        }
    }
}

fn tell(text: &mut String, delivery: &Delivery) -> Result<()> {
    match delivery {
        Delivery::View {
            ring,
            members,
            primary,
        } => {
            let members: Vec<String> = members.iter().map(ToString::to_string).collect();
            writeln!(text, "view {ring} {primary} {}", members.join(","))?;
        }
        // Of the engine itself nobody is told so.
        Delivery::Suspended { .. } => {}
        Delivery::Message { from, bytes } => {
            writeln!(text, "message {from} {} {}", number_of(bytes)?, bytes.len())?;
        }
    }
    Ok(())
}

fn lease_ms(group: &CorosyncGroup) -> i64 {
    let clock = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME);
    let now = clock.map_or(0, |t| Duration::from(t).as_millis() as i64);
    group.lease().map_or(0, |until| until.as_millis() as i64) - now
}

/// Sends as much as goes, and prints how many messages were delivered.
async fn load(group: &mut CorosyncGroup, me: u16, length: usize, time: Duration) -> Result<()> {
    let bytes = message(0, length);
    let started = Instant::now();
    let (mut under_way, mut delivered) = (0, 0u64);
    while started.elapsed() < time {
        while under_way < UNDER_WAY_MAX {
            group.multicast(bytes.clone())?;
            under_way += 1;
        }
        let mut next = Some(group.receive().await?);
        while let Some(delivery) = next {
            if let Delivery::Message { from, .. } = delivery {
                delivered += 1;
                under_way -= u64::from(from == me);
            }
            next = group.try_receive();
        }
    }
    let rate = delivered as f64 / started.elapsed().as_secs_f64();
    println!("rate {rate}");
    // This member is done; the other one's last messages are still to come.
    let quiet = Duration::from_millis(300);
    while tokio::time::timeout(quiet, group.receive()).await.is_ok() {}
    println!("done");
    Ok(())
}
