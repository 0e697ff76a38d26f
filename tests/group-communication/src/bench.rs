//! The engine and the bare program in turn, on the same two hosts.

use anyhow::{bail, Context, Result};
use serde_json::json;
use spare_group_communication_tests::{missing, Hosts};
use std::io::{BufRead, BufReader, Lines, Write};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// How long each measurement takes, in seconds
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// How often both are measured, in turn
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Fail if the engine's rate is below 85% of the bare one
    #[arg(long)]
    assert: bool,
}

const LENGTHS: [usize; 2] = [100, 1000];
const SHARE_MIN: f64 = 0.85;

/// One of the programs, on one of the hosts.
struct Sender {
    child: Child,
    stdin: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Sender {
    fn start(hosts: &Hosts, i: usize, role: &[&str]) -> Result<Sender> {
        let program = std::env::current_exe()?;
        let program = program.to_str().context("a path of strange letters")?;
        let mut command = hosts.command(i, program);
        command.args(role).stderr(Stdio::null());
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn()?;
        let stdin = child.stdin.take().context("its input")?;
        let stdout = child.stdout.take().context("its output")?;
        Ok(Sender {
            child,
            stdin,
            lines: BufReader::new(stdout).lines(),
        })
    }

    fn wait_for(&mut self, beginning: &str) -> Result<String> {
        for line in &mut self.lines {
            if let Some(rest) = line?.strip_prefix(beginning) {
                return Ok(rest.trim().to_owned());
            }
        }
        bail!("a program ended before it said {beginning}")
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Messages a second that a member is delivered while both send: the mean of the two.
fn measure(senders: &mut [Sender], length: usize, seconds: f64) -> Result<f64> {
    for sender in senders.iter_mut() {
        writeln!(sender.stdin, "load {length} {seconds}")?;
        sender.stdin.flush()?;
    }
    let mut sum = 0.0;
    for sender in senders.iter_mut() {
        sum += sender.wait_for("rate ")?.parse::<f64>()?;
        sender.wait_for("done")?;
    }
    Ok(sum / senders.len() as f64)
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

pub(crate) fn run(options: &Options) -> Result<()> {
    if let Some(missing) = missing() {
        bail!("{missing}");
    }
    let hosts = Hosts::start(2)?;
    let mut bare = Vec::new();
    let mut engine = Vec::new();
    for i in 0..2 {
        let me = i.to_string();
        bare.push(Sender::start(&hosts, i, &["bare"])?);
        let member = ["member", "--me", &me, "--hosts", "2"];
        engine.push(Sender::start(&hosts, i, &member)?);
    }
    for member in &mut engine {
        while !member.wait_for("view ")?.ends_with("true 0,1") {}
    }
    let mut results = Vec::new();
    let mut too_slow = false;
    for length in LENGTHS {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for round in 0..options.rounds.max(1) {
            theirs.push(measure(&mut bare, length, options.seconds)?);
            ours.push(measure(&mut engine, length, options.seconds)?);
            println!(
                "{length} B, round {}: bare {:.0}/s, engine {:.0}/s",
                round + 1,
                theirs[round],
                ours[round]
            );
        }
        let (ours, theirs) = (median(&mut ours), median(&mut theirs));
        let share = ours / theirs;
        too_slow |= share < SHARE_MIN;
        println!("{length} B: the engine orders {share:.2} of what the bare program does");
        results.push(json!({
            "bytes": length,
            "bare_per_s": theirs.round(),
            "engine_per_s": ours.round(),
            "share": (share * 100.0).round() / 100.0,
        }));
    }
    println!("{}", json!({ "bench": "ordering", "results": results }));
    if options.assert && too_slow {
        bail!("below {SHARE_MIN} of the bare rate");
    }
    Ok(())
}
