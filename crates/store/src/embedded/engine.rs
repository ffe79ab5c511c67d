//! The redb database in use with its log, their failures, and how they come back.
//!
//! A batch is durable when its record is: redb commits it without a sync, and makes all that it holds
//! durable at a *checkpoint*, which begins a generation of the log. So the rows are always those of
//! redb's last durable commit with the log's records made again on top.
//!
//! redb refuses everything after the first I/O error until it is opened anew. Readers and the
//! committer share one [`Engine`]; only the committer writes, checkpoints and brings it back.

use std::cell::RefCell;
use std::cmp::Ordering;
use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};
use std::time::Instant;

use redb::{Database, Durability, ReadTransaction, ReadableDatabase, WriteTransaction};

use kv4::store::StoreError;

use super::format::{self, LogState, OpenError};
use super::log::{Log, Place, Records};
use super::medium::{Handle, Medium};
use super::redo::{self, Redo, Writing};

#[derive(Debug)]
pub(crate) struct Engine {
    medium: Arc<Medium>,
    cache_bytes: usize,
    /// `None` while a failure could not be undone yet, and after the close. Who reads holds the lock
    /// meanwhile, and a snapshot goes before its database, so no two databases ever use one file.
    database: RwLock<Option<Database>>,
    /// Those that may be alive.
    snapshots: Mutex<Vec<Weak<Mutex<Option<ReadTransaction>>>>>,
    /// Used by the committer only.
    log: Mutex<Log>,
    /// The database was opened with [`ROOMY_CACHE_BYTES`].
    is_roomy: AtomicBool,
    /// How many wait for the database without readers, or soon will: a long reading gives up then.
    waiting: AtomicU32,
}

/// What a longer read sees, kept between its slices.
#[derive(Debug)]
pub(crate) struct Snapshot(Arc<Mutex<Option<ReadTransaction>>>);

/// Memory for pages while a full disk has no place for what is in the log only. redb keeps up to half
/// of it from being written.
const ROOMY_CACHE_BYTES: usize = 512 << 20;

/// One write transaction, and its changes as the log will have them.
pub(crate) struct Batch {
    transaction: WriteTransaction,
    redo: RefCell<Redo>,
}

impl Batch {
    pub(crate) fn writing(&self) -> Writing<'_> {
        Writing::new(&self.transaction, &self.redo)
    }
}

/// How a batch became durable.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Committed {
    Logged,
    Checkpointed,
}

/// A commit that failed.
pub(crate) enum CommitFailed {
    /// The log did; redb is as it was before the batch.
    Log(io::Error),
    Engine {
        error: redb::Error,
        /// The batch became durable and the failure came after it: it stands.
        stands: bool,
    },
}

impl Engine {
    /// Opens the store and its log, makes again what is in the log only, and counts the opening.
    /// Answers which one it is: 1 for the first.
    pub(crate) fn open(
        medium: Medium,
        log: Place,
        cache_bytes: usize,
        log_bytes: u64,
    ) -> Result<(Engine, u32), OpenError> {
        let is_empty = medium.is_empty()?;
        let medium = Arc::new(medium);
        let database = open(&medium, cache_bytes)?;
        if is_empty {
            let transaction = database.begin_write().map_err(redb::Error::from)?;
            format::initialize(&transaction)?;
            transaction.commit().map_err(redb::Error::from)?;
        }
        let transaction = database.begin_read().map_err(redb::Error::from)?;
        format::check(&transaction)?;
        let owner = format::owner(&transaction)?;
        drop(transaction);
        let opening = owner.opening.checked_add(1).ok_or_else(|| {
            OpenError::Damaged("the incarnation counter is at its end".to_owned())
        })?;
        let (mut log, records) =
            Log::find(log, &owner, true)?.expect("it is created where it is not needed");
        log.prepare(opening, log_bytes).map_err(OpenError::Log)?;
        let replayed = checkpoint(&database, &mut log, &records, |transaction| {
            format::count_opening(transaction, opening)
        });
        replayed.map_err(OpenError::from)?;
        let engine = Engine {
            medium,
            cache_bytes,
            database: RwLock::new(Some(database)),
            snapshots: Mutex::default(),
            log: Mutex::new(log),
            is_roomy: AtomicBool::new(false),
            waiting: AtomicU32::new(0),
        };
        Ok((engine, opening))
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

    /// Runs one slice of a longer read on its `snapshot`, which is taken by the first one and kept for
    /// the next as long as `read` answers `None`.
    ///
    /// # Errors
    /// [`ReadError::Lost`], without a snapshot, when the database was opened anew since the last slice.
    pub(crate) fn read_on<T>(
        &self,
        snapshot: &mut Option<Snapshot>,
        read: impl FnOnce(&ReadTransaction) -> Result<Option<T>, ReadError>,
    ) -> Result<Option<T>, ReadError> {
        let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
        let database = database.as_ref().ok_or(ReadError::Away)?;
        shielded(|| {
            let transaction = match snapshot.take() {
                None => database.begin_read().map_err(redb::Error::from)?,
                Some(Snapshot(kept)) => locked(&kept).take().ok_or(ReadError::Lost)?,
            };
            let found = read(&transaction)?;
            if found.is_none() {
                let kept = Arc::new(Mutex::new(Some(transaction)));
                let mut snapshots = locked(&self.snapshots);
                snapshots.retain(|snapshot| snapshot.strong_count() > 0);
                snapshots.push(Arc::downgrade(&kept));
                *snapshot = Some(Snapshot(kept));
            }
            Ok(found)
        })?
    }

    /// Drops the database with all snapshots of it.
    fn let_go(&self, database: &mut Option<Database>) {
        for snapshot in locked(&self.snapshots).drain(..).filter_map(|snapshot| snapshot.upgrade())
        {
            drop(locked(&snapshot).take());
        }
        let database = database.take();
        if let Err(error) = shielded(|| drop(database)) {
            // It may be damaged enough to panic.
            tracing::warn!(%error, "the store's file was not closed cleanly");
        }
    }

    /// Begins the one write transaction, on the committer's thread only; `redo` is a buffer to use
    /// again. Fails after a failure that redb remembers, a reader's included.
    pub(crate) fn begin(&self, mut redo: Redo) -> Result<Batch, redb::Error> {
        let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
        let database = database.as_ref().ok_or(redb::Error::PreviousIo)?;
        redo.clear();
        Ok(Batch { transaction: database.begin_write()?, redo: RefCell::new(redo) })
    }

    /// Makes a batch durable: by a record of the log and one sync, or, when it may not be in the log
    /// or the log has no place for it, by a checkpoint. Answers the buffer of its changes too.
    pub(crate) fn commit(&self, batch: Batch) -> (Result<Committed, CommitFailed>, Redo) {
        let Batch { mut transaction, redo } = batch;
        let mut redo = redo.into_inner();
        let mut log = self.log();
        if redo.leaves_no_trace() || !log.takes(&redo) {
            let committed = self.commit_checkpoint(&mut log, transaction, redo.leaves_no_trace());
            return (committed.map(|()| Committed::Checkpointed), redo);
        }
        if let Err(error) = log.append(&mut redo) {
            // What fails here, redb remembers and tells the next transaction.
            let _ = shielded(|| transaction.abort());
            return (Err(CommitFailed::Log(error)), redo);
        }
        let committed = shielded(|| {
            transaction.set_durability(Durability::None).map_err(redb::Error::from)?;
            transaction.commit().map_err(redb::Error::from)
        });
        let committed = committed.flatten().map_err(|error| {
            // The record is on the disk, and recovery makes its changes again.
            CommitFailed::Engine { error, stands: true }
        });
        (committed.map(|()| Committed::Logged), redo)
    }

    /// Makes all that redb holds durable, so that the log begins anew, and clears the log.
    pub(crate) fn checkpoint(&self) -> Result<(), CommitFailed> {
        let Batch { transaction, .. } = self.begin(Redo::default()).map_err(not_standing)?;
        self.commit_checkpoint(&mut self.log(), transaction, true)
    }

    /// Whether the log has bytes that a checkpoint would clear, or a failure it would mend.
    pub(crate) fn has_log(&self) -> bool {
        !self.log().is_clear()
    }

    pub(crate) fn has_broken_log(&self) -> bool {
        self.log().is_broken()
    }

    /// Undoes what a failed commit may have left, opens the database anew and makes again what is in
    /// the log only, without a sync, since the log still has it; waits for the reads that are under
    /// way. On an error the store stays away and this can be tried again.
    pub(crate) fn recover(&self) -> Result<(), OpenError> {
        self.waiting.fetch_add(1, Relaxed);
        let mut database = self.database.write().unwrap_or_else(PoisonError::into_inner);
        self.waiting.fetch_sub(1, Relaxed);
        self.let_go(&mut database);
        let mut log = self.log();
        self.is_roomy.store(false, Relaxed);
        let reopened = match self.reopen(&mut log, self.cache_bytes) {
            Err(OpenError::Io(error)) if error.kind() == io::ErrorKind::StorageFull => {
                // Reads go on while the disk is full, as long as the pages fit into memory.
                self.is_roomy.store(true, Relaxed);
                self.reopen(&mut log, self.cache_bytes.max(ROOMY_CACHE_BYTES))
            }
            other => other,
        };
        *database = Some(reopened?);
        Ok(())
    }

    /// The database holds pages in memory that had no place on the disk, and could give them back.
    pub(crate) fn is_roomy(&self) -> bool {
        self.is_roomy.load(Relaxed)
    }

    /// Says that the engine is about to be closed.
    pub(crate) fn will_close(&self) {
        self.waiting.fetch_add(1, Relaxed);
    }

    /// Whether a reading that takes long has to give up.
    pub(crate) fn is_wanted_alone(&self) -> bool {
        self.waiting.load(Relaxed) > 0
    }

    fn reopen(&self, log: &mut Log, cache_bytes: usize) -> Result<Database, OpenError> {
        self.medium.roll_back()?;
        let database = open(&self.medium, cache_bytes)?;
        let transaction = database.begin_read().map_err(redb::Error::from)?;
        let found = format::owner(&transaction)?.log.generation;
        drop(transaction);
        match found.cmp(&log.state().generation) {
            Ordering::Less => return Err(OpenError::LogNewer),
            Ordering::Equal => {
                let records = log.acknowledged()?;
                shielded(|| {
                    let mut transaction = database.begin_write()?;
                    transaction.set_durability(Durability::None)?;
                    redo::replay_all(&transaction, &records)?;
                    transaction.commit()?;
                    Ok::<_, redb::Error>(())
                })
                .flatten()?;
            }
            // A checkpoint became durable though it failed; it has all of the log.
            Ordering::Greater => log.restart(found),
        }
        Ok(database)
    }

    /// Closes the database cleanly, so that its file alone is the store, and gives up the lock.
    pub(crate) fn close(&self) {
        self.will_close();
        let mut database = self.database.write().unwrap_or_else(PoisonError::into_inner);
        let mut log = self.log();
        if let Some(database) = database.as_ref()
            && let Err(error) = close_log(database, &mut log, &Records::default())
        {
            tracing::warn!(%error, "the store needs its log at the next opening");
        }
        self.let_go(&mut database);
        if let Err(error) = log.release() {
            tracing::warn!(%error, "the log was not released");
        }
        if let Err(error) = self.medium.release() {
            tracing::warn!(%error, "the lock of the store was not released");
        }
    }

    /// Commits a transaction durably with all that went before it, and begins a generation.
    fn commit_checkpoint(
        &self,
        log: &mut Log,
        transaction: WriteTransaction,
        clears: bool,
    ) -> Result<(), CommitFailed> {
        if let Err(error) = log.show_next() {
            warn_of_log(&error);
        }
        let before = self.medium.durable_header();
        let next = LogState { generation: log.state().generation + 1, ..log.state() };
        let committed = shielded(|| {
            next.write(&transaction)?;
            transaction.commit().map_err(redb::Error::from)
        });
        let committed = committed.flatten().map_err(|error| CommitFailed::Engine {
            error,
            stands: self.medium.durable_header() != before,
        });
        if let Err(CommitFailed::Log(_) | CommitFailed::Engine { stands: false, .. }) = committed {
            return committed;
        }
        // The batch stands whatever becomes of the log.
        log.restart(next.generation);
        let cleared = if clears && !log.is_broken() { log.clear() } else { log.renew() };
        if let Err(error) = cleared {
            warn_of_log(&error);
        }
        committed
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        locked(&self.log)
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn warn_of_log(error: &io::Error) {
    tracing::warn!(%error, "the log failed and is not used until it can be written anew");
}

/// Makes records again, in one durable transaction that names the next generation.
fn checkpoint(
    database: &Database,
    log: &mut Log,
    records: &Records,
    with: impl FnOnce(&WriteTransaction) -> Result<(), redb::Error>,
) -> Result<(), redb::Error> {
    let start = Instant::now();
    let next = LogState { generation: log.state().generation + 1, ..log.state() };
    shielded(|| {
        let transaction = database.begin_write()?;
        redo::replay_all(&transaction, records)?;
        with(&transaction)?;
        next.write(&transaction)?;
        transaction.commit()?;
        Ok(())
    })
    .flatten()?;
    log.restart(next.generation);
    let (count, bytes) = (records.bodies().len(), records.bytes());
    if count > 0 {
        let took = start.elapsed();
        tracing::info!(records = count, bytes, ?took, "the log was replayed");
    }
    Ok(())
}

/// Makes the store one that needs no log, and clears that.
fn close_log(database: &Database, log: &mut Log, records: &Records) -> Result<(), redb::Error> {
    checkpoint(database, log, records, |_| Ok(()))?;
    log.clear().map_err(redb::Error::Io)?;
    let closed = log.state().closed();
    shielded(|| {
        let transaction = database.begin_write()?;
        closed.write(&transaction)?;
        transaction.commit()?;
        Ok(())
    })
    .flatten()
}

/// Puts what is in the log only into the database that it belongs to, and closes the log. Nothing
/// happens to a store that was closed. It goes on under a seed of its own, as an opening does: what it
/// was copied from may go on with a log like this one.
pub(crate) fn settle(database: &Database, log: Place) -> Result<(), OpenError> {
    let transaction = database.begin_read().map_err(redb::Error::from)?;
    let owner = format::owner(&transaction)?;
    drop(transaction);
    let Some((mut log, records)) = Log::find(log, &owner, false)? else { return Ok(()) };
    if owner.log.is_needed {
        log.prepare(owner.opening, 0).map_err(OpenError::Log)?;
        close_log(database, &mut log, &records)?;
    }
    Ok(log.release()?)
}

fn not_standing(error: redb::Error) -> CommitFailed {
    CommitFailed::Engine { error, stands: false }
}

fn open(medium: &Arc<Medium>, cache_bytes: usize) -> Result<Database, OpenError> {
    let handle = Handle(medium.clone());
    let open = || Database::builder().set_cache_size(cache_bytes).create_with_backend(handle);
    Ok(shielded(open)??)
}

/// Calls redb, and makes an error of a panic: pages that are damaged enough make it panic, and a
/// panic must not end a thread that all requests need.
pub(crate) fn shielded<T>(call: impl FnOnce() -> T) -> Result<T, redb::Error> {
    caught(call).map_err(|text| redb::Error::Corrupted(format!("redb panicked: {text}")))
}

/// Runs a call; on a panic, answers what that says.
pub(crate) fn caught<T>(call: impl FnOnce() -> T) -> Result<T, String> {
    panic::catch_unwind(AssertUnwindSafe(call)).map_err(|payload| {
        let text = payload
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| payload.downcast_ref::<&str>().copied());
        text.unwrap_or("no message").to_owned()
    })
}

/// Why a read has no answer.
#[derive(Debug)]
pub(crate) enum ReadError {
    /// The engine failed; it has to be opened anew.
    Engine(redb::Error),
    /// The engine is closed, or waits to be opened anew.
    Away,
    /// The engine was opened anew since the read was begun: begin again.
    Lost,
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
            ReadError::Away | ReadError::Lost => {
                StoreError::Unavailable("it is closed or recovering".to_owned())
            }
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
