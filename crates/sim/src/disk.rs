//! A disk that fails and loses power as real ones do, for the embedded engine.
//!
//! What a reader sees (the page cache) is kept apart from what a power cut leaves. A sync that
//! fails forgets what it should have written, and later syncs do not write it, while readers still
//! see it, as Linux does.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use redb::StorageBackend;

use crate::random::Random;

/// Writes of this size and alignment are never torn.
const SECTOR: usize = 512;
pub const EIO: i32 = 5;
pub const ENOSPC: i32 = 28;

/// A handle; all clones are one disk.
#[derive(Clone, Debug, Default)]
pub struct Disk(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    cache: Vec<u8>,
    durable: Vec<u8>,
    unsynced: Vec<Unsynced>,
    /// Errors that calls meet, and how likely each call is to: one in so many.
    fault: Option<(i32, u64, Random)>,
    /// Calls that failed.
    failures: u64,
}

#[derive(Clone, Debug)]
enum Unsynced {
    Write(usize, Vec<u8>),
    Length(usize),
}

impl Disk {
    /// A disk that holds this.
    pub fn of(image: Vec<u8>) -> Disk {
        let disk = Disk::default();
        disk.state().cache.clone_from(&image);
        disk.state().durable = image;
        disk
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

    /// What a power cut at this moment may leave: all that was synced, and of the rest any sectors.
    pub fn cut(&self, random: &mut Random) -> Vec<u8> {
        let state = self.state();
        let mut image = state.durable.clone();
        let keep_all = random.one_in(4);
        for change in &state.unsynced {
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
                }
            }
        }
        image
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn call(&mut self) -> io::Result<()> {
        let Some((error, one_in, random)) = &mut self.fault else { return Ok(()) };
        if random.one_in(*one_in) {
            self.failures += 1;
            return Err(io::Error::from_raw_os_error(*error));
        }
        Ok(())
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

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.state().cache.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let state = self.state();
        let start = place(offset)?;
        let bytes = state.cache.get(start..start + out.len());
        out.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.state();
        state.call()?;
        let change = Unsynced::Length(place(len)?);
        apply(&mut state.cache, &change);
        state.unsynced.push(change);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.state();
        let result = state.call();
        let unsynced = std::mem::take(&mut state.unsynced);
        result?;
        for change in &unsynced {
            apply(&mut state.durable, change);
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = self.state();
        let result = state.call();
        // A write that fails may have written a part.
        let written = if result.is_ok() { data } else { &data[..data.len() / 2 / SECTOR * SECTOR] };
        let change = Unsynced::Write(place(offset)?, written.to_vec());
        apply(&mut state.cache, &change);
        state.unsynced.push(change);
        result
    }
}
