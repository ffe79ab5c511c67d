//! Where a value lives: bucket, then layer and path (a *node*), then key (an *entry*).

use std::fmt;
use std::fmt::Write as _;
use std::sync::Arc;

use wire::names::{Ident, Key, Layer, Path};

/// Longest bucket name: a CouchDB database name with room for a companion's suffix
/// (`spec/xirsys.md` §2 row 22).
pub const BUCKET_BYTES_MAX: usize = 200;

/// One account's data: `kv4_$elena_data`, or `kv4_$elena)lily_data` for a sub-account.
#[derive(Clone, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Bucket(Arc<str>);

impl Bucket {
    /// The system account's bucket, `kv4_$sys_data`.
    pub fn sys() -> Bucket {
        Bucket(Arc::from("kv4_$sys_data"))
    }

    /// The bucket of a top account, or of a sub-account of it; `None` when the name would be longer
    /// than [`BUCKET_BYTES_MAX`]. A byte that a CouchDB database name cannot hold, upper case
    /// included, becomes `+` and two hexadecimal digits, so distinct names never share a bucket.
    pub fn account(ident: &Ident, sub: Option<&Ident>) -> Option<Bucket> {
        let mut name = String::from("kv4_");
        if ident.is_sys() {
            name.push_str("$sys");
        } else {
            name.push('$');
            push_escaped(&mut name, ident.as_str());
        }
        if let Some(sub) = sub {
            name.push(')');
            push_escaped(&mut name, sub.as_str());
        }
        name.push_str("_data");
        (name.len() <= BUCKET_BYTES_MAX).then(|| Bucket(Arc::from(name)))
    }

    /// Whether this is a bucket or that of one of its sub-accounts.
    pub fn is_within(&self, top: &Bucket) -> bool {
        let below =
            |stem: &str| self.0.strip_prefix(stem).is_some_and(|rest| rest.starts_with(')'));
        self == top || top.0.strip_suffix("_data").is_some_and(below)
    }

    /// The bucket of the top account that this one belongs to: its own, or that of the account above.
    #[must_use]
    pub fn top(&self) -> Bucket {
        match self.0.split_once(')') {
            Some((stem, _)) => Bucket(Arc::from(format!("{stem}_data"))),
            None => self.clone(),
        }
    }

    /// A bucket by the name that [`Bucket::as_str`] gave, as a store keeps it.
    pub fn from_stored(name: &str) -> Bucket {
        Bucket(Arc::from(name))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn push_escaped(name: &mut String, ident: &str) {
    for byte in ident.bytes() {
        match byte {
            b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-' => name.push(char::from(byte)),
            other => {
                let _ = write!(name, "+{other:02x}");
            }
        }
    }
}

/// The table of keys at one intersection of layer and path; the unit that a view loads and drops.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Node {
    pub bucket: Bucket,
    pub layer: Layer,
    pub path: Path,
}

impl Node {
    pub fn new(bucket: Bucket, layer: Layer, path: Path) -> Node {
        Node { bucket, layer, path }
    }

    pub fn entry(&self, key: Key) -> Entry {
        Entry { node: self.clone(), key }
    }
}

/// One series of versions.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Entry {
    pub node: Node,
    pub key: Key,
}
