//! The relay's parts, against the RFCs' own samples, a codec that we did not write, and small models.

mod framing;
mod nonce;
mod peers;
mod rest;
mod server;
mod stun;
