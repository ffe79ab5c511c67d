//! KV4 over the embedded engine on a simulated disk: random batches, faults, power cuts.
//!
//! The engine commits on a thread of its own, so the calls that a fault meets and the moment of a cut
//! may differ between runs of one seed; what must hold does not depend on them. One batch is under
//! way at a time: after a cut the feed is every acknowledged batch in order, the last one too when it was
//! answered before the cut, and of one without an answer all or nothing.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::Duration;

use kv4::address::{Bucket, Entry, Node};
use kv4::store::{Seq, StoreError};
use kv4::view::Limits;
use kv4::write::{Condition, KeyChange, Op, Write, WriteError};
use kv4::{Kv4, Stamp};
use store::EmbeddedStore;
use store::embedded::{LOG_BYTES_MIN, Options, fsck_on};
use wire::json::Json;
use wire::names::{Key, Layer, Path};

use crate::disk::{Disk, EIO, ENOSPC};
use crate::random::Random;

const BATCHES: u64 = 30;
const BATCH_MAX: u64 = 4;
const NODES: u64 = 3;
const KEYS: u64 = 4;
const PAD_CHARS_MAX: u64 = 6_000;
/// One call of the disk in so many fails during a spell of trouble.
const FAULT_ONE_IN: u64 = 3;
/// Attempts, a ms apart, at a store whose disk is well again.
const TRIES: u32 = 5_000;
const VIEWS: Limits = Limits { bytes_max: 60_000, node_bytes_max: 20_000, idle_s: 600 };

/// What a run did.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Report {
    pub cuts: u64,
    /// Cuts behind the answer to a batch, which then has to be there.
    pub owed: u64,
    pub faults: u64,
    pub acknowledged: usize,
}

/// One change: which entry, and its value; `None` for a deletion.
type Change = (Entry, Option<Json>);

/// Runs one seed.
///
/// # Errors
/// What was wrong first.
pub fn run(seed: u64) -> Result<Report, String> {
    let mut random = Random::new(seed);
    let mut disk = Disk::default();
    let mut report = Report::default();
    let mut kv = open(&disk)?;
    // Everything acknowledged, in order; and the batches refused since something was committed, one of
    // which a cut may leave.
    let mut kept: Vec<Change> = Vec::new();
    let mut doubtful: Vec<Vec<Change>> = Vec::new();
    for nth in 0..BATCHES {
        let is_troubled = random.one_in(5);
        if is_troubled {
            let error = if random.one_in(2) { EIO } else { ENOSPC };
            disk.fail(error, FAULT_ONE_IN, random.branch());
        } else {
            disk.heal();
        }
        let batch = batch(&mut random, nth);
        let writing = kv.write_all(batch.clone());
        // A power cut somewhere within the batch, seen from a copy of the disk.
        let is_answered = AtomicBool::new(false);
        let (answers, image) = thread::scope(|scope| {
            let cut = random.one_in(4).then(|| random.branch());
            let (disk, is_answered) = (&disk, &is_answered);
            let cutting = cut.map(|mut random| {
                scope.spawn(move || {
                    for _ in 0..random.below(200) {
                        thread::yield_now();
                    }
                    // What was answered before the cut has to be there after it.
                    let was_answered = is_answered.load(SeqCst);
                    (disk.cut(&mut random), was_answered)
                })
            });
            let answers = block_on(writing);
            is_answered.store(true, SeqCst);
            (answers, cutting.and_then(|cutting| cutting.join().ok()))
        });
        let mut done = Vec::new();
        let mut is_refused = false;
        for (write, answer) in batch.into_iter().zip(answers) {
            match answer {
                Ok(written) => done.push((write.entry, written.version.value)),
                Err(WriteError::Missing) => {}
                Err(WriteError::Store(StoreError::Unavailable(_))) => {
                    is_refused = true;
                    if let Op::Put { value, .. } = write.op {
                        done.push((write.entry, Some(value)));
                    }
                }
                Err(error) => return Err(format!("batch {nth}: {error}")),
            }
        }
        if let Some((image, was_answered)) = image {
            report.cuts += 1;
            report.faults += disk.failures();
            drop(kv);
            disk = Disk::of(image);
            kv = open(&disk)?;
            let found = feed(&kv)?;
            let is_owed = was_answered && !is_refused;
            report.owed += u64::from(is_owed && !done.is_empty());
            if found != kept || is_owed {
                // Deletions of a refused batch have no version to compare: the values tell.
                let puts = |changes: &[Change]| {
                    let puts = changes.iter().filter(|(_, value)| value.is_some());
                    puts.cloned().collect::<Vec<_>>()
                };
                let with = |more: &[Change]| puts(&[&kept[..], more].concat());
                let mut may = vec![with(&done)];
                if !is_owed || done.is_empty() {
                    may.push(puts(&kept));
                    may.extend(doubtful.iter().map(|refused| with(refused)));
                }
                if !found.starts_with(&kept) || !may.contains(&puts(&found)) {
                    return Err(format!("batch {nth}: lost or torn by a cut"));
                }
            }
            kept = found;
            doubtful.clear();
        } else if is_refused {
            doubtful.push(done);
        } else if !done.is_empty() {
            kept.append(&mut done);
            doubtful.clear();
        }
        let patience = if is_troubled { Patience::None } else { Patience::UntilBack };
        check(&kv, &kept, patience).map_err(|error| format!("batch {nth}: {error}"))?;
    }
    disk.heal();
    let last = Write { op: put("last"), ..batch(&mut random, BATCHES).remove(0) };
    let written = until_back(
        || block_on(kv.write(last.clone())),
        |answer| matches!(answer, Err(WriteError::Store(StoreError::Unavailable(_)))),
    );
    let written = written.map_err(|error| format!("on a disk that is well: {error}"))?;
    // What was refused before it is not in the feed of a process that lives.
    kept.push((last.entry, written.version.value));
    check(&kv, &kept, Patience::UntilBack)?;
    if feed(&kv)? != kept {
        return Err("the feed is not what was acknowledged".to_owned());
    }
    report.faults += disk.failures();
    report.acknowledged = kept.len();
    drop(kv);
    let fsck = fsck_on(disk.store(), disk.log()).map_err(|error| error.to_string())?;
    if !fsck.is_clean() {
        return Err(format!("fsck: {fsck}"));
    }
    Ok(report)
}

fn open(disk: &Disk) -> Result<Arc<Kv4>, String> {
    let options = Options {
        cache_bytes: 64 << 10,
        retry: Duration::ZERO,
        log_bytes: LOG_BYTES_MIN,
        slice_rows: 2,
    };
    let store = EmbeddedStore::open_on(disk.store(), disk.log(), options)
        .map_err(|error| error.to_string())?;
    Ok(Kv4::new(Arc::new(store), VIEWS))
}

fn batch(random: &mut Random, nth: u64) -> Vec<Write> {
    let count = 1 + random.below(BATCH_MAX);
    let write = |at: u64| {
        let entry = entry(random.below(NODES), random.below(KEYS));
        let op = if random.one_in(6) {
            Op::Delete
        } else {
            let pad = usize::try_from(random.below(PAD_CHARS_MAX)).unwrap_or(0);
            put(&format!("{nth}.{at} {}", "x".repeat(pad)))
        };
        let stamp = Stamp { micros: random.below(1_000_000), neuron: 1 };
        Write { entry, op, condition: Condition::Any, who: Arc::from("elena"), stamp }
    };
    (0..count).map(write).collect()
}

fn put(text: &str) -> Op {
    let keys = [KeyChange::Keep, KeyChange::Keep, KeyChange::Keep];
    Op::Put { value: Json::string(text), keys }
}

fn entry(node: u64, key: u64) -> Entry {
    let path = Path::parse(&format!("/path/{node}")).expect("a legal path");
    let node = Node::new(Bucket::sys(), Layer::parse("*data").expect("a legal layer"), path);
    node.entry(Key::parse(&format!("key{key}")).expect("a legal key"))
}

/// The whole feed, which has to be dense.
fn feed(kv: &Kv4) -> Result<Vec<Change>, String> {
    let asked = block_on(kv.changes(&Bucket::sys(), Seq(0), usize::MAX));
    let (changes, last) = asked.map_err(|error| error.to_string())?;
    let is_dense = changes.iter().map(|change| change.seq.0).eq(1..=last.0);
    if !is_dense {
        return Err("the feed has a gap".to_owned());
    }
    let changes = changes.into_iter().map(|change| {
        let version = change.version.ok_or("a version went away")?;
        Ok((change.entry, version.value))
    });
    changes.collect()
}

/// What becomes of a read that the store cannot serve.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Patience {
    /// The disk is in trouble: it may be so.
    None,
    /// The disk is well: the store comes back by itself.
    UntilBack,
}

/// Tries again, for some seconds at most, while the store is away.
fn until_back<T>(attempt: impl Fn() -> T, is_away: impl Fn(&T) -> bool) -> T {
    for _ in 0..TRIES {
        let done = attempt();
        if !is_away(&done) {
            return done;
        }
        thread::sleep(Duration::from_millis(1));
    }
    attempt()
}

/// Reads through the views, and listings, are what the changes come to.
fn check(kv: &Kv4, kept: &[Change], patience: Patience) -> Result<(), String> {
    fn read<T>(
        patience: Patience,
        read: impl Fn() -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        match patience {
            Patience::None => read(),
            Patience::UntilBack => {
                until_back(read, |done| matches!(done, Err(StoreError::Unavailable(_))))
            }
        }
    }
    let newest: BTreeMap<&Entry, &Option<Json>> =
        kept.iter().map(|(entry, value)| (entry, value)).collect();
    for node in 0..NODES {
        let mut live = Vec::new();
        for key in 0..KEYS {
            let entry = entry(node, key);
            let expected = newest.get(&entry).and_then(|value| value.as_ref());
            live.extend(expected.map(|_| entry.key.clone()));
            match read(patience, || block_on(kv.get(&entry.node, &entry.key))) {
                Ok(head) if head.as_ref().map(|head| &head.value) == expected => {}
                Err(StoreError::Unavailable(_)) if patience == Patience::None => {}
                other => return Err(format!("{entry:?} shows {other:?} for {expected:?}")),
            }
        }
        match read(patience, || block_on(kv.keys(&entry(node, 0).node))) {
            Ok(keys) if keys == live => {}
            Err(StoreError::Unavailable(_)) if patience == Patience::None => {}
            other => return Err(format!("node {node} lists {other:?} for {live:?}")),
        }
    }
    Ok(())
}

/// Runs a future on this thread, under no runtime.
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(done) => return done,
            Poll::Pending => thread::park(),
        }
    }
}
