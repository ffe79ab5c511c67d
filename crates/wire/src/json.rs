//! JSON as text: stored and sent back as it came, without a detour through a tree of values.
//!
//! Numbers keep every digit, objects keep their order. A [`Json`] is always one well-formed value.

use std::fmt;
use std::sync::Arc;

use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

/// Deepest nesting of arrays and objects that is accepted.
pub const DEPTH_MAX: usize = 96;

/// One JSON value as text, without white space around it.
#[derive(Clone, Eq, Hash, PartialEq)]
pub struct Json(Arc<str>);

impl fmt::Debug for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a text is not a [`Json`].
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum JsonError {
    #[error("not JSON: {0}")]
    Syntax(String),
    #[error("nested deeper than {DEPTH_MAX} levels at byte {0}")]
    TooDeep(usize),
}

impl Json {
    /// # Errors
    /// Text that is not exactly one JSON value, or is nested deeper than [`DEPTH_MAX`].
    pub fn parse(text: &str) -> Result<Json, JsonError> {
        let text = text.trim_matches([' ', '\t', '\r', '\n']);
        check_depth(text)?;
        serde_json::from_str::<IgnoredAny>(text)
            .map_err(|error| JsonError::Syntax(error.to_string()))?;
        Ok(Json(Arc::from(text)))
    }

    /// A value by the text that [`Json::as_str`] gave, as a store keeps it; not looked at again.
    pub fn from_stored(text: &str) -> Json {
        Json(Arc::from(text))
    }

    pub fn null() -> Json {
        Json(Arc::from("null"))
    }

    /// A JSON string of `text`.
    pub fn string(text: &str) -> Json {
        let mut quoted = String::with_capacity(text.len() + 2);
        push_string(&mut quoted, text);
        Json(Arc::from(quoted))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn is_object(&self) -> bool {
        self.0.starts_with('{')
    }

    pub fn is_null(&self) -> bool {
        &*self.0 == "null"
    }

    /// The text of a JSON string; `None` for any other value.
    pub fn to_text(&self) -> Option<String> {
        if self.0.starts_with('"') { serde_json::from_str(&self.0).ok() } else { None }
    }

    /// The members of an object in their order, the last of equal names; `None` for other values.
    pub fn members(&self) -> Option<Members> {
        if !self.is_object() {
            return None;
        }
        serde_json::from_str(&self.0).ok()
    }

    /// The members of an object that has at most `max`, read no further than that; `None` for other
    /// values, for more, and where a name is no Unicode text.
    pub fn few_members(&self, max: usize) -> Option<Members> {
        let mut reader = serde_json::Deserializer::from_str(&self.0);
        reader.deserialize_map(Object { members_max: max }).ok()
    }

    /// The value of one member of an object.
    pub fn member(&self, name: &str) -> Option<Json> {
        self.members()?.get(name).cloned()
    }

    /// Reads this value into a typed one.
    ///
    /// # Errors
    /// What serde says of the mismatch.
    pub fn read<T: serde::de::DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        serde_json::from_str(&self.0)
    }

    /// Appends this value to `out`, with the member `name: text` added when it is an object.
    pub fn push_with(&self, out: &mut String, name: &str, text: &str) {
        match self.0.strip_suffix('}').filter(|_| self.is_object()) {
            None => out.push_str(&self.0),
            Some(open) => {
                let open = open.trim_end_matches([' ', '\t', '\r', '\n']);
                out.push_str(open);
                if !open.ends_with('{') {
                    out.push(',');
                }
                push_string(out, name);
                out.push(':');
                push_string(out, text);
                out.push('}');
            }
        }
    }
}

impl From<&serde_json::Value> for Json {
    fn from(value: &serde_json::Value) -> Json {
        Json(Arc::from(value.to_string()))
    }
}

impl From<serde_json::Value> for Json {
    fn from(value: serde_json::Value) -> Json {
        Json::from(&value)
    }
}

impl From<u64> for Json {
    fn from(number: u64) -> Json {
        Json(Arc::from(number.to_string()))
    }
}

impl serde::Serialize for Json {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let raw: &RawValue = serde_json::from_str(&self.0).map_err(serde::ser::Error::custom)?;
        raw.serialize(serializer)
    }
}

impl<'de> serde::Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Json, D::Error> {
        let raw = Box::<RawValue>::deserialize(deserializer)?;
        Ok(Json(Arc::from(raw.get())))
    }
}

/// The members of an object in their order; of equal names the last value stands.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Members(Vec<(String, Json)>);

impl Members {
    pub fn get(&self, name: &str) -> Option<&Json> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value)
    }

    /// The text of a string member.
    pub fn text(&self, name: &str) -> Option<String> {
        self.get(name)?.to_text()
    }

    pub fn set(&mut self, name: &str, value: Json) {
        match self.0.iter_mut().find(|(known, _)| known == name) {
            Some(member) => member.1 = value,
            None => self.0.push((name.to_owned(), value)),
        }
    }

    pub fn remove(&mut self, name: &str) -> Option<Json> {
        let at = self.0.iter().position(|(known, _)| known == name)?;
        Some(self.0.remove(at).1)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &Json)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value))
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The object as text.
    pub fn to_json(&self) -> Json {
        let mut out = String::from("{");
        for (at, (name, value)) in self.0.iter().enumerate() {
            if at > 0 {
                out.push(',');
            }
            push_string(&mut out, name);
            out.push(':');
            out.push_str(value.as_str());
        }
        out.push('}');
        Json(Arc::from(out))
    }
}

impl FromIterator<(String, Json)> for Members {
    fn from_iter<I: IntoIterator<Item = (String, Json)>>(members: I) -> Members {
        let mut kept: Vec<(String, Json)> = Vec::new();
        let mut at_of = std::collections::HashMap::new();
        for (name, value) in members {
            match at_of.get(&name) {
                Some(at) => {
                    let at: usize = *at;
                    kept[at].1 = value;
                }
                None => {
                    at_of.insert(name.clone(), kept.len());
                    kept.push((name, value));
                }
            }
        }
        Members(kept)
    }
}

impl<'de> serde::Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Members, D::Error> {
        deserializer.deserialize_map(Object { members_max: usize::MAX })
    }
}

/// Reads an object that has no more members than it may.
struct Object {
    members_max: usize,
}

impl<'de> Visitor<'de> for Object {
    type Value = Members;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an object of at most {} members", self.members_max)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
        let mut members = Vec::new();
        while let Some(member) = map.next_entry::<String, Json>()? {
            if members.len() == self.members_max {
                return Err(serde::de::Error::invalid_length(members.len() + 1, &self));
            }
            members.push(member);
        }
        Ok(members.into_iter().collect())
    }
}

/// Appends `text` as a JSON string.
pub fn push_string(out: &mut String, text: &str) {
    out.push('"');
    let mut rest = text;
    while let Some(at) = rest.bytes().position(|byte| byte < 0x20 || byte == b'"' || byte == b'\\')
    {
        out.push_str(&rest[..at]);
        match rest.as_bytes()[at] {
            b'"' => out.push_str("\\\""),
            b'\\' => out.push_str("\\\\"),
            b'\n' => out.push_str("\\n"),
            0x08 => out.push_str("\\b"),
            0x0c => out.push_str("\\f"),
            b'\r' => out.push_str("\\r"),
            b'\t' => out.push_str("\\t"),
            control => {
                use fmt::Write as _;
                let _ = write!(out, "\\u{control:04x}");
            }
        }
        rest = &rest[at + 1..];
    }
    out.push_str(rest);
    out.push('"');
}

/// Counts nesting without recursion, so that hostile depth costs no stack.
fn check_depth(text: &str) -> Result<(), JsonError> {
    let mut depth = 0usize;
    let mut in_string = false;
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate() {
        if in_string {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => in_string = false,
                _ => {}
            }
            continue;
        }
        match byte {
            b'"' => in_string = true,
            b'[' | b'{' => {
                depth += 1;
                if depth > DEPTH_MAX {
                    return Err(JsonError::TooDeep(at));
                }
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    Ok(())
}
