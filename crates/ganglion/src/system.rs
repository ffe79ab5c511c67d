//! The machine behind the cores' traits: clock, randomness, a bounded pool for slow hashes.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use kv4::Bucket;
use kv4::store::BoxFuture;
use neuron::requests::Payer;
use services::secrets::{self, Memory};
use services::{Clock, Passwords, Rng};
use tokio::sync::Semaphore;

use crate::turns;

/// The wall clock.
#[derive(Debug)]
pub(crate) struct SystemClock;

impl Clock for SystemClock {
    fn now_micros(&self) -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
    }

    fn instant(&self) -> Instant {
        Instant::now()
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

/// Bytes of memory that this process holds; `None` where the kernel does not tell.
pub(crate) fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

/// Slow hashes on blocking threads, few at a time, with a bounded number that wait.
///
/// Those who set passwords and those who log in wait beside each other, each for half of the places,
/// so that neither keeps the other out. Of one account or address a quarter may wait.
#[derive(Debug)]
pub(crate) struct PasswordPool {
    running: Arc<Semaphore>,
    setting: Places,
    checking: Places,
    /// As many as run at a time, from the first time on.
    memory: Arc<Mutex<Vec<Memory>>>,
}

/// Places to wait in.
#[derive(Debug)]
struct Places {
    all_max: usize,
    payer_max: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    by_payer: HashMap<Payer, usize>,
}

/// A place of one who waits, who may count twice: as an account and as an address.
struct Place<'a> {
    places: &'a Places,
    payers: Vec<Payer>,
}

impl Places {
    fn new(all_max: usize, payer_max: usize) -> Places {
        Places { all_max, payer_max, taken: Mutex::default() }
    }

    fn enter(&self, payers: Vec<Payer>) -> Option<Place<'_>> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let of = |payer: &Payer| taken.by_payer.get(payer).copied().unwrap_or(0);
        if taken.all >= self.all_max || payers.iter().any(|payer| of(payer) >= self.payer_max) {
            return None;
        }
        taken.all += 1;
        for payer in &payers {
            *taken.by_payer.entry(payer.clone()).or_default() += 1;
        }
        Some(Place { places: self, payers })
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut taken = self.places.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.all -= 1;
        for payer in &self.payers {
            if let Some(count) = taken.by_payer.get_mut(payer) {
                *count -= 1;
                if *count == 0 {
                    taken.by_payer.remove(payer);
                }
            }
        }
    }
}

impl PasswordPool {
    pub(crate) fn new(at_once: usize, waiting: usize) -> Arc<PasswordPool> {
        let places = || Places::new(waiting.div_ceil(2), waiting.div_ceil(4));
        Arc::new(PasswordPool {
            running: Arc::new(Semaphore::new(at_once)),
            setting: places(),
            checking: places(),
            memory: Arc::default(),
        })
    }

    /// Carries out one hash when it is its turn; `None` when too many wait.
    async fn carry_out<T: Send + 'static>(
        &self,
        places: &Places,
        payers: Vec<Payer>,
        work: impl FnOnce(&mut Memory) -> T + Send + 'static,
    ) -> Option<T> {
        let running = match self.running.clone().try_acquire_owned() {
            Ok(running) => running,
            Err(_) => {
                let _place = places.enter(payers)?;
                self.running.clone().acquire_owned().await.ok()?
            }
        };
        let kept = self.memory.clone();
        let done = tokio::task::spawn_blocking(move || {
            // Who asked may have gone: the thread is taken until it is done.
            let _running = running;
            let memory = kept.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let mut memory = memory.unwrap_or_default();
            let done = work(&mut memory);
            kept.lock().unwrap_or_else(PoisonError::into_inner).push(memory);
            done
        });
        done.await.ok()
    }
}

impl Passwords for PasswordPool {
    fn hash(&self, of: &Bucket, password: String) -> BoxFuture<'_, Option<String>> {
        let payers = vec![Payer::Account(of.clone())];
        Box::pin(self.carry_out(&self.setting, payers, move |memory| {
            let mut salt = [0; 16];
            SystemRng.fill(&mut salt);
            secrets::hash_chosen_in(memory, &password, salt)
        }))
    }

    fn verify(
        &self,
        of: &Bucket,
        from: IpAddr,
        password: String,
        hash: String,
        wrong: Box<dyn FnOnce() + Send>,
    ) -> BoxFuture<'_, Option<bool>> {
        let payers = vec![Payer::Account(of.clone()), turns::stranger(from)];
        Box::pin(self.carry_out(&self.checking, payers, move |memory| {
            let is_right = secrets::verify_chosen_in(memory, &password, &hash);
            if !is_right {
                wrong();
            }
            is_right
        }))
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Waker};

    use super::*;

    fn bucket(name: &str) -> Bucket {
        Bucket::from_stored(name)
    }

    fn address(last: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, last])
    }

    /// Whether it waits; otherwise it has been refused.
    fn waits<T>(future: &mut BoxFuture<'_, Option<T>>) -> bool {
        match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            std::task::Poll::Pending => true,
            std::task::Poll::Ready(done) => {
                assert!(done.is_none(), "nothing can run");
                false
            }
        }
    }

    /// One account that sets passwords, or many who guess, keep nobody else from logging in.
    #[tokio::test]
    async fn who_waits_for_passwords_leaves_room_to_others() {
        let pool = PasswordPool::new(1, 16);
        let running = pool.running.acquire().await.expect("open");
        let hash = |account: &str| pool.hash(&bucket(account), "password".to_owned());
        let verify = |account: &str, from: u8| {
            let wrong = Box::new(|| ());
            pool.verify(
                &bucket(account),
                address(from),
                "password".to_owned(),
                String::new(),
                wrong,
            )
        };
        let mut of_loud: Vec<_> = (0..5).map(|_| hash("loud")).collect();
        let waiting: Vec<_> = of_loud.iter_mut().map(waits).collect();
        assert_eq!(waiting, [true, true, true, true, false], "a quarter");
        let mut others: Vec<_> = ["a", "b", "c", "d", "e"].map(hash).into_iter().collect();
        let waiting: Vec<_> = others.iter_mut().map(waits).collect();
        assert_eq!(waiting, [true, true, true, true, false], "half of all");
        let mut of_one_address: Vec<_> =
            ["a", "b", "c", "d", "e"].iter().map(|account| verify(account, 1)).collect();
        let waiting: Vec<_> = of_one_address.iter_mut().map(waits).collect();
        assert_eq!(waiting, [true, true, true, true, false], "an address's quarter");
        drop(of_one_address);
        let mut at_one_account: Vec<_> = (1..=5).map(|from| verify("victim", from)).collect();
        let waiting: Vec<_> = at_one_account.iter_mut().map(waits).collect();
        assert_eq!(waiting, [true, true, true, true, false], "an account's quarter");
        let mut right = verify("quiet", 9);
        assert!(waits(&mut right));
        drop((of_loud, others, at_one_account));
        // It has its thread and hangs up: the thread is taken even so.
        let mut gone = hash("gone");
        drop(running);
        // Those that had waited in front of it have gone too, but for one.
        assert!(waits(&mut right), "it runs");
        assert_eq!(right.as_mut().await, Some(false));
        assert!(waits(&mut gone));
        drop(gone);
        assert_eq!(verify("quiet", 9).await, Some(false));
        assert_eq!(pool.memory.lock().expect("unpoisoned").len(), 1);
        for places in [&pool.setting, &pool.checking] {
            let taken = places.taken.lock().expect("unpoisoned");
            assert!(taken.all == 0 && taken.by_payer.is_empty(), "{taken:?}");
        }
    }
}
