//! The lab's fence agent, called on a host as any agent of the `fence-agents` package is.

use crate::suite::trial;
use anyhow::{ensure, Result};
use libtest_mimic::Trial;
use spare_lab::{fence, FenceMode, Host, Lab, Power};
use std::time::{Duration, Instant};

const DONE: i32 = 0;
const FAILED: i32 = 1;
const IS_OFF: i32 = 2;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("the_fence_agent_cuts_a_hosts_power_and_says_so", agent),
        trial("a_fence_agent_that_fails_or_hangs_fences_nobody", failing),
        trial("a_frozen_host_is_fenced", frozen),
    ]
}

/// The agent's exit code and what it printed.
fn ask(host: &Host, lines: &str) -> Result<(i32, String)> {
    let script = format!("printf '{lines}' | timeout 5 {}", fence::AGENT);
    let done = host.run(["sh", "-c", &script])?;
    let text = String::from_utf8_lossy(&done.stdout).into_owned();
    Ok((done.status.code().unwrap_or(-1), text))
}

fn agent(lab: &Lab) -> Result<()> {
    let (h1, h2) = (lab.host("h1")?, lab.host("h2")?);
    ensure!(ask(&h1, "action=monitor\\n")?.0 == DONE);
    ensure!(ask(&h1, "action=metadata\\n")?
        .1
        .contains("<resource-agent"));
    ensure!(ask(&h1, "action=status\\nplug=h2\\n")?.0 == DONE);
    ensure!(ask(&h1, "action=status\\nplug=h7\\n")?.0 == FAILED);
    let begun = Instant::now();
    ensure!(ask(&h1, "action=off\\nplug=h2\\n")?.0 == DONE);
    println!("fenced in {:.2} s", begun.elapsed().as_secs_f64());
    ensure!(h2.power() == Power::Off);
    ensure!(ask(&h1, "action=status\\nplug=h2\\n")?.0 == IS_OFF);
    ensure!(
        ask(&h1, "action=off\\nplug=h2\\n")?.0 == DONE,
        "fencing twice is fencing"
    );
    ensure!(ask(&h1, "action=on\\nport=h2\\n")?.0 == DONE);
    h2.wait_until_booted()
}

fn failing(lab: &Lab) -> Result<()> {
    let (h1, h2) = (lab.host("h1")?, lab.host("h2")?);
    lab.set_fence_mode(FenceMode::Fails)?;
    ensure!(ask(&h1, "action=off\\nplug=h2\\n")?.0 == FAILED);
    lab.set_fence_mode(FenceMode::Hangs)?;
    let begun = Instant::now();
    ensure!(ask(&h1, "action=off\\nplug=h2\\n")?.0 != DONE);
    ensure!(begun.elapsed() > Duration::from_secs(4), "it did not hang");
    ensure!(h2.power() == Power::On);
    Ok(())
}

fn frozen(lab: &Lab) -> Result<()> {
    let (h1, h2) = (lab.host("h1")?, lab.host("h2")?);
    h1.freeze()?;
    ensure!(ask(&h2, "action=off\\nplug=h1\\n")?.0 == DONE);
    ensure!(h1.power() == Power::Off);
    Ok(())
}
