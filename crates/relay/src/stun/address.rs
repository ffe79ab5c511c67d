//! Transport addresses as attributes carry them, mixed with the cookie and the transaction
//! (RFC 8489 §14.2).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::attribute::Family;
use super::{MAGIC_COOKIE, TransactionId};

/// Bytes of the value for an IPv6 address, which is the longest.
pub(super) const VALUE_BYTES_MAX: usize = 20;

/// Writes an address to the front of `value` and gives the length used.
pub(super) fn write(
    address: SocketAddr,
    transaction: TransactionId,
    value: &mut [u8; VALUE_BYTES_MAX],
) -> usize {
    write_masked(address, mask(transaction), value)
}

/// The same, not mixed with anything.
pub(super) fn write_plain(address: SocketAddr, value: &mut [u8; VALUE_BYTES_MAX]) -> usize {
    write_masked(address, [0; 16], value)
}

fn write_masked(address: SocketAddr, mask: [u8; 16], value: &mut [u8; VALUE_BYTES_MAX]) -> usize {
    value[0] = 0;
    value[1] = Family::of(address.ip()).byte();
    value[2..4].copy_from_slice(&xored(address.port().to_be_bytes(), &mask));
    match address.ip() {
        IpAddr::V4(ip) => {
            value[4..8].copy_from_slice(&xored(ip.octets(), &mask));
            8
        }
        IpAddr::V6(ip) => {
            value[4..20].copy_from_slice(&xored(ip.octets(), &mask));
            20
        }
    }
}

/// Reads an address; `None` when it is none, or of a family that is not known.
pub(super) fn read(value: &[u8], transaction: TransactionId) -> Option<SocketAddr> {
    let mask = mask(transaction);
    let (head, ip) = value.split_first_chunk::<4>()?;
    let port = u16::from_be_bytes(xored([head[2], head[3]], &mask));
    let ip = match Family::read(head[1])? {
        Family::V4 => IpAddr::V4(Ipv4Addr::from(xored::<4>(ip.try_into().ok()?, &mask))),
        Family::V6 => IpAddr::V6(Ipv6Addr::from(xored::<16>(ip.try_into().ok()?, &mask))),
    };
    Some(SocketAddr::new(ip, port))
}

fn mask(transaction: TransactionId) -> [u8; 16] {
    let mut mask = [0; 16];
    mask[..4].copy_from_slice(&MAGIC_COOKIE);
    mask[4..].copy_from_slice(&transaction.0);
    mask
}

fn xored<const N: usize>(bytes: [u8; N], mask: &[u8; 16]) -> [u8; N] {
    std::array::from_fn(|at| bytes[at] ^ mask[at])
}
