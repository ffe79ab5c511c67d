//! A disk in memory with a store's two files, that fails and loses power as real ones do.
//!
//! Of each file it keeps what a reader sees (the page cache) apart from what would be there after a power cut.
//! A sync that fails forgets what it should have written: later syncs succeed and do not write it,
//! while readers still see it, as Linux does.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use redb::StorageBackend;

/// Writes of this size and alignment are never torn.
pub(crate) const SECTOR: usize = 512;

/// What a file gets a place for, and what a cut may spoil all of when a write touches it; redb relies
/// on sectors, since its header is in one block.
pub(crate) const BLOCK: usize = 4_096;

#[derive(Clone, Debug, Default)]
pub(crate) struct Disk(Arc<Mutex<State>>);

/// One of the files.
#[derive(Clone, Debug)]
pub(crate) struct DiskFile {
    disk: Disk,
    which: Which,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Which {
    Store,
    Log,
}

/// What the files hold.
#[derive(Clone, Debug, Default)]
pub(crate) struct Image {
    pub(crate) store: Vec<u8>,
    pub(crate) log: Vec<u8>,
}

#[derive(Debug, Default)]
struct State {
    store: FileState,
    log: FileState,
    /// Calls that change or sync, so far.
    calls: u64,
    fault: Option<Fault>,
    /// Takes a note at every such call: how the disk was before it.
    boundary: Option<Boundary>,
    /// No block gets a place that has none.
    is_full: bool,
    /// The next time that the store's file is made shorter fails.
    fails_to_shorten: bool,
}

#[derive(Debug, Default)]
pub(crate) struct FileState {
    /// Blocks that were written to.
    blocks: BTreeSet<usize>,
    cache: Vec<u8>,
    pub(crate) durable: Vec<u8>,
    /// What was done since, in order.
    pub(crate) unsynced: Vec<Unsynced>,
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
    /// Of which file; of both when it does not say.
    pub(crate) of: Option<Which>,
    /// What fails is done all the same: the disk has it, and only its answer was lost.
    pub(crate) lands: bool,
}

pub(crate) struct Boundary(pub(crate) Box<Look>);

/// Is shown the store's file and the log.
type Look = dyn FnMut(&FileState, &FileState) + Send;

impl std::fmt::Debug for Boundary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Boundary")
    }
}

impl Disk {
    pub(crate) fn of(image: Image) -> Disk {
        let disk = Disk::default();
        let file = |bytes: Vec<u8>| FileState {
            blocks: (0..bytes.len().div_ceil(BLOCK)).collect(),
            cache: bytes.clone(),
            durable: bytes,
            unsynced: Vec::new(),
        };
        disk.state().store = file(image.store);
        disk.state().log = file(image.log);
        disk
    }

    pub(crate) fn store(&self) -> DiskFile {
        DiskFile { disk: self.clone(), which: Which::Store }
    }

    pub(crate) fn log(&self) -> DiskFile {
        DiskFile { disk: self.clone(), which: Which::Log }
    }

    pub(crate) fn fail(&self, fault: Fault) {
        let mut state = self.state();
        state.calls = 0;
        state.fault = Some(fault);
    }

    pub(crate) fn heal(&self) {
        self.state().fault = None;
    }

    /// Fills the disk up, or frees it.
    pub(crate) fn fill(&self, is_full: bool) {
        self.state().is_full = is_full;
    }

    pub(crate) fn fail_to_shorten_store(&self) {
        self.state().fails_to_shorten = true;
    }

    pub(crate) fn has_failed(&self) -> bool {
        let state = self.state();
        state.fault.is_some_and(|fault| state.calls > fault.after)
    }

    /// Whether all of the log has a place on the disk.
    pub(crate) fn has_place_for_log(&self) -> bool {
        let state = self.state();
        (0..state.log.cache.len().div_ceil(BLOCK)).all(|block| state.log.blocks.contains(&block))
    }

    pub(crate) fn on_boundary(&self, boundary: Option<Boundary>) {
        self.state().boundary = boundary;
    }

    /// What is left when the power goes now, the unsynced writes lost.
    pub(crate) fn durable(&self) -> Image {
        let state = self.state();
        Image { store: state.store.durable.clone(), log: state.log.durable.clone() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl State {
    fn lands(&self) -> bool {
        self.fault.is_some_and(|fault| fault.lands)
    }

    fn file(&mut self, which: Which) -> &mut FileState {
        match which {
            Which::Store => &mut self.store,
            Which::Log => &mut self.log,
        }
    }

    fn call(&mut self, which: Which, is_read: bool) -> io::Result<()> {
        if !is_read && let Some(mut boundary) = self.boundary.take() {
            (boundary.0)(&self.store, &self.log);
            self.boundary = Some(boundary);
        }
        let Some(fault) = self.fault else { return Ok(()) };
        if is_read && !fault.reads || fault.of.is_some_and(|of| of != which) {
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

impl StorageBackend for DiskFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.disk.state().file(self.which).cache.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let mut state = self.disk.state();
        state.call(self.which, true)?;
        let start = usize::try_from(offset).unwrap();
        let cache = &state.file(self.which).cache;
        let bytes = cache.get(start..start + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(bytes);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.disk.state();
        state.call(self.which, false)?;
        let len = usize::try_from(len).unwrap();
        let is_shorter = self.which == Which::Store && len < state.store.cache.len();
        if is_shorter && std::mem::take(&mut state.fails_to_shorten) {
            return Err(io::ErrorKind::Other.into());
        }
        let file = state.file(self.which);
        file.cache.resize(len, 0);
        file.unsynced.push(Unsynced::Length(len));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.disk.state();
        let result = state.call(self.which, false);
        let lands = state.lands();
        let file = state.file(self.which);
        let unsynced = std::mem::take(&mut file.unsynced);
        if result.is_err() && !lands {
            return result;
        }
        for change in &unsynced {
            apply(&mut file.durable, change);
        }
        result
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = self.disk.state();
        let mut result = state.call(self.which, false);
        let offset = usize::try_from(offset).unwrap();
        let mut blocks = offset / BLOCK..(offset + data.len()).div_ceil(BLOCK);
        let is_full = state.is_full;
        let has_places = blocks.all(|block| state.file(self.which).blocks.contains(&block));
        if is_full && !has_places {
            result = Err(io::ErrorKind::StorageFull.into());
        }
        // A write that fails may have written a part.
        let is_whole = result.is_ok() || state.lands();
        let written = if is_whole { data } else { &data[..data.len() / 2 / SECTOR * SECTOR] };
        let change = Unsynced::Write(offset, written.to_vec());
        let file = state.file(self.which);
        if !is_full {
            file.blocks.extend(offset / BLOCK..(offset + written.len()).div_ceil(BLOCK));
        }
        apply(&mut file.cache, &change);
        file.unsynced.push(change);
        result
    }
}
