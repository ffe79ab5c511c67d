//! Saying something to a room by HTTP, without a socket.

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use tests::curl;
use tests::socket::Client;

use super::{Stage, wait_until};

/// A POST by a token; answers the envelope.
fn post_by(stage: &Stage, token: &str, path: &str, body: &Value) -> Result<Value> {
    let bearer = format!("Authorization: Bearer {token}");
    let url = format!("{}{path}", stage.neuron.url());
    let body = body.to_string();
    Ok(serde_json::from_str(&curl::run(&["-X", "POST", "-H", &bearer, "-d", &body, &url])?)?)
}

#[test]
fn a_back_end_speaks_to_a_room() -> Result<()> {
    let stage = Stage::new()?;
    let post = |body: Value| {
        curl::json("POST", &stage.neuron.url(), "/_subs/my/path", &stage.credentials, Some(&body))
    };
    assert_eq!(post(json!({ "v": 1 }))?["v"], json!({ "receivers": 0, "cursor": null }));
    assert_eq!(post(json!({ "v": 1, "t": "ann" }))?["v"], "not_found");
    let mut ann = stage.join("ann")?;
    ann.frame()?;
    let (mut bob, welcome) = stage.greet("bob")?;
    ann.frame()?;
    let answer = post(json!({ "v": { "news": [1.5] } }))?["v"].clone();
    assert_eq!(answer["receivers"], 2);
    let text = ann.next_text()?;
    assert_eq!(text, r#"{"t":"u","m":{"f":"/my/path/__sys__","o":"message"},"p":{"news":[1.5]}}"#);
    let frame = bob.frame()?;
    assert_eq!(frame["m"]["c"], answer["cursor"]);
    post(json!({ "k": "the shop", "o": "offer", "t": "bob", "v": "cheap" }))?;
    assert_eq!(bob.frame()?["m"]["f"], "/my/path/the%20shop");
    ann.hears_nothing()?;
    for (body, code) in [
        (json!({ "o": "peer_removed", "k": "ann", "v": 1 }), "not_allowed"),
        (json!({ "k": "__sys__", "v": 1 }), "bad_name"),
        (json!({ "t": "zoe", "v": 1 }), "not_found"),
        (json!({ "value": 1 }), "value_missing"),
        // Longer than a member may say: no queue has to hold it.
        (json!({ "v": "x".repeat(64 << 10) }), "too_large"),
        (json!({ "o": "x".repeat(64 << 10), "v": 1 }), "too_large"),
    ] {
        assert_eq!(post(body.clone())?["v"], code, "{body}");
    }

    let ask = |method: &str, path: &str, body: Option<&Value>| {
        curl::json(method, &stage.neuron.url(), path, &stage.credentials, body)
    };
    assert_eq!(ask("POST", "/_subs/no/room", Some(&json!({ "v": 1 })))?["v"], "no_namespace");
    let nobody = json!({ "receivers": 0, "cursor": null });
    assert_eq!(ask("POST", "/_subs/", Some(&json!({ "v": 1 })))?["v"], nobody);
    assert_eq!(stage.neuron.metric("signal_refused_messages_total")?, 2);
    for query in ["watch=see", "watch=sse"] {
        let answer = ask("GET", &format!("/_subs/my/path?{query}"), None)?;
        assert_eq!(answer["v"], "bad_request", "{query}");
    }

    // Once for each key, and not lost on one who was cut off.
    bob.vanish();
    wait_until("bob is gone", || Ok(stage.ok("GET", "/_subs/my/path", None)? == json!(["ann"])))?;
    let url = format!("{}/_subs/my/path", stage.neuron.url());
    let once = || {
        let key = "Idempotency-Key: one";
        curl::run(&[
            "-u",
            &stage.credentials,
            "-X",
            "POST",
            "-H",
            key,
            "-d",
            r#"{"v":"once"}"#,
            &url,
        ])
    };
    assert_eq!(once()?, once()?);
    let token = stage.token("/my/path?k=bob")?;
    let (session, cursor) = (&welcome["p"]["session"], &frame["m"]["c"]);
    let hello = json!({ "token": token, "session": session, "cursor": cursor });
    let mut bob = Client::greet(&stage.base()?, &hello)?;
    assert_eq!(bob.frame()?["p"]["resumed"], true);
    assert_eq!(bob.frame()?["p"], "cheap", "which he had read, but not noted");
    assert_eq!(bob.frame()?["p"], "once");
    bob.hears_nothing()?;
    let stats = stage.neuron.metric("signal_packets_total")?;
    assert_eq!(stats, 3, "what nobody could hear is no packet");
    Ok(())
}

#[test]
fn a_user_speaks_for_himself_alone() -> Result<()> {
    let stage = Stage::new()?;
    let mut ann = stage.join("ann")?;
    ann.frame()?;
    let bob = stage.token("/my/path?k=bob&expire=600")?;
    let mute = stage.token("/my/path?k=bob&expire=600&grants=subscribe")?;
    let said = post_by(&stage, &bob, "/_subs/my/path", &json!({ "v": "hi" }))?;
    assert_eq!(said["v"]["receivers"], 1, "{said}");
    assert_eq!(ann.frame()?["m"]["f"], "/my/path/bob");
    for (token, path, body) in [
        (&bob, "/_subs/my/path", json!({ "k": "ann", "v": 1 })),
        (&mute, "/_subs/my/path", json!({ "v": 1 })),
        (&mute, "/_subs/my/path", json!({ "v": 1, "t": "ann" })),
        (&bob, "/_subs/my/path/side", json!({ "v": 1 })),
        (&bob, "/_subs/other", json!({ "v": 1 })),
    ] {
        let refused = post_by(&stage, token, path, &body)?;
        assert_eq!(refused["v"], "not_allowed", "{path} {body}: {refused}");
    }
    stage.ok("PUT", "/_conf/my/path", Some(&json!({ "k": "send", "v": ["ann"] })))?;
    let refused = post_by(&stage, &bob, "/_subs/my/path", &json!({ "v": 1 }))?;
    assert_eq!(refused["v"], "not_allowed", "{refused}");
    assert!(refused["detail"].as_str().context("a detail")?.contains("`send`"), "{refused}");
    ann.hears_nothing()
}
