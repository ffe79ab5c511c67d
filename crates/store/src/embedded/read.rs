//! Reads, each on one snapshot.

use std::ops::Bound;

use redb::{ReadOnlyTable, ReadTransaction, ReadableTable};
use wire::names::{Key, Layer, Path};

use kv4::address::{Bucket, Entry, Node};
use kv4::store::{Change, Seq, SeriesQuery, Stat, StatCell, StatQuery, StoreError};
use kv4::{Head, Version};

use super::engine::ReadError;
use super::format::{BUCKETS, Bytes, FEED, HEADS, NODES, SERIES, STATS, UNIQUE};
use super::keys::{self, BucketId};
use super::record::{FeedRow, Record, read_count, read_stat};

/// Bytes of values in one answer of a series or of the feed.
pub const ANSWER_BYTES_MAX: usize = 16 << 20;
/// Most cells in one answer; a longer one is refused as too large.
pub const STAT_CELLS_MAX: usize = 1_000_000;

type Result<T> = std::result::Result<T, ReadError>;
type Rows = ReadOnlyTable<Bytes, Bytes>;

pub(crate) fn node(txn: &ReadTransaction, node: &Node, bytes_max: usize) -> Result<Vec<Head>> {
    let mut heads = Vec::new();
    let mut bytes = 0;
    let Some(prefix) = entries_prefix(txn, node)? else { return Ok(heads) };
    for row in range(&txn.open_table(HEADS)?, &prefix, &keys::prefix_end(&prefix))? {
        let (key, value) = row?;
        let record = decode(Record::read(value.value()))?;
        let Some(value) = record.value else { continue };
        let key = &key.value()[prefix.len()..];
        bytes += key.len() + value.len();
        if bytes > bytes_max {
            return Err(ReadError::Answer(StoreError::TooLarge));
        }
        heads.extend(decode(record.to_head(decode(keys::read_key(key))?))?);
    }
    Ok(heads)
}

pub(crate) fn newest(txn: &ReadTransaction, entry: &Entry) -> Result<Option<Version>> {
    let Some(bucket) = bucket_id(txn, &entry.node.bucket)? else { return Ok(None) };
    let heads = txn.open_table(HEADS)?;
    let Some(row) = heads.get(keys::entry(bucket, entry).as_slice())? else { return Ok(None) };
    Ok(Some(decode(Record::read(row.value()).and_then(Record::to_version))?))
}

pub(crate) fn by_secondary(
    txn: &ReadTransaction,
    node: &Node,
    nth: u8,
    secondary: &Key,
) -> Result<Option<Head>> {
    let Some(bucket) = bucket_id(txn, &node.bucket)? else { return Ok(None) };
    let mut key = Vec::new();
    keys::unique(&mut key, &keys::node(bucket, node), nth, secondary.as_str());
    let Some(primary) = txn.open_table(UNIQUE)?.get(key.as_slice())? else { return Ok(None) };
    let primary = decode(keys::read_key(primary.value()))?;
    let heads = txn.open_table(HEADS)?;
    let row = heads.get(keys::entry(bucket, &node.entry(primary.clone())).as_slice())?;
    let row = row.ok_or_else(|| ReadError::Answer(keys::bad("the entry of a secondary key")))?;
    decode(Record::read(row.value()).and_then(|record| record.to_head(primary)))
}

pub(crate) fn keys(
    txn: &ReadTransaction,
    node: &Node,
    after: Option<&Key>,
    limit: usize,
) -> Result<Vec<Key>> {
    let mut found = Vec::new();
    let Some(prefix) = entries_prefix(txn, node)? else { return Ok(found) };
    let end = keys::prefix_end(&prefix);
    let mut start = prefix.clone();
    if let Some(after) = after {
        start.extend_from_slice(after.as_str().as_bytes());
        // The next key there can be: a key is not empty, so this excludes `after` itself only.
        start.push(0);
    }
    for row in range(&txn.open_table(HEADS)?, &start, &end)? {
        if found.len() >= limit {
            break;
        }
        let (key, value) = row?;
        if decode(Record::read(value.value()))?.is_live() {
            found.push(decode(keys::read_key(&key.value()[prefix.len()..]))?);
        }
    }
    Ok(found)
}

pub(crate) fn series(txn: &ReadTransaction, query: &SeriesQuery) -> Result<Vec<(Key, Version)>> {
    let mut found = Vec::new();
    let Some(prefix) = entries_prefix(txn, &query.node)? else { return Ok(found) };
    let mut bytes_left = ANSWER_BYTES_MAX;
    let heads = txn.open_table(HEADS)?;
    let superseded = txn.open_table(SERIES)?;
    let (start, end) = match &query.key {
        None => (prefix.clone(), keys::prefix_end(&prefix)),
        Some(key) => {
            let start = [&prefix[..], key.as_str().as_bytes()].concat();
            let end = [&start[..], &[0]].concat();
            (start, end)
        }
    };
    for row in range(&heads, &start, &end)? {
        if found.len() >= query.limit {
            break;
        }
        let (entry, head) = row?;
        let key = decode(keys::read_key(&entry.value()[prefix.len()..]))?;
        let newest = decode(Record::read(head.value()))?;
        let at = newest.ver.stamp.micros;
        if at < query.from_micros {
            continue;
        }
        if at <= query.to_micros {
            let newest = decode(newest.to_version())?;
            take_bytes(&mut bytes_left, &newest)?;
            found.push((key.clone(), newest));
        }
        let oldest = keys::version(entry.value(), query.from_micros);
        let latest = keys::version(entry.value(), query.to_micros);
        if oldest > latest {
            continue;
        }
        let bounds = (Bound::Included(oldest.as_slice()), Bound::Included(latest.as_slice()));
        for row in superseded.range::<&[u8]>(bounds)?.rev() {
            if found.len() >= query.limit {
                break;
            }
            let version = decode(Record::read(row?.1.value()).and_then(Record::to_version))?;
            take_bytes(&mut bytes_left, &version)?;
            found.push((key.clone(), version));
        }
    }
    Ok(found)
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

pub(crate) fn layers(txn: &ReadTransaction, bucket: &Bucket) -> Result<Vec<Layer>> {
    first_parts(txn, &txn.open_table(NODES)?, bucket)
}

pub(crate) fn stat_measures(txn: &ReadTransaction, bucket: &Bucket) -> Result<Vec<Layer>> {
    first_parts(txn, &txn.open_table(STATS)?, bucket)
}

pub(crate) fn paths(
    txn: &ReadTransaction,
    bucket: &Bucket,
    layer: &Layer,
    under: &Path,
) -> Result<Vec<(Path, u64)>> {
    let mut found = Vec::new();
    let Some(bucket) = bucket_id(txn, bucket)? else { return Ok(found) };
    let nodes = txn.open_table(NODES)?;
    let prefix = keys::layer(bucket, layer);
    let (start, end) = if under.is_root() {
        (prefix.clone(), keys::prefix_end(&prefix))
    } else {
        // `/a` itself sorts before `/a-b`, which is not below it, and `/a/b`, which is.
        let own = [&prefix[..], under.as_str().as_bytes()].concat();
        if let Some(count) = nodes.get(own.as_slice())? {
            found.push((under.clone(), decode(read_count(count.value()))?));
        }
        ([&own[..], b"/"].concat(), [&own[..], b"0"].concat())
    };
    for row in range(&nodes, &start, &end)? {
        let (key, count) = row?;
        let path = decode(keys::read_path(&key.value()[prefix.len()..]))?;
        found.push((path, decode(read_count(count.value()))?));
    }
    Ok(found)
}

pub(crate) fn changes(
    txn: &ReadTransaction,
    bucket: &Bucket,
    since: Seq,
    limit: usize,
) -> Result<(Vec<Change>, Seq)> {
    let mut changes = Vec::new();
    let Some(id) = bucket_id(txn, bucket)? else { return Ok((changes, Seq(0))) };
    let feed = txn.open_table(FEED)?;
    let heads = txn.open_table(HEADS)?;
    let superseded = txn.open_table(SERIES)?;
    let last = last_seq(&feed, id)?;
    if since >= last {
        return Ok((changes, last));
    }
    let start = keys::feed(id, Seq(since.0 + 1));
    let mut bytes = 0;
    for row in range(&feed, &start, &id.prefix_end())? {
        if changes.len() >= limit || bytes > ANSWER_BYTES_MAX {
            break;
        }
        let (key, row) = row?;
        let seq = decode(keys::feed_seq(key.value()))?;
        let row = decode(FeedRow::read(row.value()))?;
        let (layer, path, key) = decode(keys::read_reference(row.reference))?;
        let entry = Node::new(bucket.clone(), layer, path).entry(key);
        let version = version_at(&heads, &superseded, id, seq, &row)?;
        bytes += version.as_ref().map_or(0, value_bytes);
        changes.push(Change { seq, entry, version });
    }
    Ok((changes, last))
}

/// The last seq of a bucket's feed, which never loses a row.
pub(crate) fn last_seq(feed: &impl ReadableTable<Bytes, Bytes>, bucket: BucketId) -> Result<Seq> {
    let (start, end) = (bucket.prefix(), bucket.prefix_end());
    match feed.range::<&[u8]>(start.as_slice()..end.as_slice())?.next_back() {
        None => Ok(Seq(0)),
        Some(row) => decode(keys::feed_seq(row?.0.value())),
    }
}

pub(crate) fn buckets(txn: &ReadTransaction) -> Result<Vec<Bucket>> {
    let mut buckets = Vec::new();
    for row in txn.open_table(BUCKETS)?.iter()? {
        buckets.push(Bucket::from_stored(row?.0.value()));
    }
    Ok(buckets)
}

/// Cells lie by path, key, minute, neuron. Of each path and key only the minutes asked for are
/// read: behind them the scan leaps to the next key.
pub(crate) fn stats(txn: &ReadTransaction, query: &StatQuery) -> Result<Vec<(StatCell, Stat)>> {
    let mut cells = Vec::new();
    let Some(bucket) = bucket_id(txn, &query.bucket)? else { return Ok(cells) };
    let table = txn.open_table(STATS)?;
    let mut prefix = keys::layer(bucket, &query.measure);
    if let Some(path) = &query.path {
        prefix.extend_from_slice(path.as_str().as_bytes());
        prefix.push(0);
        if let Some(key) = &query.key {
            prefix.extend_from_slice(key.as_str().as_bytes());
            prefix.push(0);
        }
    }
    let end = keys::prefix_end(&prefix);
    let mut start = prefix;
    'leap: loop {
        for row in range(&table, &start, &end)? {
            let (row_key, figures) = row?;
            let row_key = row_key.value();
            let (measure, path, key, minute, neuron, group_len) = decode(keys::read_cell(row_key))?;
            let group = &row_key[..group_len];
            let wanted = query.key.as_ref().is_none_or(|wanted| *wanted == key);
            if !wanted || minute > query.to_minute {
                start = keys::prefix_end(group);
                continue 'leap;
            }
            if minute < query.from_minute {
                start = [group, &query.from_minute.to_be_bytes()].concat();
                continue 'leap;
            }
            if cells.len() >= STAT_CELLS_MAX {
                return Err(ReadError::Answer(StoreError::TooLarge));
            }
            let bucket = query.bucket.clone();
            let cell = StatCell { bucket, measure, path, key, minute, neuron };
            cells.push((cell, decode(read_stat(figures.value()))?));
        }
        return Ok(cells);
    }
}

/// The first parts of a bucket's keys, each once: a leap for each, whatever lies under it.
fn first_parts(txn: &ReadTransaction, table: &Rows, bucket: &Bucket) -> Result<Vec<Layer>> {
    let mut layers = Vec::new();
    let Some(bucket) = bucket_id(txn, bucket)? else { return Ok(layers) };
    let end = bucket.prefix_end();
    let mut start = bucket.prefix().to_vec();
    while let Some(row) = range(table, &start, &end)?.next() {
        let (key, _) = row?;
        let part = key.value()[BucketId::BYTES..].split(|byte| *byte == 0).next();
        let layer = decode(keys::read_layer(part.unwrap_or_default()))?;
        start = keys::prefix_end(&keys::layer(bucket, &layer));
        layers.push(layer);
    }
    Ok(layers)
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
