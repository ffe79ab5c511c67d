//! The reference: what was asked, what was acknowledged, and so what must be there.
//!
//! An *own* entry has one writer, so the model knows its series exactly, save for a last operation
//! whose answer a crash took. A *shared* entry has several: the model knows which versions were
//! acknowledged, and which values may be there.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

/// Bucket (by the caller's ident), path, key.
pub type Place = (String, String, String);

/// What one operation on an own entry leaves: a value by its name, or `None` for a deletion.
pub type Left = Option<String>;

/// Everything that requests were told, over all crashes.
#[derive(Debug, Default)]
pub struct Model {
    pub own: BTreeMap<Place, Own>,
    pub shared: BTreeMap<Place, Shared>,
    /// Rows of each bucket's feed as they were seen last: (key, version).
    pub feeds: BTreeMap<String, Vec<(String, Option<String>)>>,
    /// `PUT`s of `_data` by who made them.
    pub puts: BTreeMap<String, Puts>,
    /// The first thing that was wrong.
    pub fault: Option<String>,
    /// Checks made, by kind.
    pub checks: BTreeMap<&'static str, u64>,
}

#[derive(Debug, Default)]
pub struct Own {
    /// Since the first version or the last erasure.
    pub series: Vec<Left>,
    pub newest_ver: Option<String>,
    /// An operation without an answer yet, or for ever.
    pub open: Option<Open>,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Open {
    Write(Left),
    Erase,
}

#[derive(Debug, Default)]
pub struct Shared {
    /// Name of the value by generation.
    pub acknowledged: BTreeMap<u64, (String, String)>,
    /// Names of values that may have been written.
    pub begun: BTreeSet<String>,
    /// Versions that a conditional write has replaced.
    pub bases: BTreeSet<String>,
}

/// Counts of what statistics count.
#[derive(Clone, Copy, Debug, Default)]
pub struct Puts {
    pub begun: u64,
    pub answered: u64,
    /// Answered before a flush began that succeeded.
    pub flushed: u64,
}

/// Generation and µs of a version's text.
pub fn split_ver(ver: &str) -> Option<(u64, u64)> {
    let (generation, stamp) = ver.split_once('-')?;
    Some((generation.parse().ok()?, u64::from_str_radix(stamp.get(..14)?, 16).ok()?))
}

impl Model {
    /// Notes the first fault; everything after it is a consequence.
    pub fn must(&mut self, kind: &'static str, holds: bool, say: impl FnOnce() -> String) {
        *self.checks.entry(kind).or_default() += 1;
        if !holds && self.fault.is_none() {
            self.fault = Some(format!("{kind}: {}", say()));
        }
    }

    /// A crash: answers that have not come never will, and what was not flushed was not counted.
    pub fn crashed(&mut self) {
        for puts in self.puts.values_mut() {
            puts.answered = puts.flushed;
        }
    }

    /// A conditional or plain put of a shared entry was acknowledged.
    pub fn won(&mut self, place: &Place, name: &str, ver: &str, base: Option<&str>) {
        let Some((generation, micros)) = split_ver(ver) else {
            return self.must("a version can be read", false, || ver.to_owned());
        };
        let entry = self.shared.entry(place.clone()).or_default();
        let (mut wins, mut follows) = (true, true);
        if let Some(base) = base {
            wins = entry.bases.insert(base.to_owned());
            follows = split_ver(base).is_some_and(|(before, _)| before + 1 == generation);
        }
        let before = entry.acknowledged.range(..generation).next_back().map(|(_, (_, v))| v);
        let after = entry.acknowledged.range(generation + 1..).next().map(|(_, (_, v))| v);
        let is_between = before.and_then(|v| split_ver(v)).is_none_or(|(_, m)| m < micros)
            && after.and_then(|v| split_ver(v)).is_none_or(|(_, m)| m > micros);
        let rival = entry.acknowledged.insert(generation, (name.to_owned(), ver.to_owned()));
        self.must("one winner for a version", wins && rival.is_none(), || {
            format!("{place:?} {ver} after {base:?}, beside {rival:?}")
        });
        self.must("a conditional write follows its base", follows, || format!("{ver} on {base:?}"));
        self.must("stamps rise with generations", is_between, || format!("{place:?} {ver}"));
    }

    /// A read of a shared entry showed a version; `least` was acknowledged before the read began.
    pub fn shown(&mut self, place: &Place, least: u64, v: &Value) {
        let ver = v["_ver_"].as_str().unwrap_or_default();
        let generation = split_ver(ver).map_or(0, |(generation, _)| generation);
        let name = v["name"].as_str().unwrap_or_default();
        let entry = self.shared.entry(place.clone()).or_default();
        let known = entry.acknowledged.get(&generation);
        let is_known = known.is_none_or(|(known, known_ver)| known == name && known_ver == ver);
        let is_written = entry.begun.contains(name);
        self.must("a read shows what was acknowledged or newer", generation >= least, || {
            format!("{place:?} {ver}, generation {least} was acknowledged before")
        });
        self.must("a read shows what was written", is_known && is_written, || {
            format!("{place:?} {v}")
        });
    }

    /// The newest acknowledged generation of a shared entry.
    pub fn least(&self, place: &Place) -> u64 {
        let entry = self.shared.get(place);
        entry.and_then(|entry| entry.acknowledged.keys().next_back().copied()).unwrap_or(0)
    }

    /// The feed's versions of an own entry since its last erasure settle what a crash left open.
    pub fn settle(&mut self, place: &Place, found: &[(String, Left)]) {
        let own = self.own.entry(place.clone()).or_default();
        let names: Vec<Left> = found.iter().map(|(_, left)| left.clone()).collect();
        let mut may = vec![own.series.clone()];
        match own.open.take() {
            None => {}
            Some(Open::Erase) => may.push(Vec::new()),
            Some(Open::Write(left)) => {
                let mut with = own.series.clone();
                with.push(left);
                may.push(with);
            }
        }
        let is_one = may.contains(&names);
        own.series.clone_from(&names);
        own.newest_ver =
            found.last().filter(|(_, left)| left.is_some()).map(|(ver, _)| ver.clone());
        self.must("a series is what was acknowledged", is_one, || {
            format!("{place:?} has {names:?}, may have {may:?}")
        });
    }
}
