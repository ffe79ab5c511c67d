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

/// Longest text of a [`Ver`]: 20 digits, a dash, 22 hexadecimal digits.
const VER_BYTES_MAX: usize = 43;

impl fmt::Display for Ver {
    /// By hand, since every answer shows one: the formatting machinery costs ten times as much.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = [0u8; VER_BYTES_MAX];
        let mut at = text.len();
        let mut put = |byte: u8| {
            at -= 1;
            text[at] = byte;
        };
        let low = u64::from(self.stamp.neuron) | self.stamp.micros << 32;
        for digit in 0..16 {
            put(hex(low >> (4 * digit)));
        }
        for digit in 8..14 {
            put(hex(self.stamp.micros >> (4 * digit)));
        }
        put(b'-');
        let mut generation = self.generation;
        loop {
            put(b'0' + (generation % 10) as u8);
            generation /= 10;
            if generation == 0 {
                break;
            }
        }
        f.write_str(std::str::from_utf8(&text[at..]).map_err(|_| fmt::Error)?)
    }
}

fn hex(bits: u64) -> u8 {
    b"0123456789abcdef"[(bits & 15) as usize]
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
