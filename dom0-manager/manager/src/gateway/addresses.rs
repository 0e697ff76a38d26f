//! What one client address may take: connections, and requests under way.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};

/// So much of an IPv6 address tells clients apart: a customer is given at least so many addresses.
const IPV6_PREFIX: u128 = !0 << 64;

/// How many each address has, of those things of which it may have `max`.
#[derive(Debug)]
pub(crate) struct Shares {
    max: usize,
    taken: Mutex<HashMap<IpAddr, usize>>,
}

/// One of an address's; given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Share {
    shares: Arc<Shares>,
    address: IpAddr,
}

impl Shares {
    pub(crate) fn new(max: usize) -> Arc<Shares> {
        Arc::new(Shares {
            max,
            taken: Mutex::default(),
        })
    }

    /// One more for that address, if it has not as many as it may.
    pub(crate) fn take(self: &Arc<Self>, address: IpAddr) -> Option<Share> {
        let address = client(address);
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let count = taken.entry(address).or_default();
        if *count >= self.max {
            return None;
        }
        *count += 1;
        Some(Share {
            shares: Arc::clone(self),
            address,
        })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let taken = self.shares.taken.lock();
        let mut taken = taken.unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = taken.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.address);
            }
        }
    }
}

/// What is counted as one client.
pub(crate) fn client(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from(u128::from(address) & IPV6_PREFIX).into(),
        address @ IpAddr::V4(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_no_more_than_it_may_and_others_do_not_notice() {
        let shares = Shares::new(2);
        let address = |text: &str| text.parse::<IpAddr>().expect("an address");
        let first = shares.take(address("10.0.0.1")).expect("the first");
        let _second = shares.take(address("::ffff:10.0.0.1")).expect("the second");
        assert!(shares.take(address("10.0.0.1")).is_none());
        let _other = shares.take(address("10.0.0.2")).expect("another's");
        drop(first);
        let _again = shares.take(address("10.0.0.1")).expect("one is free again");
        let _six = [1, 2].map(|n| {
            shares
                .take(address(&format!("2001:db8::{n}")))
                .expect("free")
        });
        assert!(
            shares.take(address("2001:db8::ffff:3")).is_none(),
            "one customer's addresses"
        );
        drop(_six);
        assert_eq!(
            shares.taken.lock().expect("not poisoned").len(),
            2,
            "nothing is kept of who has none"
        );
    }
}
