//! Reads, each on one snapshot. What may be long is read in slices ([`Scan`]).

use std::collections::BTreeMap;
use std::collections::btree_map;
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use redb::{AccessGuard, ReadOnlyTable, ReadTransaction, ReadableTable, TableDefinition};
use wire::names::{Key, Layer, Path};
use wire::timegroup::TimeGroup;

use kv4::address::{Bucket, Entry, Node};
use kv4::store::{Change, Seq, SeriesQuery, Stat, StatQuery, StoreError};
use kv4::{Head, Version};

use super::engine::ReadError;
use super::format::{BUCKETS, Bytes, FEED, HEADS, NODES, SERIES, STATS, UNIQUE};
use super::keys::{self, BucketId, CellKey};
use super::record::{FeedRow, Record, read_count, read_stat};

/// Bytes of values in one answer of a series or of the feed.
pub const ANSWER_BYTES_MAX: usize = 16 << 20;
/// Rows after which a read lets others go first, when [`super::Options`] does not say.
pub const SLICE_ROWS: usize = 1_024;
/// Bytes of rows after which it does.
const SLICE_BYTES: usize = 256 << 10;
/// Time after which it does: rows that come from the disk, each from another place, take long.
const SLICE_TIME: Duration = Duration::from_millis(2);
/// Rows between looks at the clock.
const LOOK_ROWS: usize = 16;

type Result<T> = std::result::Result<T, ReadError>;
type Rows = ReadOnlyTable<Bytes, Bytes>;
type Row = AccessGuard<'static, Bytes>;

/// A read that is called, with the same snapshot, until it has an answer. It answers `None` when the
/// slice is used up.
pub(crate) trait Scan<T>:
    FnMut(&ReadTransaction, &mut Slice) -> Result<Option<T>> + Send + 'static
{
}

impl<T, F> Scan<T> for F where
    F: FnMut(&ReadTransaction, &mut Slice) -> Result<Option<T>> + Send + 'static
{
}

/// What is left of a turn.
#[derive(Debug)]
pub(crate) struct Slice {
    rows: usize,
    bytes: usize,
    until: Instant,
}

impl Slice {
    pub(crate) fn of(rows: usize) -> Slice {
        Slice { rows: rows.max(1), bytes: SLICE_BYTES, until: Instant::now() + SLICE_TIME }
    }

    fn is_used_up(&self) -> bool {
        self.rows == 0 || self.bytes == 0
    }

    fn use_up(&mut self, bytes: usize) {
        self.rows = self.rows.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(bytes);
        if self.rows.is_multiple_of(LOOK_ROWS) && Instant::now() >= self.until {
            self.rows = 0;
        }
    }
}

/// Rows that are still to be read: keys from `start` up to `end`, which is not among them.
#[derive(Debug)]
struct Rest {
    start: Vec<u8>,
    end: Vec<u8>,
    /// Length of what all keys begin with.
    prefix_len: usize,
}

/// What comes after a row.
enum Next {
    Row,
    /// As [`Next::Row`]; so many bytes were read beside this one.
    RowWith(usize),
    /// The first row from this key on.
    Leap(Vec<u8>),
    Nothing,
}

impl Rest {
    /// All that begins with `prefix`, which ends in the zero of a part.
    fn of(prefix: Vec<u8>) -> Rest {
        Rest { end: keys::prefix_end(&prefix), prefix_len: prefix.len(), start: prefix }
    }

    /// All whose next part is a path at or below `under`, and those that sort between `/a` and what is
    /// below it, as `/a-b` does.
    fn below(prefix: Vec<u8>, under: &Path) -> Rest {
        if under.is_root() {
            return Rest::of(prefix);
        }
        let own = [&prefix[..], under.as_str().as_bytes()].concat();
        Rest { end: [&own[..], b"0"].concat(), start: own, prefix_len: prefix.len() }
    }

    /// Reads rows in their order; `false` when the slice is used up before the end.
    fn read(
        &mut self,
        table: &Rows,
        slice: &mut Slice,
        mut each: impl FnMut(&[u8], &[u8]) -> Result<Next>,
    ) -> Result<bool> {
        'leap: loop {
            for row in range(table, &self.start, &self.end)? {
                let (key, value) = row?;
                let (key, value) = (key.value(), value.value());
                if slice.is_used_up() {
                    self.start = key.to_vec();
                    return Ok(false);
                }
                slice.use_up(key.len() + value.len());
                match each(key, value)? {
                    Next::Row => {}
                    Next::RowWith(bytes) => slice.bytes = slice.bytes.saturating_sub(bytes),
                    Next::Leap(start) => {
                        self.start = start;
                        continue 'leap;
                    }
                    Next::Nothing => return Ok(true),
                }
            }
            return Ok(true);
        }
    }

    /// Reads values from the last row back for as long as `each` wants more; `false` when the slice is
    /// used up before.
    fn read_back(
        &mut self,
        table: &Rows,
        slice: &mut Slice,
        mut each: impl FnMut(&[u8]) -> Result<bool>,
    ) -> Result<bool> {
        for row in range(table, &self.start, &self.end)?.rev() {
            let (key, value) = row?;
            let (key, value) = (key.value(), value.value());
            if slice.is_used_up() {
                self.end = behind(key);
                return Ok(false);
            }
            slice.use_up(key.len() + value.len());
            if !each(value)? {
                return Ok(true);
            }
        }
        Ok(true)
    }
}

/// The first key behind one.
fn behind(key: &[u8]) -> Vec<u8> {
    [key, &[0]].concat()
}

/// The first key with a path below `under`.
fn first_below(prefix: &[u8], under: &Path) -> Vec<u8> {
    [prefix, under.as_str().as_bytes(), b"/"].concat()
}

/// What is left to read; the first time, all that `begin` finds.
fn rest_of<T>(
    rest: &mut Option<T>,
    begin: impl FnOnce() -> Result<Option<T>>,
) -> Result<Option<&mut T>> {
    if rest.is_none() {
        *rest = begin()?;
    }
    Ok(rest.as_mut())
}

pub(crate) fn node(node: Node, bytes_max: usize) -> impl Scan<Vec<Head>> {
    let (mut rest, mut heads, mut bytes) = (None, Vec::new(), 0);
    move |txn: &ReadTransaction, slice: &mut Slice| {
        let begin = || Ok(entries_prefix(txn, &node)?.map(Rest::of));
        let Some(rest) = rest_of(&mut rest, begin)? else { return Ok(Some(Vec::new())) };
        let prefix_len = rest.prefix_len;
        let is_through = rest.read(&txn.open_table(HEADS)?, slice, |key, value| {
            let record = decode(Record::read(value))?;
            let Some(value) = record.value else { return Ok(Next::Row) };
            let key = &key[prefix_len..];
            bytes += key.len() + value.len();
            if bytes > bytes_max {
                return Err(ReadError::Answer(StoreError::TooLarge));
            }
            heads.extend(decode(record.to_head(decode(keys::read_key(key))?))?);
            Ok(Next::Row)
        })?;
        Ok(is_through.then(|| std::mem::take(&mut heads)))
    }
}

pub(crate) fn newest(entry: Entry) -> impl Scan<Option<Version>> {
    move |txn: &ReadTransaction, _: &mut Slice| {
        let Some(bucket) = bucket_id(txn, &entry.node.bucket)? else { return Ok(Some(None)) };
        let heads = txn.open_table(HEADS)?;
        let row = heads.get(keys::entry(bucket, &entry).as_slice())?;
        let version = |row: Row| decode(Record::read(row.value()).and_then(Record::to_version));
        Ok(Some(row.map(version).transpose()?))
    }
}

pub(crate) fn by_secondary(node: Node, nth: u8, secondary: Key) -> impl Scan<Option<Head>> {
    move |txn: &ReadTransaction, _: &mut Slice| {
        let Some(bucket) = bucket_id(txn, &node.bucket)? else { return Ok(Some(None)) };
        let mut key = Vec::new();
        keys::unique(&mut key, &keys::node(bucket, &node), nth, secondary.as_str());
        let unique = txn.open_table(UNIQUE)?;
        let Some(primary) = unique.get(key.as_slice())? else { return Ok(Some(None)) };
        let primary = decode(keys::read_key(primary.value()))?;
        let heads = txn.open_table(HEADS)?;
        let row = heads.get(keys::entry(bucket, &node.entry(primary.clone())).as_slice())?;
        let row =
            row.ok_or_else(|| ReadError::Answer(keys::bad("the entry of a secondary key")))?;
        let head = Record::read(row.value()).and_then(|record| record.to_head(primary));
        Ok(Some(decode(head)?))
    }
}

pub(crate) fn keys(node: Node, after: Option<Key>, limit: usize) -> impl Scan<Vec<Key>> {
    let (mut rest, mut found) = (None, Vec::new());
    move |txn: &ReadTransaction, slice: &mut Slice| {
        let begin = || {
            let Some(prefix) = entries_prefix(txn, &node)? else { return Ok(None) };
            let mut rest = Rest::of(prefix);
            if let Some(after) = &after {
                rest.start = behind(&[&rest.start[..], after.as_str().as_bytes()].concat());
            }
            Ok(Some(rest))
        };
        let Some(rest) = rest_of(&mut rest, begin)? else { return Ok(Some(Vec::new())) };
        let prefix_len = rest.prefix_len;
        let is_through = rest.read(&txn.open_table(HEADS)?, slice, |key, value| {
            if found.len() >= limit {
                return Ok(Next::Nothing);
            }
            if decode(Record::read(value))?.is_live() {
                found.push(decode(keys::read_key(&key[prefix_len..]))?);
            }
            Ok(Next::Row)
        })?;
        Ok(is_through.then(|| std::mem::take(&mut found)))
    }
}

pub(crate) fn series(query: SeriesQuery) -> impl Scan<Vec<(Key, Version)>> {
    let (mut heads, mut found, mut bytes_left) = (None, Vec::new(), ANSWER_BYTES_MAX);
    // The superseded versions of the key that is being read.
    let mut within: Option<(Key, Rest)> = None;
    move |txn: &ReadTransaction, slice: &mut Slice| {
        let begin = || {
            let Some(prefix) = entries_prefix(txn, &query.node)? else { return Ok(None) };
            let mut rest = Rest::of(prefix);
            if let Some(key) = &query.key {
                rest.start.extend_from_slice(key.as_str().as_bytes());
                rest.end = behind(&rest.start);
            }
            Ok(Some(rest))
        };
        let Some(rest) = rest_of(&mut heads, begin)? else { return Ok(Some(Vec::new())) };
        let prefix_len = rest.prefix_len;
        let heads = txn.open_table(HEADS)?;
        let superseded = txn.open_table(SERIES)?;
        loop {
            if let Some((key, versions)) = &mut within {
                let is_through = versions.read_back(&superseded, slice, |value| {
                    let is_wanted = found.len() < query.limit;
                    if is_wanted {
                        let version = decode(Record::read(value).and_then(Record::to_version))?;
                        if query.asks_for(&version) {
                            take_bytes(&mut bytes_left, &version)?;
                            found.push((key.clone(), version));
                        }
                    }
                    Ok(is_wanted)
                })?;
                if !is_through {
                    return Ok(None);
                }
            }
            within = None;
            let mut rows = range(&heads, &rest.start, &rest.end)?;
            let row = if found.len() < query.limit { rows.next() } else { None };
            let Some(row) = row else { return Ok(Some(std::mem::take(&mut found))) };
            if slice.is_used_up() {
                return Ok(None);
            }
            let (entry, head) = row?;
            let (entry, head) = (entry.value(), head.value());
            slice.use_up(entry.len() + head.len());
            rest.start = behind(entry);
            let newest = decode(Record::read(head))?;
            let at = newest.ver.stamp.micros;
            if at < query.from_micros {
                continue;
            }
            let key = decode(keys::read_key(&entry[prefix_len..]))?;
            if at <= query.to_micros {
                let newest = decode(newest.to_version())?;
                if query.asks_for(&newest) {
                    take_bytes(&mut bytes_left, &newest)?;
                    found.push((key.clone(), newest));
                }
            }
            let start = keys::version(entry, query.from_micros);
            let end = behind(&keys::version(entry, query.to_micros));
            if start < end {
                within = Some((key, Rest { start, end, prefix_len: entry.len() }));
            }
        }
    }
}

/// Counts a version against the bytes that one answer may have.
fn take_bytes(left: &mut usize, version: &Version) -> Result<()> {
    let bytes = value_bytes(version);
    *left = left.checked_sub(bytes).ok_or(ReadError::Answer(StoreError::TooLarge))?;
    Ok(())
}

fn value_bytes(version: &Version) -> usize {
    version.value.as_ref().map_or(0, |value| value.as_str().len())
}

pub(crate) fn layers(bucket: Bucket) -> impl Scan<Vec<Layer>> {
    first_parts(bucket, NODES)
}

pub(crate) fn stat_measures(bucket: Bucket) -> impl Scan<Vec<Layer>> {
    first_parts(bucket, STATS)
}

pub(crate) fn paths(bucket: Bucket, layer: Layer, under: Path) -> impl Scan<Vec<(Path, u64)>> {
    let (mut rest, mut found) = (None, Vec::new());
    move |txn: &ReadTransaction, slice: &mut Slice| {
        let begin = || {
            let id = bucket_id(txn, &bucket)?;
            Ok(id.map(|id| Rest::below(keys::layer(id, &layer), &under)))
        };
        let Some(rest) = rest_of(&mut rest, begin)? else { return Ok(Some(Vec::new())) };
        let prefix_len = rest.prefix_len;
        let is_through = rest.read(&txn.open_table(NODES)?, slice, |key, count| {
            let (prefix, path) = key.split_at(prefix_len);
            let path = decode(keys::read_path(path))?;
            if !path.is_within(&under) {
                return Ok(Next::Leap(first_below(prefix, &under)));
            }
            found.push((path, decode(read_count(count))?));
            Ok(Next::Row)
        })?;
        Ok(is_through.then(|| std::mem::take(&mut found)))
    }
}

pub(crate) fn changes(bucket: Bucket, since: Seq, limit: usize) -> impl Scan<(Vec<Change>, Seq)> {
    let (mut rest, mut changes, mut bytes) = (None, Vec::new(), 0);
    move |txn: &ReadTransaction, slice: &mut Slice| {
        let Some(id) = bucket_id(txn, &bucket)? else { return Ok(Some((Vec::new(), Seq(0)))) };
        let feed = txn.open_table(FEED)?;
        let heads = txn.open_table(HEADS)?;
        let superseded = txn.open_table(SERIES)?;
        let last = last_seq(&feed, id)?;
        let begin = || {
            let start = keys::feed(id, Seq(since.0.saturating_add(1))).to_vec();
            let end = id.prefix_end().to_vec();
            Ok((since < last).then_some(Rest { start, end, prefix_len: BucketId::BYTES }))
        };
        let Some(rest) = rest_of(&mut rest, begin)? else { return Ok(Some((Vec::new(), last))) };
        let is_through = rest.read(&feed, slice, |key, row| {
            if changes.len() >= limit || bytes > ANSWER_BYTES_MAX {
                return Ok(Next::Nothing);
            }
            let seq = decode(keys::feed_seq(key))?;
            let row = decode(FeedRow::read(row))?;
            let (layer, path, key) = decode(keys::read_reference(row.reference))?;
            let entry = Node::new(bucket.clone(), layer, path).entry(key);
            let version = version_at(&heads, &superseded, id, seq, &row)?;
            let of_version = version.as_ref().map_or(0, value_bytes);
            bytes += of_version;
            changes.push(Change { seq, entry, version });
            Ok(Next::RowWith(of_version))
        })?;
        Ok(is_through.then(|| (std::mem::take(&mut changes), last)))
    }
}

/// The last seq of a bucket's feed, which never loses a row.
pub(crate) fn last_seq(feed: &impl ReadableTable<Bytes, Bytes>, bucket: BucketId) -> Result<Seq> {
    let (start, end) = (bucket.prefix(), bucket.prefix_end());
    match feed.range::<&[u8]>(start.as_slice()..end.as_slice())?.next_back() {
        None => Ok(Seq(0)),
        Some(row) => decode(keys::feed_seq(row?.0.value())),
    }
}

pub(crate) fn buckets(txn: &ReadTransaction, _: &mut Slice) -> Result<Option<Vec<Bucket>>> {
    let mut buckets = Vec::new();
    for row in txn.open_table(BUCKETS)?.iter()? {
        buckets.push(Bucket::from_stored(row?.0.value()));
    }
    Ok(Some(buckets))
}

/// Cells lie by path, key, minute, neuron. Of each path and key only the minutes asked for are
/// read: to the first of them, and behind the last one to the next key, the scan leaps.
pub(crate) fn stats(query: StatQuery) -> impl Scan<Vec<(TimeGroup, Stat)>> {
    let mut rest = None;
    let mut groups = Groups::new(query.depth, query.groups_max);
    move |txn: &ReadTransaction, slice: &mut Slice| {
        let begin = || {
            let Some(bucket) = bucket_id(txn, &query.bucket)? else { return Ok(None) };
            let mut prefix = keys::layer(bucket, &query.measure);
            if let Some(path) = &query.path {
                push_part(&mut prefix, path.as_str());
                if let Some(key) = &query.key {
                    push_part(&mut prefix, key.as_str());
                }
            }
            Ok(Some(Rest::of(prefix)))
        };
        let Some(rest) = rest_of(&mut rest, begin)? else { return Ok(Some(Vec::new())) };
        let is_through = rest.read(&txn.open_table(STATS)?, slice, |row, figures| {
            let cell = decode(CellKey::read(row))?;
            let leap = |group: &[u8]| [group, &query.from_minute.to_be_bytes()].concat();
            if let Some(key) = &query.key
                && cell.key != key.as_str().as_bytes()
            {
                if cell.key > key.as_str().as_bytes() {
                    return Ok(Next::Leap(keys::prefix_end(cell.of_path)));
                }
                let mut group = cell.of_path.to_vec();
                push_part(&mut group, key.as_str());
                return Ok(Next::Leap(leap(&group)));
            }
            if cell.minute > query.to_minute {
                return Ok(Next::Leap(keys::prefix_end(cell.of_key)));
            }
            if cell.minute < query.from_minute {
                return Ok(Next::Leap(leap(cell.of_key)));
            }
            groups.add(cell.minute, decode(read_stat(figures))?)?;
            Ok(Next::Row)
        })?;
        Ok(is_through.then(|| std::mem::take(&mut groups.all).into_iter().collect()))
    }
}

fn push_part(key: &mut Vec<u8>, part: &str) {
    key.extend_from_slice(part.as_bytes());
    key.push(0);
}

/// Figures by time, of cells that come mostly in order of time.
#[derive(Debug)]
struct Groups {
    depth: usize,
    groups_max: usize,
    all: BTreeMap<TimeGroup, Stat>,
    /// The group of the last cell, and its minutes.
    last: Option<(RangeInclusive<u64>, TimeGroup)>,
}

impl Groups {
    fn new(depth: usize, groups_max: usize) -> Groups {
        Groups { depth, groups_max, all: BTreeMap::new(), last: None }
    }

    fn add(&mut self, minute: u32, stat: Stat) -> Result<()> {
        let minute = u64::from(minute);
        let group = match &self.last {
            Some((minutes, group)) if minutes.contains(&minute) => *group,
            _ => {
                let group = TimeGroup::at(minute * 60, self.depth);
                self.last = Some((group.first_s() / 60..=group.last_s() / 60, group));
                group
            }
        };
        let count = self.all.len();
        match self.all.entry(group) {
            btree_map::Entry::Occupied(mut held) => *held.get_mut() = held.get().merge(stat),
            btree_map::Entry::Vacant(_) if count >= self.groups_max => {
                return Err(ReadError::Answer(StoreError::TooLarge));
            }
            btree_map::Entry::Vacant(place) => drop(place.insert(stat)),
        }
        Ok(())
    }
}

pub(crate) fn stat_paths(
    bucket: Bucket,
    measure: Layer,
    under: Path,
    limit: usize,
) -> impl Scan<Vec<Path>> {
    let (mut rest, mut found) = (None, Vec::new());
    move |txn: &ReadTransaction, slice: &mut Slice| {
        let begin = || {
            let id = bucket_id(txn, &bucket)?;
            Ok(id.map(|id| Rest::below(keys::layer(id, &measure), &under)))
        };
        let Some(rest) = rest_of(&mut rest, begin)? else { return Ok(Some(Vec::new())) };
        let prefix_len = rest.prefix_len;
        let is_through = rest.read(&txn.open_table(STATS)?, slice, |row, _| {
            let cell = decode(CellKey::read(row))?;
            let path = decode(keys::read_path(cell.path))?;
            if !path.is_within(&under) {
                return Ok(Next::Leap(first_below(&row[..prefix_len], &under)));
            }
            push_within(&mut found, limit, path)?;
            Ok(Next::Leap(keys::prefix_end(cell.of_path)))
        })?;
        Ok(is_through.then(|| std::mem::take(&mut found)))
    }
}

pub(crate) fn series_paths(
    bucket: Bucket,
    layer: Layer,
    under: Path,
    after: Option<Path>,
    limit: usize,
) -> impl Scan<Vec<Path>> {
    let (mut rest, mut found) = (None, Vec::new());
    move |txn: &ReadTransaction, slice: &mut Slice| {
        let begin = || {
            let Some(id) = bucket_id(txn, &bucket)? else { return Ok(None) };
            let prefix = keys::layer(id, &layer);
            let mut rest = Rest::below(prefix.clone(), &under);
            if let Some(after) = &after {
                let mut last = prefix;
                push_part(&mut last, after.as_str());
                rest.start = rest.start.max(keys::prefix_end(&last));
            }
            Ok(Some(rest))
        };
        let Some(rest) = rest_of(&mut rest, begin)? else { return Ok(Some(Vec::new())) };
        let prefix_len = rest.prefix_len;
        let is_through = rest.read(&txn.open_table(HEADS)?, slice, |row, _| {
            if found.len() == limit {
                return Ok(Next::Nothing);
            }
            let of_path = &row[prefix_len..];
            let length = of_path.iter().position(|byte| *byte == 0).unwrap_or(of_path.len());
            let path = decode(keys::read_path(&of_path[..length]))?;
            if !path.is_within(&under) {
                return Ok(Next::Leap(first_below(&row[..prefix_len], &under)));
            }
            found.push(path);
            Ok(Next::Leap(keys::prefix_end(&row[..prefix_len + length + 1])))
        })?;
        Ok(is_through.then(|| std::mem::take(&mut found)))
    }
}

pub(crate) fn stat_keys(
    bucket: Bucket,
    measure: Layer,
    path: Path,
    limit: usize,
) -> impl Scan<Vec<Key>> {
    let (mut rest, mut found) = (None, Vec::new());
    move |txn: &ReadTransaction, slice: &mut Slice| {
        let begin = || {
            let Some(bucket) = bucket_id(txn, &bucket)? else { return Ok(None) };
            let mut prefix = keys::layer(bucket, &measure);
            push_part(&mut prefix, path.as_str());
            Ok(Some(Rest::of(prefix)))
        };
        let Some(rest) = rest_of(&mut rest, begin)? else { return Ok(Some(Vec::new())) };
        let is_through = rest.read(&txn.open_table(STATS)?, slice, |row, _| {
            let cell = decode(CellKey::read(row))?;
            push_within(&mut found, limit, decode(keys::read_key(cell.key))?)?;
            Ok(Next::Leap(keys::prefix_end(cell.of_key)))
        })?;
        Ok(is_through.then(|| std::mem::take(&mut found)))
    }
}

fn push_within<T>(found: &mut Vec<T>, limit: usize, one: T) -> Result<()> {
    if found.len() >= limit {
        return Err(ReadError::Answer(StoreError::TooLarge));
    }
    found.push(one);
    Ok(())
}

/// The first parts of a bucket's keys, each once: a leap for each, whatever lies under it.
fn first_parts(
    bucket: Bucket,
    table: TableDefinition<'static, Bytes, Bytes>,
) -> impl Scan<Vec<Layer>> {
    let (mut rest, mut layers) = (None, Vec::new());
    move |txn: &ReadTransaction, slice: &mut Slice| {
        let begin = || {
            let id = bucket_id(txn, &bucket)?;
            let rest = |id: BucketId| Rest {
                start: id.prefix().to_vec(),
                end: id.prefix_end().to_vec(),
                prefix_len: BucketId::BYTES,
            };
            Ok(id.map(rest))
        };
        let Some(rest) = rest_of(&mut rest, begin)? else { return Ok(Some(Vec::new())) };
        let is_through = rest.read(&txn.open_table(table)?, slice, |key, _| {
            let bucket = decode(BucketId::read(key))?;
            let part = key[BucketId::BYTES..].split(|byte| *byte == 0).next();
            let layer = decode(keys::read_layer(part.unwrap_or_default()))?;
            let next = keys::prefix_end(&keys::layer(bucket, &layer));
            layers.push(layer);
            Ok(Next::Leap(next))
        })?;
        Ok(is_through.then(|| std::mem::take(&mut layers)))
    }
}

/// The version that a feed row tells of, if it is still kept. A seq is given once, so an entry that
/// was erased and written again is not mistaken for what it was.
fn version_at(
    heads: &Rows,
    superseded: &Rows,
    bucket: BucketId,
    seq: Seq,
    row: &FeedRow<'_>,
) -> Result<Option<Version>> {
    let entry = [&bucket.prefix()[..], row.reference].concat();
    if let Some(head) = heads.get(entry.as_slice())? {
        let record = decode(Record::read(head.value()))?;
        if record.seq == seq {
            return Ok(Some(decode(record.to_version())?));
        }
    }
    if let Some(version) = superseded.get(keys::version(&entry, row.micros).as_slice())? {
        let record = decode(Record::read(version.value()))?;
        if record.seq == seq {
            return Ok(Some(decode(record.to_version())?));
        }
    }
    Ok(None)
}

fn entries_prefix(txn: &ReadTransaction, node: &Node) -> Result<Option<Vec<u8>>> {
    let Some(bucket) = bucket_id(txn, &node.bucket)? else { return Ok(None) };
    let mut prefix = keys::node(bucket, node);
    prefix.push(0);
    Ok(Some(prefix))
}

fn bucket_id(txn: &ReadTransaction, bucket: &Bucket) -> Result<Option<BucketId>> {
    let buckets = txn.open_table(BUCKETS)?;
    Ok(buckets.get(bucket.as_str())?.map(|id| BucketId(id.value())))
}

fn range(table: &Rows, start: &[u8], end: &[u8]) -> Result<redb::Range<'static, Bytes, Bytes>> {
    Ok(table.range::<&[u8]>(start..end)?)
}

fn decode<T>(result: std::result::Result<T, StoreError>) -> Result<T> {
    result.map_err(ReadError::Answer)
}
