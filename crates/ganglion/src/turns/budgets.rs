//! Budgets: room for the bytes of bodies that payers send, and of answers that they do not take. Not
//! here: how those are read and written (`http`).

use std::sync::Arc;
use std::sync::atomic::Ordering;

use neuron::requests::Payer;

use super::payers::{Account, counted_as};
use super::{Spender, Turns};

/// Part of all bodies' bytes that those of one account may take: one in so many.
const BODIES_OF_ACCOUNT: usize = 4;

/// The same of one address, for those who have not proven anything yet.
const BODIES_OF_ADDRESS: usize = 8;

/// The same of all of those together: who has proven to be an account finds room whatever they hold.
const BODIES_OF_STRANGERS: usize = 2;

/// Part of the bytes of all answers that those to one account may take: one in so many.
const ANSWERS_OF_ACCOUNT: usize = 4;

/// The same to one address, for those who have not proven anything.
const ANSWERS_OF_ADDRESS: usize = 8;

/// The same to all of those together.
const ANSWERS_OF_STRANGERS: usize = 2;

/// The same over one connection.
const ANSWERS_OF_CONNECTION: usize = 8;

impl Turns {
    /// Begins to count the bytes of a body that somebody sends: an account that has proven itself
    /// before, or else an address. The head of a request that is not there as a whole, or whose body is
    /// not, counts as a body does.
    pub(crate) fn body(self: &Arc<Self>, sender: Payer) -> BodyBytes {
        BodyBytes { turns: self.clone(), of: self.account(counted_as(sender)), bytes: 0 }
    }

    /// Bytes of answers that were not taken yet.
    pub(crate) fn answer_bytes(&self) -> usize {
        self.answers.load(Ordering::Relaxed)
    }

    /// Bytes of the bodies of requests under way.
    pub(crate) fn body_bytes(&self) -> usize {
        self.bodies.load(Ordering::Relaxed)
    }
}

impl Spender {
    /// Counts an answer to whoever called last, over a connection that holds `of_connection` bytes
    /// before it; `None` when there is no room. What tells of something done `must_go`, and is counted
    /// only.
    pub(crate) fn answer(
        &self,
        of_connection: usize,
        bytes: usize,
        must_go: bool,
    ) -> Option<AnswerBytes> {
        let counted = AnswerBytes::count(self.turns(), self.payer(), bytes);
        (must_go || counted.has_room(of_connection)).then_some(counted)
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

    /// Counts this many from here on; as [`BodyBytes::grow`] when they are more than before.
    pub(crate) fn resize(&mut self, bytes: usize) -> Result<(), &'static str> {
        if bytes > self.bytes {
            return self.grow(bytes - self.bytes);
        }
        self.shrink(bytes);
        Ok(())
    }

    /// Counts none any more.
    pub(crate) fn clear(&mut self) {
        self.shrink(0);
    }

    fn shrink(&mut self, bytes: usize) {
        let less = self.bytes - bytes;
        if less == 0 {
            return;
        }
        self.bytes = bytes;
        self.of.bodies.fetch_sub(less, Ordering::Relaxed);
        self.turns.bodies.fetch_sub(less, Ordering::Relaxed);
        if self.of.is_stranger() {
            self.turns.bodies_of_strangers.fetch_sub(less, Ordering::Relaxed);
        }
    }
}

impl Drop for BodyBytes {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Bytes of an answer, counted until this is dropped.
#[derive(Debug)]
pub(crate) struct AnswerBytes {
    turns: Arc<Turns>,
    of: Arc<Account>,
    bytes: usize,
}

impl AnswerBytes {
    pub(super) fn count(turns: &Arc<Turns>, of: Arc<Account>, bytes: usize) -> AnswerBytes {
        of.answers.fetch_add(bytes, Ordering::Relaxed);
        turns.answers.fetch_add(bytes, Ordering::Relaxed);
        if of.is_stranger() {
            turns.answers_of_strangers.fetch_add(bytes, Ordering::Relaxed);
        }
        AnswerBytes { turns: turns.clone(), of, bytes }
    }

    /// Whether there is room for it beside all others; where there are none there always is.
    pub(super) fn has_room(&self, of_connection: usize) -> bool {
        let turns = &self.turns;
        let max = turns.bounds.answers;
        let fits = |held: usize, max: usize| held == self.bytes || held <= max;
        let has_room_of_payer =
            |part: usize| fits(self.of.answers.load(Ordering::Relaxed), max / part);
        let of_strangers = || turns.answers_of_strangers.load(Ordering::Relaxed);
        let has_room = match self.of.is_stranger() {
            true => {
                has_room_of_payer(ANSWERS_OF_ADDRESS)
                    && fits(of_strangers(), max / ANSWERS_OF_STRANGERS)
            }
            false => has_room_of_payer(ANSWERS_OF_ACCOUNT),
        } && fits(of_connection + self.bytes, max / ANSWERS_OF_CONNECTION)
            && fits(turns.answers.load(Ordering::Relaxed), max);
        if !has_room {
            turns.counters.answers_refused.fetch_add(1, Ordering::Relaxed);
        }
        has_room
    }
}

impl Drop for AnswerBytes {
    fn drop(&mut self) {
        self.of.answers.fetch_sub(self.bytes, Ordering::Relaxed);
        self.turns.answers.fetch_sub(self.bytes, Ordering::Relaxed);
        if self.of.is_stranger() {
            self.turns.answers_of_strangers.fetch_sub(self.bytes, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use neuron::requests::{Admission as _, Refused};

    use super::super::tests::{BOUNDS, payer, turns};
    use super::*;

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
    async fn answers_have_room_of_one_connection_of_one_payer_and_of_all() {
        let turns = turns(BOUNDS);
        let spender = Spender::new(turns.clone(), address(1));
        let answer = async |of: Payer, held, bytes| {
            drop(spender.ticket().turn(of, true).await.expect("nothing is refused"));
            spender.answer(held, bytes, false)
        };
        let stranger = |last| Payer::Address(address(last));
        let lone = answer(payer(1), 0, 1000).await.expect("one answer goes whatever its size");
        assert!(answer(payer(2), 0, 1).await.is_none(), "there is no room at all");
        drop(lone);
        let first = answer(payer(1), 0, 10).await.expect("room");
        let second = answer(payer(1), 10, 10).await.expect("an eighth of a connection");
        assert!(answer(payer(1), 20, 1).await.is_none(), "no more of it");
        let third = answer(payer(1), 0, 20).await.expect("a quarter of an account");
        assert!(answer(payer(1), 0, 1).await.is_none(), "no more of it");
        let mut others = Vec::new();
        for last in 1..=4 {
            others.push(answer(stranger(last), 0, 20).await.expect("an eighth of an address"));
            assert!(answer(stranger(last), 0, 1).await.is_none(), "no more of it");
        }
        assert!(answer(stranger(5), 0, 1).await.is_none(), "strangers have half");
        others.push(answer(payer(2), 0, 40).await.expect("accounts have the rest"));
        assert!(answer(payer(3), 0, 1).await.is_none(), "no more of all");
        let written = spender.answer(0, 7, true).expect("what was done is told");
        assert_eq!(turns.answer_bytes(), 167);
        drop((first, second, third, others, written));
        assert_eq!(turns.answer_bytes(), 0);
        assert_eq!(turns.counters.answers_refused.load(Ordering::Relaxed), 9);
        for last in 1..=4 {
            drop(answer(stranger(last), 0, 20).await.expect("all was given back"));
        }
    }

    /// Nothing is done of which there is no room to tell.
    #[tokio::test]
    async fn a_write_is_refused_while_its_payer_takes_no_answers() {
        let turns = turns(BOUNDS);
        let spender = Spender::new(turns.clone(), address(1));
        let write = async |of: Payer, held, bytes, is_read| {
            let ticket = spender.ticket_for(held, bytes);
            let turn = ticket.turn(of, is_read).await;
            assert_eq!(turns.answer_bytes() > 0, turn.is_ok() && !is_read, "as long as it lasts");
            turn.map(drop)
        };
        assert_eq!(write(payer(1), 0, 1000, false).await, Ok(()), "nothing is held");
        assert_eq!(write(payer(1), 15, 5, false).await, Ok(()));
        assert_eq!(write(payer(1), 16, 5, false).await, Err(Refused::Overloaded));
        assert_eq!(write(payer(1), 16, 5, true).await, Ok(()), "a read's answer is seen first");
        let held = spender.answer(0, 40, true).expect("it must go");
        for (of, expected) in [(payer(1), Err(Refused::Overloaded)), (payer(2), Ok(()))] {
            let ticket = spender.ticket_for(0, 1);
            assert_eq!(ticket.turn(of, false).await.map(drop), expected);
        }
        drop(held);
        assert_eq!(turns.answer_bytes(), 0);
    }
}
