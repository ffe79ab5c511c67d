//! Ranges of addresses, as rules and settings write them.

use std::net::{IpAddr, Ipv6Addr};

/// A range of addresses: one address, or a prefix in CIDR form.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Network {
    /// IPv4 as its IPv4-mapped IPv6 address, so that both spellings of one address are one.
    base: u128,
    mask: u128,
}

impl Network {
    /// Reads `192.0.2.1`, `192.0.2.0/24`, `2001:db8::/32`.
    pub fn parse(text: &str) -> Option<Network> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix.parse::<u32>().ok()?)),
            None => (text, None),
        };
        let address: IpAddr = address.trim().parse().ok()?;
        let bits = if address.is_ipv4() { 32 } else { 128 };
        let prefix = prefix.unwrap_or(bits);
        if prefix > bits {
            return None;
        }
        let ones = prefix + (128 - bits);
        let mask = if ones == 0 { 0 } else { u128::MAX << (128 - ones) };
        Some(Network { base: widen(address) & mask, mask })
    }

    /// The one spelling of it, as the key of a rule: all others are the same rule.
    pub fn to_key(self) -> String {
        let base = Ipv6Addr::from(self.base);
        let ones = self.mask.count_ones();
        let (address, ones, bits) = match base.to_ipv4_mapped() {
            Some(base) if ones >= 96 => (IpAddr::V4(base), ones - 96, 32),
            _ => (IpAddr::V6(base), ones, 128),
        };
        if ones == bits { address.to_string() } else { format!("{address}/{ones}") }
    }

    pub fn contains(self, address: IpAddr) -> bool {
        widen(address) & self.mask == self.base
    }
}

fn widen(address: IpAddr) -> u128 {
    let address: Ipv6Addr = match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    };
    u128::from(address)
}
