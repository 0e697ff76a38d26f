//! Begins a run, waits for its clients, and sums up.

use crate::client::Client;
use crate::error::BenchError;
use crate::monitor::Monitor;
use crate::options::BenchOptions;
use crate::request::PageRequest;
use crate::run::Run;
use crate::statistics::BenchReport;
use crate::verdict::{judge, Verdict};
use rand::rngs::SmallRng;
use rand::SeedableRng;
use spare_auction_interactions::Interaction;
use spare_client::http::{Address, Connection};
use std::sync::Arc;
use std::time::Instant;

/// Runs emulated clients until the requests are sent or the time is over.
///
/// # Errors
/// When the gateway is not reachable at the start, or the record of pages cannot be written. What
/// goes wrong later is in the report.
pub async fn run(options: BenchOptions, monitor: Arc<Monitor>) -> Result<BenchReport, BenchError> {
    let urls = std::iter::once(&options.url).chain(&options.also);
    let addresses = urls
        .map(|url| Address::from_url(url))
        .collect::<Result<Vec<_>, _>>()?;
    let run = Arc::new(Run::new(options, monitor)?);
    let mut rng = SmallRng::seed_from_u64(run.options.seed);
    let timeout = run.timeout_of_attempts();
    let connection = |address: &Address| Connection::new(address.clone(), timeout);
    let connect = || -> Vec<Connection> { addresses.iter().map(connection).collect() };
    probe(&run, connection(&addresses[0]), &mut rng).await?;
    let started = Instant::now();
    let clients: Vec<_> = (1..=usize::from(run.options.clients))
        .map(|number| {
            let rng = SmallRng::from_rng(&mut rng);
            let client = Client::new(run.clone(), connect(), rng, number);
            tokio::spawn(client.browse())
        })
        .collect();
    let progress = run.options.progress.then(|| {
        let run = run.clone();
        tokio::spawn(async move { run.show_progress().await })
    });
    let mut connections = 0;
    for client in clients {
        match client.await {
            Ok(opened) => connections += opened,
            Err(e) => run.count_lost_client(&e.to_string()),
        }
    }
    if let Some(progress) = progress {
        progress.abort();
    }
    run.report(started.elapsed(), connections)
}

/// Loads the home page once; it is not part of the run.
async fn probe(
    run: &Run,
    mut connection: Connection,
    rng: &mut SmallRng,
) -> Result<(), BenchError> {
    let url = run.options.url.clone();
    let home = PageRequest::new(Interaction::Home);
    let mut request = home.to_http();
    run.stamp(&mut request, rng);
    let reply = match connection.send(&request).await {
        Ok(reply) => reply,
        Err(source) => return Err(BenchError::Unreachable { url, source }),
    };
    run.record(&request, &reply);
    let what = match judge(&home, &reply) {
        Ok(Verdict::Right(page)) => match page.main.number("data-users") {
            Ok(users) if users >= run.options.size.users() => return Ok(()),
            Ok(users) => format!("it has {users} users; another --size may be right"),
            Err(what) => what.to_string(),
        },
        Ok(Verdict::Refused { reason, .. }) => format!("it refuses its home page: {reason}"),
        Err(what) => what.to_string(),
    };
    Err(BenchError::NotTheAuction { url, what })
}
