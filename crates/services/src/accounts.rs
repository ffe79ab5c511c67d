//! `_acc`: top accounts by `$sys`, sub-accounts by their owner, and an account's admins
//! (seed 002 "The Accounts Service", `spec/xirsys.md` §1.6).
//!
//! `/accounts` holds accounts (k = name, k2 = e-mail), `/users/admins` holds admins. Secrets are
//! kept as hashes; a plain one appears in the reply that made it and nowhere else.

use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use kv4::write::{Condition, KeyChange, Op, Write, WriteError};
use kv4::{Bucket, Head, Node};
use serde::Deserialize;
use wire::envelope::Fault;
use wire::errors::Code;
use wire::json::{Json, Members};
use wire::names::{Ident, Key, Layer};

use crate::access::ERASE;
use crate::entries::{self, Found};
use crate::precondition::Precondition;
use crate::writing::Writing;
use crate::{
    Answer, Call, Closing, Method, Services, layer, secrets, store_fault, token, watch, write_fault,
};

pub(crate) const LAYER: &str = "*acc";
pub(crate) const ACCOUNTS_PATH: &str = "/accounts";
pub(crate) const ADMINS_PATH: &str = "/users/admins";

/// Shortest and longest password, in bytes.
const PASSWORD_BYTES: std::ops::RangeInclusive<usize> = 4..=256;
/// Longest e-mail address, in bytes (RFC 5321 §4.5.3.1.3 less the brackets).
const EMAIL_BYTES_MAX: usize = 254;
/// Fields that only the reply that makes an account shows.
const HIDDEN: [&str; 6] = ["secret", "password", "plan", "term", "customer_id", CREATED_MS];
/// When an account was made, to the millisecond; shown to nobody.
const CREATED_MS: &str = "created_ms";
/// Most fields of an account or admin, and most bytes of its row.
const FIELDS_MAX: usize = 64;
const ROW_BYTES_MAX: usize = 64 << 10;
/// How often a merge is tried again after somebody else wrote in between.
const MERGE_ATTEMPTS: usize = 16;

/// What of an account's row proves its secret.
#[derive(Debug, Deserialize)]
pub(crate) struct AccountRow {
    pub(crate) active: bool,
    /// A hash of [`secrets`].
    pub(crate) secret: String,
    /// Seconds since 1970.
    created: u64,
    /// Milliseconds since then; not in rows that are older than it.
    created_ms: Option<u64>,
}

impl AccountRow {
    /// When it was made, in milliseconds since 1970: a token made before belongs to a predecessor.
    pub(crate) fn created_ms(&self) -> u64 {
        self.created_ms.unwrap_or(self.created * 1000)
    }
}

/// What of an admin's row proves the password.
#[derive(Debug, Deserialize)]
pub(crate) struct AdminRow {
    pub(crate) password: String,
    #[serde(default = "yes")]
    pub(crate) active: bool,
}

fn yes() -> bool {
    true
}

/// A value as readers of its layer may see it: rows of accounts and admins without their secrets.
pub(crate) fn shown<'a>(layer: &Layer, value: &'a Json) -> Cow<'a, Json> {
    if layer.as_str() != LAYER {
        return Cow::Borrowed(value);
    }
    let Some(mut members) = value.members() else { return Cow::Borrowed(value) };
    for hidden in HIDDEN {
        members.remove(hidden);
    }
    Cow::Owned(members.to_json())
}

pub(crate) async fn call(services: &Services, call: &Call<'_>) -> Result<Answer, Fault> {
    let node = entries::node(call, layer(LAYER));
    let is_accounts = match call.path.as_str() {
        ACCOUNTS_PATH => true,
        ADMINS_PATH => false,
        _ => {
            return Err(Fault::with(
                Code::NotFound,
                format!("this service has {ACCOUNTS_PATH} and {ADMINS_PATH}"),
            ));
        }
    };
    match (call.method, is_accounts) {
        (Method::Get, _) => match get_own(services, call, &node).await? {
            Some(answer) => Ok(answer),
            None => entries::get(services, call, &node).await,
        },
        (Method::Put | Method::Post, true) => put_account(services, call, &node).await,
        (Method::Put | Method::Post, false) => put_admin(services, call, &node).await,
        (Method::Delete, true) => delete_account(services, call, &node).await,
        (Method::Delete, false) => entries::delete(services, call, &node).await,
    }
}

/// A single row without `_ver_`: deployed clients read accounts with strict models.
async fn get_own(
    services: &Services,
    call: &Call<'_>,
    node: &Node,
) -> Result<Option<Answer>, Fault> {
    if call.params.flag("time_series") || call.params.text("as").is_some() {
        return Ok(None);
    }
    match entries::find(services, call, node).await? {
        Found::NotAsked => Ok(None),
        Found::Nothing => Err(Code::NotFound.into()),
        Found::Entry(head) => Ok(Some(Answer {
            v: shown(&node.layer, &head.value).as_str().to_owned(),
            ver: Some(head.ver),
            no_store: false,
        })),
    }
}

async fn put_account(services: &Services, call: &Call<'_>, node: &Node) -> Result<Answer, Fault> {
    let key = entries::key(call)?.ok_or(Code::BadUsername)?;
    let ident = Ident::parse(key.as_str())?;
    let (details, precondition) = details(call)?;
    let live = services.kv.get(node, &key).await.map_err(store_fault)?;
    match (call.method, live) {
        (Method::Post, Some(_)) if precondition != Precondition::Absent => {
            merge_account(services, call, node, &key, &details, &precondition).await
        }
        (_, Some(_)) => Err(Code::UsernameExists.into()),
        (_, None) if precondition.holds(None) => {
            create_account(services, call, node, &key, &ident, details).await
        }
        (_, None) => Err(Code::VersionConflict.into()),
    }
}

async fn create_account(
    services: &Services,
    call: &Call<'_>,
    node: &Node,
    key: &Key,
    ident: &Ident,
    mut details: Members,
) -> Result<Answer, Fault> {
    if details.text("username").is_some_and(|name| name != ident.as_str()) {
        return Err(Fault::with(Code::BadUsername, "`username` is not `k`"));
    }
    let (owner, sub) = match call.caller.is_sys() {
        true => (ident, None),
        false => (&call.caller.account, Some(ident)),
    };
    if Bucket::account(owner, sub).is_none() {
        return Err(Fault::with(
            Code::BadUsername,
            "the account's database name would exceed 200 bytes",
        ));
    }
    let email = email(&details)?;
    let password = password(&details)?;
    let active = active(&details)?.unwrap_or(true);
    let chosen = secret(&details)?;
    // One creation or deletion of a name at a time: neither must drop what the owner of another
    // creation has written by then.
    let _changing = Changing::begin(services, node, key)?;
    if services.kv.get(node, key).await.map_err(store_fault)?.is_some() {
        return Err(Code::UsernameExists.into());
    }
    // Whatever an earlier owner of the name left behind, such as statistics that were flushed after
    // its end, is not this one's.
    for bucket in buckets_of(services, call, key).await? {
        services.kv.drop_bucket(&bucket).await.map_err(store_fault)?;
    }
    let secret = chosen.clone().unwrap_or_else(|| secrets::random_uuid(&*services.rng));
    let secret_hash = match &chosen {
        Some(chosen) => hash(services, &call.caller.payer, chosen).await?,
        None => secrets::hash_random(&secret),
    };
    let password_hash = match &password {
        Some(password) => Json::string(&hash(services, &call.caller.payer, password).await?),
        None => Json::null(),
    };

    let mut row = Members::default();
    row.set("username", Json::string(ident.as_str()));
    for (name, default) in [
        ("term", Json::string("monthly")),
        ("plan", Json::string("free")),
        ("last_name", Json::null()),
        ("first_name", Json::null()),
        ("customer_id", Json::null()),
        ("company", Json::null()),
    ] {
        row.set(name, details.remove(name).unwrap_or(default));
    }
    for (name, value) in details.iter() {
        row.set(name, value.clone());
    }
    row.set("email", Json::string(&email));
    // No token of a predecessor is as young, even if the clock was set back since.
    let now_ms = services.moments.after(services.clock.now_micros() / 1000);
    row.set("created", Json::from(now_ms / 1000));
    row.set(CREATED_MS, Json::from(now_ms));
    row.set("active", Json::from(serde_json::Value::Bool(active)));
    row.set("secret", Json::string(&secret_hash));
    row.set("password", password_hash);
    if is_too_large(&row) {
        return Err(too_many_fields());
    }

    let email_key = Key::parse(&email).map_err(|_| Code::BadEmail)?;
    let write = Write {
        entry: node.entry(key.clone()),
        op: Op::Put {
            value: row.to_json(),
            keys: [KeyChange::Set(email_key), KeyChange::Clear, KeyChange::Clear],
        },
        condition: Condition::Absent,
        who: call.caller.who.clone(),
        stamp: services.stamp(),
    };
    let written = services.kv.write(write).await.map_err(|error| match error {
        WriteError::Exists => Code::UsernameExists.into(),
        WriteError::KeyTaken(_) => Code::EmailExists.into(),
        error => write_fault(error),
    })?;
    services.logs.note(&call.caller.bucket, crate::logs::Level::Info, || {
        format!("account {ident} created by {}", call.caller.who)
    });

    row.remove(CREATED_MS);
    row.set("secret", Json::string(&secret));
    row.set("password", password.map_or_else(Json::null, |password| Json::string(&password)));
    Ok(Answer {
        v: row.to_json().as_str().to_owned(),
        ver: Some(written.version.ver),
        no_store: true,
    })
}

/// Accounts that are being created or deleted, by the node and key of their row.
#[derive(Debug, Default)]
pub(crate) struct Changes(Mutex<HashSet<(Node, Key)>>);

/// The right to create or delete one account.
struct Changing<'a> {
    changes: &'a Changes,
    account: (Node, Key),
}

impl<'a> Changing<'a> {
    fn begin(services: &'a Services, node: &Node, key: &Key) -> Result<Changing<'a>, Fault> {
        let changes = &services.changes;
        let account = (node.clone(), key.clone());
        let mut under_way = changes.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !under_way.insert(account.clone()) {
            let why = "this account is being created or deleted";
            return Err(Fault::with(Code::Locked, why));
        }
        Ok(Changing { changes, account })
    }
}

impl Drop for Changing<'_> {
    fn drop(&mut self) {
        let mut under_way = self.changes.0.lock().unwrap_or_else(PoisonError::into_inner);
        under_way.remove(&self.account);
    }
}

/// Merges fields into an account; what only we may set stays.
async fn merge_account(
    services: &Services,
    call: &Call<'_>,
    node: &Node,
    key: &Key,
    details: &Members,
    precondition: &Precondition,
) -> Result<Answer, Fault> {
    if details.get("username").is_some() {
        return Err(Code::UsernameIsImmutable.into());
    }
    active(details)?;
    let mut changes = details.clone();
    changes.remove("created");
    changes.remove(CREATED_MS);
    if changes.remove("password").is_some() {
        let hashed = match password(details)? {
            Some(password) => Json::string(&hash(services, &call.caller.payer, &password).await?),
            None => Json::null(),
        };
        changes.set("password", hashed);
    }
    changes.remove("secret");
    if let Some(secret) = secret(details)? {
        changes.set("secret", Json::string(&hash(services, &call.caller.payer, &secret).await?));
    }
    let merged = merge(services, call, node, key, precondition, |row| {
        let kept = row.get("email").cloned();
        if changes.get("email").is_some_and(|email| Some(email) != kept.as_ref()) {
            return Err(Code::EmailIsImmutable.into());
        }
        for (name, value) in changes.iter() {
            row.set(name, value.clone());
        }
        Ok(())
    })
    .await?;
    if details.get("active").is_some_and(|active| active.as_str() == "false") {
        close_account(services, call, key).await?;
    }
    Ok(Answer {
        v: shown(&node.layer, &merged.value).as_str().to_owned(),
        ver: Some(merged.ver),
        no_store: false,
    })
}

/// Reads, changes and writes a row until nobody wrote in between.
async fn merge(
    services: &Services,
    call: &Call<'_>,
    node: &Node,
    key: &Key,
    precondition: &Precondition,
    change: impl Fn(&mut Members) -> Result<(), Fault>,
) -> Result<Head, Fault> {
    for _ in 0..MERGE_ATTEMPTS {
        let head = services.kv.get(node, key).await.map_err(store_fault)?;
        let head = head.ok_or(Code::NotFound)?;
        if !precondition.holds(Some(head.ver)) {
            return Err(Code::VersionConflict.into());
        }
        let mut row = head.value.members().unwrap_or_default();
        let before = row.clone();
        change(&mut row)?;
        // A row that is too large already, from before there was a bound, can be changed all the
        // same: its account must not be one that nobody can end.
        if is_too_large(&row) && !is_too_large(&before) {
            return Err(too_many_fields());
        }
        let write = Write {
            entry: node.entry(key.clone()),
            op: Op::Put { value: row.to_json(), keys: Default::default() },
            condition: Condition::At(head.ver),
            who: call.caller.who.clone(),
            stamp: services.stamp(),
        };
        match services.kv.write(write).await {
            Ok(written) => {
                return Head::of(key, &written.version)
                    .ok_or_else(|| Fault::with(Code::Internal, "a put gave a deletion"));
            }
            Err(WriteError::Conflict) => {}
            Err(error) => return Err(write_fault(error)),
        }
    }
    Err(Code::Locked.into())
}

async fn delete_account(
    services: &Services,
    call: &Call<'_>,
    node: &Node,
) -> Result<Answer, Fault> {
    let precondition = entries::precondition(call)?;
    let key = match entries::find(services, call, node).await? {
        Found::Entry(head) => head.key.clone(),
        Found::Nothing => return Err(Code::NotFound.into()),
        Found::NotAsked => {
            return Err(Fault::with(Code::NotAllowed, "name the account to delete with `k`"));
        }
    };
    let _changing = Changing::begin(services, node, &key)?;
    let _removal = bucket_of(call, &key).map(|own| services.writing.remove(own));
    // The row goes last: whatever ends this half-way leaves an account that cannot log in and can
    // be deleted again, never data that the next owner of the name would find.
    merge(services, call, node, &key, &precondition, |row| {
        row.set("active", Json::from(serde_json::Value::Bool(false)));
        Ok(())
    })
    .await?;
    close_account(services, call, &key).await?;
    for bucket in buckets_of(services, call, &key).await? {
        token::forget_endless(services, &bucket).await?;
        services.kv.drop_bucket(&bucket).await.map_err(store_fault)?;
    }
    let answer = if call.params.flag(ERASE) {
        u64::from(services.kv.erase(&node.entry(key.clone())).await.map_err(store_fault)?)
    } else {
        entries::delete_keys(services, call, node, std::slice::from_ref(&key)).await?
    };
    services.logs.note(&call.caller.bucket, crate::logs::Level::Info, || {
        format!("account {key} deleted by {}", call.caller.who)
    });
    Ok(Answer::number(answer))
}

/// The bucket of an account, stored or not, and those of its sub-accounts.
async fn buckets_of(services: &Services, call: &Call<'_>, key: &Key) -> Result<Vec<Bucket>, Fault> {
    let Some(own) = bucket_of(call, key) else { return Ok(Vec::new()) };
    let all = services.kv.buckets().await.map_err(store_fault)?;
    let subs = all.into_iter().filter(|bucket| *bucket != own && bucket.is_within(&own));
    Ok(std::iter::once(own.clone()).chain(subs).collect())
}

fn bucket_of(call: &Call<'_>, key: &Key) -> Option<Bucket> {
    let ident = Ident::parse(key.as_str()).ok()?;
    if call.caller.is_sys() {
        Bucket::account(&ident, None)
    } else {
        Bucket::account(&call.caller.account, Some(&ident))
    }
}

/// Ends the sockets of an account that is inactive from here on, and waits for its requests.
async fn close_account(services: &Services, call: &Call<'_>, key: &Key) -> Result<(), Fault> {
    let Some(own) = bucket_of(call, key) else { return Ok(()) };
    for bucket in services.rooms.buckets() {
        if bucket.is_within(&own) {
            services.rooms.close(&bucket, Closing::Denied, &|_| true);
        }
    }
    services.sessions.end_all(&own);
    watch::end_account(services, &own);
    Writing::ended(services, &own).await
}

async fn put_admin(services: &Services, call: &Call<'_>, node: &Node) -> Result<Answer, Fault> {
    let key = entries::key(call)?.ok_or_else(|| Fault::with(Code::BadName, "`k` is the login"))?;
    if key.as_str().contains(['#', ':']) || key.as_str().starts_with(['!', '$']) {
        return Err(Fault::with(
            Code::BadName,
            "a login cannot hold `#` or `:` or start with `!` or `$`",
        ));
    }
    let (mut details, precondition) = details(call)?;
    active(&details)?;
    let given = password(&details)?;
    let live = services.kv.get(node, &key).await.map_err(store_fault)?;
    if live.is_none() && given.is_none() {
        return Err(Code::RequirePassword.into());
    }
    if let Some(password) = &given {
        details.set("password", Json::string(&hash(services, &call.caller.payer, password).await?));
    } else {
        details.remove("password");
    }
    let is_merge = call.method == Method::Post && precondition != Precondition::Absent;
    let head = if live.is_some() && is_merge {
        merge(services, call, node, &key, &precondition, |row| {
            for (name, value) in details.iter() {
                row.set(name, value.clone());
            }
            Ok(())
        })
        .await?
    } else {
        if given.is_none() {
            return Err(Code::RequirePassword.into());
        }
        if details.get("role").is_none() {
            details.set("role", Json::string("admin"));
        }
        if is_too_large(&details) {
            return Err(too_many_fields());
        }
        let write = Write {
            entry: node.entry(key.clone()),
            op: Op::Put { value: details.to_json(), keys: Default::default() },
            condition: precondition.condition(live.map(|head| head.ver))?,
            who: call.caller.who.clone(),
            stamp: services.stamp(),
        };
        let written = services.kv.write(write).await.map_err(write_fault)?;
        Head::of(&key, &written.version).ok_or(Code::Internal)?
    };
    let mut row = shown(&node.layer, &head.value).members().unwrap_or_default();
    if let Some(password) = &given {
        row.set("password", Json::string(password));
    }
    Ok(Answer { v: row.to_json().as_str().to_owned(), ver: Some(head.ver), no_store: true })
}

async fn hash(services: &Services, of: &Bucket, password: &str) -> Result<String, Fault> {
    services
        .passwords
        .hash(of, password.to_owned())
        .await
        .ok_or_else(|| Fault::with(Code::Overloaded, "too many passwords are being hashed"))
}

/// The fields that a call gives, as many as a row may have, and what it says of the row's version.
fn details(call: &Call<'_>) -> Result<(Members, Precondition), Fault> {
    let details = call.params.json("v").and_then(|v| v.members());
    let mut details = details.ok_or(Code::RequireAccountDetails)?;
    let ver = details.remove("_ver_");
    let precondition = entries::precondition(call)?.and(Precondition::of_ver(ver.as_ref())?)?;
    if details.len() > FIELDS_MAX {
        return Err(too_many_fields());
    }
    Ok((details, precondition))
}

fn is_too_large(row: &Members) -> bool {
    row.len() > FIELDS_MAX || row.to_json().as_str().len() > ROW_BYTES_MAX
}

fn too_many_fields() -> Fault {
    Fault::with(
        Code::RequireAccountDetails,
        format!("a row has at most {FIELDS_MAX} fields and {ROW_BYTES_MAX} bytes"),
    )
}

/// The secret that a caller chose; `None` when it is left out.
fn secret(details: &Members) -> Result<Option<String>, Fault> {
    let Some(value) = details.get("secret") else { return Ok(None) };
    let secret = value.to_text().unwrap_or_default();
    if !PASSWORD_BYTES.contains(&secret.len()) || secret.contains('#') || secret.starts_with('!') {
        return Err(Fault::with(
            Code::BadPasswordFormat,
            "a secret has 4 to 256 bytes, no `#`, and no `!` at its start",
        ));
    }
    Ok(Some(secret))
}

fn email(details: &Members) -> Result<String, Fault> {
    let email = details.text("email").ok_or(Code::BadEmail)?;
    let legal = email.len() <= EMAIL_BYTES_MAX
        && !email.contains(|c: char| c.is_whitespace() || c.is_control())
        && email.rsplit_once('@').is_some_and(|(name, domain)| {
            !name.is_empty() && !domain.is_empty() && !domain.starts_with('.')
        });
    if legal { Ok(email) } else { Err(Code::BadEmail.into()) }
}

/// The password among an account's details; `None` when it is left out or null.
fn password(details: &Members) -> Result<Option<String>, Fault> {
    match details.get("password") {
        None => Ok(None),
        Some(value) if value.is_null() => Ok(None),
        Some(value) => {
            let password = value.to_text().ok_or(Code::BadPasswordFormat)?;
            if PASSWORD_BYTES.contains(&password.len()) {
                Ok(Some(password))
            } else {
                Err(Code::BadPasswordFormat.into())
            }
        }
    }
}

fn active(details: &Members) -> Result<Option<bool>, Fault> {
    match details.get("active").map(Json::as_str) {
        None => Ok(None),
        Some("true") => Ok(Some(true)),
        Some("false") => Ok(Some(false)),
        Some(_) => Err(Fault::with(Code::RequireAccountDetails, "`active` is true or false")),
    }
}
