//! A member on a host: this crate's program, told what to do line by line.

use crate::host::signal_child;
use crate::{waits_for, Hosts};
use anyhow::{bail, Context, Result};
use nix::sys::signal::Signal;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Something a member was delivered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// A view: its name, whether it may decide, and who is in it.
    View(u64, bool, Vec<u16>),
    /// A message: from whom, its number, its length.
    Message(u16, u64, usize),
    /// The group was closed, for this reason.
    Closed(String),
    /// The group could not be joined, for this reason.
    Failed(String),
    /// The answer to `lease`: milliseconds that are left.
    Lease(i64),
}

fn parse(line: &str) -> Option<Heard> {
    let (kind, rest) = line.split_once(' ')?;
    let mut words = rest.split(' ');
    Some(match kind {
        "view" => {
            let name = words.next()?.parse().ok()?;
            let primary = words.next()?.parse().ok()?;
            let members = words.next()?.split(',').filter_map(|m| m.parse().ok());
            Heard::View(name, primary, members.collect())
        }
        "message" => Heard::Message(
            words.next()?.parse().ok()?,
            words.next()?.parse().ok()?,
            words.next()?.parse().ok()?,
        ),
        "closed" => Heard::Closed(rest.to_owned()),
        "failed" => Heard::Failed(rest.to_owned()),
        "lease" => Heard::Lease(rest.parse().ok()?),
        _ => return None,
    })
}

type Lines = Arc<(Mutex<Vec<(Instant, Heard)>>, Condvar)>;

/// A process that joined the group on one of the hosts, and all that it has reported so far.
pub struct Member {
    me: usize,
    child: Child,
    stdin: ChildStdin,
    lines: Lines,
}

impl Member {
    /// Starts the member of a host: `program` is this crate's.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(hosts: &Hosts, i: usize, program: &str) -> Result<Member> {
        Member::start_with(hosts, i, program, i, "0")
    }

    /// Starts member `me` on host `i`, which has this greatest name of a view on its disk.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_with(
        hosts: &Hosts,
        i: usize,
        program: &str,
        me: usize,
        last_ring: &str,
    ) -> Result<Member> {
        let log = hosts.folder().join(format!("member{me}.log"));
        let log = File::options().create(true).append(true).open(log)?;
        let mut command = hosts.command(i, program);
        let (number, me, count) = (me, me.to_string(), hosts.count().to_string());
        command.args(["member", "--me", &me, "--hosts", &count]);
        command.args(["--last-ring", last_ring]).stderr(log);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn()?;
        let stdin = child.stdin.take().context("its input")?;
        let stdout = child.stdout.take().context("its output")?;
        let lines = Lines::default();
        let theirs = Arc::clone(&lines);
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if let Some(heard) = parse(&line) {
                    let mut all = theirs.0.lock().unwrap_or_else(PoisonError::into_inner);
                    all.push((Instant::now(), heard));
                    theirs.1.notify_all();
                }
            }
        });
        Ok(Member {
            me: number,
            child,
            stdin,
            lines,
        })
    }

    /// Has it do something.
    ///
    /// # Errors
    /// When it has ended.
    #[track_caller]
    pub fn tell(&mut self, command: &str) -> Result<()> {
        waits_for(format!("member {} to take {command:?}", self.me));
        writeln!(self.stdin, "{command}")?;
        Ok(self.stdin.flush()?)
    }

    /// Everything it was delivered so far.
    #[must_use]
    pub fn heard(&self) -> Vec<Heard> {
        let all = self.lines.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().map(|(_, heard)| heard.clone()).collect()
    }

    /// Waits for something beyond the first `after` deliveries; returns its index and when it came.
    ///
    /// # Errors
    /// When it does not come in time.
    #[track_caller]
    pub fn wait(
        &self,
        after: usize,
        time: Duration,
        what: impl Fn(&Heard) -> bool,
    ) -> Result<(usize, Instant)> {
        waits_for(format!("something that member {} hears", self.me));
        let deadline = Instant::now() + time;
        let mut all = self.lines.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut seen = after;
        loop {
            let found = (all.iter().enumerate().skip(seen)).find(|(_, (_, heard))| what(heard));
            if let Some((i, (at, _))) = found {
                return Ok((i, *at));
            }
            seen = seen.max(all.len());
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let views: Vec<_> = (all.iter().map(|(_, h)| h))
                    .filter(|h| !matches!(h, Heard::Message(..)))
                    .collect();
                bail!(
                    "not within {time:?}; it heard {} things, among them {views:?}",
                    all.len()
                );
            }
            let waited = self.lines.1.wait_timeout(all, left);
            all = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits for a view of these members.
    ///
    /// # Errors
    /// When it does not come in time.
    #[track_caller]
    pub fn wait_for_view(
        &self,
        after: usize,
        members: &[u16],
        primary: bool,
    ) -> Result<(usize, Instant)> {
        let is = |h: &Heard| matches!(h, Heard::View(_, p, m) if m == members && *p == primary);
        self.wait(after, Duration::from_secs(30), is)
            .with_context(|| format!("a view of {members:?}, primary: {primary}"))
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// When it has ended.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        signal_child(&self.child, signal)
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
