//! Opens the stores; where this host has one that is damaged, or too old to go on from, the newest snapshot of
//! another host takes its place first.

use super::error::DaemonError;
use crate::admin::AdminApi;
use crate::config::Config;
use crate::peers::{Fetched, Network, Source};
use crate::stores::{self, Opened, Replacement, Stores};
use spare_protocol::{Hash, SeatId};
use std::time::Duration;

/// From asking all hosts in vain until they are asked again.
const RETRY: Duration = Duration::from_secs(1);

/// Opens the stores of this host's seats, for replicas of `image`; the agent has those that are named. Waits for
/// another host if it must; `api` hears of it.
pub(super) async fn open(
    config: &Config,
    (image, replicas): (Hash, Vec<String>),
    network: Option<&Network>,
    api: &AdminApi,
) -> Result<Stores, DaemonError> {
    loop {
        let (opening, replicas) = (config.clone(), replicas.clone());
        let open = move || stores::open(&opening, image, &replicas);
        let replacement = match tokio::task::spawn_blocking(open).await?? {
            Opened::Ready(stores) => return Ok(stores),
            Opened::Replace(replacement) => *replacement,
        };
        tracing::warn!(
            "{}; this host begins with a snapshot of another one",
            replacement.why
        );
        let network = network.ok_or(DaemonError::NoOtherHost)?;
        let why = &replacement.why;
        api.waits_for(format!(
            "{why}; this host begins with a snapshot of another one"
        ));
        let fetched = fetch(&replacement, network.sources(), api).await;
        let put = move || replacement.put_in_place(fetched.as_ref());
        tokio::task::spawn_blocking(put).await??;
        tracing::info!("the snapshot is in its place");
    }
}

/// Asks one host after the other until one has given everything.
async fn fetch(replacement: &Replacement, sources: Vec<Source>, api: &AdminApi) -> Option<Fetched> {
    let fits = |source: &&Source| match &replacement.sources {
        Some(seats) => seats.contains(&SeatId(source.seat())),
        None => true,
    };
    let folder = replacement.fetched();
    let mut told = Vec::new();
    loop {
        let mut found = Vec::new();
        for source in sources.iter().filter(fits) {
            match source.fetch(&folder).await {
                Ok(fetched) => return fetched,
                Err(error) => found.push(format!("host {}: {error}", source.name())),
            }
        }
        // Told once, not with every attempt.
        if found != told {
            let text = format!("waiting for a snapshot: {}", found.join("; "));
            tracing::warn!("{text}");
            api.waits_for(format!("{}; {text}", replacement.why));
            told = found;
        }
        tokio::time::sleep(RETRY).await;
    }
}
