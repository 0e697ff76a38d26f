//! Who asks: the address that connected, or the one that a configured proxy tells. The service is told in
//! `Forwarded` (RFC 7239) and `X-Forwarded-For`, `-Proto` and `-Host`; what a client itself says in them never
//! reaches it.

use crate::config::{Gateway, ProxyHeader};
use hyper::header::{HeaderMap, HOST};
use std::net::{IpAddr, SocketAddr};

/// A client as the service is told about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Client {
    pub(crate) address: IpAddr,
    /// `http`, or `https` if a proxy says so.
    scheme: &'static str,
    /// The host that the client asked, if a proxy says so.
    host: Option<String>,
}

impl Client {
    /// Whose request this is, which came from `peer`. Proxies append to what they were told, so what stands last
    /// is by the nearest one; the first address from there that is no proxy's is the client's.
    pub(crate) fn of(peer: IpAddr, headers: &HeaderMap, limits: &Gateway) -> Client {
        let peer = peer.to_canonical();
        let is_proxy = |address: IpAddr| limits.proxies.iter().any(|n| n.contains(address));
        let mut client = Client {
            address: peer,
            scheme: "http",
            host: None,
        };
        if !is_proxy(peer) {
            return client;
        }
        let told = match limits.proxy_header {
            ProxyHeader::XForwardedFor => x_forwarded(headers),
            ProxyHeader::Forwarded => forwarded(headers),
        };
        if let Some(nearest) = told.last() {
            client.host.clone_from(&nearest.host);
            if nearest.scheme.as_deref() == Some("https") {
                client.scheme = "https";
            }
        }
        for hop in told.iter().rev() {
            let Some(address) = hop.address else {
                break;
            };
            client.address = address;
            if !is_proxy(address) {
                break;
            }
        }
        client
    }

    /// The headers that the service gets, from a client that asked `host`.
    pub(crate) fn headers(&self, host: Option<&[u8]>) -> Vec<(String, Vec<u8>)> {
        let host = self
            .host
            .as_deref()
            .map_or(host, |host| Some(host.as_bytes()));
        let mut forwarded = match self.address {
            IpAddr::V4(address) => format!("for={address}"),
            IpAddr::V6(address) => format!("for=\"[{address}]\""),
        };
        if let Some(host) = host.and_then(|host| std::str::from_utf8(host).ok()) {
            forwarded.push_str(&format!(";host=\"{host}\""));
        }
        forwarded.push_str(&format!(";proto={}", self.scheme));
        let mut headers = vec![
            ("forwarded".to_owned(), forwarded.into_bytes()),
            (
                "x-forwarded-for".to_owned(),
                self.address.to_string().into(),
            ),
            ("x-forwarded-proto".to_owned(), self.scheme.into()),
        ];
        if let Some(host) = host {
            headers.push(("x-forwarded-host".to_owned(), host.to_owned()));
        }
        headers
    }
}

/// What one proxy tells about who asked it.
#[derive(Debug, Default, PartialEq, Eq)]
struct Hop {
    /// `None` if it is hidden, or no address.
    address: Option<IpAddr>,
    scheme: Option<String>,
    host: Option<String>,
}

/// All values of a header as one list.
fn joined(headers: &HeaderMap, name: &str) -> String {
    let values = headers.get_all(name).into_iter();
    let texts: Vec<&str> = values.map(|v| v.to_str().unwrap_or_default()).collect();
    texts.join(",")
}

fn x_forwarded(headers: &HeaderMap) -> Vec<Hop> {
    let list = joined(headers, "x-forwarded-for");
    let mut hops: Vec<Hop> = list
        .split(',')
        .map(|text| Hop {
            address: address(text.trim()),
            ..Hop::default()
        })
        .collect();
    let last = |name| {
        let list = joined(headers, name);
        let value = list.rsplit(',').next().unwrap_or_default().trim();
        (!value.is_empty()).then(|| value.to_owned())
    };
    if let Some(nearest) = hops.last_mut() {
        nearest.scheme = last("x-forwarded-proto").map(|s| s.to_ascii_lowercase());
        nearest.host = last("x-forwarded-host").filter(|h| is_host(h));
    }
    hops
}

/// `for=192.0.2.43;proto=https, for="[2001:db8:cafe::17]:4711"`. What is no element of that form tells nothing, and
/// neither does a list in which a quoted string has no end: a client that began one would have the proxy's word in it.
fn forwarded(headers: &HeaderMap) -> Vec<Hop> {
    let list = joined(headers, "forwarded");
    if !list.matches('"').count().is_multiple_of(2) {
        return Vec::new();
    }
    let elements = split_outside_quotes(&list, ',');
    elements.into_iter().map(hop).collect()
}

fn hop(element: &str) -> Hop {
    let mut hop = Hop::default();
    for pair in split_outside_quotes(element, ';') {
        let Some((name, value)) = pair.split_once('=') else {
            continue;
        };
        let value = value.trim();
        let quoted = value.strip_prefix('"').and_then(|v| v.strip_suffix('"'));
        let value = quoted.unwrap_or(value);
        match name.trim().to_ascii_lowercase().as_str() {
            "for" => hop.address = address(value),
            "proto" => hop.scheme = Some(value.to_ascii_lowercase()),
            "host" => hop.host = Some(value.to_owned()).filter(|h| is_host(h)),
            _ => {}
        }
    }
    hop
}

fn split_outside_quotes(text: &str, separator: char) -> Vec<&str> {
    let mut quoted = false;
    text.split(|c: char| {
        quoted ^= c == '"';
        c == separator && !quoted
    })
    .collect()
}

/// An address, with or without a port; IPv6 in brackets if it has one.
fn address(text: &str) -> Option<IpAddr> {
    let in_brackets = text.strip_prefix('[').and_then(|t| t.strip_suffix(']'));
    let alone = in_brackets.unwrap_or(text).parse::<IpAddr>().ok();
    let address = alone.or_else(|| text.parse::<SocketAddr>().ok().map(|a| a.ip()));
    address.map(|address| address.to_canonical())
}

/// Whether this can stand in a `Host` header: a host and perhaps a port, and nothing that would end a quoted string.
pub(crate) fn is_host(text: &str) -> bool {
    let authority = text.parse::<hyper::http::uri::Authority>();
    authority.is_ok_and(|a| !a.host().is_empty() && !text.contains(['@', '"', '\\']))
}

/// Whether a header is one of those that tell who asks.
pub(crate) fn tells_of_the_client(name: &str) -> bool {
    name == "forwarded" || name == "x-real-ip" || name.starts_with("x-forwarded-")
}

/// The host that the client asked, as it stands in the request.
pub(crate) fn host_of(headers: &HeaderMap) -> Option<&[u8]> {
    headers.get(HOST).map(hyper::header::HeaderValue::as_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::header::{HeaderName, HeaderValue};

    fn limits(proxy_header: &str) -> Gateway {
        let text = format!(
            "proxies = [\"10.0.0.0/24\", \"2001:db8::5\"]\nproxy_header = \"{proxy_header}\"\n"
        );
        spare_settings::parse(std::path::Path::new("x"), &text).expect("valid")
    }

    fn client(
        peer: &str,
        header: &str,
        told: &[(&str, &str)],
    ) -> (String, &'static str, Option<String>) {
        let mut headers = HeaderMap::new();
        for (name, value) in told {
            let name = HeaderName::from_bytes(name.as_bytes()).expect("a name");
            headers.append(name, HeaderValue::from_str(value).expect("a value"));
        }
        let peer = peer.parse().expect("an address");
        let client = Client::of(peer, &headers, &limits(header));
        (client.address.to_string(), client.scheme, client.host)
    }

    const XFF: &str = "x-forwarded-for";

    #[test]
    fn nobody_but_a_configured_proxy_is_believed() {
        let told = [
            (XFF, "1.2.3.4"),
            ("x-forwarded-proto", "https"),
            ("forwarded", "for=1.2.3.4"),
        ];
        let alone = |address: &str| (address.to_owned(), "http", None);
        assert_eq!(
            client("9.9.9.9", "x-forwarded-for", &told),
            alone("9.9.9.9")
        );
        assert_eq!(
            client("::ffff:9.9.9.9", "forwarded", &told),
            alone("9.9.9.9")
        );
        // The header that the proxy does not write comes from its client.
        assert_eq!(
            client("10.0.0.1", "forwarded", &[(XFF, "1.2.3.4")]),
            alone("10.0.0.1")
        );
        let other = [("forwarded", "for=1.2.3.4")];
        assert_eq!(
            client("10.0.0.1", "x-forwarded-for", &other),
            alone("10.0.0.1")
        );
    }

    #[test]
    fn the_client_is_the_last_in_the_chain_that_is_no_proxy() {
        let address = |told: &[(&str, &str)]| client("10.0.0.1", "x-forwarded-for", told).0;
        assert_eq!(address(&[(XFF, "1.2.3.4")]), "1.2.3.4");
        // What stands before the client's own address the client wrote itself.
        assert_eq!(address(&[(XFF, "6.6.6.6, 1.2.3.4")]), "1.2.3.4");
        assert_eq!(
            address(&[(XFF, "6.6.6.6, 1.2.3.4"), (XFF, "10.0.0.2")]),
            "1.2.3.4"
        );
        assert_eq!(address(&[(XFF, "6.6.6.6, unknown, 10.0.0.2")]), "10.0.0.2");
        assert_eq!(address(&[(XFF, "[2001:db8::7]:4711")]), "2001:db8::7");
        assert_eq!(address(&[]), "10.0.0.1");
    }

    #[test]
    fn a_proxy_may_write_the_standard_header() {
        let value = "for=6.6.6.6;proto=ftp, for=\"[2001:db8::9]:1\";Proto=HTTPS;host=\"shop:1\", for=10.0.0.9;proto=https;host=shop";
        let found = client("2001:db8::5", "forwarded", &[("forwarded", value)]);
        assert_eq!(
            found,
            ("2001:db8::9".to_owned(), "https", Some("shop".to_owned()))
        );
        for broken in [
            "for=\"1.2.3.4",
            "=;=,;",
            "for=_hidden",
            "\"",
            "for=1.2.3.4;host=\"a\\\"b\", for=",
        ] {
            let found = client("10.0.0.1", "forwarded", &[("forwarded", broken)]);
            assert_eq!(found.0, "10.0.0.1", "{broken}");
        }
    }

    #[test]
    fn the_service_is_told_in_both_ways() {
        let client = Client {
            address: "2001:db8::1".parse().expect("an address"),
            scheme: "https",
            host: None,
        };
        let headers = client.headers(Some(b"shop:8080"));
        let text: Vec<String> = headers
            .iter()
            .map(|(name, value)| format!("{name}: {}", String::from_utf8_lossy(value)))
            .collect();
        assert_eq!(
            text,
            [
                "forwarded: for=\"[2001:db8::1]\";host=\"shop:8080\";proto=https",
                "x-forwarded-for: 2001:db8::1",
                "x-forwarded-proto: https",
                "x-forwarded-host: shop:8080",
            ]
        );
        assert_eq!(client.headers(None).len(), 3);
    }
}
