//! KV4: path × layer × key (+ k2, k3, k4) × time.
//!
//! A write becomes a version ([`write::decide`]), an engine keeps it ([`store::Store`]), and views
//! hold the newest of it in memory. Not here: what a layer means (`services`), engines (`store`).

pub mod address;
pub mod derived;
pub mod kv;
pub mod memory;
pub mod store;
pub mod version;
pub mod view;
pub mod watch;
pub mod write;

pub use address::{Bucket, Entry, Node};
pub use kv::Kv4;
pub use version::{Head, Stamp, Ver, Version};
