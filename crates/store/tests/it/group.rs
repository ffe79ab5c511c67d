//! Group commit: many writers share few transactions, and events come in the order of the feed.

use std::sync::Arc;
use std::thread;

use kv4::store::{Event, Seq, Store};
use store::EmbeddedStore;
use store::contract::{Heard, block_on};
use store::embedded::Options;

use super::{entry, put};

const WRITERS: usize = 64;
const WRITES: usize = 20;

#[test]
fn many_writers_share_commits_and_events_come_in_feed_order() {
    let folder = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(&folder.path().join("s"), Options::default()).unwrap();
    let heard = Arc::new(Heard::default());
    store.listen(heard.clone());
    thread::scope(|scope| {
        for writer in 0..WRITERS {
            let store = &store;
            scope.spawn(move || {
                for nth in 0..WRITES {
                    let entry = entry("/", &format!("{writer}-{}", nth % 3));
                    let answers = block_on(store.write(vec![put(&entry, "x")]));
                    assert!(answers[0].is_ok(), "{answers:?}");
                }
            });
        }
    });
    let commits = store.commits();
    let writes = (WRITERS * WRITES) as u64;
    assert_eq!(commits.requests, writes);
    assert!(commits.commits * 4 < writes, "{commits:?} is not « {writes} writes");

    let bucket = entry("/", "x").node.bucket;
    let (changes, last) = block_on(store.changes(&bucket, Seq(0), usize::MAX)).unwrap();
    assert_eq!(last, Seq(writes));
    let told: Vec<_> = heard.take();
    assert_eq!(told, changes.into_iter().map(Event::Changed).collect::<Vec<_>>());
}
