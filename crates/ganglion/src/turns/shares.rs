//! Shares of the workers' time: metered where it is spent, in the polls of a connection, so that it
//! includes reading, parsing, proving and writing; of a write, what the store's thread spends on one
//! comes to it. Who has had his share waits, before the next request is carried out.

use std::net::IpAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use kv4::Bucket;
use neuron::requests::{Admission, Payer, Refused};
use tokio::sync::OwnedSemaphorePermit;

use super::budgets::AnswerBytes;
use super::payers::{Account, counted_as, stranger};
use super::{Bounds, Turns};

/// Longest wait before it is asked again whether there is company still.
const WAIT_STEP: Duration = Duration::from_millis(100);

/// One connection, or one stream of it: its work is charged to whoever called on it last.
#[derive(Debug)]
pub(crate) struct Spender {
    turns: Arc<Turns>,
    last: Mutex<Arc<Account>>,
    /// Of a stream: its connection, whose own work is that of whoever called last on any stream.
    connection: Option<Arc<Spender>>,
}

impl Spender {
    /// For a connection of an address, which pays until somebody calls.
    pub(crate) fn new(turns: Arc<Turns>, address: IpAddr) -> Arc<Spender> {
        let last = Mutex::new(turns.account(stranger(address)));
        Arc::new(Spender { turns, last, connection: None })
    }

    /// Charges what follows to an account, which has not asked for a turn.
    pub(crate) fn charge_to(&self, bucket: Bucket) {
        self.account(Payer::Account(bucket));
    }

    /// Notes that the account has said something over a socket; for how long that is not to be read
    /// from, if the account has had its share of the time.
    pub(crate) fn has_said(&self) -> Option<Duration> {
        let turns = &self.turns;
        let account = self.last();
        turns.meet(&account);
        if !turns.is_in_company() {
            return None;
        }
        let wait = account.share.wait(turns.now_ns());
        if wait.is_zero() {
            return None;
        }
        turns.counters.delayed.fetch_add(1, Ordering::Relaxed);
        Some(wait.min(WAIT_STEP))
    }

    /// For one stream of this connection.
    pub(crate) fn of_stream(self: &Arc<Self>) -> Arc<Spender> {
        let last = Mutex::new(self.last().clone());
        Arc::new(Spender { turns: self.turns.clone(), last, connection: Some(self.clone()) })
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
        self.turns.charge(&self.last(), spent);
    }

    fn last(&self) -> MutexGuard<'_, Arc<Account>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn turns(&self) -> &Arc<Turns> {
        &self.turns
    }

    /// Who called last.
    pub(super) fn payer(&self) -> Arc<Account> {
        self.last().clone()
    }

    /// Who calls, from here on.
    fn account(&self, payer: Payer) -> Arc<Account> {
        let account = {
            let mut last = self.last();
            if last.payer != payer {
                *last = self.turns.account(payer);
            }
            last.clone()
        };
        if let Some(connection) = &self.connection {
            *connection.last() = account.clone();
        }
        account
    }

    /// For one request that is answered in a few words.
    pub(crate) fn ticket(&self) -> Ticket<'_> {
        self.ticket_for(0, 0)
    }

    /// For one request that, if it writes, is answered in about so many `bytes`, over a connection
    /// whose client holds `of_connection` bytes of answers before.
    pub(crate) fn ticket_for(&self, of_connection: usize, bytes: usize) -> Ticket<'_> {
        let (lane, reserved) = (Mutex::new(None), Mutex::new(None));
        Ticket { spender: self, lane, of_connection, bytes, reserved }
    }

    /// Waits until a new connection's address may have a TLS handshake: one after another, each until
    /// its address's share is due as it comes to the front. It takes none of the places that the
    /// address's requests run and wait in, or who fills those would keep every neighbour of his out.
    pub(crate) async fn handshake(&self) {
        let turns = &self.turns;
        let account = self.last().clone();
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

/// One request of a connection, the place that its read has in its payer's lane, and the room that is
/// kept for what its write is answered.
#[derive(Debug)]
pub(crate) struct Ticket<'a> {
    spender: &'a Spender,
    lane: Mutex<Option<OwnedSemaphorePermit>>,
    of_connection: usize,
    bytes: usize,
    reserved: Mutex<Option<AnswerBytes>>,
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

    /// Keeps room for what a write is answered: to be told afterwards that there is none would be too
    /// late.
    fn reserve(&self, account: &Arc<Account>) -> Result<(), Refused> {
        let reserved = AnswerBytes::count(&self.spender.turns, account.clone(), self.bytes);
        if !reserved.has_room(self.of_connection) {
            return Err(Refused::Overloaded);
        }
        *self.reserved.lock().unwrap_or_else(PoisonError::into_inner) = Some(reserved);
        Ok(())
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
        if !is_read {
            self.reserve(&account)?;
        }
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

#[cfg(test)]
mod tests {
    use super::super::tests::{ADDRESS, BOUNDS, call, payer, turns};
    use super::*;

    #[tokio::test]
    async fn who_has_spent_his_share_waits_and_others_do_not() {
        let turns = turns(BOUNDS);
        let (loud, quiet) =
            (Spender::new(turns.clone(), ADDRESS), Spender::new(turns.clone(), ADDRESS));
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
        let spender = Spender::new(turns.clone(), ADDRESS);
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
        let (one, other) =
            (Spender::new(turns.clone(), ADDRESS), Spender::new(turns.clone(), ADDRESS));
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

    /// A flood of pages refuses no handshake of its address.
    #[tokio::test]
    async fn a_handshake_waits_for_its_share_and_not_behind_requests() {
        let turns = turns(Bounds { at_once: 1, waiting: 0, ..BOUNDS });
        let (one, other) =
            (Spender::new(turns.clone(), ADDRESS), Spender::new(turns.clone(), ADDRESS));
        call(&one, payer(1)).await;
        call(&one, payer(2)).await;
        assert!(turns.is_in_company());
        let ticket = one.ticket();
        let _held = ticket.turn(Payer::Address(ADDRESS), true).await.expect("the first");
        let refused = other.ticket().turn(Payer::Address(ADDRESS), true).await;
        assert_eq!(refused.err(), Some(Refused::Overloaded));
        other.handshake().await;
        // Half of two workers for 40 ms.
        other.charge(Duration::from_millis(40));
        let begun = Instant::now();
        Spender::new(turns.clone(), ADDRESS).handshake().await;
        assert!(begun.elapsed() >= Duration::from_millis(20), "{:?}", begun.elapsed());
        assert_eq!(turns.counters.delayed.load(Ordering::Relaxed), 1);
    }
}
