//! `auction`: serves the demo service, and prints its schema and its data.

use std::io::{self, BufWriter, ErrorKind, Write};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand, ValueEnum};
use spare_auction::populate::{self, Sizes};
use spare_auction::{schema, server};

/// The demo service of SPARE: an online auction with the interactions of RUBiS.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve the auction's pages until SIGTERM.
    Serve {
        /// Where to listen: the path of a Unix socket, or a TCP address like 127.0.0.1:80.
        #[arg(long)]
        listen: String,
        /// The database, as "host=/run/postgresql user=auction dbname=auction".
        #[arg(long)]
        database: String,
    },
    /// Print SQL that creates the role and the tables, for psql.
    Schema,
    /// Print SQL that fills the tables, for psql.
    Populate(Populate),
}

#[derive(Args)]
struct Populate {
    /// How many rows to generate; the options below change single numbers.
    #[arg(long, value_enum, default_value_t = Size::Tiny)]
    size: Size,
    /// Users, user1 with the password password1 and so on.
    #[arg(long)]
    users: Option<u64>,
    /// Items on sale.
    #[arg(long)]
    items: Option<u64>,
    /// Items whose auctions are over.
    #[arg(long)]
    old_items: Option<u64>,
    /// Bids.
    #[arg(long)]
    bids: Option<u64>,
    /// Comments on users.
    #[arg(long)]
    comments: Option<u64>,
    /// Purchases at a fixed price.
    #[arg(long)]
    buy_now: Option<u64>,
    /// The same seed gives the same data.
    #[arg(long)]
    seed: Option<u64>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Size {
    /// 1,000 users, 1,000 items, 5,000 bids.
    Tiny,
    /// 100,000 users, 33,000 items, 500,000 bids.
    Small,
}

impl Populate {
    fn sizes(&self) -> Sizes {
        let preset = match self.size {
            Size::Tiny => Sizes::TINY,
            Size::Small => Sizes::SMALL,
        };
        Sizes {
            users: self.users.unwrap_or(preset.users),
            items: self.items.unwrap_or(preset.items),
            old_items: self.old_items.unwrap_or(preset.old_items),
            bids: self.bids.unwrap_or(preset.bids),
            comments: self.comments.unwrap_or(preset.comments),
            buy_now: self.buy_now.unwrap_or(preset.buy_now),
            seed: self.seed.unwrap_or(preset.seed),
        }
    }
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("auction: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Serve { listen, database } => Ok(server::run(&listen, &database)?),
        Command::Schema => print(|out| out.write_all(schema::SQL.as_bytes())),
        Command::Populate(options) => {
            let sizes = options.sizes();
            sizes.check()?;
            print(|out| populate::write(sizes, out))
        }
    }
}

/// Writes to standard output; a reader that has seen enough is no error.
fn print(write: impl FnOnce(&mut BufWriter<io::StdoutLock<'_>>) -> io::Result<()>) -> Result<()> {
    let mut out = BufWriter::with_capacity(1 << 16, io::stdout().lock());
    match write(&mut out).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(error).context("cannot write to standard output")
        }
        _ => Ok(()),
    }
}
