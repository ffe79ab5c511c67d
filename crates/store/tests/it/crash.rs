//! Power cuts at every call that writes or syncs.
//!
//! For random operations, each image that a cut may leave is opened: what was synced, and of what
//! was not synced any subset, sectors torn apart, and blocks of the log spoiled. It must hold what was acknowledged, and of the
//! operation under way all or nothing.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;

use kv4::store::Store;
use store::EmbeddedStore;
use store::contract::{Step, block_on, cases, steps};
use store::embedded::{LOG_BYTES_MIN, Options, fsck_on};

use super::disk::{BLOCK, Boundary, Disk, FileState, Image, SECTOR, Unsynced, apply};
use super::{Dump, dump, open_on};

const CASES: u32 = 16;
/// One case opens hundreds of images, and so counts as many of another test's.
const CASES_EACH: u32 = 8;
/// Of so many images one is also cut at every call of its opening.
const CUT_AGAIN_ONE_IN: u64 = 128;
/// Of so many stores one is opened once more after its close, and that opening cut.
const CLOSED_ONE_IN: u64 = 4;

#[test]
fn what_was_acknowledged_survives_a_cut_at_every_boundary() {
    let mut runner = TestRunner::deterministic();
    let mut images = Images::default();
    for case in 0..cases(CASES * CASES_EACH) / CASES_EACH {
        let steps = steps().new_tree(&mut runner).unwrap().current();
        cut_everywhere(steps, u64::from(case) + 1, &mut images);
    }
    eprintln!("{images:?}");
    assert!(images.opened > 0 && images.cut_again > 0);
}

#[test]
fn a_cut_while_a_store_of_format_1_is_made_one_of_this_leaves_either() {
    let store = std::fs::read(super::files::fixture("format-1.redb")).unwrap();
    let image = Image { store, log: Vec::new() };
    let whole = dump(&open_on(&Disk::of(image.clone())));
    let cut: Vec<Found> = cut_opening(&image, &mut Random(1)).collect();
    assert!(!cut.is_empty());
    assert!(cut.into_iter().all(|found| found.dump == whole));
}

#[test]
fn a_cut_while_a_log_that_is_needed_is_made_longer_leaves_it() {
    let disk = Disk::default();
    let store = open_on(&disk);
    let answers = block_on(store.write(vec![super::put(&super::entry("/", "a"), "x")]));
    assert!(answers[0].is_ok());
    let (image, whole) = (disk.durable(), dump(&store));
    let options = Options { log_bytes: 2 * LOG_BYTES_MIN, ..super::options() };
    let mut random = Random(1);
    for _ in 0..8 {
        let disk = Disk::of(image.clone());
        let opened = cut_calls(&disk, &mut random, || {
            EmbeddedStore::open_on(disk.store(), disk.log(), options.clone()).unwrap()
        });
        assert!(opened.into_iter().all(|image| open_image(image).dump == whole));
    }
}

#[derive(Debug, Default)]
struct Images {
    opened: usize,
    cut_again: usize,
}

fn cut_everywhere(steps: Vec<Step>, seed: u64, images: &mut Images) {
    let disk = Disk::default();
    let store = open_on(&disk);
    let acknowledged = Arc::new(AtomicUsize::new(0));
    let found = Arc::new(Mutex::new(Vec::new()));
    let boundary = {
        let (acknowledged, found) = (acknowledged.clone(), found.clone());
        let mut random = Random(seed);
        move |store: &FileState, log: &FileState| {
            let image = random.cut(store, log);
            let at = acknowledged.load(SeqCst);
            if random.one_in(CUT_AGAIN_ONE_IN) {
                found.lock().unwrap().extend(cut_opening(&image, &mut random).map(|it| (at, it)));
            }
            found.lock().unwrap().push((at, open_image(image)));
        }
    };
    let mut dumps = vec![dump(&store)];
    disk.on_boundary(Some(Boundary(Box::new(boundary))));
    for step in steps {
        carry_out(&store, step);
        acknowledged.fetch_add(1, SeqCst);
        dumps.push(dump(&store));
    }
    drop(store);
    disk.on_boundary(None);
    let mut found = std::mem::take(&mut *found.lock().unwrap());
    if seed % CLOSED_ONE_IN == 1 {
        // A store that was closed, and that has lost its log or not.
        let mut image = disk.durable();
        if seed % (2 * CLOSED_ONE_IN) == 1 {
            image.log.clear();
        }
        found.extend(cut_opening(&image, &mut Random(seed)).map(|it| (dumps.len() - 1, it)));
    }
    for (at, found) in found {
        let is_there = [Some(&dumps[at]), dumps.get(at + 1)].contains(&Some(&found.dump));
        assert!(is_there, "seed {seed}: lost or torn after {at} steps, {found:?}");
        images.opened += 1;
        images.cut_again += usize::from(found.is_cut_again);
    }
}

/// What an image turned out to hold.
#[derive(Debug)]
struct Found {
    dump: Dump,
    is_cut_again: bool,
}

fn carry_out(store: &dyn Store, step: Step) {
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
        Step::Look(_)
        | Step::Series(_)
        | Step::Stats(_)
        | Step::StatNames(..)
        | Step::SeriesPaths(..)
        | Step::Changes(..) => {}
    }
}

/// Opens an image, and checks and opens another of it: both hold the same, and after the check the
/// store's file holds it alone.
fn open_image(image: Image) -> Found {
    let checked = Disk::of(image.clone());
    let report = fsck_on(checked.store(), checked.log()).unwrap();
    assert!(report.is_clean(), "{report}: {:?}", report.violations);
    let alone = Disk::of(Image { store: checked.durable().store, log: Vec::new() });
    let dump = dump(&open_on(&Disk::of(image)));
    assert!(super::dump(&open_on(&alone)) == dump, "the check did not leave a whole store");
    Found { dump, is_cut_again: false }
}

/// Cuts the opening of an image at every call, and opens what is left.
fn cut_opening(image: &Image, random: &mut Random) -> impl Iterator<Item = Found> + use<> {
    let disk = Disk::of(image.clone());
    let cut = cut_calls(&disk, random, || open_on(&disk));
    cut.into_iter().map(|image| Found { is_cut_again: true, ..open_image(image) })
}

/// What cuts at every call of an opening, and of the close after it, leave.
fn cut_calls(disk: &Disk, random: &mut Random, open: impl FnOnce() -> EmbeddedStore) -> Vec<Image> {
    let cut = Arc::new(Mutex::new(Vec::new()));
    let mut random = Random(random.next());
    let boundary = {
        let cut = cut.clone();
        move |store: &FileState, log: &FileState| {
            cut.lock().unwrap().push(random.cut(store, log));
        }
    };
    disk.on_boundary(Some(Boundary(Box::new(boundary))));
    drop(open());
    disk.on_boundary(None);
    std::mem::take(&mut *cut.lock().unwrap())
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

    /// What a power cut may leave of the files.
    fn cut(&mut self, store: &FileState, log: &FileState) -> Image {
        Image { store: self.cut_file(store, tear_sectors), log: self.cut_file(log, tear_blocks) }
    }

    /// What it may leave of one, of whose writes `tear` leaves some.
    fn cut_file(
        &mut self,
        file: &FileState,
        tear: fn(&mut Random, &mut Vec<u8>, usize, &[u8]),
    ) -> Vec<u8> {
        let FileState { durable, unsynced, .. } = file;
        let mut image = durable.clone();
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
                Unsynced::Write(offset, data) => tear(self, &mut image, *offset, data),
            }
        }
        image
    }
}

/// Leaves any of the sectors that were written.
fn tear_sectors(random: &mut Random, image: &mut Vec<u8>, offset: usize, data: &[u8]) {
    for (nth, sector) in data.chunks(SECTOR).enumerate() {
        if random.one_in(2) {
            apply(image, &Unsynced::Write(offset + nth * SECTOR, sector.to_vec()));
        }
    }
}

/// Leaves any of the sectors, or nothing that is right in all of a block that was written to.
fn tear_blocks(random: &mut Random, image: &mut Vec<u8>, offset: usize, data: &[u8]) {
    tear_sectors(random, image, offset, data);
    for block in offset / BLOCK..(offset + data.len()).div_ceil(BLOCK) {
        let block = block * BLOCK..((block + 1) * BLOCK).min(image.len());
        if random.one_in(4) && !block.is_empty() {
            image[block].fill(0xa5);
        }
    }
}
