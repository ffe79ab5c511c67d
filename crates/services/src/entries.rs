//! The verbs that every durable service shares: read, list, put, delete, series
//! (`spec/xirsys.md` §1.5, §3).

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kv4::store::{SeriesQuery, StoreError};
use kv4::version::{Head, SecondaryKeys, Version};
use kv4::write::{Condition, KeyChange, Op, Write, Written};
use kv4::{Bucket, Entry, Node, Ver};
use wire::envelope::Fault;
use wire::errors::Code;
use wire::json::{Json, push_string};
use wire::names::{Key, Layer};
use wire::timegroup::TimeGroup;

use crate::access::ERASE;
use crate::precondition::Precondition;
use crate::{Answer, Call, Services, accounts, store_fault, write_fault};

/// Most rows in one answer of a listing or a series; `limit` asks for fewer.
pub const ROWS_MAX: usize = 100_000;
/// Values of a node that is too large to be held in memory, in one answer.
const PAGE_MAX: usize = 1_000;
/// Rules, and settings, that an account may have.
const RULES_MAX: usize = 10_000;
/// Entries that one transaction deletes.
const DELETE_AT_ONCE: usize = 500;
/// How long a read with `at` waits for its version.
const AT_DEADLINE: Duration = Duration::from_secs(5);
/// Reads of one account that wait so at a time.
const AT_WAITING_MAX: usize = 256;
/// Names of the secondary keys, in the order of [`SecondaryKeys`].
const SECONDARY: [&str; 3] = ["k2", "k3", "k4"];

/// The node that a call addresses in a layer.
pub fn node(call: &Call<'_>, layer: Layer) -> Node {
    Node::new(call.caller.bucket.clone(), layer, call.path.clone())
}

/// `GET`: one value, a series, or a listing.
///
/// # Errors
/// `not_found` for a key that is not there; `bad_request` for a parameter that cannot be read.
pub async fn get(services: &Services, call: &Call<'_>, node: &Node) -> Result<Answer, Fault> {
    if call.params.flag("time_series") {
        return series(services, call, node).await;
    }
    let shape = call.params.text("as");
    match find(services, call, node).await? {
        Found::Entry(head) => Ok(match shape.as_deref() {
            Some("datum") => {
                let mut v = String::new();
                push_datum(&mut v, node, &head);
                Answer { v, ver: Some(head.ver), no_store: false }
            }
            _ => show(&node.layer, &head),
        }),
        Found::Nothing => Err(Fault::new(Code::NotFound)),
        Found::NotAsked => list(services, call, node, shape.as_deref()).await,
    }
}

/// What the keys of a call address.
pub enum Found {
    Entry(Arc<Head>),
    Nothing,
    /// The call names no key.
    NotAsked,
}

impl std::fmt::Debug for Found {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Found::Entry(_) => "Entry(…)",
            Found::Nothing => "Nothing",
            Found::NotAsked => "NotAsked",
        })
    }
}

/// Finds the entry that a call addresses by `k`, `k2`, `k3` or `k4`.
///
/// # Errors
/// `bad_name` for a key that cannot exist.
pub async fn find(services: &Services, call: &Call<'_>, node: &Node) -> Result<Found, Fault> {
    let found = if let Some(key) = key(call)? {
        services.kv.get(node, &key).await
    } else if let Some((nth, key)) = secondary_key(call)? {
        services.kv.get_by(node, nth, &key).await
    } else {
        return Ok(Found::NotAsked);
    };
    Ok(found.map_err(store_fault)?.map_or(Found::Nothing, Found::Entry))
}

/// The keys or entries of a node, those after `after` where a call names it, at most `limit`.
///
/// # Errors
/// `bad_request` for a shape that there is not, `too_large` for more than [`ROWS_MAX`] rows when no
/// page was asked for; the store's.
pub(crate) async fn list(
    services: &Services,
    call: &Call<'_>,
    node: &Node,
    shape: Option<&str>,
) -> Result<Answer, Fault> {
    let after = call.params.text("after").filter(|text| !text.is_empty());
    let after = after.as_deref().map(Key::parse).transpose()?;
    let asks_page = call.params.text("limit").is_some();
    // One row more tells whether there are more than may be.
    let limit = if asks_page { limit(call)? } else { ROWS_MAX + 1 };
    let is_whole = |rows: usize| match rows > ROWS_MAX {
        true => Err(store_fault(StoreError::TooLarge)),
        false => Ok(()),
    };
    match shape {
        Some("values" | "datum") => {
            let heads = match services.kv.heads(node).await {
                Err(StoreError::TooLarge) if asks_page => {
                    services.kv.page(node, after.as_ref(), limit.min(PAGE_MAX)).await
                }
                heads => heads,
            };
            let heads = heads.map_err(store_fault)?;
            let is_after = |head: &&Arc<Head>| after.as_ref().is_none_or(|key| head.key > *key);
            let heads: Vec<_> = heads.iter().filter(is_after).take(limit).collect();
            is_whole(heads.len())?;
            Ok(Answer::list(heads, |v, head| match shape {
                Some("datum") => push_datum(v, node, head),
                _ => accounts::shown(&node.layer, &head.value).push_with(
                    v,
                    "_ver_",
                    &head.ver.to_string(),
                ),
            }))
        }
        Some("keys") | None => {
            let keys = services.kv.keys_after(node, after.as_ref(), limit).await;
            let keys = keys.map_err(store_fault)?;
            is_whole(keys.len())?;
            Ok(Answer::list(&keys, |v, key| push_string(v, key.as_str())))
        }
        Some(other) => {
            let detail = format!("`as` is keys, values or datum, not `{other}`");
            Err(Fault::with(Code::BadRequest, detail))
        }
    }
}

async fn series(services: &Services, call: &Call<'_>, node: &Node) -> Result<Answer, Fault> {
    let mut key = key(call)?;
    if key.is_none()
        && let Some((nth, secondary)) = secondary_key(call)?
    {
        let head = services.kv.get_by(node, nth, &secondary).await.map_err(store_fault)?;
        key = Some(head.ok_or(Code::NotFound)?.key.clone());
    }
    let (from_micros, to_micros) = match span(call)? {
        Some((first, last)) => (first.first_micros(), last.last_micros()),
        None => (0, u64::MAX),
    };
    let limit = limit(call)?;
    // The store answers key by key; the newest of all keys are those that are asked for.
    let of_store = if key.is_some() { limit } else { ROWS_MAX + 1 };
    let query = SeriesQuery {
        node: node.clone(),
        key: key.clone(),
        from_micros,
        to_micros,
        limit: of_store,
        with_deletions: call.params.flag("deletions"),
    };
    let mut rows = services.kv.series(&query).await.map_err(store_fault)?;
    if key.is_none() {
        if rows.len() > ROWS_MAX {
            return Err(store_fault(StoreError::TooLarge));
        }
        rows.sort_by_key(|(_, version)| std::cmp::Reverse(version.ver.stamp));
        rows.truncate(limit);
    }
    Ok(Answer::list(&rows, |v, (row_key, version)| {
        let deleted = || Cow::Owned(Json::null());
        let value = version.value.as_ref();
        let value = value.map_or_else(deleted, |value| accounts::shown(&node.layer, value));
        v.push('[');
        v.push_str(&version.ver.stamp.unix_s().to_string());
        v.push(',');
        push_string(v, &version.who);
        v.push(',');
        v.push_str(value.as_str());
        if key.is_none() {
            v.push(',');
            push_string(v, row_key.as_str());
        }
        v.push(']');
    }))
}

/// The span of `gs` and `ge`: the groups at its ends. A `ge` left out is `gs` itself, so that a
/// single group is its whole span.
///
/// # Errors
/// `bad_request` naming the part that is wrong.
pub fn span(call: &Call<'_>) -> Result<Option<(TimeGroup, TimeGroup)>, Fault> {
    let group = |name| {
        call.params
            .text(name)
            .filter(|text| !text.is_empty())
            .map(|text| TimeGroup::parse(&text))
            .transpose()
            .map_err(|error| Fault::with(Code::BadRequest, format!("`{name}`: {error}")))
    };
    Ok(match (group("gs")?, group("ge")?) {
        (Some(first), Some(last)) => Some((first, last)),
        (Some(only), None) => Some((only, only)),
        (None, Some(last)) => Some((TimeGroup::at(0, last.depth()), last)),
        (None, None) => None,
    })
}

/// Refuses one more rule or setting than an account may have: all of them are looked at with every
/// request, and compiled anew when one changes.
///
/// # Errors
/// `not_allowed`; the store's.
pub(crate) async fn has_room(
    services: &Services,
    node: &Node,
    key: &Key,
    held: usize,
) -> Result<(), Fault> {
    if held < RULES_MAX || services.kv.get(node, key).await.map_err(store_fault)?.is_some() {
        return Ok(());
    }
    Err(Fault::with(Code::NotAllowed, format!("an account has at most {RULES_MAX} of these")))
}

/// What a put says beside its value.
#[derive(Debug)]
pub struct Put {
    pub key: Key,
    pub value: Json,
}

/// `PUT` and `POST` of an entry as they are, with the locking of `spec/xirsys.md` §1.5.
///
/// # Errors
/// `bad_name`, `value_missing`, `_ver_missing`, `version_conflict`, `key_exists`, or the store's.
pub async fn put(services: &Services, call: &Call<'_>, node: &Node) -> Result<Answer, Fault> {
    let key = key(call)?.ok_or_else(|| Fault::with(Code::BadName, "the body needs `k`"))?;
    let value = call.params.json("v").ok_or(Code::ValueMissing)?;
    put_value(services, call, node, Put { key, value }).await
}

/// The same for a key and value that a service has settled.
///
/// # Errors
/// As [`put`].
pub async fn put_value(
    services: &Services,
    call: &Call<'_>,
    node: &Node,
    put: Put,
) -> Result<Answer, Fault> {
    let (value, precondition) = value_and_precondition(call, put.value)?;
    let condition = condition(services, call, &node.entry(put.key.clone()), &precondition).await?;
    let write = Write {
        entry: node.entry(put.key),
        op: Op::Put { value, keys: key_changes(call)? },
        condition,
        who: call.caller.who.clone(),
        stamp: services.stamp(),
    };
    let written = services.kv.write(write).await.map_err(write_fault)?;
    Ok(show_written(&node.layer, &written))
}

/// What a call says of the version that it is about, in its value too, and the value without that.
pub(crate) fn value_and_precondition(
    call: &Call<'_>,
    value: Json,
) -> Result<(Json, Precondition), Fault> {
    let outside = precondition(call)?;
    // Its members are looked at only where one may be it, or may be no text: as it stands, or escaped.
    let may_have = |text: &str| text.contains("_ver_") || text.contains("\\u");
    if !value.is_object() || !may_have(value.as_str()) {
        return Ok((value, outside));
    }
    let mut members = value.members().ok_or_else(|| {
        Fault::with(Code::BadRequest, "a name among the members of `v` is no Unicode text")
    })?;
    Ok(match members.remove("_ver_") {
        None => (value, outside),
        Some(ver) => (members.to_json(), outside.and(Precondition::of_ver(Some(&ver))?)?),
    })
}

/// What a call says of the version that it is about, outside its value.
pub(crate) fn precondition(call: &Call<'_>) -> Result<Precondition, Fault> {
    call.params.all("_ver_").try_fold(call.precondition.clone(), |said, ver| {
        said.and(Precondition::of_ver(Some(&ver))?)
    })
}

async fn condition(
    services: &Services,
    call: &Call<'_>,
    entry: &Entry,
    precondition: &Precondition,
) -> Result<Condition, Fault> {
    match precondition {
        Precondition::Unsaid => {
            let bucket = &call.caller.bucket;
            let settings = services.settings.of(&services.kv, bucket).await.map_err(store_fault)?;
            let strict = settings.at(&entry.node.path, "strict").unwrap_or(false);
            Ok(if strict { Condition::AbsentOrVerMissing } else { Condition::Any })
        }
        Precondition::OneOf(vers) if vers.len() > 1 => {
            let live = services.kv.get(&entry.node, &entry.key).await.map_err(store_fault)?;
            precondition.condition(live.map(|head| head.ver))
        }
        said => said.condition(None),
    }
}

/// `DELETE`: one entry, or all of a path; with `erase=1` the whole series of one entry.
///
/// # Errors
/// `not_found` for a key that is not there; `version_conflict` for a stale `_ver_`.
pub async fn delete(services: &Services, call: &Call<'_>, node: &Node) -> Result<Answer, Fault> {
    let precondition = precondition(call)?;
    if call.params.flag(ERASE) {
        precondition.refuse("`erase`")?;
        let key = match find(services, call, node).await? {
            Found::Entry(head) => head.key.clone(),
            _ => key(call)?.ok_or_else(|| Fault::with(Code::BadName, "`erase` needs `k`"))?,
        };
        let erased = services.kv.erase(&node.entry(key)).await.map_err(store_fault)?;
        return if erased { Ok(Answer::number(1)) } else { Err(Code::NotFound.into()) };
    }
    match find(services, call, node).await? {
        Found::Nothing => Err(Code::NotFound.into()),
        Found::Entry(head) => {
            let condition = precondition.condition(Some(head.ver))?;
            let write = deletion(services, call, node.entry(head.key.clone()), condition);
            services.kv.write(write).await.map_err(write_fault)?;
            Ok(Answer::number(1))
        }
        Found::NotAsked if ["k", "k2", "k3", "k4"].iter().any(|name| call.params.has(name)) => {
            Err(no_key())
        }
        Found::NotAsked => {
            precondition.refuse("a deletion of a path")?;
            let keys = services.kv.keys(node).await.map_err(store_fault)?;
            Ok(Answer::number(delete_keys(services, call, node, &keys).await?))
        }
    }
}

/// Refuses a deletion by a `k` that says nothing: it may be a variable that its script forgot to set.
pub(crate) fn no_key() -> Fault {
    Fault::with(Code::BadName, "a key is named that is none; leave it out for all keys")
}

/// Deletes keys of a node; answers how many were live.
///
/// # Errors
/// The store's; some may be deleted by then.
pub async fn delete_keys(
    services: &Services,
    call: &Call<'_>,
    node: &Node,
    keys: &[Key],
) -> Result<u64, Fault> {
    let entries: Vec<Entry> = keys.iter().map(|key| node.entry(key.clone())).collect();
    delete_entries(services, call, &entries).await
}

/// Deletes entries of any nodes, some at a time, so that others' writes come in between; answers how
/// many were live.
///
/// # Errors
/// The store's; some may be deleted by then.
pub async fn delete_entries(
    services: &Services,
    call: &Call<'_>,
    entries: &[Entry],
) -> Result<u64, Fault> {
    let mut deleted = 0;
    for some in entries.chunks(DELETE_AT_ONCE) {
        let mut writes = Vec::with_capacity(some.len());
        for entry in some {
            writes.push(deletion(services, call, entry.clone(), Condition::Any));
        }
        for answer in services.kv.write_all(writes).await {
            match answer {
                Ok(_) => deleted += 1,
                Err(kv4::write::WriteError::Missing) => {}
                Err(error) => return Err(write_fault(error)),
            }
        }
    }
    Ok(deleted)
}

fn deletion(services: &Services, call: &Call<'_>, entry: Entry, condition: Condition) -> Write {
    Write {
        entry,
        op: Op::Delete,
        condition,
        who: call.caller.who.clone(),
        stamp: services.stamp(),
    }
}

/// `k` of a call; an empty one counts as left out.
///
/// # Errors
/// `bad_name`.
pub fn key(call: &Call<'_>) -> Result<Option<Key>, Fault> {
    let Some(text) = call.params.text("k").filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    Ok(Some(Key::parse(&text)?))
}

/// The first of `k2`, `k3`, `k4` that a call names, with its number.
fn secondary_key(call: &Call<'_>) -> Result<Option<(u8, Key)>, Fault> {
    for (nth, name) in (2u8..).zip(SECONDARY) {
        if let Some(text) = call.params.text(name).filter(|text| !text.is_empty()) {
            return Ok(Some((nth, Key::parse(&text)?)));
        }
    }
    Ok(None)
}

fn key_changes(call: &Call<'_>) -> Result<[KeyChange; 3], Fault> {
    let mut changes = [KeyChange::Keep, KeyChange::Keep, KeyChange::Keep];
    for (change, name) in changes.iter_mut().zip(SECONDARY) {
        *change = match call.params.json(name) {
            None => KeyChange::Keep,
            Some(value) if value.is_null() => KeyChange::Clear,
            Some(_) => {
                let text = call.params.text(name).unwrap_or_default();
                let key = Key::parse(&text)
                    .map_err(|error| Fault::with(error.code(), format!("`{name}`: {error}")))?;
                KeyChange::Set(key)
            }
        };
    }
    Ok(changes)
}

/// `limit` of a call, at most [`ROWS_MAX`].
fn limit(call: &Call<'_>) -> Result<usize, Fault> {
    match call.params.text("limit") {
        None => Ok(ROWS_MAX),
        Some(text) => text
            .parse::<usize>()
            .map(|limit| limit.min(ROWS_MAX))
            .map_err(|_| Fault::with(Code::BadRequest, format!("`limit` is not a number: {text}"))),
    }
}

/// How many reads wait for something, by the bucket of who pays for them.
#[derive(Debug)]
pub(crate) struct Awaiting {
    /// Of one account.
    max: usize,
    counts: Mutex<HashMap<Bucket, usize>>,
    pub(crate) refused: AtomicU64,
}

/// A read that waits, until this is dropped.
pub(crate) struct Awaits<'a> {
    awaiting: &'a Awaiting,
    bucket: &'a Bucket,
}

impl Default for Awaiting {
    /// For those who wait for a version.
    fn default() -> Awaiting {
        Awaiting::new(AT_WAITING_MAX)
    }
}

impl Awaiting {
    pub(crate) fn new(max: usize) -> Awaiting {
        Awaiting { max, counts: Mutex::default(), refused: AtomicU64::new(0) }
    }

    pub(crate) fn begin<'a>(&'a self, bucket: &'a Bucket) -> Option<Awaits<'a>> {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(bucket.clone()).or_default();
        if *count >= self.max {
            self.refused.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        *count += 1;
        Some(Awaits { awaiting: self, bucket })
    }
}

impl Drop for Awaits<'_> {
    fn drop(&mut self) {
        let mut counts = self.awaiting.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(self.bucket) {
            *count -= 1;
            if *count == 0 {
                counts.remove(self.bucket);
            }
        }
    }
}

/// `at=<_ver_>`: waits until this neuron's view has that version or a newer one.
pub(crate) async fn wait_for_version(
    services: &Services,
    call: &Call<'_>,
    node: &Node,
) -> Result<(), Fault> {
    let Some(text) = call.params.text("at") else { return Ok(()) };
    let ver: Ver = text
        .parse()
        .map_err(|_| Fault::with(Code::BadRequest, "`at` is not a `_ver_` of this system"))?;
    let key = key(call)?.ok_or_else(|| Fault::with(Code::BadName, "`at` needs `k`"))?;
    let Some(_awaits) = services.awaiting.begin(&call.caller.payer) else {
        let why = format!("{AT_WAITING_MAX} reads of this account wait for a version already");
        return Err(Fault::with(Code::Overloaded, why));
    };
    let reached = services.kv.reached(node, &key, ver);
    let deadline = services.clock.sleep(AT_DEADLINE);
    match crate::first_of(reached, deadline).await {
        Some(done) => done.map_err(store_fault),
        None => Err(Fault::with(
            Code::StoreUnavailable,
            "this neuron has not seen that version yet; try again",
        )),
    }
}

/// One entry as an answer: objects carry `_ver_`, other values come bare.
pub fn show(layer: &Layer, head: &Head) -> Answer {
    let mut v = String::with_capacity(head.value.as_str().len() + 48);
    let value = accounts::shown(layer, &head.value);
    if value.is_object() {
        value.push_with(&mut v, "_ver_", &head.ver.to_string());
    } else {
        v.push_str(value.as_str());
    }
    Answer { v, ver: Some(head.ver), no_store: false }
}

fn show_written(layer: &Layer, written: &Written) -> Answer {
    let Version { ver, value, .. } = &written.version;
    let value = value.clone().unwrap_or_else(Json::null);
    let mut v = String::new();
    accounts::shown(layer, &value).push_with(&mut v, "_ver_", &ver.to_string());
    Answer { v, ver: Some(*ver), no_store: false }
}

/// The record form of an entry (`as=datum`).
fn push_datum(v: &mut String, node: &Node, head: &Head) {
    let ver = head.ver.to_string();
    let text = |v: &mut String, name: &str, value: &str| {
        push_string(v, name);
        v.push(':');
        push_string(v, value);
        v.push(',');
    };
    v.push('{');
    text(v, "w", node.bucket.as_str());
    text(v, "k", head.key.as_str());
    for (name, key) in SECONDARY.iter().zip(&head.keys as &SecondaryKeys) {
        if let Some(key) = key {
            text(v, name, key.as_str());
        }
    }
    text(v, "l", node.layer.as_str());
    text(v, "p", node.path.as_str());
    text(v, "s", "c");
    text(v, "a", &head.who);
    text(v, "_id", &ver);
    text(v, "_rev", &ver);
    v.push_str("\"t\":");
    v.push_str(&head.ver.stamp.unix_s().to_string());
    v.push_str(",\"m\":{},\"v\":");
    v.push_str(accounts::shown(&node.layer, &head.value).as_str());
    v.push('}');
}

/// Refuses a method that a service does not have.
pub fn no_method(call: &Call<'_>) -> Fault {
    Fault::with(Code::MethodNotFound, format!("there is no {} here", call.method.as_str()))
}
