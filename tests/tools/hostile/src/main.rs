//! Attacks a gateway from this machine. For gateways of test deployments.

use anyhow::Result;
use clap::Parser;
use spare_hostile_clients::{Attack, Kind};
use std::net::SocketAddr;
use std::time::Duration;

/// Attack the gateway of a test deployment as many hostile clients would.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Where the gateway listens, on a loopback address: HOST:PORT
    gateway: SocketAddr,
    /// In which way the clients are hostile; may be repeated [default: each]
    #[arg(long, value_enum)]
    kind: Vec<Kind>,
    /// How many clients of each kind
    #[arg(long, default_value_t = 4000)]
    clients: usize,
    /// What slow readers ask for; it should be longer than 24 KiB
    #[arg(long, default_value = "/")]
    page: String,
    /// How long, in seconds
    #[arg(long, default_value_t = 30)]
    seconds: u64,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    anyhow::ensure!(
        arguments.gateway.ip().is_loopback(),
        "{} is no loopback address; this is for test deployments on this machine",
        arguments.gateway
    );
    let kinds = match arguments.kind.as_slice() {
        [] => &Kind::ALL,
        some => some,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let attack = |kind: &Kind| {
            let begun =
                Attack::begin(*kind, arguments.gateway, arguments.clients, &arguments.page)?;
            Ok((*kind, begun))
        };
        let attacks = kinds.iter().map(attack).collect::<Result<Vec<_>>>()?;
        tokio::time::sleep(Duration::from_secs(arguments.seconds)).await;
        for (kind, attack) in attacks {
            let tally = attack.tally();
            println!(
                "{kind:?}: {} connections open, {} opened, {} answered",
                tally.open(),
                tally.opened(),
                tally.answered()
            );
        }
        Ok(())
    })
}
