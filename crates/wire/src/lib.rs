//! Every byte and JSON shape that others rely on: names, requests, envelopes, credentials, tokens,
//! signalling frames, WebSocket framing, and the one catalogue of errors.
//!
//! Nothing here waits, keeps state or reads a clock; parsing never panics. What a request means is
//! decided in `services` and `signal`.

pub mod credentials;
pub mod envelope;
pub mod errors;
pub mod frames;
pub mod json;
pub mod lengths;
pub mod names;
pub mod network;
pub mod params;
pub mod timegroup;
pub mod token;
pub mod ws;
