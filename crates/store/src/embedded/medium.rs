//! The file under the engine, guarded so that a failed commit leaves no trace.
//!
//! redb publishes a commit by writing its header (the first bytes of the file), and syncs once.
//! When that sync fails, the commit may or may not be on the disk, and the operating system may
//! have forgotten the pages it could not write while it still shows them to readers: to read the
//! file again and find the commit there proves nothing. So the guard remembers the header as of the
//! last sync that succeeded and puts it back. redb copies on write and never touches a page that
//! the last durable commit reaches, so that header gives back exactly the state that is on disk.

use std::io;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use redb::{BackendError, StorageBackend};

/// Bytes at the start of the file that hold redb's header (320 today), in whole sectors.
const HEADER_BYTES: usize = 512;

/// What a store is kept on, and what is known to be durable of its header.
#[derive(Debug)]
pub(crate) struct Medium {
    file: Box<dyn StorageBackend>,
    header: Mutex<Header>,
}

#[derive(Clone, Copy, Debug)]
struct Header {
    written: [u8; HEADER_BYTES],
    durable: [u8; HEADER_BYTES],
}

/// The header that the last successful sync left; it differs after a commit became durable.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct DurableHeader([u8; HEADER_BYTES]);

impl Medium {
    pub(crate) fn new(file: Box<dyn StorageBackend>) -> io::Result<Medium> {
        let mut bytes = [0; HEADER_BYTES];
        if file.len()? >= HEADER_BYTES as u64 {
            file.read(0, &mut bytes)?;
        }
        let header = Mutex::new(Header { written: bytes, durable: bytes });
        Ok(Medium { file, header })
    }

    pub(crate) fn is_empty(&self) -> io::Result<bool> {
        Ok(self.file.len()? == 0)
    }

    pub(crate) fn durable_header(&self) -> DurableHeader {
        DurableHeader(self.header().durable)
    }

    /// Makes the file what it was at the last successful sync, for an engine that opens it anew.
    /// The engine that failed must not write any more.
    pub(crate) fn roll_back(&self) -> io::Result<()> {
        let durable = self.header().durable;
        self.file.write(0, &durable)?;
        self.header().written = durable;
        self.file.sync_data()
    }

    /// Gives up the lock on the file; nothing may use the medium after it.
    pub(crate) fn release(&self) -> io::Result<()> {
        self.file.close()
    }

    fn header(&self) -> MutexGuard<'_, Header> {
        self.header.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The medium as redb holds it. Its `close` keeps the lock, so that no other process can take the
/// file between a failure and the reopening; [`Medium::release`] gives it up.
#[derive(Debug)]
pub(crate) struct Handle(pub(crate) Arc<Medium>);

impl StorageBackend for Handle {
    fn len(&self) -> io::Result<u64> {
        self.0.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.file.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        let synced = self.0.header().written;
        self.0.file.sync_data()?;
        self.0.header().durable = synced;
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.file.write(offset, data)?;
        if offset < HEADER_BYTES as u64 {
            let start = usize::try_from(offset).expect("below HEADER_BYTES");
            let end = HEADER_BYTES.min(start + data.len());
            self.0.header().written[start..end].copy_from_slice(&data[..end - start]);
        }
        Ok(())
    }

    fn close(&self) -> io::Result<()> {
        Ok(())
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.file.try_lock_range(start, end)
    }

    fn try_lock_shared_range(
        &self,
        start: Bound<u64>,
        end: Bound<u64>,
    ) -> Result<bool, BackendError> {
        self.0.file.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.file.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.file.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.file.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.file.query_lock_range(start, end)
    }
}
