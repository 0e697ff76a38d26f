//! Makes a replica ready: takes the pristine state, opens it, waits for the service, and runs
//! everything once.

use crate::channel::{Channel, ChannelError};
use crate::config::{Address, Config, WarmUp};
use crate::database::DatabaseError;
use crate::executor::Executor;
use crate::http::{HttpService, ServiceError};
use crate::rehearsal::{self, RehearsalError};
use crate::replica::{Replica, ReplicaError};
use crate::replicated_state::{OpenError, ReplicatedState};
use crate::transport::unix_socket::SocketPair;
use spare_protocol::channel::{Execute, RootRequest};
use spare_protocol::http::HttpRequest;
use spare_protocol::{encode, Class, Position};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A service that does not listen after this never will.
const SERVICE_START_TIMEOUT: Duration = Duration::from_secs(120);
/// Pause between two looks whether it listens.
const RETRY: Duration = Duration::from_millis(20);
/// Times each request of the warm-up is made: code is translated at its first execution, caches of
/// the service and its database fill by the second.
const WARM_UP_ROUNDS: usize = 2;

/// The replica does not become ready.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error(
        "{} exists: the shim has run in this guest before, so its position is in doubt; replace the \
         guest",
        .0.display()
    )]
    RanBefore(PathBuf),
    #[error("cannot create {}: {error}", used.display())]
    Claim { used: PathBuf, error: io::Error },
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    WarmUp(#[from] DatabaseError),
    #[error("the service does not listen at {0:?} after {SERVICE_START_TIMEOUT:?}")]
    ServiceSilent(Address),
    #[error("{form} of service.warm_up")]
    Form { form: String, source: FormError },
    #[error("cannot create a pair of sockets")]
    Pair(#[source] io::Error),
    #[error(transparent)]
    Channel(#[from] ChannelError),
    #[error("in the rehearsal")]
    Replica(#[source] ReplicaError),
    #[error(transparent)]
    Rehearsal(#[from] RehearsalError),
}

/// A form of the warm-up was not made and undone.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FormError {
    #[error(transparent)]
    Service(#[from] ServiceError),
    #[error(transparent)]
    Database(#[from] DatabaseError),
}

/// Opens the pristine state, waits for the service, and runs everything once.
pub(crate) async fn prepare(config: &Config) -> Result<Executor, StartError> {
    claim(config.database.leaves())?;
    let mut state = ReplicatedState::open(&*config.database).await?;
    state.warm_up().await?;
    let service = HttpService::new(&config.service);
    await_service(&service, &config.service.address).await?;
    let (pages, forms): (Vec<_>, Vec<_>) =
        (config.service.warm_up.iter()).partition(|warm_up| warm_up.method == "GET");
    make_warm_up_forms(&service, &mut state, &forms).await?;
    // Once more, as starting the service has pushed code and pages out of the caches.
    state.warm_up().await?;
    let executor = Executor::new(service, state, config.service.update_bytes_max);
    rehearse(executor, &pages, config.service.reads_max.get()).await
}

/// Makes the pages of the warm-up as the manager will ask for them, through a channel, so that
/// everything between the channel and the service has run.
async fn rehearse(
    executor: Executor,
    pages: &[&WarmUp],
    reads_max: usize,
) -> Result<Executor, StartError> {
    let requests = pages.iter().cycle().take(pages.len() * WARM_UP_ROUNDS);
    let requests = requests.map(|page| warm_up_request(page)).collect();
    let (transport, manager) = SocketPair::new().map_err(StartError::Pair)?;
    let channel = Channel::open(Box::new(transport)).await?;
    let mut replica = Replica::new(channel, executor, reads_max);
    tokio::select! {
        served = replica.serve() => served.map_err(StartError::Replica)?,
        rehearsed = rehearsal::conduct(manager, requests) => rehearsed?,
    }
    Ok(replica.into_executor().forget_requests())
}

/// Takes the pristine state for this run. A second run in the same guest would not know which
/// requests the first one executed.
fn claim(leaves: &Path) -> Result<(), StartError> {
    let used = leaves.with_extension("used");
    let mut options = std::fs::OpenOptions::new();
    match options.write(true).create_new(true).open(&used) {
        Ok(_) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Err(StartError::RanBefore(used)),
        Err(error) => Err(StartError::Claim { used, error }),
    }
}

async fn await_service(service: &HttpService, address: &Address) -> Result<(), StartError> {
    let start = Instant::now();
    while !service.is_listening().await {
        if start.elapsed() > SERVICE_START_TIMEOUT {
            return Err(StartError::ServiceSilent(address.clone()));
        }
        tokio::time::sleep(RETRY).await;
    }
    Ok(())
}

/// Forms are writes, and undone.
async fn make_warm_up_forms(
    service: &HttpService,
    state: &mut ReplicatedState,
    forms: &[&WarmUp],
) -> Result<(), StartError> {
    for form in forms.iter().cycle().take(forms.len() * WARM_UP_ROUNDS) {
        let failed = |why: FormError| StartError::Form {
            form: format!("{} {}", form.method, form.target),
            source: why,
        };
        let execute = warm_up_request(form);
        let made = service.execute(&execute).await;
        made.map_err(|e| failed(e.into()))?;
        state.undo().await.map_err(|e| failed(e.into()))?;
    }
    Ok(())
}

fn warm_up_request(warm_up: &WarmUp) -> Execute {
    let form = b"application/x-www-form-urlencoded";
    let request = HttpRequest {
        method: warm_up.method.clone(),
        target: warm_up.target.clone(),
        headers: vec![("content-type".into(), form.to_vec())],
        body: warm_up.form.clone().into(),
    };
    Execute {
        position: Position(0),
        class: match &*warm_up.method {
            "GET" => Class::Read,
            _ => Class::Write,
        },
        time_us: 0,
        seed: [0; 32],
        root: RootRequest::No,
        request: encode(&request).into(),
    }
}
