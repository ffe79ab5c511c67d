//! What must hold of an entry for a request to be carried out: `If-Match` and `If-None-Match` (RFC
//! 9110 §13.1), and `_ver_` (`spec/xirsys.md` §1.5).
//!
//! A write that names a precondition where none is looked at is refused: whoever asks not to overwrite
//! must not find out later that nobody listened.

use kv4::Ver;
use kv4::write::Condition;
use wire::envelope::Fault;
use wire::errors::Code;
use wire::json::Json;

use crate::Method;

/// `_ver_` that overwrites whatever there is, even where updates are strict.
const FORCE: &str = "_splat_";

#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum Precondition {
    /// Nothing was said.
    #[default]
    Unsaid,
    /// Whatever there is, said so: [`FORCE`].
    Any,
    /// The entry is not live: `If-None-Match: *`.
    Absent,
    /// The entry is live: `If-Match: *`.
    Present,
    /// The entry is live at one of these versions; never, when there is none.
    OneOf(Vec<Ver>),
}

impl Precondition {
    /// What the headers of a request say. Of a read `If-None-Match` is no precondition: it asks for
    /// an answer without a body.
    ///
    /// # Errors
    /// `bad_request` for a header that says nothing, or that a write cannot have.
    pub fn of_headers(
        method: Method,
        if_match: Option<&str>,
        if_none_match: Option<&str>,
    ) -> Result<Precondition, Fault> {
        let is_new = match if_none_match.filter(|_| method != Method::Get).map(str::trim) {
            None => Precondition::Unsaid,
            Some("*") => Precondition::Absent,
            Some(_) => return Err(bad("`If-None-Match` of a write is `*`")),
        };
        let is_known = match if_match.map(str::trim) {
            None => Precondition::Unsaid,
            Some("*") => Precondition::Present,
            Some(tags) => {
                let tags: Vec<&str> = entity_tags(tags).collect();
                if tags.is_empty() {
                    return Err(bad("`If-Match` names no version"));
                }
                // A text that no neuron gave is the version of nothing.
                Precondition::OneOf(tags.iter().filter_map(|tag| tag.parse().ok()).collect())
            }
        };
        is_new.and(is_known)
    }

    /// What `_ver_` says; null and the empty string are how some clients say that they have none.
    ///
    /// # Errors
    /// `bad_request` for one that is no string.
    pub fn of_ver(ver: Option<&Json>) -> Result<Precondition, Fault> {
        let Some(ver) = ver.filter(|ver| !ver.is_null()) else { return Ok(Precondition::Unsaid) };
        let text = ver.to_text().ok_or_else(|| bad("`_ver_` is a string"))?;
        Ok(match &*text {
            "" => Precondition::Unsaid,
            FORCE => Precondition::Any,
            text => Precondition::OneOf(text.parse().into_iter().collect()),
        })
    }

    /// Both this and another one.
    ///
    /// # Errors
    /// `bad_request` when an entry is asked to be there and not to be.
    pub fn and(self, other: Precondition) -> Result<Precondition, Fault> {
        use Precondition::{Absent, Any, OneOf, Present, Unsaid};
        Ok(match (self, other) {
            (Unsaid, other) | (other, Unsaid) | (Any, other) | (other, Any) => other,
            (Absent, Absent) => Absent,
            (Absent, _) | (_, Absent) => {
                return Err(bad("the entry is asked to be new and to have a version"));
            }
            (Present, other) | (other, Present) => other,
            (OneOf(some), OneOf(others)) => {
                OneOf(some.into_iter().filter(|ver| others.contains(ver)).collect())
            }
        })
    }

    /// Whether it holds of an entry that is live at a version, or not live.
    pub fn holds(&self, live: Option<Ver>) -> bool {
        match self {
            Precondition::Unsaid | Precondition::Any => true,
            Precondition::Absent => live.is_none(),
            Precondition::Present => live.is_some(),
            Precondition::OneOf(vers) => live.is_some_and(|live| vers.contains(&live)),
        }
    }

    /// What a store is to look at while it writes; of several versions the one that is there now.
    ///
    /// # Errors
    /// `version_conflict` when none of several is there.
    pub(crate) fn condition(&self, live: Option<Ver>) -> Result<Condition, Fault> {
        Ok(match self {
            Precondition::Unsaid | Precondition::Any => Condition::Any,
            Precondition::Absent => Condition::Absent,
            Precondition::Present => Condition::Present,
            Precondition::OneOf(vers) => match (&vers[..], live) {
                ([ver], _) => Condition::At(*ver),
                (vers, Some(live)) if vers.contains(&live) => Condition::At(live),
                _ => return Err(Code::VersionConflict.into()),
            },
        })
    }

    /// Refuses to have one where none is looked at.
    ///
    /// # Errors
    /// `bad_request`.
    pub fn refuse(&self, what: &str) -> Result<(), Fault> {
        match self {
            Precondition::Unsaid => Ok(()),
            _ => Err(bad(&format!("{what} takes no `If-Match`, `If-None-Match` or `_ver_`"))),
        }
    }
}

/// The tags of a list, without their quotes; a weak one, as proxies make them, stands for its strong
/// one.
pub fn entity_tags(list: &str) -> impl Iterator<Item = &str> {
    let mut is_quoted = false;
    // A comma between quotes is part of a tag.
    let tags = list.split(move |c: char| {
        is_quoted ^= c == '"';
        c == ',' && !is_quoted
    });
    tags.map(|tag| tag.trim().trim_start_matches("W/").trim_matches('"'))
        .filter(|tag| !tag.is_empty())
}

fn bad(detail: &str) -> Fault {
    Fault::with(Code::BadRequest, detail)
}

#[cfg(test)]
mod tests {
    use kv4::Stamp;

    use super::*;

    fn ver(generation: u64) -> Ver {
        Ver { generation, stamp: Stamp { micros: 7, neuron: 1 } }
    }

    fn one_of<const N: usize>(generations: [u64; N]) -> Precondition {
        Precondition::OneOf(generations.map(ver).to_vec())
    }

    #[test]
    fn headers_are_read_as_the_rfc_says_and_as_clients_write_them() {
        let of = |if_match: &str| Precondition::of_headers(Method::Put, Some(if_match), None);
        let (one, two) = (ver(1), ver(2));
        assert_eq!(of(&format!("\"{one}\"")), Ok(one_of([1])));
        assert_eq!(of(&format!("{one}")), Ok(one_of([1])));
        assert_eq!(of(&format!(" \"{one}\",W/\"{two}\" , \"foreign\"")), Ok(one_of([1, 2])));
        assert_eq!(of("\"foreign\""), Ok(one_of([])));
        assert_eq!(of(&format!("\"foreign,{one}\"")), Ok(one_of([])), "one tag");
        assert_eq!(of(" * "), Ok(Precondition::Present));
        for empty in ["", " ", ",", "\"\""] {
            assert!(of(empty).is_err(), "{empty:?}");
        }
        let new = |method, tag| Precondition::of_headers(method, None, Some(tag));
        assert_eq!(new(Method::Post, "*"), Ok(Precondition::Absent));
        assert!(new(Method::Delete, "\"1\"").is_err());
        assert_eq!(new(Method::Get, "\"1\""), Ok(Precondition::Unsaid));
        assert!(Precondition::of_headers(Method::Put, Some("*"), Some("*")).is_err());
    }

    #[test]
    fn a_version_is_a_string() {
        let of = |text: &str| Precondition::of_ver(Some(&Json::parse(text).expect("legal JSON")));
        assert_eq!(of(&format!("\"{}\"", ver(3))), Ok(one_of([3])));
        assert_eq!(of("\"_splat_\""), Ok(Precondition::Any));
        assert_eq!(of("\"no version\""), Ok(one_of([])));
        for none in ["null", "\"\""] {
            assert_eq!(of(none), Ok(Precondition::Unsaid));
        }
        for wrong in ["1", "{}", "[]", "true", "\"\\ud800\""] {
            assert!(of(wrong).is_err(), "{wrong}");
        }
    }

    /// What two preconditions come to holds exactly where both do.
    #[test]
    fn both_hold_where_each_does() {
        let all = [
            Precondition::Unsaid,
            Precondition::Any,
            Precondition::Absent,
            Precondition::Present,
            one_of([]),
            one_of([1]),
            one_of([1, 2]),
            one_of([2, 3]),
        ];
        for first in &all {
            for second in &all {
                let both = first.clone().and(second.clone());
                for live in [None, Some(ver(1)), Some(ver(2)), Some(ver(4))] {
                    let expected = first.holds(live) && second.holds(live);
                    let holds = both.as_ref().is_ok_and(|both| both.holds(live));
                    assert_eq!(holds, expected, "{first:?} and {second:?} of {live:?}");
                }
            }
        }
    }
}
