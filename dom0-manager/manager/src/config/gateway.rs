//! `[gateway]`: where clients connect, and what one client, one address and all together may take.

use ipnet::IpNet;
use serde::{Deserialize, Deserializer};
use std::net::{IpAddr, SocketAddr};

/// The greatest body of a request: it must fit into a frame of the guest channel with room for its encoding.
const BODY_BYTES_MAX: usize = 16 << 20;
/// hyper refuses a smaller read buffer.
const HEADER_BYTES_MIN: usize = 8192;
/// The longest reply that there is: a body of 16 MiB and its headers.
const REPLIES_BYTES_MIN: usize = 17 << 20;

/// A value of `[gateway]` that cannot work, and what to write instead.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GatewayProblem {
    #[error("gateway.{0} is 0; leave it out for its default")]
    Zero(&'static str),
    #[error("gateway.header_bytes_max must be at least {HEADER_BYTES_MIN}")]
    HeaderBytes,
    #[error("gateway.body_bytes_max must be at most {BODY_BYTES_MAX} (16 MiB)")]
    BodyBytes,
    #[error(
        "gateway.requests_bytes_max: {all} bytes of all requests are less than one may have \
         (body_bytes_max and header_bytes_max: {one})"
    )]
    RequestsBytes { all: usize, one: usize },
    #[error("gateway.replies_bytes_max must be at least {REPLIES_BYTES_MIN} (17 MiB): one reply may be as long")]
    RepliesBytes,
}

/// Where clients connect, and what they may take.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Gateway {
    pub(crate) listen: SocketAddr,
    /// Requests under way; above that a client gets 503 with `Retry-After`.
    pub(crate) requests_max: usize,
    /// How long a request may be expected to wait for the replicas; above that a client gets 503 with `Retry-After`.
    pub(crate) wait_max_ms: u64,
    /// Of those under way, one client address's.
    pub(crate) requests_per_address_max: usize,
    /// Bytes of all requests that are being received or under way.
    pub(crate) requests_bytes_max: usize,
    /// Bytes of all replies that are being sent.
    pub(crate) replies_bytes_max: usize,
    /// Open connections; for one more, the one that its client has kept waiting longest is closed.
    pub(crate) connections_max: usize,
    /// Of those, one address's; a proxy's connections are its clients' and not counted.
    pub(crate) connections_per_address_max: usize,
    pub(crate) header_bytes_max: usize,
    pub(crate) body_bytes_max: usize,
    /// So long a connection may be open without a request.
    pub(crate) idle_timeout_ms: u64,
    /// A client may pause so long while it sends request line and headers, and be so much slower in all than
    /// `bytes_per_s_min`; then it gets 408.
    pub(crate) header_timeout_ms: u64,
    /// The same, while it sends a body.
    pub(crate) body_timeout_ms: u64,
    /// The same, while it takes a reply; then its connection is closed.
    pub(crate) write_timeout_ms: u64,
    /// Who sends or takes as fast as this is served however long it takes.
    pub(crate) bytes_per_s_min: u32,
    /// For the group to answer; then the client gets 503, and its request may still take effect.
    pub(crate) reply_timeout_ms: u64,
    /// Whose word on a client's address counts.
    pub(crate) proxies: Vec<Network>,
    /// The header in which they tell it.
    pub(crate) proxy_header: ProxyHeader,
    /// How long an `Idempotency-Key` is remembered.
    pub(crate) key_lifetime_s: u64,
    /// How many keys are remembered.
    pub(crate) keys_max: usize,
    /// How many of one client address are.
    pub(crate) keys_of_owner_max: usize,
}

impl Default for Gateway {
    fn default() -> Self {
        Gateway {
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            requests_max: 1024,
            wait_max_ms: 2000,
            requests_per_address_max: 512,
            requests_bytes_max: 128 << 20,
            replies_bytes_max: 128 << 20,
            connections_max: 4096,
            connections_per_address_max: 1024,
            header_bytes_max: 64 << 10,
            body_bytes_max: 1 << 20,
            idle_timeout_ms: 60_000,
            header_timeout_ms: 10_000,
            body_timeout_ms: 30_000,
            write_timeout_ms: 30_000,
            bytes_per_s_min: 500,
            reply_timeout_ms: 60_000,
            proxies: Vec::new(),
            proxy_header: ProxyHeader::XForwardedFor,
            key_lifetime_s: 24 * 3600,
            keys_max: 100_000,
            keys_of_owner_max: 1_000_000,
        }
    }
}

/// The header by which a proxy tells for whom it asks.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum ProxyHeader {
    /// `X-Forwarded-For`, with `X-Forwarded-Proto` and `X-Forwarded-Host`.
    XForwardedFor,
    /// RFC 7239.
    Forwarded,
}

/// An address, or all addresses with a prefix, as `10.1.0.0/16`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Network(IpNet);

impl Network {
    pub(crate) fn contains(&self, address: IpAddr) -> bool {
        self.0.contains(&address)
    }
}

impl<'de> Deserialize<'de> for Network {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Network, D::Error> {
        let text = String::deserialize(deserializer)?;
        let network = match text.parse::<IpAddr>() {
            Ok(address) => Some(IpNet::from(address)),
            Err(_) => text.parse().ok(),
        };
        network.map(Network).ok_or_else(|| {
            serde::de::Error::custom(format!(
                "{text:?} is no address; write for example \"10.0.0.5\" or \"10.1.0.0/16\""
            ))
        })
    }
}

impl Gateway {
    pub(crate) fn check(&self) -> Result<(), GatewayProblem> {
        let zero = [
            ("requests_max", self.requests_max as u64),
            (
                "requests_per_address_max",
                self.requests_per_address_max as u64,
            ),
            ("connections_max", self.connections_max as u64),
            (
                "connections_per_address_max",
                self.connections_per_address_max as u64,
            ),
            ("idle_timeout_ms", self.idle_timeout_ms),
            ("header_timeout_ms", self.header_timeout_ms),
            ("body_timeout_ms", self.body_timeout_ms),
            ("write_timeout_ms", self.write_timeout_ms),
            ("bytes_per_s_min", u64::from(self.bytes_per_s_min)),
            ("reply_timeout_ms", self.reply_timeout_ms),
            ("keys_max", self.keys_max as u64),
            ("keys_of_owner_max", self.keys_of_owner_max as u64),
        ];
        if let Some((name, _)) = zero.iter().find(|(_, value)| *value == 0) {
            return Err(GatewayProblem::Zero(name));
        }
        if self.header_bytes_max < HEADER_BYTES_MIN {
            return Err(GatewayProblem::HeaderBytes);
        }
        if self.body_bytes_max > BODY_BYTES_MAX {
            return Err(GatewayProblem::BodyBytes);
        }
        let one = self.body_bytes_max + self.header_bytes_max;
        if self.requests_bytes_max < one {
            let all = self.requests_bytes_max;
            return Err(GatewayProblem::RequestsBytes { all, one });
        }
        if self.replies_bytes_max < REPLIES_BYTES_MIN {
            return Err(GatewayProblem::RepliesBytes);
        }
        Ok(())
    }
}
