//! The end of an account beside requests that were let in before it.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::time::timeout;

use super::{Held, SYS, Stage};

/// Longer than an end takes that does not wait.
const MOMENT: Duration = Duration::from_millis(100);

/// Both ways in which an account ends.
const ENDS: [&str; 2] = ["POST", "DELETE"];

/// Ends an account; the answer.
async fn end(stage: &Stage, name: &str, method: &str) -> Value {
    let (target, body) = match method {
        "POST" => ("/_acc/accounts".to_owned(), json!({ "k": name, "v": { "active": false } })),
        _ => (format!("/_acc/accounts?k={name}"), Value::Null),
    };
    stage.call(SYS, method, &target, body).await
}

/// A request may wait for its turn for longer than its account lasts.
#[tokio::test]
async fn a_request_whose_turn_comes_after_the_end_of_its_account_writes_nothing() {
    let stage = Stage::new().await;
    for method in ENDS {
        for is_old in [false, true] {
            let name = format!("{}{is_old}", method.to_lowercase());
            let (credentials, bucket) = stage.account(&name).await;
            let (_, secret) = credentials.split_once(':').unwrap();
            let old = format!("/addDomain?ident={name}&secret={secret}&domain=site.org");
            let (put, target, word) =
                if is_old { ("GET", old.as_str(), "e") } else { ("PUT", "/_data/p", "v") };
            let body = if is_old { Value::Null } else { json!({ "k": "a", "v": 1 }) };

            let turn = Notify::new();
            let held = Held(&turn);
            let mut late = Box::pin(stage.send(&credentials, put, target, body, None, &held));
            timeout(MOMENT, &mut late).await.expect_err("its turn is not now");
            assert_eq!(end(&stage, &name, method).await["s"], "ok", "{name}");
            turn.notify_one();
            assert_eq!(late.await[word], "unauthorized", "{name}");
            let layers = stage.neuron.services.kv.layers(&bucket).await.unwrap();
            assert_eq!(layers, [], "{name}");
        }
    }
}

/// What has begun writes before the end is answered, not after it.
#[tokio::test]
async fn the_end_of_an_account_waits_for_the_requests_that_have_begun() {
    let stage = Stage::new().await;
    let kv = &stage.neuron.services.kv;
    for method in ENDS {
        for is_subs in [false, true] {
            let name = format!("{}{is_subs}", method.to_lowercase());
            let (own, bucket) = stage.account(&name).await;
            let lily = json!({ "k": "lily", "v": { "email": "lily@example.org" } });
            let lily = stage.ok(&own, "PUT", "/_acc/accounts", lily).await;
            let subs = format!("{name}#lily:{}", lily["secret"].as_str().unwrap());
            let asking = if is_subs { &subs } else { &own };

            let hashing = stage.hashes.acquire().await.unwrap();
            let ann = json!({ "k": "ann", "v": { "password": "password" } });
            let mut begun = Box::pin(stage.call(asking, "PUT", "/_acc/users/admins", ann));
            timeout(MOMENT, &mut begun).await.expect_err("its password is being hashed");
            let mut ending = Box::pin(end(&stage, &name, method));
            timeout(MOMENT, &mut ending).await.expect_err("it waits for the request");
            drop(hashing);
            assert_eq!(begun.await["s"], "ok", "it came before");
            assert_eq!(ending.await["s"], "ok");
            let left = kv.buckets().await.unwrap();
            let is_left = left.iter().any(|left| left.is_within(&bucket));
            assert_eq!(is_left, method == "POST", "{name}: {left:?}");
        }
    }
}

/// An end that would wait for ever is told so, and can be tried again.
#[tokio::test]
async fn an_end_does_not_wait_for_ever() {
    let stage = Stage::new().await;
    let (elena, bucket) = stage.account("elena").await;
    let entered = stage.neuron.services.writing.enter(&bucket);
    assert_eq!(end(&stage, "elena", "DELETE").await["v"], "locked");
    assert_eq!(stage.call(&elena, "GET", "/_data", Value::Null).await["v"], "unauthorized");
    drop(entered);
    assert_eq!(end(&stage, "elena", "DELETE").await["s"], "ok");
}
