//! A seeded single-thread executor with a virtual clock, and the machine that services ask of it.
//!
//! Which of the ready tasks goes next is drawn; time stands still while any is ready and leaps to
//! the next timer when none is. The wall clock is the virtual time with an offset that a run may
//! change at will, backwards too.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use kv4::store::BoxFuture;
use services::{Clock, Passwords, Rng};

use crate::random::Random;

/// Wall clock at virtual time 0, in µs since 1970: 2026-01-01.
const BEGINNING_MICROS: u64 = 1_767_225_600_000_000;
/// Polls after which a run counts as one that never comes to rest.
const POLLS_MAX: u64 = 5_000_000;

/// Tasks, and the machine that they run on.
#[derive(Debug)]
pub struct Executor {
    tasks: BTreeMap<u64, Task>,
    machine: Machine,
    random: Random,
    next_task: u64,
    polls: u64,
}

struct Task(Pin<Box<dyn Future<Output = ()>>>);

impl fmt::Debug for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Task")
    }
}

/// Clock, timers and randomness; a handle that tasks share.
#[derive(Clone, Debug)]
pub struct Machine(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    /// Virtual µs since the beginning.
    elapsed: u64,
    /// What the wall clock is ahead by, in µs.
    ahead: i64,
    timers: BTreeMap<(u64, u64), Waker>,
    next_timer: u64,
    ready: Vec<u64>,
    random: Random,
}

struct Ready(u64, Machine);

impl Wake for Ready {
    fn wake(self: Arc<Self>) {
        let mut state = self.1.state();
        if !state.ready.contains(&self.0) {
            state.ready.push(self.0);
        }
    }
}

impl Executor {
    pub fn new(random: &mut Random) -> Executor {
        let state = State {
            elapsed: 0,
            ahead: 0,
            timers: BTreeMap::new(),
            next_timer: 0,
            ready: Vec::new(),
            random: random.branch(),
        };
        let machine = Machine(Arc::new(Mutex::new(state)));
        Executor {
            tasks: BTreeMap::new(),
            machine,
            random: random.branch(),
            next_task: 0,
            polls: 0,
        }
    }

    pub fn machine(&self) -> Machine {
        self.machine.clone()
    }

    /// Adds a task; it runs within the next [`Executor::run_until`].
    pub fn spawn(&mut self, task: impl Future<Output = ()> + 'static) -> u64 {
        let id = self.next_task;
        self.next_task += 1;
        self.tasks.insert(id, Task(Box::pin(task)));
        self.machine.state().ready.push(id);
        id
    }

    /// Runs until `is_so` holds between two polls, or nothing can go on; whether it held.
    pub fn run_until(&mut self, mut is_so: impl FnMut(&Executor) -> bool) -> bool {
        loop {
            if is_so(self) {
                return true;
            }
            let next = {
                let mut state = self.machine.state();
                let count = state.ready.len();
                (count > 0).then(|| state.ready.swap_remove(self.random.place(count)))
            };
            match next {
                Some(id) => self.poll(id),
                None if self.leap() => {}
                None => return false,
            }
        }
    }

    /// Runs one future to its end among the others.
    ///
    /// # Panics
    /// Nothing can go on and it has not ended.
    pub fn run<T: 'static>(&mut self, future: impl Future<Output = T> + 'static) -> T {
        let output = Rc::new(RefCell::new(None));
        let to = output.clone();
        let id = self.spawn(async move {
            let done = future.await;
            to.replace(Some(done));
        });
        self.run_until(|executor| !executor.tasks.contains_key(&id));
        output.take().expect("a future that waits for nothing that will come")
    }

    /// Ends every task where it stands, as a crash does.
    pub fn end_all(&mut self) {
        drop(std::mem::take(&mut self.tasks));
        self.machine.state().ready.clear();
    }

    fn poll(&mut self, id: u64) {
        self.polls += 1;
        assert!(self.polls < POLLS_MAX, "the run never comes to rest");
        let Some(task) = self.tasks.get_mut(&id) else { return };
        let waker = Waker::from(Arc::new(Ready(id, self.machine.clone())));
        if task.0.as_mut().poll(&mut Context::from_waker(&waker)).is_ready() {
            self.tasks.remove(&id);
        }
    }

    /// Lets time go on to the next timer; `false` when there is none.
    fn leap(&mut self) -> bool {
        let waker = {
            let mut state = self.machine.state();
            let Some(((at, _), waker)) = state.timers.pop_first() else { return false };
            state.elapsed = state.elapsed.max(at);
            waker
        };
        waker.wake();
        true
    }
}

impl Machine {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Virtual µs since the beginning, which only grow.
    pub fn elapsed_micros(&self) -> u64 {
        self.state().elapsed
    }

    /// Sets the wall clock forward or back by so many µs.
    pub fn jump(&self, by_micros: i64) {
        let mut state = self.state();
        // Hours before the beginning are still long after 1970.
        let month = 30 * 86_400 * 1_000_000;
        state.ahead = (state.ahead + by_micros).clamp(-month, month);
    }

    /// Waits for a while that is drawn, up to `most`.
    pub fn pause(&self, most: Duration) -> BoxFuture<'static, ()> {
        let micros = u64::try_from(most.as_micros()).unwrap_or(u64::MAX);
        let drawn = self.state().random.below(micros.max(1));
        self.sleep(Duration::from_micros(drawn))
    }
}

struct Sleep {
    machine: Machine,
    at: u64,
    timer: Option<(u64, u64)>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let machine = self.machine.clone();
        let mut state = machine.state();
        if state.elapsed >= self.at {
            return Poll::Ready(());
        }
        let timer = match self.timer {
            Some(timer) => timer,
            None => {
                let timer = (self.at, state.next_timer);
                state.next_timer += 1;
                self.timer = Some(timer);
                timer
            }
        };
        state.timers.insert(timer, context.waker().clone());
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(timer) = self.timer {
            self.machine.state().timers.remove(&timer);
        }
    }
}

impl Clock for Machine {
    fn now_micros(&self) -> u64 {
        let state = self.state();
        (BEGINNING_MICROS + state.elapsed).saturating_add_signed(state.ahead)
    }

    fn instant(&self) -> Instant {
        static BEGINNING: LazyLock<Instant> = LazyLock::new(Instant::now);
        *BEGINNING + Duration::from_micros(self.elapsed_micros())
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let at = self.state().elapsed.saturating_add(micros);
        Box::pin(Sleep { machine: self.clone(), at, timer: None })
    }
}

impl Rng for Machine {
    fn fill(&self, bytes: &mut [u8]) {
        self.state().random.fill(bytes);
    }
}

/// Hashes at once what would take a real neuron long; takes virtual time for it.
impl Passwords for Machine {
    fn hash(&self, _: &kv4::Bucket, password: String) -> BoxFuture<'_, Option<String>> {
        Box::pin(async move {
            self.pause(Duration::from_millis(50)).await;
            // Marked as a slow hash, so that services give it back to `verify`.
            Some(format!("argon2id:{}", services::secrets::hash_random(&password)))
        })
    }

    fn verify(
        &self,
        _: &kv4::Bucket,
        _: std::net::IpAddr,
        password: String,
        hash: String,
        wrong: Box<dyn FnOnce() + Send>,
    ) -> BoxFuture<'_, Option<bool>> {
        Box::pin(async move {
            self.pause(Duration::from_millis(50)).await;
            let hash = hash.strip_prefix("argon2id:").unwrap_or_default();
            let is_right = services::secrets::verify_random(&password, hash);
            if !is_right {
                wrong();
            }
            Some(is_right)
        })
    }
}
