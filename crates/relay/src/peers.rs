//! Where a relay may send to.
//!
//! A relay stands inside the network of whoever runs it, so by default it sends to public addresses only.
//! An address is looked at by what it means, however it is spelled; and at each packet, not only when it is
//! named. What is this neuron's own is reached in the process or not at all: whoever holds the table of its
//! relayed addresses asks that one first.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use thiserror::Error;
use wire::network::Network;

/// Ports below this are refused unless it is said otherwise: names, mail, directories, shares.
pub const PORT_MIN: u16 = 1024;

/// Why a peer is refused.
#[derive(Clone, Copy, Debug, Eq, Error, Ord, PartialEq, PartialOrd)]
pub enum Denied {
    #[error("it is an address of this system, or a service behind it")]
    Own,
    #[error("it is of a special-purpose range, or spells an address of one")]
    Special,
    #[error("it is of a private network")]
    Private,
    #[error("a rule denies it")]
    Ruled,
    #[error("its port is below the least that is relayed to")]
    Port,
}

/// Which peers may be relayed to.
#[derive(Clone, Debug)]
pub struct Peers {
    /// This system's addresses, of which no port is relayed to.
    own: BTreeSet<IpAddr>,
    /// Services behind it, such as its store: an address without a port is all of it.
    services: BTreeMap<IpAddr, Option<BTreeSet<u16>>>,
    denied: Vec<Network>,
    /// What may be relayed to though it is private or special.
    allowed: Vec<Network>,
    port_min: u16,
}

impl Default for Peers {
    fn default() -> Peers {
        Peers {
            own: BTreeSet::new(),
            services: BTreeMap::new(),
            denied: Vec::new(),
            allowed: Vec::new(),
            port_min: PORT_MIN,
        }
    }
}

/// Special-purpose ranges (the IANA registries of RFC 6890), multicast, and what is reserved.
const SPECIAL_V4: [(Ipv4Addr, u32); 11] = [
    (Ipv4Addr::new(0, 0, 0, 0), 8),
    (Ipv4Addr::new(127, 0, 0, 0), 8),
    (Ipv4Addr::new(169, 254, 0, 0), 16),
    (Ipv4Addr::new(192, 0, 0, 0), 24),
    (Ipv4Addr::new(192, 0, 2, 0), 24),
    (Ipv4Addr::new(192, 88, 99, 0), 24),
    (Ipv4Addr::new(198, 18, 0, 0), 15),
    (Ipv4Addr::new(198, 51, 100, 0), 24),
    (Ipv4Addr::new(203, 0, 113, 0), 24),
    (Ipv4Addr::new(224, 0, 0, 0), 4),
    (Ipv4Addr::new(240, 0, 0, 0), 4),
];

/// Networks that many use inside, carriers too (RFC 1918, RFC 6598).
const PRIVATE_V4: [(Ipv4Addr, u32); 4] = [
    (Ipv4Addr::new(10, 0, 0, 0), 8),
    (Ipv4Addr::new(100, 64, 0, 0), 10),
    (Ipv4Addr::new(172, 16, 0, 0), 12),
    (Ipv4Addr::new(192, 168, 0, 0), 16),
];

/// As for IPv4. What is left out of 2000::/3 and of these is not assigned to anybody.
const SPECIAL_V6: [(Ipv6Addr, u32); 9] = [
    (Ipv6Addr::new(0x64, 0xFF9B, 1, 0, 0, 0, 0, 0), 48),
    (Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 0), 64),
    (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 23),
    (Ipv6Addr::new(0x2001, 0xDB8, 0, 0, 0, 0, 0, 0), 32),
    (Ipv6Addr::new(0x3FFF, 0, 0, 0, 0, 0, 0, 0), 20),
    (Ipv6Addr::new(0x5F00, 0, 0, 0, 0, 0, 0, 0), 16),
    (Ipv6Addr::new(0xFE80, 0, 0, 0, 0, 0, 0, 0), 10),
    (Ipv6Addr::new(0xFEC0, 0, 0, 0, 0, 0, 0, 0), 10),
    (Ipv6Addr::new(0xFF00, 0, 0, 0, 0, 0, 0, 0), 8),
];

const PRIVATE_V6: [(Ipv6Addr, u32); 1] = [(Ipv6Addr::new(0xFC00, 0, 0, 0, 0, 0, 0, 0), 7)];

/// Cloud metadata that is in no range above.
const METADATA: [IpAddr; 3] = [
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
    IpAddr::V6(Ipv6Addr::new(0xFD00, 0xEC2, 0, 0, 0, 0, 0, 0x254)),
];

impl Peers {
    /// Adds an address of this system. Of it nothing is relayed to, whatever is allowed.
    pub fn own(&mut self, address: IpAddr) -> &mut Self {
        self.own.insert(address.to_canonical());
        self
    }

    /// Adds a service behind this system: of its address the port, or without one all. The same holds.
    pub fn service(&mut self, address: IpAddr, port: Option<u16>) -> &mut Self {
        let ports =
            self.services.entry(address.to_canonical()).or_insert_with(|| Some(BTreeSet::new()));
        match (ports.as_mut(), port) {
            (Some(ports), Some(port)) => drop(ports.insert(port)),
            (Some(_), None) => *ports = None,
            (None, _) => {}
        }
        self
    }

    /// Denies a network, whatever is allowed.
    pub fn deny(&mut self, network: Network) -> &mut Self {
        self.denied.push(network);
        self
    }

    /// Allows a network of which some or all is private or special.
    pub fn allow(&mut self, network: Network) -> &mut Self {
        self.allowed.push(network);
        self
    }

    /// The least port that is relayed to, where nothing is allowed.
    pub fn port_min(&mut self, port: u16) -> &mut Self {
        self.port_min = port;
        self
    }

    /// Looks whether a peer may be relayed to.
    ///
    /// # Errors
    /// The first reason against it.
    pub fn look(&self, peer: SocketAddr) -> Result<(), Denied> {
        let (ip, port) = (peer.ip().to_canonical(), peer.port());
        // Whatever else an address spells has to be right too.
        for ip in std::iter::once(ip).chain(meant(ip).into_iter().flatten()) {
            self.look_at(ip, port)?;
        }
        // These spellings are no address that anybody has.
        let is_odd = matches!(peer.ip(), IpAddr::V6(ip) if spells_v4(ip));
        if is_odd { Err(Denied::Special) } else { Ok(()) }
    }

    fn look_at(&self, ip: IpAddr, port: u16) -> Result<(), Denied> {
        if self.own.contains(&ip) {
            return Err(Denied::Own);
        }
        let is_service = |ports: &Option<BTreeSet<u16>>| {
            ports.as_ref().is_none_or(|ports| ports.contains(&port))
        };
        if self.services.get(&ip).is_some_and(is_service) {
            return Err(Denied::Own);
        }
        let is_in = |networks: &[Network]| networks.iter().any(|network| network.contains(ip));
        if is_in(&self.denied) {
            return Err(Denied::Ruled);
        }
        if is_in(&self.allowed) {
            return if port == 0 { Err(Denied::Port) } else { Ok(()) };
        }
        if METADATA.contains(&ip) || is_special(ip) {
            return Err(Denied::Special);
        }
        if is_private(ip) {
            return Err(Denied::Private);
        }
        if port < self.port_min.max(1) { Err(Denied::Port) } else { Ok(()) }
    }
}

fn is_special(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => SPECIAL_V4.iter().any(|(base, ones)| is_within_v4(ip, *base, *ones)),
        IpAddr::V6(ip) => {
            let is_listed = SPECIAL_V6.iter().any(|(base, ones)| is_within_v6(ip, *base, *ones));
            // Only 2000::/3, 64:ff9b::/96 and fc00::/7 have addresses of single machines.
            let is_known = is_within_v6(ip, Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0), 3)
                || is_within_v6(ip, NAT64, 96)
                || is_private(IpAddr::V6(ip));
            is_listed || !is_known
        }
    }
}

fn is_private(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => PRIVATE_V4.iter().any(|(base, ones)| is_within_v4(ip, *base, *ones)),
        IpAddr::V6(ip) => PRIVATE_V6.iter().any(|(base, ones)| is_within_v6(ip, *base, *ones)),
    }
}

/// RFC 6052 §2.1.
const NAT64: Ipv6Addr = Ipv6Addr::new(0x64, 0xFF9B, 0, 0, 0, 0, 0, 0);

/// The IPv4 addresses that packets for an IPv6 address may end up at: by 6to4 (RFC 3056), by NAT64
/// (RFC 6052, and of local prefixes RFC 8215) and by ISATAP (RFC 5214). Those of Teredo (RFC 4380) are of a
/// special range.
fn meant(ip: IpAddr) -> [Option<IpAddr>; 4] {
    let IpAddr::V6(ip) = ip else { return [None; 4] };
    let (octets, segments) = (ip.octets(), ip.segments());
    let at = |places: [usize; 4]| IpAddr::from(places.map(|place| octets[place]));
    let is_6to4 = segments[0] == 0x2002;
    let is_nat64 = is_within_v6(ip, NAT64, 96);
    let is_local_nat64 = segments[..3] == [0x64, 0xFF9B, 1];
    // The universal and the group bit of the interface identifier may be set.
    let is_isatap = segments[5] == 0x5EFE && segments[4] & !0x0300 == 0;
    [
        is_6to4.then(|| at([2, 3, 4, 5])),
        is_nat64.then(|| at([12, 13, 14, 15])),
        is_local_nat64.then(|| at([6, 7, 9, 10])),
        is_isatap.then(|| at([12, 13, 14, 15])),
    ]
}

/// Whether an IPv6 address is one of the forms in which an IPv4 address is written and not sent to:
/// mapped and compatible (RFC 4291 §2.5.5), and translated (RFC 2765 §2.1).
fn spells_v4(ip: Ipv6Addr) -> bool {
    let head = &ip.segments()[..6];
    head == [0, 0, 0, 0, 0, 0xFFFF] || head == [0; 6] || head == [0, 0, 0, 0, 0xFFFF, 0]
}

fn is_within_v4(ip: Ipv4Addr, base: Ipv4Addr, ones: u32) -> bool {
    (u32::from(ip) ^ u32::from(base)).leading_zeros() >= ones
}

fn is_within_v6(ip: Ipv6Addr, base: Ipv6Addr, ones: u32) -> bool {
    (u128::from(ip) ^ u128::from(base)).leading_zeros() >= ones
}
