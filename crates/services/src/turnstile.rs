//! A lock that is waited for without a thread, under any executor.

use std::sync::atomic::{AtomicBool, Ordering};

use event_listener::{Event, listener};

/// Lets one through at a time.
#[derive(Debug, Default)]
pub(crate) struct Turnstile {
    is_taken: AtomicBool,
    freed: Event,
}

/// Whoever has this is through, until it is dropped.
#[derive(Debug)]
pub(crate) struct Passage<'a>(&'a Turnstile);

impl Turnstile {
    pub(crate) async fn pass(&self) -> Passage<'_> {
        loop {
            if let Some(passage) = self.try_pass() {
                return passage;
            }
            listener!(self.freed => freed);
            // It may have been freed before this listened.
            if let Some(passage) = self.try_pass() {
                return passage;
            }
            freed.await;
        }
    }

    fn try_pass(&self) -> Option<Passage<'_>> {
        let is_free = !self.is_taken.swap(true, Ordering::SeqCst);
        is_free.then(|| Passage(self))
    }
}

impl Drop for Passage<'_> {
    fn drop(&mut self) {
        self.0.is_taken.store(false, Ordering::SeqCst);
        self.0.freed.notify(1);
    }
}
