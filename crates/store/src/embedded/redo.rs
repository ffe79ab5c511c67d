//! Changes of rows, kept as they are made so that they can be made again.
//!
//! A transaction that is to go to the log is written through [`Writing`] only, whose tables can be
//! changed in no other way than one that is noted. To make the changes of a generation again, in
//! order, leads to the same rows from any state since its beginning, and however often it is cut off:
//! what a key ends as is decided by the last change that names it.

use std::cell::RefCell;
use std::ops::Deref;

use redb::{
    Key, StorageError, Table, TableDefinition, TableError, TableHandle, Value, WriteTransaction,
};

use super::format::{
    BUCKETS, Bytes, DROPPED, FEED, HEADS, META, NODES, OF_BUCKETS, SERIES, STATS, UNIQUE,
};
use super::log::{RECORD_HEADER_BYTES, Records};

const INSERT: u8 = 1;
const REMOVE: u8 = 2;
const REMOVE_RANGE: u8 = 3;

/// What is kept of a buffer that a large batch has grown.
const KEPT_BYTES: usize = 1 << 20;

/// The changes of one batch: a record of the log, its header left free.
#[derive(Debug)]
pub(crate) struct Redo {
    bytes: Vec<u8>,
    leaves_no_trace: bool,
}

impl Default for Redo {
    fn default() -> Redo {
        Redo { bytes: vec![0; RECORD_HEADER_BYTES], leaves_no_trace: false }
    }
}

impl Redo {
    pub(crate) fn clear(&mut self) {
        self.bytes.truncate(RECORD_HEADER_BYTES);
        self.bytes.shrink_to(KEPT_BYTES);
        self.leaves_no_trace = false;
    }

    pub(crate) fn record_bytes(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// The batch took something away for good: nothing of it may stay in the log.
    pub(crate) fn leaves_no_trace(&self) -> bool {
        self.leaves_no_trace
    }

    /// The record, after `fill` has completed it in place.
    pub(crate) fn seal(&mut self, fill: impl FnOnce(&mut Vec<u8>)) -> &[u8] {
        fill(&mut self.bytes);
        &self.bytes
    }

    fn note(&mut self, operation: u8, table: u8, parts: &[&[u8]]) {
        self.bytes.extend_from_slice(&[operation, table]);
        for part in parts {
            let length = u32::try_from(part.len()).expect("redb's keys and values are below 4 GiB");
            self.bytes.extend_from_slice(&length.to_be_bytes());
            self.bytes.extend_from_slice(part);
        }
    }
}

/// A write transaction whose changes are noted.
#[derive(Clone, Copy)]
pub(crate) struct Writing<'t> {
    transaction: &'t WriteTransaction,
    redo: &'t RefCell<Redo>,
}

impl<'t> Writing<'t> {
    pub(crate) fn new(transaction: &'t WriteTransaction, redo: &'t RefCell<Redo>) -> Writing<'t> {
        Writing { transaction, redo }
    }

    pub(crate) fn open<K: Key + 'static, V: Value + 'static>(
        self,
        definition: TableDefinition<'_, K, V>,
    ) -> Result<NotedTable<'t, K, V>, TableError> {
        let number = number(&definition);
        let table = self.transaction.open_table(definition)?;
        Ok(NotedTable { table, number, redo: self.redo })
    }

    /// Says that the batch takes something away for good.
    pub(crate) fn leave_no_trace(self) {
        self.redo.borrow_mut().leaves_no_trace = true;
    }
}

/// A table that is read as redb's and changed with a note.
pub(crate) struct NotedTable<'t, K: Key + 'static, V: Value + 'static> {
    table: Table<'t, K, V>,
    number: u8,
    redo: &'t RefCell<Redo>,
}

impl<'t, K: Key + 'static, V: Value + 'static> Deref for NotedTable<'t, K, V> {
    type Target = Table<'t, K, V>;

    fn deref(&self) -> &Table<'t, K, V> {
        &self.table
    }
}

impl<K: Key + 'static, V: Value + 'static> NotedTable<'_, K, V> {
    pub(crate) fn insert(
        &mut self,
        key: K::SelfType<'_>,
        value: V::SelfType<'_>,
    ) -> Result<(), StorageError> {
        let (key_bytes, value_bytes) = (K::as_bytes(&key), V::as_bytes(&value));
        let parts = [key_bytes.as_ref(), value_bytes.as_ref()];
        self.redo.borrow_mut().note(INSERT, self.number, &parts);
        self.table.insert(&key, &value)?;
        Ok(())
    }

    pub(crate) fn remove(&mut self, key: K::SelfType<'_>) -> Result<(), StorageError> {
        self.redo.borrow_mut().note(REMOVE, self.number, &[K::as_bytes(&key).as_ref()]);
        self.table.remove(&key)?;
        Ok(())
    }
}

impl NotedTable<'_, Bytes, Bytes> {
    /// Removes every row from `start` on and below `end`.
    pub(crate) fn remove_range(&mut self, start: &[u8], end: &[u8]) -> Result<(), StorageError> {
        self.redo.borrow_mut().note(REMOVE_RANGE, self.number, &[start, end]);
        self.table.retain_in::<&[u8], _>(start..end, |_, _| false)
    }
}

/// Makes the changes of records again, without a note.
///
/// # Errors
/// A record was not written by [`Redo`], or redb fails.
pub(crate) fn replay_all(
    transaction: &WriteTransaction,
    records: &Records,
) -> Result<(), redb::Error> {
    records.bodies().try_for_each(|body| replay(transaction, body))
}

fn replay(transaction: &WriteTransaction, body: &[u8]) -> Result<(), redb::Error> {
    let mut tables: [Option<Table<'_, Bytes, Bytes>>; OF_BUCKETS.len()] = Default::default();
    let mut rest = body;
    while !rest.is_empty() {
        let change = Change::take(&mut rest).ok_or_else(unreadable)?;
        let of_buckets = OF_BUCKETS.iter().position(|table| number(table) == change.table);
        if let Some(nth) = of_buckets {
            let table = match &mut tables[nth] {
                Some(table) => table,
                empty => empty.insert(transaction.open_table(OF_BUCKETS[nth])?),
            };
            match change.operation {
                Operation::RemoveRange(end) => {
                    table.retain_in::<&[u8], _>(change.key..end, |_, _| false)?;
                }
                _ => change.apply(table)?,
            }
        } else if change.table == number(&META) {
            change.apply(&mut transaction.open_table(META)?)?;
        } else if change.table == number(&BUCKETS) {
            change.apply(&mut transaction.open_table(BUCKETS)?)?;
        } else if change.table == number(&DROPPED) {
            change.apply(&mut transaction.open_table(DROPPED)?)?;
        } else {
            return Err(unreadable());
        }
    }
    Ok(())
}

struct Change<'a> {
    table: u8,
    key: &'a [u8],
    operation: Operation<'a>,
}

enum Operation<'a> {
    Insert(&'a [u8]),
    Remove,
    /// From the key on, up to here.
    RemoveRange(&'a [u8]),
}

impl<'a> Change<'a> {
    fn take(bytes: &mut &'a [u8]) -> Option<Change<'a>> {
        let ([operation, table], rest) = bytes.split_first_chunk()?;
        *bytes = rest;
        let key = part(bytes)?;
        let operation = match *operation {
            INSERT => Operation::Insert(part(bytes)?),
            REMOVE => Operation::Remove,
            REMOVE_RANGE => Operation::RemoveRange(part(bytes)?),
            _ => return None,
        };
        Some(Change { table: *table, key, operation })
    }

    fn apply<K: Key + 'static, V: Value + 'static>(
        self,
        table: &mut Table<'_, K, V>,
    ) -> Result<(), redb::Error> {
        let key = K::from_bytes(self.key);
        match self.operation {
            Operation::Insert(value) => drop(table.insert(&key, V::from_bytes(value))?),
            Operation::Remove => drop(table.remove(&key)?),
            Operation::RemoveRange(_) => return Err(unreadable()),
        }
        Ok(())
    }
}

fn part<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    let (part, rest) = rest.split_at_checked(u32::from_be_bytes(*length) as usize)?;
    *bytes = rest;
    Some(part)
}

fn unreadable() -> redb::Error {
    redb::Error::Corrupted("a record of the log is not of this format".to_owned())
}

/// The number that a table has in records.
fn number(table: &impl TableHandle) -> u8 {
    let names = [
        HEADS.name(),
        SERIES.name(),
        UNIQUE.name(),
        FEED.name(),
        NODES.name(),
        STATS.name(),
        META.name(),
        BUCKETS.name(),
        DROPPED.name(),
    ];
    let nth = names.iter().position(|name| *name == table.name());
    u8::try_from(nth.expect("a table of the format")).expect("few tables") + 1
}
