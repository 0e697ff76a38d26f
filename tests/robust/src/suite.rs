//! The deployment that all tests share, and what they do with it.

use anyhow::{ensure, Context, Result};
use spare_auction_clients::{BenchOptions, BenchReport, Monitor};
use spare_client::http::{Address, Connection, Request};
use spare_protocol::admin::EventKind;
use spare_rig::{Deployment, Hypervisor, Options};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

/// For a group to have all its replicas.
const COMPLETE_LIMIT: Duration = Duration::from_secs(120);
/// For requests of an attack to be answered.
const QUIET_LIMIT: Duration = Duration::from_secs(180);
/// Nothing was ordered for so long: it is over.
const QUIET: Duration = Duration::from_secs(1);
/// Ordinary clients.
const CLIENTS: u16 = 16;

/// How long the tests are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scale {
    Short,
    Full,
}

impl Scale {
    pub(crate) fn from_environment() -> Scale {
        match std::env::var("SPARE_SCALE").as_deref() {
            Ok("full") => Scale::Full,
            _ => Scale::Short,
        }
    }

    pub(crate) fn choose<T>(self, short: T, full: T) -> T {
        match self {
            Scale::Short => short,
            Scale::Full => full,
        }
    }
}

pub(crate) struct Suite {
    pub(crate) deployment: Deployment,
}

static SUITE: Mutex<Option<(Arc<Runtime>, Suite)>> = Mutex::new(None);

/// Runs `test` over the deployment, which the first test starts. Fails also when the test cost a replica its place.
pub(crate) fn with_suite(test: impl AsyncFnOnce(&mut Suite) -> Result<()>) -> Result<()> {
    let mut shared = SUITE.lock().unwrap_or_else(PoisonError::into_inner);
    if shared.is_none() {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let suite = runtime.block_on(Suite::start());
        *shared = Some((
            Arc::new(runtime),
            suite.context("the deployment does not start")?,
        ));
    }
    let Some((runtime, suite)) = shared.as_mut() else {
        return Ok(());
    };
    runtime.block_on(async {
        suite.deployment.wait_until_complete(COMPLETE_LIMIT).await?;
        suite.is_quiet().await?;
        let before = suite.newest_event().await?;
        test(suite).await?;
        suite.no_replica_lost_its_place(before).await
    })
}

pub(crate) fn end() {
    *SUITE.lock().unwrap_or_else(PoisonError::into_inner) = None;
}

/// SIGINT and SIGTERM end the deployment, then the tests: nothing stays behind.
pub(crate) fn end_on_signals() {
    std::thread::spawn(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        let signalled = runtime.map(|runtime| runtime.block_on(spare_rig::end_signal()));
        if matches!(signalled, Ok(Ok(()))) {
            spare_rig::end_all();
            std::process::exit(130);
        }
    });
}

/// What the tests lack on this machine.
pub(crate) fn missing() -> Option<String> {
    (!nix::unistd::geteuid().is_root()).then(|| "they must be run as root".to_owned())
}

impl Suite {
    async fn start() -> Result<Suite> {
        let options = Options {
            hypervisor: Hypervisor::Process,
            image: "auction-tiny".to_owned(),
            record: false,
            ..Options::default()
        };
        let mut progress = |text: &str| eprintln!("  {text}");
        let deployment = Deployment::start(&options, &mut progress).await?;
        Ok(Suite { deployment })
    }

    /// Where the gateway listens.
    pub(crate) fn gateway(&self) -> Result<SocketAddr> {
        let address = self.deployment.gateway().trim_start_matches("http://");
        address.parse().context("the gateway's address")
    }

    /// Ordinary clients for so long; each of their requests must get the right page.
    pub(crate) async fn ordinary_clients(&self, seconds: u64) -> Result<BenchReport> {
        let options = BenchOptions {
            url: self.deployment.gateway().to_owned(),
            clients: CLIENTS,
            seconds: Some(seconds),
            timeout: 120,
            ..BenchOptions::default()
        };
        let report = spare_auction_clients::run(options, Arc::<Monitor>::default()).await?;
        ensure!(
            report.is_clean() && report.requests > u64::from(CLIENTS),
            "not every page was right:\n{}",
            report.render()
        );
        Ok(report)
    }

    /// Sends a form.
    pub(crate) async fn post(&self, path: &str, form: &str) -> Result<()> {
        let address = Address::from_url(self.deployment.gateway())?;
        let form_type = "application/x-www-form-urlencoded".to_owned();
        let request = Request {
            method: "POST",
            target: path.to_owned(),
            headers: vec![("content-type", form_type)],
            body: form.to_owned(),
        };
        let reply = Connection::new(address, QUIET_LIMIT).send(&request).await?;
        ensure!(reply.status == 200, "{path}: {reply:?}");
        Ok(())
    }

    /// Waits until what was asked for is answered, and nothing more is asked.
    pub(crate) async fn is_quiet(&self) -> Result<()> {
        let (begun, mut last, mut since) = (Instant::now(), 0, Instant::now());
        while since.elapsed() < QUIET {
            ensure!(begun.elapsed() < QUIET_LIMIT, "requests come and come");
            tokio::time::sleep(QUIET / 10).await;
            let status = self.deployment.admin().status().await?;
            if status.ordered != last || status.decided != last {
                (last, since) = (status.ordered, Instant::now());
            }
        }
        Ok(())
    }

    async fn newest_event(&self) -> Result<u64> {
        let events = self.deployment.admin().events(0, 0).await?;
        Ok(events.last().map_or(0, |event| event.number))
    }

    async fn no_replica_lost_its_place(&self, before: u64) -> Result<()> {
        let bad = [
            EventKind::Convicted,
            EventKind::Lost,
            EventKind::Suspected,
            EventKind::Alarm,
        ];
        let events = self.deployment.admin().events(before, 0).await?;
        let mut bad = events.iter().filter(|event| bad.contains(&event.kind));
        match bad.next() {
            Some(event) => anyhow::bail!("a client cost a replica its place: {event:?}"),
            None => Ok(()),
        }
    }
}
