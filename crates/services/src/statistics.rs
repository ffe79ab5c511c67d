//! `_stats`: sums, least, greatest and counts of measures over time (seed 002 "The Stats Service",
//! `spec/xirsys.md` §1.6, §2 rows 7–9).
//!
//! Values are gathered in memory, by (bucket, measure, path, key, minute), and written every flush
//! interval as cumulative cells; a cell that was written before is written again with its grown
//! figures, so a flush that is repeated after a failure changes nothing.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap};
use std::hash::BuildHasher;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use foldhash::fast::RandomState;
use kv4::Bucket;
use kv4::store::{Event, Listener, Stat, StatCell, StatQuery, StoreError};
use wire::envelope::Fault;
use wire::errors::Code;
use wire::names::{Key, Layer, Path};

use crate::writing::{Flushing, Writing};
use crate::{Answer, Call, Services, entries, store_fault};

/// Cells kept in memory between flushes. A top account may have as many of them as are free, so one
/// alone fills half, two a third each, and another one always finds room; values of further cells of
/// its are counted as lost.
const CELLS_MAX: usize = 200_000;
const SHARDS: usize = 8;
const SHARD_CELLS_MAX: usize = CELLS_MAX / SHARDS;
/// Cells in a shard from which on room is short: half of what one account alone may have.
const SHARD_CELLS_SHORT: usize = SHARD_CELLS_MAX / 4;
/// How far ahead of the clock a cell is that nobody counts in for long.
const FAR_MINUTES: u32 = 24 * 60;
/// Most groups of time in one answer: the minutes of more than two months.
const GROUPS_MAX: usize = 100_000;
/// Cells in one write to the store.
const FLUSH_CELLS_MAX: usize = 5_000;

/// A measure of an entity by a key.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Measured {
    pub bucket: Bucket,
    pub measure: Layer,
    pub path: Path,
    pub key: Key,
}

/// What has been measured and not yet been forgotten, sharded so that callers seldom meet.
#[derive(Debug, Default)]
pub struct Statistics {
    hasher: RandomState,
    /// What is counted by handle.
    counters: papaya::HashMap<Measured, Arc<Counter>, RandomState>,
    shards: [Mutex<Shard>; SHARDS],
}

#[derive(Debug, Default)]
struct Shard {
    cells: HashMap<(Measured, u32), Cell, RandomState>,
    /// How many of them each top account has.
    by_account: HashMap<Bucket, usize, RandomState>,
    closed: Closed,
    lost: u64,
}

impl Shard {
    /// Adds a cell if its account may have another one; values of others are lost.
    fn add(&mut self, measured: Measured, minute: u32, stat: Stat) {
        let free = SHARD_CELLS_MAX.saturating_sub(self.cells.len());
        let account = measured.bucket.top();
        let held = self.by_account.get(&account).copied().unwrap_or(0);
        if held >= free {
            self.lost += stat.count;
            return;
        }
        self.by_account.insert(account, held + 1);
        self.cells.insert((measured, minute), Cell { stat, dirty: true });
    }

    fn retain(&mut self, mut stays: impl FnMut(&Measured, u32, &Cell) -> bool) {
        let by_account = &mut self.by_account;
        self.cells.retain(|(measured, minute), cell| {
            let stays = stays(measured, *minute, cell);
            if !stays && let Entry::Occupied(mut held) = by_account.entry(measured.bucket.top()) {
                *held.get_mut() -= 1;
                if *held.get() == 0 {
                    held.remove();
                }
            }
            stays
        });
    }
}

/// Minutes whose cells are in the store, final and forgotten: what comes with such a minute, since
/// the clock was set back, is counted in the first one after it that is open. As ranges, in order
/// and apart: a clock that jumps ahead and is set right again leaves the time between open.
#[derive(Debug, Default)]
struct Closed(Vec<Range<u32>>);

/// Ranges of closed minutes; of more the two that are nearest to each other become one.
const CLOSED_MAX: usize = 16;

impl Closed {
    /// The minute itself, or the first open one after it.
    fn open_at(&self, minute: u32) -> u32 {
        self.0.iter().find(|range| range.contains(&minute)).map_or(minute, |range| range.end)
    }

    fn close(&mut self, minute: u32) {
        let ranges = &mut self.0;
        let at = ranges.partition_point(|range| range.end < minute);
        match ranges.get_mut(at) {
            Some(range) if range.contains(&minute) => return,
            Some(range) if range.end == minute => range.end = minute.saturating_add(1),
            Some(range) if range.start == minute.saturating_add(1) => range.start = minute,
            _ => ranges.insert(at, minute..minute.saturating_add(1)),
        }
        let is_next = |ranges: &[Range<u32>]| ranges.get(at + 1).map(|next| next.start);
        if is_next(ranges) == Some(ranges[at].end) {
            ranges[at].end = ranges.remove(at + 1).end;
        } else if ranges.len() > CLOSED_MAX {
            let gap = |at: &usize| self.0[at + 1].start - self.0[*at].end;
            let nearest = (0..self.0.len() - 1).min_by_key(gap).unwrap_or(0);
            self.0[nearest].end = self.0.remove(nearest + 1).end;
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Cell {
    stat: Stat,
    /// Whether it has grown since it was last written.
    dirty: bool,
}

/// Counts single events of one measure by one key, without a look-up or a lock.
#[derive(Debug)]
pub struct Counter {
    measured: Measured,
    /// The minute in the upper half, what was counted in it and not yet taken over in the lower.
    count: AtomicU64,
}

/// A counter that is not looked at any more.
const RETIRED: u64 = u64::MAX;

impl Counter {
    /// Counts one event. `false` when the counter is no longer looked at: get another one.
    pub fn count(&self, statistics: &Statistics, now_s: u64) -> bool {
        let minute = minute(now_s);
        let mut counted = self.count.load(Ordering::Relaxed);
        loop {
            if counted == RETIRED {
                return false;
            }
            let is_of_minute = counted >> 32 == minute && counted & COUNT_MAX < COUNT_MAX;
            let next = if is_of_minute { counted + 1 } else { minute << 32 | 1 };
            let exchanged = self.count.compare_exchange_weak(
                counted,
                next,
                Ordering::Relaxed,
                Ordering::Relaxed,
            );
            match exchanged {
                Ok(_) if is_of_minute => return true,
                Ok(_) => {
                    statistics.take_over(&self.measured, counted);
                    return true;
                }
                Err(now) => counted = now,
            }
        }
    }

    /// Takes what was counted and leaves `then`; a retired counter stays so and holds nothing.
    fn take(&self, then: u64) -> u64 {
        let next = |counted: u64| (counted != RETIRED).then_some(then);
        self.count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).unwrap_or(0)
    }
}

/// Most events that a [`Counter`] holds.
const COUNT_MAX: u64 = u32::MAX as u64;

fn minute(now_s: u64) -> u64 {
    // One less than the field holds, so that no count is taken for `RETIRED`.
    (now_s / 60).min(COUNT_MAX - 1)
}

impl Statistics {
    /// A handle that counts single events of a measure, with this event counted; `None` when there
    /// are too many, and then the event is counted by a look-up.
    pub fn counter(&self, measured: Measured, now_s: u64) -> Option<Arc<Counter>> {
        let counters = self.counters.pin();
        loop {
            if counters.len() >= CELLS_MAX {
                self.record(measured, 1, now_s);
                return None;
            }
            let fresh = || Counter { measured: measured.clone(), count: AtomicU64::new(0) };
            let counter = counters.get_or_insert_with(measured.clone(), || Arc::new(fresh()));
            if counter.count(self, now_s) {
                return Some(counter.clone());
            }
            // It is being let go of by a flush: that ends by itself.
            std::hint::spin_loop();
        }
    }

    /// Takes over what a counter held.
    fn take_over(&self, measured: &Measured, counted: u64) {
        let count = counted & COUNT_MAX;
        if count > 0 {
            let stat = Stat { sum: count, min: 1, max: 1, count };
            self.merge(measured.clone(), stat, (counted >> 32) * 60);
        }
    }

    /// Takes over what all counters hold, and lets go of those that nobody uses.
    fn gather(&self) {
        let counters = self.counters.pin();
        let mut idle = Vec::new();
        for (measured, counter) in &counters {
            let counted = counter.take(0);
            self.take_over(measured, counted);
            if counted == 0 && Arc::strong_count(counter) == 1 {
                idle.push(counter.clone());
            }
        }
        for counter in idle {
            self.retire(&counter);
        }
    }

    /// Lets go of a counter; its holders find out when they count next. Another one of the same
    /// measure, which somebody has put in its place, stays.
    fn retire(&self, counter: &Arc<Counter>) {
        self.take_over(&counter.measured, counter.take(RETIRED));
        let is_same = |_: &Measured, held: &Arc<Counter>| Arc::ptr_eq(held, counter);
        // What is refused is another counter, and stays.
        let _ = self.counters.pin().remove_if(&counter.measured, is_same);
    }

    /// Adds one value.
    pub fn record(&self, measured: Measured, value: u64, now_s: u64) {
        self.merge(measured, Stat::of(value), now_s);
    }

    /// Adds figures gathered elsewhere.
    pub fn merge(&self, measured: Measured, stat: Stat, now_s: u64) {
        let minute = u32::try_from(minute(now_s)).unwrap_or(u32::MAX);
        let mut shard = self.shard_of(&measured);
        let minute = shard.closed.open_at(minute);
        match shard.cells.get_mut(&(measured.clone(), minute)) {
            Some(cell) => *cell = Cell { stat: cell.stat.merge(stat), dirty: true },
            None => shard.add(measured, minute, stat),
        }
    }

    fn shard_of(&self, measured: &Measured) -> MutexGuard<'_, Shard> {
        let shard = usize::try_from(self.hasher.hash_one(measured)).unwrap_or(0) % SHARDS;
        self.shards[shard].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Cells held and values lost for want of room.
    pub fn held(&self) -> (usize, u64) {
        self.shards.iter().fold((0, 0), |(cells, lost), shard| {
            let shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            (cells + shard.cells.len(), lost + shard.lost)
        })
    }

    /// The buckets of which a cell has grown.
    fn dirty_buckets(&self) -> BTreeSet<Bucket> {
        let mut buckets = BTreeSet::new();
        for shard in &self.shards {
            let shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            let dirty = shard.cells.iter().filter(|(_, cell)| cell.dirty);
            for ((measured, _), _) in dirty {
                if !buckets.contains(&measured.bucket) {
                    buckets.insert(measured.bucket.clone());
                }
            }
        }
        buckets
    }

    /// The cells that have grown and may be written, with their figures so far. Those of accounts that
    /// are no more are forgotten.
    fn dirty(&self, neuron: u32, flushing: &Flushing<'_>) -> Vec<(StatCell, Stat)> {
        let mut dirty = Vec::new();
        for shard in &self.shards {
            let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            shard.retain(|measured, _, _| !flushing.is_gone(&measured.bucket));
            for ((measured, minute), cell) in &shard.cells {
                if cell.dirty && flushing.may_write(&measured.bucket) {
                    let Measured { bucket, measure, path, key } = measured.clone();
                    let at = StatCell { bucket, measure, path, key, minute: *minute, neuron };
                    dirty.push((at, cell.stat));
                }
            }
        }
        dirty
    }

    /// Cells that were written are clean, unless they have grown since.
    fn written(&self, cells: &[(StatCell, Stat)]) {
        for (cell, stat) in cells {
            let measured = Measured {
                bucket: cell.bucket.clone(),
                measure: cell.measure.clone(),
                path: cell.path.clone(),
                key: cell.key.clone(),
            };
            let mut shard = self.shard_of(&measured);
            if let Some(held) = shard.cells.get_mut(&(measured, cell.minute)) {
                held.dirty &= held.stat != *stat;
            }
        }
    }

    /// Forgets clean cells of minutes that are over, whose figures are in the store and final. Those
    /// of a clock that was far ahead go when room is short.
    fn forget_before(&self, minute: u32) {
        for shard in &self.shards {
            let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            let is_short = shard.cells.len() >= SHARD_CELLS_SHORT;
            let mut closed = std::mem::take(&mut shard.closed);
            shard.retain(|_, at, cell| {
                let is_far = is_short && at > minute.saturating_add(FAR_MINUTES);
                let stays = cell.dirty || (at >= minute && !is_far);
                if !stays {
                    closed.close(at);
                }
                stays
            });
            shard.closed = closed;
        }
    }
}

impl Listener for Statistics {
    /// What was measured in a bucket goes with it, or its next flush would bring it back.
    fn committed(&self, events: &[Event]) {
        for event in events {
            if let Event::Dropped(bucket) = event {
                for (measured, counter) in &self.counters.pin() {
                    if measured.bucket.is_within(bucket) {
                        counter.take(RETIRED);
                    }
                }
                self.counters.pin().retain(|measured, _| !measured.bucket.is_within(bucket));
                for shard in &self.shards {
                    let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
                    shard.retain(|measured, _, _| !measured.bucket.is_within(bucket));
                }
            }
        }
    }
}

impl Services {
    /// Writes what has been measured since the last flush.
    ///
    /// # Errors
    /// The store's; what was not written is kept for the next flush.
    pub async fn flush_stats(&self) -> Result<(), StoreError> {
        let _flushing = self.flushing.pass().await;
        self.stats.gather();
        let flushing = Writing::flush(self, self.stats.dirty_buckets()).await?;
        let dirty = self.stats.dirty(self.identity.number, &flushing);
        for cells in dirty.chunks(FLUSH_CELLS_MAX) {
            self.kv.put_stats(cells.to_vec()).await?;
            self.stats.written(cells);
        }
        // One minute's grace: a value may be recorded with a time read just before it.
        let minute = u32::try_from(minute(self.now_s())).unwrap_or(u32::MAX);
        self.stats.forget_before(minute.saturating_sub(1));
        Ok(())
    }
}

pub(crate) async fn call(services: &Services, call: &Call<'_>) -> Result<Answer, Fault> {
    let name = call.params.text("l").ok_or_else(|| {
        Fault::with(Code::BadLayerPrefix, "the parameter `l` names the measure, such as api:3")
    })?;
    let name = name.strip_prefix(crate::discovery::STATS_PREFIX).unwrap_or(&name);
    let measure =
        Layer::parse(name).map_err(|error| Fault::with(error.code(), error.to_string()))?;
    let span = entries::span(call)?;
    let key = entries::key(call)?;
    let path = (!call.path.is_root()).then(|| call.path.clone());
    // The seed's sample without path and key is broken down by time even with `break=0`.
    let broken = call.params.flag("break") || (path.is_none() && key.is_none() && span.is_some());
    let minute = |second: u64| u32::try_from(second / 60).unwrap_or(u32::MAX);
    let query = StatQuery {
        bucket: call.caller.bucket.clone(),
        measure,
        path,
        key,
        from_minute: span.map_or(0, |(first, _)| minute(first.first_s())),
        to_minute: span.map_or(u32::MAX, |(_, last)| minute(last.last_s())),
        // A total is that of its years.
        depth: if broken { span.map_or(3, |(first, _)| first.depth()).min(5) } else { 1 },
        groups_max: GROUPS_MAX,
    };
    let groups = services.kv.stats(&query).await.map_err(|error| match error {
        StoreError::TooLarge => Fault::with(
            Code::TooLarge,
            format!(
                "there are more than {GROUPS_MAX} groups: ask for a shorter time, or by hour or day"
            ),
        ),
        error => store_fault(error),
    })?;
    if groups.is_empty() {
        return Ok(Answer::json("[]"));
    }
    if !broken {
        let total = groups.iter().fold(Stat::default(), |sum, (_, stat)| sum.merge(*stat));
        return Ok(Answer::json(figures(total)));
    }
    let members: Vec<_> =
        groups.into_iter().map(|(group, stat)| format!("\"{group}\":{}", figures(stat))).collect();
    Ok(Answer::json(format!("{{{}}}", members.join(","))))
}

fn figures(stat: Stat) -> String {
    let Stat { sum, min, max, count } = stat;
    format!("{{\"sum\":{sum},\"min\":{min},\"max\":{max},\"count\":{count}}}")
}

#[cfg(test)]
mod tests {
    use wire::names::Ident;

    use super::*;

    /// Of two flushes that let go of an idle counter the slower one finds another in its place.
    #[test]
    fn letting_go_of_a_counter_leaves_the_one_in_its_place() {
        let statistics = Statistics::default();
        let measured = Measured {
            bucket: Bucket::sys(),
            measure: crate::layer("api:3"),
            path: Path::root(),
            key: Key::parse("k").expect("a letter is a legal key"),
        };
        let counter = || statistics.counter(measured.clone(), 60).expect("there is room");
        let first = counter();
        statistics.retire(&first);
        let second = counter();
        statistics.retire(&first);
        assert!(second.count(&statistics, 60));
        assert!(Arc::ptr_eq(&second, &counter()));
        statistics.gather();
        let shards = statistics.shards.iter().map(|shard| shard.lock().expect("no panic"));
        let counted: u64 =
            shards.flat_map(|s| s.cells.values().map(|c| c.stat.count).collect::<Vec<_>>()).sum();
        assert_eq!(counted, 4);
    }

    /// What `nth` of an account's keys is counted in.
    fn of(account: &str, sub: Option<&str>, nth: usize) -> Measured {
        let ident = |name: &str| Ident::parse(name).expect("a legal name");
        let sub = sub.map(ident);
        Measured {
            bucket: Bucket::account(&ident(account), sub.as_ref()).expect("short"),
            measure: crate::layer("api:3"),
            path: Path::root(),
            key: Key::parse(&format!("k{nth}")).expect("a legal key"),
        }
    }

    /// Measures new keys; how many of them found room.
    fn fill(statistics: &Statistics, account: &str, sub: Option<&str>, keys: usize) -> usize {
        let (before, _) = statistics.held();
        for nth in 0..keys {
            statistics.record(of(account, sub, nth), 1, 60);
        }
        statistics.held().0 - before
    }

    fn counts_agree(statistics: &Statistics) {
        for shard in &statistics.shards {
            let shard = shard.lock().expect("no panic");
            let mut counted = HashMap::default();
            for (measured, _) in shard.cells.keys() {
                *counted.entry(measured.bucket.top()).or_default() += 1;
            }
            assert_eq!(shard.by_account, counted);
        }
    }

    /// One account measures more keys than there are cells, alone and by its sub-accounts.
    #[test]
    fn an_account_that_measures_many_keys_leaves_others_their_room() {
        let statistics = Statistics::default();
        let near = |cells: usize, expected: usize| cells.abs_diff(expected) <= SHARDS;
        let held = fill(&statistics, "loud", None, CELLS_MAX + 1_000);
        assert!(near(held, CELLS_MAX / 2), "{held}: alone it fills half");
        assert_eq!(
            statistics.held().1,
            (CELLS_MAX + 1_000 - held) as u64,
            "what is lost is counted"
        );
        assert_eq!(fill(&statistics, "loud", Some("below"), 10_000), 0, "it is one account");
        assert_eq!(fill(&statistics, "quiet", None, 1_000), 1_000);
        let (_, lost) = statistics.held();
        statistics.record(of("loud", None, 0), 1, 60);
        assert_eq!(statistics.held().1, lost, "what has a cell goes on being counted");
        let held = fill(&statistics, "second", None, CELLS_MAX);
        assert!(near(held, (CELLS_MAX / 2 - 1_000) / 2), "{held}: half of what was left");
        counts_agree(&statistics);
        // A flush has written everything, and the minute is over.
        for shard in &statistics.shards {
            for cell in shard.lock().expect("no panic").cells.values_mut() {
                cell.dirty = false;
            }
        }
        statistics.record(of("quiet", None, 0), 1, 60);
        statistics.forget_before(2);
        assert_eq!(statistics.held().0, 1, "what has grown stays");
        counts_agree(&statistics);
        fill(&statistics, "loud", Some("below"), 100);
        statistics.committed(&[Event::Dropped(of("loud", None, 0).bucket)]);
        assert_eq!(statistics.held().0, 1);
        counts_agree(&statistics);
        let held = fill(&statistics, "loud", None, CELLS_MAX);
        assert!(near(held, CELLS_MAX / 2), "{held}: there is room again");
    }

    /// Cells of a clock that was far ahead do not stay for ever when one account has all that it may.
    #[test]
    fn cells_of_a_far_minute_make_room() {
        const FAR_S: u64 = 60 * 60 * 24 * 365;
        let statistics = Statistics::default();
        for nth in 0..CELLS_MAX {
            statistics.record(of("loud", None, nth), 1, FAR_S);
        }
        for shard in &statistics.shards {
            for cell in shard.lock().expect("no panic").cells.values_mut() {
                cell.dirty = false;
            }
        }
        statistics.forget_before(2);
        assert_eq!(statistics.held().0, 0);
    }

    #[test]
    fn closed_minutes_are_what_was_closed_and_few_ranges() {
        let mut closed = Closed::default();
        for minute in [5, 7, 6, 4, 100, 6] {
            closed.close(minute);
        }
        assert_eq!(closed.0, [4..8, 100..101]);
        assert_eq!(
            [3, 4, 7, 8, 99, 100].map(|minute| closed.open_at(minute)),
            [3, 8, 8, 8, 99, 101]
        );
        let scattered = (0..50).map(|at| 200 + 3 * at);
        for minute in scattered.clone() {
            closed.close(minute);
        }
        assert_eq!(closed.0.len(), CLOSED_MAX);
        assert!(scattered.clone().all(|minute| closed.open_at(minute) > minute));
        assert_eq!(closed.open_at(50), 50, "the widest gaps stay open");
        closed.close(u32::MAX);
        assert_eq!(closed.open_at(u32::MAX - 1), u32::MAX - 1);
    }
}
