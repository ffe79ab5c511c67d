//! A disk in memory that fails and loses power as real ones do.
//!
//! It keeps what a reader sees (the page cache) apart from what would be there after a power cut.
//! A sync that fails forgets what it should have written: later syncs succeed and do not write it,
//! while readers still see it, as Linux does.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use redb::StorageBackend;

/// Writes of this size and alignment are never torn.
pub(crate) const SECTOR: usize = 512;

#[derive(Clone, Debug, Default)]
pub(crate) struct Disk(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    cache: Vec<u8>,
    durable: Vec<u8>,
    unsynced: Vec<Unsynced>,
    /// Calls that change or sync, so far.
    calls: u64,
    fault: Option<Fault>,
    /// Takes a note at every such call: how the disk was before it.
    boundary: Option<Boundary>,
}

#[derive(Clone, Debug)]
pub(crate) enum Unsynced {
    Write(usize, Vec<u8>),
    Length(usize),
}

/// Which calls fail, and how.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fault {
    pub(crate) error: i32,
    /// The first call that fails, counted from now.
    pub(crate) after: u64,
    /// How many fail; those in between too.
    pub(crate) count: u64,
    pub(crate) reads: bool,
}

pub(crate) struct Boundary(pub(crate) Box<Look>);

/// Is shown what is durable, and what was done since.
type Look = dyn FnMut(&[u8], &[Unsynced]) + Send;

impl std::fmt::Debug for Boundary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Boundary")
    }
}

impl Disk {
    pub(crate) fn of(image: Vec<u8>) -> Disk {
        let disk = Disk::default();
        disk.state().cache.clone_from(&image);
        disk.state().durable = image;
        disk
    }

    pub(crate) fn fail(&self, fault: Fault) {
        let mut state = self.state();
        state.calls = 0;
        state.fault = Some(fault);
    }

    pub(crate) fn heal(&self) {
        self.state().fault = None;
    }

    pub(crate) fn has_failed(&self) -> bool {
        let state = self.state();
        state.fault.is_some_and(|fault| state.calls > fault.after)
    }

    pub(crate) fn on_boundary(&self, boundary: Option<Boundary>) {
        self.state().boundary = boundary;
    }

    /// What is left when the power goes now, the unsynced writes lost.
    pub(crate) fn durable(&self) -> Vec<u8> {
        self.state().durable.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl State {
    fn call(&mut self, is_read: bool) -> io::Result<()> {
        if !is_read && let Some(mut boundary) = self.boundary.take() {
            (boundary.0)(&self.durable, &self.unsynced);
            self.boundary = Some(boundary);
        }
        let Some(fault) = self.fault else { return Ok(()) };
        if is_read && !fault.reads {
            return Ok(());
        }
        self.calls += 1;
        let fails = self.calls > fault.after && self.calls <= fault.after + fault.count;
        if fails { Err(io::Error::from_raw_os_error(fault.error)) } else { Ok(()) }
    }
}

/// Does to an image what an unsynced call would have done.
pub(crate) fn apply(image: &mut Vec<u8>, change: &Unsynced) {
    match change {
        Unsynced::Length(len) => image.resize(*len, 0),
        Unsynced::Write(offset, data) => {
            let end = offset + data.len();
            if image.len() < end {
                image.resize(end, 0);
            }
            image[*offset..end].copy_from_slice(data);
        }
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.state().cache.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let mut state = self.state();
        state.call(true)?;
        let start = usize::try_from(offset).unwrap();
        let bytes =
            state.cache.get(start..start + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(bytes);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.state();
        state.call(false)?;
        let len = usize::try_from(len).unwrap();
        state.cache.resize(len, 0);
        state.unsynced.push(Unsynced::Length(len));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.state();
        let result = state.call(false);
        let unsynced = std::mem::take(&mut state.unsynced);
        result?;
        for change in &unsynced {
            apply(&mut state.durable, change);
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = self.state();
        let result = state.call(false);
        let offset = usize::try_from(offset).unwrap();
        // A write that fails may have written a part.
        let written = if result.is_ok() { data } else { &data[..data.len() / 2 / SECTOR * SECTOR] };
        let change = Unsynced::Write(offset, written.to_vec());
        apply(&mut state.cache, &change);
        state.unsynced.push(change);
        result
    }
}
