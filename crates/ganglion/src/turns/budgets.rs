//! Budgets: room for the bytes of bodies that payers send, and of answers that they do not take. Not
//! here: how those are read and written (`http`).

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use neuron::requests::Payer;

use super::Turns;
use super::payers::{Account, counted_as, stranger};

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

impl Turns {
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

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

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
}
