//! Operators: who may use the admin API, and what each of them has asked for.
//!
//! The socket is for root, for the manager's own user, and for one group. The kernel says who is at the other end
//! (`SO_PEERCRED`), whatever the mode of the socket's file has become; and of each operation that changes something an
//! event tells who asked for it.

use axum::extract::connect_info::Connected;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::{Method, StatusCode, Uri};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::serve::IncomingStream;
use nix::fcntl::{open, AtFlags, OFlag};
use nix::sys::socket::{
    bind, listen, socket, AddressFamily, Backlog, SockFlag, SockType, UnixAddr,
};
use nix::sys::stat::{fchmod, fstat, Mode, SFlag};
use nix::unistd::{fchownat, getgrouplist, Gid, Group, Uid, User};
use std::ffi::CString;
use std::fmt;
use std::fs::Permissions;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::net::UnixListener;

/// Connections that wait to be accepted.
const BACKLOG: i32 = 64;
/// The socket's file, once the group has it.
const SOCKET_MODE: u32 = 0o660;
/// Of a request's path and query, in an event.
const OPERATION_CHARS_MAX: usize = 200;

/// The admin API has no socket.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SocketError {
    #[error(
        "another replica manager answers at {0}; stop it, or set admin.socket to another path"
    )]
    OtherManager(PathBuf),
    #[error(
        "the admin API cannot listen at {socket}; does the folder exist, and may this user write to it? \
         (admin.socket): {cause}"
    )]
    Listen { socket: PathBuf, cause: io::Error },
    #[error(
        "admin.group: there is no group {0}; make it (groupadd --system {0}), or name another"
    )]
    NoGroup(String),
    #[error(
        "the admin socket {socket} cannot be given to group {group}: {cause}; the manager's user must be in it \
         (SupplementaryGroups= in its unit, or usermod -aG {group} USER)"
    )]
    Give {
        socket: PathBuf,
        group: String,
        cause: io::Error,
    },
}

/// Listens at `socket`, for `group` or else the group of this process; who may use what listens there.
pub(crate) fn listen_at(
    socket: &Path,
    group: Option<&str>,
) -> Result<(UnixListener, Operators), SocketError> {
    let operators = Operators {
        owner: Uid::effective(),
        group: match group {
            None => Gid::effective(),
            Some(name) => group_named(name)?,
        },
    };
    if std::os::unix::net::UnixStream::connect(socket).is_ok() {
        return Err(SocketError::OtherManager(socket.to_owned()));
    }
    // Left behind by a manager that was killed: nobody answers there.
    let _ = std::fs::remove_file(socket);
    let failed = |cause| SocketError::Listen {
        socket: socket.to_owned(),
        cause,
    };
    let listener = listen_private(socket).map_err(failed)?;
    give(socket, operators.group).map_err(|cause| SocketError::Give {
        socket: socket.to_owned(),
        group: group.map_or_else(|| operators.group.to_string(), str::to_owned),
        cause,
    })?;
    let listener = UnixListener::from_std(listener).map_err(failed)?;
    Ok((listener, operators))
}

fn group_named(name: &str) -> Result<Gid, SocketError> {
    match Group::from_name(name) {
        Ok(Some(group)) => Ok(group.gid),
        _ => Err(SocketError::NoGroup(name.to_owned())),
    }
}

/// A listening socket that is its owner's alone: its file gets the mode that the socket has before (unix(7)).
fn listen_private(path: &Path) -> io::Result<std::os::unix::net::UnixListener> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let made = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    fchmod(made.as_raw_fd(), Mode::S_IRUSR | Mode::S_IWUSR)?;
    bind(made.as_raw_fd(), &UnixAddr::new(path)?)?;
    listen(&made, Backlog::new(BACKLOG)?)?;
    Ok(made.into())
}

/// Gives the socket's file to `group`: the file that is opened here, if it is a socket.
fn give(socket: &Path, group: Gid) -> io::Result<()> {
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    // SAFETY: the kernel has just made this descriptor, and nobody else knows it.
    let file = unsafe { OwnedFd::from_raw_fd(open(socket, flags, Mode::empty())?) };
    let kind = fstat(file.as_raw_fd())?.st_mode & SFlag::S_IFMT.bits();
    if kind != SFlag::S_IFSOCK.bits() {
        return Err(io::Error::other("something else is in its place"));
    }
    let itself = AtFlags::AT_EMPTY_PATH;
    fchownat(Some(file.as_raw_fd()), "", None, Some(group), itself)?;
    let own = format!("/proc/self/fd/{}", file.as_raw_fd());
    std::fs::set_permissions(own, Permissions::from_mode(SOCKET_MODE))
}

/// Who may use the admin API.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Operators {
    /// The manager's own user.
    owner: Uid,
    group: Gid,
}

/// Who is at the other end of a connection, as the kernel says; `None` if it does not.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer(Option<Credentials>);

#[derive(Clone, Copy, Debug)]
struct Credentials {
    user: Uid,
    group: Gid,
    process: Option<i32>,
}

impl Connected<IncomingStream<'_, UnixListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Peer {
        let credentials = stream.io().peer_cred().ok();
        Peer(credentials.map(|peer| Credentials {
            user: Uid::from_raw(peer.uid()),
            group: Gid::from_raw(peer.gid()),
            process: peer.pid(),
        }))
    }
}

/// Somebody who may use the admin API, in words.
struct Operator {
    user: Uid,
    name: String,
    process: Option<i32>,
}

impl fmt::Display for Operator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "user {} (uid {}", self.name, self.user)?;
        match self.process {
            Some(process) => write!(f, ", process {process})"),
            None => f.write_str(")"),
        }
    }
}

/// Why somebody may not use the admin API.
#[derive(Debug, thiserror::Error)]
enum NotAdmitted {
    #[error("the kernel does not say who asks")]
    Unknown,
    #[error(
        "user {user} may not use the admin API: it is for root, the manager's user, and members of group {group}; \
         add it to the group (usermod -aG), or set admin.group"
    )]
    Foreign { user: Uid, group: String },
}

impl IntoResponse for NotAdmitted {
    fn into_response(self) -> Response {
        (StatusCode::FORBIDDEN, self.to_string()).into_response()
    }
}

impl Operators {
    /// Who that is, if it is somebody who may ask. Blocks: users and groups may be another machine's to tell.
    fn identify(self, peer: Peer) -> Result<Operator, NotAdmitted> {
        let peer = peer.0.ok_or(NotAdmitted::Unknown)?;
        let named = User::from_uid(peer.user).ok().flatten();
        let groups = || {
            let name = named.as_ref().map(|user| user.name.as_str());
            let name = name.and_then(|name| CString::new(name).ok());
            name.and_then(|name| getgrouplist(&name, peer.group).ok())
                .unwrap_or_default()
        };
        if !self.admits(peer, groups) {
            let group = Group::from_gid(self.group).ok().flatten();
            return Err(NotAdmitted::Foreign {
                user: peer.user,
                group: group.map_or_else(|| self.group.to_string(), |group| group.name),
            });
        }
        Ok(Operator {
            user: peer.user,
            name: named.map_or_else(|| "without a name".to_owned(), |user| user.name),
            process: peer.process,
        })
    }

    /// `groups` tells the groups of the peer's user.
    fn admits(self, peer: Credentials, groups: impl FnOnce() -> Vec<Gid>) -> bool {
        peer.user.is_root()
            || peer.user == self.owner
            || peer.group == self.group
            || groups().contains(&self.group)
    }
}

/// What [`admit`] needs.
#[derive(Clone)]
pub(crate) struct Gate {
    pub(crate) operators: Operators,
    /// Is told who asks for what that changes something, and what was refused.
    pub(crate) note: Arc<dyn Fn(String) + Send + Sync>,
}

/// Lets through who may ask, and notes who asks for something that changes something.
pub(crate) async fn admit(
    State(gate): State<Gate>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    request: Request,
    next: Next,
) -> Response {
    let operators = gate.operators;
    let identified = tokio::task::spawn_blocking(move || operators.identify(peer)).await;
    let operator = match identified.unwrap_or(Err(NotAdmitted::Unknown)) {
        Ok(operator) => operator,
        Err(refused) => {
            tracing::warn!("{refused}");
            return refused.into_response();
        }
    };
    if request.method() == Method::GET {
        return next.run(request).await;
    }
    let operation = operation(request.uri());
    (gate.note)(format!("{operator} asks for: {operation}"));
    let response = next.run(request).await;
    if !response.status().is_success() {
        let status = response.status().as_u16();
        (gate.note)(format!(
            "what {operator} asked for was refused with {status}: {operation}"
        ));
    }
    response
}

/// `/v1/host/drain?host=h2` as an operator says it: `host drain (host=h2)`.
fn operation(uri: &Uri) -> String {
    let path = uri.path().trim_start_matches("/v1/").replace('/', " ");
    let whole = match uri.query() {
        Some(query) => format!("{path} ({query})"),
        None => path,
    };
    whole.chars().take(OPERATION_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::routing::{get, post};
    use axum::Router;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    use std::sync::Mutex;

    /// A user that every machine has, and that is in no group but its own.
    const NOBODY: u32 = 65_534;

    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Scratch {
            let folder = format!("spare-operators-{name}-{}", std::process::id());
            let folder = std::env::temp_dir().join(folder);
            std::fs::create_dir(&folder).expect("a folder");
            Scratch(folder)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn mode(path: &Path) -> u32 {
        let is = std::fs::symlink_metadata(path).expect("a socket");
        is.permissions().mode() & 0o777
    }

    type Notes = Arc<Mutex<Vec<String>>>;

    /// An API with one call that is done and one that is refused, and what is noted.
    fn serve(socket: &Path) -> Notes {
        let notes = Notes::default();
        let noted = Arc::clone(&notes);
        let (listener, operators) = listen_at(socket, None).expect("a socket");
        let gate = Gate {
            operators,
            note: Arc::new(move |text| noted.lock().expect("whole").push(text)),
        };
        let router = Router::new()
            .route("/v1/status", get(|| async { "fine" }))
            .route("/v1/host/drain", post(|| async { "done" }))
            .route("/v1/stop", post(|| async { StatusCode::CONFLICT }))
            .layer(axum::middleware::from_fn_with_state(gate, admit));
        let service = router.into_make_service_with_connect_info::<Peer>();
        tokio::spawn(async move { axum::serve(listener, service).await });
        notes
    }

    fn ask(socket: &Path, call: &str) -> io::Result<String> {
        let mut stream = UnixStream::connect(socket)?;
        write!(
            stream,
            "{call} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }

    async fn asked(socket: &Path, call: &'static str) -> String {
        let socket = socket.to_owned();
        let answer = tokio::task::spawn_blocking(move || ask(&socket, call));
        answer.await.expect("it ends").expect("an answer")
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn who_asked_for_a_change_is_noted_and_who_only_looked_is_not() {
        let scratch = Scratch::new("noted");
        let socket = scratch.0.join("admin.sock");
        let notes = serve(&socket);
        assert!(asked(&socket, "GET /v1/status").await.contains("fine"));
        assert!(notes.lock().expect("whole").is_empty());
        let answer = asked(&socket, "POST /v1/host/drain?host=h2").await;
        assert!(answer.contains("done"), "{answer}");
        assert!(asked(&socket, "POST /v1/stop").await.contains("409"));
        let notes = notes.lock().expect("whole").clone();
        let user = Uid::effective();
        let name = User::from_uid(user).ok().flatten().expect("a name").name;
        let who = format!("user {name} (uid {user}, process {})", std::process::id());
        assert_eq!(
            notes,
            [
                format!("{who} asks for: host drain (host=h2)"),
                format!("{who} asks for: stop"),
                format!("what {who} asked for was refused with 409: stop"),
            ]
        );
    }

    /// What comes of a call by another user, on a thread that gives up root's rights.
    fn asked_by_nobody(socket: &Path) -> io::Result<String> {
        let socket = socket.to_owned();
        let asking = std::thread::spawn(move || {
            // SAFETY: no pointers are involved; the call, unlike the library's function, is for this thread alone,
            // which ends after this.
            let given_up = unsafe {
                nix::libc::syscall(nix::libc::SYS_setresgid, NOBODY, NOBODY, NOBODY)
                    | nix::libc::syscall(nix::libc::SYS_setgroups, 0, std::ptr::null::<u32>())
                    | nix::libc::syscall(nix::libc::SYS_setresuid, NOBODY, NOBODY, NOBODY)
            };
            assert_eq!(given_up, 0);
            ask(&socket, "POST /v1/host/drain?host=h2")
        });
        asking.join().expect("it ends")
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn others_get_nothing_whatever_the_mode_of_the_socket_is() {
        if !Uid::effective().is_root() {
            println!("SKIPPED: being somebody else takes root");
            return;
        }
        let scratch = Scratch::new("others");
        std::fs::set_permissions(&scratch.0, Permissions::from_mode(0o755)).expect("a mode");
        let socket = scratch.0.join("admin.sock");
        let notes = serve(&socket);
        assert_eq!(mode(&socket), SOCKET_MODE);
        let refused = asked_by_nobody(&socket).expect_err("the kernel refuses");
        assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied);
        std::fs::set_permissions(&socket, Permissions::from_mode(0o666)).expect("a mode");
        let answer = asked_by_nobody(&socket).expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
        assert!(answer.contains("user 65534 may not"), "{answer}");
        assert!(notes.lock().expect("whole").is_empty());
    }

    #[tokio::test]
    async fn the_socket_is_the_groups_that_is_configured() {
        if !Uid::effective().is_root() {
            println!("SKIPPED: giving a file to any group takes root");
            return;
        }
        let scratch = Scratch::new("group");
        let socket = scratch.0.join("admin.sock");
        let group = Group::from_gid(Gid::from_raw(NOBODY)).expect("groups");
        let name = group.expect("every machine has it").name;
        let (_listener, operators) = listen_at(&socket, Some(&name)).expect("a socket");
        assert_eq!(mode(&socket), SOCKET_MODE);
        let is = std::fs::symlink_metadata(&socket).expect("a socket");
        assert_eq!(std::os::unix::fs::MetadataExt::gid(&is), NOBODY);
        assert_eq!(operators.group, Gid::from_raw(NOBODY));
        let other = listen_at(&socket, None).expect_err("one is enough");
        assert!(matches!(other, SocketError::OtherManager(_)), "{other}");
        let missing = listen_at(&scratch.0.join("x"), Some("no-such-group")).expect_err("none");
        assert!(missing.to_string().contains("groupadd"), "{missing}");
    }

    #[test]
    fn root_the_managers_user_and_the_group_are_admitted() {
        let [root, manager, member, other] = [0, 900, 1000, 1001].map(Uid::from_raw);
        let [group, own] = [50, 1000].map(Gid::from_raw);
        let operators = Operators {
            owner: manager,
            group,
        };
        let admits = |user, primary, groups: &[Gid]| {
            let peer = Credentials {
                user,
                group: primary,
                process: None,
            };
            operators.admits(peer, || groups.to_vec())
        };
        assert!(admits(root, own, &[]) && admits(manager, own, &[]));
        assert!(admits(member, group, &[]) && admits(member, own, &[own, group]));
        assert!(!admits(other, own, &[own]));
        let unknown = operators.identify(Peer(None));
        assert!(matches!(unknown, Err(NotAdmitted::Unknown)));
    }
}
