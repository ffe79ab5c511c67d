//! The life of a process: starting, ready, draining, stopping; and what is still to be done.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use tokio::sync::watch;

/// Three different answers: alive, ready, drained.
#[derive(Debug)]
pub(crate) struct Lifecycle {
    ready: AtomicBool,
    draining: AtomicBool,
    /// What `stop` tells, for those who look at every request.
    stopping: AtomicBool,
    busy: AtomicUsize,
    /// The store's last error, while it cannot take writes.
    store_error: Mutex<Option<String>>,
    /// Bytes that were free on the disk under it at the last look.
    disk_free: AtomicU64,
    /// What is wrong with that disk.
    disk_error: Mutex<Option<String>>,
    stop: watch::Sender<bool>,
    pub(crate) started: SystemTime,
}

impl Lifecycle {
    pub(crate) fn new() -> Arc<Lifecycle> {
        Arc::new(Lifecycle {
            ready: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            busy: AtomicUsize::new(0),
            store_error: Mutex::default(),
            disk_free: AtomicU64::new(0),
            disk_error: Mutex::default(),
            stop: watch::Sender::new(false),
            started: SystemTime::now(),
        })
    }

    pub(crate) fn set_ready(&self) {
        self.ready.store(true, Ordering::Relaxed);
    }

    /// Takes no new work that lasts: readiness goes, sockets are refused.
    pub(crate) fn drain(&self) {
        if !self.draining.swap(true, Ordering::Relaxed) {
            tracing::info!("draining: new sockets are refused, open ones stay until the stop");
        }
    }

    /// Takes new work again; a process that stops does not.
    pub(crate) fn resume(&self) {
        if self.draining.swap(false, Ordering::Relaxed) {
            tracing::info!("not draining any more: back in service");
        }
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed) || self.is_stopping()
    }

    /// Ends keep-alive connections and sockets.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
        self.stop.send_replace(true);
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    /// Finishes once the process is to stop.
    pub(crate) async fn stopping(&self) {
        let mut stop = self.stop.subscribe();
        // The sender lives as long as this does, so waiting cannot fail.
        let _ = stop.wait_for(|stop| *stop).await;
    }

    /// Notes whether the store takes writes; what it said before.
    pub(crate) fn store_failed(&self, error: Option<String>) -> Option<String> {
        std::mem::replace(&mut *lock(&self.store_error), error)
    }

    pub(crate) fn has_store_failed(&self) -> bool {
        lock(&self.store_error).is_some()
    }

    pub(crate) fn set_disk_free(&self, bytes: u64) {
        self.disk_free.store(bytes, Ordering::Relaxed);
    }

    pub(crate) fn disk_free(&self) -> u64 {
        self.disk_free.load(Ordering::Relaxed)
    }

    /// Notes what is wrong with the disk under the store; what it was before.
    pub(crate) fn disk_failed(&self, error: Option<String>) -> Option<String> {
        std::mem::replace(&mut *lock(&self.disk_error), error)
    }

    /// Why the neuron should not be sent work; empty when it should.
    pub(crate) fn unready(&self) -> Vec<String> {
        let mut reasons = Vec::new();
        if !self.ready.load(Ordering::Relaxed) {
            reasons.push("starting".to_owned());
        }
        if self.is_draining() {
            reasons.push("draining".to_owned());
        }
        for (what, error) in [("store", &self.store_error), ("disk", &self.disk_error)] {
            if let Some(error) = &*lock(error) {
                reasons.push(format!("{what}: {error}"));
            }
        }
        reasons
    }

    /// What is still under way: requests, and what is open, with what that is called.
    pub(crate) fn left(&self, open: &[(usize, &str)]) -> Vec<String> {
        // The request that asks is itself under way.
        let requests = self.busy.load(Ordering::Relaxed).saturating_sub(1);
        let mut left = Vec::new();
        if requests > 0 {
            left.push(format!("{requests} requests"));
        }
        let open = open.iter().filter(|(count, _)| *count > 0);
        left.extend(open.map(|(count, what)| format!("{count} {what}")));
        left
    }

    /// Counts something as under way until the guard is dropped.
    pub(crate) fn busy(self: &Arc<Self>) -> Busy {
        self.busy.fetch_add(1, Ordering::Relaxed);
        Busy(self.clone())
    }

    pub(crate) fn busy_count(&self) -> usize {
        self.busy.load(Ordering::Relaxed)
    }
}

fn lock(error: &Mutex<Option<String>>) -> MutexGuard<'_, Option<String>> {
    error.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Something under way.
#[derive(Debug)]
pub(crate) struct Busy(Arc<Lifecycle>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.busy.fetch_sub(1, Ordering::Relaxed);
    }
}
