//! What `_stats` and `_ds` tell of many cells.

use kv4::Bucket;
use kv4::store::{Stat, StatCell};
use serde_json::{Value, json};
use services::layer_of;
use wire::names::{Key, Path};
use wire::timegroup::TimeGroup;

use super::Stage;

/// The first minute of 2026.
fn begin() -> u32 {
    u32::try_from(TimeGroup::parse("2026").unwrap().first_s() / 60).unwrap()
}

async fn put(stage: &Stage, bucket: &Bucket, cells: impl Iterator<Item = (&str, &str, u32)>) {
    let cells = cells.map(|(path, key, minute)| StatCell {
        bucket: bucket.clone(),
        measure: layer_of("router:pkt"),
        path: Path::parse(path).unwrap(),
        key: Key::parse(key).unwrap(),
        minute,
        neuron: 1,
    });
    let cells: Vec<_> = cells.map(|cell| (cell, Stat::of(2))).collect();
    for cells in cells.chunks(5_000) {
        stage.neuron.services.kv.put_stats(cells.to_vec()).await.unwrap();
    }
}

/// The bound is on what is told, not on what it is made of.
#[tokio::test]
async fn many_minutes_are_told_by_the_day_and_too_many_groups_are_an_error() {
    const MINUTES: u32 = 100_001;
    let stage = Stage::new().await;
    let (elena, bucket) = stage.account("elena").await;
    put(&stage, &bucket, (0..MINUTES).map(|at| ("/a", "k", begin() + at))).await;
    put(&stage, &bucket, [("/b", "k", begin()), ("/b", "other", begin())].into_iter()).await;
    let ask = async |query: &str| {
        stage.call(&elena, "GET", &format!("/_stats{query}"), Value::Null).await["v"].clone()
    };
    let figures = |count: u32| json!({ "sum": 2 * count, "min": 2, "max": 2, "count": count });
    assert_eq!(ask("?l=router:pkt").await, figures(MINUTES + 2));
    assert_eq!(ask("/a?l=router:pkt").await, figures(MINUTES));
    assert_eq!(ask("?l=router:pkt&k=other").await, figures(1));
    assert_eq!(ask("?l=router:pkt&k=k&gs=2026:1:1:0:0").await, figures(2));
    let days = ask("/a?l=router:pkt&break=1").await;
    assert_eq!(days.as_object().unwrap().len(), 70);
    assert_eq!(days["2026:1:31"], figures(1_440));
    let months = ask("/a?l=router:pkt&break=1&gs=2026:1&ge=2026:12").await;
    assert_eq!(months["2026:2"], figures(28 * 1_440));
    let minutes = ask("/a?l=router:pkt&break=1&gs=2026:1:1:0:5&ge=2026:1:1:0:6").await;
    assert_eq!(minutes, json!({ "2026:1:1:0:5": figures(1), "2026:1:1:0:6": figures(1) }));
    let refused = ask("/a?l=router:pkt&break=1&gs=2026:1:1:0:0&ge=2026:12:31:23:59").await;
    assert_eq!(refused, "too_large");
}

#[tokio::test]
async fn paths_and_keys_of_a_measure_are_listed_once() {
    let stage = Stage::new().await;
    let (elena, bucket) = stage.account("elena").await;
    let cells = ["/a", "/a-b", "/a/b", "/c"].into_iter().flat_map(|path| {
        ["k", "l"].into_iter().flat_map(move |key| (0..3).map(move |at| (path, key, begin() + at)))
    });
    put(&stage, &bucket, cells).await;
    let ask = async |path: &str, action: &str| {
        let target = format!("/_ds{path}?a={action}&l=*stats:router:pkt");
        stage.ok(&elena, "GET", &target, Value::Null).await
    };
    assert_eq!(ask("", "paths").await, json!(["/a", "/a-b", "/a/b", "/c"]));
    assert_eq!(ask("/a", "paths").await, json!(["/a", "/a/b"]));
    assert_eq!(ask("/a", "keys").await, json!(["k", "l"]));
    assert_eq!(ask("/none", "keys").await, json!([]));
}
