//! Writing a message into a buffer.

use std::net::SocketAddr;

use super::attribute::{ErrorCode, Family, Kind};
use super::integrity::{self, Hash, Key};
use super::message::{Class, Method, TransactionId};
use super::{HEADER_BYTES, MAGIC_COOKIE, address};

/// Appends one message to a buffer, attribute by attribute; the header's length is right after each.
///
/// Attributes are written in the order of the calls; an integrity comes after what it covers, the
/// fingerprint last.
#[derive(Debug)]
pub struct Writer<'a> {
    buffer: &'a mut Vec<u8>,
    /// Where in the buffer the message begins.
    start: usize,
    transaction: TransactionId,
}

/// Longest of what stands before the data of an indication: with an IPv6 address.
pub(crate) const INDICATION_HEAD_BYTES_MAX: usize = HEADER_BYTES + 4 + address::VALUE_BYTES_MAX + 4;

/// What stands before the data of a Data indication (RFC 8656 §11.4), and how long it is: their padding comes
/// behind them.
///
/// # Panics
/// If the message would be longer than 64 KiB.
pub(crate) fn data_indication_head(
    transaction: TransactionId,
    peer: SocketAddr,
    data_bytes: usize,
) -> ([u8; INDICATION_HEAD_BYTES_MAX], usize) {
    let mut head = [0; INDICATION_HEAD_BYTES_MAX];
    let mut value = [0; address::VALUE_BYTES_MAX];
    let value_bytes = address::write(peer, transaction, &mut value);
    head[HEADER_BYTES + 4..][..value_bytes].copy_from_slice(&value[..value_bytes]);
    let end = HEADER_BYTES + 4 + value_bytes;
    let length = 4 + value_bytes + 4 + data_bytes.next_multiple_of(4);
    let length = u16::try_from(length).expect("a message is shorter than 64 KiB");
    let data_bytes = u16::try_from(data_bytes).expect("and so are its data");
    head[..2].copy_from_slice(&kind(Class::Indication, Method::Data).to_be_bytes());
    head[2..4].copy_from_slice(&length.to_be_bytes());
    head[4..8].copy_from_slice(&MAGIC_COOKIE);
    head[8..HEADER_BYTES].copy_from_slice(&transaction.0);
    head[HEADER_BYTES..][..2].copy_from_slice(&Kind::XOR_PEER_ADDRESS.0.to_be_bytes());
    head[HEADER_BYTES + 2..][..2].copy_from_slice(&(value_bytes as u16).to_be_bytes());
    head[end..][..2].copy_from_slice(&Kind::DATA.0.to_be_bytes());
    head[end + 2..][..2].copy_from_slice(&data_bytes.to_be_bytes());
    (head, end + 4)
}

/// The first two bytes of a message (RFC 8489 §5).
fn kind(class: Class, method: Method) -> u16 {
    let class = match class {
        Class::Request => 0x0000,
        Class::Indication => 0x0010,
        Class::Success => 0x0100,
        Class::Error => 0x0110,
    };
    let method = method as u16;
    class | method & 0x000F | (method & 0x0070) << 1 | (method & 0x0F80) << 2
}

impl<'a> Writer<'a> {
    pub fn new(
        buffer: &'a mut Vec<u8>,
        class: Class,
        method: Method,
        transaction: TransactionId,
    ) -> Writer<'a> {
        let start = buffer.len();
        buffer.extend_from_slice(&kind(class, method).to_be_bytes());
        buffer.extend_from_slice(&[0, 0]);
        buffer.extend_from_slice(&MAGIC_COOKIE);
        buffer.extend_from_slice(&transaction.0);
        Writer { buffer, start, transaction }
    }

    /// # Panics
    /// If the message grows beyond 64 KiB, which no datagram can carry: values are bounded by the caller.
    pub fn attribute(&mut self, kind: Kind, value: &[u8]) -> &mut Self {
        let length = u16::try_from(value.len()).expect("an attribute is shorter than 64 KiB");
        self.buffer.extend_from_slice(&kind.0.to_be_bytes());
        self.buffer.extend_from_slice(&length.to_be_bytes());
        self.buffer.extend_from_slice(value);
        let padded = self.written().next_multiple_of(4);
        self.buffer.resize(self.start + padded, 0);
        let length =
            u16::try_from(padded - HEADER_BYTES).expect("a message is shorter than 64 KiB");
        self.buffer[self.start + 2..self.start + 4].copy_from_slice(&length.to_be_bytes());
        self
    }

    pub fn number(&mut self, kind: Kind, value: u32) -> &mut Self {
        self.attribute(kind, &value.to_be_bytes())
    }

    /// An address, mixed with the transaction (RFC 8489 §14.2).
    pub fn address(&mut self, kind: Kind, address: SocketAddr) -> &mut Self {
        let mut value = [0; address::VALUE_BYTES_MAX];
        let length = address::write(address, self.transaction, &mut value);
        self.attribute(kind, &value[..length])
    }

    pub fn error(&mut self, code: ErrorCode) -> &mut Self {
        let reason = code.reason().as_bytes();
        let mut value = [0; 64];
        let [class, number] = [code.number() / 100, code.number() % 100];
        (value[2], value[3]) = (class as u8, number as u8);
        value[4..4 + reason.len()].copy_from_slice(reason);
        self.attribute(Kind::ERROR_CODE, &value[..4 + reason.len()])
    }

    /// An address as it is (RFC 8489 §14.15).
    pub fn plain_address(&mut self, kind: Kind, address: SocketAddr) -> &mut Self {
        let mut value = [0; address::VALUE_BYTES_MAX];
        let length = address::write_plain(address, &mut value);
        self.attribute(kind, &value[..length])
    }

    /// ADDRESS-ERROR-CODE (RFC 8656 §18.12): why there is no address of a family.
    pub fn address_error(&mut self, family: Family, code: ErrorCode) -> &mut Self {
        let [class, number] = [code.number() / 100, code.number() % 100];
        let mut value = vec![family.byte(), 0, class as u8, number as u8];
        value.extend_from_slice(code.reason().as_bytes());
        self.attribute(Kind::ADDRESS_ERROR_CODE, &value)
    }

    /// UNKNOWN-ATTRIBUTES (RFC 8489 §14.9).
    pub fn unknown(&mut self, kinds: &[u16]) -> &mut Self {
        let value: Vec<u8> = kinds.iter().flat_map(|kind| kind.to_be_bytes()).collect();
        self.attribute(Kind::UNKNOWN_ATTRIBUTES, &value)
    }

    /// Signs all that was written.
    pub fn integrity(&mut self, key: &Key, hash: Hash) -> &mut Self {
        let message = &self.buffer[self.start..];
        let mac = integrity::mac(key, hash, message, message.len());
        self.attribute(hash.kind(), mac.as_ref())
    }

    pub fn fingerprint(&mut self) -> &mut Self {
        let message = &self.buffer[self.start..];
        let value = integrity::fingerprint(message, message.len());
        self.attribute(Kind::FINGERPRINT, &value)
    }

    fn written(&self) -> usize {
        self.buffer.len() - self.start
    }
}
