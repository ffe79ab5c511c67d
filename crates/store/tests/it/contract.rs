//! The contract, run by the embedded engine and by the reference.

use std::sync::Arc;

use store::EmbeddedStore;

#[test]
fn embedded_keeps_the_contract() {
    store::contract::run(|| {
        let memory = redb::backends::InMemoryBackend::new;
        Arc::new(EmbeddedStore::open_on(memory(), memory(), super::options()).unwrap())
    });
}

#[test]
fn memory_keeps_the_contract() {
    store::contract::run(|| Arc::new(kv4::memory::MemoryStore::new()));
}
