//! The redb database in use, its failures, and how it comes back from them.
//!
//! redb refuses everything after the first I/O error until it is opened anew. Readers and the
//! committer share one [`Engine`]; only the committer brings it back.

use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, PoisonError, RwLock};

use redb::{Database, ReadTransaction, ReadableDatabase, WriteTransaction};

use kv4::store::StoreError;

use super::format::OpenError;
use super::medium::{Handle, Medium};

#[derive(Debug)]
pub(crate) struct Engine {
    medium: Arc<Medium>,
    cache_bytes: usize,
    /// `None` while a failure could not be undone yet, and after the close. A reader holds the lock
    /// for as long as its transaction lives, so that no two databases ever use one file.
    database: RwLock<Option<Database>>,
}

/// A commit that failed.
pub(crate) struct CommitFailed {
    pub(crate) error: redb::Error,
    /// The commit became durable and the failure came after it: it stands.
    pub(crate) stands: bool,
}

impl Engine {
    pub(crate) fn open(medium: Medium, cache_bytes: usize) -> Result<Engine, OpenError> {
        let medium = Arc::new(medium);
        let database = open(&medium, cache_bytes)?;
        Ok(Engine { medium, cache_bytes, database: RwLock::new(Some(database)) })
    }

    /// Runs `read` on a snapshot of this moment.
    pub(crate) fn read<T>(
        &self,
        read: impl FnOnce(&ReadTransaction) -> Result<T, ReadError>,
    ) -> Result<T, ReadError> {
        let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
        let database = database.as_ref().ok_or(ReadError::Away)?;
        shielded(|| {
            let transaction = database.begin_read().map_err(redb::Error::from)?;
            read(&transaction)
        })?
    }

    /// Uses the database as a whole; for the opening and for checks.
    pub(crate) fn with<T>(&self, with: impl FnOnce(&Database) -> T) -> Result<T, ReadError> {
        let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
        database.as_ref().map(with).ok_or(ReadError::Away)
    }

    /// Begins the one write transaction, on the committer's thread only. Fails after a failure that
    /// redb remembers, a reader's included.
    pub(crate) fn begin_write(&self) -> Result<WriteTransaction, redb::Error> {
        let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
        match database.as_ref() {
            Some(database) => Ok(database.begin_write()?),
            None => Err(redb::Error::PreviousIo),
        }
    }

    /// Makes a transaction durable.
    pub(crate) fn commit(&self, transaction: WriteTransaction) -> Result<(), CommitFailed> {
        let before = self.medium.durable_header();
        let committed = shielded(|| transaction.commit());
        committed
            .and_then(|committed| Ok(committed?))
            .map_err(|error| CommitFailed { error, stands: self.medium.durable_header() != before })
    }

    /// Undoes what a failed commit may have left, and opens the database anew; waits for the reads
    /// that are under way. On an error the store stays away and this can be tried again.
    pub(crate) fn recover(&self) -> Result<(), OpenError> {
        let mut database = self.database.write().unwrap_or_else(PoisonError::into_inner);
        *database = None;
        self.medium.roll_back()?;
        *database = Some(open(&self.medium, self.cache_bytes)?);
        Ok(())
    }

    /// Closes the database cleanly and gives up its lock.
    pub(crate) fn close(&self) {
        let mut database = self.database.write().unwrap_or_else(PoisonError::into_inner);
        *database = None;
        if let Err(error) = self.medium.release() {
            tracing::warn!(%error, "the lock of the store was not released");
        }
    }
}

fn open(medium: &Arc<Medium>, cache_bytes: usize) -> Result<Database, OpenError> {
    let handle = Handle(medium.clone());
    let open = || Database::builder().set_cache_size(cache_bytes).create_with_backend(handle);
    Ok(shielded(open)??)
}

/// Calls redb, and makes an error of a panic: pages that are damaged enough make it panic, and a
/// panic must not end a thread that all requests need.
pub(crate) fn shielded<T>(call: impl FnOnce() -> T) -> Result<T, redb::Error> {
    panic::catch_unwind(AssertUnwindSafe(call)).map_err(|payload| {
        let text = payload
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| payload.downcast_ref::<&str>().copied());
        redb::Error::Corrupted(format!("redb panicked: {}", text.unwrap_or("no message")))
    })
}

/// Why a read has no answer.
#[derive(Debug)]
pub(crate) enum ReadError {
    /// The engine failed; it has to be opened anew.
    Engine(redb::Error),
    /// The engine is closed, or waits to be opened anew.
    Away,
    /// An answer after all: too much, or damage.
    Answer(StoreError),
}

impl From<redb::Error> for ReadError {
    fn from(error: redb::Error) -> ReadError {
        ReadError::Engine(error)
    }
}

impl From<redb::StorageError> for ReadError {
    fn from(error: redb::StorageError) -> ReadError {
        ReadError::Engine(error.into())
    }
}

impl From<redb::TableError> for ReadError {
    fn from(error: redb::TableError) -> ReadError {
        ReadError::Engine(error.into())
    }
}

impl ReadError {
    pub(crate) fn into_store_error(self) -> StoreError {
        match self {
            ReadError::Engine(error) => store_error(&error),
            ReadError::Away => StoreError::Unavailable("it is closed or recovering".to_owned()),
            ReadError::Answer(error) => error,
        }
    }
}

pub(crate) fn store_error(error: &redb::Error) -> StoreError {
    match error {
        redb::Error::Corrupted(text) => StoreError::Damaged(text.clone()),
        other => StoreError::Unavailable(other.to_string()),
    }
}
