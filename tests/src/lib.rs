//! What system tests start and drive: neurons, curl, sockets, browsers. All blocking.
//!
//! Not here: the tests themselves (`system/`).

pub mod browser;
pub mod curl;
pub mod neuron;
pub mod os;
pub mod socket;
