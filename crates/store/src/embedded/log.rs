//! The log in front of the engine: a file of a fixed length that each batch is appended to and that
//! is synced before the batch is acknowledged.
//!
//! It is overwritten from its start by each *generation*, which begins when the engine has made all
//! that it holds durable. A record counts when it is of the generation that the store names and
//! follows its predecessor without a gap. What a record means is [`super::redo`]'s matter; the bytes
//! are specified in `docs/design/store-format.md`.

use std::cmp::Ordering;
use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use redb::StorageBackend;
use redb::backends::FileBackend;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::format::{LogState, OWNERS_ALONE, OpenError, StoreId, fresh_seed, sync_folder};
use super::redo::Redo;

/// Bytes of a log when [`super::Options`] do not say; it never grows. More than this is never
/// replayed at an opening.
pub const LOG_BYTES: u64 = 16 << 20;
/// Shortest log there is: a few records.
pub const LOG_BYTES_MIN: u64 = 32 << 10;
/// Longest log there is, since all of it is read at an opening.
pub const LOG_BYTES_MAX: u64 = 1 << 30;

/// What a write may spoil when the power goes, beside what it writes: a page of the cache, and the
/// physical sector of most disks. Records and headers begin at multiples of it, so that no write
/// touches a block in which something is that counts.
const BLOCK: u64 = 4_096;
/// The header has two slots, written in turn, so that a cut while one is written leaves the other.
const RECORDS_AT: u64 = 2 * BLOCK;
const MAGIC: [u8; 16] = *b"ganglion log\0\0\0\x01";

/// Checksum, length of the body, generation, number.
pub(crate) const RECORD_HEADER_BYTES: usize = 8 + 4 + 8 + 8;
/// No two generations under one seed are further apart.
const GENERATIONS_AHEAD_MAX: u64 = u32::MAX as u64;

/// Bytes written at once to clear the log.
const ZEROS_BYTES: usize = 1 << 20;
/// Pause between attempts to use a log again that failed.
const RENEW_PAUSE: Duration = Duration::from_secs(1);

/// Where a store's log is.
#[derive(Debug)]
pub(crate) enum Place {
    Path(PathBuf),
    On(Box<dyn StorageBackend>),
}

impl Place {
    /// The place of the log of a store at `store`.
    pub(crate) fn beside(store: &Path) -> Place {
        let mut path = store.as_os_str().to_owned();
        path.push(".log");
        Place::Path(path.into())
    }

    /// Opens the file, to be called with the store's lock held; `None` when there is none, or an
    /// empty one, and it is not to be created.
    fn open(self, create: bool) -> io::Result<Option<Box<dyn StorageBackend>>> {
        let file: Box<dyn StorageBackend> = match self {
            Place::On(file) => file,
            Place::Path(path) => {
                let mut options = OpenOptions::new();
                options.read(true).write(true);
                let file: File = match options.open(&path) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {
                        if !create {
                            return Ok(None);
                        }
                        let file = options.create_new(true).mode(OWNERS_ALONE).open(&path)?;
                        sync_folder(&path)?;
                        file
                    }
                    other => other?,
                };
                Box::new(FileBackend::new(file).map_err(io::Error::other)?)
            }
        };
        Ok(if create || file.len()? > 0 { Some(file) } else { None })
    }
}

/// What has to fit for a log to be this store's.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Owner {
    pub(crate) store: StoreId,
    /// The opening that the store counted last.
    pub(crate) opening: u32,
    pub(crate) log: LogState,
}

/// Records of one generation, as they were found.
#[derive(Debug, Default)]
pub(crate) struct Records {
    bytes: Vec<u8>,
    bodies: Vec<Range<usize>>,
}

impl Records {
    pub(crate) fn bodies(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        self.bodies.iter().map(|body| &self.bytes[body.clone()])
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bodies.iter().map(ExactSizeIterator::len).sum()
    }
}

/// Whose a log is and of when, as its first blocks tell.
#[derive(Clone, Copy, Debug)]
struct Header {
    store: StoreId,
    /// The opening that the log was made ready for.
    opening: u32,
    /// Of that opening, drawn anew by each.
    seed: u64,
    /// The last generation that the store may name: it is here before the store names it.
    shown: u64,
    /// No record of a generation before this one is left.
    cleared: u64,
    /// So many bytes of the file have a place on the disk.
    length: u64,
}

impl Header {
    const BYTES: usize = 16 + 16 + 4 + 8 + 8 + 8 + 8 + 8;

    fn read(bytes: &[u8; Header::BYTES]) -> Option<Header> {
        let (filled, checksum) = bytes.split_at(Header::BYTES - 8);
        let number = |at: usize| u64::from_be_bytes(array(&filled[at..at + 8]));
        let is_whole = filled[..16] == MAGIC && xxh3_64(filled).to_be_bytes() == checksum;
        is_whole.then(|| Header {
            store: StoreId(array(&filled[16..32])),
            opening: u32::from_be_bytes(array(&filled[32..36])),
            seed: number(36),
            shown: number(44),
            cleared: number(52),
            length: number(60),
        })
    }

    fn block(&self) -> Vec<u8> {
        let mut block = Vec::with_capacity(BLOCK as usize);
        block.extend_from_slice(&MAGIC);
        block.extend_from_slice(&self.store.0);
        block.extend_from_slice(&self.opening.to_be_bytes());
        for number in [self.seed, self.shown, self.cleared, self.length] {
            block.extend_from_slice(&number.to_be_bytes());
        }
        block.extend_from_slice(&xxh3_64(&block).to_be_bytes());
        block.resize(BLOCK as usize, 0);
        block
    }
}

/// The log in use, by one thread.
#[derive(Debug)]
pub(crate) struct Log {
    file: Box<dyn StorageBackend>,
    /// As it is on the disk. Its seed starts every checksum of a record, so that nobody who chooses
    /// values can make one, and no record of another opening, or of a copy's, is taken for one.
    header: Header,
    /// Where that is; the next one is written to the other slot.
    slot: u64,
    generation: u64,
    /// Records of the generation, all of them acknowledged or about to be.
    count: u64,
    /// Where the next record goes.
    end: u64,
    /// From here on the file holds zeros, known to be on the disk.
    used: u64,
    /// Set by a write or a sync that failed: what a reader sees may not be what is on the disk, so
    /// nothing is appended until all that was used is written anew, not before this moment.
    broken: Option<Instant>,
}

impl Log {
    /// Looks at the log of `owner`, and reads the records that are not in the store yet. `None` when
    /// there is no log, none is needed, and it is not to be created.
    ///
    /// # Errors
    /// The log is needed and is not there, or not whole; or it is not this store's and holds
    /// something.
    pub(crate) fn find(
        place: Place,
        owner: &Owner,
        create: bool,
    ) -> Result<Option<(Log, Records)>, OpenError> {
        let is_needed = owner.log.is_needed;
        let file = place.open(create && !is_needed).map_err(OpenError::Log)?;
        let Some(file) = file else {
            return if is_needed { Err(OpenError::LogMissing) } else { Ok(None) };
        };
        let length = file.len().map_err(OpenError::Log)?;
        let headers = headers(&*file, length).map_err(OpenError::Log)?;
        let own = own_header(owner, &headers, length);
        let mut log = Log {
            file,
            header: Header {
                store: owner.store,
                opening: owner.opening,
                seed: owner.log.seed,
                shown: owner.log.shown,
                cleared: 0,
                length: 0,
            },
            slot: 0,
            generation: owner.log.generation,
            count: 0,
            end: RECORDS_AT,
            used: RECORDS_AT,
            broken: None,
        };
        if !is_needed {
            // A store that was closed has cleared its log. What is in this one may be needed by
            // another store, or by another state of this one, and is left alone. Without a header it
            // is nobody's: what a power cut left of one that was being made.
            let is_somebodys = headers.iter().any(Option::is_some);
            if is_somebodys && log.holds_something(length).map_err(OpenError::Log)? {
                own?;
                return Err(OpenError::LogForeign);
            }
            log.header.length = headers.iter().flatten().map(|it| it.length).max().unwrap_or(0);
            return Ok(Some((log, Records::default())));
        }
        (log.slot, log.header) = own?;
        log.used = log.header.length;
        let records = log.scan()?;
        Ok(Some((log, records)))
    }

    /// Makes the log ready for records of a store that is opened for the `opening`th time, under a
    /// seed of its own: the store has to name that, and the next generation, for it to count. Until
    /// then what is there stays as it is for the store that is not opened yet.
    pub(crate) fn prepare(&mut self, opening: u32, length: u64) -> io::Result<()> {
        let there = self.file.len()?;
        let length = there.max(length.clamp(LOG_BYTES_MIN, LOG_BYTES_MAX));
        if there < length {
            self.file.set_len(length)?;
        }
        if self.header.length < length {
            self.write_zeros(self.header.length, length)?;
            // Before the header says that all of it is there.
            self.file.sync_data()?;
        }
        let (seed, shown) = (fresh_seed(), self.generation + 1);
        let next = Header { opening, seed, shown, cleared: 0, length, ..self.header };
        self.write_header(&next)?;
        self.file.sync_data()?;
        self.has_header(next);
        Ok(())
    }

    /// Shows the next generation, to be called before a store names it, which then knows an older log
    /// by its not showing it. A log that fails is not shown to be anything, and not used.
    pub(crate) fn show_next(&mut self) -> io::Result<()> {
        let shown = self.generation + 1;
        if self.broken.is_some() || self.header.shown >= shown {
            return Ok(());
        }
        let next = Header { shown, ..self.header };
        match self.write_header(&next).and_then(|()| self.file.sync_data()) {
            Ok(()) => {
                self.has_header(next);
                Ok(())
            }
            Err(error) => {
                self.broken = Some(Instant::now());
                Err(error)
            }
        }
    }

    /// Whether a record of this body has a place behind the others.
    pub(crate) fn takes(&self, redo: &Redo) -> bool {
        self.broken.is_none() && self.end + padded(redo.record_bytes()) <= self.header.length
    }

    /// Appends a record and syncs it. After an error the log takes no more until it is renewed.
    pub(crate) fn append(&mut self, redo: &mut Redo) -> io::Result<()> {
        assert!(self.takes(redo), "the caller asks first");
        let record = redo.seal(|record| self.fill(record));
        let end = self.end + record.len() as u64;
        self.used = self.used.max(end);
        let written = self.file.write(self.end, record).and_then(|()| self.file.sync_data());
        if let Err(error) = written {
            self.broken = Some(Instant::now());
            return Err(error);
        }
        self.count += 1;
        self.end = end;
        Ok(())
    }

    pub(crate) fn state(&self) -> LogState {
        let Header { seed, shown, .. } = self.header;
        LogState { generation: self.generation, seed, shown, is_needed: true }
    }

    /// Whether there are bytes that clearing would take away, or a failure to mend.
    pub(crate) fn is_clear(&self) -> bool {
        self.used <= RECORDS_AT && self.broken.is_none()
    }

    pub(crate) fn is_broken(&self) -> bool {
        self.broken.is_some()
    }

    /// The records that were appended, as they are read back; what a failed append left behind them
    /// is not among them.
    pub(crate) fn acknowledged(&self) -> Result<Records, OpenError> {
        let mut records = self.read(self.end)?;
        for number in 1..=self.count {
            let at = records.bodies.last().map_or(RECORDS_AT, |body| padded(body.end as u64));
            match self.record_at(&records.bytes, at) {
                Some((generation, found, body))
                    if (generation, found) == (self.generation, number) =>
                {
                    records.bodies.push(body);
                }
                _ => return Err(damaged(at)),
            }
        }
        Ok(records)
    }

    /// Begins a generation, once the store names it and needs no record of the one before.
    pub(crate) fn restart(&mut self, generation: u64) {
        assert!(generation > self.generation, "a generation is used once");
        self.generation = generation;
        self.count = 0;
        self.end = RECORDS_AT;
    }

    /// Writes zeros over all that was used. It also makes a log that failed one to rely on: every
    /// page that may differ from the disk is written again, and the sync tells of these writes.
    pub(crate) fn clear(&mut self) -> io::Result<()> {
        assert_eq!(self.count, 0, "what is needed is not cleared");
        let next = Header { shown: self.generation, cleared: self.generation, ..self.header };
        let cleared = self
            .write_zeros(RECORDS_AT, self.used)
            .and_then(|()| self.write_header(&next))
            .and_then(|()| self.file.sync_data());
        match cleared {
            Ok(()) => {
                self.has_header(next);
                self.used = RECORDS_AT;
                self.broken = None;
            }
            Err(_) => self.broken = Some(Instant::now() + RENEW_PAUSE),
        }
        cleared
    }

    /// Clears a log that failed, unless that was tried just now.
    pub(crate) fn renew(&mut self) -> io::Result<()> {
        match self.broken {
            Some(moment) if Instant::now() >= moment => self.clear(),
            _ => Ok(()),
        }
    }

    /// Closes the file; nothing may use the log after it.
    pub(crate) fn release(&self) -> io::Result<()> {
        self.file.close()
    }

    /// Writes a header to the slot that is not in use.
    fn write_header(&self, header: &Header) -> io::Result<()> {
        self.file.write((1 - self.slot) * BLOCK, &header.block())
    }

    /// To be called when a header that was written is on the disk.
    fn has_header(&mut self, header: Header) {
        self.header = header;
        self.slot = 1 - self.slot;
    }

    fn holds_something(&self, length: u64) -> io::Result<bool> {
        let mut at = RECORDS_AT;
        let mut chunk = vec![0; ZEROS_BYTES];
        while at < length {
            let size =
                usize::try_from(length - at).map_or(ZEROS_BYTES, |left| left.min(ZEROS_BYTES));
            self.file.read(at, &mut chunk[..size])?;
            if chunk[..size].iter().any(|byte| *byte != 0) {
                return Ok(true);
            }
            at += size as u64;
        }
        Ok(false)
    }

    /// All records of the generation. Only the last one can be cut short, since each is synced before
    /// the next is written: one that is bad with good ones behind it is damage.
    fn scan(&self) -> Result<Records, OpenError> {
        let mut records = self.read(self.header.length)?;
        let mut at = RECORDS_AT;
        let mut number = 1;
        while let Some((generation, found, body)) = self.record_at(&records.bytes, at)
            && (generation, found) == (self.generation, number)
        {
            at = padded(body.end as u64);
            number += 1;
            records.bodies.push(body);
        }
        let gap = at;
        while at + BLOCK <= self.header.length {
            match self.record_at(&records.bytes, at) {
                Some((generation, ..)) if generation > self.generation => {
                    return Err(OpenError::LogNewer);
                }
                Some((generation, ..)) if generation == self.generation => {
                    return Err(damaged(gap));
                }
                _ => at += BLOCK,
            }
        }
        Ok(records)
    }

    fn read(&self, length: u64) -> Result<Records, OpenError> {
        let length = usize::try_from(length).map_err(|_| damaged(length))?;
        let mut bytes = vec![0; length];
        self.file.read(0, &mut bytes).map_err(OpenError::Log)?;
        Ok(Records { bytes, bodies: Vec::new() })
    }

    /// Generation, number and body of the whole record at a place, if there is one that is not of an
    /// earlier generation.
    fn record_at(&self, bytes: &[u8], at: u64) -> Option<(u64, u64, Range<usize>)> {
        let at = usize::try_from(at).ok()?;
        let header = bytes.get(at..at + RECORD_HEADER_BYTES)?;
        let length = u32::from_be_bytes(array(&header[8..12])) as usize;
        let generation = u64::from_be_bytes(array(&header[12..20]));
        let number = u64::from_be_bytes(array(&header[20..28]));
        let ahead = generation.checked_sub(self.generation)?;
        let body = at + RECORD_HEADER_BYTES..(at + RECORD_HEADER_BYTES).checked_add(length)?;
        let summed = bytes.get(at + 8..body.end)?;
        let is_whole = number > 0
            && ahead <= GENERATIONS_AHEAD_MAX
            && xxh3_64_with_seed(summed, self.header.seed).to_be_bytes() == header[..8];
        is_whole.then_some((generation, number, body))
    }

    /// Completes a record whose body is there: its header, and zeros up to the next block.
    fn fill(&self, record: &mut Vec<u8>) {
        let length = record.len() - RECORD_HEADER_BYTES;
        let length = u32::try_from(length).expect("`takes` bounds it by the log's length");
        record[8..12].copy_from_slice(&length.to_be_bytes());
        record[12..20].copy_from_slice(&self.generation.to_be_bytes());
        record[20..28].copy_from_slice(&(self.count + 1).to_be_bytes());
        let checksum = xxh3_64_with_seed(&record[8..], self.header.seed);
        record[..8].copy_from_slice(&checksum.to_be_bytes());
        let padded = padded(record.len() as u64);
        record.resize(usize::try_from(padded).expect("it is in memory"), 0);
    }

    fn write_zeros(&self, from: u64, to: u64) -> io::Result<()> {
        let zeros = vec![0; ZEROS_BYTES];
        let mut at = from;
        while at < to {
            let size = usize::try_from(to - at).map_or(ZEROS_BYTES, |left| left.min(ZEROS_BYTES));
            self.file.write(at, &zeros[..size])?;
            at += size as u64;
        }
        Ok(())
    }
}

fn headers(file: &dyn StorageBackend, length: u64) -> io::Result<[Option<Header>; 2]> {
    let mut headers = [None; 2];
    for (slot, header) in (0..).zip(&mut headers) {
        if length >= (slot + 1) * BLOCK {
            let mut bytes = [0; Header::BYTES];
            file.read(slot * BLOCK, &mut bytes)?;
            *header = Header::read(&bytes);
        }
    }
    Ok(headers)
}

/// The header of the log of `owner` and where it is, if it is that and of its time.
fn own_header(
    owner: &Owner,
    headers: &[Option<Header>; 2],
    length: u64,
) -> Result<(u64, Header), OpenError> {
    let whole = || (0..).zip(headers).filter_map(|(slot, header)| Some((slot, (*header)?)));
    let of_store = || whole().filter(|(_, header)| header.store == owner.store);
    let own = of_store()
        .filter(|(_, header)| header.seed == owner.log.seed)
        .max_by_key(|(_, header)| (header.shown, header.cleared));
    let Some((slot, header)) = own else {
        let opening = of_store().map(|(_, header)| header.opening).max();
        return Err(match opening.map(|it| it.cmp(&owner.opening)) {
            Some(Ordering::Greater) => OpenError::LogNewer,
            Some(Ordering::Less) => OpenError::LogOlder,
            // A copy of this store went its own way.
            Some(Ordering::Equal) => OpenError::LogForeign,
            None if whole().next().is_some() => OpenError::LogForeign,
            None => OpenError::LogDamaged("it has no header".to_owned()),
        });
    };
    let LogState { generation, shown, .. } = owner.log;
    if header.shown < shown {
        return Err(OpenError::LogOlder);
    }
    if header.shown > generation + 1 || header.cleared > generation {
        return Err(OpenError::LogNewer);
    }
    if length < header.length {
        let what = format!("{length} of its {} bytes are there", header.length);
        return Err(OpenError::LogDamaged(what));
    }
    Ok((slot, header))
}

fn padded(bytes: u64) -> u64 {
    bytes.next_multiple_of(BLOCK)
}

fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    bytes.try_into().expect("the caller took N bytes")
}

fn damaged(at: u64) -> OpenError {
    OpenError::LogDamaged(format!("the record at {at} is bad, and there are good ones behind it"))
}
