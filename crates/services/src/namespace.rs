//! `_ns`: the account's public tree of paths (seed 002 "The Namespace Service", `spec/xirsys.md`
//! §1.4).
//!
//! A path that was PUT is one entry at that path, under the key `ns`; its ancestors are not implied.

use std::net::IpAddr;

use kv4::write::{Condition, Op, Write, WriteError};
use kv4::{Bucket, Entry, Node};
use wire::envelope::Fault;
use wire::errors::Code;
use wire::json::{Json, push_string};
use wire::names::{Key, Path};

use crate::access::ERASE;
use crate::precondition::Precondition;
use crate::{Answer, Call, Method, Services, entries, layer, store_fault, write_fault};

pub(crate) const LAYER: &str = "*ns";
const KEY: &str = "ns";
/// The topic of a room when its path names none (`spec/xirsys.md` §1.6).
pub const TOPIC: &str = "topic";

pub(crate) async fn call(services: &Services, call: &Call<'_>) -> Result<Answer, Fault> {
    match call.method {
        Method::Get => list(services, call).await,
        Method::Put | Method::Post => {
            let ver = create(services, call, &call.path).await?;
            Ok(Answer::json(format!("{{\"_ver_\":\"{ver}\"}}")))
        }
        Method::Delete => Ok(Answer::number(remove(services, call, &call.path).await?)),
    }
}

/// Adds a path to the tree.
///
/// # Errors
/// `path_exists`; `bad_segment` for the root, which is always there.
pub(crate) async fn create(
    services: &Services,
    call: &Call<'_>,
    path: &Path,
) -> Result<kv4::Ver, Fault> {
    if path.is_root() {
        return Err(Fault::with(Code::BadSegment, "name a path below the root"));
    }
    let value = call.params.json("v").filter(Json::is_object);
    let value = value.unwrap_or_else(|| Json::from(serde_json::json!({})));
    let (value, precondition) = entries::value_and_precondition(call, value)?;
    // A path is only ever made: `If-None-Match: *` says no more than that.
    if precondition != Precondition::Absent {
        precondition.refuse("the making of a path")?;
    }
    let write = Write {
        entry: node(&call.caller.bucket, path).entry(key()),
        op: Op::Put { value, keys: Default::default() },
        condition: Condition::Absent,
        who: call.caller.who.clone(),
        stamp: services.stamp(),
    };
    match services.kv.write(write).await {
        Ok(written) => Ok(written.version.ver),
        Err(WriteError::Exists) => Err(Code::PathExists.into()),
        Err(error) => Err(write_fault(error)),
    }
}

/// Removes a path and every path below it; answers how many were there.
///
/// # Errors
/// `not_found` when none was, `unauthorized` when a rule denies one of them.
pub(crate) async fn remove(
    services: &Services,
    call: &Call<'_>,
    path: &Path,
) -> Result<u64, Fault> {
    entries::precondition(call)?.refuse("a deletion of paths")?;
    let bucket = &call.caller.bucket;
    let paths = services.kv.paths(bucket, &layer(LAYER), path).await.map_err(store_fault)?;
    let rules = services.rules.of(&services.kv, bucket).await.map_err(store_fault)?;
    if let Some((denied, _)) = paths.iter().find(|(path, _)| rules.denied(path, call.address)) {
        let why = format!("a rule in /_auth denies {} at {denied}", call.address);
        return Err(Fault::with(Code::Unauthorized, why));
    }
    let found: Vec<Entry> = paths.iter().map(|(path, _)| node(bucket, path).entry(key())).collect();
    let mut removed = 0;
    if call.params.flag(ERASE) {
        for entry in &found {
            removed += u64::from(services.kv.erase(entry).await.map_err(store_fault)?);
        }
    } else {
        removed = entries::delete_entries(services, call, &found).await?;
    }
    if removed == 0 { Err(Code::NotFound.into()) } else { Ok(removed) }
}

/// The paths below a base that are at most `depth` segments deeper, relative to it, sorted; of those
/// that an address may see, where one is named.
pub(crate) async fn below(
    services: &Services,
    bucket: &Bucket,
    base: &Path,
    depth: Option<usize>,
    seen_from: Option<IpAddr>,
) -> Result<Vec<String>, Fault> {
    let rules = services.rules.of(&services.kv, bucket).await.map_err(store_fault)?;
    let is_denied = |path: &Path| seen_from.is_some_and(|address| rules.denied(path, address));
    let paths = services.kv.paths(bucket, &layer(LAYER), base).await.map_err(store_fault)?;
    Ok(paths
        .iter()
        .filter(|(path, _)| depth.is_none_or(|depth| path.depth() - base.depth() <= depth))
        .filter(|(path, _)| !is_denied(path))
        .filter_map(|(path, _)| path.relative_to(base))
        .filter(|relative| !relative.is_empty())
        .map(str::to_owned)
        .collect())
}

async fn list(services: &Services, call: &Call<'_>) -> Result<Answer, Fault> {
    // A depth that is not a number (an SDK sends `depth=depth=10`) counts as none.
    let depth = call.params.text("depth").and_then(|text| text.parse().ok());
    let Call { caller, path, address, .. } = call;
    let below = below(services, &caller.bucket, path, depth, Some(*address)).await?;
    Ok(Answer::list(&below, |v, relative| push_string(v, relative)))
}

/// Whether a path was PUT.
///
/// # Errors
/// The store's.
pub async fn contains(services: &Services, bucket: &Bucket, path: &Path) -> Result<bool, Fault> {
    let found = services.kv.get(&node(bucket, path), &key()).await.map_err(store_fault)?;
    Ok(found.is_some())
}

/// Splits a path into a namespace and at most one further segment, the topic; the longest namespace
/// wins. `None` when neither the path nor its parent is in the tree.
///
/// # Errors
/// The store's.
pub async fn resolve(
    services: &Services,
    bucket: &Bucket,
    path: &Path,
) -> Result<Option<(Path, String)>, Fault> {
    if contains(services, bucket, path).await? {
        return Ok(Some((path.clone(), TOPIC.to_owned())));
    }
    if let Some((parent, last)) = path.split_last()
        && contains(services, bucket, &parent).await?
    {
        return Ok(Some((parent, last.to_owned())));
    }
    Ok(None)
}

fn node(bucket: &Bucket, path: &Path) -> Node {
    Node::new(bucket.clone(), layer(LAYER), path.clone())
}

fn key() -> Key {
    Key::parse(KEY).expect("a constant key is legal")
}
