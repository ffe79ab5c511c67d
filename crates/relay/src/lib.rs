//! The relay: STUN (RFC 8489) and TURN (RFC 8656), without sockets, clocks and randomness of its own.
//!
//! [`stun`] reads and writes messages, [`framing`] tells them from ChannelData and finds both in streams,
//! [`nonce`] makes nonces that nobody remembers, [`peers`] says where may be relayed to, and [`server`] has
//! the allocations; [`rest`] knows the passwords of back ends that were made for coturn. Not here: sockets and
//! their batches, and who has which credentials.
//!
//! ```
//! use relay::stun::{Class, Hash, Key, Kind, Message, Method, TransactionId, Writer};
//!
//! let key = Key::short_term(b"a password");
//! let mut bytes = Vec::new();
//! Writer::new(&mut bytes, Class::Request, Method::Binding, TransactionId([7; 12]))
//!     .attribute(Kind::USERNAME, b"ann")
//!     .integrity(&key, Hash::Sha256)
//!     .fingerprint();
//! let message = Message::read(&bytes)?;
//! assert_eq!(message.attributes().username, Some(&b"ann"[..]));
//! assert!(message.is_of(&key) && !message.is_of(&Key::short_term(b"another")));
//! # Ok::<(), relay::stun::Malformed>(())
//! ```

pub mod framing;
pub mod nonce;
pub mod peers;
pub mod rest;
pub mod server;
pub mod stun;
