//! Data over a socket: requests and watches of v4 clients, by token and by an account's credentials.

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use tests::feed::Feed;
use tests::socket::Client;

use super::{Stage, wait_until};

const ALL: &str = "subscribe,publish,send,watch,read,write";

/// A v4 client in `/my/path` with grants, which has heard its welcome.
fn user(stage: &Stage, name: &str, grants: &str) -> Result<Client> {
    let token = stage.token(&format!("/my/path?k={name}&expire=600&grants={grants}"))?;
    let mut client = Client::greet(&stage.base()?, &json!({ "token": token }))?;
    assert_eq!(client.frame()?["t"], "welcome");
    Ok(client)
}

/// The account itself, in no room.
fn account(stage: &Stage) -> Result<Client> {
    let (ident, secret) = stage.credentials.split_once(':').context("credentials")?;
    let hello = json!({ "ident": ident, "secret": secret });
    let mut client = Client::greet(&stage.base()?, &hello)?;
    assert_eq!(client.frame()?, json!({ "t": "welcome", "m": {}, "p": { "ident": "elena" } }));
    Ok(client)
}

/// The value of an answer that is one.
fn value(reply: &Value) -> Result<Value> {
    anyhow::ensure!(reply["p"]["s"] == "ok", "{reply}");
    Ok(reply["p"]["v"].clone())
}

#[test]
fn entries_are_written_and_read_over_a_socket() -> Result<()> {
    let stage = Stage::new()?;
    let mut user = user(&stage, "ann", ALL)?;
    let mut account = account(&stage)?;
    for (number, (client, at)) in
        [(&mut user, None), (&mut account, Some("/my/path"))].into_iter().enumerate()
    {
        let params = |more: Value| {
            let mut params = more;
            if let Some(at) = at {
                params["path"] = at.into();
            }
            params
        };
        let key = format!("k{number}");
        let reply = client.ask("put", &json!(1), &params(json!({ "k": key, "v": { "n": 1 } })))?;
        let ver = value(&reply)?["_ver_"].clone();
        assert_eq!(reply["m"], json!({ "id": 1, "ver": ver }));
        // Answers come in the order of the requests, whatever they are.
        client.send_text(
            &json!({ "t": "put", "m": { "id": "a" }, "p": params(json!({ "k": key, "v": 2 })) })
                .to_string(),
        )?;
        client.send_text(
            &json!({ "t": "get", "m": { "id": "b" }, "p": params(json!({ "k": key })) })
                .to_string(),
        )?;
        let replies = [client.frame()?, client.frame()?];
        assert_eq!([&replies[0]["m"]["id"], &replies[1]["m"]["id"]], [&json!("a"), &json!("b")]);
        assert_eq!(value(&replies[1])?, 2, "a client reads what it wrote");
        let list = value(&client.ask("list", &json!(2), &params(json!({})))?)?;
        assert!(list.as_array().context("a list")?.contains(&json!(key)), "{list}");
        let series = value(&client.ask("series", &json!(3), &params(json!({ "k": key })))?)?;
        assert_eq!(series.as_array().map(Vec::len), Some(2), "{series}");
        let who = &series[0][1];
        assert_eq!(*who, if at.is_some() { json!("elena") } else { json!("ann") });
        // A version is looked at as it is over HTTP.
        let stale = params(json!({ "k": key, "v": 3, "_ver_": ver }));
        assert_eq!(client.ask("put", &json!(4), &stale)?["p"]["v"], "version_conflict");
        assert_eq!(value(&client.ask("delete", &json!(5), &params(json!({ "k": key })))?)?, 1);
        let gone = client.ask("get", &json!(6), &params(json!({ "k": key })))?;
        assert_eq!(gone["p"]["v"], "not_found");
    }
    // What HTTP sees is the same.
    let seen = stage.ok("GET", "/_data/my/path?k=k0&time_series=1", None)?;
    assert_eq!(seen.as_array().map(Vec::len), Some(2));
    Ok(())
}

#[test]
fn a_request_that_cannot_be_is_told_why() -> Result<()> {
    let stage = Stage::new()?;
    let mut ann = user(&stage, "ann", ALL)?;
    for (kind, params, code) in [
        ("get", json!({}), "bad_name"),
        ("delete", json!({}), "bad_name"),
        ("list", json!({ "k": "x" }), "bad_request"),
        ("get", json!({ "k": "x", "path": "/a/../b" }), "bad_segment"),
        ("get", json!({ "k": "x", "service": "nothing" }), "bad_name"),
        ("get", json!({ "k": "x", "service": "acc/accounts" }), "bad_name"),
        ("list", json!({ "service": "acc", "path": "/accounts" }), "not_allowed"),
        ("put", json!({ "k": "x" }), "value_missing"),
        ("put", json!([]), "bad_name"),
        ("unwatch", json!({ "watch": 9 }), "not_found"),
        ("unwatch", json!({}), "bad_request"),
        ("watch", json!({ "service": "acc" }), "not_allowed"),
    ] {
        let reply = ann.ask(kind, &json!(1), &params)?;
        assert_eq!(reply["p"]["v"], code, "{kind} {params}: {reply}");
    }
    for text in [r#"{"t":"get","p":{"k":"x"}}"#, r#"{"t":"get","m":{"id":{}},"p":{"k":"x"}}"#] {
        ann.send_text(text)?;
        let error = ann.frame()?;
        assert_eq!((&error["t"], &error["p"]["v"]), (&json!("e"), &json!("bad_request")));
    }
    let mut account = account(&stage)?;
    let reply = account.ask("u", &json!(1), &json!("hi"))?;
    assert_eq!(reply["p"]["v"], "not_allowed", "in no room");
    let hello = json!({ "ident": "elena", "secret": "wrong" });
    assert_eq!(Client::greet(&stage.base()?, &hello)?.close_code()?, 4401);
    Ok(())
}

/// Grants and rules hold over a socket as they do over HTTP.
#[test]
fn a_socket_reads_and_writes_what_its_token_and_the_rules_permit() -> Result<()> {
    let stage = Stage::new()?;
    stage.ok("PUT", "/_data/my/path", Some(&json!({ "k": "x", "v": 1 })))?;
    let get = json!({ "k": "x" });
    let put = json!({ "k": "x", "v": 2 });
    for (grants, can_read, can_write, can_watch) in [
        ("subscribe", false, false, false),
        ("subscribe,read", true, false, false),
        ("subscribe,write", false, true, false),
        ("subscribe,watch", false, false, true),
    ] {
        let mut ann = user(&stage, "ann", grants)?;
        for (kind, params, can) in
            [("get", &get, can_read), ("put", &put, can_write), ("watch", &get, can_watch)]
        {
            let reply = ann.ask(kind, &json!(kind), params)?;
            let expected = if can { "ok" } else { "error" };
            assert_eq!(reply["p"]["s"], expected, "{grants}: {reply}");
        }
    }
    let mut ann = user(&stage, "ann", ALL)?;
    let elsewhere = json!({ "k": "x", "path": "/other" });
    assert_eq!(ann.ask("get", &json!(1), &elsewhere)?["p"]["v"], "not_allowed");
    stage.ok("PUT", "/_conf/my/path", Some(&json!({ "k": "write", "v": ["bob"] })))?;
    assert_eq!(ann.ask("put", &json!(2), &put)?["p"]["v"], "not_allowed");
    let mut bob = user(&stage, "bob", ALL)?;
    assert_eq!(bob.ask("put", &json!(1), &put)?["p"]["s"], "ok");
    Ok(())
}

/// The end of a token is that of connecting: what is connected goes on.
#[test]
fn an_open_socket_asks_on_when_its_token_has_expired_and_not_when_it_was_revoked() -> Result<()> {
    let stage = Stage::new()?;
    let token = stage.token(&format!("/my/path?k=ann&expire=4&grants={ALL}"))?;
    let mut ann = Client::greet(&stage.base()?, &json!({ "token": token }))?;
    ann.frame()?;
    let hello = json!({ "token": token, "join": false });
    let mut outside = Client::greet(&stage.base()?, &hello)?;
    assert_eq!(outside.frame()?["p"]["name"], "ann");
    wait_until("the token has expired", || {
        let bearer = format!("Authorization: Bearer {token}");
        let url = format!("{}/_data/my/path", stage.neuron.url());
        Ok(tests::curl::run(&["-H", &bearer, &url])?.contains("unauthorized"))
    })?;
    let put = json!({ "k": "x", "v": 1 });
    assert_eq!(ann.ask("put", &json!(1), &put)?["p"]["s"], "ok");
    assert_eq!(outside.ask("put", &json!(1), &put)?["p"]["s"], "ok");
    assert_eq!(outside.ask("watch", &json!(2), &json!({}))?["p"]["s"], "ok");
    stage.ok("DELETE", &format!("/_token?id={token}"), None)?;
    assert_eq!(ann.close_code()?, 4401);
    let ended = outside.frame()?;
    assert_eq!((&ended["t"], &ended["m"]["watch"]), (&json!("end"), &json!(2)), "{ended}");
    assert_eq!(outside.ask("get", &json!(3), &json!({ "k": "x" }))?["p"]["v"], "unauthorized");
    Ok(())
}

#[test]
fn a_watch_begins_with_what_is_there_and_tells_every_change() -> Result<()> {
    let stage = Stage::new()?;
    let put =
        |key: &str, v: Value| stage.ok("PUT", "/_data/my/path", Some(&json!({ "k": key, "v": v })));
    put("a", json!(1))?;
    let mut ann = user(&stage, "ann", ALL)?;
    let mut account = account(&stage)?;
    let start = value(&ann.ask("watch", &json!("all"), &json!({}))?)?;
    assert_eq!((&start["entries"][0]["k"], &start["entries"][0]["v"]), (&json!("a"), &json!(1)));
    let of_key = json!({ "path": "/my/path", "k": "b" });
    let start = value(&account.ask("watch", &json!(7), &of_key)?)?;
    assert_eq!(start, json!({ "entries": [] }));
    put("b", json!({ "x": [1.50] }))?;
    put("a", json!(2))?;
    stage.ok("DELETE", "/_data/my/path?k=b", None)?;
    let told = [ann.frame()?, ann.frame()?, ann.frame()?];
    for frame in &told {
        assert_eq!((&frame["t"], &frame["m"]), (&json!("w"), &json!({ "path": "/my/path" })));
        assert!(frame["p"]["_ver_"].is_string(), "{frame}");
    }
    let keys: Vec<_> = told.iter().map(|frame| frame["p"]["k"].as_str()).collect();
    assert_eq!(keys, [Some("b"), Some("a"), Some("b")]);
    assert_eq!(told[2]["p"]["deleted"], true);
    let of_b = [account.frame()?, account.frame()?];
    assert_eq!([&of_b[0]["p"], &of_b[1]["p"]], [&told[0]["p"], &told[2]["p"]]);

    // It ends when it is asked to, and then nothing more comes.
    assert_eq!(value(&ann.ask("unwatch", &json!(2), &json!({ "watch": "all" }))?)?, Value::Null);
    put("a", json!(3))?;
    ann.hears_nothing()?;
    account.hears_nothing()?;
    // An id is one watch's, and there are so many.
    for number in 8..135 {
        let reply = account.ask("watch", &json!(number), &of_key)?;
        assert_eq!(reply["p"]["s"], "ok", "{number}: {reply}");
    }
    assert_eq!(account.ask("watch", &json!(135), &of_key)?["p"]["v"], "overloaded");
    assert_eq!(account.ask("watch", &json!(8), &of_key)?["p"]["v"], "bad_request");
    drop(account);
    wait_until("its watches are gone", || Ok(stage.neuron.metric("watches")? == 0))?;
    Ok(())
}

#[test]
fn a_watch_ends_when_a_rule_takes_it_away() -> Result<()> {
    let stage = Stage::new()?;
    let mut ann = user(&stage, "ann", ALL)?;
    assert_eq!(ann.ask("watch", &json!(1), &json!({ "k": "x" }))?["p"]["s"], "ok");
    stage.ok("PUT", "/_conf/my/path", Some(&json!({ "k": "watch", "v": ["bob"] })))?;
    let ended = ann.frame()?;
    assert_eq!(ended["m"], json!({ "watch": 1, "path": "/my/path" }), "{ended}");
    assert_eq!(ended["p"]["v"], "not_allowed");
    stage.ok("PUT", "/_data/my/path", Some(&json!({ "k": "x", "v": 1 })))?;
    ann.hears_nothing()?;
    // Its id is free, and its place.
    stage.ok("DELETE", "/_conf/my/path?k=watch", None)?;
    let start = value(&ann.ask("watch", &json!(1), &json!({ "k": "x" }))?)?;
    assert_eq!(start["entries"][0]["v"], 1);
    Ok(())
}

/// Once a rule or a revocation is answered, nothing that is written after it is told, by whatever way the
/// watch goes.
#[test]
fn what_is_written_after_a_rule_is_not_told_to_whom_it_leaves_out() -> Result<()> {
    let stage = Stage::new()?;
    let conf = |rule: &str, users: Value| {
        stage.ok("PUT", "/_conf/my/path", Some(&json!({ "k": rule, "v": users })))
    };
    let write =
        |value: u64| stage.ok("PUT", "/_data/my/path", Some(&json!({ "k": "x", "v": value })));
    let open = |token: &str| {
        let path = format!("/_data/my/path?k=x&watch=sse&token={token}");
        Feed::open(&format!("{}{path}", stage.neuron.url()), &[])
    };
    for (round, rule) in ["watch", "read", "watch", "read"].into_iter().enumerate() {
        let path = format!("/my/path?k=ann{round}&expire=600&grants=subscribe,watch");
        let token = stage.token(&path)?;
        let mut inside = Client::greet(&stage.base()?, &json!({ "token": token }))?;
        let outside = json!({ "token": token, "join": false });
        let mut outside = Client::greet(&stage.base()?, &outside)?;
        for client in [&mut inside, &mut outside] {
            assert_eq!(client.frame()?["t"], "welcome");
            assert_eq!(client.ask("watch", &json!(1), &json!({ "k": "x" }))?["p"]["s"], "ok");
        }
        let mut feed = open(&token)?;
        feed.expect("start")?;
        write(1)?;
        for client in [&mut inside, &mut outside] {
            assert_eq!(client.frame()?["p"]["v"], 1);
        }
        feed.expect("change")?;
        // What changes for others changes nothing here, and is no pause either.
        conf(rule, json!([format!("ann{round}")]))?;
        write(2)?;
        for client in [&mut inside, &mut outside] {
            assert_eq!(client.frame()?["p"]["v"], 2);
        }
        feed.expect("change")?;
        conf(rule, json!(["bob"]))?;
        write(3)?;
        for client in [&mut inside, &mut outside] {
            let ended = client.frame()?;
            assert_eq!((&ended["t"], &ended["p"]["v"]), (&json!("end"), &json!("not_allowed")));
        }
        feed.expect("end")?;
        stage.ok("DELETE", &format!("/_conf/my/path?k={rule}"), None)?;
        // The same of a token that is taken back.
        assert_eq!(outside.ask("watch", &json!(1), &json!({ "k": "x" }))?["p"]["s"], "ok");
        let mut feed = open(&token)?;
        feed.expect("start")?;
        stage.ok("DELETE", &format!("/_token/my/path?k=ann{round}"), None)?;
        write(4)?;
        let ended = outside.frame()?;
        assert_eq!((&ended["t"], &ended["p"]["v"]), (&json!("end"), &json!("unauthorized")));
        feed.expect("end")?;
    }
    Ok(())
}

/// Two services have paths of the same names.
#[test]
fn a_change_says_of_which_service_it_is() -> Result<()> {
    let stage = Stage::new()?;
    let mut account = account(&stage)?;
    for (id, service) in [(1, "data"), (2, "conf")] {
        let watch = json!({ "service": service, "path": "/my/path" });
        assert_eq!(account.ask("watch", &json!(id), &watch)?["p"]["s"], "ok");
    }
    stage.ok("PUT", "/_conf/my/path", Some(&json!({ "k": "join", "v": "*" })))?;
    assert_eq!(account.frame()?["m"], json!({ "path": "/my/path", "service": "conf" }));
    stage.ok("PUT", "/_data/my/path", Some(&json!({ "k": "join", "v": 1 })))?;
    assert_eq!(account.frame()?["m"], json!({ "path": "/my/path" }));
    let host =
        account.ask("get", &json!(3), &json!({ "service": "host", "k": "x", "type": "signal" }))?;
    assert_eq!(host["p"]["v"], "no_service", "a socket has no address to name: {host}");
    Ok(())
}

/// Who may not watch any more hears nothing more, however long the answers are that it asks for and
/// does not take.
#[test]
fn a_watch_is_taken_away_beside_requests_that_wait() -> Result<()> {
    let stage = Stage::with(&[("GANGLION_SIGNAL__QUEUE", "128KiB")])?;
    let put = json!({ "k": "long", "v": "x".repeat(60_000) });
    stage.ok("PUT", "/_data/my/path", Some(&put))?;
    let mut ann = user(&stage, "ann", ALL)?;
    assert_eq!(ann.ask("watch", &json!(1), &json!({ "k": "x" }))?["p"]["s"], "ok");
    for number in 2..60 {
        let get = json!({ "t": "get", "m": { "id": number }, "p": { "k": "long" } });
        ann.send_text(&get.to_string())?;
    }
    stage.ok("PUT", "/_conf/my/path", Some(&json!({ "k": "watch", "v": ["bob"] })))?;
    wait_until("the watch is gone", || Ok(stage.neuron.metric("watches")? == 0))
}

/// A token that is good for any path asks about the room that it was used for.
#[test]
fn what_names_no_path_is_about_the_room() -> Result<()> {
    let stage = Stage::new()?;
    stage.ok("PUT", "/_data/my/path", Some(&json!({ "k": "x", "v": 5 })))?;
    let token = stage.token("?k=ann&expire=600&grants=subscribe,read")?;
    let hello = json!({ "token": token, "path": "/my/path" });
    let mut ann = Client::greet(&stage.base()?, &hello)?;
    ann.frame()?;
    let reply = ann.ask("get", &json!(1), &json!({ "k": "x" }))?;
    assert_eq!(value(&reply)?["x"].as_u64().or(value(&reply)?.as_u64()), Some(5), "{reply}");
    Ok(())
}

/// A refusal would say that nothing was done.
#[test]
fn what_was_written_is_not_refused_since_it_is_too_long_to_come_back() -> Result<()> {
    let stage = Stage::with(&[("GANGLION_SIGNAL__QUEUE", "70KiB")])?;
    let mut account = account(&stage)?;
    let put = json!({ "path": "/my/path", "k": "a", "v": "x".repeat(50_000) });
    let reply = account.ask("put", &json!(1), &put)?;
    assert_eq!(reply["p"], json!({ "v": null, "s": "ok" }));
    let row = stage.ok("GET", "/_data/my/path?k=a", None)?;
    assert_eq!(row.to_string().matches('x').count(), 50_000);
    let missing = account.ask("delete", &json!(2), &json!({ "path": "/my/path", "k": "b" }))?;
    assert_eq!(missing["p"]["s"], "error", "{missing}");
    Ok(())
}

/// What does not fit a socket's queue is refused, and cuts nobody.
#[test]
fn an_answer_longer_than_the_queue_is_refused() -> Result<()> {
    let stage = Stage::with(&[("GANGLION_SIGNAL__QUEUE", "128KiB")])?;
    let mut account = account(&stage)?;
    let long = "x".repeat(30_000);
    for key in ["a", "b", "c"] {
        let put = json!({ "path": "/my/path", "k": key, "v": long });
        assert_eq!(account.ask("put", &json!(key), &put)?["p"]["s"], "ok");
    }
    let values = json!({ "path": "/my/path", "as": "values" });
    assert_eq!(account.ask("list", &json!(1), &values)?["p"]["v"], "too_large");
    let watch = account.ask("watch", &json!(3), &json!({ "path": "/my/path" }))?;
    assert_eq!(watch["p"]["v"], "too_large");
    assert_eq!(stage.neuron.metric("watches")?, 0, "nobody knows of it");
    let reply = account.ask("list", &json!(2), &json!({ "path": "/my/path" }))?;
    assert_eq!(value(&reply)?, json!(["a", "b", "c"]));
    // Many at once wait for one another, and for the reader.
    for number in 0..200 {
        let get = json!({ "path": "/my/path", "k": "a" });
        let ask = json!({ "t": "get", "m": { "id": number }, "p": get });
        account.send_text(&ask.to_string())?;
    }
    for number in 0..200 {
        let reply = account.frame()?;
        assert_eq!((&reply["m"]["id"], &reply["p"]["s"]), (&json!(number), &json!("ok")));
    }
    assert_eq!(stage.neuron.metric("socket_slow_total")?, 0);
    assert!(stage.neuron.metric("socket_paced_total")? > 0);
    Ok(())
}
