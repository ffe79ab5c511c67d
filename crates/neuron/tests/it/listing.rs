//! Listings of nodes that are too large to be held in memory.

use kv4::Node;
use kv4::write::{Condition, Op, Write};
use serde_json::{Value, json};
use wire::json::Json;
use wire::names::{Key, Path};

use super::{NODE_BYTES_MAX, Stage};

/// Keys of the node: more than the store gives in one page.
const KEYS: usize = 10_001;
/// Most values in one answer of such a node.
const PAGE_MAX: usize = 1_000;

fn name(at: usize) -> String {
    format!("key{at:05}")
}

#[tokio::test]
async fn a_node_that_is_larger_than_a_page_is_listed_whole() {
    let stage = Stage::new().await;
    let (elena, bucket) = stage.account("elena").await;
    let services = &stage.neuron.services;
    let node = Node::new(bucket, services::layer_of("*data"), Path::parse("/large").unwrap());
    let writes: Vec<Write> = (0..KEYS)
        .map(|at| Write {
            entry: node.entry(Key::parse(&name(at)).unwrap()),
            op: Op::Put { value: Json::string(&name(at)), keys: Default::default() },
            condition: Condition::Any,
            who: "elena".into(),
            stamp: services.stamp(),
        })
        .collect();
    assert!(KEYS * name(0).len() > NODE_BYTES_MAX);
    assert!(services.kv.write_all(writes).await.iter().all(Result::is_ok));

    let listed = stage.ok(&elena, "GET", "/_data/large", Value::Null).await;
    let all: Vec<String> = (0..KEYS).map(name).collect();
    assert_eq!(listed, json!(all));
    let whole = stage.call(&elena, "GET", "/_data/large?as=values", Value::Null).await;
    assert_eq!(whole["v"], "too_large");
    let mut paged: Vec<String> = Vec::new();
    loop {
        let after = paged.last().map_or(String::new(), |last| format!("&after={last}"));
        let target = format!("/_data/large?as=values&limit=5000{after}");
        let page: Vec<String> =
            serde_json::from_value(stage.ok(&elena, "GET", &target, Value::Null).await).unwrap();
        assert_eq!(page.len(), PAGE_MAX.min(KEYS - paged.len()));
        paged.extend(page);
        if paged.len() == KEYS {
            break;
        }
    }
    assert_eq!(paged, all);
    assert_eq!(stage.ok(&elena, "DELETE", "/_data/large", Value::Null).await, KEYS);
}
