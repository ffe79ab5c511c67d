//! The machine behind the cores' traits: clock, randomness, a bounded pool for slow hashes.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use kv4::store::BoxFuture;
use services::{Clock, Passwords, Rng, secrets};
use tokio::sync::{Semaphore, SemaphorePermit};

/// The wall clock.
#[derive(Debug)]
pub(crate) struct SystemClock;

impl Clock for SystemClock {
    fn now_micros(&self) -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(duration))
    }
}

/// The operating system's randomness.
#[derive(Debug)]
pub(crate) struct SystemRng;

impl Rng for SystemRng {
    fn fill(&self, bytes: &mut [u8]) {
        aws_lc_rs::rand::fill(bytes).expect("the operating system gives randomness");
    }
}

/// The CPU time of one thread of this process.
#[derive(Debug)]
pub(crate) struct ThreadTime(PathBuf);

impl ThreadTime {
    /// Of the first thread of a name; `None` where the kernel does not tell.
    pub(crate) fn of(name: &str) -> Option<ThreadTime> {
        let threads = std::fs::read_dir("/proc/self/task").ok()?;
        let mut folders = threads.filter_map(|thread| Some(thread.ok()?.path()));
        let is_named = |folder: &PathBuf| {
            std::fs::read_to_string(folder.join("comm")).is_ok_and(|comm| comm.trim() == name)
        };
        let time = ThreadTime(folders.find(is_named)?.join("schedstat"));
        time.spent().is_some().then_some(time)
    }

    /// Spent so far.
    pub(crate) fn spent(&self) -> Option<Duration> {
        let text = std::fs::read_to_string(&self.0).ok()?;
        Some(Duration::from_nanos(text.split(' ').next()?.parse().ok()?))
    }
}

/// Slow hashes on blocking threads, few at a time, with a bounded number that wait.
#[derive(Debug)]
pub(crate) struct PasswordPool {
    running: Semaphore,
    admitted: Semaphore,
}

impl PasswordPool {
    pub(crate) fn new(at_once: usize, waiting: usize) -> Arc<PasswordPool> {
        Arc::new(PasswordPool {
            running: Semaphore::new(at_once),
            admitted: Semaphore::new(at_once + waiting),
        })
    }

    async fn turn(&self) -> Option<(SemaphorePermit<'_>, SemaphorePermit<'_>)> {
        let admitted = self.admitted.try_acquire().ok()?;
        Some((admitted, self.running.acquire().await.ok()?))
    }
}

impl Passwords for PasswordPool {
    fn hash(&self, password: String) -> BoxFuture<'_, Option<String>> {
        Box::pin(async move {
            let _turn = self.turn().await?;
            let mut salt = [0; 16];
            SystemRng.fill(&mut salt);
            tokio::task::spawn_blocking(move || secrets::hash_chosen(&password, salt)).await.ok()
        })
    }

    fn verify(&self, password: String, hash: String) -> BoxFuture<'_, Option<bool>> {
        Box::pin(async move {
            let _turn = self.turn().await?;
            tokio::task::spawn_blocking(move || secrets::verify_chosen(&password, &hash)).await.ok()
        })
    }
}
