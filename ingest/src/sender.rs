//! Who sent a request, and whether they may: the allow-list, and the proxies trusted to name the sender.
//!
//! The allow-list adds to the signature check and never replaces it. `X-Forwarded-For` is trusted only as far as
//! trusted proxies wrote it: anything further left may have been made up by the client.

use std::net::{IpAddr, SocketAddr};

use hyper::HeaderMap;
use ipnet::IpNet;

/// The addresses WorkOS sends webhooks from, according to its docs, "Sync data with webhooks", section "Create an IP
/// allowlist". The list has grown before: if you use `workos`, watch
/// `dsync_ingest_webhooks_total{outcome="forbidden"}`.
const WORKOS: [[u8; 4]; 9] = [
    [3, 217, 146, 166],
    [23, 21, 184, 92],
    [34, 204, 154, 149],
    [44, 213, 245, 178],
    [44, 215, 236, 82],
    [50, 16, 203, 9],
    [52, 1, 251, 34],
    [52, 21, 49, 187],
    [174, 129, 36, 47],
];

const FORWARDED_FOR: &str = "x-forwarded-for";

/// Networks, written as addresses and CIDRs separated by commas.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Networks(Vec<IpNet>);

/// Why a list of networks is refused, worded to follow the list in a sentence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is not a list of addresses and CIDRs separated by commas")]
pub struct NotNetworks;

impl Networks {
    /// Parses `10.0.0.0/8, 192.0.2.7, 2001:db8::/32`. An empty list is an error, because it could mean all or none.
    pub fn parse(text: &str) -> Result<Self, NotNetworks> {
        let network = |item: &str| {
            let item = item.trim();
            let network = item
                .parse::<IpAddr>()
                .map(IpNet::from)
                .or_else(|_| item.parse::<IpNet>());
            network.map(|network| network.trunc()).map_err(|_| NotNetworks)
        };
        text.split(',').map(network).collect::<Result<_, _>>().map(Self)
    }

    /// Like [`Networks::parse`], and also accepts `workos` for the addresses that WorkOS publishes.
    pub fn parse_senders(text: &str) -> Result<Self, NotNetworks> {
        let mut networks = Vec::new();
        for item in text.split(',') {
            if item.trim() == "workos" {
                networks.extend(WORKOS.map(|address| IpNet::from(IpAddr::from(address))));
            } else {
                networks.extend(Self::parse(item)?.0);
            }
        }
        Ok(Self(networks))
    }

    fn contain(&self, address: IpAddr) -> bool {
        self.0.iter().any(|network| network.contains(&address))
    }
}

/// Which senders are allowed.
#[derive(Clone, Debug, Default)]
pub struct Senders {
    /// `None` allows anybody.
    allowed: Option<Networks>,
    proxies: Networks,
}

impl Senders {
    /// Allows only `allowed` if it is given, otherwise anybody. `proxies` are trusted to name the sender they forward
    /// for.
    pub fn new(allowed: Option<Networks>, proxies: Option<Networks>) -> Self {
        Self {
            allowed,
            proxies: proxies.unwrap_or_default(),
        }
    }

    /// Whether a sender is allowed. An unknown sender is allowed only if anybody is.
    pub fn admit(&self, sender: Option<IpAddr>) -> bool {
        match &self.allowed {
            None => true,
            Some(allowed) => sender.is_some_and(|sender| allowed.contain(sender)),
        }
    }

    /// Who sent a request that came from `peer`: `peer` itself or, if that is a trusted proxy, the nearest hop that is
    /// not. `None` when a trusted proxy forwards for something that is not an address.
    pub fn sender(&self, peer: IpAddr, headers: &HeaderMap) -> Option<IpAddr> {
        let mut sender = peer.to_canonical();
        for hop in hops(headers) {
            if !self.proxies.contain(sender) {
                break;
            }
            sender = hop?;
        }
        Some(sender)
    }
}

/// The hops of `X-Forwarded-For`, nearest first; `None` for a hop that is not an address.
fn hops(headers: &HeaderMap) -> impl Iterator<Item = Option<IpAddr>> {
    headers.get_all(FORWARDED_FOR).iter().rev().flat_map(|line| {
        let line = line.to_str().unwrap_or("?");
        line.rsplit(',').map(|hop| address(hop.trim()))
    })
}

/// Parses an address, with or without a port.
fn address(text: &str) -> Option<IpAddr> {
    let bare = text
        .parse::<IpAddr>()
        .or_else(|_| text.parse::<SocketAddr>().map(|with_port| with_port.ip()));
    bare.map(|address| address.to_canonical()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn senders(allowed: &str, proxies: &str) -> Senders {
        let proxies = (!proxies.is_empty()).then(|| Networks::parse(proxies).unwrap());
        Senders::new(Some(Networks::parse_senders(allowed).unwrap()), proxies)
    }

    fn forwarded(lines: &[&str]) -> HeaderMap {
        lines
            .iter()
            .map(|line| (FORWARDED_FOR.parse().unwrap(), line.parse().unwrap()))
            .collect()
    }

    #[test]
    fn lists_are_addresses_and_networks() {
        let list = Networks::parse("10.1.2.3/8, 192.0.2.7,2001:db8::/32").unwrap();
        for inside in ["10.255.0.1", "192.0.2.7", "2001:db8::1"] {
            assert!(list.contain(ip(inside)), "{inside}");
        }
        for outside in ["11.0.0.1", "192.0.2.8", "2001:db9::1", "::ffff:10.0.0.1"] {
            assert!(!list.contain(ip(outside)), "{outside}");
        }
        for wrong in [
            "",
            " ",
            ",",
            "10.0.0.0/8,",
            "10.0.0.0/33",
            "example.com",
            "workos",
            "10.0.0",
        ] {
            assert_eq!(Networks::parse(wrong), Err(NotNetworks), "{wrong}");
        }
    }

    #[test]
    fn workos_stands_for_its_published_addresses() {
        let list = Networks::parse_senders("workos, 127.0.0.1").unwrap();
        assert_eq!(list.0.len(), 10);
        for inside in ["3.217.146.166", "174.129.36.47", "127.0.0.1"] {
            assert!(list.contain(ip(inside)), "{inside}");
        }
        assert!(!list.contain(ip("3.217.146.167")));
        assert_eq!(Networks::parse_senders("workos,"), Err(NotNetworks));
        assert_eq!(Networks::parse_senders("WorkOS!"), Err(NotNetworks));
    }

    #[test]
    fn without_a_list_anybody_is_let_in() {
        assert!(Senders::default().admit(Some(ip("192.0.2.1"))));
        assert!(Senders::default().admit(None));
    }

    #[test]
    fn a_mapped_address_is_the_address_it_maps() {
        let senders = senders("192.0.2.0/24", "");
        assert!(senders.admit(senders.sender(ip("::ffff:192.0.2.9"), &HeaderMap::new())));
    }

    #[test]
    fn only_trusted_proxies_are_believed() {
        let senders = senders("3.217.146.166", "10.0.0.0/8, 127.0.0.1");
        for (peer, lines, sender) in [
            // No proxy, or no trusted one: the header is ignored.
            ("3.217.146.166", &[][..], Some("3.217.146.166")),
            ("192.0.2.1", &["3.217.146.166"], Some("192.0.2.1")),
            // One proxy, two, or three over several header lines.
            ("10.0.0.1", &["3.217.146.166"], Some("3.217.146.166")),
            ("127.0.0.1", &["3.217.146.166, 10.0.0.1"], Some("3.217.146.166")),
            (
                "127.0.0.1",
                &["3.217.146.166", "10.0.0.2 , 10.0.0.1"],
                Some("3.217.146.166"),
            ),
            // A header that the client sent ends up to the left of what the proxy added.
            ("10.0.0.1", &["3.217.146.166, 192.0.2.1"], Some("192.0.2.1")),
            ("10.0.0.1", &["3.217.146.166", "192.0.2.1"], Some("192.0.2.1")),
            ("10.0.0.1", &["garbage, 192.0.2.1"], Some("192.0.2.1")),
            // Ports and mapped addresses, as some proxies write them.
            ("10.0.0.1", &["3.217.146.166:4711"], Some("3.217.146.166")),
            (
                "::ffff:10.0.0.1",
                &["[::ffff:3.217.146.166]:1"],
                Some("3.217.146.166"),
            ),
            // A proxy that names nobody sent the request itself. One that names something else than an address hides
            // the sender.
            ("10.0.0.1", &[], Some("10.0.0.1")),
            ("10.0.0.1", &["10.0.0.2"], Some("10.0.0.2")),
            ("10.0.0.1", &["3.217.146.166, unknown"], None),
            ("10.0.0.1", &[""], None),
        ] {
            let found = senders.sender(ip(peer), &forwarded(lines));
            assert_eq!(found, sender.map(ip), "{peer} for {lines:?}");
            assert_eq!(
                senders.admit(found),
                sender == Some("3.217.146.166"),
                "{peer} for {lines:?}"
            );
        }
    }
}
