//! The programs of a guest: how each is started, as whom, and with which limits.

use super::machine::write_if_there;
use crate::causes::with_causes;
use crate::config::{Address, Config, ServiceSettings};
use crate::database::Server;
use crate::transport::unix_socket::inherited_socket;
use nix::errno::Errno;
use nix::fcntl::{fcntl, FcntlArg, FdFlag};
use nix::sys::resource::{setrlimit, Resource};
use nix::sys::wait::{waitpid, WaitPidFlag, WaitStatus};
use nix::unistd::{chown, Pid, User};
use spare_protocol::channel::PORTS_VARIABLE;
use std::io;
use std::os::fd::RawFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Processes and threads that the service's user may have. A service that forks without end must not
/// leave the guest without any.
const SERVICE_PROCESSES_MAX: u64 = 256;
/// The port of the attacker's door.
const DOOR_PORT: &str = "org.spare.door.0";
/// When memory runs out, the kernel ends the service first, the shim and the database last.
const OOM_SERVICE: i32 = 500;
const OOM_OTHERS: i32 = -900;

/// A program of the guest can't be started.
#[derive(Debug, thiserror::Error)]
pub enum ChildError {
    /// The configuration names no program of the service.
    #[error("no command")]
    NoCommand,
    /// The shim is started from this program's own file.
    #[error("cannot find this program's file")]
    OwnFile(#[source] io::Error),
    /// The program that the console calls so, from that file.
    #[error("cannot start {0} ({file})", file = .1.display())]
    Start(&'static str, PathBuf, #[source] io::Error),
    /// What was to be inherited in the place of that port is not open.
    #[error("the port {0} is no descriptor")]
    NoDescriptor(String, #[source] Errno),
    /// The folder of a socket.
    #[error("cannot create {}", .0.display())]
    SocketFolder(PathBuf, #[source] io::Error),
    /// A program was to run as a user that there is not.
    #[error("there is no user {0} in /etc/passwd")]
    NoUser(String),
}

/// A program to be started.
pub(super) struct Program {
    name: &'static str,
    command: Command,
    user: Option<User>,
    processes_max: Option<u64>,
    oom_score: i32,
    needed: bool,
    /// The socket that it inherits in the place of a virtio-serial port, with the port's name.
    port: Option<(String, RawFd)>,
}

/// A program that was started.
pub(super) struct Child {
    /// What the console calls it.
    pub(super) name: &'static str,
    pub(super) pid: Pid,
    /// Whether the guest is of no use without it.
    pub(super) needed: bool,
}

impl Program {
    /// The database, which ends last when memory runs out.
    pub(super) fn database(server: &dyn Server) -> Result<Program, ChildError> {
        Ok(Program {
            name: server.name(),
            command: server.command(),
            user: Some(user(server.user())?),
            processes_max: None,
            oom_score: OOM_OTHERS,
            needed: true,
            port: None,
        })
    }

    /// The service, which may not use up the guest's processes and ends first when memory runs out.
    pub(super) fn service(settings: &ServiceSettings) -> Result<Program, ChildError> {
        let command = settings.command.split_first();
        let (program, arguments) = command.ok_or(ChildError::NoCommand)?;
        let mut command = Command::new(program);
        command.args(arguments);
        Ok(Program {
            name: "the service",
            command,
            user: Some(user(&settings.user)?),
            processes_max: Some(SERVICE_PROCESSES_MAX),
            oom_score: OOM_SERVICE,
            needed: true,
            port: None,
        })
    }

    /// The shim: this program in its other role.
    pub(super) fn shim(path: &Path, config: &Config) -> Result<Program, ChildError> {
        let this = std::env::current_exe().map_err(ChildError::OwnFile)?;
        let mut command = Command::new(this);
        command.arg("run").arg("--config").arg(path);
        Ok(Program {
            name: "the shim",
            command,
            user: None,
            processes_max: None,
            oom_score: OOM_OTHERS,
            needed: true,
            port: config.channel.port.as_deref().and_then(inherited_as),
        })
    }

    /// The attacker's door of test images.
    pub(super) fn door(program: &str) -> Program {
        let mut command = Command::new(program);
        command.arg("door");
        Program {
            name: "the attacker's door",
            command,
            user: None,
            processes_max: None,
            oom_score: OOM_OTHERS,
            needed: false,
            port: inherited_as(DOOR_PORT),
        }
    }
}

impl Child {
    /// Starts a program; its output goes to the console.
    ///
    /// # Errors
    /// When it can't be started.
    #[allow(
        clippy::zombie_processes,
        reason = "the first process collects all that die"
    )]
    pub(super) fn start(mut program: Program) -> Result<Child, ChildError> {
        let command = &mut program.command;
        command.stdin(Stdio::null()).current_dir("/");
        command
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("LANG", "C.UTF-8");
        if let Some(user) = &program.user {
            command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
            command.env("HOME", &user.dir).env("USER", &user.name);
        }
        if let Some(limit) = program.processes_max {
            // SAFETY: between fork and exec only system calls are made, no memory is allocated.
            unsafe {
                command.pre_exec(move || {
                    setrlimit(Resource::RLIMIT_NPROC, limit, limit)?;
                    Ok(())
                });
            }
        }
        if let Some((port, fd)) = program.port {
            command.env(PORTS_VARIABLE, format!("{port}={fd}"));
            // SAFETY: between fork and exec only a system call is made, no memory is allocated.
            unsafe {
                command.pre_exec(move || {
                    fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty()))?;
                    Ok(())
                });
            }
        }
        let child = command
            .spawn()
            .map_err(|e| ChildError::Start(program.name, command.get_program().into(), e))?;
        let adjust = format!("/proc/{}/oom_score_adj", child.id());
        // A process replica on a confined machine may not protect itself; a guest always may.
        if let Err(error) = write_if_there(&adjust, &program.oom_score.to_string()) {
            eprintln!(
                "spare-init: {} is not protected when memory runs out: {}",
                program.name,
                with_causes(&error)
            );
        }
        // The kernel hands out no process number that does not fit.
        let pid = Pid::from_raw(child.id() as i32);
        Ok(Child {
            name: program.name,
            pid,
            needed: program.needed,
        })
    }

    /// How it ended, if it has.
    pub(super) fn ended(&self) -> Option<String> {
        match waitpid(self.pid, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) => None,
            Ok(status) => Some(describe(status)),
            Err(e) => Some(e.to_string()),
        }
    }
}

fn inherited_as(port: &str) -> Option<(String, RawFd)> {
    inherited_socket(port).map(|fd| (port.to_owned(), fd))
}

/// Keeps the sockets that a process replica has in the place of ports from all programs but those that
/// they are for.
///
/// # Errors
/// When what the environment names is no descriptor.
pub(super) fn keep_ports_private(config: &Config) -> Result<(), ChildError> {
    let shim = config.channel.port.as_deref();
    for port in shim.into_iter().chain([DOOR_PORT]) {
        if let Some(fd) = inherited_socket(port) {
            let kept = fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC));
            kept.map_err(|e| ChildError::NoDescriptor(port.to_owned(), e))?;
        }
    }
    Ok(())
}

/// How a process ended, in words.
pub(super) fn describe(status: WaitStatus) -> String {
    match status {
        WaitStatus::Exited(_, code) => format!("exit code {code}"),
        WaitStatus::Signaled(_, signal, _) => format!("killed by {signal}"),
        other => format!("{other:?}"),
    }
}

/// Creates the folders of the sockets, each owned by who listens there.
///
/// # Errors
/// When one can't be created, or a user does not exist.
pub(super) fn make_folders(config: &Config) -> Result<(), ChildError> {
    let server = &config.database;
    make_folder(server.socket_dir(), &user(server.user())?)?;
    if let Address::Unix(socket) = &config.service.address {
        if let Some(folder) = socket.parent() {
            make_folder(folder, &user(&config.service.user)?)?;
        }
    }
    Ok(())
}

fn make_folder(path: &Path, owner: &User) -> Result<(), ChildError> {
    std::fs::create_dir_all(path)
        .and_then(|()| Ok(chown(path, Some(owner.uid), Some(owner.gid))?))
        .map_err(|e| ChildError::SocketFolder(path.to_owned(), e))
}

fn user(name: &str) -> Result<User, ChildError> {
    User::from_name(name)
        .ok()
        .flatten()
        .ok_or_else(|| ChildError::NoUser(name.to_owned()))
}
