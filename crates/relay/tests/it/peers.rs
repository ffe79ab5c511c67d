//! Forbidden peers, in every spelling that somebody may think of, and the allowed beside them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use proptest::prelude::*;
use relay::peers::{Denied, Peers};
use wire::network::Network;

/// The address of a peer on a port that anybody may have.
fn peer(ip: &str) -> SocketAddr {
    SocketAddr::new(ip.parse().expect("an address"), 40_000)
}

fn network(text: &str) -> Network {
    Network::parse(text).expect("a network")
}

/// Addresses that nobody relays to, and why.
const FORBIDDEN: &[(&str, Denied)] = &[
    // Nowhere and here.
    ("0.0.0.0", Denied::Special),
    ("0.0.0.1", Denied::Special),
    ("0.255.255.255", Denied::Special),
    ("127.0.0.1", Denied::Special),
    ("127.0.0.53", Denied::Special),
    ("127.255.255.255", Denied::Special),
    ("::", Denied::Special),
    ("::1", Denied::Special),
    ("::2", Denied::Special),
    // Links and what clouds tell of themselves.
    ("169.254.169.254", Denied::Special),
    ("169.254.170.2", Denied::Special),
    ("169.254.0.1", Denied::Special),
    ("100.100.100.200", Denied::Special),
    ("168.63.129.16", Denied::Special),
    ("192.0.0.192", Denied::Special),
    ("fd00:ec2::254", Denied::Special),
    ("fe80::1", Denied::Special),
    ("fe80::a9fe:a9fe", Denied::Special),
    ("febf:ffff::1", Denied::Special),
    ("fec0::1", Denied::Special),
    // Inside.
    ("10.0.0.1", Denied::Private),
    ("10.255.255.255", Denied::Private),
    ("172.16.0.1", Denied::Private),
    ("172.31.255.255", Denied::Private),
    ("192.168.0.1", Denied::Private),
    ("192.168.255.255", Denied::Private),
    ("100.64.0.1", Denied::Private),
    ("100.127.255.255", Denied::Private),
    ("fc00::1", Denied::Private),
    ("fd12:3456:789a::1", Denied::Private),
    // Many at once.
    ("224.0.0.1", Denied::Special),
    ("239.255.255.250", Denied::Special),
    ("255.255.255.255", Denied::Special),
    ("ff02::1", Denied::Special),
    ("ff05::2", Denied::Special),
    // Documents, benchmarks, tunnels, what is kept for later.
    ("192.0.0.8", Denied::Special),
    ("192.0.2.1", Denied::Special),
    ("192.88.99.1", Denied::Special),
    ("198.18.0.1", Denied::Special),
    ("198.19.255.255", Denied::Special),
    ("198.51.100.1", Denied::Special),
    ("203.0.113.1", Denied::Special),
    ("240.0.0.1", Denied::Special),
    ("100::1", Denied::Special),
    ("2001::1", Denied::Special),
    ("2001:2::1", Denied::Special),
    ("2001:20::1", Denied::Special),
    ("2001:1ff:ffff::1", Denied::Special),
    ("2001:db8::1", Denied::Special),
    ("3fff::1", Denied::Special),
    ("5f00::1", Denied::Special),
    ("4000::1", Denied::Special),
    ("8000::1", Denied::Special),
    // IPv4 in IPv6: mapped, compatible, translated, of whatever address.
    ("::ffff:127.0.0.1", Denied::Special),
    ("::ffff:7f00:1", Denied::Special),
    ("0:0:0:0:0:ffff:7f00:0001", Denied::Special),
    ("::ffff:0.0.0.0", Denied::Special),
    ("::ffff:10.1.2.3", Denied::Private),
    ("::ffff:169.254.169.254", Denied::Special),
    ("::ffff:192.168.1.1", Denied::Private),
    ("::ffff:8.8.8.8", Denied::Special),
    ("::127.0.0.1", Denied::Special),
    ("::10.0.0.1", Denied::Special),
    ("::8.8.8.8", Denied::Special),
    ("::ffff:0:127.0.0.1", Denied::Special),
    ("::ffff:0:8.8.8.8", Denied::Special),
    // By tunnels and translators.
    ("2002:7f00:1::1", Denied::Special),
    ("2002:a00:1::", Denied::Private),
    ("2002:a9fe:a9fe::1", Denied::Special),
    ("2002:c0a8:101::1", Denied::Private),
    ("2002:0:1::", Denied::Special),
    ("64:ff9b::127.0.0.1", Denied::Special),
    ("64:ff9b::a00:1", Denied::Private),
    ("64:ff9b::a9fe:a9fe", Denied::Special),
    ("64:ff9b::0.0.0.0", Denied::Special),
    ("64:ff9b:1::1", Denied::Special),
    ("64:ff9b:1:7f00:0:100::", Denied::Special),
    ("64:ff9b:1:808:8:800::", Denied::Special),
    ("2001:0:808:808::1", Denied::Special),
    ("2606:4700::5efe:10.0.0.1", Denied::Private),
    ("2606:4700::200:5efe:127.0.0.1", Denied::Special),
    ("2606:4700::300:5efe:192.168.0.1", Denied::Private),
];

const PUBLIC: &[&str] = &[
    "8.8.8.8",
    "1.1.1.1",
    "9.255.255.255",
    "11.0.0.0",
    "100.63.255.255",
    "100.128.0.0",
    "126.255.255.255",
    "128.0.0.1",
    "169.253.255.255",
    "169.255.0.0",
    "172.15.255.255",
    "172.32.0.0",
    "192.0.1.0",
    "192.0.3.0",
    "192.167.255.255",
    "192.169.0.0",
    "198.17.255.255",
    "198.20.0.0",
    "223.255.255.255",
    "2001:200::1",
    "2001:4860:4860::8888",
    "2606:4700:4700::1111",
    "2a00:1450::1",
    "2002:808:808::1",
    "64:ff9b::8.8.8.8",
    "2606:4700::5efe:8.8.8.8",
];

#[test]
fn forbidden_peers_are_refused_however_they_are_spelled() {
    assert!(FORBIDDEN.len() >= 60);
    let peers = Peers::default();
    for (ip, why) in FORBIDDEN {
        assert_eq!(peers.look(peer(ip)), Err(*why), "{ip}");
    }
    for ip in PUBLIC {
        assert_eq!(peers.look(peer(ip)), Ok(()), "{ip}");
    }
}

#[test]
fn ports_of_the_systems_services_are_refused() {
    let mut peers = Peers::default();
    let at = |port| SocketAddr::new([8, 8, 8, 8].into(), port);
    for port in [0, 1, 22, 53, 1023] {
        assert_eq!(peers.look(at(port)), Err(Denied::Port), "{port}");
    }
    for port in [1024, 3478, 65_535] {
        assert_eq!(peers.look(at(port)), Ok(()), "{port}");
    }
    peers.port_min(0);
    assert_eq!(peers.look(at(53)), Ok(()));
    assert_eq!(peers.look(at(0)), Err(Denied::Port), "nobody has that");
}

#[test]
fn what_is_allowed_is_that_network_and_nothing_else() {
    let mut peers = Peers::default();
    peers.allow(network("10.1.0.0/16")).allow(network("127.0.0.2")).allow(network("fd00::/16"));
    for ip in ["10.1.2.3", "127.0.0.2", "fd00::1"] {
        assert_eq!(peers.look(peer(ip)), Ok(()), "{ip}");
    }
    for ip in ["10.2.0.1", "127.0.0.1", "127.0.0.3", "fd01::1", "::1"] {
        assert!(peers.look(peer(ip)).is_err(), "{ip}");
    }
    // In no other spelling either: nobody has these addresses.
    for ip in ["::ffff:10.1.2.3", "::10.1.2.3", "::ffff:127.0.0.2", "::ffff:0:10.1.2.3"] {
        assert_eq!(peers.look(peer(ip)), Err(Denied::Special), "{ip}");
    }
    // A service of the network may have a low port.
    assert_eq!(peers.look("10.1.2.3:443".parse().expect("an address")), Ok(()));
    // What denies comes first.
    peers.deny(network("10.1.9.0/24")).deny(network("8.8.8.0/24"));
    for ip in ["10.1.9.1", "8.8.8.8", "64:ff9b::8.8.8.8", "2002:808:808::1"] {
        assert_eq!(peers.look(peer(ip)), Err(Denied::Ruled), "{ip}");
    }
}

#[test]
fn nothing_of_the_systems_own_is_relayed_to_whatever_is_allowed() {
    let mut peers = Peers::default();
    peers
        .allow(network("0.0.0.0/0"))
        .allow(network("::/0"))
        .own("1.2.3.4".parse().expect("an address"))
        .own("::ffff:1.2.3.5".parse().expect("an address"))
        .own("2606:4700::9".parse().expect("an address"))
        .service("10.0.0.7".parse().expect("an address"), Some(5984))
        .service("10.0.0.7".parse().expect("an address"), Some(9092))
        .service("10.0.0.8".parse().expect("an address"), Some(1))
        .service("10.0.0.8".parse().expect("an address"), None);
    for own in
        ["1.2.3.4", "1.2.3.5", "2606:4700::9", "2002:102:304::1", "64:ff9b::1.2.3.4", "10.0.0.8"]
    {
        assert_eq!(peers.look(peer(own)), Err(Denied::Own), "{own}");
    }
    for mapped in ["::ffff:1.2.3.4", "::ffff:10.0.0.8"] {
        assert_eq!(peers.look(peer(mapped)), Err(Denied::Own), "{mapped}");
    }
    let at = |port| SocketAddr::new([10, 0, 0, 7].into(), port);
    assert_eq!([5984, 9092].map(|port| peers.look(at(port))), [Err(Denied::Own); 2]);
    assert_eq!(peers.look(at(5985)), Ok(()));
}

proptest! {
    /// Whatever way an IPv4 address takes into an IPv6 one, what is forbidden stays so.
    #[test]
    fn no_spelling_opens_what_is_forbidden(ip in any::<u32>(), rest in any::<[u16; 4]>(), port in 1024..=u16::MAX) {
        let peers = Peers::default();
        let v4 = Ipv4Addr::from(ip);
        let plain = peers.look(SocketAddr::new(v4.into(), port));
        let [a, b, c, d] = v4.octets().map(u16::from);
        let (high, low) = (a << 8 | b, c << 8 | d);
        let [r, s, t, u] = rest;
        for v6 in [
            Ipv6Addr::new(0x2002, high, low, r, s, t, u, r),
            Ipv6Addr::new(0x64, 0xFF9B, 0, 0, 0, 0, high, low),
            Ipv6Addr::new(0x2606, 0x4700, r, s, 0, 0x5EFE, high, low),
            Ipv6Addr::new(0x2606, 0x4700, r, s, 0x0200, 0x5EFE, high, low),
        ] {
            let found = peers.look(SocketAddr::new(IpAddr::V6(v6), port));
            prop_assert!(plain.is_ok() || found.is_err(), "{v4} as {v6}");
        }
        for v6 in [
            v4.to_ipv6_mapped(),
            Ipv6Addr::new(0, 0, 0, 0, 0, 0, high, low),
            Ipv6Addr::new(0, 0, 0, 0, 0xFFFF, 0, high, low),
            Ipv6Addr::new(0x64, 0xFF9B, 1, high, c, d << 8, 0, 0),
        ] {
            prop_assert!(peers.look(SocketAddr::new(IpAddr::V6(v6), port)).is_err(), "{v4} as {v6}");
        }
    }

    /// IPv6 addresses of which nobody is told by a registry.
    #[test]
    fn only_what_is_assigned_is_relayed_to(ip in any::<u128>()) {
        let ip = Ipv6Addr::from(ip);
        let is_global = ip.segments()[0] >> 13 == 1;
        let found = Peers::default().look(SocketAddr::new(IpAddr::V6(ip), 40_000));
        prop_assert!(is_global || found.is_err() || ip.segments()[..6] == [0x64, 0xFF9B, 0, 0, 0, 0]);
    }
}
