//! Child processes that are ended with the rig, and where programs and scripts are.

use anyhow::{bail, Context, Result};
use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long a daemon may take to end after SIGTERM, before it is killed.
const END_LIMIT: Duration = Duration::from_secs(60);

/// The folder of the checkout this program was built from.
#[must_use]
pub fn checkout() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    // tests/tools/rig lies three folders below the checkout's.
    manifest.ancestors().nth(3).unwrap_or(manifest).to_owned()
}

/// The folder with the programs that were built together with this one.
///
/// # Errors
/// When they were not built.
pub fn binaries() -> Result<PathBuf> {
    let me = std::env::current_exe().context("where is this program?")?;
    let found = me
        .ancestors()
        .skip(1)
        .find(|folder| folder.join("spare-manager").is_file());
    match found {
        Some(folder) => Ok(folder.to_owned()),
        None => bail!(
            "no spare-manager beside {}; build everything first: cargo build --release --workspace",
            me.display()
        ),
    }
}

const PREFERRED_NICE: i32 = -10;

/// A daemon that was started here.
#[derive(Debug)]
pub(crate) struct Daemon {
    name: &'static str,
    child: Child,
    log: PathBuf,
}

/// Starts `command` as a daemon whose output is appended to `log`, in a session of its own: an interrupt of
/// the terminal is for the rig, which then ends its daemons in order.
pub(crate) fn start(name: &'static str, command: &mut Command, log: PathBuf) -> Result<Daemon> {
    let output = File::options().create(true).append(true).open(&log);
    let output = output.with_context(|| format!("cannot write {}", log.display()))?;
    command
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output);
    // SAFETY: setsid is async-signal-safe and touches no memory of this process.
    unsafe {
        command.pre_exec(|| nix::unistd::setsid().map(drop).map_err(Into::into));
    }
    let child = command
        .spawn()
        .with_context(|| format!("cannot start {name} ({})", command.get_program().display()))?;
    Ok(Daemon { name, child, log })
}

impl Daemon {
    /// Puts it before the guests, which keep all processors busy. A session has a priority of its own where
    /// the kernel groups processes by session.
    pub(crate) fn prefer(&self) {
        let pid = self.child.id();
        // SAFETY: no pointers are involved.
        unsafe { nix::libc::setpriority(nix::libc::PRIO_PROCESS, pid, PREFERRED_NICE) };
        // Where there are no such groups there is no such file.
        let _ = std::fs::write(format!("/proc/{pid}/autogroup"), PREFERRED_NICE.to_string());
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Says what it wrote last, if it ended by itself.
    pub(crate) fn check(&mut self) -> Result<()> {
        let Some(status) = self.child.try_wait()? else {
            return Ok(());
        };
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let last = lines[lines.len().saturating_sub(15)..].join("\n");
        bail!("{} ended ({status}); it wrote last:\n{last}", self.name)
    }

    /// Kills it, as a crash would.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Ends it: asks, waits, and if it does not listen, kills.
    pub(crate) fn end(&mut self) {
        if matches!(self.child.try_wait(), Ok(Some(_))) {
            return;
        }
        end_process(self.child.id(), || {
            matches!(self.child.try_wait(), Ok(Some(_)))
        });
        // Reaped already, or killed just now.
        let _ = self.child.wait();
    }
}

/// Kills a process without waiting for its end.
pub(crate) fn kill_now(pid: u32) {
    if let Ok(pid) = i32::try_from(pid) {
        // It may have ended by itself.
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
}

/// Whether a process lives, and be it that it is just ending: the first one of a namespace waits for all
/// others. One that only waits to be collected does not.
pub(crate) fn lives(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name, field 2, ends in the last parenthesis, and may hold anything.
    let state = stat
        .rsplit_once(") ")
        .and_then(|(_, rest)| rest.chars().next());
    state.is_some_and(|state| !matches!(state, 'Z' | 'X'))
}

/// Whether a process runs a program whose name begins so.
pub(crate) fn runs(pid: u32, program: &str) -> bool {
    let file = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    name.starts_with(program)
}

/// Asks a process to end, waits until `ended`, and kills it if it takes too long.
pub(crate) fn end_process(pid: u32, mut ended: impl FnMut() -> bool) {
    let Ok(pid) = i32::try_from(pid).map(Pid::from_raw) else {
        return;
    };
    let _ = kill(pid, Signal::SIGTERM);
    let start = Instant::now();
    while !ended() {
        if start.elapsed() > END_LIMIT {
            let _ = kill(pid, Signal::SIGKILL);
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Builds an image, or takes it from the cache, and links it into the folder `out`.
///
/// # Errors
/// When it cannot be built.
pub fn build_image(image: &str, out: &Path) -> Result<()> {
    let binaries = binaries()?;
    let words: [&std::ffi::OsStr; 5] = [
        "--binaries".as_ref(),
        binaries.as_os_str(),
        "--out".as_ref(),
        out.as_os_str(),
        image.as_ref(),
    ];
    run_script("vm-images/build", &words)
}

/// Runs a script of the checkout; its output goes to this process's standard error.
pub(crate) fn run_script(script: &str, arguments: &[&std::ffi::OsStr]) -> Result<()> {
    let path = checkout().join(script);
    let status = Command::new(&path)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::from(std::io::stderr()))
        .status()
        .with_context(|| format!("cannot run {}", path.display()))?;
    if !status.success() {
        bail!("{script} failed ({status})");
    }
    Ok(())
}
