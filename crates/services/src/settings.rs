//! Settings per account and path: what may be set in `_conf`, and how it is found.
//!
//! A setting at a path holds there and below, until one of the same name is set further down. Not
//! here: the service that writes them (`configuration.rs`).

use std::collections::HashMap;
use std::sync::Arc;

use kv4::Head;
use kv4::store::Retention;
use serde::Deserialize;
use wire::json::Json;
use wire::names::{Layer, Path};

/// One setting that exists.
#[derive(Clone, Copy, Debug)]
pub struct Known {
    pub name: &'static str,
    /// What it does and what its value looks like.
    pub doc: &'static str,
    check: fn(&Json) -> bool,
}

/// Every setting, by name.
pub const KNOWN: [Known; 6] = [
    Known {
        name: "cors_origins",
        doc: "Origins that pages may call from: an array of strings such as \
              \"https://example.org\"; without it every origin may.",
        check: |value| value.read::<Vec<String>>().is_ok(),
    },
    Known {
        name: "debug_log",
        doc: "true: a line in `*logs:debug` for every call, with its method, service, path, caller, \
              address and outcome; at `/` only.",
        check: |value| value.read::<bool>().is_ok(),
    },
    Known {
        name: "real_status",
        doc: "true: errors answer their real HTTP status without being asked to; at `/` only.",
        check: |value| value.read::<bool>().is_ok(),
    },
    Known {
        name: "retention",
        doc: "How long series are kept: {\"layer\":\"*data\",\"age_s\":n,\"count\":n}; layer is \
              *data when left out, and a bound left out does not hold.",
        check: |value| {
            value.read::<RetentionSetting>().is_ok_and(|set| Layer::parse(&set.layer).is_ok())
        },
    },
    Known {
        name: "strict",
        doc: "true: an update without the `_ver_` that it read is refused with `_ver_missing`.",
        check: |value| value.read::<bool>().is_ok(),
    },
    Known {
        name: "token_expire_max_s",
        doc: "Longest lifetime in seconds that `_token` gives; `expire=0` is refused under it.",
        check: |value| value.read::<u64>().is_ok(),
    },
];

/// The value of `retention`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct RetentionSetting {
    #[serde(default = "data_layer")]
    pub layer: String,
    pub age_s: Option<u64>,
    pub count: Option<u64>,
}

fn data_layer() -> String {
    crate::data::LAYER.to_owned()
}

impl RetentionSetting {
    /// The bounds as a store takes them, at a moment.
    pub fn at(&self, now_micros: u64) -> Retention {
        Retention {
            before_micros: self
                .age_s
                .map(|age_s| now_micros.saturating_sub(age_s.saturating_mul(1_000_000))),
            count_max: self.count,
        }
    }
}

/// The setting of a name.
pub fn known(name: &str) -> Option<&'static Known> {
    KNOWN.iter().find(|known| known.name == name)
}

/// Whether a value is one that a setting can have.
pub fn is_legal(known: &Known, value: &Json) -> bool {
    (known.check)(value)
}

/// The settings of one bucket.
#[derive(Clone, Debug, Default)]
pub struct Settings(HashMap<Path, HashMap<String, Json>>);

impl Settings {
    pub(crate) fn compile(rows: &[(Path, Arc<Head>)]) -> Settings {
        let mut settings: HashMap<Path, HashMap<String, Json>> = HashMap::new();
        for (path, head) in rows {
            settings
                .entry(path.clone())
                .or_default()
                .insert(head.key.as_str().to_owned(), head.value.clone());
        }
        Settings(settings)
    }

    /// The value that holds at a path; `None` when it is set nowhere on the way to the root.
    pub fn at<T: serde::de::DeserializeOwned>(&self, path: &Path, name: &str) -> Option<T> {
        if self.0.is_empty() {
            return None;
        }
        let value = path.ancestors().find_map(|path| self.0.get(&path)?.get(name).cloned())?;
        value.read().ok()
    }

    /// How many are set.
    pub(crate) fn len(&self) -> usize {
        self.0.values().map(HashMap::len).sum()
    }

    /// Every place where a setting is set.
    pub fn places<T: serde::de::DeserializeOwned>(&self, name: &str) -> Vec<(Path, T)> {
        let mut places: Vec<_> = self
            .0
            .iter()
            .filter_map(|(path, set)| Some((path.clone(), set.get(name)?.read().ok()?)))
            .collect();
        places.sort_by(|a, b| a.0.cmp(&b.0));
        places
    }
}
