//! Turns: when a request of one account may be carried out, so that a flood of one does not become
//! the delay of another.
//!
//! An account that floods waits for itself, and past a bound is refused. While several accounts
//! call, two more rules hold: reads of one account, which are work for a core and not for the disk,
//! leave one worker to the others; and an account that has used its share of the workers' time waits
//! until it is due again. Time is metered where it is spent, in the polls of a connection, so it
//! includes reading, parsing, proving and writing; of a write, what the store's thread spends on one
//! comes to it. Whoever cannot prove to be an account takes the
//! turns of his address.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use neuron::requests::{Admission, Payer, Refused};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::alarm::AlarmClock;

/// Payers remembered; idle ones are forgotten beyond it.
const PAYERS_MAX: usize = 10_000;

/// Ticks for which payers count as in company after two of them have called in turn.
const COMPANY_TICKS: u32 = 3;

/// Calls within a tick from which on somebody who is no account counts as company: probes of health
/// and a mistyped password do not.
const STRANGER_CALLS: u64 = 50;

/// Part of all bodies' bytes that those of one address may take: one in so many.
const BODIES_OF_ADDRESS: usize = 4;

/// Time that a payer may save up and spend at once, in ns: about what the alarm is late by. What it
/// spends at once is what somebody else may have to wait for.
const SAVED_NS: u64 = 50_000;

/// Longest wait before it is asked again whether there is company still.
const WAIT_STEP: Duration = Duration::from_millis(100);

const SECOND_NS: u64 = 1_000_000_000;

/// What [`Turns`] keeps to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// Requests of one payer at once.
    pub(crate) at_once: usize,
    /// Requests of one payer that wait.
    pub(crate) waiting: usize,
    /// Worker threads.
    pub(crate) workers: usize,
    /// Part of their time that one payer may take in company, above 0 and up to 1.
    pub(crate) share: f64,
    /// Bytes of all requests' bodies.
    pub(crate) bodies: usize,
    /// Requests of one account in a second; 0 for no bound.
    pub(crate) account_rate: u32,
    /// Requests of one address in a second, whoever makes them; 0 for no bound.
    pub(crate) address_rate: u32,
}

/// How often bounds were hit.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    /// Refused with too many of their payer waiting.
    pub(crate) overloaded: AtomicU64,
    /// Refused over a rate.
    pub(crate) over_rate: AtomicU64,
    /// Waited for their payer's share of time.
    pub(crate) delayed: AtomicU64,
}

/// The turns of every payer.
#[derive(Debug)]
pub(crate) struct Turns {
    bounds: Bounds,
    /// Reads at once of one payer in company.
    reads_in_company: usize,
    begun: Instant,
    accounts: papaya::HashMap<Payer, Arc<Account>>,
    /// Grows with each [`Turns::tick`].
    now: AtomicU32,
    /// When two payers called in turn, last.
    met: AtomicU32,
    /// Which account called last, and at which tick: its number in the upper half, 0 for nobody.
    last: AtomicU64,
    next_number: AtomicU32,
    /// Bytes of the bodies of requests under way.
    bodies: AtomicUsize,
    /// What a write costs the store's own thread, in ns of its time.
    write_ns: AtomicU64,
    pub(crate) counters: Counters,
    alarm: AlarmClock,
}

/// What one payer has used and waits for.
#[derive(Debug)]
struct Account {
    payer: Payer,
    number: u32,
    running: Arc<Semaphore>,
    /// Held by reads that run in company; one that waits for the store gives its place up.
    lane: Arc<Semaphore>,
    /// Held by the write that waits for its payer's share, in front of all others.
    gate: Arc<Semaphore>,
    waiting: AtomicUsize,
    /// A tick in the upper half, and in the lower how often it has called in it.
    calls: AtomicU64,
    /// Bytes of its requests' bodies.
    bodies: AtomicUsize,
    /// When its share of the workers' time allows the next request.
    share: Due,
    /// When its rate does.
    rate: Due,
}

/// A limit in virtual time (the generic cell rate algorithm): every use moves a date on, and a use
/// is late or early by how far that date is from now. In ns since [`Turns`] began.
#[derive(Debug, Default)]
struct Due(AtomicU64);

impl Due {
    fn wait(&self, now: u64) -> Duration {
        Duration::from_nanos(self.0.load(Ordering::Relaxed).saturating_sub(now))
    }

    /// Pays afterwards; what was not used is forfeited, but for what a timer is late by.
    fn charge(&self, now: u64, cost: u64) {
        let next = |due: u64| Some(due.max(now.saturating_sub(SAVED_NS)).saturating_add(cost));
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
    }

    /// Pays in advance, unless that is more than a second too early.
    fn take(&self, now: u64, a_second: u32) -> bool {
        let cost = SECOND_NS / u64::from(a_second);
        let next = |due: u64| {
            let due = due.max(now) + cost;
            (due - now <= SECOND_NS).then_some(due)
        };
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).is_ok()
    }
}

/// Counts a request as waiting for as long as this is held.
struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Turns {
    pub(crate) fn new(bounds: Bounds, alarm: AlarmClock) -> Arc<Turns> {
        Arc::new(Turns {
            bounds,
            reads_in_company: bounds.workers.saturating_sub(1).clamp(1, bounds.at_once),
            begun: Instant::now(),
            accounts: papaya::HashMap::default(),
            now: AtomicU32::new(COMPANY_TICKS + 1),
            met: AtomicU32::new(0),
            last: AtomicU64::new(0),
            next_number: AtomicU32::new(1),
            bodies: AtomicUsize::new(0),
            write_ns: AtomicU64::new(0),
            counters: Counters::default(),
            alarm,
        })
    }

    /// Tells that a second or so has passed.
    pub(crate) fn tick(&self) {
        self.now.fetch_add(1, Ordering::Relaxed);
    }

    /// Begins to count the bytes of a body that an address sends.
    pub(crate) fn body(self: &Arc<Self>, address: IpAddr) -> BodyBytes {
        BodyBytes { turns: self.clone(), of: self.account(stranger(address)), bytes: 0 }
    }

    /// Bytes of the bodies of requests under way.
    pub(crate) fn body_bytes(&self) -> usize {
        self.bodies.load(Ordering::Relaxed)
    }

    /// Says what writes have cost of late beside the polls of their connections.
    pub(crate) fn set_write_cost(&self, cost: Duration) {
        let cost = u64::try_from(cost.as_nanos()).unwrap_or(u64::MAX);
        self.write_ns.store(cost, Ordering::Relaxed);
    }

    /// Counts a request of an address against its rate; `false` when it is over.
    pub(crate) fn arrive(&self, address: IpAddr) -> bool {
        let rate = self.bounds.address_rate;
        let is_in_time =
            rate == 0 || self.account(stranger(address)).rate.take(self.now_ns(), rate);
        if !is_in_time {
            self.counters.over_rate.fetch_add(1, Ordering::Relaxed);
        }
        is_in_time
    }

    fn charge(&self, account: &Account, spent: Duration) {
        let Bounds { share, workers, .. } = self.bounds;
        let cost = spent.as_nanos() as f64 / (share * workers as f64);
        account.share.charge(self.now_ns(), cost as u64);
    }

    fn now_ns(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn is_in_company(&self) -> bool {
        let now = self.now.load(Ordering::Relaxed);
        now.wrapping_sub(self.met.load(Ordering::Relaxed)) <= COMPANY_TICKS
    }

    /// Notes who calls, and thereby whether others call as well.
    fn meet(&self, account: &Account) {
        let now = self.now.load(Ordering::Relaxed);
        let is_stranger = matches!(account.payer, Payer::Address(_));
        if is_stranger && account.call(now) < STRANGER_CALLS {
            return;
        }
        let this = u64::from(account.number) << 32 | u64::from(now);
        if self.last.load(Ordering::Relaxed) == this {
            return;
        }
        let before = self.last.swap(this, Ordering::Relaxed);
        let (other, tick) = (before >> 32, before as u32);
        if other != u64::from(account.number) && now.wrapping_sub(tick) <= COMPANY_TICKS {
            self.met.store(now, Ordering::Relaxed);
        }
    }

    fn account(&self, payer: Payer) -> Arc<Account> {
        let accounts = self.accounts.pin();
        if let Some(account) = accounts.get(&payer) {
            return account.clone();
        }
        if accounts.len() >= PAYERS_MAX {
            accounts.retain(|_, account| self.is_owed(account));
        }
        let fresh = Account {
            payer: payer.clone(),
            number: self.next_number.fetch_add(1, Ordering::Relaxed),
            running: Arc::new(Semaphore::new(self.bounds.at_once)),
            lane: Arc::new(Semaphore::new(self.reads_in_company)),
            gate: Arc::new(Semaphore::new(1)),
            calls: AtomicU64::new(0),
            bodies: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            share: Due::default(),
            rate: Due::default(),
        };
        accounts.get_or_insert(payer, Arc::new(fresh)).clone()
    }

    /// Whether forgetting the account would forget what it still has to wait for.
    fn is_owed(&self, account: &Account) -> bool {
        let now = self.now_ns();
        account.running.available_permits() < self.bounds.at_once
            || account.bodies.load(Ordering::Relaxed) > 0
            || !account.share.wait(now).is_zero()
            || !account.rate.wait(now).is_zero()
    }
}

/// Bytes of a request's body, counted until this is dropped.
#[derive(Debug)]
pub(crate) struct BodyBytes {
    turns: Arc<Turns>,
    of: Arc<Account>,
    bytes: usize,
}

impl BodyBytes {
    /// Counts more bytes; `false` when there is no room for them.
    pub(crate) fn grow(&mut self, more: usize) -> bool {
        let max = self.turns.bounds.bodies;
        self.bytes += more;
        let of_address = self.of.bodies.fetch_add(more, Ordering::Relaxed) + more;
        let of_all = self.turns.bodies.fetch_add(more, Ordering::Relaxed) + more;
        of_address <= max / BODIES_OF_ADDRESS && of_all <= max
    }
}

impl Drop for BodyBytes {
    fn drop(&mut self) {
        self.of.bodies.fetch_sub(self.bytes, Ordering::Relaxed);
        self.turns.bodies.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Account {
    /// Counts a call at a tick; how many there were in it before.
    fn call(&self, now: u32) -> u64 {
        let next = |calls: u64| {
            let is_same = calls >> 32 == u64::from(now);
            Some(if is_same { calls + 1 } else { u64::from(now) << 32 | 1 })
        };
        let before = self.calls.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
        let before = before.unwrap_or_else(|calls| calls);
        if before >> 32 == u64::from(now) { before & u64::from(u32::MAX) } else { 0 }
    }

    async fn permit(
        &self,
        semaphore: &Arc<Semaphore>,
        waiting_max: usize,
    ) -> Result<OwnedSemaphorePermit, Refused> {
        if let Ok(permit) = semaphore.clone().try_acquire_owned() {
            return Ok(permit);
        }
        let before = self.waiting.fetch_add(1, Ordering::Relaxed);
        let _waiting = Waiting(&self.waiting);
        if before >= waiting_max {
            return Err(Refused::Overloaded);
        }
        Ok(semaphore.clone().acquire_owned().await.expect("these semaphores are never closed"))
    }
}

/// One connection: its work is charged to whoever called on it last.
#[derive(Debug)]
pub(crate) struct Spender {
    turns: Arc<Turns>,
    last: Mutex<Option<Arc<Account>>>,
}

impl Spender {
    pub(crate) fn new(turns: Arc<Turns>) -> Spender {
        Spender { turns, last: Mutex::new(None) }
    }

    /// Charges the time that `work` is polled for, while that counts.
    pub(crate) async fn metered<T>(&self, work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        std::future::poll_fn(|context| {
            if !self.turns.is_in_company() {
                return work.as_mut().poll(context);
            }
            let begun = Instant::now();
            let polled = work.as_mut().poll(context);
            self.charge(begun.elapsed());
            polled
        })
        .await
    }

    fn charge(&self, spent: Duration) {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(account) = &*last {
            self.turns.charge(account, spent);
        }
    }

    fn account(&self, payer: Payer) -> Arc<Account> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match &*last {
            Some(account) if account.payer == payer => account.clone(),
            _ => last.insert(self.turns.account(payer)).clone(),
        }
    }
}

/// One request of a connection, and the place that its read has in its payer's lane.
#[derive(Debug)]
pub(crate) struct Ticket<'a> {
    spender: &'a Spender,
    lane: Mutex<Option<OwnedSemaphorePermit>>,
}

impl Spender {
    /// For one request.
    pub(crate) fn ticket(&self) -> Ticket<'_> {
        Ticket { spender: self, lane: Mutex::new(None) }
    }
}

impl Ticket<'_> {
    /// Carries out the request. When it has to wait, for the store say, it leaves the lane to others.
    pub(crate) async fn carry_out<T>(&self, work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        std::future::poll_fn(|context| {
            let polled = work.as_mut().poll(context);
            self.lane.lock().unwrap_or_else(PoisonError::into_inner).take();
            polled
        })
        .await
    }
}

impl Admission for Ticket<'_> {
    /// One of those that its payer may have at once.
    type Turn = OwnedSemaphorePermit;

    async fn turn(&self, payer: Payer, is_read: bool) -> Result<OwnedSemaphorePermit, Refused> {
        let turns = &self.spender.turns;
        let Bounds { waiting, account_rate, .. } = turns.bounds;
        let is_account = matches!(payer, Payer::Account(_));
        let payer = if let Payer::Address(address) = payer { stranger(address) } else { payer };
        let account = self.spender.account(payer);
        if is_account && account_rate != 0 && !account.rate.take(turns.now_ns(), account_rate) {
            turns.counters.over_rate.fetch_add(1, Ordering::Relaxed);
            return Err(Refused::OverRate(account_rate));
        }
        let refused = |refused| {
            turns.counters.overloaded.fetch_add(1, Ordering::Relaxed);
            refused
        };
        turns.meet(&account);
        let running = account.permit(&account.running, waiting).await.map_err(refused)?;
        if !turns.is_in_company() {
            return Ok(running);
        }
        let in_front = if is_read { &account.lane } else { &account.gate };
        let in_front = account.permit(in_front, waiting).await.map_err(refused)?;
        let mut wait = account.share.wait(turns.now_ns());
        if !wait.is_zero() {
            turns.counters.delayed.fetch_add(1, Ordering::Relaxed);
        }
        while !wait.is_zero() && turns.is_in_company() {
            turns.alarm.sleep_until(Instant::now() + wait.min(WAIT_STEP)).await;
            wait = account.share.wait(turns.now_ns());
        }
        if is_read {
            *self.lane.lock().unwrap_or_else(PoisonError::into_inner) = Some(in_front);
        } else {
            let cost = Duration::from_nanos(turns.write_ns.load(Ordering::Relaxed));
            turns.charge(&account, cost);
        }
        Ok(running)
    }
}

/// A payer that is no account. Of an IPv6 address its /64 counts, which is what one customer is
/// given.
fn stranger(address: IpAddr) -> Payer {
    Payer::Address(match address {
        IpAddr::V6(address) => {
            Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into()
        }
        address => address,
    })
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const BOUNDS: Bounds = Bounds {
        at_once: 4,
        waiting: 2,
        workers: 2,
        share: 0.5,
        bodies: 100,
        account_rate: 0,
        address_rate: 0,
    };

    fn turns(bounds: Bounds) -> Arc<Turns> {
        Turns::new(bounds, AlarmClock::start().expect("a thread"))
    }

    const ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

    fn payer(number: u8) -> Payer {
        Payer::Account(kv4::Bucket::from_stored(&format!("account {number}")))
    }

    async fn call(spender: &Spender, payer: Payer) {
        let turn = spender.ticket().turn(payer, true).await;
        drop(turn.expect("nothing is refused"));
    }

    #[tokio::test]
    async fn company_is_two_who_call_within_seconds() {
        let turns = turns(BOUNDS);
        let spender = Spender::new(turns.clone());
        for _ in 0..3 {
            call(&spender, payer(1)).await;
            turns.tick();
            assert!(!turns.is_in_company(), "with oneself");
        }
        for _ in 0..=COMPANY_TICKS {
            turns.tick();
        }
        call(&spender, payer(2)).await;
        assert!(!turns.is_in_company(), "the other one called long ago");
        call(&spender, payer(1)).await;
        assert!(turns.is_in_company());
        for _ in 0..=COMPANY_TICKS {
            turns.tick();
            call(&spender, payer(1)).await;
        }
        assert!(!turns.is_in_company(), "the other one calls no more");
    }

    #[tokio::test]
    async fn who_has_spent_his_share_waits_and_others_do_not() {
        let turns = turns(BOUNDS);
        let (loud, quiet) = (Spender::new(turns.clone()), Spender::new(turns.clone()));
        call(&loud, payer(1)).await;
        // Half of two workers for 40 ms.
        loud.charge(Duration::from_millis(40));
        call(&loud, payer(1)).await;
        assert_eq!(turns.counters.delayed.load(Ordering::Relaxed), 0, "alone");
        let begun = Instant::now();
        call(&quiet, payer(2)).await;
        assert_eq!(turns.counters.delayed.load(Ordering::Relaxed), 0, "its share is whole");
        call(&loud, payer(1)).await;
        assert_eq!(turns.counters.delayed.load(Ordering::Relaxed), 1);
        assert!(begun.elapsed() >= Duration::from_millis(20), "{:?}", begun.elapsed());
    }

    /// Those who hang up while they wait leave their places.
    #[tokio::test]
    async fn more_than_may_wait_are_refused_and_places_are_given_back() {
        let turns = turns(Bounds { at_once: 1, ..BOUNDS });
        let spender = Spender::new(turns.clone());
        let tickets: Vec<_> = (0..4).map(|_| spender.ticket()).collect();
        for _ in 0..3 {
            let held = tickets[0].turn(payer(1), false).await.expect("the first");
            let waiting = tickets[1..3].iter().map(|ticket| ticket.turn(payer(1), false));
            let mut waiting: Vec<_> = waiting.map(Box::pin).collect();
            let mut context = std::task::Context::from_waker(std::task::Waker::noop());
            for waiter in &mut waiting {
                assert!(waiter.as_mut().poll(&mut context).is_pending());
            }
            let refused = tickets[3].turn(payer(1), false).await;
            assert_eq!(refused.err(), Some(Refused::Overloaded));
            drop((held, waiting));
        }
        assert_eq!(turns.counters.overloaded.load(Ordering::Relaxed), 3);
    }

    #[tokio::test]
    async fn a_read_that_waits_for_something_else_leaves_the_lane() {
        let turns = turns(BOUNDS);
        let (one, other) = (Spender::new(turns.clone()), Spender::new(turns.clone()));
        call(&one, payer(2)).await;
        call(&one, payer(1)).await;
        assert!(turns.is_in_company());
        let ticket = one.ticket();
        let (arrive, arrived) = tokio::sync::oneshot::channel::<()>();
        let reading = ticket.carry_out(async {
            let _turn = ticket.turn(payer(1), true).await.expect("nothing is refused");
            arrived.await
        });
        let mut reading = Box::pin(reading);
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(reading.as_mut().poll(&mut context).is_pending());
        // With two workers the lane has one place.
        call(&other, payer(1)).await;
        arrive.send(()).expect("it is awaited");
        reading.await.expect("it was sent");
    }

    #[tokio::test]
    async fn probes_and_a_mistyped_password_are_no_company() {
        let turns = turns(BOUNDS);
        let spender = Spender::new(turns.clone());
        for _ in 0..STRANGER_CALLS {
            call(&spender, payer(1)).await;
            call(&spender, Payer::Address(ADDRESS)).await;
            assert!(!turns.is_in_company());
        }
        call(&spender, Payer::Address(ADDRESS)).await;
        assert!(turns.is_in_company(), "that is more than probes");
    }

    #[tokio::test]
    async fn bodies_have_room_of_one_address_and_of_all() {
        let turns = turns(BOUNDS);
        let [a, b] = [1, 2].map(|last| IpAddr::from(Ipv4Addr::new(192, 0, 2, last)));
        let mut first = turns.body(a);
        assert!(first.grow(20) && first.grow(5));
        let mut second = turns.body(a);
        assert!(!second.grow(1), "a quarter is one address's");
        assert!(turns.body(b).grow(25));
        drop((first, second));
        assert_eq!(turns.body_bytes(), 0);
        assert!(turns.body(a).grow(25));
        let held: Vec<_> = (0..5u8)
            .map(|last| {
                let mut body = turns.body(IpAddr::from(Ipv4Addr::new(192, 0, 2, last)));
                (body.grow(24), body)
            })
            .collect();
        let room: Vec<_> = held.iter().map(|(room, _)| *room).collect();
        assert_eq!(room, [true, true, true, true, false]);
    }

    #[test]
    fn a_rate_lets_a_seconds_worth_through_and_then_one_at_a_time() {
        let due = Due::default();
        let passed = (0..100).filter(|_| due.take(SECOND_NS, 20)).count();
        assert_eq!(passed, 20);
        assert!(!due.take(SECOND_NS + SECOND_NS / 20 - 1, 20));
        assert!(due.take(SECOND_NS + SECOND_NS / 20, 20));
        assert!(!due.take(SECOND_NS + SECOND_NS / 20, 20));
    }
}
