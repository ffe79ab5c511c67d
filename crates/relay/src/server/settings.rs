//! What a relay is told by whoever runs it.

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

/// A relay's settings and limits.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The realm of its credentials, at most 127 bytes.
    pub realm: String,
    /// Lifetime of an allocation, and the least that is given (RFC 8656 §7.2).
    pub lifetime: Duration,
    /// The longest that a client may ask for.
    pub lifetime_max: Duration,
    /// Lifetime of a permission (RFC 8656 §9).
    pub permission_lasts: Duration,
    /// Lifetime of a channel (RFC 8656 §12).
    pub channel_lasts: Duration,
    /// How long a reserved port is kept (RFC 8656 §7.2).
    pub reservation_lasts: Duration,
    /// How long an allocation may take to be made.
    pub making_lasts: Duration,
    /// Allocations of one server; one more is refused as 508.
    pub allocations_max: usize,
    /// Permissions of one allocation; one more is refused as 508.
    pub permissions_max: usize,
    /// Channels of one allocation; one more is refused as 508.
    pub channels_max: usize,
    /// Packets of one allocation in a second, both ways together; 0 for no bound. More are dropped.
    pub packets_per_second: u32,
    /// Bytes of them.
    pub bytes_per_second: u64,
    /// Answers in a second to one address that has not proven who it is; 0 for no bound.
    pub refusals_per_source: u8,
}

impl Default for Settings {
    /// What the program's configuration starts from (`research/turn.md` §4.2).
    fn default() -> Settings {
        Settings {
            realm: "ganglion".to_owned(),
            lifetime: Duration::from_secs(600),
            lifetime_max: Duration::from_secs(3_600),
            permission_lasts: Duration::from_secs(300),
            channel_lasts: Duration::from_secs(600),
            reservation_lasts: Duration::from_secs(30),
            making_lasts: Duration::from_secs(10),
            allocations_max: 100_000,
            permissions_max: 64,
            channels_max: 32,
            packets_per_second: 10_000,
            bytes_per_second: 100_000_000 / 8,
            refusals_per_source: 100,
        }
    }
}

/// Where relayed addresses of one family are: what clients are told, and what else leads there.
#[derive(Clone, Debug)]
pub struct RelayedIp {
    /// In XOR-RELAYED-ADDRESS.
    pub advertised: IpAddr,
    /// What its sockets are bound to, when that is another.
    pub bound: Option<IpAddr>,
    /// Ports that may be allocated.
    pub ports: RangeInclusive<u16>,
}
