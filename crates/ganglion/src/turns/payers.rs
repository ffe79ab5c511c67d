//! One payer: an account, or the address of whoever proves to be none; what it has under way, what it
//! waits for and what it has used.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use neuron::requests::{Payer, Refused};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::due::Due;

/// Calls within a tick from which on somebody who is no account counts as company: probes of health
/// and a mistyped password do not.
pub(super) const STRANGER_CALLS: u64 = 50;

/// What one payer has used and waits for.
#[derive(Debug)]
pub(super) struct Account {
    pub(super) payer: Payer,
    pub(super) number: u32,
    pub(super) running: Arc<Semaphore>,
    /// Held by reads that run in company; one that waits for the store gives its place up.
    pub(super) lane: Arc<Semaphore>,
    /// Held by the write that waits for its payer's share, in front of all others.
    pub(super) gate: Arc<Semaphore>,
    waiting: AtomicUsize,
    /// A tick in the upper half, and in the lower how often it has called in it.
    pub(super) calls: AtomicU64,
    /// Bytes of its requests' bodies.
    pub(super) bodies: AtomicUsize,
    /// Bytes of answers that it has not taken yet.
    pub(super) answers: AtomicUsize,
    /// Held by the TLS handshake that waits for its payer's share, in front of all others.
    pub(super) handshake: Semaphore,
    /// When its share of the workers' time allows the next request.
    pub(super) share: Due,
    /// When its rate does.
    pub(super) rate: Due,
}

impl Account {
    pub(super) fn new(
        payer: Payer,
        number: u32,
        at_once: usize,
        reads_in_company: usize,
    ) -> Account {
        Account {
            payer,
            number,
            running: Arc::new(Semaphore::new(at_once)),
            lane: Arc::new(Semaphore::new(reads_in_company)),
            gate: Arc::new(Semaphore::new(1)),
            waiting: AtomicUsize::new(0),
            calls: AtomicU64::new(0),
            bodies: AtomicUsize::new(0),
            answers: AtomicUsize::new(0),
            handshake: Semaphore::new(1),
            share: Due::default(),
            rate: Due::default(),
        }
    }

    pub(super) fn is_stranger(&self) -> bool {
        matches!(self.payer, Payer::Address(_))
    }

    /// Counts a call at a tick; how many there were in it before.
    pub(super) fn call(&self, now: u32) -> u64 {
        let next = |calls: u64| {
            let is_same = calls >> 32 == u64::from(now);
            Some(if is_same { calls + 1 } else { u64::from(now) << 32 | 1 })
        };
        let before = self.calls.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
        let before = before.unwrap_or_else(|calls| calls);
        if before >> 32 == u64::from(now) { before & u64::from(u32::MAX) } else { 0 }
    }

    pub(super) async fn permit(
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

/// Counts a request as waiting for as long as this is held.
struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The payer as which somebody is counted.
pub(super) fn counted_as(payer: Payer) -> Payer {
    match payer {
        Payer::Address(address) => stranger(address),
        account @ Payer::Account(_) => account,
    }
}

/// A payer that is no account.
pub(crate) fn stranger(address: IpAddr) -> Payer {
    Payer::Address(customer(address))
}

/// The address as which somebody is counted: of IPv6 the /64, which is what one customer is given.
pub(crate) fn customer(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(address) => {
            Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into()
        }
        address => address,
    }
}
