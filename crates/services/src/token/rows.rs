//! Tokens that are kept as rows: those without an end, and those that do not fit.

use std::sync::Arc;

use aws_lc_rs::digest;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use kv4::write::{Condition, KeyChange, Op, Write};
use kv4::{Bucket, Head, Node};
use serde::{Deserialize, Serialize};
use wire::envelope::Fault;
use wire::errors::Code;
use wire::json::Json;
use wire::names::{Ident, Key, Path};
use wire::token::{Claims, Grants};

use super::LAYER;
use super::revoke::id_key;
use crate::{Services, ending, layer, path, store_fault, write_fault};

pub(super) const ROWS_PATH: &str = "/tokens";
/// Keys of the rows of an account's tokens without an end, in its own bucket.
const ENDLESS_PATH: &str = "/endless";
/// Tokens without an end that an account may have.
const ENDLESS_MAX: u64 = 10_000;
/// What a row token starts with; a compact one starts with `A`, its version.
pub(super) const ROW_PREFIX: char = 't';
/// What ends the day in a row token that has an end.
const ROW_DAY_END: char = '.';

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

/// Keeps a token as a row; answers its text, which nothing that is stored tells.
pub(super) async fn keep(services: &Services, claims: &Claims) -> Result<String, Fault> {
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
        note_endless(services, claims, &row_key(&text)).await?;
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

pub(super) fn endless_node(bucket: &Bucket) -> Node {
    Node::new(bucket.clone(), layer(LAYER), path(ENDLESS_PATH))
}

/// Lets go of the rows of revoked tokens without an end, and gives their places back.
pub(super) async fn forget_noted(
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

pub(super) fn claims_of_row(head: &Head) -> Option<Claims> {
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
pub(super) fn row_node(text: &str) -> Node {
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
pub(super) fn row_key(text: &str) -> Key {
    let hash = digest::digest(&digest::SHA256, text.as_bytes());
    Key::parse(&URL_SAFE_NO_PAD.encode(hash)).expect("base64 is a legal key")
}
