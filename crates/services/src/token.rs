//! `_token`: what a user connects with, and taking it back (seed 002 "Token Service",
//! `spec/xirsys.md` §1.2, §3).
//!
//! A token is signed and verified without the store, unless it never expires or does not fit: then
//! it is a row, found by its hash. Keys are sealed rows of `$sys`; revocations are rows of the
//! account's bucket, by token id or by identity and path.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use aws_lc_rs::{digest, hmac};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use kv4::store::StoreError;
use kv4::write::{Condition, KeyChange, Op, Write, WriteError};
use kv4::{Bucket, Head, Node};
use serde::{Deserialize, Serialize};
use wire::envelope::Fault;
use wire::errors::Code;
use wire::frames::{Name, percent_encode};
use wire::json::Json;
use wire::names::{Ident, Key, Path};
use wire::token::{Claims, Grants, IDENTITY_BYTES_MAX};

use crate::{
    Answer, Call, Closing, Method, Services, access, ending, entries, layer, namespace, path,
    principal, store_fault, write_fault,
};

/// Revocations in an account's bucket; tokens kept as rows in that of `$sys`.
pub(crate) const LAYER: &str = "*token";
/// Signing keys, in the bucket of `$sys`.
pub(crate) const KEYS_LAYER: &str = "*keys";
const KEYS_PATH: &str = "/token";
const ROWS_PATH: &str = "/tokens";
const REVOKED_PATH: &str = "/revoked";
/// Keys of the rows of an account's tokens without an end, in its own bucket.
const ENDLESS_PATH: &str = "/endless";
/// Tokens without an end that an account may have.
const ENDLESS_MAX: u64 = 10_000;
/// Revocations of tokens whose end is known.
const REVOKED_UNTIL_PATH: &str = "/revoked-until";
const SEAL_PURPOSE: &str = "token key";
/// Lifetime of a token that names none, in seconds.
const EXPIRE_DEFAULT_S: u64 = 60;
/// Longest lifetime of a signed token, in seconds; old keys are kept as long.
const EXPIRE_MAX_S: u64 = 366 * 86_400;
/// How long after its socket went a token that has expired may connect again, in seconds: deployed
/// clients reconnect with the token they have (`spec/xirsys.md` §1.7).
const GRACE_S: u64 = 300;
/// How long after its token's last day a revocation is kept, in seconds: a clock that jumps ahead by
/// less, and is set right again, lets no revoked token in.
const KEPT_AFTER_S: u64 = 7 * 86_400;
/// How far ahead of this neuron's clock the one that made a token may be, in milliseconds.
const AHEAD_MS: u64 = 1000;
/// Connected tokens remembered for that.
const GRACES_MAX: usize = 200_000;
/// What a row token starts with; a compact one starts with `A`, its version.
const ROW_PREFIX: char = 't';
/// What ends the day in a row token that has an end.
const ROW_DAY_END: char = '.';
const MAC_BYTES: usize = 16;

/// The keys that sign tokens, by number; the greatest signs.
#[derive(Debug, Default)]
pub struct Keys(RwLock<HashMap<u8, hmac::Key>>);

impl Keys {
    fn newest(&self) -> Option<(u8, hmac::Key)> {
        let keys = self.0.read().unwrap_or_else(PoisonError::into_inner);
        keys.iter().max_by_key(|(id, _)| **id).map(|(id, key)| (*id, key.clone()))
    }

    fn verify(&self, id: u8, signed: &[u8], mac: &[u8]) -> bool {
        let keys = self.0.read().unwrap_or_else(PoisonError::into_inner);
        keys.get(&id).is_some_and(|key| {
            let tag = hmac::sign(key, signed);
            aws_lc_rs::constant_time::verify_slices_are_equal(&tag.as_ref()[..MAC_BYTES], mac)
                .is_ok()
        })
    }
}

/// The newest moment at which a token of this process begins to hold: one that was made before the
/// clock was set back is older than a revocation after that.
#[derive(Debug, Default)]
pub(crate) struct Moments(AtomicU64);

impl Moments {
    fn note(&self, ms: u64) -> u64 {
        self.0.fetch_max(ms, Ordering::Relaxed);
        ms
    }

    fn newest(&self, now_ms: u64) -> u64 {
        self.0.load(Ordering::Relaxed).max(now_ms)
    }

    /// A moment at which no token has begun to hold yet.
    pub(crate) fn after(&self, now_ms: u64) -> u64 {
        now_ms.max(self.0.load(Ordering::Relaxed) + 1)
    }
}

/// Tokens that are connected, or were a moment ago.
#[derive(Debug, Default)]
pub struct Graces {
    by_token: Mutex<HashMap<u64, Grace>>,
    /// Tokens that were connected and not remembered, for want of room.
    pub(crate) lost: AtomicU64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Grace {
    /// Sockets that are open with the token.
    open: usize,
    /// When the last one went, in seconds since 1970.
    gone_s: u64,
}

impl Graces {
    /// Notes that a socket was opened with a token.
    pub fn connected(&self, token: u64, now_s: u64) {
        let mut graces = self.by_token.lock().unwrap_or_else(PoisonError::into_inner);
        if graces.len() >= GRACES_MAX {
            graces.retain(|_, grace| grace.open > 0 || grace.gone_s + GRACE_S >= now_s);
        }
        if graces.len() < GRACES_MAX || graces.contains_key(&token) {
            graces.entry(token).or_default().open += 1;
        } else {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Notes that such a socket has gone.
    pub fn disconnected(&self, token: u64, now_s: u64) {
        let mut graces = self.by_token.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(grace) = graces.get_mut(&token) {
            grace.open = grace.open.saturating_sub(1);
            grace.gone_s = now_s;
        }
    }

    fn holds(&self, token: u64, now_s: u64) -> bool {
        let graces = self.by_token.lock().unwrap_or_else(PoisonError::into_inner);
        graces.get(&token).is_some_and(|grace| grace.open > 0 || grace.gone_s + GRACE_S >= now_s)
    }

    fn forget(&self, token: u64) {
        self.by_token.lock().unwrap_or_else(PoisonError::into_inner).remove(&token);
    }
}

/// A token that holds: what it says, and where.
#[derive(Clone, Debug)]
pub struct Verified {
    pub claims: Claims,
    pub bucket: Bucket,
}

/// The claims of a token that is kept as a row.
#[derive(Debug, Deserialize, Serialize)]
struct Row {
    id: String,
    account: String,
    sub: Option<String>,
    identity: String,
    path: Option<String>,
    grants: u16,
    not_before_ms: u64,
    expires_s: u64,
}

/// A revocation: of a user, of tokens made up to `not_before_ms`; of an id, whatever that says.
#[derive(Debug, Deserialize, Serialize)]
struct Revoked {
    not_before_ms: u64,
}

pub(crate) async fn call(services: &Services, call: &Call<'_>) -> Result<Answer, Fault> {
    match call.method {
        Method::Put | Method::Post => create(services, call).await,
        Method::Delete => revoke(services, call).await,
        Method::Get => Err(entries::no_method(call)),
    }
}

async fn create(services: &Services, call: &Call<'_>) -> Result<Answer, Fault> {
    let bucket = &call.caller.bucket;
    if !call.path.is_root() && namespace::resolve(services, bucket, &call.path).await?.is_none() {
        return Err(Code::NoNamespace.into());
    }
    let claims = claims(services, call).await?;
    let text = issue(services, &claims).await?;
    let v = match call.params.text("as").as_deref() {
        Some("values") => serde_json::json!({
            "token": text,
            "id": format!("{:016x}", claims.id),
            "k": claims.identity,
            "path": claims.path.as_ref().map(Path::as_str),
            "grants": claims.grants.names().collect::<Vec<_>>(),
            "expires_at": claims.expires_s,
        })
        .to_string(),
        _ => Json::string(&text).as_str().to_owned(),
    };
    Ok(Answer { v, ver: None, no_store: true })
}

async fn claims(services: &Services, call: &Call<'_>) -> Result<Claims, Fault> {
    let now_micros = services.clock.now_micros();
    let settings = services.settings.of(&services.kv, &call.caller.bucket).await;
    let set = settings.map_err(store_fault)?.at::<u64>(&call.path, "token_expire_max_s");
    let expire_max_s = set.unwrap_or(EXPIRE_MAX_S).min(EXPIRE_MAX_S);
    let expire_s = match call.params.text("expire").filter(|text| !text.is_empty()) {
        None => EXPIRE_DEFAULT_S.min(expire_max_s),
        Some(text) => text.parse::<u64>().map_err(|_| {
            Fault::with(Code::BadRequest, format!("`expire` is not a number of seconds: {text}"))
        })?,
    };
    if expire_s > expire_max_s || (expire_s == 0 && set.is_some()) {
        return Err(Fault::with(
            Code::BadRequest,
            format!("`expire` may be at most {expire_max_s} here"),
        ));
    }
    let identity = match call.params.text("k").filter(|name| !name.is_empty()) {
        None => URL_SAFE_NO_PAD.encode(services.random::<9>()),
        Some(name)
            if name.len() > IDENTITY_BYTES_MAX
                || name.chars().any(char::is_control)
                || Name::encode(&name).is_err() =>
        {
            return Err(Fault::with(
                Code::BadName,
                format!(
                    "`k` is too long ({IDENTITY_BYTES_MAX} bytes), or not a name that can join"
                ),
            ));
        }
        Some(name) => name.into_owned(),
    };
    let grants = match call.params.text("grants") {
        None => Grants::CHATTER,
        Some(text) => Grants::parse(&text).ok_or_else(|| {
            Fault::with(
                Code::BadRequest,
                "`grants` are publish, subscribe, send, watch, moderate and relay",
            )
        })?,
    };
    let (account, sub) = (&call.caller.account, call.caller.sub.as_ref());
    let bucket = &call.caller.bucket;
    let since_ms = since(services, account, sub, bucket, &identity, &call.path).await?;
    let since_ms = since_ms.ok_or(Code::Unauthorized)?;
    Ok(Claims {
        id: u64::from_be_bytes(services.random()),
        account: account.clone(),
        sub: sub.cloned(),
        identity,
        path: (!call.path.is_root()).then(|| call.path.clone()),
        grants,
        not_before_ms: services.moments.note(since_ms.max(now_micros / 1000)),
        expires_s: if expire_s == 0 { 0 } else { now_micros / 1_000_000 + expire_s },
        key_id: 0,
    })
}

/// The text of a token: signed, or kept as a row when it has no end or does not fit.
async fn issue(services: &Services, claims: &Claims) -> Result<String, Fault> {
    let (key_id, key) = services
        .keys
        .newest()
        .ok_or_else(|| Fault::with(Code::Internal, "there is no key to sign tokens with"))?;
    let claims = Claims { key_id, ..claims.clone() };
    if claims.expires_s != 0 {
        let mac = |signed: &[u8]| {
            let tag = hmac::sign(&key, signed);
            let mut mac = [0; MAC_BYTES];
            mac.copy_from_slice(&tag.as_ref()[..MAC_BYTES]);
            mac
        };
        if let Some(text) = claims.to_compact(mac) {
            return Ok(text);
        }
    }
    let random = URL_SAFE_NO_PAD.encode(services.random::<32>());
    // The day of its end is where a row is found.
    let text = match claims.expires_s {
        0 => format!("{ROW_PREFIX}{random}"),
        end_s => format!("{ROW_PREFIX}{}{ROW_DAY_END}{random}", end_s / ending::DAY_S),
    };
    let row = Row {
        id: format!("{:016x}", claims.id),
        account: claims.account.to_string(),
        sub: claims.sub.as_ref().map(Ident::to_string),
        identity: claims.identity.clone(),
        path: claims.path.as_ref().map(Path::to_string),
        grants: claims.grants.0,
        not_before_ms: claims.not_before_ms,
        expires_s: claims.expires_s,
    };
    if claims.expires_s == 0 {
        note_endless(services, &claims, &row_key(&text)).await?;
    }
    let value =
        serde_json::to_value(&row).map_err(|e| Fault::with(Code::Internal, e.to_string()))?;
    let write = Write {
        entry: row_node(&text).entry(row_key(&text)),
        op: Op::Put { value: Json::from(value), keys: Default::default() },
        condition: Condition::Absent,
        who: claims.account.as_str().into(),
        stamp: services.stamp(),
    };
    services.kv.write(write).await.map_err(write_fault)?;
    Ok(text)
}

/// Notes in the account's bucket that it has a row, which is to go with it.
async fn note_endless(services: &Services, claims: &Claims, key: &Key) -> Result<(), Fault> {
    let bucket = Bucket::account(&claims.account, claims.sub.as_ref()).ok_or(Code::Internal)?;
    let (layer, at) = (layer(LAYER), path(ENDLESS_PATH));
    let held = services.kv.paths(&bucket, &layer, &at).await.map_err(store_fault)?;
    if held.iter().any(|(_, held)| *held >= ENDLESS_MAX) {
        let why = format!("an account has at most {ENDLESS_MAX} tokens without an end");
        return Err(Fault::with(Code::NotAllowed, why));
    }
    let write = Write {
        entry: endless_node(&bucket).entry(key.clone()),
        op: Op::Put {
            value: Json::string(&claims.identity),
            keys: [KeyChange::Set(id_key(claims.id)), KeyChange::Keep, KeyChange::Keep],
        },
        condition: Condition::Any,
        who: claims.account.as_str().into(),
        stamp: services.stamp(),
    };
    services.kv.write(write).await.map_err(write_fault)?;
    Ok(())
}

fn endless_node(bucket: &Bucket) -> Node {
    Node::new(bucket.clone(), layer(LAYER), path(ENDLESS_PATH))
}

/// Lets go of the rows of revoked tokens without an end, and gives their places back.
async fn forget_noted(
    services: &Services,
    bucket: &Bucket,
    notes: impl IntoIterator<Item = Arc<Head>>,
) -> Result<(), Fault> {
    for note in notes {
        for node in [row_node_of_endless(), endless_node(bucket)] {
            services.kv.erase(&node.entry(note.key.clone())).await.map_err(store_fault)?;
        }
    }
    Ok(())
}

/// Lets go of the rows of a bucket's tokens without an end, before the bucket goes.
pub(crate) async fn forget_endless(services: &Services, bucket: &Bucket) -> Result<(), Fault> {
    let node = endless_node(bucket);
    let rows = row_node_of_endless();
    for key in services.kv.keys(&node).await.map_err(store_fault)? {
        services.kv.erase(&rows.entry(key)).await.map_err(store_fault)?;
    }
    Ok(())
}

/// Verifies a token for a new connection: signature, time, account, revocation.
///
/// # Errors
/// `unauthorized`, with what is wrong in the detail; the store's.
pub async fn verify(services: &Services, text: &str) -> Result<Verified, Fault> {
    let refuse = |why: &str| Fault::with(Code::Unauthorized, why);
    let claims = read(services, text).await?.ok_or_else(|| refuse("the token is not valid"))?;
    let now_s = services.now_s();
    let is_over = claims.expires_s != 0 && claims.expires_s <= now_s;
    if is_over && !services.graces.holds(claims.id, now_s) {
        return Err(refuse("the token has expired"));
    }
    let bucket = Bucket::account(&claims.account, claims.sub.as_ref())
        .ok_or_else(|| refuse("the token names no account"))?;
    let verified = Verified { claims, bucket };
    hold(services, &verified).await?;
    Ok(verified)
}

/// Whether what a verified token stands on still holds: its account, that it is not of a time to
/// come, and that it was not revoked.
async fn hold(services: &Services, verified: &Verified) -> Result<(), Fault> {
    let Verified { claims, bucket } = verified;
    let (account, sub) = (&claims.account, claims.sub.as_ref());
    let at = claims.path.clone().unwrap_or_else(Path::root);
    let since_ms = since(services, account, sub, bucket, &claims.identity, &at).await?;
    let since_ms = since_ms
        .ok_or_else(|| Fault::with(Code::Unauthorized, "the token's account is not active"))?;
    if claims.not_before_ms < since_ms {
        return Err(Fault::with(Code::Unauthorized, "the token has been revoked"));
    }
    let now_ms = services.clock.now_micros() / 1000;
    if claims.not_before_ms > since_ms.max(now_ms + AHEAD_MS) {
        return Err(Fault::with(Code::Unauthorized, "the token does not hold yet"));
    }
    if is_revoked(services, bucket, claims).await? {
        return Err(Fault::with(Code::Unauthorized, "the token has been revoked"));
    }
    Ok(())
}

/// From when on a token is one of this account and user, in milliseconds since 1970: not their
/// predecessors', nor revoked as a user's at the token's path or above it. It may be ahead of a clock
/// that was set back, and tokens are made to hold all the same. `None` for an account that may not
/// log in.
async fn since(
    services: &Services,
    account: &Ident,
    sub: Option<&Ident>,
    bucket: &Bucket,
    identity: &str,
    at: &Path,
) -> Result<Option<u64>, Fault> {
    let Some(mut since_ms) = principal::active_since(services, account, sub).await? else {
        return Ok(None);
    };
    for at in at.ancestors() {
        let revoked_ms = user_revoked(services, bucket, identity, &at).await?;
        since_ms = since_ms.max(revoked_ms.map_or(0, |revoked_ms| revoked_ms + 1));
    }
    Ok(Some(since_ms))
}

/// Looks again at a socket that has joined: what changed between its verification and its joining
/// found nobody to close.
///
/// # Errors
/// As [`verify`] and [`room`].
pub async fn recheck(
    services: &Services,
    verified: &Verified,
    room: &crate::RoomRef,
    address: std::net::IpAddr,
) -> Result<(), Fault> {
    hold(services, verified).await?;
    for at in place(&room.path, &room.topic).ancestors() {
        if is_user_revoked(services, &verified.bucket, &verified.claims, &at).await? {
            return Err(Fault::with(Code::Unauthorized, "the token has been revoked"));
        }
    }
    access::permit(services, &verified.bucket, &place(&room.path, &room.topic), address).await
}

/// A room's path with its topic, which rules and revocations may name too.
fn place(path: &Path, topic: &str) -> Path {
    path.join(topic).unwrap_or_else(|_| path.clone())
}

/// Where a verified token joins: the path asked for, resolved to a namespace and topic.
///
/// # Errors
/// `no_namespace`, and those of [`access::decide_join`].
pub async fn room(
    services: &Services,
    verified: &Verified,
    asked: Option<&Path>,
    address: std::net::IpAddr,
) -> Result<crate::RoomRef, Fault> {
    let Verified { claims, bucket } = verified;
    let path = asked.or(claims.path.as_ref()).cloned().unwrap_or_else(Path::root);
    access::decide_join(services, claims, bucket, &path, address).await?;
    let (path, topic) = if path.is_root() {
        (path, namespace::TOPIC.to_owned())
    } else {
        namespace::resolve(services, bucket, &path).await?.ok_or(Code::NoNamespace)?
    };
    // A user may have been revoked on the path as it is called here: with or without its topic.
    let with_topic = place(&path, &topic);
    access::permit(services, bucket, &with_topic, address).await?;
    for at in with_topic.ancestors() {
        if is_user_revoked(services, bucket, claims, &at).await? {
            return Err(Fault::with(Code::Unauthorized, "the token has been revoked"));
        }
    }
    Ok(crate::RoomRef { bucket: bucket.clone(), path, topic })
}

/// The claims of a token whose signature or row is right; its time is not looked at.
async fn read(services: &Services, text: &str) -> Result<Option<Claims>, Fault> {
    if !text.starts_with(ROW_PREFIX) {
        return Ok(Claims::from_compact(text, |id, signed, mac| {
            services.keys.verify(id, signed, mac)
        })
        .ok());
    }
    let head = services.kv.get(&row_node(text), &row_key(text)).await.map_err(store_fault)?;
    Ok(head.and_then(|head| claims_of_row(&head)))
}

fn claims_of_row(head: &Head) -> Option<Claims> {
    let row: Row = head.value.read().ok()?;
    let ident = |text: &str| Ident::from_stored(text).ok();
    Some(Claims {
        id: u64::from_str_radix(&row.id, 16).ok()?,
        account: ident(&row.account)?,
        sub: match &row.sub {
            Some(sub) => Some(ident(sub)?),
            None => None,
        },
        identity: row.identity,
        path: match &row.path {
            Some(path) => Some(Path::parse(path).ok()?),
            None => None,
        },
        grants: Grants(row.grants),
        not_before_ms: row.not_before_ms,
        expires_s: row.expires_s,
        key_id: 0,
    })
}

/// The node of a row token's row: that of its last day, or that of those without an end. A text that
/// no neuron gave may name any day; one that cannot be is that of none.
fn row_node(text: &str) -> Node {
    let day = text.strip_prefix(ROW_PREFIX).and_then(|rest| rest.split_once(ROW_DAY_END));
    let day = day.and_then(|(day, _)| day.parse::<u16>().ok());
    match day {
        Some(day) => ending::node(&Bucket::sys(), &layer(LAYER), &path(ROWS_PATH), day.into()),
        None => row_node_of_endless(),
    }
}

fn row_node_of_endless() -> Node {
    Node::new(Bucket::sys(), layer(LAYER), path(ROWS_PATH))
}

/// The key of a row: what is stored does not open anything.
fn row_key(text: &str) -> Key {
    let hash = digest::digest(&digest::SHA256, text.as_bytes());
    Key::parse(&URL_SAFE_NO_PAD.encode(hash)).expect("base64 is a legal key")
}

fn id_key(id: u64) -> Key {
    Key::parse(&format!("id:{id:016x}")).expect("hexadecimal is a legal key")
}

fn who_key(identity: &str) -> Option<Key> {
    Key::parse(&format!("who:{identity}")).ok()
}

/// The node of revocations by id of tokens that end at a time; 0 for never, or not known.
fn revoked_id_node(bucket: &Bucket, end_s: u64) -> Node {
    let layer = layer(LAYER);
    match end_s {
        0 => Node::new(bucket.clone(), layer, path(REVOKED_PATH)),
        end_s => ending::node(bucket, &layer, &path(REVOKED_UNTIL_PATH), end_s / ending::DAY_S),
    }
}

/// The node of revocations of users that concern a path.
fn revoked_node(bucket: &Bucket, at: &Path) -> Option<Node> {
    let at = path(REVOKED_PATH).join(at.as_str()).ok()?;
    Some(Node::new(bucket.clone(), layer(LAYER), at))
}

/// Whether this very token was revoked.
async fn is_revoked(services: &Services, bucket: &Bucket, claims: &Claims) -> Result<bool, Fault> {
    for end_s in [0, claims.expires_s] {
        let node = revoked_id_node(bucket, end_s);
        if services.kv.get(&node, &id_key(claims.id)).await.map_err(store_fault)?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether the tokens of a claim's user were revoked at a path after this one was made.
async fn is_user_revoked(
    services: &Services,
    bucket: &Bucket,
    claims: &Claims,
    at: &Path,
) -> Result<bool, Fault> {
    let revoked_ms = user_revoked(services, bucket, &claims.identity, at).await?;
    Ok(revoked_ms.is_some_and(|revoked_ms| claims.not_before_ms <= revoked_ms))
}

/// When the tokens of a user were last revoked at a path, in milliseconds since 1970.
async fn user_revoked(
    services: &Services,
    bucket: &Bucket,
    identity: &str,
    at: &Path,
) -> Result<Option<u64>, Fault> {
    let Some(key) = who_key(identity) else { return Ok(None) };
    let Some(node) = revoked_node(bucket, at) else { return Ok(None) };
    let head = services.kv.get(&node, &key).await.map_err(store_fault)?;
    let revoked = head.and_then(|head| head.value.read::<Revoked>().ok());
    Ok(revoked.map(|revoked| revoked.not_before_ms))
}

/// `DELETE ?id=` (an id or the token itself) or `?k=`: all tokens of an identity, on the path of the
/// call and below it.
async fn revoke(services: &Services, call: &Call<'_>) -> Result<Answer, Fault> {
    let bucket = &call.caller.bucket;
    if let Some(text) = call.params.text("id") {
        let known = read(services, &text).await?;
        let own = |claims: &Claims| {
            claims.account == call.caller.account && claims.sub == call.caller.sub
        };
        let (id, until_s) = match &known {
            Some(claims) if own(claims) => (claims.id, claims.expires_s),
            Some(_) => return Err(Code::NotFound.into()),
            None => {
                let id = u64::from_str_radix(&text, 16).map_err(|_| {
                    Fault::with(Code::BadRequest, "`id` is a token, or 16 hexadecimal digits")
                })?;
                (id, 0)
            }
        };
        revoke_id(services, bucket, id, until_s, &call.caller.who).await?;
        services.rooms.close(bucket, Closing::Revoked, &|socket| socket.token == Some(id));
        // Rows go last, so that what fails half-way can be asked for again. A deletion of them would
        // stay for ever, and tell nothing.
        let endless = endless_node(bucket);
        let noted = services.kv.get_by(&endless, 2, &id_key(id)).await.map_err(store_fault)?;
        if noted.is_none() && known.is_some() && text.starts_with(ROW_PREFIX) {
            let row = row_node(&text).entry(row_key(&text));
            services.kv.erase(&row).await.map_err(store_fault)?;
        }
        forget_noted(services, bucket, noted).await?;
        return Ok(Answer::number(1));
    }
    let Some(identity) = call.params.text("k").filter(|name| !name.is_empty()) else {
        return Err(Fault::with(Code::BadName, "name the token by `id` or its user by `k`"));
    };
    let key = who_key(&identity).ok_or(Code::BadName)?;
    let now_ms = services.clock.now_micros() / 1000;
    // For good: a token without an end may be among them.
    let node = revoked_node(bucket, &call.path).ok_or(Code::BadSegment)?;
    // What was revoked stays so, even if the clock was set back since.
    let before_ms = user_revoked(services, bucket, &identity, &call.path).await?.unwrap_or(0);
    let row = Revoked { not_before_ms: services.moments.newest(now_ms).max(before_ms) };
    put_revocation(services, &node, key, row, &call.caller.who).await?;
    let name = percent_encode(&identity);
    services.rooms.close(bucket, Closing::Revoked, &|socket| {
        socket.name == name && socket.is_within(&call.path)
    });
    if call.path.is_root() {
        // One that is being made beside this goes too, and is refused.
        let notes = services.kv.heads(&endless_node(bucket)).await.map_err(store_fault)?;
        let of_user =
            notes.into_iter().filter(|note| note.value.to_text().as_deref() == Some(&*identity));
        forget_noted(services, bucket, of_user).await?;
    }
    Ok(Answer::number(1))
}

/// Revokes one token for good; `until_s` is its expiry, 0 when it has none or it is not known.
///
/// # Errors
/// The store's.
pub async fn revoke_id(
    services: &Services,
    bucket: &Bucket,
    id: u64,
    until_s: u64,
    who: &Arc<str>,
) -> Result<(), Fault> {
    services.graces.forget(id);
    let row = Revoked { not_before_ms: 0 };
    put_revocation(services, &revoked_id_node(bucket, until_s), id_key(id), row, who).await
}

async fn put_revocation(
    services: &Services,
    node: &Node,
    key: Key,
    row: Revoked,
    who: &Arc<str>,
) -> Result<(), Fault> {
    let value =
        serde_json::to_value(&row).map_err(|e| Fault::with(Code::Internal, e.to_string()))?;
    let write = Write {
        entry: node.entry(key),
        op: Op::Put { value: Json::from(value), keys: Default::default() },
        condition: Condition::Any,
        who: who.clone(),
        stamp: services.stamp(),
    };
    services.kv.write(write).await.map_err(write_fault)?;
    Ok(())
}

impl Services {
    /// Reads the signing keys, and makes the first one when there is none.
    ///
    /// # Errors
    /// The store's, or a key that this neuron's cluster key does not open.
    pub async fn load_keys(&self) -> Result<(), KeysError> {
        let node = Node::new(Bucket::sys(), layer(KEYS_LAYER), path(KEYS_PATH));
        if self.kv.keys(&node).await?.is_empty() {
            let sealed = self.sealer.seal(SEAL_PURPOSE, &self.random::<32>(), &*self.rng);
            let write = Write {
                entry: node.entry(Key::parse("1").expect("a digit is a legal key")),
                op: Op::Put {
                    value: Json::from(serde_json::json!({ "sealed": sealed })),
                    keys: Default::default(),
                },
                condition: Condition::Absent,
                who: "$sys".into(),
                stamp: self.stamp(),
            };
            match self.kv.write(write).await {
                Ok(_) | Err(WriteError::Exists) => {}
                Err(error) => return Err(KeysError::Write(error)),
            }
        }
        let mut keys = HashMap::new();
        for head in self.kv.heads(&node).await? {
            let id: u8 = head.key.as_str().parse().map_err(|_| KeysError::Sealed)?;
            let sealed = head.value.member("sealed").and_then(|sealed| sealed.to_text());
            let opened = sealed.and_then(|sealed| self.sealer.open(SEAL_PURPOSE, &sealed));
            let secret = opened.ok_or(KeysError::Sealed)?;
            keys.insert(id, hmac::Key::new(hmac::HMAC_SHA256, &secret));
        }
        *self.keys.0.write().unwrap_or_else(PoisonError::into_inner) = keys;
        Ok(())
    }
}

/// Why the signing keys cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeysError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Write(WriteError),
    /// The store was made under another cluster key.
    #[error("the store's keys are sealed with another cluster key than this neuron's")]
    Sealed,
}

/// Lets go of revocations and row tokens whose tokens have expired; answers how many went.
pub(crate) async fn forget_expired(
    services: &Services,
    bucket: &Bucket,
) -> Result<u64, StoreError> {
    let layer = layer(LAYER);
    let mut gone = 0;
    for base in [ROWS_PATH, REVOKED_UNTIL_PATH] {
        gone += ending::forget(services, bucket, &layer, &path(base), KEPT_AFTER_S).await?;
    }
    Ok(gone)
}
