//! STUN messages (RFC 8489 §5, §14; RFC 8656 §18): bytes to a [`Message`] and a [`Writer`] to bytes.
//!
//! Reading borrows, and looks at each attribute once; writing goes to a buffer that the caller keeps. Not
//! here: what a message means to a server, and frames of streams (`framing`).

mod address;
mod attribute;
mod integrity;
mod message;
mod write;

pub use attribute::{ErrorCode, Family, Kind};
pub use integrity::{Hash, Key, PASSWORD_ALGORITHMS, PasswordAlgorithm};
pub use message::{Attributes, Class, Malformed, Message, Method, TransactionId, Unknown};
pub use write::Writer;
pub(crate) use write::{INDICATION_HEAD_BYTES_MAX, data_indication_head};

/// What every message of RFC 5389 and after has at its fifth byte (RFC 8489 §5).
pub const MAGIC_COOKIE: [u8; 4] = [0x21, 0x12, 0xA4, 0x42];
/// Bytes before the attributes (RFC 8489 §5).
pub const HEADER_BYTES: usize = 20;
