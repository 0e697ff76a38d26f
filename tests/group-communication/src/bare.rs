//! The least that a program does with CPG: one message a multicast, as many as Corosync takes, and every
//! delivery counted.

use anyhow::{anyhow, Result};
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use rust_corosync::cpg::{self, Address, Guarantee, Handle, Model1Data, Model1Flags, ModelData};
use rust_corosync::{CsError, DispatchFlags, NodeId};
use std::io::BufRead;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Messages handed over before deliveries are taken.
const BATCH: usize = 128;

static DELIVERED: AtomicU64 = AtomicU64::new(0);

#[derive(clap::Args)]
pub(crate) struct Options {}

fn delivered(_: &Handle, _: String, _: NodeId, _: u32, _: &[u8], _: usize) {
    DELIVERED.fetch_add(1, Ordering::Relaxed);
}

fn configured(_: &Handle, _: &str, _: Vec<Address>, _: Vec<Address>, _: Vec<Address>) {}

/// All that is there in one call: taken one by one, the rate is two thirds of it.
fn take(handle: &Handle) -> Result<bool> {
    let before = DELIVERED.load(Ordering::Relaxed);
    match cpg::dispatch(handle, DispatchFlags::All) {
        Ok(()) | Err(CsError::CsErrTryAgain) => Ok(DELIVERED.load(Ordering::Relaxed) > before),
        Err(e) => Err(anyhow!("dispatch: {e}")),
    }
}

fn give(handle: &Handle, message: &[u8]) -> Result<bool> {
    for i in 0..BATCH {
        match cpg::mcast_joined(handle, Guarantee::TypeAgreed, message) {
            Ok(()) => {}
            Err(CsError::CsErrTryAgain) => return Ok(i > 0),
            Err(e) => return Err(anyhow!("multicast: {e}")),
        }
    }
    Ok(true)
}

pub(crate) fn run(_: &Options) -> Result<()> {
    let model = ModelData::ModelV1(Model1Data {
        flags: Model1Flags::None,
        deliver_fn: Some(delivered),
        confchg_fn: Some(configured),
        totem_confchg_fn: None,
    });
    let handle = cpg::initialize(&model, 0).map_err(|e| anyhow!("initialize: {e}"))?;
    cpg::join(&handle, "spare-bare").map_err(|e| anyhow!("join: {e}"))?;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let (length, seconds) = line
            .strip_prefix("load ")
            .and_then(|rest| rest.split_once(' '))
            .ok_or_else(|| anyhow!("what is {line}?"))?;
        let time = Duration::from_secs_f64(seconds.parse()?);
        load(&handle, length.parse()?, time)?;
    }
    Ok(())
}

fn load(handle: &Handle, length: usize, time: Duration) -> Result<()> {
    let message = vec![7; length];
    let descriptor = cpg::fd_get(handle).map_err(|e| anyhow!("descriptor: {e}"))?;
    // SAFETY: it belongs to `handle`, which outlives this function.
    let descriptor = unsafe { BorrowedFd::borrow_raw(descriptor) };
    let wait = |ms: u16| {
        let mut descriptors = [PollFd::new(descriptor, PollFlags::POLLIN)];
        poll(&mut descriptors, PollTimeout::from(ms))
    };
    let started = Instant::now();
    DELIVERED.store(0, Ordering::Relaxed);
    while started.elapsed() < time {
        let gave = give(handle, &message)?;
        let took = take(handle)?;
        if !gave && !took {
            // Not a loop that waits: it would take the processor from Corosync.
            wait(1)?;
        }
    }
    let count = DELIVERED.load(Ordering::Relaxed);
    println!("rate {}", count as f64 / started.elapsed().as_secs_f64());
    let mut quiet = 0;
    while quiet < 3 {
        quiet = if take(handle)? { 0 } else { quiet + 1 };
        wait(100)?;
    }
    println!("done");
    Ok(())
}
