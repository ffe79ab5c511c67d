//! Turns: when a request of one account may be carried out, so that a flood of one does not become
//! the delay of another.
//!
//! An account that floods waits for itself, and past a bound is refused. While several accounts
//! call, two more rules hold: reads of one account, which are work for a core and not for the disk,
//! leave one worker to the others; and an account that has used its share of the workers' time waits
//! until it is due again (ADR 7). Here is what is known of all payers together; [`payers`] is what is
//! known of one, [`shares`] how a connection's work is metered and waits, [`budgets`] room for bytes
//! of bodies and answers.

mod alarm;
mod budgets;
mod due;
mod payers;
mod shares;

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use neuron::requests::Payer;

pub(crate) use self::alarm::AlarmClock;
pub(crate) use self::budgets::{AnswerBytes, BodyBytes};
use self::payers::{Account, STRANGER_CALLS};
pub(crate) use self::payers::{customer, stranger};
pub(crate) use self::shares::Spender;

/// Payers remembered; idle ones are forgotten beyond it.
const PAYERS_MAX: usize = 10_000;

/// Ticks for which payers count as in company after two of them have called in turn.
const COMPANY_TICKS: u32 = 3;

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
    /// Refused because too many bytes of answers were not taken.
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
    /// How many payers there have to be for those to be forgotten that nobody needs.
    sweep_at: AtomicUsize,
    /// Bytes of the bodies of requests under way.
    bodies: AtomicUsize,
    /// Those of them whose senders have not proven anything.
    bodies_of_strangers: AtomicUsize,
    /// Bytes of answers that were not taken yet.
    answers: AtomicUsize,
    /// Those of them to clients that have not proven anything.
    answers_of_strangers: AtomicUsize,
    /// What a write costs the store's own thread, in ns of its time.
    write_ns: AtomicU64,
    pub(crate) counters: Counters,
    alarm: AlarmClock,
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
            sweep_at: AtomicUsize::new(PAYERS_MAX),
            bodies: AtomicUsize::new(0),
            bodies_of_strangers: AtomicUsize::new(0),
            answers: AtomicUsize::new(0),
            answers_of_strangers: AtomicUsize::new(0),
            write_ns: AtomicU64::new(0),
            counters: Counters::default(),
            alarm,
        })
    }

    /// Tells that a second or so has passed.
    pub(crate) fn tick(&self) {
        self.now.fetch_add(1, Ordering::Relaxed);
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
        if accounts.len() >= self.sweep_at.load(Ordering::Relaxed) {
            // One that a connection holds would have another beside it.
            accounts.retain(|_, account| Arc::strong_count(account) > 1 || self.is_owed(account));
            self.sweep_at.store(PAYERS_MAX.max(2 * accounts.len()), Ordering::Relaxed);
        }
        let number = self.next_number.fetch_add(1, Ordering::Relaxed);
        let at_once = self.bounds.at_once;
        let fresh = Account::new(payer.clone(), number, at_once, self.reads_in_company);
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

#[cfg(test)]
pub(crate) mod tests {
    use std::net::Ipv4Addr;

    use neuron::requests::Admission as _;

    use super::*;

    pub(crate) const BOUNDS: Bounds = Bounds {
        at_once: 4,
        waiting: 2,
        workers: 2,
        share: 0.5,
        bodies: 200,
        answers: 160,
        account_rate: 0,
        address_rate: 0,
    };

    pub(crate) fn turns(bounds: Bounds) -> Arc<Turns> {
        Turns::new(bounds, AlarmClock::start().expect("a thread"))
    }

    pub(super) const ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

    pub(super) fn payer(number: u8) -> Payer {
        Payer::Account(kv4::Bucket::from_stored(&format!("account {number}")))
    }

    pub(super) async fn call(spender: &Spender, payer: Payer) {
        let turn = spender.ticket().turn(payer, true).await;
        drop(turn.expect("nothing is refused"));
    }

    #[tokio::test]
    async fn company_is_two_who_call_within_seconds() {
        let turns = turns(BOUNDS);
        let spender = Spender::new(turns.clone(), ADDRESS);
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
    async fn probes_and_a_mistyped_password_are_no_company() {
        let turns = turns(BOUNDS);
        let spender = Spender::new(turns.clone(), ADDRESS);
        for _ in 0..STRANGER_CALLS {
            call(&spender, payer(1)).await;
            call(&spender, Payer::Address(ADDRESS)).await;
            assert!(!turns.is_in_company());
        }
        call(&spender, Payer::Address(ADDRESS)).await;
        assert!(turns.is_in_company(), "that is more than probes");
    }

    /// A payer who is forgotten while a connection holds him would be two on his next one.
    #[test]
    fn whoever_is_held_is_not_forgotten() {
        let turns = turns(BOUNDS);
        let held = turns.account(payer(1));
        for number in 0..3 * PAYERS_MAX as u32 {
            turns.account(Payer::Address(Ipv4Addr::from(number).into()));
        }
        assert!(Arc::ptr_eq(&held, &turns.account(payer(1))));
        assert!(turns.accounts.len() <= PAYERS_MAX, "others are");
    }
}
