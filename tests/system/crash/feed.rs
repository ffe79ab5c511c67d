//! A bucket's feed as a client follows it, and what it says of each entry: the reference that
//! reads, series and listings are compared with.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tests::http::Client;
use tests::ver::Ver;

use super::writers::{Acknowledged, Told, check};

/// Changes asked for at a time; not a divisor of anything, so that pages end anywhere.
const PAGE: u64 = 371;

/// A version as the feed tells it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Row {
    pub(super) path: String,
    pub(super) key: String,
    pub(super) ver: String,
    /// `None` for a deletion.
    pub(super) value: Option<Value>,
}

/// The changes of one bucket from the first to the last that was asked for.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Feed {
    /// The change with seq n lies at n - 1.
    pub(super) rows: Vec<Row>,
}

impl Feed {
    /// Asks for one page behind the last change that is known; whether there is more. The answer
    /// must go on exactly there.
    pub(super) fn follow(&mut self, client: &mut Client) -> Result<bool> {
        let since = self.rows.len() as u64;
        let answer = client.get(&format!("/_ds/?a=changes&since={since}&limit={PAGE}"))?;
        let v = answer.ok().with_context(|| format!("no feed: {answer:?}"))?;
        let changes = v["changes"].as_array().context("changes")?;
        let last = v["last_seq"].as_u64().context("last_seq")?;
        for (change, expected) in changes.iter().zip(since + 1..) {
            let seq = change["seq"].as_u64().context("seq")?;
            ensure!(seq == expected, "the feed has {seq} where {expected} belongs");
            let text = |name: &str| change[name].as_str().map(str::to_owned);
            let row = Row {
                path: text("p").context("p")?,
                key: text("k").context("k")?,
                ver: text("_ver_").with_context(|| format!("a version went away: {change}"))?,
                value: change.get("v").cloned(),
            };
            ensure!(row.value.is_some() != (change["deleted"] == true), "{change}");
            if let Some(value) = &row.value {
                check(value).with_context(|| format!("seq {seq}"))?;
            }
            self.rows.push(row);
        }
        let known = self.rows.len() as u64;
        ensure!(known <= last, "the feed ends at {last}, and {known} was told before");
        ensure!(known == last || !changes.is_empty(), "the feed stops at {known} before {last}");
        Ok(known < last)
    }

    /// Follows to the end.
    pub(super) fn follow_all(&mut self, client: &mut Client) -> Result<()> {
        while self.follow(client)? {}
        Ok(())
    }

    /// The newest version of every entry, by path and key.
    pub(super) fn newest(&self) -> BTreeMap<(&str, &str), &Row> {
        self.rows.iter().map(|row| ((row.path.as_str(), row.key.as_str()), row)).collect()
    }

    /// Each entry's versions are numbered 1, 2, 3 … with rising stamps.
    pub(super) fn check_series(&self) -> Result<()> {
        let mut newest: BTreeMap<(&str, &str), (u64, u64)> = BTreeMap::new();
        for row in &self.rows {
            let Ver { generation, micros } = Ver::parse(&row.ver)?;
            let before = newest.insert((&row.path, &row.key), (generation, micros));
            let (last, stamp) = before.unwrap_or((0, 0));
            ensure!(generation == last + 1, "after version {last}: {row:?}");
            ensure!(micros > stamp, "a stamp that does not rise: {row:?}");
        }
        Ok(())
    }

    /// Everything that was acknowledged is here, once; everything here was acknowledged, or is one
    /// of the writes whose answer was lost. `from` is where the round of `told` begins.
    pub(super) fn check_told(&self, from: usize, told: &Told) -> Result<()> {
        if let Some(fault) = told.faults.first() {
            bail!("{fault}");
        }
        let mut by_ver: BTreeMap<(&str, &str, &str), &Row> = BTreeMap::new();
        let mut deletions: BTreeMap<(&str, &str), i64> = BTreeMap::new();
        for row in &self.rows[from..] {
            let (path, key) = (row.path.trim_start_matches('/'), row.key.as_str());
            if row.value.is_none() {
                *deletions.entry((path, key)).or_default() += 1;
            }
            let twice = by_ver.insert((path, key, &row.ver), row);
            ensure!(twice.is_none(), "told twice: {row:?}");
        }
        // A read may show what another round has written.
        let known: BTreeSet<(&str, &str)> =
            self.rows.iter().map(|row| (row.key.as_str(), row.ver.as_str())).collect();
        for (path, key, ver) in &told.seen {
            let is_here = known.contains(&(key.as_str(), ver.as_str()));
            ensure!(is_here, "a read showed {path} {key} {ver}, which is gone");
        }
        let mut bases: BTreeMap<(&str, &str, &str), &Acknowledged> = BTreeMap::new();
        for write in &told.acknowledged {
            let (path, key) = (write.path.as_str(), write.key.as_str());
            let Some(ver) = &write.ver else {
                *deletions.entry((path, key)).or_default() -= 1;
                continue;
            };
            let row = by_ver.remove(&(path, key, ver.as_str()));
            let row = row.with_context(|| format!("acknowledged and missing: {write:?}"))?;
            ensure!(row.value == write.value, "{write:?} is kept as {row:?}");
            if let Some(base) = &write.based_on {
                let rival = bases.insert((path, key, base.as_str()), write);
                ensure!(rival.is_none(), "two writers won {base}: {write:?} and {rival:?}");
                let follows = Ver::parse(ver)?.generation == Ver::parse(base)?.generation + 1;
                ensure!(follows, "{write:?} does not follow what it is based on");
            }
        }
        let mut unanswered: BTreeMap<(&str, &str), i64> = BTreeMap::new();
        for (path, key) in &told.unanswered {
            *unanswered.entry((path, key)).or_default() += 1;
        }
        for row in by_ver.values().filter(|row| row.value.is_some()) {
            let left = unanswered.entry((row.path.trim_start_matches('/'), &row.key)).or_default();
            *left -= 1;
            ensure!(*left >= 0, "nobody wrote {row:?}");
        }
        for ((path, key), more) in deletions {
            ensure!(more >= 0, "{path} {key}: {more} acknowledged deletions are missing");
            let left = unanswered.entry((path, key)).or_default();
            *left -= more;
            ensure!(*left >= 0, "{path} {key}: nobody deleted it");
        }
        Ok(())
    }

    /// Reads, listings and series of paths say what the feed says.
    pub(super) fn check_reads(&self, client: &mut Client, paths: &[&str]) -> Result<()> {
        let newest = self.newest();
        for path in paths {
            let of_path = format!("/{path}");
            let mut live = Vec::new();
            for ((_, key), row) in newest.iter().filter(|((p, _), _)| *p == of_path) {
                let answer = client.get(&format!("/_data/{path}?k={key}"))?;
                match (&row.value, answer.ok()) {
                    (None, None) => {
                        ensure!(answer.word() == "not_found", "{answer:?}");
                    }
                    (Some(value), Some(v)) => {
                        live.push(*key);
                        let mut expected = value.clone();
                        expected["_ver_"] = row.ver.clone().into();
                        ensure!(*v == expected, "{path} {key} shows {v} for {expected}");
                    }
                    _ => bail!("{path} {key} is {row:?}, and shows {answer:?}"),
                }
            }
            let keys = client.get(&format!("/_data/{path}"))?;
            ensure!(keys.ok() == Some(&live.clone().into()), "{path} lists {keys:?} for {live:?}");
            self.check_path_series(client, path)?;
        }
        Ok(())
    }

    /// The time series of a path, deletions included, against the feed.
    fn check_path_series(&self, client: &mut Client, path: &str) -> Result<()> {
        let answer = client.get(&format!("/_data/{path}?time_series=1&deletions=1"))?;
        let rows = answer.ok().and_then(Value::as_array).context("no series")?;
        let of_path = format!("/{path}");
        let mut expected: BTreeMap<&str, Vec<&Row>> = BTreeMap::new();
        for row in self.rows.iter().rev().filter(|row| row.path == of_path) {
            expected.entry(&row.key).or_default().push(row);
        }
        let mut expected: Vec<&Row> = expected.into_values().flatten().collect();
        // The newest of all keys first; as text, stamps sort as they are.
        expected.sort_by_key(|row| std::cmp::Reverse(row.ver.split_once('-').map(|(_, at)| at)));
        ensure!(
            rows.len() == expected.len(),
            "{path}: {} versions in the series, {} in the feed",
            rows.len(),
            expected.len()
        );
        for (row, expected) in rows.iter().zip(expected) {
            let value = expected.value.clone().unwrap_or(Value::Null);
            let second = Ver::parse(&expected.ver)?.micros / 1_000_000;
            let is_so = row[0] == second && row[2] == value && row[3] == expected.key;
            ensure!(is_so, "{path}: the series has {row} for {expected:?}");
        }
        Ok(())
    }
}
