//! What a write asks for, and what it comes to: the one rule by which every engine turns a write
//! into a version.

use std::sync::Arc;

use wire::json::Json;
use wire::names::Key;

use crate::address::Entry;
use crate::store::StoreError;
use crate::version::{SecondaryKeys, Stamp, Ver, Version};

/// One write of one entry.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Write {
    pub entry: Entry,
    pub op: Op,
    pub condition: Condition,
    pub who: Arc<str>,
    /// The writer's clock and neuron; raised above the entry's newest stamp when it is behind.
    pub stamp: Stamp,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Op {
    Put {
        value: Json,
        keys: [KeyChange; 3],
    },
    /// Ends the entry's listing; the series stays.
    Delete,
}

/// What a put does to one secondary key.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum KeyChange {
    #[default]
    Keep,
    Set(Key),
    Clear,
}

/// What must hold of the entry when the write is carried out.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Condition {
    Any,
    /// The entry is not live.
    Absent,
    /// The entry is live, at whatever version.
    Present,
    /// The entry is live at exactly this version.
    At(Ver),
    /// The entry is live and there was no version to compare: refused as `_ver_missing` if it is,
    /// carried out if it is not (paths in strict mode).
    AbsentOrVerMissing,
}

/// Why a write was not carried out; nothing has changed.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
    #[error("the entry is live already")]
    Exists,
    #[error("the entry is not live")]
    Missing,
    #[error("the entry is at another version")]
    Conflict,
    #[error("an update here must name the version it read")]
    VerMissing,
    /// Another live entry of this layer and path has that value in `k2`, `k3` or `k4`; when several
    /// are taken, one of them.
    #[error("secondary key k{0} is taken")]
    KeyTaken(u8),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A write that was carried out and is durable.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Written {
    pub version: Version,
    /// Whether the entry was not live before.
    pub created: bool,
}

/// Decides one write against the entry's newest version. Taken secondary keys are the engine's to
/// find, since they are facts about other entries.
///
/// # Errors
/// The condition does not hold, or a delete finds nothing live.
pub fn decide(write: &Write, newest: Option<&Version>) -> Result<Version, WriteError> {
    let live = newest.filter(|version| version.value.is_some());
    match (write.condition, live) {
        (Condition::Absent, Some(_)) => return Err(WriteError::Exists),
        (Condition::AbsentOrVerMissing, Some(_)) => return Err(WriteError::VerMissing),
        (Condition::At(ver), Some(version)) if version.ver != ver => {
            return Err(WriteError::Conflict);
        }
        (Condition::At(_) | Condition::Present, None) => return Err(WriteError::Conflict),
        _ => {}
    }
    let (value, keys) = match &write.op {
        Op::Put { value, keys } => (Some(value.clone()), change_keys(keys, live)),
        Op::Delete => match live {
            None => return Err(WriteError::Missing),
            Some(version) => (None, version.keys.clone()),
        },
    };
    let floor = newest.map_or(0, |version| version.ver.stamp.micros + 1);
    Ok(Version {
        ver: Ver {
            generation: newest.map_or(0, |version| version.ver.generation) + 1,
            stamp: Stamp { micros: write.stamp.micros.max(floor), neuron: write.stamp.neuron },
        },
        who: write.who.clone(),
        value,
        keys,
    })
}

fn change_keys(changes: &[KeyChange; 3], live: Option<&Version>) -> SecondaryKeys {
    let mut keys = live.map(|version| version.keys.clone()).unwrap_or_default();
    for (key, change) in keys.iter_mut().zip(changes) {
        match change {
            KeyChange::Keep => {}
            KeyChange::Set(new) => *key = Some(new.clone()),
            KeyChange::Clear => *key = None,
        }
    }
    keys
}
