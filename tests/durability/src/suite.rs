//! The deployment that most tests share, and what they do with it.

use crate::book::{Book, Clients};
use anyhow::{ensure, Context, Result};
use rand::rngs::StdRng;
use rand::SeedableRng;
use spare_protocol::admin::{Mode, Status};
use spare_rig::{Deployment, Hypervisor, Options};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::runtime::Runtime;

/// For a group to serve again.
pub(crate) const SERVE_LIMIT: Duration = Duration::from_secs(120);
/// Clients of a load.
pub(crate) const CLIENTS: u64 = 16;

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

/// A deployment with the truth about what clients wrote.
pub(crate) struct Suite {
    pub(crate) deployment: Deployment,
    pub(crate) book: Book,
    pub(crate) random: StdRng,
}

static SUITE: Mutex<Option<(Arc<Runtime>, Suite)>> = Mutex::new(None);

/// Runs `test` over the deployment, which the first test starts.
pub(crate) fn with_suite(test: impl AsyncFnOnce(&mut Suite) -> Result<()>) -> Result<()> {
    let mut shared = SUITE.lock().unwrap_or_else(PoisonError::into_inner);
    if shared.is_none() {
        let runtime = Arc::new(runtime()?);
        let suite = runtime.block_on(Suite::start(&options(Hypervisor::Process)));
        *shared = Some((runtime, suite.context("the deployment does not start")?));
    }
    let Some((runtime, suite)) = shared.as_mut() else {
        return Ok(());
    };
    runtime.block_on(async {
        // A test that failed may have left it without a manager.
        suite.revive().await?;
        test(suite).await
    })
}

/// Runs `test` over a deployment of its own; the shared one is ended before.
pub(crate) fn with_own(
    options: &Options,
    test: impl AsyncFnOnce(&mut Suite) -> Result<()>,
) -> Result<()> {
    end();
    let runtime = runtime()?;
    runtime.block_on(async {
        let mut suite = Suite::start(options).await?;
        test(&mut suite).await
    })
}

fn runtime() -> Result<Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?)
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

/// Passives are brought up to date often, and snapshots are made often, so that short runs see everything.
pub(crate) fn options(hypervisor: Hypervisor) -> Options {
    Options {
        hypervisor,
        image: "auction-tiny".to_owned(),
        replication: vec!["updates_max = 40".into(), "checkpoint_writes = 40".into()],
        store: vec!["snapshot_requests = 500".into()],
        record: false,
        ..Options::default()
    }
}

/// What the choices of this run are drawn from.
pub(crate) fn seed() -> u64 {
    let given = std::env::var("SPARE_SEED").ok();
    let seed = given.and_then(|text| text.parse().ok());
    seed.unwrap_or_else(rand::random)
}

impl Suite {
    async fn start(options: &Options) -> Result<Suite> {
        let mut progress = |text: &str| eprintln!("  {text}");
        let deployment = Deployment::start(options, &mut progress).await?;
        let seed = seed();
        println!("SPARE_SEED={seed}");
        let mut suite = Suite {
            deployment,
            book: Book::default(),
            random: StdRng::seed_from_u64(seed),
        };
        let gateway = suite.gateway();
        suite.book.begin(&gateway).await?;
        Ok(suite)
    }

    pub(crate) fn gateway(&self) -> String {
        self.deployment.gateway().to_owned()
    }

    pub(crate) fn load(&mut self) -> Clients {
        let gateway = self.gateway();
        let seed = rand::Rng::random(&mut self.random);
        self.book.open(&gateway, CLIENTS, seed)
    }

    /// A load of so many acknowledged writes, and a look at them.
    pub(crate) async fn write(&mut self, count: u64) -> Result<()> {
        let clients = self.load();
        clients.wait_for(count).await?;
        self.check(clients).await
    }

    /// Stops the clients, and holds what they wrote against what the service knows.
    pub(crate) async fn check(&mut self, clients: Clients) -> Result<()> {
        let writes = clients.close().await?;
        let gateway = self.gateway();
        self.book.check(&gateway, &writes).await
    }

    /// Starts what does not run.
    pub(crate) async fn revive(&mut self) -> Result<()> {
        let [agent, manager] = self.deployment.daemons();
        if agent.is_none() {
            self.deployment.start_agent().await?;
        }
        if manager.is_none() {
            self.deployment.start_manager().await?;
        }
        self.serves().await.map(drop)
    }

    /// Waits until the gateway answers clients.
    pub(crate) async fn serves(&mut self) -> Result<Status> {
        let serving = |status: &Status| status.mode == Mode::Serving;
        self.deployment
            .wait_for(SERVE_LIMIT, "the gateway serves", serving)
            .await
    }

    /// Waits until every seat has both replicas.
    pub(crate) async fn complete(&mut self) -> Result<Status> {
        self.deployment.wait_until_complete(SERVE_LIMIT).await
    }

    /// The replicas and the processes that they are.
    pub(crate) async fn replicas(&mut self) -> Result<(BTreeSet<String>, BTreeSet<u32>)> {
        let status = self.complete().await?;
        let replicas = status.seats.iter().flat_map(|s| &s.replicas);
        let names = replicas.map(|r| r.replica.clone()).collect();
        let pids: BTreeSet<u32> = self.deployment.replica_processes().into_iter().collect();
        ensure!(pids.len() == 4, "four replicas have the processes {pids:?}");
        Ok((names, pids))
    }

    /// All replicas' whole states are equal.
    pub(crate) async fn scrub(&mut self) -> Result<()> {
        self.complete().await?;
        let report = self.deployment.admin().scrub().await?;
        ensure!(report.equal, "{report:?}");
        Ok(())
    }
}
