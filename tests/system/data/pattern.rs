//! Patterns: JSON in which some texts stand for what is not known beforehand.
//!
//! `<any>`, `<count>` (above 0), `<time>` (unix seconds, today), `<ver>`, `<token>`, `<secret>`, and
//! `<secret:name>`, which is remembered. As the only member name, `<group:n>` stands for one or more
//! time groups of n parts. `["<includes>", …]` is an array with these among others, `["<each>", p]`
//! one or more of which every one is like p.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::Value;
use tests::ver::Ver;

/// Texts that patterns have remembered, by name.
pub(crate) type Found = BTreeMap<String, String>;

const DAY_S: u64 = 86_400;

/// Compares; says where and how the two differ.
pub(crate) fn compare(pattern: &Value, seen: &Value, found: &mut Found) -> Result<(), String> {
    match (pattern, seen) {
        (Value::String(text), _) if text.starts_with('<') && text.ends_with('>') => {
            if stands_for(&text[1..text.len() - 1], seen, found) {
                Ok(())
            } else {
                Err(format!("{seen} is no {text}"))
            }
        }
        (Value::Array(pattern), Value::Array(seen)) => arrays(pattern, seen, found),
        (Value::Object(pattern), Value::Object(seen)) => {
            if let Some((depth, one)) = only_group(pattern) {
                return groups(depth, one, seen, found);
            }
            let names = |object: &serde_json::Map<_, _>| {
                let mut names: Vec<String> = object.keys().cloned().collect();
                names.sort();
                names
            };
            if names(pattern) != names(seen) {
                return Err(format!("members {:?} are not {:?}", names(seen), names(pattern)));
            }
            pattern.iter().try_for_each(|(name, pattern)| {
                compare(pattern, &seen[name], found).map_err(|why| format!("{name}: {why}"))
            })
        }
        _ if pattern == seen => Ok(()),
        _ => Err(format!("{seen} is not {pattern}")),
    }
}

fn arrays(pattern: &[Value], seen: &[Value], found: &mut Found) -> Result<(), String> {
    match pattern.first().and_then(Value::as_str) {
        Some("<includes>") => match pattern[1..].iter().find(|one| !seen.contains(one)) {
            Some(missing) => Err(format!("{missing} is not among {seen:?}")),
            None => Ok(()),
        },
        Some("<each>") if seen.is_empty() => Err("there is none".to_owned()),
        Some("<each>") => seen.iter().try_for_each(|one| compare(&pattern[1], one, found)),
        _ if pattern.len() != seen.len() => {
            Err(format!("{} elements are not {}: {seen:?}", seen.len(), pattern.len()))
        }
        _ => pattern.iter().zip(seen).enumerate().try_for_each(|(at, (pattern, seen))| {
            compare(pattern, seen, found).map_err(|why| format!("[{at}]: {why}"))
        }),
    }
}

fn only_group(pattern: &serde_json::Map<String, Value>) -> Option<(usize, &Value)> {
    let (name, one) = pattern.iter().next()?;
    let depth = name.strip_prefix("<group:")?.strip_suffix('>')?.parse().ok()?;
    Some((depth, one))
}

fn groups(
    depth: usize,
    one: &Value,
    seen: &serde_json::Map<String, Value>,
    found: &mut Found,
) -> Result<(), String> {
    if seen.is_empty() {
        return Err("there is no group".to_owned());
    }
    seen.iter().try_for_each(|(name, seen)| {
        let parts: Vec<&str> = name.split(':').collect();
        let is_unpadded = |part: &&str| part.parse::<u32>().is_ok_and(|n| n.to_string() == *part);
        if parts.len() != depth || !parts.iter().all(is_unpadded) {
            return Err(format!("`{name}` is no time group of {depth} parts"));
        }
        compare(one, seen, found)
    })
}

fn stands_for(name: &str, seen: &Value, found: &mut Found) -> bool {
    let text = seen.as_str().unwrap_or_default();
    match name {
        "any" => true,
        "count" => seen.as_u64().is_some_and(|count| count > 0),
        "time" => seen.as_u64().is_some_and(|time| now_s().abs_diff(time) < DAY_S),
        "ver" => Ver::parse(text).is_ok(),
        // Clients put it into a URL as it is.
        "token" => {
            text.len() >= 40
                && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte))
        }
        _ => {
            let is_uuid =
                text.len() == 36 && text.bytes().filter(|byte| *byte == b'-').count() == 4;
            if let Some(name) = name.strip_prefix("secret:") {
                found.insert(name.to_owned(), text.to_owned());
            }
            name.starts_with("secret") && is_uuid
        }
    }
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
