//! What system tests start and drive: neurons, curl, sockets, browsers. All blocking.
//!
//! Not here: the tests themselves (`system/`).

pub mod browser;
pub mod curl;
pub mod feed;
pub mod http;
pub mod http2;
pub mod neuron;
pub mod os;
pub mod plain;
pub mod proxy;
pub mod random;
pub mod raw;
pub mod socket;
pub mod terminal;
pub mod ver;
pub mod wait;
