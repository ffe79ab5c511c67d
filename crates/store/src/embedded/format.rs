//! The tables of format 2, and what opens, creates and refuses a file.
//!
//! `docs/design/store-format.md` is the specification and says how the format may change.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use redb::backends::FileBackend;
use redb::{
    Database, DatabaseError, ReadTransaction, ReadableTable, StorageError, TableDefinition,
    TableError, WriteTransaction,
};

use super::log::Owner;
use super::record::read_u32;

pub(crate) type Bytes = &'static [u8];

/// Facts about the store as a whole, by name.
pub(crate) const META: TableDefinition<&str, Bytes> = TableDefinition::new("meta");
/// Name → id.
pub(crate) const BUCKETS: TableDefinition<&str, u32> = TableDefinition::new("buckets");
/// Ids whose rows are still to be removed.
pub(crate) const DROPPED: TableDefinition<u32, ()> = TableDefinition::new("dropped");
/// Entry → its newest version, deletions included.
pub(crate) const HEADS: TableDefinition<Bytes, Bytes> = TableDefinition::new("heads");
/// Entry and stamp → a superseded version.
pub(crate) const SERIES: TableDefinition<Bytes, Bytes> = TableDefinition::new("series");
/// Node, nth, secondary key → the primary key of the live entry that has it.
pub(crate) const UNIQUE: TableDefinition<Bytes, Bytes> = TableDefinition::new("unique");
/// Bucket and seq → which version of which entry.
pub(crate) const FEED: TableDefinition<Bytes, Bytes> = TableDefinition::new("feed");
/// Node → how many live entries it has; no row for none.
pub(crate) const NODES: TableDefinition<Bytes, Bytes> = TableDefinition::new("nodes");
/// Cell → figures.
pub(crate) const STATS: TableDefinition<Bytes, Bytes> = TableDefinition::new("stats");

/// The tables whose keys start with a bucket id.
pub(crate) const OF_BUCKETS: [TableDefinition<Bytes, Bytes>; 6] =
    [HEADS, SERIES, UNIQUE, FEED, NODES, STATS];

pub(crate) const META_FORMAT: &str = "format";
pub(crate) const META_STORE: &str = "store";
pub(crate) const META_INCARNATION: &str = "incarnation";
pub(crate) const META_BUCKET_NEXT: &str = "bucket next";
pub(crate) const META_LOG: &str = "log";

/// The format that this program writes.
pub const FORMAT: u32 = 2;
/// The oldest format that this program opens.
pub const FORMAT_OLDEST: u32 = 1;

/// Why a store does not open.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    #[error("the store is open in another process")]
    Locked,
    #[error(
        "written by a newer ganglion, format {found}; this one reads up to {FORMAT}: \
         run the newer one, or restore a backup that this one made"
    )]
    Newer { found: u32 },
    #[error(
        "written by an older ganglion, format {found}; this one reads {FORMAT_OLDEST} and up: \
         open it once with a release that reads {found} and writes {FORMAT_OLDEST}"
    )]
    Older { found: u32 },
    /// The engine's own file format, below ours.
    #[error("the file is of version {found} of redb's format, which this ganglion does not read")]
    Engine { found: u8 },
    #[error("not a store, or damaged: {0}")]
    Damaged(String),
    #[error(
        "the store was not closed, and its log is not there; the last writes are in it: put back the file \
         that was beside the store, of its name and `.log`, or restore a backup"
    )]
    LogMissing,
    #[error(
        "the log is another store's and holds something: move it away, and put this store's own back \
         if there is one"
    )]
    LogForeign,
    #[error(
        "the log is of a later state of this store: put the newer store back, or, to open this one as \
         it was, the log it was copied with, or none if it had been closed"
    )]
    LogNewer,
    #[error(
        "the log is of an earlier state of this store, and the last writes are in a later one: put that \
         back, or restore a backup"
    )]
    LogOlder,
    #[error("the log is damaged, writes that were acknowledged are in it: {0}; restore a backup")]
    LogDamaged(String),
    #[error("the log beside the store cannot be used: {0}")]
    Log(io::Error),
    #[error("the store cannot be opened: {0}")]
    Io(#[from] io::Error),
}

/// A store's id; copies have it too.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct StoreId(pub(crate) [u8; 16]);

/// What the store knows of its log.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct LogState {
    /// Of the records that are not in the tables yet.
    pub(crate) generation: u64,
    /// Known to this store and its log only. Drawn anew by each opening and each close, so that two
    /// stores that were one never have the same.
    pub(crate) seed: u64,
    /// The log shows this generation or a later one; one that does not is an older log.
    pub(crate) shown: u64,
    /// There may be such records. When there can be none, the log holds zeros.
    pub(crate) is_needed: bool,
}

impl LogState {
    const BYTES: usize = 8 + 8 + 8 + 1;

    /// Of a store that has no log yet.
    pub(crate) fn fresh() -> LogState {
        LogState { generation: 0, seed: fresh_seed(), shown: 0, is_needed: false }
    }

    /// Of a store that has all that is in its log.
    pub(crate) fn closed(self) -> LogState {
        LogState { seed: fresh_seed(), is_needed: false, ..self }
    }

    fn read(bytes: &[u8]) -> Option<LogState> {
        let bytes: &[u8; LogState::BYTES] = bytes.try_into().ok()?;
        let number = |at: usize| {
            u64::from_be_bytes(bytes[at..at + 8].try_into().expect("8 bytes were taken"))
        };
        let is_needed = match bytes[24] {
            0 => false,
            1 => true,
            _ => return None,
        };
        Some(LogState { generation: number(0), seed: number(8), shown: number(16), is_needed })
    }

    /// Puts it into a store, past the log.
    pub(crate) fn write(self, transaction: &WriteTransaction) -> Result<(), redb::Error> {
        let mut bytes = [0; LogState::BYTES];
        bytes[..8].copy_from_slice(&self.generation.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.seed.to_be_bytes());
        bytes[16..24].copy_from_slice(&self.shown.to_be_bytes());
        bytes[24] = u8::from(self.is_needed);
        transaction.open_table(META)?.insert(META_LOG, bytes.as_slice())?;
        Ok(())
    }
}

impl From<DatabaseError> for OpenError {
    fn from(error: DatabaseError) -> OpenError {
        match error {
            DatabaseError::DatabaseAlreadyOpen => OpenError::Locked,
            DatabaseError::UpgradeRequired(found) => OpenError::Engine { found },
            DatabaseError::Storage(error) => OpenError::from(redb::Error::from(error)),
            other => OpenError::from(redb::Error::from(other)),
        }
    }
}

impl From<redb::Error> for OpenError {
    fn from(error: redb::Error) -> OpenError {
        match error {
            // redb tells a foreign file and one cut short as I/O errors of these kinds.
            redb::Error::Io(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof
                ) =>
            {
                OpenError::Damaged(error.to_string())
            }
            redb::Error::Io(error) => OpenError::Io(error),
            redb::Error::PreviousIo => OpenError::Io(io::Error::other(error.to_string())),
            other => OpenError::Damaged(other.to_string()),
        }
    }
}

/// Opens the file for reading and writing; its lock is taken when redb opens it.
pub(crate) fn open_file(path: &Path) -> Result<FileBackend, OpenError> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    if file.metadata()?.len() == 0 {
        return Err(OpenError::Damaged("the file is empty".to_owned()));
    }
    Ok(FileBackend::new(file)?)
}

/// Creates an empty store at `path` in one step: it is there whole or not at all.
pub(crate) fn create(path: &Path) -> Result<(), OpenError> {
    let partial = Partial::new(path)?;
    let database = Database::builder().create(partial.place())?;
    let transaction = database.begin_write().map_err(redb::Error::from)?;
    initialize(&transaction)?;
    transaction.commit().map_err(redb::Error::from)?;
    drop(database);
    match partial.publish() {
        // Another process was first: its store is the one to open.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => Ok(other?),
    }
}

/// Makes the tables of an empty store.
pub(crate) fn initialize(transaction: &WriteTransaction) -> Result<(), redb::Error> {
    for table in OF_BUCKETS {
        transaction.open_table(table)?;
    }
    transaction.open_table(BUCKETS)?;
    transaction.open_table(DROPPED)?;
    let mut meta = transaction.open_table(META)?;
    meta.insert(META_FORMAT, FORMAT.to_be_bytes().as_slice())?;
    meta.insert(META_STORE, random_id().as_slice())?;
    meta.insert(META_INCARNATION, 0u32.to_be_bytes().as_slice())?;
    meta.insert(META_BUCKET_NEXT, 1u32.to_be_bytes().as_slice())?;
    drop(meta);
    LogState::fresh().write(transaction)
}

/// Refuses a file that is not a store, or of a format that this program does not read.
pub(crate) fn check(transaction: &ReadTransaction) -> Result<(), OpenError> {
    let meta = match transaction.open_table(META) {
        Ok(meta) => meta,
        Err(TableError::TableDoesNotExist(_)) => {
            return Err(OpenError::Damaged("there is no table `meta`".to_owned()));
        }
        Err(error) => return Err(redb::Error::from(error).into()),
    };
    let found = meta_u32(&meta, META_FORMAT)?;
    if found > FORMAT {
        return Err(OpenError::Newer { found });
    }
    if found < FORMAT_OLDEST {
        return Err(OpenError::Older { found });
    }
    for table in OF_BUCKETS {
        transaction.open_table(table).map_err(redb::Error::from)?;
    }
    transaction.open_table(BUCKETS).map_err(redb::Error::from)?;
    transaction.open_table(DROPPED).map_err(redb::Error::from)?;
    Ok(())
}

/// What a log has to fit. A store of format 1 has none and gets a state of a log that is to be.
pub(crate) fn owner(transaction: &ReadTransaction) -> Result<Owner, OpenError> {
    let meta = transaction.open_table(META).map_err(redb::Error::from)?;
    let log = match meta.get(META_LOG).map_err(redb::Error::from)? {
        Some(row) => LogState::read(row.value()),
        None if meta_u32(&meta, META_FORMAT)? == 1 => Some(LogState::fresh()),
        None => None,
    };
    let log = log.ok_or_else(|| OpenError::Damaged(format!("`meta` has no `{META_LOG}`")))?;
    let row = meta.get(META_STORE).map_err(redb::Error::from)?;
    let store = row.and_then(|row| row.value().try_into().ok()).map(StoreId);
    let store = store.ok_or_else(|| OpenError::Damaged(format!("`meta` has no `{META_STORE}`")))?;
    Ok(Owner { store, opening: meta_u32(&meta, META_INCARNATION)?, log })
}

/// Counts an opening, and makes the store one of this program's format.
pub(crate) fn count_opening(
    transaction: &WriteTransaction,
    opening: u32,
) -> Result<(), redb::Error> {
    let mut meta = transaction.open_table(META)?;
    meta.insert(META_FORMAT, FORMAT.to_be_bytes().as_slice())?;
    meta.insert(META_INCARNATION, opening.to_be_bytes().as_slice())?;
    Ok(())
}

pub(crate) fn meta_u32(
    meta: &impl ReadableTable<&'static str, Bytes>,
    name: &str,
) -> Result<u32, OpenError> {
    let row = meta.get(name).map_err(redb::Error::from)?;
    let row = row.ok_or_else(|| OpenError::Damaged(format!("`meta` has no `{name}`")))?;
    read_u32(row.value()).map_err(|error| OpenError::Damaged(error.to_string()))
}

/// Mode of every file that holds an account's data.
pub(crate) const OWNERS_ALONE: u32 = 0o600;

/// A file in the making beside the place where it is to be; removed unless it is published.
#[derive(Debug)]
pub(crate) struct Partial {
    partial: PathBuf,
    path: PathBuf,
}

impl Partial {
    /// # Errors
    /// `AlreadyExists` when there is something at `path`.
    pub(crate) fn new(path: &Path) -> io::Result<Partial> {
        if path.try_exists()? {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let mut name = path.file_name().ok_or(io::ErrorKind::InvalidFilename)?.to_owned();
        name.push(format!(".partial-{}", std::process::id()));
        let partial = path.with_file_name(name);
        match fs::remove_file(&partial) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        OpenOptions::new().write(true).create_new(true).mode(OWNERS_ALONE).open(&partial)?;
        Ok(Partial { partial, path: path.to_owned() })
    }

    /// Where the file is made; it is there, empty, and its owner's alone.
    pub(crate) fn place(&self) -> &Path {
        &self.partial
    }

    /// Makes the file durable and gives it its name, which nothing may have taken meanwhile: a link
    /// is made where a rename would silently replace another process's file.
    pub(crate) fn publish(self) -> io::Result<()> {
        File::open(&self.partial)?.sync_all()?;
        match fs::hard_link(&self.partial, &self.path) {
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::Unsupported | io::ErrorKind::PermissionDenied
                ) && !self.path.try_exists()? =>
            {
                // A file system without links.
                fs::rename(&self.partial, &self.path)?;
            }
            other => other?,
        }
        sync_folder(&self.path)
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.partial);
    }
}

/// Makes a file's name durable.
pub(crate) fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    if cfg!(unix) {
        File::open(folder.unwrap_or(Path::new(".")))?.sync_all()?;
    }
    Ok(())
}

/// A store's id: told apart, not kept secret.
fn random_id() -> [u8; 16] {
    let mut id = [0; 16];
    for half in id.chunks_exact_mut(8) {
        half.copy_from_slice(&random().to_be_bytes());
    }
    id
}

/// Starts the checksums of a log's records.
pub(crate) fn fresh_seed() -> u64 {
    random()
}

fn random() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(std::process::id())
}

impl From<StorageError> for OpenError {
    fn from(error: StorageError) -> OpenError {
        redb::Error::from(error).into()
    }
}
