//! What is kept of one layer of each bucket, and when it is no longer so: rules, settings, accounts.
//!
//! Compiled on first use from every live entry of the layer, forgotten when a commit touches that
//! layer in that bucket. Meant for layers that are read on every request and seldom written.

use std::hash::BuildHasher as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use wire::names::{Layer, Path};

use crate::address::{Bucket, Node};
use crate::kv::Kv4;
use crate::store::{Event, Listener, StoreError};
use crate::version::Head;

/// Buckets whose compiled form is held; beyond it all are forgotten and compiled again on use.
const BUCKETS_MAX: usize = 10_000;

/// Places in which changes are counted.
const TOUCHED_PLACES: usize = 1 << 12;

/// Makes a compiled form of every live entry of a layer, in order of path and key.
pub type Compile<T> = fn(&[(Path, Arc<Head>)]) -> T;

/// Compiled forms `T` of one layer, by bucket.
#[derive(Debug)]
pub struct Derived<T> {
    layer: Layer,
    compile: Compile<T>,
    compiled: papaya::HashMap<Bucket, Arc<T>, foldhash::fast::RandomState>,
    /// Serialises those who keep or forget a form; readers never take it.
    keeping: Mutex<()>,
    /// By the hash of a bucket, raised by every commit that touches the layer there, so that a form
    /// compiled from rows that were read before it is not kept. Buckets that meet in one place cost
    /// each other a compilation.
    touched: Box<[AtomicU64]>,
    hasher: foldhash::fast::RandomState,
    cleared: AtomicU64,
}

impl<T: Send + Sync + std::fmt::Debug + 'static> Derived<T> {
    /// Begins to follow `layer`.
    pub fn new(kv: &Kv4, layer: Layer, compile: Compile<T>) -> Arc<Derived<T>> {
        let derived = Arc::new(Derived {
            layer,
            compile,
            compiled: papaya::HashMap::default(),
            keeping: Mutex::new(()),
            touched: (0..TOUCHED_PLACES).map(|_| AtomicU64::new(0)).collect(),
            hasher: foldhash::fast::RandomState::default(),
            cleared: AtomicU64::new(0),
        });
        kv.on_commit(derived.clone());
        derived
    }

    /// The bucket's compiled form.
    ///
    /// # Errors
    /// The store's, when it has to be compiled.
    pub async fn of(&self, kv: &Kv4, bucket: &Bucket) -> Result<Arc<T>, StoreError> {
        if let Some(known) = self.compiled.pin().get(bucket) {
            return Ok(known.clone());
        }
        let touched = self.touched(bucket);
        let before = touched.load(Ordering::SeqCst);
        let mut rows = Vec::new();
        for (path, _) in kv.paths(bucket, &self.layer, &Path::root()).await? {
            let node = Node::new(bucket.clone(), self.layer.clone(), path.clone());
            for head in kv.heads(&node).await? {
                rows.push((path.clone(), head));
            }
        }
        let compiled = Arc::new((self.compile)(&rows));
        // The rows were read after this call began, so the form is good for it either way.
        let _keeping = self.keeping.lock().unwrap_or_else(PoisonError::into_inner);
        if touched.load(Ordering::SeqCst) == before {
            let kept = self.compiled.pin();
            if kept.len() >= BUCKETS_MAX {
                kept.clear();
                self.cleared.fetch_add(1, Ordering::Relaxed);
            }
            kept.insert(bucket.clone(), compiled.clone());
        }
        Ok(compiled)
    }

    /// How often all forms were forgotten, since they were too many.
    pub fn cleared(&self) -> u64 {
        self.cleared.load(Ordering::Relaxed)
    }

    fn forget(&self, bucket: &Bucket) {
        let _keeping = self.keeping.lock().unwrap_or_else(PoisonError::into_inner);
        self.touched(bucket).fetch_add(1, Ordering::SeqCst);
        self.compiled.pin().remove(bucket);
    }

    fn touched(&self, bucket: &Bucket) -> &AtomicU64 {
        let hash = usize::try_from(self.hasher.hash_one(bucket)).unwrap_or(0);
        &self.touched[hash % TOUCHED_PLACES]
    }
}

impl<T: Send + Sync + std::fmt::Debug + 'static> Listener for Derived<T> {
    fn committed(&self, events: &[Event]) {
        for event in events {
            match event {
                Event::Changed(change) if change.entry.node.layer == self.layer => {
                    self.forget(&change.entry.node.bucket);
                }
                Event::Erased(entry) if entry.node.layer == self.layer => {
                    self.forget(&entry.node.bucket);
                }
                Event::Dropped(bucket) => self.forget(bucket),
                Event::Changed(_) | Event::Erased(_) => {}
            }
        }
    }
}

/// Counts the commits that touched one layer, in any bucket: what was read of it after a count was
/// taken is still so while the count is the same.
#[derive(Debug)]
pub struct Changes {
    layer: Layer,
    count: AtomicU64,
}

impl Changes {
    /// Begins to count the changes of `layer`.
    pub fn new(kv: &Kv4, layer: Layer) -> Arc<Changes> {
        let changes = Arc::new(Changes { layer, count: AtomicU64::new(0) });
        kv.on_commit(changes.clone());
        changes
    }

    /// A commit has raised it before its writer is told.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::SeqCst)
    }
}

impl Listener for Changes {
    fn committed(&self, events: &[Event]) {
        let touches = |event: &Event| match event {
            Event::Changed(change) => change.entry.node.layer == self.layer,
            Event::Erased(entry) => entry.node.layer == self.layer,
            Event::Dropped(_) => true,
        };
        if events.iter().any(touches) {
            self.count.fetch_add(1, Ordering::SeqCst);
        }
    }
}
