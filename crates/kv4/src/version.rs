//! Versions: when, by whom, and the text form `_ver_` that clients hold.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use wire::json::Json;
use wire::names::Key;

/// A hybrid logical clock: the wall clock in µs since 1970, raised where needed so that it is always
/// above the newest stamp of its entry; ties between neurons go by the neuron's number.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Stamp {
    pub micros: u64,
    /// The number of the neuron incarnation that stamped it.
    pub neuron: u32,
}

impl Stamp {
    /// Whole seconds since 1970, as time series show it.
    pub fn unix_s(self) -> u64 {
        self.micros / 1_000_000
    }
}

/// One version of one entry: its place in the series (1 is the first) and its stamp.
///
/// The text form, `_ver_` and ETag, is `<generation>-<14 hex digits of µs><8 of neuron>`; clients
/// treat it as opaque.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Ver {
    pub generation: u64,
    pub stamp: Stamp,
}

impl fmt::Display for Ver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{:014x}{:08x}", self.generation, self.stamp.micros, self.stamp.neuron)
    }
}

/// A text that no neuron ever gave as a `_ver_`.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("not a `_ver_` of this system")]
pub struct NotAVer;

impl FromStr for Ver {
    type Err = NotAVer;

    fn from_str(text: &str) -> Result<Ver, NotAVer> {
        let (generation, stamp) = text.split_once('-').ok_or(NotAVer)?;
        if stamp.len() != 22 || !stamp.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(NotAVer);
        }
        let (micros, neuron) = stamp.split_at(14);
        Ok(Ver {
            generation: generation.parse().map_err(|_| NotAVer)?,
            stamp: Stamp {
                micros: u64::from_str_radix(micros, 16).map_err(|_| NotAVer)?,
                neuron: u32::from_str_radix(neuron, 16).map_err(|_| NotAVer)?,
            },
        })
    }
}

/// Secondary keys k2, k3, k4 in that order.
pub type SecondaryKeys = [Option<Key>; 3];

/// One point of a series: a value, or `None` where the entry was deleted.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Version {
    pub ver: Ver,
    /// The admin's key when an admin wrote, else the account's name (`spec/xirsys.md` §2 row 11).
    pub who: Arc<str>,
    pub value: Option<Json>,
    /// Kept on a deletion too: the keys that the entry had.
    pub keys: SecondaryKeys,
}

/// The newest version of a live entry, as views hold it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Head {
    pub key: Key,
    pub ver: Ver,
    pub who: Arc<str>,
    pub value: Json,
    pub keys: SecondaryKeys,
}

impl Head {
    /// The live head that this version is; `None` for a deletion.
    pub fn of(key: &Key, version: &Version) -> Option<Head> {
        Some(Head {
            key: key.clone(),
            ver: version.ver,
            who: version.who.clone(),
            value: version.value.clone()?,
            keys: version.keys.clone(),
        })
    }
}
