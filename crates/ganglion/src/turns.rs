//! Turns: when a request of one account may be carried out, so that a flood of one does not become
//! the delay of another.
//!
//! An account that floods waits for itself, and past a bound is refused. While several accounts
//! call, two more rules hold: reads of one account, which are work for a core and not for the disk,
//! leave one worker to the others; and an account that has used its share of the workers' time waits
//! until it is due again. Time is metered where it is spent, in the polls of a connection, so it
//! includes reading, parsing, proving and writing; of a write, what the store's thread spends on one
//! comes to it. Whoever cannot prove to be an account takes the turns of his address.
//!
//! Beside time, payers have room: for the bytes of bodies that they send, and of answers that they do
//! not take. Not here: how those are read and written (`http`, `answers`).

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

/// Part of all bodies' bytes that those of one account may take: one in so many.
const BODIES_OF_ACCOUNT: usize = 4;

/// The same of one address, for those who have not proven anything yet.
const BODIES_OF_ADDRESS: usize = 8;

/// The same of all of those together: who has proven to be an account finds room whatever they hold.
const BODIES_OF_STRANGERS: usize = 2;

/// Part of the bytes of all answers that those of one address may take: one in so many.
const ANSWERS_OF_ADDRESS: usize = 4;

/// The same of one connection.
const ANSWERS_OF_CONNECTION: usize = 8;

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
    /// Bytes of all answers that were not taken yet.
    pub(crate) answers: usize,
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
    /// Reads refused because too many bytes of answers were not taken.
    pub(crate) answers_refused: AtomicU64,
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
    /// Those of them whose senders have not proven anything.
    bodies_of_strangers: AtomicUsize,
    /// Bytes of answers that were not taken yet.
    answers: AtomicUsize,
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
    /// Bytes of answers that it has not taken yet.
    answers: AtomicUsize,
    /// Held by the TLS handshake that waits for its payer's share, in front of all others.
    handshake: Semaphore,
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
            bodies_of_strangers: AtomicUsize::new(0),
            answers: AtomicUsize::new(0),
            write_ns: AtomicU64::new(0),
            counters: Counters::default(),
            alarm,
        })
    }

    /// Tells that a second or so has passed.
    pub(crate) fn tick(&self) {
        self.now.fetch_add(1, Ordering::Relaxed);
    }

    /// Begins to count the bytes of a body that somebody sends: an account that has proven itself
    /// before, or else an address.
    pub(crate) fn body(self: &Arc<Self>, sender: Payer) -> BodyBytes {
        BodyBytes { turns: self.clone(), of: self.account(counted_as(sender)), bytes: 0 }
    }

    /// Counts an answer that an address is given over a connection that holds `of_connection` bytes
    /// before it. `None` when there is no room; one answer there is always room for, and one that
    /// `must_go` is counted only.
    pub(crate) fn answer(
        self: &Arc<Self>,
        address: IpAddr,
        of_connection: usize,
        bytes: usize,
        must_go: bool,
    ) -> Option<AnswerBytes> {
        let of = self.account(stranger(address));
        let max = self.bounds.answers;
        let has_room = |held: usize, max: usize| held == 0 || held.saturating_add(bytes) <= max;
        let of_address = of.answers.fetch_add(bytes, Ordering::Relaxed);
        let of_all = self.answers.fetch_add(bytes, Ordering::Relaxed);
        // From here on it is counted, and dropped if there is no room.
        let counted = AnswerBytes { turns: self.clone(), of, bytes };
        let fits = has_room(of_connection, max / ANSWERS_OF_CONNECTION)
            && has_room(of_address, max / ANSWERS_OF_ADDRESS)
            && has_room(of_all, max);
        if !fits && !must_go {
            self.counters.answers_refused.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        Some(counted)
    }

    /// Bytes of answers that were not taken yet.
    pub(crate) fn answer_bytes(&self) -> usize {
        self.answers.load(Ordering::Relaxed)
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
        if account.is_stranger() && account.call(now) < STRANGER_CALLS {
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
            answers: AtomicUsize::new(0),
            handshake: Semaphore::new(1),
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
            || account.answers.load(Ordering::Relaxed) > 0
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
    /// Counts more bytes, unless there is no room for them: then it says of whom there are too many.
    pub(crate) fn grow(&mut self, more: usize) -> Result<(), &'static str> {
        let (turns, max) = (&self.turns, self.turns.bounds.bodies);
        self.bytes += more;
        let of_payer = self.of.bodies.fetch_add(more, Ordering::Relaxed) + more;
        let of_all = turns.bodies.fetch_add(more, Ordering::Relaxed) + more;
        if self.of.is_stranger() {
            let of_strangers = turns.bodies_of_strangers.fetch_add(more, Ordering::Relaxed) + more;
            if of_payer > max / BODIES_OF_ADDRESS {
                return Err("of this address, before a login,");
            }
            if of_strangers > max / BODIES_OF_STRANGERS {
                return Err("of all who have not logged in before");
            }
        } else if of_payer > max / BODIES_OF_ACCOUNT {
            return Err("of this account");
        }
        if of_all > max { Err("of all together") } else { Ok(()) }
    }
}

impl Drop for BodyBytes {
    fn drop(&mut self) {
        self.of.bodies.fetch_sub(self.bytes, Ordering::Relaxed);
        self.turns.bodies.fetch_sub(self.bytes, Ordering::Relaxed);
        if self.of.is_stranger() {
            self.turns.bodies_of_strangers.fetch_sub(self.bytes, Ordering::Relaxed);
        }
    }
}

/// Bytes of an answer, counted until this is dropped.
#[derive(Debug)]
pub(crate) struct AnswerBytes {
    turns: Arc<Turns>,
    of: Arc<Account>,
    bytes: usize,
}

impl Drop for AnswerBytes {
    fn drop(&mut self) {
        self.of.answers.fetch_sub(self.bytes, Ordering::Relaxed);
        self.turns.answers.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Account {
    fn is_stranger(&self) -> bool {
        matches!(self.payer, Payer::Address(_))
    }

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

    /// Waits until an address may have a TLS handshake: one after another, each until its address's
    /// share is due as it comes to the front. It takes none of the places that the address's requests
    /// run and wait in, or who fills those would keep every neighbour of his out.
    pub(crate) async fn handshake(&self, address: IpAddr) {
        let turns = &self.turns;
        let account = self.account(stranger(address));
        turns.meet(&account);
        if !turns.is_in_company() {
            return;
        }
        let _in_front = account.handshake.acquire().await.expect("it is never closed");
        let wait = account.share.wait(turns.now_ns());
        if !wait.is_zero() {
            turns.counters.delayed.fetch_add(1, Ordering::Relaxed);
        }
        // Whatever its neighbours spend meanwhile: they would keep it waiting for ever.
        let due = Instant::now() + wait;
        while turns.is_in_company() && Instant::now() < due {
            turns.alarm.sleep_until(due.min(Instant::now() + WAIT_STEP)).await;
        }
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
        let account = self.spender.account(counted_as(payer));
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

/// The payer as which somebody is counted.
fn counted_as(payer: Payer) -> Payer {
    match payer {
        Payer::Address(address) => stranger(address),
        account @ Payer::Account(_) => account,
    }
}

/// A payer that is no account. Of an IPv6 address its /64 counts, which is what one customer is
/// given.
pub(crate) fn stranger(address: IpAddr) -> Payer {
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
        bodies: 200,
        answers: 160,
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

    fn address(last: u8) -> IpAddr {
        IpAddr::from(Ipv4Addr::new(192, 0, 2, last))
    }

    #[tokio::test]
    async fn bodies_have_room_of_one_sender_and_of_all() {
        let turns = turns(BOUNDS);
        let stranger = |last| turns.body(Payer::Address(address(last)));
        let mut first = stranger(1);
        assert!(first.grow(20).is_ok() && first.grow(5).is_ok());
        let mut second = stranger(1);
        assert_eq!(second.grow(1), Err("of this address, before a login,"), "an eighth");
        drop((first, second));
        let mut of_account = turns.body(payer(1));
        assert_eq!(of_account.grow(50), Ok(()));
        assert_eq!(turns.body(payer(1)).grow(1), Err("of this account"), "a quarter");
        drop(of_account);
        assert_eq!(turns.body_bytes(), 0);
    }

    #[tokio::test]
    async fn strangers_leave_half_of_the_room_for_bodies_to_those_who_are_known() {
        let turns = turns(BOUNDS);
        let mut held = Vec::new();
        for last in 0..40 {
            let mut body = turns.body(Payer::Address(address(last)));
            if body.grow(10).is_ok() {
                held.push(body);
            }
        }
        assert_eq!(held.len(), 10);
        let refused = turns.body(Payer::Address(address(99))).grow(1);
        assert_eq!(refused, Err("of all who have not logged in before"));
        let mut of_accounts = [1, 2].map(|number| turns.body(payer(number)));
        assert!(of_accounts.iter_mut().all(|body| body.grow(50).is_ok()));
        assert_eq!(turns.body(payer(3)).grow(1), Err("of all together"));
        drop((held, of_accounts));
        assert_eq!(turns.body(Payer::Address(address(99))).grow(25), Ok(()));
        assert_eq!(turns.body_bytes(), 0, "all was given back");
    }

    #[tokio::test]
    async fn answers_have_room_of_one_connection_of_one_address_and_of_all() {
        let turns = turns(BOUNDS);
        let answer = |last, held, bytes| turns.answer(address(last), held, bytes, false);
        let lone = answer(1, 0, 1000).expect("one answer goes whatever its size");
        assert!(answer(2, 0, 1).is_none(), "there is no room at all");
        drop(lone);
        let first = answer(1, 0, 10).expect("room");
        let second = answer(1, 10, 10).expect("an eighth of a connection");
        assert!(answer(1, 20, 1).is_none(), "no more of it");
        let third = answer(1, 0, 20).expect("a quarter of an address");
        assert!(answer(1, 0, 1).is_none(), "no more of it");
        let others: Vec<_> = (2..=4).filter_map(|last| answer(last, 0, 40)).collect();
        assert_eq!(others.len(), 3);
        assert!(answer(5, 0, 1).is_none(), "no more of all");
        let written = turns.answer(address(5), 0, 7, true).expect("what was done is told");
        assert_eq!(turns.answer_bytes(), 167);
        drop((first, second, third, others, written));
        assert_eq!(turns.answer_bytes(), 0);
        assert_eq!(turns.counters.answers_refused.load(Ordering::Relaxed), 4);
    }

    /// A flood of pages refuses no handshake of its address.
    #[tokio::test]
    async fn a_handshake_waits_for_its_share_and_not_behind_requests() {
        let turns = turns(Bounds { at_once: 1, waiting: 0, ..BOUNDS });
        let (one, other) = (Spender::new(turns.clone()), Spender::new(turns.clone()));
        call(&one, payer(1)).await;
        call(&one, payer(2)).await;
        assert!(turns.is_in_company());
        let ticket = one.ticket();
        let _held = ticket.turn(Payer::Address(ADDRESS), true).await.expect("the first");
        let refused = other.ticket().turn(Payer::Address(ADDRESS), true).await;
        assert_eq!(refused.err(), Some(Refused::Overloaded));
        other.handshake(ADDRESS).await;
        // Half of two workers for 40 ms.
        other.charge(Duration::from_millis(40));
        let begun = Instant::now();
        Spender::new(turns.clone()).handshake(ADDRESS).await;
        assert!(begun.elapsed() >= Duration::from_millis(20), "{:?}", begun.elapsed());
        assert_eq!(turns.counters.delayed.load(Ordering::Relaxed), 1);
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
