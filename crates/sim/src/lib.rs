//! Simulation: the objects that run in production, on a clock, a store and a disk that are values.
//!
//! [`neuron::run`] drives a whole neuron's control side (requests as values → services → KV4) on a
//! single thread under one seed: the same seed gives the same run, step by step. Its store is
//! [`store::SimStore`], KV4's reference engine with commits that take time and are lost in a crash.
//! The embedded engine has threads of its own, so what it does on a [`disk::Disk`] follows from the
//! seed only up to the order in which the machine runs them; [`embedded::run`] keeps one request
//! under way at a time and is judged by what was acknowledged. [`rooms::run`] drives the
//! switchboard of signalling with clients whose links fail, [`relays::run`] the relay with those and peers.
//! [`fuzz`] holds the fuzz entry points.
//!
//! Not here: several neurons, links between them, media; they come with the bus.

pub mod client;
pub mod disk;
pub mod embedded;
pub mod executor;
pub mod fuzz;
pub mod model;
pub mod neuron;
pub mod random;
pub mod relays;
pub mod rooms;
pub mod store;

/// What seals sessions where nobody means ill.
pub(crate) fn sealer() -> signal::Sealer {
    signal::Sealer::new(|_, _, [_, number, born]| !number ^ born << 32)
}
