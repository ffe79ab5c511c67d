//! The relayed addresses of one neuron: which ports are taken, and by whom. All of its servers share it.
//!
//! A lookup is one load, since each packet to an address of our own makes one; a port is taken by one
//! exchange. Behind a lock is only what allocations alone ask for: reservations and quotas.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::settings::RelayedIp;
use crate::stun::Family;

/// Ports that are tried at random before they are gone through.
const TRIES: usize = 16;

/// Which relayed address of which server.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct RelayId {
    /// The server's number.
    pub server: u8,
    /// Of the server: a slot is used again, with another generation.
    pub slot: u32,
    pub generation: u32,
    pub family: Family,
}

/// Bits of a generation that are told apart; slots have the 31 below.
const GENERATION_BITS: u32 = 24;

impl RelayId {
    pub(crate) const GENERATIONS: u32 = 1 << GENERATION_BITS;
    pub(crate) const SLOTS_MAX: usize = 1 << 31;

    /// Beside [`FREE`] and [`HELD`]: the family is the table's.
    fn pack(self) -> u64 {
        u64::from(self.server) << 56
            | u64::from(self.generation) << 32
            | u64::from(self.slot) << 1
            | 1
    }

    fn unpack(entry: u64, family: Family) -> Option<RelayId> {
        if entry & 1 == 0 {
            return None;
        }
        Some(RelayId {
            server: (entry >> 56) as u8,
            generation: (entry >> 32) as u32 % RelayId::GENERATIONS,
            slot: (entry as u32) >> 1,
            family,
        })
    }
}

/// Nobody has the port.
const FREE: u64 = 0;
/// Somebody has, and nothing is relayed by it yet.
const HELD: u64 = 2;

/// The ports of one family's addresses.
#[derive(Debug)]
struct Ports {
    ip: RelayedIp,
    first: u16,
    entries: Box<[AtomicU64]>,
}

/// What all servers of a neuron share.
#[derive(Debug)]
pub struct Relayed {
    v4: Option<Ports>,
    v6: Option<Ports>,
    rare: Mutex<Rare>,
    quotas: Quotas,
}

/// How many allocations there may be.
#[derive(Clone, Copy, Debug)]
pub struct Quotas {
    pub per_user: usize,
    pub per_account: usize,
    pub per_neuron: usize,
}

/// Who an allocation counts for.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Payer {
    pub account: Arc<str>,
    pub user: Arc<str>,
}

/// Why there may be no more allocations.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum QuotaReached {
    User,
    Account,
    Neuron,
}

#[derive(Debug, Default)]
struct Rare {
    /// By their tokens, and the token of each user who has one.
    reserved: BTreeMap<[u8; 8], Reserved>,
    reserved_by: BTreeMap<Box<str>, [u8; 8]>,
    allocations: usize,
    of_account: BTreeMap<Arc<str>, usize>,
    of_user: BTreeMap<Payer, usize>,
}

#[derive(Debug)]
struct Reserved {
    port: u16,
    family: Family,
    until: Instant,
    /// Who may use it.
    username: Box<str>,
}

/// What a peer's address is to this neuron.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Found {
    /// A relayed address of its own, and whose.
    Live(RelayId),
    /// An address that it relays by, at a port that nobody has.
    Dead,
    /// Somebody else's.
    Foreign,
}

impl Relayed {
    /// At most one address of each family: another neuron has others.
    pub fn new(ips: impl IntoIterator<Item = RelayedIp>, quotas: Quotas) -> Relayed {
        let mut these = Relayed { v4: None, v6: None, rare: Mutex::default(), quotas };
        for ip in ips {
            let (first, count) = (*ip.ports.start(), ip.ports.len());
            let entries = (0..count).map(|_| AtomicU64::new(FREE)).collect();
            let place = match Family::of(ip.advertised) {
                Family::V4 => &mut these.v4,
                Family::V6 => &mut these.v6,
            };
            *place = Some(Ports { ip, first, entries });
        }
        these
    }

    fn ports(&self, family: Family) -> Option<&Ports> {
        match family {
            Family::V4 => self.v4.as_ref(),
            Family::V6 => self.v6.as_ref(),
        }
    }

    /// What clients are told of a port.
    pub(crate) fn address(&self, family: Family, port: u16) -> Option<SocketAddr> {
        Some(SocketAddr::new(self.ports(family)?.ip.advertised, port))
    }

    pub(crate) fn has(&self, family: Family) -> bool {
        self.ports(family).is_some()
    }

    /// Whose relayed address a peer is.
    pub fn find(&self, peer: SocketAddr) -> Found {
        let Some(ports) = self.ports(Family::of(peer.ip())) else { return Found::Foreign };
        if peer.ip() != ports.ip.advertised && Some(peer.ip()) != ports.ip.bound {
            return Found::Foreign;
        }
        let Some(entry) = ports.entry(peer.port()) else { return Found::Dead };
        RelayId::unpack(entry.load(Ordering::Acquire), Family::of(peer.ip()))
            .map_or(Found::Dead, Found::Live)
    }

    /// Every address that it relays by.
    pub(crate) fn ips(&self) -> impl Iterator<Item = IpAddr> + '_ {
        let both = [&self.v4, &self.v6].into_iter().flatten();
        both.flat_map(|ports| [Some(ports.ip.advertised), ports.ip.bound]).flatten()
    }

    /// Whether an address is one that it relays by.
    pub(crate) fn is_own(&self, ip: IpAddr) -> bool {
        !matches!(self.find(SocketAddr::new(ip, 0)), Found::Foreign)
    }

    /// Takes a port, by numbers that nobody can tell: an even one if asked for, with the next one when
    /// that is to be reserved. `None` when there is none.
    pub(crate) fn hold(
        &self,
        family: Family,
        parity: Parity,
        mut draw: impl FnMut() -> u64,
    ) -> Option<u16> {
        let ports = self.ports(family)?;
        let count = ports.entries.len() as u64;
        if count == 0 {
            return None;
        }
        let from = draw() % count;
        let all = (0..count).map(|step| (from + step) % count);
        let mut offers = (0..TRIES).map(|_| draw() % count).chain(all);
        offers.find_map(|at| {
            let port = ports.first + at as u16;
            let is_wanted = parity == Parity::Any || port.is_multiple_of(2);
            (is_wanted && ports.take(port, parity == Parity::Pair)).then_some(port)
        })
    }

    /// Has packets for a port that was taken find it.
    pub(crate) fn publish(&self, id: RelayId, port: u16) {
        self.set(id.family, port, id.pack());
    }

    /// Gives a port back.
    pub(crate) fn free(&self, family: Family, port: u16) {
        self.set(family, port, FREE);
    }

    fn set(&self, family: Family, port: u16, value: u64) {
        if let Some(entry) = self.ports(family).and_then(|ports| ports.entry(port)) {
            entry.store(value, Ordering::Release);
        }
    }

    /// How many ports of a family are taken.
    pub fn taken(&self, family: Family) -> usize {
        let entries = self.ports(family).map_or(&[][..], |ports| &ports.entries);
        entries.iter().filter(|entry| entry.load(Ordering::Relaxed) != FREE).count()
    }

    /// Keeps a port that was taken for whoever names the token. A user has one reservation: another takes its
    /// place.
    pub(crate) fn reserve(
        &self,
        token: [u8; 8],
        family: Family,
        port: u16,
        until: Instant,
        username: &str,
    ) {
        let reserved = Reserved { port, family, until, username: username.into() };
        let mut rare = self.rare();
        if let Some(before) = rare.reserved_by.insert(username.into(), token)
            && let Some(before) = rare.reserved.remove(&before)
        {
            self.free(before.family, before.port);
        }
        rare.reserved.insert(token, reserved);
    }

    /// Takes a port that was reserved.
    pub(crate) fn claim(
        &self,
        now: Instant,
        token: &[u8],
        username: &str,
    ) -> Option<(Family, u16)> {
        let token: [u8; 8] = token.try_into().ok()?;
        let mut rare = self.rare();
        let reserved = rare.reserved.get(&token)?;
        if reserved.until <= now || *reserved.username != *username {
            return None;
        }
        let reserved = rare.reserved.remove(&token)?;
        rare.reserved_by.remove(&reserved.username);
        Some((reserved.family, reserved.port))
    }

    /// Gives back the ports whose reservation is over; answers when the next one is.
    pub(crate) fn expire(&self, now: Instant) -> Option<Instant> {
        let mut rare = self.rare();
        let Rare { reserved, reserved_by, .. } = &mut *rare;
        let over = |_: &[u8; 8], reserved: &mut Reserved| reserved.until <= now;
        for (_, reserved) in reserved.extract_if(.., over) {
            reserved_by.remove(&reserved.username);
            self.free(reserved.family, reserved.port);
        }
        reserved.values().map(|reserved| reserved.until).min()
    }

    /// Ports that are reserved.
    pub fn reserved(&self) -> usize {
        self.rare().reserved.len()
    }

    /// Counts an allocation.
    pub(crate) fn count(&self, payer: &Payer) -> Result<(), QuotaReached> {
        let mut rare = self.rare();
        let of_account = rare.of_account.get(&payer.account).copied().unwrap_or(0);
        let of_user = rare.of_user.get(payer).copied().unwrap_or(0);
        if of_user >= self.quotas.per_user {
            return Err(QuotaReached::User);
        }
        if of_account >= self.quotas.per_account {
            return Err(QuotaReached::Account);
        }
        if rare.allocations >= self.quotas.per_neuron {
            return Err(QuotaReached::Neuron);
        }
        rare.allocations += 1;
        rare.of_account.insert(payer.account.clone(), of_account + 1);
        rare.of_user.insert(payer.clone(), of_user + 1);
        Ok(())
    }

    /// Counts it no more.
    pub(crate) fn discount(&self, payer: &Payer) {
        let mut rare = self.rare();
        rare.allocations = rare.allocations.saturating_sub(1);
        less(&mut rare.of_account, &payer.account);
        less(&mut rare.of_user, payer);
    }

    /// Allocations that count.
    pub fn allocations(&self) -> usize {
        self.rare().allocations
    }

    fn rare(&self) -> MutexGuard<'_, Rare> {
        self.rare.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn less<K: Ord>(counts: &mut BTreeMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

/// Which port is wanted (RFC 8656 §7.2, EVEN-PORT).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Parity {
    Any,
    Even,
    /// An even one, and the next is reserved.
    Pair,
}

impl Ports {
    fn entry(&self, port: u16) -> Option<&AtomicU64> {
        self.entries.get(usize::from(port.checked_sub(self.first)?))
    }

    /// Takes a port, and the next with it if that is wanted, unless somebody has either.
    fn take(&self, port: u16, with_next: bool) -> bool {
        let hold = |port: u16| {
            let order = (Ordering::AcqRel, Ordering::Relaxed);
            self.entry(port).is_some_and(|entry| {
                entry.load(Ordering::Relaxed) == FREE
                    && entry.compare_exchange(FREE, HELD, order.0, order.1).is_ok()
            })
        };
        if !hold(port) {
            return false;
        }
        let is_whole = !with_next || port.checked_add(1).is_some_and(hold);
        if !is_whole && let Some(entry) = self.entry(port) {
            entry.store(FREE, Ordering::Release);
        }
        is_whole
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn relayed(ports: std::ops::RangeInclusive<u16>) -> Relayed {
        let ip = RelayedIp {
            advertised: [192, 0, 2, 1].into(),
            bound: Some([10, 0, 0, 1].into()),
            ports,
        };
        let quotas = Quotas { per_user: 2, per_account: 3, per_neuron: 4 };
        Relayed::new([ip], quotas)
    }

    fn counting() -> impl FnMut() -> u64 {
        let mut next = 0_u64;
        move || {
            next = next.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695);
            next >> 33
        }
    }

    #[test]
    fn every_port_is_given_once() {
        let relayed = relayed(5_000..=5_009);
        let mut draw = counting();
        let mut hold = |parity| relayed.hold(Family::V4, parity, &mut draw);
        let pair = hold(Parity::Pair).expect("there are some");
        let even = hold(Parity::Even).expect("there are some");
        assert!(pair.is_multiple_of(2) && even.is_multiple_of(2) && pair != even);
        let mut taken: Vec<u16> = std::iter::from_fn(|| hold(Parity::Any)).collect();
        taken.extend([pair, pair + 1, even]);
        taken.sort_unstable();
        assert_eq!(taken, (5_000..=5_009).collect::<Vec<_>>());
        relayed.free(Family::V4, 5_003);
        let mut draw = counting();
        assert_eq!(relayed.hold(Family::V4, Parity::Even, &mut draw), None);
        assert_eq!(relayed.hold(Family::V4, Parity::Any, &mut draw), Some(5_003));
        assert_eq!(relayed.hold(Family::V6, Parity::Any, &mut draw), None);
    }

    #[test]
    fn a_pair_is_taken_as_a_whole_or_not_at_all() {
        let relayed = relayed(5_000..=5_002);
        assert_eq!(relayed.hold(Family::V4, Parity::Pair, counting()), Some(5_000));
        assert_eq!(
            relayed.hold(Family::V4, Parity::Pair, counting()),
            None,
            "5003 is no port of ours"
        );
        assert_eq!(relayed.taken(Family::V4), 2);
    }

    #[test]
    fn a_peer_is_found_by_either_address() {
        let relayed = relayed(5_000..=5_001);
        let id = RelayId {
            server: 200,
            slot: (1 << 31) - 1,
            generation: RelayId::GENERATIONS - 1,
            family: Family::V4,
        };
        relayed.hold(Family::V4, Parity::Pair, counting()).expect("both");
        let at = |ip: [u8; 4], port| relayed.find(SocketAddr::from((ip, port)));
        assert_eq!(at([192, 0, 2, 1], 5_000), Found::Dead, "nothing is relayed by it yet");
        relayed.publish(id, 5_000);
        for ip in [[192, 0, 2, 1], [10, 0, 0, 1]] {
            assert_eq!(at(ip, 5_000), Found::Live(id));
            for port in [0, 80, 4_999, 5_001, 5_002, u16::MAX] {
                assert_eq!(at(ip, port), Found::Dead);
            }
        }
        assert_eq!(at([192, 0, 2, 2], 5_000), Found::Foreign);
        assert_eq!(relayed.find("[2001:db8::1]:5000".parse().expect("one")), Found::Foreign);
    }

    #[test]
    fn a_reservation_is_for_one_and_for_a_while() {
        let relayed = relayed(5_000..=5_001);
        let now = <Instant>::now();
        let until = now + std::time::Duration::from_secs(30);
        relayed.hold(Family::V4, Parity::Pair, counting()).expect("both");
        relayed.reserve([1; 8], Family::V4, 5_001, until, "ann");
        for (at, token, username) in [
            (now, &[2; 8][..], "ann"),
            (now, &[1; 8], "bob"),
            (until, &[1; 8], "ann"),
            (now, &[1; 7], "ann"),
        ] {
            assert_eq!(relayed.claim(at, token, username), None);
        }
        assert_eq!(relayed.claim(now, &[1; 8], "ann"), Some((Family::V4, 5_001)));
        assert_eq!(relayed.claim(now, &[1; 8], "ann"), None, "once");
        relayed.reserve([3; 8], Family::V4, 5_001, until, "ann");
        relayed.expire(until);
        assert_eq!((relayed.reserved(), relayed.taken(Family::V4)), (0, 1));
    }

    #[test]
    fn quotas_are_of_users_accounts_and_all() {
        let relayed = relayed(5_000..=5_001);
        let payer =
            |account: &str, user: &str| Payer { account: account.into(), user: user.into() };
        let (ann, bob, other) = (payer("a", "ann"), payer("a", "bob"), payer("b", "ann"));
        assert_eq!(relayed.count(&ann), Ok(()));
        assert_eq!(relayed.count(&ann), Ok(()));
        assert_eq!(relayed.count(&ann), Err(QuotaReached::User));
        assert_eq!(relayed.count(&bob), Ok(()));
        assert_eq!(relayed.count(&bob), Err(QuotaReached::Account));
        assert_eq!(relayed.count(&other), Ok(()));
        assert_eq!(relayed.count(&other), Err(QuotaReached::Neuron));
        for payer in [&ann, &ann, &bob, &other] {
            relayed.discount(payer);
        }
        assert_eq!(relayed.allocations(), 0);
        assert!(relayed.rare().of_account.is_empty() && relayed.rare().of_user.is_empty());
    }
}
