//! Simulated clients: each makes one request after another, drawn by chance, and checks every
//! answer against the model.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ::neuron::Neuron;
use ::neuron::requests::{Admission, Payer, Refused, Request};
use base64::Engine as _;
use serde_json::{Value, json};
use services::sessions::Session;

use crate::executor::Machine;
use crate::model::{Left, Model, Open, Place};
use crate::random::Random;

/// Keys that a client has for itself, and that all clients of a bucket share.
pub const OWN_KEYS: u64 = 3;
pub const SHARED_KEYS: u64 = 3;
pub const OWN_PATH: &str = "/own";
pub const SHARED_PATH: &str = "/shared";
/// Longest filling of a value; with it a shared path is often too large for a view.
const PAD_CHARS_MAX: u64 = 700;
const THINK_MAX: Duration = Duration::from_millis(100);

/// Who a client is.
#[derive(Clone, Debug)]
pub struct Who {
    pub number: u64,
    /// `ident:secret`.
    pub credentials: String,
    /// Whose data it is; names the bucket in the model.
    pub ident: &'static str,
    /// As versions and statistics name the writer.
    pub who: &'static str,
    pub is_owner: bool,
}

/// A connection of somebody to a neuron.
#[derive(Clone, Debug)]
pub struct Client {
    pub neuron: Neuron,
    pub who: Who,
    pub machine: Machine,
    pub model: Arc<Mutex<Model>>,
}

/// Lets everybody in at once.
pub(crate) struct Everybody;

impl Admission for Everybody {
    type Turn = ();

    async fn turn(&self, _: Payer, _: bool) -> Result<(), Refused> {
        Ok(())
    }
}

/// What came back.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub body: Value,
}

impl Answer {
    pub fn ok(&self) -> Option<&Value> {
        (self.body["s"] == "ok").then(|| &self.body["v"])
    }

    pub fn word(&self) -> &str {
        if self.body["s"] == "error" { self.body["v"].as_str().unwrap_or("") } else { "" }
    }

    /// The store could not do it, and has changed nothing.
    pub fn is_unavailable(&self) -> bool {
        self.word() == "store_unavailable" && self.status == 503
    }
}

impl Client {
    pub fn model(&self) -> MutexGuard<'_, Model> {
        self.model.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Checks something that needs no more than the answer.
    pub fn must(&self, kind: &'static str, holds: bool, say: impl FnOnce() -> String) {
        self.model().must(kind, holds, say);
    }

    pub fn place(&self, path: &str, key: &str) -> Place {
        (self.who.ident.to_owned(), path.to_owned(), key.to_owned())
    }

    pub async fn get(&self, target: &str) -> Answer {
        self.call("GET", target, "").await
    }

    pub async fn call(&self, method: &str, target: &str, body: &str) -> Answer {
        let basic = base64::engine::general_purpose::STANDARD.encode(&self.who.credentials);
        let authorization = format!("Basic {basic}");
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let last_byte = u8::try_from(self.who.number + 1).unwrap_or(u8::MAX);
        let request = Request {
            method,
            path,
            query,
            authorization: Some(&authorization),
            accept: None,
            origin: None,
            if_match: None,
            if_none_match: None,
            idempotency_key: None,
            opener: None,
            authority: "localhost",
            is_tls: false,
            address: IpAddr::V4(Ipv4Addr::new(192, 0, 2, last_byte)),
            session: &Session::default(),
            body: body.as_bytes(),
        };
        let is_put = method == "PUT" && path.starts_with("/_data");
        if is_put {
            self.model().puts.entry(self.who.who.to_owned()).or_default().begun += 1;
        }
        let response = self.neuron.request(&request, &Everybody).await;
        let response = response.expect("the path is one of the API");
        // What is refused before its caller is known is nobody's.
        if is_put && response.is_admitted {
            self.model().puts.entry(self.who.who.to_owned()).or_default().answered += 1;
        }
        let body = serde_json::from_str(&response.body);
        self.must("an answer is JSON", body.is_ok(), || response.body.clone());
        Answer { status: response.status, body: body.unwrap_or_default() }
    }

    /// Makes requests for ever.
    pub async fn work(self, mut random: Random) {
        let mut count = 0;
        loop {
            self.machine.pause(THINK_MAX).await;
            count += 1;
            let own = format!("own{}.{}", self.who.number, random.below(OWN_KEYS));
            let shared = format!("shared{}", random.below(SHARED_KEYS));
            let name = format!("{}.{}.{count}", self.who.number, self.machine.elapsed_micros());
            let pad = random.below(PAD_CHARS_MAX);
            match random.below(24) {
                0..=4 => self.put_own(&own, &name, pad, None).await,
                5 => self.put_own(&own, &name, pad, Some(true)).await,
                6 => self.put_own(&own, &name, pad, Some(false)).await,
                7..=8 => self.delete_own(&own).await,
                9 => self.erase_own(&own).await,
                10..=11 => self.read_own(&own).await,
                12 => self.list_own().await,
                13..=15 => self.put_shared(&shared, &name, pad, None).await,
                16..=19 => {
                    if let Some(ver) = self.read_shared(&shared).await {
                        self.put_shared(&shared, &name, pad, Some(ver)).await;
                    }
                }
                20..=21 => drop(self.read_shared(&shared).await),
                22 => self.follow(&mut random).await,
                _ => self.count_puts().await,
            }
        }
    }

    async fn put_own(&self, key: &str, name: &str, pad: u64, locked: Option<bool>) {
        let place = self.place(OWN_PATH, key);
        let newest = self.model().own.entry(place.clone()).or_default().newest_ver.clone();
        let mut body = json!({ "k": key, "v": value(name, pad) });
        let ver = match (locked, &newest) {
            (Some(true), Some(ver)) => Some(ver.clone()),
            // A version that never was: the generation is one ahead.
            (Some(false), Some(ver)) => {
                let (generation, stamp) = ver.split_once('-').unwrap_or(("0", ""));
                Some(format!("{}-{stamp}", generation.parse::<u64>().unwrap_or(0) + 1))
            }
            _ => None,
        };
        if let Some(ver) = &ver {
            body["_ver_"] = json!(ver);
        }
        self.open(&place, Open::Write(Some(name.to_owned())));
        let answer = self.call("PUT", &format!("/_data{OWN_PATH}"), &body.to_string()).await;
        let wrong = locked == Some(false) && ver.is_some();
        let mut model = self.model();
        let own = model.own.entry(place).or_default();
        own.open = None;
        match answer.ok().and_then(|v| v["_ver_"].as_str()) {
            Some(ver) if !wrong => {
                own.series.push(Some(name.to_owned()));
                own.newest_ver = Some(ver.to_owned());
                let expected = own.series.len() as u64;
                let generation =
                    crate::model::split_ver(ver).map_or(0, |(generation, _)| generation);
                model.must("a series has no gap", generation == expected, || {
                    format!("{ver} {expected}")
                });
            }
            _ => {
                let conflict = wrong && answer.word() == "version_conflict";
                let refused = conflict || answer.is_unavailable();
                model.must("an own put succeeds", refused, || format!("{body} {answer:?}"));
            }
        }
    }

    async fn delete_own(&self, key: &str) {
        let place = self.place(OWN_PATH, key);
        let is_live = self.is_live(&place);
        self.open(&place, Open::Write(None));
        let answer = self.call("DELETE", &format!("/_data{OWN_PATH}?k={key}"), "").await;
        let mut model = self.model();
        let own = model.own.entry(place).or_default();
        own.open = None;
        if answer.ok().is_some() {
            own.series.push(None);
            own.newest_ver = None;
            model.must("what is deleted was live", is_live, || format!("{key} {answer:?}"));
        } else {
            let refused = answer.is_unavailable() || (!is_live && answer.word() == "not_found");
            model.must("an own deletion succeeds", refused, || format!("{key} {answer:?}"));
        }
    }

    async fn erase_own(&self, key: &str) {
        let place = self.place(OWN_PATH, key);
        let was_there = !self.model().own.entry(place.clone()).or_default().series.is_empty();
        self.open(&place, Open::Erase);
        let answer = self.call("DELETE", &format!("/_data{OWN_PATH}?k={key}&erase=1"), "").await;
        let mut model = self.model();
        let own = model.own.entry(place).or_default();
        own.open = None;
        if answer.ok().is_some() {
            own.series.clear();
            own.newest_ver = None;
            let may = self.who.is_owner && was_there;
            model.must("an owner erases what was there", may, || format!("{key} {answer:?}"));
        } else {
            let refused = answer.is_unavailable()
                || (!self.who.is_owner && answer.word() == "not_allowed")
                || (!was_there && answer.word() == "not_found");
            model.must("an erasure succeeds", refused, || format!("{key} {answer:?}"));
        }
    }

    async fn read_own(&self, key: &str) {
        let place = self.place(OWN_PATH, key);
        let target = {
            let mut model = self.model();
            let newest = model.own.entry(place.clone()).or_default().newest_ver.clone();
            let at = newest.map(|ver| format!("&at={ver}")).unwrap_or_default();
            format!("/_data{OWN_PATH}?k={key}{at}")
        };
        let answer = self.get(&target).await;
        if answer.is_unavailable() {
            return;
        }
        let shown =
            answer.ok().map(|v| (v["name"].as_str().unwrap_or_default().to_owned(), v.clone()));
        let mut model = self.model();
        let own = model.own.entry(place).or_default();
        let newest = own.series.last().cloned().flatten();
        let ver = own.newest_ver.clone();
        let name = shown.as_ref().map(|(name, _)| name.clone());
        model.must("a client reads its own writes", name == newest, || {
            format!("{key} shows {answer:?} for {newest:?}")
        });
        if let Some((_, v)) = shown {
            model.must(
                "the version is the one told",
                v["_ver_"].as_str() == ver.as_deref(),
                || format!("{v} {ver:?}"),
            );
        }
    }

    async fn list_own(&self) {
        let answer = self.get(&format!("/_data{OWN_PATH}")).await;
        let Some(keys) = answer.ok().and_then(Value::as_array) else {
            return self.must("a listing", answer.is_unavailable(), || format!("{answer:?}"));
        };
        for nth in 0..OWN_KEYS {
            let key = format!("own{}.{nth}", self.who.number);
            let is_live = self.is_live(&self.place(OWN_PATH, &key));
            let is_listed = keys.iter().any(|listed| *listed == *key);
            self.must("a listing has what is live", is_live == is_listed, || {
                format!("{key} {is_live} {answer:?}")
            });
        }
    }

    async fn put_shared(&self, key: &str, name: &str, pad: u64, base: Option<String>) {
        let place = self.place(SHARED_PATH, key);
        let least = {
            let mut model = self.model();
            model.shared.entry(place.clone()).or_default().begun.insert(name.to_owned());
            model.least(&place)
        };
        let mut body = json!({ "k": key, "v": value(name, pad) });
        if let Some(base) = &base {
            body["_ver_"] = json!(base);
        }
        let answer = self.call("PUT", &format!("/_data{SHARED_PATH}"), &body.to_string()).await;
        match answer.ok().and_then(|v| v["_ver_"].as_str()) {
            Some(ver) => {
                let generation =
                    crate::model::split_ver(ver).map_or(0, |(generation, _)| generation);
                let mut model = self.model();
                model.must("a write is newer than what was before it", generation > least, || {
                    format!("{ver} after {least}")
                });
                model.won(&place, name, ver, base.as_deref());
            }
            None => {
                let conflict = base.is_some() && answer.word() == "version_conflict";
                let refused = conflict || answer.is_unavailable();
                self.must("a shared put succeeds", refused, || format!("{answer:?}"));
                // Refused is not written, and nothing that is not written may be read.
                let mut model = self.model();
                model.shared.entry(place).or_default().begun.remove(name);
            }
        }
    }

    async fn read_shared(&self, key: &str) -> Option<String> {
        let place = self.place(SHARED_PATH, key);
        let least = self.model().least(&place);
        let answer = self.get(&format!("/_data{SHARED_PATH}?k={key}")).await;
        let Some(v) = answer.ok() else {
            let may = answer.is_unavailable() || (least == 0 && answer.word() == "not_found");
            self.must("what was acknowledged is found", may, || format!("{key} {answer:?}"));
            return None;
        };
        self.model().shown(&place, least, v);
        v["_ver_"].as_str().map(str::to_owned)
    }

    /// Reads a piece of the feed, which begins where it was asked to and has no gap.
    async fn follow(&self, random: &mut Random) {
        let since = random.below(40);
        let answer = self.get(&format!("/_ds/?a=changes&since={since}&limit=9")).await;
        let Some(v) = answer.ok() else {
            return self.must("a feed", answer.is_unavailable(), || format!("{answer:?}"));
        };
        let changes = v["changes"].as_array().cloned().unwrap_or_default();
        let seqs: Vec<u64> = changes.iter().filter_map(|change| change["seq"].as_u64()).collect();
        let expected: Vec<u64> = (since + 1..).take(changes.len()).collect();
        let last = v["last_seq"].as_u64().unwrap_or(0);
        let is_whole = changes.len() as u64 == last.saturating_sub(since).min(9);
        self.must("a feed is dense", seqs == expected && is_whole, || {
            format!("{since}: {answer:?}")
        });
    }

    /// Asks how many puts were counted: none twice, and none lost that a flush has written.
    async fn count_puts(&self) {
        let who = self.who.who;
        let least = self.model().puts.entry(who.to_owned()).or_default().flushed;
        let answer = self.get(&format!("/_stats/data/PUT?l=api:3&k={who}")).await;
        let Some(v) = answer.ok() else {
            return self.must("statistics", answer.is_unavailable(), || format!("{answer:?}"));
        };
        let (count, sum) = (v["count"].as_u64().unwrap_or(0), v["sum"].as_u64().unwrap_or(0));
        let most = self.model().puts.entry(who.to_owned()).or_default().begun;
        self.must("no request is counted twice", count <= most && sum == count, || {
            format!("{who}: {count} of {most}")
        });
        self.must("no request that was flushed is lost", count >= least, || {
            format!("{who}: {count}, {least} were flushed")
        });
    }

    fn open(&self, place: &Place, open: Open) {
        self.model().own.entry(place.clone()).or_default().open = Some(open);
    }

    fn is_live(&self, place: &Place) -> bool {
        let mut model = self.model();
        let newest: Option<Left> =
            model.own.entry(place.clone()).or_default().series.last().cloned();
        newest.flatten().is_some()
    }
}

fn value(name: &str, pad: u64) -> Value {
    json!({ "name": name, "pad": "x".repeat(usize::try_from(pad).unwrap_or(0)) })
}
