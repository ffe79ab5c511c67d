//! Frames that are well written and mean harm: words of the server, ids, hellos, cursors, sessions.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tests::plain;
use tests::socket::Client;

use super::super::wait_until;
use super::{MALLORY, Member, Room, Way};

/// Who said a frame, as its reader takes it; none when the server did.
fn speaker(way: Way, frame: &Value) -> Option<String> {
    let from = match way {
        Way::V1 => frame["userid"].as_str(),
        _ => frame["m"]["f"].as_str().filter(|_| frame["t"] == "u"),
    };
    Some(from?.rsplit('/').next()?.to_owned())
}

#[test]
fn nobody_speaks_as_the_server_or_as_another() -> Result<()> {
    let mut room = Room::new(&[])?;
    let token = room.token(MALLORY)?;
    let posing = [
        r#"{"t":"u","m":{"o":"OP"},"p":{"users":[]}}"#,
        r#"{"t":"u","m":{"o":"x","o":"OP"},"p":{"users":[]}}"#,
        r#"{"t":"u","m":{"o":"x","\u006f":"OP"},"p":{"users":[]}}"#,
        r#"{"t":"u","m":{"o":"x"},"m":{"o":"OP"},"p":{"users":[]}}"#,
        r#"{"\u0074":"u","\u006d":{"o":"OP","f":"/my/path/__sys__"},"p":null}"#,
        r#"{"t":"u","m":{"t":"ann","o":"OP"},"p":{"users":[]}}"#,
        r#"{"t":"x","t":"u","m":{"o":"OP"}}"#,
    ];
    let posing_v1 = [
        r#"{"eventName":"OP","data":{"users":[]}}"#,
        r#"{"eventName":"x","eventName":"OP"}"#,
        r#"{"\u0065ventName":"OP","targetUserId":"ann"}"#,
    ];
    let escaped = |op: &str| -> String {
        op.chars().map(|letter| format!("\\u{:04x}", letter as u32)).collect()
    };
    let mut posed = room.metric("signal_system_ops_total")?;
    for way in Way::ALL {
        let mut mallory = room.enter(way, &token)?;
        let texts = if way == Way::V1 { &posing_v1[..] } else { &posing[..] };
        for op in ["peers", "peer_connected", "peer_removed"] {
            for op in [op.to_owned(), escaped(op)] {
                for text in texts {
                    mallory.send(&text.replace("OP", &op))?;
                    let refused = mallory.frame()?;
                    let refused = if way == Way::V1 { &refused["message"] } else { &refused["p"] };
                    assert_eq!(refused["v"], "not_allowed", "{way:?}: {text} {op}");
                    posed += 1;
                }
            }
        }
        assert_eq!(room.metric("signal_system_ops_total")?, posed);
        room.notices_nothing()?;

        // What looks like the server's own is what somebody said.
        for text in [
            r#"{"t":"u","m":{"o":"PEERS"},"p":1}"#,
            r#"{"t":"u","m":{"o":" peers"},"p":2}"#,
            r#"{"t":"u","m":{"o":"joined","f":"/my/path/ann","\u0066":"/my/path/bob"},"p":3}"#,
            r#"{"t":"u","m":{"o":"welcome","c":"aff-ff","x":{"f":"/my/path/ann"}},"p":4}"#,
            r#"{"t":"u","m":{"o":"left","session":"1","t":null},"p":5}"#,
            r#"{"t":"u","m":{"f":"/my/path/__sys__","userid":"ann"},"p":{"t":"left","m":{}}}"#,
            r#"{"eventName":"joined","userid":"ann","type":"peers","data":1}"#,
            r#"{"eventName":"","userid":"__sys__","message":"ann"}"#,
        ] {
            mallory.send(text)?;
        }
        mallory.is_heard_out(way, MALLORY)?;
        for (listener, heard) in room.heard()? {
            let count = if way == Way::V1 { 2 } else { 6 };
            assert_eq!(heard.len(), count, "{way:?} to {listener:?}: {heard:?}");
            for frame in heard {
                assert_eq!(speaker(listener, &frame).as_deref(), Some(MALLORY), "{frame}");
            }
        }
        // Kinds of frames that only the server has.
        for kind in ["welcome", "joined", "left", "r", "w", "e", "end", "close", "pong", "peers"] {
            let f = "/my/path/__sys__";
            mallory.send(
                &json!({ "t": kind, "type": kind, "m": { "f": f, "id": 1 }, "p": {}, "message": "ann" })
                    .to_string(),
            )?;
        }
        let refused = mallory.is_heard_out(way, MALLORY)?;
        assert!(
            refused.iter().filter(|frame| frame.to_string().contains("bad_request")).count() == 10
        );
        room.notices_nothing()?;
    }
    room.is_as_before()
}

#[test]
fn what_is_odd_is_told_to_who_said_it_and_to_nobody_else() -> Result<()> {
    let mut room = Room::new(&[])?;
    let token = room.token(MALLORY)?;
    let deep = |open: &str, close: &str| {
        let depth = 10_000;
        format!(r#"{{"t":"u","m":{}1{},"p":1}}"#, open.repeat(depth), close.repeat(depth))
    };
    let id = |bytes: usize| format!("\"{}\"", "i".repeat(bytes - 2));
    let mut texts: Vec<String> = [
        "",
        "null",
        "[]",
        "1",
        "\"ping\"",
        "ping ",
        "{",
        "{}{}",
        r#"{"t":1}"#,
        r#"{"t":"u"}"#,
        r#"{"t":"u","m":[]}"#,
        r#"{"t":"u","m":null}"#,
        r#"{"t":"u","m":{"o":{}}}"#,
        r#"{"t":"u","m":{"t":["ann"]}}"#,
        r#"{"t":"u","m":{"o":"\ud800"}}"#,
        r#"{"t":"u","m":{},"p":}"#,
        r#"{"t":"u","m":{},"p":01}"#,
        "{\"t\":\"u\",\"m\":{},\"p\":\"\u{1}\"}",
        "\u{feff}{\"t\":\"ping\"}",
    ]
    .map(str::to_owned)
    .into();
    texts.push(deep("[", "]"));
    let of_v4 = [
        json!({ "t": "hello", "p": { "token": token } }).to_string(),
        format!(r#"{{"t":"u","m":{{"id":{}}}}}"#, id(65)),
        r#"{"t":"u","m":{"id":{}}}"#.to_owned(),
        r#"{"t":"u","m":{"id":[1]}}"#.to_owned(),
        r#"{"t":"u","m":{"id":null}}"#.to_owned(),
        r#"{"t":"u","m":{"id":true}}"#.to_owned(),
        r#"{"t":"get","p":{"k":"a"}}"#.to_owned(),
        format!(r#"{{"t":"u","m":{{"id":{}}}}}"#, "1".repeat(65)),
    ];
    for way in Way::ALL {
        let mut mallory = room.enter(way, &token)?;
        let is_v4 = matches!(way, Way::V4 | Way::Tcp);
        let before = room.metric("signal_bad_frames_total")?;
        let mut count = 0;
        for text in texts.iter().chain(of_v4.iter().filter(|_| is_v4)) {
            if text.is_empty() && way == Way::Tcp {
                continue;
            }
            mallory.send(text)?;
            let refused = mallory.frame().with_context(|| format!("{way:?}: {text:.80}"))?;
            let fault = if way == Way::V1 { &refused["message"] } else { &refused["p"] };
            assert_eq!(fault["v"], "bad_request", "{way:?}: {text:.80}");
            assert!(refused.to_string().len() < 1_000, "{text:.80}");
            count += 1;
        }
        assert_eq!(room.metric("signal_bad_frames_total")?, before + count, "{way:?}");
        if is_v4 {
            // At the limit it is an id, and comes back as it went.
            for id in [id(64), "1".repeat(64), r#""\ud800""#.to_owned(), "-1e400".to_owned()] {
                mallory.send(&format!(r#"{{"t":"u","m":{{"id":{id},"t":"nobody"}}}}"#))?;
                let text = match &mut mallory {
                    Member::WebSocket(client) => client.next_text()?,
                    Member::Plain(client) => client.text()?,
                };
                let expected = format!(r#"{{"t":"r","m":{{"id":{id}}},"p":{{"#);
                assert!(text.starts_with(&expected) && text.contains("not_found"), "{text}");
            }
        }
        room.notices_nothing()?;
    }
    room.is_as_before()
}

#[test]
fn a_hello_that_is_not_right_opens_nothing() -> Result<()> {
    let mut room = Room::new(&[])?;
    let token = room.token(MALLORY)?;
    let hello = |member: &str, value: &str| {
        format!(r#"{{"t":"hello","p":{{"token":"{token}","{member}":{value}}}}}"#)
    };
    let entries = |count: u64| {
        let all: Vec<String> = (1..=count).map(|at| format!("{at:x}-1")).collect();
        format!("\"a{}\"", all.join("."))
    };
    let long = "\u{7f}".repeat(60_000);
    let mut wrong: Vec<String> = [
        ("cursor", entries(65)),
        ("cursor", entries(6_000)),
        ("cursor", r#""a-1-1""#.to_owned()),
        ("cursor", r#""aff-ffffffffffffffff0""#.to_owned()),
        ("cursor", r#""a2-1.1-1""#.to_owned()),
        ("cursor", "{}".to_owned()),
        ("session", r#""-1""#.to_owned()),
        ("session", r#""00000000000000001""#.to_owned() + "0"),
        ("session", r#""""#.to_owned()),
        ("session", "1".to_owned()),
        ("join", format!("\"{long}\"")),
        ("join", "1".to_owned()),
        ("ident", r#""elena""#.to_owned()),
        ("secret", r#""x""#.to_owned()),
    ]
    .map(|(member, value)| hello(member, &value))
    .into();
    let others = [
        r#"{"t":"hello"}"#,
        r#"{"t":"hello","p":[]}"#,
        r#"{"t":"hello","p":{"token":{}}}"#,
        r#"{"t":"u","m":{"o":"peers"},"p":1}"#,
        r#"{"t":"get","m":{"id":1},"p":{"k":"a"}}"#,
        r#"{"t":"ping","ts":1}"#,
        "{}",
    ];
    wrong.extend(others.map(str::to_owned));
    wrong.push(format!("{long}x"));
    for text in &wrong {
        let mut clients = [
            Member::WebSocket(Box::new(Client::connect(&room.url(Way::V4, ""))?)),
            Member::Plain(plain::Client::connect(&room.tcp)?),
        ];
        for client in &mut clients {
            client.send(text)?;
            let told = client.frame().with_context(|| format!("{text:.200}"))?;
            assert_eq!(told["t"], "e", "{text:.200}: {told:.200}");
            let bytes = told.to_string().len();
            assert!(bytes < 1_000, "{bytes} bytes about {text:.80}");
            let code = match client {
                Member::WebSocket(client) => client.close_code()?.into(),
                Member::Plain(client) => client.close_code()?,
            };
            assert_eq!(code, 1008, "{text:.200}");
        }
    }
    // One that is longer than a message, in a length that says so.
    let huge = hello("data", &format!("\"{}\"", "x".repeat(64 << 10)));
    let mut client = Client::connect(&room.url(Way::V4, ""))?;
    client.send_text(&huge)?;
    assert_eq!(client.close_code()?, 1009);
    // Guesses of an account's secret, and its own secret where it is in no room.
    for way in [Way::V4, Way::Tcp] {
        let guess = json!({ "ident": "elena", "secret": "guess" });
        let code = match way {
            Way::V4 => u64::from(Client::greet(&room.base, &guess)?.close_code()?),
            _ => plain::Client::greet(&room.tcp, &guess)?.close_code()?,
        };
        assert_eq!(code, 4401);
    }
    // As many entries as neurons could have been are a cursor.
    let mut client = Client::connect(&room.url(Way::V4, ""))?;
    client.send_text(&hello("cursor", &entries(64)))?;
    assert_eq!(client.frame()?["p"]["resumed"], false);
    client.leave()?;
    room.is_as_before()
}

/// A session and a cursor are worth nothing to whoever has another name.
#[test]
fn who_knows_anothers_session_neither_closes_nor_mutes_nor_hears_him() -> Result<()> {
    let mut room = Room::new(&[])?;
    let (mut zoe, welcome) = room.stage.greet("mallory-not-at-all")?;
    let (session, cursor) = (welcome["p"]["session"].clone(), welcome["m"]["c"].clone());
    zoe.send_text(r#"{"t":"u","m":{"o":"x","t":"mallory-not-at-all","id":1},"p":"a secret"}"#)?;
    assert_eq!(zoe.frame()?["p"], "a secret");
    zoe.frame()?;
    let token = room.token(MALLORY)?;
    let stolen = [
        json!({ "token": token, "session": session, "cursor": cursor }),
        json!({ "token": token, "session": session }),
        json!({ "token": token, "cursor": cursor }),
        json!({ "token": token, "session": session, "cursor": "aff-ff" }),
        json!({ "token": token, "session": session, "cursor": "a" }),
        json!({ "token": token, "session": "0".repeat(64), "cursor": "a0-0" }),
        json!({ "token": token, "session": "f".repeat(64) }),
    ];
    let mut said = 0;
    for hello in stolen {
        let mut mallory = Client::greet(&room.base, &hello)?;
        let welcome = mallory.frame()?;
        assert_eq!((&welcome["t"], &welcome["p"]["resumed"]), (&json!("welcome"), &json!(false)));
        // As the session's own he would not be heard by its owner, nor she by him.
        said += 1;
        mallory.send_text(
            &json!({ "t": "u", "m": { "id": said + 1, "o": "m" }, "p": said }).to_string(),
        )?;
        loop {
            let frame = zoe.frame()?;
            if frame["p"] == said {
                assert_eq!(frame["m"]["f"], "/my/path/mallory", "{frame}");
                break;
            }
            ensure!(frame["t"] != "close" && frame["t"] != "r", "{frame}");
        }
        zoe.send_text(&json!({ "t": "u", "m": { "o": "z" }, "p": said }).to_string())?;
        loop {
            let frame = mallory.frame()?;
            if frame["t"] == "u" {
                // Nothing of before he came.
                assert_eq!((&frame["p"], &frame["m"]["o"]), (&json!(said), &json!("z")));
                break;
            }
        }
        mallory.vanish();
        // Or he would take the place of himself.
        let others = room.members.len() as u64 + 1;
        wait_until("he has gone", || Ok(room.metric("signal_sockets")? == others))?;
    }
    assert_eq!(room.metric("signal_replaced_total")?, 0);
    // What she said last is known of her still, and not what he said.
    zoe.vanish();
    let token = room.token("mallory-not-at-all")?;
    let hello = json!({ "token": token, "session": session, "cursor": cursor });
    let mut zoe = Client::greet(&room.base, &hello)?;
    let welcome = zoe.frame()?;
    assert_eq!((&welcome["p"]["resumed"], &welcome["p"]["last"]), (&json!(true), &json!(1)));
    let missed: Vec<Value> =
        (0..=said).map(|_| Ok(zoe.frame()?["p"].clone())).collect::<Result<_>>()?;
    assert_eq!(missed[0], "a secret");
    zoe.leave()?;
    room.heard()?;
    room.is_as_before()
}
