//! Taking tokens back: by id, or all of a user on a path and below it.

use std::sync::Arc;

use kv4::write::{Condition, Op, Write};
use kv4::{Bucket, Node};
use serde::{Deserialize, Serialize};
use wire::envelope::Fault;
use wire::errors::Code;
use wire::frames::percent_encode;
use wire::json::Json;
use wire::names::{Key, Path};
use wire::token::Claims;

use super::{LAYER, rows, verify};
use crate::{Answer, Call, Closing, Services, ending, layer, path, store_fault, write_fault};

const REVOKED_PATH: &str = "/revoked";
/// Revocations of tokens whose end is known.
pub(super) const REVOKED_UNTIL_PATH: &str = "/revoked-until";

/// A revocation: of a user, of tokens made up to `not_before_ms`; of an id, whatever that says.
#[derive(Debug, Deserialize, Serialize)]
struct Revoked {
    not_before_ms: u64,
}

/// `DELETE ?id=` (an id or the token itself) or `?k=`: all tokens of an identity, on the path of the
/// call and below it.
pub(super) async fn revoke(services: &Services, call: &Call<'_>) -> Result<Answer, Fault> {
    let bucket = &call.caller.bucket;
    if let Some(text) = call.params.text("id") {
        let known = verify::read(services, &text).await?;
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
        let endless = rows::endless_node(bucket);
        let noted = services.kv.get_by(&endless, 2, &id_key(id)).await.map_err(store_fault)?;
        if noted.is_none() && known.is_some() && text.starts_with(rows::ROW_PREFIX) {
            let row = rows::row_node(&text).entry(rows::row_key(&text));
            services.kv.erase(&row).await.map_err(store_fault)?;
        }
        rows::forget_noted(services, bucket, noted).await?;
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
        let notes = services.kv.heads(&rows::endless_node(bucket)).await.map_err(store_fault)?;
        let of_user =
            notes.into_iter().filter(|note| note.value.to_text().as_deref() == Some(&*identity));
        rows::forget_noted(services, bucket, of_user).await?;
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
    services.graces.forget(id, &bucket.top());
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

pub(super) fn id_key(id: u64) -> Key {
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
pub(super) async fn is_revoked(
    services: &Services,
    bucket: &Bucket,
    claims: &Claims,
) -> Result<bool, Fault> {
    for end_s in [0, claims.expires_s] {
        let node = revoked_id_node(bucket, end_s);
        if services.kv.get(&node, &id_key(claims.id)).await.map_err(store_fault)?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether the tokens of a claim's user were revoked at a path after this one was made.
pub(super) async fn is_user_revoked(
    services: &Services,
    bucket: &Bucket,
    claims: &Claims,
    at: &Path,
) -> Result<bool, Fault> {
    let revoked_ms = user_revoked(services, bucket, &claims.identity, at).await?;
    Ok(revoked_ms.is_some_and(|revoked_ms| claims.not_before_ms <= revoked_ms))
}

/// When the tokens of a user were last revoked at a path, in milliseconds since 1970.
pub(super) async fn user_revoked(
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
