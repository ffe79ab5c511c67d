//! Power cuts at every call that writes or syncs.
//!
//! For random operations, each image that a cut may leave is opened: what was synced, and of what
//! was not synced any subset, sectors torn apart. It must hold what was acknowledged, and of the
//! operation under way all or nothing.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;

use kv4::store::Store;
use store::EmbeddedStore;
use store::contract::{Step, block_on, cases, steps};
use store::embedded::{Options, fsck_on};

use super::disk::{Boundary, Disk, SECTOR, Unsynced, apply};
use super::{Dump, dump};

const CASES: u32 = 20;

#[test]
fn what_was_acknowledged_survives_a_cut_at_every_boundary() {
    let mut runner = TestRunner::deterministic();
    let mut images = 0;
    for case in 0..cases(CASES) {
        let steps = steps().new_tree(&mut runner).unwrap().current();
        images += cut_everywhere(steps, u64::from(case) + 1);
    }
    assert!(images > 0);
    eprintln!("{images} crash images opened");
}

fn cut_everywhere(steps: Vec<Step>, seed: u64) -> usize {
    let disk = Disk::default();
    let store = EmbeddedStore::open_on(disk.clone(), Options::default()).unwrap();
    let acknowledged = Arc::new(AtomicUsize::new(0));
    let found = Arc::new(Mutex::new(Vec::new()));
    let boundary = {
        let (acknowledged, found) = (acknowledged.clone(), found.clone());
        let mut random = Random(seed);
        move |durable: &[u8], unsynced: &[Unsynced]| {
            let image = random.cut(durable, unsynced);
            let dump = open_image(image);
            found.lock().unwrap().push((acknowledged.load(SeqCst), dump));
        }
    };
    let mut dumps = vec![dump(&store)];
    disk.on_boundary(Some(Boundary(Box::new(boundary))));
    for step in steps {
        carry_out(&store, step);
        acknowledged.fetch_add(1, SeqCst);
        dumps.push(dump(&store));
    }
    disk.on_boundary(None);
    drop(store);
    let found = std::mem::take(&mut *found.lock().unwrap());
    for (at, dump) in &found {
        let is_after = dumps.get(at + 1) == Some(dump);
        assert!(is_after || dumps[*at] == *dump, "seed {seed}: lost or torn after {at} steps");
    }
    found.len()
}

fn carry_out(store: &EmbeddedStore, step: Step) {
    match step {
        Step::Write(steps) => {
            let newest = |entry: &_| block_on(store.newest(entry)).unwrap();
            let writes = steps.into_iter().map(|step| step.to_write(newest)).collect();
            drop(block_on(store.write(writes)));
        }
        Step::Erase(entry) => drop(block_on(store.erase(&entry)).unwrap()),
        Step::Prune(node, retention) => drop(block_on(store.prune(&node, retention)).unwrap()),
        Step::DropBucket(bucket) => block_on(store.drop_bucket(&bucket)).unwrap(),
        Step::PutStats(cells) => block_on(store.put_stats(cells)).unwrap(),
        Step::Look(_) | Step::Series(_) | Step::Stats(_) | Step::Changes(..) => {}
    }
}

fn open_image(image: Vec<u8>) -> Dump {
    let report = fsck_on(Disk::of(image.clone())).unwrap();
    assert!(report.is_clean(), "{report}: {:?}", report.violations);
    let store = EmbeddedStore::open_on(Disk::of(image), Options::default()).unwrap();
    dump(&store)
}

/// xorshift64*.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.next() >> 33 < (1 << 31) / n
    }

    /// An image that a power cut may leave.
    fn cut(&mut self, durable: &[u8], unsynced: &[Unsynced]) -> Vec<u8> {
        let mut image = durable.to_vec();
        let keep_all = self.one_in(4);
        let keep_up_to =
            if self.one_in(3) { self.next() as usize % (unsynced.len() + 1) } else { 0 };
        for (at, change) in unsynced.iter().enumerate() {
            match change {
                _ if keep_all || at < keep_up_to => apply(&mut image, change),
                Unsynced::Length(_) => {
                    if self.one_in(2) {
                        apply(&mut image, change);
                    }
                }
                Unsynced::Write(offset, data) => {
                    for (nth, sector) in data.chunks(SECTOR).enumerate() {
                        if self.one_in(2) {
                            let sector = Unsynced::Write(offset + nth * SECTOR, sector.to_vec());
                            apply(&mut image, &sector);
                        }
                    }
                }
            }
        }
        image
    }
}
