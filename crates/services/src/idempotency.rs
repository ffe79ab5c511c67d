//! `Idempotency-Key`: a request that is sent again is answered as the first one was, and not carried
//! out again.
//!
//! The answer of a success is kept for a day, sealed, as a row of the account's bucket; a refusal has
//! changed nothing and is decided anew. An answer that the store does not take, after it took what
//! the request wrote, is kept in memory, within bounds. A neuron that dies between carrying out a
//! request and keeping its answer will carry it out again.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use aws_lc_rs::digest::{Context, SHA256};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use kv4::store::{Event, Listener, StoreError};
use kv4::write::{Condition, Op, Write};
use kv4::{Bucket, Node};
use serde::{Deserialize, Serialize};
use wire::envelope::Fault;
use wire::errors::Code;
use wire::json::Json;
use wire::names::{Key, Path};

use crate::logs::Level;
use crate::principal::{Caller, Role};
use crate::{Answer, Services, ending, layer, store_fault};

pub(crate) const LAYER: &str = "*idem";
const SEAL_PURPOSE: &str = "idempotent answer";
/// How long an answer is kept, in seconds.
const KEPT_S: u64 = 86_400;
/// Longest key, in bytes.
const KEY_BYTES_MAX: usize = 255;
/// Requests with a key that are under way at a time.
const UNDER_WAY_MAX: usize = 10_000;
/// Answers kept in memory because the store did not take them, and the longest of them in bytes;
/// what goes beyond is lost, and its request is carried out again when it is sent again.
const UNKEPT_MAX: usize = 1_000;
const UNKEPT_BYTES_MAX: usize = 16 << 10;

/// What the store does not know of requests with a key.
#[derive(Debug, Default)]
pub struct Idempotent {
    state: Mutex<State>,
    /// Requests that were refused since too many were under way.
    pub(crate) refused: AtomicU64,
    /// Answers that neither the store took nor memory had room for.
    pub(crate) lost: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    under_way: HashSet<(Bucket, Key)>,
    /// Answers that the store did not take.
    unkept: HashMap<(Bucket, Key), Row>,
}

impl Idempotent {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Listener for Idempotent {
    /// The next owner of a bucket's name is not given its answers.
    fn committed(&self, events: &[Event]) {
        for event in events {
            if let Event::Dropped(gone) = event {
                self.state().unkept.retain(|(bucket, _), _| !bucket.is_within(gone));
            }
        }
    }
}

/// What to do with a request that has a key.
#[derive(Debug)]
pub enum Begun<'a> {
    /// It was done before; this was the answer.
    Done(Answer),
    /// It is new: carry it out, then finish this with its answer.
    New(Guard<'a>),
}

/// The right to carry out the request of one key.
#[derive(Debug)]
pub struct Guard<'a> {
    services: &'a Services,
    bucket: Bucket,
    key: Key,
    fingerprint: String,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
struct Row {
    fingerprint: String,
    /// The answer's `v`, sealed: it may show a secret that is shown once.
    answer: String,
    ver: Option<String>,
    no_store: bool,
    until_s: u64,
}

/// Looks a key up, of those that the caller himself has used: an admin who is named as his account
/// is not its owner. `parts` are what makes two requests the same: method, path, query, conditions,
/// body.
///
/// # Errors
/// `idempotency_conflict` when the key was used for another request, `locked` while that is under
/// way, `bad_request` for a key that is empty or too long.
pub async fn begin<'a>(
    services: &'a Services,
    caller: &Caller,
    key: &str,
    parts: &[&[u8]],
) -> Result<Begun<'a>, Fault> {
    if key.is_empty() || key.len() > KEY_BYTES_MAX {
        return Err(Fault::with(
            Code::BadRequest,
            format!("an Idempotency-Key has 1 to {KEY_BYTES_MAX} bytes"),
        ));
    }
    let fingerprint = hash(parts);
    let role: &[u8] = match &caller.role {
        Role::Owner => b"owner",
        Role::Admin => b"admin",
        Role::ParentAdmin => b"parent's admin",
        Role::User(_) => b"user",
    };
    let key = hash(&[role, caller.who.as_bytes(), key.as_bytes()]);
    let key = Key::parse(&key).expect("base64 is a legal key");
    let bucket = caller.bucket.clone();
    {
        let mut state = services.idempotent.state();
        if state.under_way.len() >= UNDER_WAY_MAX {
            services.idempotent.refused.fetch_add(1, Ordering::Relaxed);
            return Err(Code::Overloaded.into());
        }
        if !state.under_way.insert((bucket.clone(), key.clone())) {
            return Err(Fault::with(Code::Locked, "the first request of this key is under way"));
        }
    }
    let guard = Guard { services, bucket, key, fingerprint };
    let Some(row) = guard.kept().await? else { return Ok(Begun::New(guard)) };
    if row.fingerprint != guard.fingerprint {
        return Err(Code::IdempotencyConflict.into());
    }
    let opened = services.sealer.open(SEAL_PURPOSE, &row.answer);
    let v = opened.and_then(|bytes| String::from_utf8(bytes).ok()).ok_or_else(|| {
        Fault::with(Code::Internal, "the kept answer is sealed with another cluster key")
    })?;
    let ver = row.ver.and_then(|ver| ver.parse().ok());
    Ok(Begun::Done(Answer { v, ver, no_store: row.no_store }))
}

impl Guard<'_> {
    /// The answer that is still kept. It ends within [`KEPT_S`], which is today or tomorrow.
    async fn kept(&self) -> Result<Option<Row>, Fault> {
        let now_s = self.services.now_s();
        let at = (self.bucket.clone(), self.key.clone());
        let unkept = self.services.idempotent.state().unkept.get(&at).cloned();
        if let Some(row) = unkept.filter(|row| row.until_s > now_s) {
            return Ok(Some(row));
        }
        for end_s in [now_s + KEPT_S, now_s] {
            let node = node(&self.bucket, end_s);
            let head = self.services.kv.get(&node, &self.key).await.map_err(store_fault)?;
            let row = head.and_then(|head| head.value.read::<Row>().ok());
            if let Some(row) = row.filter(|row| row.until_s > now_s) {
                return Ok(Some(row));
            }
        }
        Ok(None)
    }

    /// Keeps the answer of a request that was carried out: in memory when the store does not take
    /// it, since the request is done all the same.
    pub async fn finish(self, answer: &Answer) {
        let services = self.services;
        let row = Row {
            fingerprint: self.fingerprint.clone(),
            answer: services.sealer.seal(SEAL_PURPOSE, answer.v.as_bytes(), &*services.rng),
            ver: answer.ver.map(|ver| ver.to_string()),
            no_store: answer.no_store,
            until_s: services.now_s() + KEPT_S,
        };
        let Err(fault) = self.keep(&row).await else { return };
        services.logs.note(&Bucket::sys(), Level::Warn, || {
            let why = fault.detail.as_deref().unwrap_or(fault.code.as_str());
            format!("the answer to an idempotency key of {} was not stored: {why}", self.bucket)
        });
        let lost = &services.idempotent.lost;
        if row.answer.len() > UNKEPT_BYTES_MAX {
            lost.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let mut state = services.idempotent.state();
        if state.unkept.len() >= UNKEPT_MAX {
            let now_s = services.now_s();
            state.unkept.retain(|_, row| row.until_s > now_s);
        }
        if state.unkept.len() < UNKEPT_MAX {
            state.unkept.insert((self.bucket.clone(), self.key.clone()), row);
        } else {
            lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    async fn keep(&self, row: &Row) -> Result<(), Fault> {
        let services = self.services;
        let value =
            serde_json::to_value(row).map_err(|e| Fault::with(Code::Internal, e.to_string()))?;
        let write = Write {
            entry: node(&self.bucket, row.until_s).entry(self.key.clone()),
            op: Op::Put { value: Json::from(value), keys: Default::default() },
            condition: Condition::Any,
            who: "$sys".into(),
            stamp: services.stamp(),
        };
        services.kv.write(write).await.map_err(crate::write_fault)?;
        Ok(())
    }
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        let mut state = self.services.idempotent.state();
        state.under_way.remove(&(self.bucket.clone(), self.key.clone()));
    }
}

/// Lets go of answers that were kept long enough; answers how many went.
pub(crate) async fn forget_old(services: &Services, bucket: &Bucket) -> Result<u64, StoreError> {
    ending::forget(services, bucket, &layer(LAYER), &Path::root(), 0).await
}

/// The node of answers that are kept until a day.
fn node(bucket: &Bucket, end_s: u64) -> Node {
    ending::node(bucket, &layer(LAYER), &Path::root(), end_s / ending::DAY_S)
}

fn hash(parts: &[&[u8]]) -> String {
    let mut context = Context::new(&SHA256);
    for part in parts {
        context.update(&(part.len() as u64).to_be_bytes());
        context.update(part);
    }
    URL_SAFE_NO_PAD.encode(context.finish())
}
