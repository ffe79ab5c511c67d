//! Checks a store: redb's own integrity, then every invariant between the tables.
//!
//! The rules are those of `docs/design/store-format.md`. Tables are read in key order, side by side
//! where they must agree, so that memory does not grow with the store.

use std::collections::BTreeMap;
use std::fmt;
use std::iter::Peekable;
use std::path::Path;

use redb::{
    AccessGuard, Database, ReadOnlyTable, ReadTransaction, ReadableDatabase, ReadableTable,
    StorageBackend,
};

use kv4::store::{Seq, StoreError};

use super::engine::{ReadError, settle, shielded};
use super::format::{
    self, BUCKETS, Bytes, DROPPED, FEED, HEADS, META, META_BUCKET_NEXT, NODES, OF_BUCKETS,
    OpenError, SERIES, STATS, UNIQUE,
};
use super::keys::{self, BucketId};
use super::log::Place;
use super::record::{FeedRow, Record, read_count, read_stat};

/// Most violations that a report names; all are counted.
pub const VIOLATIONS_MAX: usize = 1_000;
/// Memory for pages while checking.
const CACHE_BYTES: usize = 64 << 20;

type Rows = ReadOnlyTable<Bytes, Bytes>;
type Result<T> = std::result::Result<T, ReadError>;

/// An invariant of the format.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[non_exhaustive]
pub enum Rule {
    /// The file is what redb wrote: checksums, page allocation.
    Engine,
    /// The log that the store needs is whole.
    Log,
    /// Keys and values read back as this format.
    Readable,
    /// Rows belong to a bucket that is there, or dropped and not swept yet.
    BucketKnown,
    /// Bucket ids are below the next one to be given, and one name has each.
    BucketIds,
    /// A node's count is the number of its live entries.
    NodeCount,
    /// A live entry's secondary keys lead to it.
    UniqueMissing,
    /// A secondary key leads to a live entry that has it.
    UniqueStray,
    /// A bucket's feed is 1, 2, 3 … without a gap.
    FeedDense,
    /// The feed row of a version's seq tells of that version.
    FeedRow,
    /// Superseded versions have a newest one.
    SeriesOrphan,
    /// Generations below the newest are there without a gap from the oldest kept on.
    SeriesDense,
    /// Within an entry, stamps rise with generations.
    StampsRise,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Rule::Engine => "the engine's integrity check failed",
            Rule::Log => "the log is damaged",
            Rule::Readable => "a row cannot be read as this format",
            Rule::BucketKnown => "a row belongs to no bucket",
            Rule::BucketIds => "a bucket's id is not its own",
            Rule::NodeCount => "a node's count of live entries is wrong",
            Rule::UniqueMissing => "a secondary key does not lead to its entry",
            Rule::UniqueStray => "a secondary key leads to an entry that does not have it",
            Rule::FeedDense => "a feed has a gap",
            Rule::FeedRow => "a version is not in the feed at its seq",
            Rule::SeriesOrphan => "superseded versions have no newest one",
            Rule::SeriesDense => "a series has a gap",
            Rule::StampsRise => "stamps do not rise with generations",
        })
    }
}

/// One place where a rule does not hold.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Violation {
    pub rule: Rule,
    /// Table and key, readable.
    pub at: String,
}

/// What a check found.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Report {
    /// The first [`VIOLATIONS_MAX`].
    pub violations: Vec<Violation>,
    /// All of them, by rule.
    pub counts: BTreeMap<Rule, u64>,
    pub buckets: u64,
    /// Entries, deleted ones included.
    pub entries: u64,
    pub versions: u64,
}

impl Report {
    pub fn is_clean(&self) -> bool {
        self.counts.is_empty()
    }

    fn add(&mut self, rule: Rule, table: &str, key: &[u8]) {
        *self.counts.entry(rule).or_default() += 1;
        if self.violations.len() < VIOLATIONS_MAX {
            let at = format!("{table} {}", key.escape_ascii());
            self.violations.push(Violation { rule, at });
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report { buckets, entries, versions, .. } = self;
        write!(f, "{buckets} buckets, {entries} entries, {versions} versions")?;
        for (rule, count) in &self.counts {
            write!(f, "; {rule}: {count}")?;
        }
        Ok(())
    }
}

/// Checks the store at `path`, which nothing else may have open, and its log. A store that was not
/// closed is recovered first, as an opening would do: when its own pages are right, what only its log
/// has is put into it, and then its file alone is the store.
///
/// # Errors
/// The file cannot be opened as a store of a known format at all, or the log that it needs is not
/// there or not its own.
pub fn fsck(path: &Path) -> std::result::Result<Report, OpenError> {
    shielded(|| check_file(format::open_file(path)?, Place::beside(path)))?
}

/// Checks a store and its log on anything that redb can use as a file.
///
/// # Errors
/// As [`fsck`].
pub fn fsck_on(
    file: impl StorageBackend,
    log: impl StorageBackend,
) -> std::result::Result<Report, OpenError> {
    shielded(|| check_file(file, Place::On(Box::new(log))))?
}

fn check_file(file: impl StorageBackend, log: Place) -> std::result::Result<Report, OpenError> {
    let mut database = Database::builder().set_cache_size(CACHE_BYTES).create_with_backend(file)?;
    let mut report = Report::default();
    match database.check_integrity() {
        Ok(true) => {}
        Ok(false) => report.add(Rule::Engine, "file", b"repaired"),
        Err(error) => {
            report.add(Rule::Engine, "file", error.to_string().as_bytes());
            return Ok(report);
        }
    }
    let transaction = database.begin_read().map_err(redb::Error::from)?;
    format::check(&transaction)?;
    drop(transaction);
    match settle(&database, log) {
        Ok(()) => {}
        Err(OpenError::LogDamaged(what)) => report.add(Rule::Log, "log", what.as_bytes()),
        Err(error) => return Err(error),
    }
    let transaction = database.begin_read().map_err(redb::Error::from)?;
    match check(&transaction, &mut report) {
        Ok(()) => Ok(report),
        Err(ReadError::Engine(error)) => Err(error.into()),
        Err(error) => Err(OpenError::Damaged(error.into_store_error().to_string())),
    }
}

fn check(txn: &ReadTransaction, report: &mut Report) -> Result<()> {
    let buckets = check_buckets(txn, report)?;
    let tables = Tables {
        heads: txn.open_table(HEADS)?,
        series: txn.open_table(SERIES)?,
        feed: txn.open_table(FEED)?,
        unique: txn.open_table(UNIQUE)?,
    };
    for id in buckets {
        check_feed(&tables.feed, id, report)?;
        check_entries(txn, &tables, id, report)?;
        check_unique(&tables, id, report)?;
        check_orphans(&tables, id, report)?;
        check_stats(txn, id, report)?;
    }
    Ok(())
}

struct Tables {
    heads: Rows,
    series: Rows,
    feed: Rows,
    unique: Rows,
}

/// Ids of the buckets that are there; rows under any other id must be of dropped ones.
fn check_buckets(txn: &ReadTransaction, report: &mut Report) -> Result<Vec<BucketId>> {
    let meta = txn.open_table(META)?;
    let next = format::meta_u32(&meta, META_BUCKET_NEXT).unwrap_or_else(|error| {
        report.add(Rule::Readable, "meta", error.to_string().as_bytes());
        u32::MAX
    });
    let mut names = BTreeMap::new();
    for row in txn.open_table(BUCKETS)?.iter()? {
        let (name, id) = row?;
        let id = id.value();
        if id == 0 || id >= next || names.insert(BucketId(id), ()).is_some() {
            report.add(Rule::BucketIds, "buckets", name.value().as_bytes());
        }
        report.buckets += 1;
    }
    let mut allowed = names.clone();
    for row in txn.open_table(DROPPED)?.iter()? {
        let id = row?.0.value();
        if id >= next || allowed.insert(BucketId(id), ()).is_some() {
            report.add(Rule::BucketIds, "dropped", &id.to_be_bytes());
        }
    }
    for definition in OF_BUCKETS {
        let table = txn.open_table(definition)?;
        let mut start = Vec::new();
        while let Some(row) = table.range::<&[u8]>(start.as_slice()..)?.next() {
            let row = row?;
            let key = row.0.value();
            let Ok(id) = BucketId::read(key) else {
                report.add(Rule::Readable, &definition.to_string(), key);
                start = [key, &[0]].concat();
                continue;
            };
            if !allowed.contains_key(&id) {
                report.add(Rule::BucketKnown, &definition.to_string(), key);
            }
            if id.0 == u32::MAX {
                break;
            }
            start = id.prefix_end().to_vec();
        }
    }
    Ok(names.into_keys().filter(|id| id.0 != u32::MAX).collect())
}

fn check_feed(feed: &Rows, id: BucketId, report: &mut Report) -> Result<()> {
    let mut expected = Seq(1);
    for row in of_bucket(feed, id)? {
        let (key, row) = row?;
        let Some(seq) = readable(keys::feed_seq(key.value()), report, "feed", key.value()) else {
            continue;
        };
        if seq != expected {
            report.add(Rule::FeedDense, "feed", key.value());
        }
        expected = Seq(seq.0 + 1);
        let read = FeedRow::read(row.value())
            .and_then(|row| keys::read_reference(row.reference).map(drop));
        readable(read, report, "feed", key.value());
    }
    Ok(())
}

/// Heads beside nodes, and under each head its series.
fn check_entries(
    txn: &ReadTransaction,
    tables: &Tables,
    id: BucketId,
    report: &mut Report,
) -> Result<()> {
    let mut counted: Option<(Vec<u8>, u64)> = None;
    let nodes = txn.open_table(NODES)?;
    let mut nodes = of_bucket(&nodes, id)?.peekable();
    for row in of_bucket(&tables.heads, id)? {
        let (key, head) = row?;
        let key = key.value();
        report.entries += 1;
        report.versions += 1;
        let names = keys::read_reference(&key[BucketId::BYTES..]);
        let record = Record::read(head.value()).and_then(|record| {
            record.check()?;
            Ok(record)
        });
        let read = names.and(record);
        let Some(record) = readable(read, report, "heads", key) else { continue };
        check_feed_row(tables, id, key, &record, "heads", report)?;
        check_series(tables, id, key, &record, report)?;
        if !record.is_live() {
            continue;
        }
        let end = key.iter().rposition(|byte| *byte == 0).expect("its names were read");
        let node = &key[..end];
        check_keys(tables, node, key, &record, report)?;
        match &mut counted {
            Some((counted, count)) if counted == node => *count += 1,
            _ => {
                if let Some(done) = counted.replace((node.to_vec(), 1)) {
                    check_count(&mut nodes, Some(done), report)?;
                }
            }
        }
    }
    if let Some(done) = counted {
        check_count(&mut nodes, Some(done), report)?;
    }
    check_count(&mut nodes, None, report)
}

/// Takes rows of `nodes` up to the one counted, or to the end; those on the way have no live entry.
fn check_count(
    nodes: &mut Peekable<redb::Range<'static, Bytes, Bytes>>,
    counted: Option<(Vec<u8>, u64)>,
    report: &mut Report,
) -> Result<()> {
    let is_due = |row: &std::result::Result<(AccessGuard<'_, Bytes>, _), _>| match (row, &counted) {
        (Ok((key, _)), Some((node, _))) => key.value() <= node.as_slice(),
        _ => true,
    };
    let mut is_found = false;
    while let Some(row) = nodes.next_if(is_due) {
        let (key, count) = row?;
        let key = key.value();
        readable(keys::read_node(key), report, "nodes", key);
        let count = readable(read_count(count.value()), report, "nodes", key);
        let live = counted.as_ref().filter(|(node, _)| node == key).map(|(_, live)| *live);
        is_found |= live.is_some();
        if count != live {
            report.add(Rule::NodeCount, "nodes", key);
        }
    }
    if let Some((node, _)) = counted
        && !is_found
    {
        report.add(Rule::NodeCount, "nodes", &node);
    }
    Ok(())
}

fn check_series(
    tables: &Tables,
    id: BucketId,
    entry: &[u8],
    head: &Record<'_>,
    report: &mut Report,
) -> Result<()> {
    let start = [entry, &[0]].concat();
    let end = keys::prefix_end(&start);
    let mut before: Option<kv4::Ver> = None;
    for row in tables.series.range::<&[u8]>(start.as_slice()..end.as_slice())? {
        let (key, version) = row?;
        let key = key.value();
        report.versions += 1;
        let record = Record::read(version.value()).and_then(|record| {
            record.check()?;
            Ok(record)
        });
        let Some(record) = readable(record, report, "series", key) else { continue };
        check_feed_row(tables, id, entry, &record, "series", report)?;
        if key[start.len()..] != record.ver.stamp.micros.to_be_bytes() {
            report.add(Rule::StampsRise, "series", key);
        }
        if let Some(before) = before {
            if record.ver.generation != before.generation + 1 {
                report.add(Rule::SeriesDense, "series", key);
            }
            if record.ver.stamp.micros <= before.stamp.micros {
                report.add(Rule::StampsRise, "series", key);
            }
        }
        before = Some(record.ver);
    }
    if let Some(before) = before {
        if head.ver.generation != before.generation + 1 {
            report.add(Rule::SeriesDense, "heads", entry);
        }
        if head.ver.stamp.micros <= before.stamp.micros {
            report.add(Rule::StampsRise, "heads", entry);
        }
    }
    Ok(())
}

fn check_feed_row(
    tables: &Tables,
    id: BucketId,
    entry: &[u8],
    record: &Record<'_>,
    table: &str,
    report: &mut Report,
) -> Result<()> {
    let row = tables.feed.get(keys::feed(id, record.seq).as_slice())?;
    let expected = FeedRow {
        generation: record.ver.generation,
        micros: record.ver.stamp.micros,
        reference: &entry[BucketId::BYTES..],
    };
    let is_told = row.is_some_and(|row| FeedRow::read(row.value()).is_ok_and(|it| it == expected));
    if !is_told {
        report.add(Rule::FeedRow, table, entry);
    }
    Ok(())
}

fn check_keys(
    tables: &Tables,
    node: &[u8],
    entry: &[u8],
    record: &Record<'_>,
    report: &mut Report,
) -> Result<()> {
    let primary = &entry[node.len() + 1..];
    let mut key = Vec::new();
    for (nth, secondary) in (2..).zip(record.keys) {
        let Some(secondary) = secondary else { continue };
        keys::unique(&mut key, node, nth, secondary);
        let row = tables.unique.get(key.as_slice())?;
        if row.is_none_or(|row| row.value() != primary) {
            report.add(Rule::UniqueMissing, "unique", &key);
        }
    }
    Ok(())
}

fn check_unique(tables: &Tables, id: BucketId, report: &mut Report) -> Result<()> {
    for row in of_bucket(&tables.unique, id)? {
        let (key, primary) = row?;
        let key = key.value();
        let Some(end) = key.iter().rposition(|byte| *byte == 0) else {
            report.add(Rule::Readable, "unique", key);
            continue;
        };
        let (node, rest) = (&key[..end], &key[end + 1..]);
        let leads = match rest.split_first() {
            Some((nth @ 2..=4, secondary)) => {
                let entry = [node, &[0], primary.value()].concat();
                let head = tables.heads.get(entry.as_slice())?;
                head.is_some_and(|head| {
                    Record::read(head.value()).is_ok_and(|record| {
                        let has = record.keys[usize::from(nth - 2)];
                        record.is_live() && has.map(str::as_bytes) == Some(secondary)
                    })
                })
            }
            _ => false,
        };
        if !leads {
            report.add(Rule::UniqueStray, "unique", key);
        }
    }
    Ok(())
}

/// Leaps through the series from entry to entry.
fn check_orphans(tables: &Tables, id: BucketId, report: &mut Report) -> Result<()> {
    let mut start = id.prefix().to_vec();
    let end = id.prefix_end();
    while let Some(row) = tables.series.range::<&[u8]>(start.as_slice()..end.as_slice())?.next() {
        let (key, _) = row?;
        let key = key.value();
        let entry = key.len().checked_sub(9).map(|at| key.split_at(at));
        match entry {
            Some((entry, [0, ..])) if entry.len() > BucketId::BYTES => {
                if tables.heads.get(entry)?.is_none() {
                    report.add(Rule::SeriesOrphan, "series", key);
                }
                start = keys::prefix_end(&[entry, &[0]].concat());
            }
            _ => {
                report.add(Rule::Readable, "series", key);
                start = [key, &[0]].concat();
            }
        }
    }
    Ok(())
}

fn check_stats(txn: &ReadTransaction, id: BucketId, report: &mut Report) -> Result<()> {
    let stats = txn.open_table(STATS)?;
    for row in of_bucket(&stats, id)? {
        let (key, figures) = row?;
        let read = keys::CellKey::read(key.value())
            .and_then(|cell| cell.check())
            .and_then(|()| read_stat(figures.value()));
        readable(read, report, "stats", key.value());
    }
    Ok(())
}

fn of_bucket(table: &Rows, id: BucketId) -> Result<redb::Range<'static, Bytes, Bytes>> {
    Ok(table.range::<&[u8]>(id.prefix().as_slice()..id.prefix_end().as_slice())?)
}

fn readable<T>(
    read: std::result::Result<T, StoreError>,
    report: &mut Report,
    table: &str,
    key: &[u8],
) -> Option<T> {
    if read.is_err() {
        report.add(Rule::Readable, table, key);
    }
    read.ok()
}
