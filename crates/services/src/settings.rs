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

use crate::path_rules;

/// One setting that exists.
#[derive(Clone, Copy, Debug)]
pub struct Known {
    pub name: &'static str,
    /// What it does and what its value looks like.
    pub doc: &'static str,
    /// Whether it can be set at `/` only.
    pub of_root: bool,
    check: fn(&Json) -> bool,
}

/// Every setting, by name.
pub const KNOWN: [Known; 11] = [
    Known {
        name: "cors_origins",
        doc: "Origins that pages may call and open sockets from: an array of strings such as \
              \"https://example.org\", as browsers send them, without a path; without this setting \
              every origin may.",
        of_root: true,
        check: |value| {
            value.read::<Vec<String>>().is_ok_and(|origins| origins.iter().all(|o| is_origin(o)))
        },
    },
    Known {
        name: "debug_log",
        doc: "true: a line in `*logs:debug` for every call, with its method, service, path, caller, \
              address and outcome.",
        of_root: true,
        check: |value| value.read::<bool>().is_ok(),
    },
    Known {
        name: "join",
        doc: "Who may be in the rooms of the path, of those whose token grants `subscribe`: an array of \
              users, as `k` of `_token` names them, at most 1000; `\"*\"` is everybody, `[]` nobody. \
              Whoever is there and may no longer be is sent away.",
        of_root: false,
        check: path_rules::is_legal,
    },
    Known {
        name: "read",
        doc: "Who may read `_data` with a token that grants `read`; the value is as of `join`.",
        of_root: false,
        check: path_rules::is_legal,
    },
    Known {
        name: "real_status",
        doc: "true: errors answer their real HTTP status without being asked to, but for callers \
              who have not proven who they are.",
        of_root: true,
        check: |value| value.read::<bool>().is_ok(),
    },
    Known {
        name: "retention",
        doc: "How long series are kept: {\"layer\":\"*data\",\"age_s\":n,\"count\":n}; layer is \
              *data when left out, and a bound left out does not hold; count is at least 1. What is \
              too old goes within the minute.",
        of_root: false,
        check: |value| value.read::<RetentionSetting>().is_ok_and(|set| set.is_legal()),
    },
    Known {
        name: "send",
        doc: "Who may send to a room and to its members, of those whose token grants `publish` or \
              `send`; the value is as of `join`. It holds for open sockets at once.",
        of_root: false,
        check: path_rules::is_legal,
    },
    Known {
        name: "strict",
        doc: "true: an update without the `_ver_` that it read is refused with `_ver_missing`.",
        of_root: false,
        check: |value| value.read::<bool>().is_ok(),
    },
    Known {
        name: "token_expire_max_s",
        doc: "Longest lifetime that `_token` gives: seconds, at least 1; `expire=0` is refused under \
              it.",
        of_root: false,
        check: |value| value.read::<u64>().is_ok_and(|seconds| seconds > 0),
    },
    Known {
        name: "watch",
        doc: "Who may watch `_data` live with a token that grants `watch`; the value is as of `join`. \
              Whom a rule of `read` leaves out may not either.",
        of_root: false,
        check: path_rules::is_legal,
    },
    Known {
        name: "write",
        doc: "Who may write and delete keys of `_data` with a token that grants `write`; the value is \
              as of `join`.",
        of_root: false,
        check: path_rules::is_legal,
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

/// Whether a text is an origin as browsers write it (RFC 6454 §6.2): a scheme, a host in lower case,
/// and a port where it is not the scheme's own.
fn is_origin(text: &str) -> bool {
    let Some((scheme, host)) = text.split_once("://") else { return false };
    let is_scheme = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "+-.".contains(c);
    let is_host =
        |c: char| c.is_ascii_graphic() && !c.is_ascii_uppercase() && !"/?#@\\*,".contains(c);
    let is_own_port = matches!(
        (scheme, host.rsplit_once(':')),
        ("http", Some((_, "80"))) | ("https", Some((_, "443")))
    );
    !scheme.is_empty()
        && scheme.chars().all(is_scheme)
        && !host.is_empty()
        && host.chars().all(is_host)
        && !is_own_port
}

impl RetentionSetting {
    /// A layer without a star is none that a service writes: a star that was forgotten.
    fn is_legal(&self) -> bool {
        let is_layer = Layer::parse(&self.layer).is_ok() && self.layer.starts_with('*');
        let has_bound = self.age_s.is_some() || self.count.is_some();
        is_layer && has_bound && self.count != Some(0)
    }

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_that_can_never_hold_is_refused() {
        let is_legal = |name: &str, value: &str| {
            let known = known(name).expect("there is such a setting");
            super::is_legal(known, &Json::parse(value).expect("legal JSON"))
        };
        for (name, value, legal) in [
            ("cors_origins", r#"["https://example.org","http://[::1]:8080"]"#, true),
            ("cors_origins", "[]", true),
            ("cors_origins", r#"["*"]"#, false),
            ("cors_origins", r#"["https://example.org/"]"#, false),
            ("cors_origins", r#"["https://Example.org"]"#, false),
            ("cors_origins", r#"["https://example.org:443"]"#, false),
            ("cors_origins", r#"["banana"]"#, false),
            ("retention", r#"{"count":1}"#, true),
            ("retention", r#"{"layer":"*conf","age_s":0}"#, true),
            ("retention", r#"{"layer":"data","count":1}"#, false),
            ("retention", r#"{"count":0}"#, false),
            ("retention", "{}", false),
            ("token_expire_max_s", "1", true),
            ("token_expire_max_s", "0", false),
        ] {
            assert_eq!(is_legal(name, value), legal, "{name}: {value}");
        }
    }
}
