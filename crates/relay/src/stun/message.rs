//! Reading a message: its head, and its attributes in one pass.

use std::net::SocketAddr;

use thiserror::Error;

use super::attribute::{Family, Kind};
use super::integrity::{self, Hash, Key, PasswordAlgorithm};
use super::{HEADER_BYTES, MAGIC_COOKIE, address};

/// Unknown attributes that are remembered of one message, to be listed in a 420.
const UNKNOWN_MAX: usize = 8;

/// What a message is of (RFC 8489 §5).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Class {
    Request,
    Indication,
    Success,
    Error,
}

/// What a message is about (RFC 8489 §18.2, RFC 8656 §17, RFC 6062 §6.1). Any other number is none.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Method {
    Binding = 0x001,
    Allocate = 0x003,
    Refresh = 0x004,
    Send = 0x006,
    Data = 0x007,
    CreatePermission = 0x008,
    ChannelBind = 0x009,
    Connect = 0x00A,
    ConnectionBind = 0x00B,
    ConnectionAttempt = 0x00C,
}

impl Method {
    pub const ALL: [Method; 10] = [
        Method::Binding,
        Method::Allocate,
        Method::Refresh,
        Method::Send,
        Method::Data,
        Method::CreatePermission,
        Method::ChannelBind,
        Method::Connect,
        Method::ConnectionBind,
        Method::ConnectionAttempt,
    ];
}

/// Ties a response to its request.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct TransactionId(pub [u8; 12]);

/// Why bytes are not a message.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum Malformed {
    #[error("shorter than a header")]
    Short,
    #[error("the first two bits or the magic cookie are not those of STUN")]
    NotStun,
    #[error("the length in the header is not that of what follows it")]
    Length,
    #[error("an attribute is longer than what is left of the message")]
    Attribute,
    #[error("the fingerprint is wrong, or not at the end")]
    Fingerprint,
}

/// A message whose head, length and fingerprint (if it has one) are right.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    bytes: &'a [u8],
    class: Class,
    /// The method's number, which may be one of no [`Method`].
    method: u16,
    attributes: Attributes<'a>,
}

/// Attributes that a receiver does not know and must (RFC 8489 §6.3.1), at most eight.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Unknown {
    kinds: [u16; UNKNOWN_MAX],
    count: usize,
}

/// Where the integrity attribute of a message is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Integrity<'a> {
    /// Bytes of the message before it.
    before: usize,
    mac: &'a [u8],
}

/// The attributes that a relay knows. Of several of one kind the first counts (RFC 8489 §14); what comes
/// after an integrity attribute does not (§14.5, §14.6), but for a stronger one and the fingerprint.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct Attributes<'a> {
    pub username: Option<&'a [u8]>,
    pub userhash: Option<&'a [u8; 32]>,
    pub realm: Option<&'a [u8]>,
    pub nonce: Option<&'a [u8]>,
    pub password_algorithm: Option<&'a [u8]>,
    pub password_algorithms: Option<&'a [u8]>,
    pub channel_number: Option<&'a [u8]>,
    pub lifetime: Option<&'a [u8]>,
    /// The first of them; [`Message::peers`] gives all.
    pub peer: Option<&'a [u8]>,
    pub data: Option<&'a [u8]>,
    pub requested_family: Option<&'a [u8]>,
    pub additional_family: Option<&'a [u8]>,
    pub even_port: Option<&'a [u8]>,
    pub requested_transport: Option<&'a [u8]>,
    pub dont_fragment: bool,
    pub reservation_token: Option<&'a [u8]>,
    pub mobility_ticket: Option<&'a [u8]>,
    pub connection_id: Option<&'a [u8]>,
    pub change_request: Option<&'a [u8]>,
    pub mapped: Option<&'a [u8]>,
    pub relayed: Option<&'a [u8]>,
    pub alternate_server: Option<&'a [u8]>,
    pub error_code: Option<&'a [u8]>,
    pub unknown: Unknown,
    /// Whether it has a fingerprint, which is right.
    pub has_fingerprint: bool,
    sha1: Option<Integrity<'a>>,
    sha256: Option<Integrity<'a>>,
}

impl<'a> Message<'a> {
    /// Reads one whole message: what a datagram holds, or a frame of a stream.
    ///
    /// # Errors
    /// [`Malformed`]: to be dropped without an answer.
    pub fn read(bytes: &'a [u8]) -> Result<Message<'a>, Malformed> {
        let Some(head) = bytes.first_chunk::<HEADER_BYTES>() else {
            return Err(Malformed::Short);
        };
        if head[0] & 0xC0 != 0 || head[4..8] != MAGIC_COOKIE {
            return Err(Malformed::NotStun);
        }
        let length = usize::from(u16::from_be_bytes([head[2], head[3]]));
        if !length.is_multiple_of(4) || bytes.len() != HEADER_BYTES + length {
            return Err(Malformed::Length);
        }
        let kind = u16::from_be_bytes([head[0], head[1]]);
        let class = match kind & 0x0110 {
            0x0000 => Class::Request,
            0x0010 => Class::Indication,
            0x0100 => Class::Success,
            _ => Class::Error,
        };
        let method = kind & 0x000F | (kind & 0x00E0) >> 1 | (kind & 0x3E00) >> 2;
        let attributes = Attributes::read(bytes)?;
        Ok(Message { bytes, class, method, attributes })
    }

    /// How long it is.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    pub fn class(&self) -> Class {
        self.class
    }

    /// `None` for a method that is not known here.
    pub fn method(&self) -> Option<Method> {
        Method::ALL.into_iter().find(|method| *method as u16 == self.method)
    }

    pub fn transaction(&self) -> TransactionId {
        let mut id = [0; 12];
        id.copy_from_slice(&self.bytes[8..HEADER_BYTES]);
        TransactionId(id)
    }

    pub fn attributes(&self) -> &Attributes<'a> {
        &self.attributes
    }

    /// Every attribute that counts, in order, with its value; integrity and fingerprint too.
    pub fn all(&self) -> impl Iterator<Item = (Kind, &'a [u8])> + use<'a> {
        Walk::new(self.bytes).map_while(Result::ok).map(|found| (found.kind, found.value))
    }

    /// The peers of a request, in order; `None` for one that cannot be read.
    pub fn peers(&self) -> impl Iterator<Item = Option<SocketAddr>> + use<'a> {
        let transaction = self.transaction();
        self.all()
            .take_while(|(kind, _)| !is_integrity(*kind))
            .filter(|(kind, _)| *kind == Kind::XOR_PEER_ADDRESS)
            .map(move |(_, value)| address::read(value, transaction))
    }

    /// An address that is mixed with the transaction, of an attribute's value.
    pub fn address(&self, value: &[u8]) -> Option<SocketAddr> {
        address::read(value, self.transaction())
    }

    /// The strongest integrity attribute that it has.
    pub fn integrity(&self) -> Option<Hash> {
        match (self.attributes.sha256, self.attributes.sha1) {
            (Some(_), _) => Some(Hash::Sha256),
            (None, Some(_)) => Some(Hash::Sha1),
            (None, None) => None,
        }
    }

    /// Whether its strongest integrity attribute is one of this key. In constant time.
    pub fn is_of(&self, key: &Key) -> bool {
        let (hash, integrity) = match (self.attributes.sha256, self.attributes.sha1) {
            (Some(integrity), _) => (Hash::Sha256, integrity),
            (None, Some(integrity)) => (Hash::Sha1, integrity),
            (None, None) => return false,
        };
        integrity::verify(key, hash, self.bytes, integrity.before, integrity.mac)
    }

    /// The error code of an error response.
    pub fn error(&self) -> Option<u16> {
        let value = self.attributes.error_code?;
        let (class, number) = (*value.get(2)? & 7, *value.get(3)?);
        Some(u16::from(class) * 100 + u16::from(number))
    }
}

impl<'a> Attributes<'a> {
    fn read(bytes: &'a [u8]) -> Result<Attributes<'a>, Malformed> {
        let mut these = Attributes::default();
        let mut counts = true;
        for found in Walk::new(bytes) {
            let Found { kind, value, before } = found?;
            if kind == Kind::FINGERPRINT {
                let is_last = before + 8 == bytes.len();
                if !is_last || value != integrity::fingerprint(bytes, before) {
                    return Err(Malformed::Fingerprint);
                }
                these.has_fingerprint = true;
            } else if kind == Kind::MESSAGE_INTEGRITY_SHA256 {
                these.sha256.get_or_insert(Integrity { before, mac: value });
                counts = false;
            } else if kind == Kind::MESSAGE_INTEGRITY && these.sha256.is_none() {
                these.sha1.get_or_insert(Integrity { before, mac: value });
                counts = false;
            } else if counts {
                these.take(kind, value);
            }
        }
        Ok(these)
    }

    fn take(&mut self, kind: Kind, value: &'a [u8]) {
        let place = match kind {
            Kind::USERNAME => &mut self.username,
            Kind::REALM => &mut self.realm,
            Kind::NONCE => &mut self.nonce,
            Kind::PASSWORD_ALGORITHM => &mut self.password_algorithm,
            Kind::PASSWORD_ALGORITHMS => &mut self.password_algorithms,
            Kind::CHANNEL_NUMBER => &mut self.channel_number,
            Kind::LIFETIME => &mut self.lifetime,
            Kind::XOR_PEER_ADDRESS => &mut self.peer,
            Kind::DATA => &mut self.data,
            Kind::REQUESTED_ADDRESS_FAMILY => &mut self.requested_family,
            Kind::ADDITIONAL_ADDRESS_FAMILY => &mut self.additional_family,
            Kind::EVEN_PORT => &mut self.even_port,
            Kind::REQUESTED_TRANSPORT => &mut self.requested_transport,
            Kind::RESERVATION_TOKEN => &mut self.reservation_token,
            Kind::MOBILITY_TICKET => &mut self.mobility_ticket,
            Kind::CONNECTION_ID => &mut self.connection_id,
            Kind::CHANGE_REQUEST => &mut self.change_request,
            Kind::XOR_MAPPED_ADDRESS => &mut self.mapped,
            Kind::XOR_RELAYED_ADDRESS => &mut self.relayed,
            Kind::ALTERNATE_SERVER => &mut self.alternate_server,
            Kind::ERROR_CODE => &mut self.error_code,
            Kind::DONT_FRAGMENT => return self.dont_fragment = true,
            Kind::USERHASH => {
                // One of another length is as good as one of nobody.
                let hash = value.try_into().unwrap_or(&[0; 32]);
                self.userhash.get_or_insert(hash);
                return;
            }
            kind if kind.must_be_understood() => return self.unknown.push(kind),
            _ => return,
        };
        place.get_or_insert(value);
    }

    /// The family that an attribute of one asks for; `None` for one that is not known.
    pub fn family(value: &[u8]) -> Option<Family> {
        Family::read(*value.first()?)
    }

    /// The algorithm that a request says its key was made with (RFC 8489 §14.12); `None` when it is none
    /// that is known.
    pub fn algorithm(value: &[u8]) -> Option<PasswordAlgorithm> {
        let (number, rest) = value.split_first_chunk::<2>()?;
        let parameters = u16::from_be_bytes(*rest.first_chunk::<2>()?);
        let known = PasswordAlgorithm::read(u16::from_be_bytes(*number));
        known.filter(|_| parameters == 0)
    }
}

impl Unknown {
    pub(crate) fn push(&mut self, kind: Kind) {
        if self.count < UNKNOWN_MAX {
            self.kinds[self.count] = kind.0;
            self.count += 1;
        }
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub fn as_slice(&self) -> &[u16] {
        &self.kinds[..self.count]
    }
}

fn is_integrity(kind: Kind) -> bool {
    kind == Kind::MESSAGE_INTEGRITY || kind == Kind::MESSAGE_INTEGRITY_SHA256
}

/// One attribute, and how many bytes of the message come before it.
struct Found<'a> {
    kind: Kind,
    value: &'a [u8],
    before: usize,
}

/// Goes over the attributes of a message, whose length is a multiple of four.
struct Walk<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Walk<'a> {
    fn new(bytes: &'a [u8]) -> Walk<'a> {
        Walk { bytes, at: HEADER_BYTES }
    }
}

impl<'a> Iterator for Walk<'a> {
    type Item = Result<Found<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        let before = self.at;
        let (head, rest) = self.bytes.get(before..)?.split_first_chunk::<4>()?;
        let length = usize::from(u16::from_be_bytes([head[2], head[3]]));
        let Some(value) = rest.get(..length) else {
            self.at = self.bytes.len();
            return Some(Err(Malformed::Attribute));
        };
        self.at = before + 4 + length.next_multiple_of(4);
        let kind = Kind(u16::from_be_bytes([head[0], head[1]]));
        Some(Ok(Found { kind, value, before }))
    }
}
