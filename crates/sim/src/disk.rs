//! A disk with a store's two files that fails and loses power as real ones do, for the embedded
//! engine.
//!
//! What a reader sees (the page cache) is kept apart from what a power cut leaves. A sync that
//! fails forgets what it should have written, and later syncs do not write it, while readers still
//! see it, as Linux does.

use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use redb::StorageBackend;

use crate::random::Random;

/// Writes of this size and alignment are never torn in the store's file: redb's header relies on it.
const SECTOR: usize = 512;
/// A cut may spoil all of a block of the log that a write touches.
const BLOCK: usize = 4_096;
pub const EIO: i32 = 5;
pub const ENOSPC: i32 = 28;

/// A handle; all clones are one disk.
#[derive(Clone, Debug, Default)]
pub struct Disk(Arc<Mutex<State>>);

/// One of its files.
#[derive(Clone, Debug)]
pub struct DiskFile {
    disk: Disk,
    which: Which,
}

#[derive(Clone, Copy, Debug)]
enum Which {
    Store,
    Log,
}

/// What the files hold.
#[derive(Clone, Debug, Default)]
pub struct Image {
    pub store: Vec<u8>,
    pub log: Vec<u8>,
}

#[derive(Debug, Default)]
struct State {
    store: FileState,
    log: FileState,
    /// Errors that calls meet, and how likely each call is to: one in so many.
    fault: Option<(i32, u64, Random)>,
    /// Calls that failed.
    failures: u64,
}

#[derive(Debug, Default)]
struct FileState {
    cache: Vec<u8>,
    durable: Vec<u8>,
    unsynced: Vec<Unsynced>,
}

#[derive(Clone, Debug)]
enum Unsynced {
    Write(usize, Vec<u8>),
    Length(usize),
}

impl Disk {
    /// A disk that holds this.
    pub fn of(image: Image) -> Disk {
        let disk = Disk::default();
        let file = |bytes: Vec<u8>| FileState {
            cache: bytes.clone(),
            durable: bytes,
            unsynced: Vec::new(),
        };
        disk.state().store = file(image.store);
        disk.state().log = file(image.log);
        disk
    }

    pub fn store(&self) -> DiskFile {
        DiskFile { disk: self.clone(), which: Which::Store }
    }

    pub fn log(&self) -> DiskFile {
        DiskFile { disk: self.clone(), which: Which::Log }
    }

    /// From here on one call in so many fails with an error of the operating system.
    pub fn fail(&self, error: i32, one_in: u64, random: Random) {
        self.state().fault = Some((error, one_in, random));
    }

    pub fn heal(&self) {
        self.state().fault = None;
    }

    pub fn failures(&self) -> u64 {
        self.state().failures
    }

    /// What a power cut at this moment may leave: all that was synced, and of the
    /// rest any sectors; blocks of the log that were being written may hold anything.
    pub fn cut(&self, random: &mut Random) -> Image {
        let state = self.state();
        let mut spoilt = random.branch();
        let spoil = |image: &mut Vec<u8>, written: Range<usize>| spoil(&mut spoilt, image, written);
        Image { store: state.store.cut(random, |_, _| {}), log: state.log.cut(random, spoil) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl FileState {
    fn cut(
        &self,
        random: &mut Random,
        mut spoil: impl FnMut(&mut Vec<u8>, Range<usize>),
    ) -> Vec<u8> {
        let mut image = self.durable.clone();
        let keep_all = random.one_in(4);
        for change in &self.unsynced {
            match change {
                _ if keep_all => apply(&mut image, change),
                Unsynced::Length(_) => {
                    if random.one_in(2) {
                        apply(&mut image, change);
                    }
                }
                Unsynced::Write(offset, data) => {
                    for (nth, sector) in data.chunks(SECTOR).enumerate() {
                        if random.one_in(2) {
                            let at = offset + nth * SECTOR;
                            apply(&mut image, &Unsynced::Write(at, sector.to_vec()));
                        }
                    }
                    spoil(&mut image, *offset..offset + data.len());
                }
            }
        }
        image
    }
}

impl State {
    fn file(&mut self, which: Which) -> &mut FileState {
        match which {
            Which::Store => &mut self.store,
            Which::Log => &mut self.log,
        }
    }

    fn call(&mut self) -> io::Result<()> {
        let Some((error, one_in, random)) = &mut self.fault else { return Ok(()) };
        if random.one_in(*one_in) {
            self.failures += 1;
            return Err(io::Error::from_raw_os_error(*error));
        }
        Ok(())
    }
}

/// Leaves nothing that is right in some of the blocks that a write touched.
fn spoil(random: &mut Random, image: &mut [u8], written: Range<usize>) {
    for block in written.start / BLOCK..written.end.div_ceil(BLOCK) {
        let end = ((block + 1) * BLOCK).min(image.len());
        if random.one_in(4)
            && let Some(bytes) = image.get_mut(block * BLOCK..end)
        {
            bytes.fill(0xa5);
        }
    }
}

fn apply(image: &mut Vec<u8>, change: &Unsynced) {
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

fn place(offset: u64) -> io::Result<usize> {
    usize::try_from(offset).map_err(|_| io::ErrorKind::FileTooLarge.into())
}

impl StorageBackend for DiskFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.disk.state().file(self.which).cache.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let mut state = self.disk.state();
        state.call()?;
        let start = place(offset)?;
        let bytes = state.file(self.which).cache.get(start..start + out.len());
        out.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.disk.state();
        state.call()?;
        let change = Unsynced::Length(place(len)?);
        let file = state.file(self.which);
        apply(&mut file.cache, &change);
        file.unsynced.push(change);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.disk.state();
        let result = state.call();
        let file = state.file(self.which);
        let unsynced = std::mem::take(&mut file.unsynced);
        result?;
        for change in &unsynced {
            apply(&mut file.durable, change);
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = self.disk.state();
        let result = state.call();
        // A write that fails may have written a part.
        let written = if result.is_ok() { data } else { &data[..data.len() / 2 / SECTOR * SECTOR] };
        let change = Unsynced::Write(place(offset)?, written.to_vec());
        let file = state.file(self.which);
        apply(&mut file.cache, &change);
        file.unsynced.push(change);
        result
    }
}
