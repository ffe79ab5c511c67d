//! Engines that keep KV4 buckets durably: one module an engine, each behind [`kv4::store::Store`].
//!
//! Not here: what a write means (`kv4::write`), views (`kv4::view`), what a layer means (`services`).

#[cfg(feature = "contract")]
pub mod contract;
pub mod embedded;

pub use embedded::EmbeddedStore;
