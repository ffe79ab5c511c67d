//! Copies of a store: made while it is used, and put back in place of a lost one.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;

use redb::{Database, Durability, Key, ReadTransaction, ReadableTable, TableDefinition, Value};

use super::engine::{Engine, ReadError};
use super::format::{BUCKETS, DROPPED, LogState, META, OF_BUCKETS, OpenError, Partial};
use super::fsck::{Report, fsck};

/// Rows that one transaction of a copy holds, which bounds its memory.
const COPY_ROWS: usize = 10_000;
/// Memory for pages of the copy.
const COPY_CACHE_BYTES: usize = 16 << 20;

/// Why there is no copy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackupError {
    #[error("there is something at that place already")]
    Exists,
    /// What was to be put back is not a store that this program reads.
    #[error(transparent)]
    Open(OpenError),
    #[error("what was to be restored is damaged: {0}")]
    Damaged(Report),
    #[error("the store is being closed, or opened anew after a failure")]
    GivenUp,
    #[error("reading the store failed: {0}")]
    Read(String),
    #[error("writing the copy failed: {0}")]
    Write(String),
}

/// Copies every row of one snapshot, in key order, into a fresh file beside `to`, which gets its
/// name when all of it is durable. The snapshot pins the pages of its moment: for as long as the
/// copy takes, the store's file grows instead of using them again.
pub(crate) fn backup(engine: &Engine, to: &Path) -> Result<(), BackupError> {
    let partial = new_partial(to)?;
    let copy = Database::builder()
        .set_cache_size(COPY_CACHE_BYTES)
        .create(partial.place())
        .map_err(|error| write_error(error.into()))?;
    // The engine can be neither closed nor brought back while it is read.
    let copied = engine.read(|from| Ok(copy_tables(from, &copy, engine)));
    copied.map_err(read_error)??;
    finish(&copy)?;
    drop(copy);
    publish(partial)
}

/// Puts a backup in the place of a store: copies it, checks all of the copy, then gives it its name.
///
/// # Errors
/// There is something at `to`, or the backup is damaged or of a format that this program does not
/// read; then nothing is left there.
pub fn restore(from: &Path, to: &Path) -> Result<(), BackupError> {
    let partial = new_partial(to)?;
    File::open(from).map_err(|error| BackupError::Read(error.to_string()))?;
    copy_file(from, partial.place()).map_err(|error| BackupError::Write(error.to_string()))?;
    let report = fsck(partial.place()).map_err(BackupError::Open)?;
    if !report.is_clean() {
        return Err(BackupError::Damaged(report));
    }
    publish(partial)
}

/// Without the mode, which is the place's own.
fn copy_file(from: &Path, to: &Path) -> io::Result<u64> {
    io::copy(&mut File::open(from)?, &mut OpenOptions::new().write(true).open(to)?)
}

fn copy_tables(from: &ReadTransaction, to: &Database, engine: &Engine) -> Result<(), BackupError> {
    copy_table(from, to, engine, META)?;
    copy_table(from, to, engine, BUCKETS)?;
    copy_table(from, to, engine, DROPPED)?;
    for table in OF_BUCKETS {
        copy_table(from, to, engine, table)?;
    }
    Ok(())
}

/// Makes all of the copy durable, whose commits are in memory only. A copy has no log.
fn finish(to: &Database) -> Result<(), BackupError> {
    let last = to.begin_write().map_err(|error| write_error(error.into()))?;
    LogState::fresh().write(&last).map_err(write_error)?;
    last.commit().map_err(|error| write_error(error.into()))
}

fn copy_table<K: Key + 'static, V: Value + 'static>(
    from: &ReadTransaction,
    to: &Database,
    engine: &Engine,
    definition: TableDefinition<'_, K, V>,
) -> Result<(), BackupError> {
    let source = from.open_table(definition).map_err(|error| read_error(error.into()))?;
    let mut rows = source.iter().map_err(|error| read_error(error.into()))?;
    loop {
        let mut transaction = to.begin_write().map_err(|error| write_error(error.into()))?;
        transaction.set_durability(Durability::None).map_err(|error| write_error(error.into()))?;
        let mut copied = 0;
        {
            let mut target =
                transaction.open_table(definition).map_err(|error| write_error(error.into()))?;
            for row in rows.by_ref().take(COPY_ROWS) {
                if engine.is_wanted_alone() {
                    return Err(BackupError::GivenUp);
                }
                let (key, value) = row.map_err(|error| read_error(error.into()))?;
                target
                    .insert(key.value(), value.value())
                    .map_err(|error| write_error(error.into()))?;
                copied += 1;
            }
        }
        transaction.commit().map_err(|error| write_error(error.into()))?;
        if copied < COPY_ROWS {
            return Ok(());
        }
    }
}

fn new_partial(to: &Path) -> Result<Partial, BackupError> {
    Partial::new(to).map_err(place_error)
}

fn publish(partial: Partial) -> Result<(), BackupError> {
    partial.publish().map_err(place_error)
}

fn place_error(error: io::Error) -> BackupError {
    match error.kind() {
        io::ErrorKind::AlreadyExists => BackupError::Exists,
        _ => BackupError::Write(error.to_string()),
    }
}

fn read_error(error: ReadError) -> BackupError {
    BackupError::Read(error.into_store_error().to_string())
}

fn write_error(error: redb::Error) -> BackupError {
    BackupError::Write(error.to_string())
}
