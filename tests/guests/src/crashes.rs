//! Replicas outlive a replica manager and an agent that are killed, and whoever comes next attaches to
//! them as they are.

use crate::suite::{ensure_clean, Suite};
use crate::trial;
use anyhow::{bail, ensure, Context, Result};
use libtest_mimic::Trial;
use spare_agent_client::{open_stream, AgentProxy};
use spare_protocol::channel::{
    Decoded, Frame, FrameDecoder, FromGuest, ToGuest, CHANNEL_VERSION, PORT_NAME,
};
use spare_protocol::Position;
use spare_rig::{Deployment, Hypervisor};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// For a replica that competes with others for the machine to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);

/// For the hypervisor to notice that all replicas were killed.
const NOTICED_LIMIT: Duration = Duration::from_secs(20);

pub(crate) fn trials(hypervisor: Hypervisor) -> Vec<Trial> {
    let mut trials = vec![
        trial(
            "replicas_outlive_a_killed_manager_and_a_killed_agent",
            move |s| replicas_outlive_their_keepers(s, hypervisor),
        ),
        trial(
            "after_everything_was_killed_it_serves_again",
            everything_is_killed,
        ),
    ];
    if hypervisor == Hypervisor::Libvirt {
        let name = "a_libvirtd_that_is_killed_under_load_is_missed_by_nobody";
        trials.insert(0, trial(name, libvirtd_is_killed));
    }
    trials
}

fn libvirtd_is_killed(suite: &mut Suite) -> Result<()> {
    let Some(hypervisor) = suite.deployment.hypervisor_folder() else {
        println!("skipped: the libvirtd of this machine is not the tests' own");
        return Ok(());
    };
    suite.wait_until_complete()?;
    let counted = suite.status()?.counters.convictions;
    let loading = suite.begin_load(300, Some(0.3));
    suite.await_load(&loading);
    let restarted = Deployment::restart_hypervisor(&hypervisor);
    let report = suite.end_load(loading)?;
    restarted?;
    ensure_clean(&report)?;
    let before = suite.wait_until_complete()?.counters;
    ensure!(
        before.convictions == counted,
        "a correct replica was convicted"
    );
    // The agent speaks to the new one: passives are woken for their updates.
    ensure_clean(&suite.load(300, Some(0.5))?)?;
    let after = suite.status()?.counters;
    ensure!(
        after.passive_updates > before.passive_updates,
        "no passive was brought up to date"
    );
    // What was replaced meanwhile is gone, although the first attempt to destroy it failed.
    let agent = suite.runtime.block_on(suite.deployment.agent())?;
    let begun = Instant::now();
    loop {
        let there = suite.runtime.block_on(agent.list())?;
        if there.len() == 4 {
            break;
        }
        ensure!(begun.elapsed() < ANSWER_LIMIT, "there are {there:?}");
        std::thread::sleep(Duration::from_millis(500));
    }
    Ok(())
}

/// What was acknowledged before is another matter.
fn everything_is_killed(suite: &mut Suite) -> Result<()> {
    let loading = suite.begin_load(1_000_000, None);
    suite.await_load(&loading);
    let begun = Instant::now();
    suite.deployment.kill_everything()?;
    println!("killed after {:?}", begun.elapsed());
    suite.abandon_load(loading);
    let Suite {
        runtime,
        deployment,
        ..
    } = suite;
    runtime.block_on(async {
        deployment.start_agent().await?;
        let agent = deployment.agent().await?;
        // The processes are dead; the hypervisor notices a moment later.
        loop {
            let left = agent.list().await?;
            if left.len() == 4 && left.iter().all(|(_, state)| state == "stopped") {
                break;
            }
            ensure!(begun.elapsed() < NOTICED_LIMIT, "{left:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        deployment.start_manager().await
    })?;
    suite.wait_until_complete()?;
    println!("complete again after {:?}", begun.elapsed());
    ensure_clean(&suite.load(100, Some(0.5))?)
}

fn replicas_outlive_their_keepers(suite: &mut Suite, hypervisor: Hypervisor) -> Result<()> {
    suite.load(100, Some(0.5))?;
    let status = suite.wait_until_complete()?;
    let replicas = || status.seats.iter().flat_map(|s| &s.replicas);
    let positions: BTreeMap<String, u64> = replicas()
        .map(|r| (r.replica.clone(), r.position))
        .collect();
    let Suite {
        runtime,
        deployment,
        ..
    } = suite;
    runtime.block_on(async {
        let agent = deployment.agent().await?;
        let before: BTreeMap<String, String> = agent.list().await?.into_iter().collect();
        deployment.kill_manager()?;
        let mut attached = Vec::new();
        for (session, (replica, state)) in (1..).zip(&before) {
            let (stream, position) = attach(&agent, replica, state, session).await?;
            println!("{replica} ({state}): attached at position {position}");
            ensure!(
                position.0 >= positions.get(replica).copied().unwrap_or(u64::MAX),
                "{replica} is at {position}, the manager knew of {positions:?}"
            );
            attached.push((replica, session, stream));
        }
        deployment.kill_agent()?;
        // Who is attached needs no agent.
        for (replica, session, stream) in &mut attached {
            if before.get(*replica).is_some_and(|state| state == "running") {
                // Another session over the same connection.
                hello(stream, *session + 100, ANSWER_LIMIT).await?;
            }
        }
        deployment.start_agent().await?;
        let agent = deployment.agent().await?;
        let after: BTreeMap<String, String> = agent.list().await?.into_iter().collect();
        ensure!(after == before, "before {before:?}, after {after:?}");
        // A manager that dies in the middle of a frame leaves its beginning behind. A socket tells that
        // somebody else is there now; a virtio-serial port may not, if that happened too fast.
        for (_, session, stream) in &mut attached {
            if hypervisor == Hypervisor::Libvirt {
                break;
            }
            let frame = frame(*session, 2, &ToGuest::Hello { version: 1 });
            stream.write_all(&frame[..frame.len() - 1]).await?;
        }
        drop(attached);
        for (session, (replica, state)) in (1000..).zip(&before) {
            let (_, position) = attach(&agent, replica, state, session).await?;
            println!("{replica}: attached once more at position {position}");
        }
        deployment.start_manager().await
    })?;
    let restarted = suite.wait_until_complete()?;
    ensure!(
        restarted.last_conviction == status.last_conviction,
        "before {:?}, after {:?}",
        status.last_conviction,
        restarted.last_conviction
    );
    ensure_clean(&suite.load(100, Some(0.5))?)
}

/// Opens the channel as a new manager would. A replica that is paused is connected to as it is, and woken
/// for its answer.
async fn attach(
    agent: &AgentProxy<'_>,
    replica: &str,
    state: &str,
    session: u32,
) -> Result<(UnixStream, Position)> {
    let open = open_stream(agent, replica, PORT_NAME).await;
    let mut stream = open.with_context(|| format!("the channel of {replica} does not open"))?;
    let opening = frame(
        session,
        1,
        &ToGuest::Hello {
            version: CHANNEL_VERSION,
        },
    );
    stream.write_all(&opening).await?;
    let paused = state == "paused";
    if paused {
        agent.unpause(replica).await?;
    }
    let position = answer(&mut stream, session, ANSWER_LIMIT).await;
    if paused {
        agent.pause(replica).await?;
    }
    let position = position.with_context(|| format!("{replica}, which is {state}"))?;
    Ok((stream, position))
}

/// Opens a session over a connection that is there.
async fn hello(stream: &mut UnixStream, session: u32, limit: Duration) -> Result<Position> {
    let opening = ToGuest::Hello {
        version: CHANNEL_VERSION,
    };
    stream.write_all(&frame(session, 1, &opening)).await?;
    answer(stream, session, limit).await
}

fn frame(session: u32, sequence: u64, message: &ToGuest) -> Vec<u8> {
    let frame = Frame {
        session,
        sequence,
        payload: spare_protocol::encode(message).into(),
    };
    frame.to_bytes().to_vec()
}

/// The position in the replica's own `Hello`.
async fn answer(stream: &mut UnixStream, session: u32, limit: Duration) -> Result<Position> {
    let answer = async {
        let mut decoder = FrameDecoder::new();
        let mut buffer = vec![0; 64 << 10];
        loop {
            while let Some(found) = decoder.next() {
                match found {
                    Decoded::Frame(frame) if frame.session == session => {
                        match spare_protocol::decode(&frame.payload)? {
                            FromGuest::Hello { position, .. } => return Ok(position),
                            other => bail!("it says {other:?}"),
                        }
                    }
                    _ => {}
                }
            }
            let read = stream.read(&mut buffer).await?;
            ensure!(read > 0, "it closed its channel");
            decoder.push(&buffer[..read]);
        }
    };
    tokio::time::timeout(limit, answer)
        .await
        .context("it does not answer")?
}
