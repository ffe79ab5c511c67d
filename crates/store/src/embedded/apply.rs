//! What each request does to the tables, within one write transaction.
//!
//! A refusal is found before anything is changed, so that it leaves the transaction as it was. Any
//! other error fails the transaction, which must then not be committed.

use std::collections::HashMap;
use std::ops::Bound;
use std::sync::Arc;

use redb::{ReadableTable, ReadableTableMetadata, TableDefinition};
use wire::json::Json;

use kv4::address::{Bucket, Entry, Node};
use kv4::store::{Change, Event, Retention, Seq, Stat, StatCell, StoreError};
use kv4::write::{Op, Write, WriteError, Written, decide};
use kv4::{Version, version::SecondaryKeys};

use super::engine::ReadError;
use super::format::{
    BUCKETS, Bytes, DROPPED, FEED, HEADS, META, META_BUCKET_NEXT, NODES, OF_BUCKETS, SERIES, STATS,
    UNIQUE,
};
use super::keys::{self, BucketId, EntryKey};
use super::read::last_seq;
use super::record::{self, FeedRow, Record, read_count, read_u32};
use super::redo::{NotedTable, Writing};

/// Most buckets whose ids are remembered between transactions.
const BUCKETS_KNOWN_MAX: usize = 10_000;
/// Most rows that one transaction visits to prune a node or to remove a dropped bucket, so that
/// writers wait for milliseconds and not for minutes.
const SWEEP_ROWS_MAX: usize = 4_096;

type Rows<'t> = NotedTable<'t, Bytes, Bytes>;

/// Buckets met so far; the committer is the only writer, so what it remembers is true until a
/// transaction fails.
#[derive(Debug, Default)]
pub(crate) struct KnownBuckets(HashMap<Bucket, Known>);

#[derive(Clone, Copy, Debug)]
struct Known {
    id: BucketId,
    last: Seq,
}

/// How far a prune came.
#[derive(Debug)]
pub(crate) struct Pruned {
    pub(crate) gone: u64,
    /// Where to go on; `None` when the node is done.
    pub(crate) next: Option<Vec<u8>>,
}

/// One write transaction at work. Tables that nearly every batch needs are opened once for all of
/// it, the others when they are first needed.
pub(crate) struct Work<'t> {
    txn: Writing<'t>,
    heads: Rows<'t>,
    series: Rows<'t>,
    feed: Rows<'t>,
    unique: Option<Rows<'t>>,
    stats: Option<Rows<'t>>,
    buckets: &'t mut KnownBuckets,
    /// Changes of nodes' live counts, put into the table once a transaction.
    live: HashMap<Vec<u8>, i64>,
    events: Vec<Event>,
    is_changed: bool,
    scratch: Scratch,
}

/// Buffers that are used again for every write.
struct Scratch {
    key: EntryKey,
    other: Vec<u8>,
    value: Vec<u8>,
    head: Vec<u8>,
    /// Stands in for what `decide` does not look at.
    json: Json,
    who: Arc<str>,
}

impl<'t> Work<'t> {
    pub(crate) fn begin(
        txn: Writing<'t>,
        buckets: &'t mut KnownBuckets,
    ) -> Result<Work<'t>, ReadError> {
        if buckets.0.len() > BUCKETS_KNOWN_MAX {
            buckets.0.clear();
        }
        Ok(Work {
            txn,
            heads: txn.open(HEADS)?,
            series: txn.open(SERIES)?,
            feed: txn.open(FEED)?,
            unique: None,
            stats: None,
            buckets,
            live: HashMap::new(),
            events: Vec::new(),
            is_changed: false,
            scratch: Scratch {
                key: EntryKey::default(),
                other: Vec::new(),
                value: Vec::new(),
                head: Vec::new(),
                json: Json::null(),
                who: Arc::from(""),
            },
        })
    }

    /// Ends the work: what happened, in order, and whether there is anything to commit.
    pub(crate) fn finish(mut self) -> Result<(Vec<Event>, bool), ReadError> {
        let live = std::mem::take(&mut self.live);
        if live.values().any(|change| *change != 0) {
            let mut nodes = self.txn.open(NODES)?;
            for (node, change) in live.into_iter().filter(|(_, change)| *change != 0) {
                let before = match nodes.get(node.as_slice())? {
                    None => 0,
                    Some(count) => read_count(count.value()).map_err(ReadError::Answer)?,
                };
                let after = before.checked_add_signed(change);
                match after.ok_or_else(|| ReadError::Answer(keys::bad("a node's count")))? {
                    0 => nodes.remove(node.as_slice())?,
                    after => nodes.insert(node.as_slice(), after.to_be_bytes().as_slice())?,
                }
            }
        }
        Ok((self.events, self.is_changed))
    }

    pub(crate) fn write(
        &mut self,
        write: &Write,
    ) -> Result<Result<Written, WriteError>, ReadError> {
        let known = self.known(&write.entry.node.bucket)?;
        // A bucket that is not there yet has no rows under any id; 0 is never given.
        let id = known.map_or(BucketId(0), |known| known.id);
        self.scratch.key.set(id, &write.entry);
        let before = match self.newest() {
            Err(ReadError::Answer(damage)) => return Ok(Err(WriteError::Store(damage))),
            other => other?,
        };
        let version = match decide(write, before.as_ref()) {
            Ok(version) => version,
            Err(refused) => return Ok(Err(refused)),
        };
        let was_live = before.as_ref().is_some_and(|version| version.value.is_some());
        let no_keys = SecondaryKeys::default();
        let keys_before = before.as_ref().filter(|_| was_live).map_or(&no_keys, |it| &it.keys);
        let keys_after = if version.value.is_some() { &version.keys } else { &no_keys };
        if let Some(nth) = self.taken(keys_before, keys_after)? {
            return Ok(Err(WriteError::KeyTaken(nth)));
        }

        // From here on the write is carried out.
        self.is_changed = true;
        let known = match known {
            Some(known) => known,
            None => self.create_bucket(&write.entry.node.bucket)?,
        };
        if known.id != id {
            self.scratch.key.set(known.id, &write.entry);
        }
        self.move_unique(keys_before, keys_after, write.entry.key.as_str())?;
        let seq = Seq(known.last.0 + 1);
        let Scratch { key, value, head, .. } = &mut self.scratch;
        record::write(value, seq, &version);
        self.heads.insert(key.entry(), value.as_slice())?;
        if let Some(before) = &before {
            self.series.insert(key.version(before.ver.stamp.micros), head.as_slice())?;
        }
        let ver = version.ver;
        FeedRow {
            generation: ver.generation,
            micros: ver.stamp.micros,
            reference: key.reference(),
        }
        .write(value);
        self.feed.insert(keys::feed(known.id, seq).as_slice(), value.as_slice())?;
        match (was_live, matches!(write.op, Op::Put { .. })) {
            (false, true) => self.count_live(1),
            (true, false) => self.count_live(-1),
            _ => {}
        }
        let known = self.buckets.0.get_mut(&write.entry.node.bucket);
        known.expect("it was found or created above").last = seq;
        self.events.push(Event::Changed(Change {
            seq,
            entry: write.entry.clone(),
            version: Some(version.clone()),
        }));
        Ok(Ok(Written { version, created: !was_live }))
    }

    pub(crate) fn erase(&mut self, entry: &Entry) -> Result<bool, ReadError> {
        let Some(known) = self.known(&entry.node.bucket)? else { return Ok(false) };
        self.scratch.key.set(known.id, entry);
        let Some(newest) = self.newest()? else { return Ok(false) };
        self.is_changed = true;
        self.txn.leave_no_trace();
        if newest.value.is_some() {
            self.move_unique(&newest.keys, &SecondaryKeys::default(), entry.key.as_str())?;
            self.count_live(-1);
        }
        let key = self.scratch.key.entry();
        self.heads.remove(key)?;
        let start = [key, &[0]].concat();
        let end = keys::prefix_end(&start);
        self.series.remove_range(&start, &end)?;
        self.events.push(Event::Erased(entry.clone()));
        Ok(true)
    }

    /// Prunes a node from `after` on, as far as one transaction should go.
    pub(crate) fn prune(
        &mut self,
        node: &Node,
        retention: Retention,
        after: Option<&[u8]>,
    ) -> Result<Pruned, ReadError> {
        let mut pruned = Pruned { gone: 0, next: None };
        let Some(known) = self.known(&node.bucket)? else { return Ok(pruned) };
        let node_key = keys::node(known.id, node);
        let prefix = [&node_key[..], &[0]].concat();
        let end = keys::prefix_end(&prefix);
        let start = after.map_or(Bound::Included(prefix.as_slice()), Bound::Excluded);
        let mut visited = 0;
        let mut ended = Vec::new();
        for row in self.heads.range::<&[u8]>((start, Bound::Excluded(end.as_slice())))? {
            let (entry, head) = row?;
            let head = Record::read(head.value()).map_err(ReadError::Answer)?;
            let goes = |record: &Record<'_>| {
                let is_old = retention.before_micros.is_some_and(|at| record.ver.stamp.micros < at);
                // Generations are dense from the oldest kept on: those above tell the place.
                let newer = head.ver.generation.saturating_sub(record.ver.generation);
                is_old || retention.count_max.is_some_and(|count| newer >= count.max(1))
            };
            let oldest = [entry.value(), &[0]].concat();
            let behind = keys::prefix_end(&oldest);
            let mut first_kept = behind.clone();
            let gone_before = pruned.gone;
            for row in self.series.range::<&[u8]>(oldest.as_slice()..behind.as_slice())? {
                let (key, version) = row?;
                let record = Record::read(version.value()).map_err(ReadError::Answer)?;
                if !goes(&record) || visited >= SWEEP_ROWS_MAX {
                    first_kept = key.value().to_vec();
                    break;
                }
                visited += 1;
                pruned.gone += 1;
            }
            if pruned.gone > gone_before {
                self.series.remove_range(&oldest, &first_kept)?;
            }
            if visited >= SWEEP_ROWS_MAX {
                break;
            }
            visited += 1;
            let is_old = retention.before_micros.is_some_and(|at| head.ver.stamp.micros < at);
            if !head.is_live() && is_old {
                pruned.gone += 1;
                ended.push(entry.value().to_vec());
            }
            pruned.next = Some(entry.value().to_vec());
        }
        for entry in &ended {
            self.heads.remove(entry.as_slice())?;
        }
        self.is_changed |= pruned.gone > 0;
        if visited < SWEEP_ROWS_MAX {
            pruned.next = None;
        } else if pruned.next.is_none() {
            // Not even the first entry was finished.
            pruned.next = after.map(<[u8]>::to_vec).or(Some(prefix));
        }
        Ok(pruned)
    }

    /// Takes a bucket's name away, which hides all of it at once; [`Work::sweep`] removes its rows.
    /// Answers whether there was one.
    pub(crate) fn drop_bucket(&mut self, bucket: &Bucket) -> Result<bool, ReadError> {
        let known = self.known(bucket)?;
        if let Some(known) = known {
            self.is_changed = true;
            self.txn.leave_no_trace();
            self.txn.open(BUCKETS)?.remove(bucket.as_str())?;
            self.txn.open(DROPPED)?.insert(known.id.0, ())?;
            self.buckets.0.remove(bucket);
            self.live.retain(|node, _| !node.starts_with(&known.id.prefix()));
        }
        self.events.push(Event::Dropped(bucket.clone()));
        Ok(known.is_some())
    }

    pub(crate) fn put_stats(&mut self, cells: &[(StatCell, Stat)]) -> Result<(), ReadError> {
        for (cell, stat) in cells {
            self.is_changed = true;
            let known = match self.known(&cell.bucket)? {
                Some(known) => known,
                None => self.create_bucket(&cell.bucket)?,
            };
            let stats = open_once(self.txn, STATS, &mut self.stats)?;
            keys::cell(&mut self.scratch.other, known.id, cell);
            stats.insert(self.scratch.other.as_slice(), record::stat_bytes(*stat).as_slice())?;
        }
        Ok(())
    }

    /// The entry's newest version as `decide` needs it, `who` and value left out. The record itself
    /// stays in the scratch, to be moved into the series.
    fn newest(&mut self) -> Result<Option<Version>, ReadError> {
        let Scratch { key, head, json, who, .. } = &mut self.scratch;
        let Some(row) = self.heads.get(key.entry())? else { return Ok(None) };
        head.clear();
        head.extend_from_slice(row.value());
        let record = Record::read(head).map_err(ReadError::Answer)?;
        Ok(Some(Version {
            ver: record.ver,
            who: who.clone(),
            value: record.value.map(|_| json.clone()),
            keys: record.to_keys().map_err(ReadError::Answer)?,
        }))
    }

    /// The lowest nth of which another live entry has the key.
    fn taken(
        &mut self,
        before: &SecondaryKeys,
        after: &SecondaryKeys,
    ) -> Result<Option<u8>, ReadError> {
        for (nth, (before, after)) in (2..).zip(before.iter().zip(after)) {
            let Some(key) = after else { continue };
            if Some(key) == before.as_ref() {
                continue;
            }
            keys::unique(&mut self.scratch.other, self.scratch.key.node(), nth, key.as_str());
            let unique = open_once(self.txn, UNIQUE, &mut self.unique)?;
            if unique.get(self.scratch.other.as_slice())?.is_some() {
                return Ok(Some(nth));
            }
        }
        Ok(None)
    }

    fn move_unique(
        &mut self,
        before: &SecondaryKeys,
        after: &SecondaryKeys,
        primary: &str,
    ) -> Result<(), ReadError> {
        for (nth, (before, after)) in (2..).zip(before.iter().zip(after)) {
            if before == after {
                continue;
            }
            let unique = open_once(self.txn, UNIQUE, &mut self.unique)?;
            if let Some(key) = before {
                keys::unique(&mut self.scratch.other, self.scratch.key.node(), nth, key.as_str());
                unique.remove(self.scratch.other.as_slice())?;
            }
            if let Some(key) = after {
                keys::unique(&mut self.scratch.other, self.scratch.key.node(), nth, key.as_str());
                unique.insert(self.scratch.other.as_slice(), primary.as_bytes())?;
            }
        }
        Ok(())
    }

    fn count_live(&mut self, change: i64) {
        let node = self.scratch.key.node();
        match self.live.get_mut(node) {
            Some(count) => *count += change,
            None => drop(self.live.insert(node.to_vec(), change)),
        }
    }

    fn known(&mut self, bucket: &Bucket) -> Result<Option<Known>, ReadError> {
        if let Some(known) = self.buckets.0.get(bucket) {
            return Ok(Some(*known));
        }
        let id = self.txn.open(BUCKETS)?.get(bucket.as_str())?.map(|id| id.value());
        let Some(id) = id.map(BucketId) else { return Ok(None) };
        let known = Known { id, last: last_seq(&*self.feed, id)? };
        self.buckets.0.insert(bucket.clone(), known);
        Ok(Some(known))
    }

    fn create_bucket(&mut self, bucket: &Bucket) -> Result<Known, ReadError> {
        let mut meta = self.txn.open(META)?;
        let next = match meta.get(META_BUCKET_NEXT)? {
            Some(next) => read_u32(next.value()).map_err(ReadError::Answer)?,
            None => return Err(ReadError::Answer(keys::bad("the next bucket's id"))),
        };
        if next == u32::MAX {
            let text = "every bucket id was given".to_owned();
            return Err(ReadError::Answer(StoreError::Unavailable(text)));
        }
        meta.insert(META_BUCKET_NEXT, (next + 1).to_be_bytes().as_slice())?;
        self.txn.open(BUCKETS)?.insert(bucket.as_str(), next)?;
        let known = Known { id: BucketId(next), last: Seq(0) };
        self.buckets.0.insert(bucket.clone(), known);
        Ok(known)
    }
}

/// Removes some rows of a dropped bucket; `true` while there is more to remove.
pub(crate) fn sweep(txn: Writing<'_>) -> Result<bool, ReadError> {
    let mut dropped = txn.open(DROPPED)?;
    let Some(id) = dropped.first()?.map(|(id, _)| BucketId(id.value())) else { return Ok(false) };
    let (start, end) = (id.prefix(), id.prefix_end());
    for definition in OF_BUCKETS {
        let mut table = txn.open(definition)?;
        let range = start.as_slice()..end.as_slice();
        let bound = match table.range::<&[u8]>(range)?.nth(SWEEP_ROWS_MAX) {
            Some(row) => row?.0.value().to_vec(),
            None => end.to_vec(),
        };
        table.remove_range(&start, &bound)?;
        if bound != end {
            return Ok(true);
        }
    }
    dropped.remove(id.0)?;
    Ok(!dropped.is_empty()?)
}

fn open_once<'w, 't>(
    txn: Writing<'t>,
    definition: TableDefinition<'_, Bytes, Bytes>,
    table: &'w mut Option<Rows<'t>>,
) -> Result<&'w mut Rows<'t>, ReadError> {
    match table {
        Some(open) => Ok(open),
        empty => Ok(empty.insert(txn.open(definition)?)),
    }
}
