//! Keys, message integrity and fingerprints (RFC 8489 §9.2.2, §14.5–§14.7, §18.5).

use aws_lc_rs::{digest, hmac};
use md5::Digest as _;

use super::{HEADER_BYTES, Kind};

/// What the CRC of a fingerprint is mixed with (RFC 8489 §14.7).
const FINGERPRINT_MASK: u32 = 0x5354_554E;
/// Shortest SHA-256 integrity that may be accepted (RFC 8489 §14.6).
const SHA256_BYTES_MIN: usize = 16;

/// The hash of an integrity attribute.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Hash {
    /// MESSAGE-INTEGRITY.
    Sha1,
    /// MESSAGE-INTEGRITY-SHA256.
    Sha256,
}

/// How a long-term key is made of name, realm and password (RFC 8489 §18.5).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum PasswordAlgorithm {
    Md5 = 1,
    Sha256 = 2,
}

/// The value of PASSWORD-ALGORITHMS that a server sends: SHA-256 before MD5, neither with parameters.
pub const PASSWORD_ALGORITHMS: [u8; 8] = [0, 2, 0, 0, 0, 1, 0, 0];

impl PasswordAlgorithm {
    pub(super) fn read(number: u16) -> Option<PasswordAlgorithm> {
        match number {
            1 => Some(PasswordAlgorithm::Md5),
            2 => Some(PasswordAlgorithm::Sha256),
            _ => None,
        }
    }
}

/// A key for either integrity attribute. It is its bytes, and made ready for each use: an allocation that
/// rests holds no more of it.
#[derive(Clone)]
pub struct Key(Box<[u8]>);

impl Key {
    /// A long-term credential's key. The three texts are taken as they are: what prepares them by
    /// OpaqueString (RFC 8265) is whoever made them.
    pub fn long_term(
        algorithm: PasswordAlgorithm,
        username: &[u8],
        realm: &[u8],
        password: &[u8],
    ) -> Key {
        let text = [username, realm, password].join(&b':');
        match algorithm {
            PasswordAlgorithm::Md5 => Key(md5::Md5::digest(&text).as_slice().into()),
            PasswordAlgorithm::Sha256 => {
                Key(digest::digest(&digest::SHA256, &text).as_ref().into())
            }
        }
    }

    /// A short-term credential's key is its password (RFC 8489 §9.1.1).
    pub fn short_term(password: &[u8]) -> Key {
        Key(password.into())
    }

    fn with(&self, hash: Hash) -> hmac::Key {
        let algorithm = match hash {
            Hash::Sha1 => hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY,
            Hash::Sha256 => hmac::HMAC_SHA256,
        };
        hmac::Key::new(algorithm, &self.0)
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Key").finish_non_exhaustive()
    }
}

impl Hash {
    pub(super) fn kind(self) -> Kind {
        match self {
            Hash::Sha1 => Kind::MESSAGE_INTEGRITY,
            Hash::Sha256 => Kind::MESSAGE_INTEGRITY_SHA256,
        }
    }

    pub(super) fn bytes(self) -> usize {
        match self {
            Hash::Sha1 => 20,
            Hash::Sha256 => 32,
        }
    }
}

/// The mac of a message's first `before` bytes, as if an attribute with it were the last.
pub(super) fn mac(key: &Key, hash: Hash, message: &[u8], before: usize) -> hmac::Tag {
    sign(key, hash, message, before, hash.bytes())
}

/// Whether `mac` is that of what comes before it. A SHA-256 one may be cut (RFC 8489 §14.6).
pub(super) fn verify(key: &Key, hash: Hash, message: &[u8], before: usize, mac: &[u8]) -> bool {
    let is_long_enough = match hash {
        Hash::Sha1 => mac.len() == hash.bytes(),
        Hash::Sha256 => {
            (SHA256_BYTES_MIN..=hash.bytes()).contains(&mac.len()) && mac.len().is_multiple_of(4)
        }
    };
    let made = sign(key, hash, message, before, mac.len());
    let made = made.as_ref().get(..mac.len());
    is_long_enough && made.is_some_and(|made| is_equal(made, mac))
}

fn is_equal(one: &[u8], other: &[u8]) -> bool {
    aws_lc_rs::constant_time::verify_slices_are_equal(one, other).is_ok()
}

fn sign(key: &Key, hash: Hash, message: &[u8], before: usize, mac_bytes: usize) -> hmac::Tag {
    let mut context = hmac::Context::with_key(&key.with(hash));
    context.update(&message[..2]);
    context.update(&length_with(before, mac_bytes));
    context.update(&message[4..before]);
    context.sign()
}

/// The value of a fingerprint after a message's first `before` bytes.
pub(super) fn fingerprint(message: &[u8], before: usize) -> [u8; 4] {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&message[..2]);
    crc.update(&length_with(before, 4));
    crc.update(&message[4..before]);
    (crc.finalize() ^ FINGERPRINT_MASK).to_be_bytes()
}

/// The header's length field, with an attribute of so many bytes after the first `before` of the message.
fn length_with(before: usize, value_bytes: usize) -> [u8; 2] {
    let length = before - HEADER_BYTES + 4 + value_bytes;
    u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes()
}
