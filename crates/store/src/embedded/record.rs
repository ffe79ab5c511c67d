//! Values of the tables, as bytes: a version, a row of the feed, a cell of statistics.
//!
//! `docs/design/store-format.md` is the specification. A version is the same bytes in `heads` and in
//! `series`, so that superseding one moves it without reading it.

use std::sync::Arc;

use kv4::store::{Seq, Stat, StoreError};
use kv4::{Head, Stamp, Ver, Version};
use wire::json::Json;
use wire::names::Key;

use super::keys::{bad, read_key};

const LIVE: u8 = 1;
/// The bit of k2; k3 and k4 have the next two.
const KEYED: u8 = 2;
const FLAGS_KNOWN: u8 = 0b1111;
/// Flags, seq, generation, micros, neuron, length of `who`.
const FIXED_BYTES: usize = 1 + 8 + 8 + 8 + 4 + 4;

/// A version as it is stored, read in place.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Record<'a> {
    pub(crate) seq: Seq,
    pub(crate) ver: Ver,
    pub(crate) who: &'a str,
    pub(crate) keys: [Option<&'a str>; 3],
    /// JSON, or `None` for a deletion.
    pub(crate) value: Option<&'a str>,
}

impl<'a> Record<'a> {
    pub(crate) fn read(bytes: &'a [u8]) -> Result<Record<'a>, StoreError> {
        let mut rest = Reader(bytes);
        let flags = rest.take::<1>()?[0];
        if flags & !FLAGS_KNOWN != 0 {
            return Err(bad("a version"));
        }
        let seq = Seq(u64::from_be_bytes(rest.take()?));
        let generation = u64::from_be_bytes(rest.take()?);
        let micros = u64::from_be_bytes(rest.take()?);
        let neuron = u32::from_be_bytes(rest.take()?);
        let who_len = u32::from_be_bytes(rest.take()?);
        let who = rest.text(who_len as usize)?;
        let mut keys = [None; 3];
        for (nth, key) in keys.iter_mut().enumerate() {
            if flags & (KEYED << nth) != 0 {
                let len = u16::from_be_bytes(rest.take()?);
                *key = Some(rest.text(usize::from(len))?);
            }
        }
        let value = rest.text(rest.0.len())?;
        let value = if flags & LIVE != 0 { Some(value) } else { None };
        if value.is_none() && bytes.len() != FIXED_BYTES + who.len() + keys_bytes(&keys) {
            return Err(bad("a deletion"));
        }
        let ver = Ver { generation, stamp: Stamp { micros, neuron } };
        Ok(Record { seq, ver, who, keys, value })
    }

    pub(crate) fn is_live(&self) -> bool {
        self.value.is_some()
    }

    /// Reads every part, the JSON of the value included, which other reads leave to the pages'
    /// checksums.
    pub(crate) fn check(self) -> Result<(), StoreError> {
        if let Some(value) = self.value {
            let json = Json::parse(value).map_err(|_| bad("JSON"))?;
            if json.as_str().len() != value.len() {
                return Err(bad("bare JSON"));
            }
        }
        self.to_version().map(|_| ())
    }

    pub(crate) fn to_version(self) -> Result<Version, StoreError> {
        Ok(Version {
            ver: self.ver,
            who: Arc::from(self.who),
            value: self.value.map(Json::from_stored),
            keys: self.to_keys()?,
        })
    }

    /// The entry as a listing shows it; `None` for a deletion.
    pub(crate) fn to_head(self, key: Key) -> Result<Option<Head>, StoreError> {
        let Some(value) = self.value else { return Ok(None) };
        let who = Arc::from(self.who);
        Ok(Some(Head {
            key,
            ver: self.ver,
            who,
            value: Json::from_stored(value),
            keys: self.to_keys()?,
        }))
    }

    pub(crate) fn to_keys(self) -> Result<[Option<Key>; 3], StoreError> {
        let mut keys = [None, None, None];
        for (key, text) in keys.iter_mut().zip(self.keys) {
            *key = text.map(|text| read_key(text.as_bytes())).transpose()?;
        }
        Ok(keys)
    }
}

/// Writes a version over `bytes`.
pub(crate) fn write(bytes: &mut Vec<u8>, seq: Seq, version: &Version) {
    let mut flags = if version.value.is_some() { LIVE } else { 0 };
    for (nth, key) in version.keys.iter().enumerate() {
        if key.is_some() {
            flags |= KEYED << nth;
        }
    }
    bytes.clear();
    bytes.push(flags);
    bytes.extend_from_slice(&seq.0.to_be_bytes());
    bytes.extend_from_slice(&version.ver.generation.to_be_bytes());
    bytes.extend_from_slice(&version.ver.stamp.micros.to_be_bytes());
    bytes.extend_from_slice(&version.ver.stamp.neuron.to_be_bytes());
    let who_len = u32::try_from(version.who.len()).expect("a name is shorter than 4 GiB");
    bytes.extend_from_slice(&who_len.to_be_bytes());
    bytes.extend_from_slice(version.who.as_bytes());
    for key in version.keys.iter().flatten() {
        let len = u16::try_from(key.as_str().len()).expect("a key is at most 512 bytes");
        bytes.extend_from_slice(&len.to_be_bytes());
        bytes.extend_from_slice(key.as_str().as_bytes());
    }
    if let Some(value) = &version.value {
        bytes.extend_from_slice(value.as_str().as_bytes());
    }
}

/// A row of the feed: which version, and of which entry.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct FeedRow<'a> {
    pub(crate) generation: u64,
    /// The version's stamp, under which `series` has it.
    pub(crate) micros: u64,
    /// The entry's key in `heads` without the bucket.
    pub(crate) reference: &'a [u8],
}

impl<'a> FeedRow<'a> {
    pub(crate) fn read(bytes: &'a [u8]) -> Result<FeedRow<'a>, StoreError> {
        let mut rest = Reader(bytes);
        let generation = u64::from_be_bytes(rest.take()?);
        let micros = u64::from_be_bytes(rest.take()?);
        Ok(FeedRow { generation, micros, reference: rest.0 })
    }

    pub(crate) fn write(&self, bytes: &mut Vec<u8>) {
        bytes.clear();
        bytes.extend_from_slice(&self.generation.to_be_bytes());
        bytes.extend_from_slice(&self.micros.to_be_bytes());
        bytes.extend_from_slice(self.reference);
    }
}

pub(crate) fn read_count(bytes: &[u8]) -> Result<u64, StoreError> {
    Ok(u64::from_be_bytes(bytes.try_into().map_err(|_| bad("a count"))?))
}

pub(crate) fn read_u32(bytes: &[u8]) -> Result<u32, StoreError> {
    Ok(u32::from_be_bytes(bytes.try_into().map_err(|_| bad("a number"))?))
}

pub(crate) fn read_stat(bytes: &[u8]) -> Result<Stat, StoreError> {
    let mut rest = Reader(bytes);
    let mut next = || rest.take().map(u64::from_be_bytes);
    let stat = Stat { sum: next()?, min: next()?, max: next()?, count: next()? };
    if rest.0.is_empty() { Ok(stat) } else { Err(bad("a cell")) }
}

pub(crate) fn stat_bytes(stat: Stat) -> [u8; 32] {
    let mut bytes = [0; 32];
    let figures = [stat.sum, stat.min, stat.max, stat.count];
    for (to, figure) in bytes.chunks_exact_mut(8).zip(figures) {
        to.copy_from_slice(&figure.to_be_bytes());
    }
    bytes
}

fn keys_bytes(keys: &[Option<&str>; 3]) -> usize {
    keys.iter().flatten().map(|key| 2 + key.len()).sum()
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], StoreError> {
        let (bytes, rest) = self.0.split_first_chunk::<N>().ok_or_else(|| bad("a whole value"))?;
        self.0 = rest;
        Ok(*bytes)
    }

    fn text(&mut self, len: usize) -> Result<&'a str, StoreError> {
        let (text, rest) = self.0.split_at_checked(len).ok_or_else(|| bad("a whole value"))?;
        self.0 = rest;
        std::str::from_utf8(text).map_err(|_| bad("UTF-8"))
    }
}
