//! The deployment that all tests share, and what they do with it.

use anyhow::{ensure, Context, Result};
use spare_auction_clients::{BenchOptions, BenchReport, Monitor};
use spare_protocol::admin::{Event, EventKind, ReplicaState, Status};
use spare_rig::{Deployment, Door, Hypervisor, Options};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::runtime::Runtime;

/// For a replica to be replaced: a boot that competes with three guests for two cores.
pub(crate) const REPLACED_LIMIT: Duration = Duration::from_secs(180);

/// Requests after which every client of a load is at work.
const UNDER_WAY: u64 = 32;

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

/// The shared deployment with everything its clients received.
pub(crate) struct Suite {
    pub(crate) runtime: Runtime,
    pub(crate) deployment: Deployment,
    pub(crate) records: Vec<PathBuf>,
}

/// A load that runs in the background.
pub(crate) struct Loading {
    run: tokio::task::JoinHandle<Result<BenchReport, spare_auction_clients::BenchError>>,
    monitor: Arc<Monitor>,
}

static SUITE: Mutex<Option<Suite>> = Mutex::new(None);

/// Runs `test` over the deployment, which the first test starts.
pub(crate) fn with_suite(test: impl FnOnce(&mut Suite) -> Result<()>) -> Result<()> {
    let mut suite = SUITE.lock().unwrap_or_else(PoisonError::into_inner);
    if suite.is_none() {
        *suite = Some(Suite::start().context("the deployment does not start")?);
    }
    suite.as_mut().map_or(Ok(()), test)
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

/// One of the active or passive replicas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Active,
    Passive,
}

impl Suite {
    fn start() -> Result<Suite> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let options = Options {
            hypervisor: Hypervisor::from_environment()?,
            // Passives are brought up to date often, and silence is noticed soon, so that short runs
            // see everything happen.
            replication: vec![
                "updates_max = 40".into(),
                // A stall of the tests must be longer than what is waited for a vote.
                "vote_timeout_max_ms = 2000".into(),
                "checkpoint_writes = 40".into(),
                "suspicion_threshold = 60".into(),
            ],
            ..Options::default()
        };
        let mut progress = |text: &str| eprintln!("  {text}");
        let deployment = runtime.block_on(Deployment::start(&options, &mut progress))?;
        Ok(Suite {
            runtime,
            deployment,
            records: Vec::new(),
        })
    }

    /// Sends `requests` of the RUBiS mix from 16 clients; every page is recorded for the oracle.
    pub(crate) fn load(&mut self, requests: u64, write_share: Option<f64>) -> Result<BenchReport> {
        let loading = self.begin_load(requests, write_share);
        self.end_load(loading)
    }

    /// Begins a load in the background.
    pub(crate) fn begin_load(&mut self, requests: u64, write_share: Option<f64>) -> Loading {
        let number = self.records.len() + 1;
        let record = self.deployment.folder().join(format!("{number}.pages"));
        self.records.push(record.clone());
        let options = BenchOptions {
            url: self.deployment.gateway().to_owned(),
            clients: 16,
            requests: Some(requests),
            seed: number as u64,
            record: Some(record),
            write_share,
            timeout: 120,
            ..BenchOptions::default()
        };
        let monitor = Arc::<Monitor>::default();
        let run = self
            .runtime
            .spawn(spare_auction_clients::run(options, monitor.clone()));
        Loading { run, monitor }
    }

    pub(crate) fn end_load(&mut self, loading: Loading) -> Result<BenchReport> {
        Ok(self.runtime.block_on(loading.run)??)
    }

    /// Waits until every client of a load is at work.
    pub(crate) fn await_load(&self, load: &Loading) {
        self.runtime.block_on(async {
            while load.monitor.answered() < UNDER_WAY && !load.run.is_finished() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
    }

    /// Ends a load whose service is gone; what its clients received is of no interest to the oracle.
    pub(crate) fn abandon_load(&mut self, loading: Loading) {
        loading.run.abort();
        self.records.pop();
    }

    pub(crate) fn status(&self) -> Result<Status> {
        Ok(self.runtime.block_on(self.deployment.admin().status())?)
    }

    pub(crate) fn events_after(&self, number: u64) -> Result<Vec<Event>> {
        Ok(self
            .runtime
            .block_on(self.deployment.admin().events(number, 0))?)
    }

    pub(crate) fn newest_event(&self) -> Result<u64> {
        Ok(self.events_after(0)?.last().map_or(0, |e| e.number))
    }

    pub(crate) fn wait_until_complete(&mut self) -> Result<Status> {
        let wait = self.deployment.wait_until_complete(REPLACED_LIMIT);
        self.runtime.block_on(wait)
    }

    /// The replica of that kind on `seat`.
    pub(crate) fn replica(&self, seat: u16, part: Part) -> Result<String> {
        let wanted = match part {
            Part::Active => ReplicaState::Active,
            Part::Passive => ReplicaState::Passive,
        };
        let status = self.status()?;
        let seats = status.seats.iter().filter(|s| s.seat == seat);
        let mut replicas = seats.flat_map(|s| &s.replicas);
        let found = replicas.find(|r| r.state == wanted);
        found
            .map(|r| r.replica.clone())
            .with_context(|| format!("seat {seat} has no {part:?} replica"))
    }

    /// Does something with the attacker's door of a replica, which runs meanwhile.
    pub(crate) fn behind_the_door<T>(
        &self,
        replica: &str,
        part: Part,
        attack: impl AsyncFnOnce(&mut Door) -> Result<T>,
    ) -> Result<T> {
        self.runtime.block_on(async {
            let agent = self.deployment.agent().await?;
            if part == Part::Passive {
                agent.unpause(replica).await?;
            }
            let mut door = Door::open(&agent, replica).await?;
            let done = attack(&mut door).await;
            if part == Part::Passive {
                // It may be gone by now; that is what some attacks are for.
                let _ = agent.pause(replica).await;
            }
            done
        })
    }

    /// A correct replica's machine stands still for a while, once the load is under way: slow, not
    /// faulty.
    pub(crate) fn stall(&self, replica: &str, time: Duration, load: &Loading) -> Result<()> {
        self.await_load(load);
        self.runtime.block_on(async {
            let agent = self.deployment.agent().await?;
            agent.pause(replica).await?;
            tokio::time::sleep(time).await;
            agent.unpause(replica).await?;
            Ok(())
        })
    }

    /// The replicas that were convicted after event `number`.
    pub(crate) fn convicted_after(&self, number: u64) -> Result<Vec<String>> {
        let events = self.events_after(number)?;
        let convicted = events
            .into_iter()
            .filter(|e| e.kind == EventKind::Convicted);
        Ok(convicted.filter_map(|e| e.replica).collect())
    }
}

/// Every request got the right page.
pub(crate) fn ensure_clean(report: &BenchReport) -> Result<()> {
    ensure!(
        report.is_clean(),
        "not every page was right:\n{}",
        report.render()
    );
    Ok(())
}
