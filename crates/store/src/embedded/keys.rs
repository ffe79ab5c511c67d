//! Keys of the tables, as bytes: what sorts together lies together.
//!
//! `docs/design/store-format.md` is the specification. Parts of text end in a zero byte, which no
//! name holds and which sorts below every byte of a name, so tuples of parts sort as their texts do
//! and no key is a prefix of another's part. Numbers are big-endian.

use kv4::Entry;
use kv4::address::Node;
use kv4::store::{Seq, StatCell, StoreError};
use wire::names::{Key, Layer, Path};

/// The number that stands for a bucket in keys; never given twice in the life of a store.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(crate) struct BucketId(pub(crate) u32);

impl BucketId {
    pub(crate) const BYTES: usize = 4;

    pub(crate) fn read(key: &[u8]) -> Result<BucketId, StoreError> {
        let bytes = key.first_chunk::<{ BucketId::BYTES }>().ok_or_else(|| bad("a bucket id"))?;
        Ok(BucketId(u32::from_be_bytes(*bytes)))
    }

    pub(crate) fn prefix(self) -> [u8; BucketId::BYTES] {
        self.0.to_be_bytes()
    }

    /// The first key behind all of this bucket.
    pub(crate) fn prefix_end(self) -> [u8; BucketId::BYTES] {
        assert!(self.0 < u32::MAX, "bucket ids stay below u32::MAX");
        (self.0 + 1).to_be_bytes()
    }
}

/// `bucket layer 00 path`, then ` 00 key`, then ` 00 micros`: one buffer gives the keys of `nodes`,
/// `heads` and `series`.
#[derive(Debug, Default)]
pub(crate) struct EntryKey {
    bytes: Vec<u8>,
    node_len: usize,
    entry_len: usize,
}

impl EntryKey {
    pub(crate) fn set(&mut self, bucket: BucketId, entry: &Entry) {
        self.bytes.clear();
        push_node(&mut self.bytes, bucket, &entry.node);
        self.node_len = self.bytes.len();
        self.bytes.push(0);
        push_text(&mut self.bytes, entry.key.as_str());
        self.entry_len = self.bytes.len();
    }

    /// The key in `nodes`.
    pub(crate) fn node(&self) -> &[u8] {
        &self.bytes[..self.node_len]
    }

    /// The key in `heads`.
    pub(crate) fn entry(&self) -> &[u8] {
        &self.bytes[..self.entry_len]
    }

    /// What a row of `feed` holds: the key in `heads` without the bucket.
    pub(crate) fn reference(&self) -> &[u8] {
        &self.bytes[BucketId::BYTES..self.entry_len]
    }

    /// The key in `series` of the version stamped `micros`.
    pub(crate) fn version(&mut self, micros: u64) -> &[u8] {
        self.bytes.truncate(self.entry_len);
        push_micros(&mut self.bytes, micros);
        &self.bytes
    }
}

pub(crate) fn node(bucket: BucketId, node: &Node) -> Vec<u8> {
    let mut key = Vec::new();
    push_node(&mut key, bucket, node);
    key
}

pub(crate) fn entry(bucket: BucketId, entry: &Entry) -> Vec<u8> {
    let mut key = node(bucket, &entry.node);
    key.push(0);
    push_text(&mut key, entry.key.as_str());
    key
}

/// The key in `series` of an entry's version, from the entry's key in `heads`.
pub(crate) fn version(entry: &[u8], micros: u64) -> Vec<u8> {
    let mut key = Vec::with_capacity(entry.len() + 9);
    key.extend_from_slice(entry);
    push_micros(&mut key, micros);
    key
}

/// The key in `unique` of a node's secondary key `nth` (2, 3, 4), from the node's key in `nodes`.
pub(crate) fn unique(key: &mut Vec<u8>, node: &[u8], nth: u8, secondary: &str) {
    key.clear();
    key.extend_from_slice(node);
    key.push(0);
    key.push(nth);
    push_text(key, secondary);
}

pub(crate) fn feed(bucket: BucketId, seq: Seq) -> [u8; 12] {
    let mut key = [0; 12];
    key[..4].copy_from_slice(&bucket.prefix());
    key[4..].copy_from_slice(&seq.0.to_be_bytes());
    key
}

pub(crate) fn feed_seq(key: &[u8]) -> Result<Seq, StoreError> {
    let bytes: [u8; 8] =
        key.get(4..).and_then(|seq| seq.try_into().ok()).ok_or_else(|| bad("a feed key"))?;
    Ok(Seq(u64::from_be_bytes(bytes)))
}

pub(crate) fn layer(bucket: BucketId, layer: &Layer) -> Vec<u8> {
    let mut key = bucket.prefix().to_vec();
    push_text(&mut key, layer.as_str());
    key.push(0);
    key
}

/// `bucket measure 00 path 00 key 00 minute neuron`.
pub(crate) fn cell(key: &mut Vec<u8>, bucket: BucketId, cell: &StatCell) {
    key.clear();
    key.extend_from_slice(&bucket.prefix());
    for part in [cell.measure.as_str(), cell.path.as_str(), cell.key.as_str()] {
        push_text(key, part);
        key.push(0);
    }
    key.extend_from_slice(&cell.minute.to_be_bytes());
    key.extend_from_slice(&cell.neuron.to_be_bytes());
}

/// The first key behind all that start with `prefix`, which ends in the zero of a part.
pub(crate) fn prefix_end(prefix: &[u8]) -> Vec<u8> {
    assert_eq!(prefix.last(), Some(&0), "a prefix ends with a whole part");
    let mut end = prefix.to_vec();
    *end.last_mut().expect("it has a last byte") = 1;
    end
}

/// Reads a key of `heads` (without its bucket, as `feed` refers to it) back into names.
pub(crate) fn read_reference(reference: &[u8]) -> Result<(Layer, Path, Key), StoreError> {
    let mut parts = reference.split(|byte| *byte == 0);
    let (Some(layer), Some(path), Some(key), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(bad("an entry's key"));
    };
    Ok((read_layer(layer)?, read_path(path)?, read_key(key)?))
}

/// Reads a key of `nodes` back into names.
pub(crate) fn read_node(key: &[u8]) -> Result<(BucketId, Layer, Path), StoreError> {
    let bucket = BucketId::read(key)?;
    let mut parts = key[BucketId::BYTES..].split(|byte| *byte == 0);
    let (Some(layer), Some(path), None) = (parts.next(), parts.next(), parts.next()) else {
        return Err(bad("a node's key"));
    };
    Ok((bucket, read_layer(layer)?, read_path(path)?))
}

/// A key of `stats`, taken apart; its names are not checked.
#[derive(Debug)]
pub(crate) struct CellKey<'a> {
    pub(crate) measure: &'a [u8],
    pub(crate) path: &'a [u8],
    pub(crate) key: &'a [u8],
    pub(crate) minute: u32,
    /// What all cells of the path begin with, up to its zero.
    pub(crate) of_path: &'a [u8],
    /// What all cells of the path and key begin with, up to the zero of the key.
    pub(crate) of_key: &'a [u8],
}

impl<'a> CellKey<'a> {
    pub(crate) fn read(bytes: &'a [u8]) -> Result<CellKey<'a>, StoreError> {
        let (of_key, numbers) = bytes
            .len()
            .checked_sub(8)
            .and_then(|at| bytes.split_at_checked(at))
            .ok_or_else(|| bad("a cell's key"))?;
        let names = of_key.get(BucketId::BYTES..).ok_or_else(|| bad("a cell's key"))?;
        let mut parts = names.split(|byte| *byte == 0);
        let (Some(measure), Some(path), Some(key), Some([]), None) =
            (parts.next(), parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(bad("a cell's key"));
        };
        let minute = numbers.first_chunk().ok_or_else(|| bad("a cell's key"))?;
        Ok(CellKey {
            measure,
            path,
            key,
            minute: u32::from_be_bytes(*minute),
            of_path: &of_key[..of_key.len() - key.len() - 1],
            of_key,
        })
    }

    /// Whether its names are names.
    pub(crate) fn check(&self) -> Result<(), StoreError> {
        read_layer(self.measure)?;
        read_path(self.path)?;
        read_key(self.key)?;
        Ok(())
    }
}

pub(crate) fn read_layer(bytes: &[u8]) -> Result<Layer, StoreError> {
    Layer::parse(read_text(bytes)?).map_err(|_| bad("a layer"))
}

pub(crate) fn read_path(bytes: &[u8]) -> Result<Path, StoreError> {
    let text = read_text(bytes)?;
    let path = Path::parse(text).map_err(|_| bad("a path"))?;
    if path.as_str() == text { Ok(path) } else { Err(bad("a path")) }
}

pub(crate) fn read_key(bytes: &[u8]) -> Result<Key, StoreError> {
    Key::parse(read_text(bytes)?).map_err(|_| bad("a key"))
}

/// Says that bytes are not what they should be.
pub(crate) fn bad(what: &str) -> StoreError {
    StoreError::Damaged(format!("what should be {what} is not"))
}

fn read_text(bytes: &[u8]) -> Result<&str, StoreError> {
    std::str::from_utf8(bytes).map_err(|_| bad("UTF-8"))
}

fn push_node(key: &mut Vec<u8>, bucket: BucketId, node: &Node) {
    key.extend_from_slice(&bucket.prefix());
    push_text(key, node.layer.as_str());
    key.push(0);
    push_text(key, node.path.as_str());
}

fn push_micros(key: &mut Vec<u8>, micros: u64) {
    key.push(0);
    key.extend_from_slice(&micros.to_be_bytes());
}

fn push_text(key: &mut Vec<u8>, text: &str) {
    assert!(!text.as_bytes().contains(&0), "names hold no control characters");
    key.extend_from_slice(text.as_bytes());
}
