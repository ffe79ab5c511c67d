//! KV4's tests: views against histories, KV4 against a plain model, eviction, derived caches,
//! waiting, watches, threads.

// A test that cannot go on fails here and now.
#![allow(clippy::unwrap_used)]

mod buckets;
mod derived;
mod eviction;
mod kv;
mod memory;
mod model;
mod threads;
mod views;
mod waiting;
mod watches;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use kv4::address::{Bucket, Entry, Node};
use kv4::version::Stamp;
use kv4::write::{Condition, KeyChange, Op, Write};
use proptest::test_runner::{Config, RngSeed, TestCaseResult, TestRunner};
use wire::json::Json;
use wire::names::{Ident, Key, Layer, Path};

/// Cases of each property when `GANGLION_CASES` does not say.
const CASES: u32 = 400;

/// Tries a property on many cases; a failure shows the shortest one found and how to go on from it.
fn try_cases<S: proptest::strategy::Strategy>(
    strategy: &S,
    property: impl Fn(S::Value) -> TestCaseResult,
) {
    let variable = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let cases = variable("GANGLION_CASES").and_then(|cases| u32::try_from(cases).ok());
    let seed = variable("GANGLION_SEED").unwrap_or(1);
    let config = Config {
        cases: cases.unwrap_or(CASES),
        failure_persistence: None,
        max_shrink_iters: 5_000,
        rng_seed: RngSeed::Fixed(seed),
        ..Config::default()
    };
    if let Err(error) = TestRunner::new(config).run(strategy, property) {
        panic!("{error}\nagain: GANGLION_SEED={seed} cargo test -p kv4");
    }
}

/// `account<nth>`'s bucket.
fn bucket(nth: usize) -> Bucket {
    let ident = Ident::parse(&format!("account{nth}")).unwrap();
    Bucket::account(&ident, None).unwrap()
}

/// Node `nth` of a bucket.
fn node(of: usize, nth: usize) -> Node {
    let path = Path::parse(&format!("/path/{nth}")).unwrap();
    Node::new(bucket(of), Layer::parse("*data").unwrap(), path)
}

fn key(nth: usize) -> Key {
    Key::parse(&format!("key{nth}")).unwrap()
}

/// A write of a string of `chars` letters, or a deletion.
fn write(entry: &Entry, chars: Option<usize>, keys: [KeyChange; 3]) -> Write {
    let op = match chars {
        Some(chars) => Op::Put { value: Json::string(&"x".repeat(chars)), keys },
        None => Op::Delete,
    };
    Write {
        entry: entry.clone(),
        op,
        condition: Condition::Any,
        who: Arc::from("elena"),
        stamp: Stamp { micros: 1, neuron: 1 },
    }
}

/// Counts wake-ups.
#[derive(Default)]
struct Wakes(AtomicUsize);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, SeqCst);
    }
}

/// A future that is polled by hand.
struct Held<'a, T> {
    future: std::pin::Pin<Box<dyn Future<Output = T> + 'a>>,
    wakes: Arc<Wakes>,
}

impl<'a, T> Held<'a, T> {
    fn new(future: impl Future<Output = T> + 'a) -> Held<'a, T> {
        Held { future: Box::pin(future), wakes: Arc::default() }
    }

    fn poll(&mut self) -> Option<T> {
        let waker = Waker::from(self.wakes.clone());
        match self.future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(done) => Some(done),
            Poll::Pending => None,
        }
    }

    /// Whether it was woken since the last look.
    fn is_woken(&self) -> bool {
        self.wakes.0.swap(0, SeqCst) > 0
    }
}

/// The output of a future that never waits, as over a [`kv4::memory::MemoryStore`].
fn now<T>(future: impl Future<Output = T>) -> T {
    Held::new(future).poll().expect("it waits for nothing")
}

/// Longest that anything waits in these tests before it counts as waiting for ever.
const DEADLINE: Duration = Duration::from_secs(60);

/// Runs a future on this thread, beside others.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut future = std::pin::pin!(future);
    let begun = Instant::now();
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(done) => return done,
            Poll::Pending => thread::park_timeout(DEADLINE),
        }
        assert!(begun.elapsed() < DEADLINE, "waits for ever");
    }
}
