//! Unix sockets, for replicas that are processes: one to connect to ([`UnixSocket`], the oracle's),
//! an inherited one to listen at ([`InheritedSocket`], the agent's), and one that does not leave this
//! program ([`SocketPair`], for the rehearsal).

mod connecting;
mod inherited;
mod pair;

pub use connecting::UnixSocket;
pub use inherited::{inherited_socket, InheritedSocket};
pub use pair::SocketPair;
