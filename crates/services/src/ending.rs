//! Rows that have an end: kept in a node for each day on which some end, so that letting them go
//! costs what ends and not what there is.
//!
//! Whoever looks for a row knows its end, or one of the two days that it can be. Not here: rows
//! without an end, and versions that retention lets go ([`crate::logs`]).

use kv4::store::StoreError;
use kv4::{Bucket, Node};
use wire::names::{Layer, Path};

use crate::{Services, all};

/// How long the rows of one node end, in seconds.
pub(crate) const DAY_S: u64 = 86_400;
/// Rows of a bucket's layer that go at one time; the rest go the next time.
pub(crate) const ROWS_MAX: usize = 10_000;
/// Rows that are erased at the same time, to share the store's transactions.
const ERASED_TOGETHER: usize = 64;

/// The node below `base` of rows that end on a day, counted from 1970.
pub(crate) fn node(bucket: &Bucket, layer: &Layer, base: &Path, day: u64) -> Node {
    let path = base.join(&day.to_string()).expect("a base has room for a number");
    Node::new(bucket.clone(), layer.clone(), path)
}

/// Erases rows below `base` whose day was over `grace_s` ago; answers how many went.
pub(crate) async fn forget(
    services: &Services,
    bucket: &Bucket,
    layer: &Layer,
    base: &Path,
    grace_s: u64,
) -> Result<u64, StoreError> {
    let now_s = services.now_s();
    let (mut gone, mut left) = (0, ROWS_MAX);
    for (path, _) in services.kv.paths(bucket, layer, base).await? {
        let day = path.relative_to(base).and_then(|day| day.parse::<u64>().ok());
        if day.is_none_or(|day| (day + 1) * DAY_S + grace_s > now_s) {
            continue;
        }
        let node = Node::new(bucket.clone(), layer.clone(), path);
        let mut after = None;
        while left > 0 {
            let keys =
                services.kv.key_page(&node, after.as_ref(), left.min(ERASED_TOGETHER)).await?;
            let erasures = keys.iter().map(|key| services.kv.erase(&node.entry(key.clone())));
            for erased in all(erasures).await {
                gone += u64::from(erased?);
            }
            left -= keys.len();
            match keys.into_iter().next_back() {
                Some(last) => after = Some(last),
                None => break,
            }
        }
    }
    Ok(gone)
}
