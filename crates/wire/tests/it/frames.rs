//! Signalling frames as the deployed clients send and read them, byte for byte.

use proptest::prelude::*;
use wire::envelope::Fault;
use wire::errors::Code;
use wire::frames::{ClientFrame, FrameError, NAME_BYTES_MAX, Name, ServerFrame, UserFrame};
use wire::names::Path;

fn path(text: &str) -> Path {
    Path::parse(text).expect("a path")
}

fn name(text: &str) -> Name {
    Name::encode(text).expect("a name")
}

fn written(frame: ServerFrame<'_>) -> String {
    let mut out = String::new();
    frame.write(&mut out);
    assert_eq!(frame.to_ws(), wire::ws::text_frame(&out));
    serde_json::from_str::<serde_json::Value>(&out).expect("JSON");
    out
}

fn user(text: &str) -> UserFrame<'_> {
    match ClientFrame::parse(text) {
        Ok(ClientFrame::User(frame)) => frame,
        other => panic!("{text}: {other:?}"),
    }
}

fn refused(text: &str) -> FrameError {
    ClientFrame::parse(text).expect_err("not a frame")
}

fn relayed(text: &str) -> String {
    written(ServerFrame::User {
        path: &path("/my/path"),
        from: Some(&name("ann")),
        frame: &user(text),
    })
}

#[test]
fn what_the_server_says() {
    let room = path("/my/path");
    let (ann, bob) = (name("ann"), name("bob"));
    assert_eq!(
        written(ServerFrame::Peers { path: &room, names: &[&ann, &bob] }),
        r#"{"t":"u","m":{"f":"/my/path/__sys__","o":"peers"},"p":{"users":["ann","bob"]}}"#
    );
    assert_eq!(
        written(ServerFrame::PeerConnected { path: &room, name: &ann }),
        r#"{"t":"u","m":{"f":"/my/path/ann","o":"peer_connected"},"p":{}}"#
    );
    assert_eq!(
        written(ServerFrame::PeerRemoved { path: &room, name: &ann }),
        r#"{"t":"u","m":{"f":"/my/path/ann","o":"peer_removed"},"p":{}}"#
    );
    assert_eq!(written(ServerFrame::Pong { ts: Some("1700.50") }), r#"{"t":"pong","ts":1700.50}"#);
    assert_eq!(written(ServerFrame::Pong { ts: None }), r#"{"t":"pong","ts":null}"#);
    assert_eq!(
        written(ServerFrame::Error { fault: &Fault::new(Code::NotAllowed) }),
        r#"{"t":"e","m":{},"p":{"v":"not_allowed","s":"error"}}"#
    );
    assert_eq!(
        written(ServerFrame::User {
            path: &room,
            from: None,
            frame: &user(r#"{"t":"u","m":{"o":"news"},"p":1}"#)
        }),
        r#"{"t":"u","m":{"f":"/my/path/__sys__","o":"news"},"p":1}"#
    );
}

#[test]
fn below_the_root_and_in_awkward_paths() {
    let nobody = |path: &Path| written(ServerFrame::Peers { path, names: &[] });
    assert_eq!(
        nobody(&Path::root()),
        r#"{"t":"u","m":{"f":"/__sys__","o":"peers"},"p":{"users":[]}}"#
    );
    assert_eq!(
        nobody(&path(r#"/voice demo/"é\"#)),
        r#"{"t":"u","m":{"f":"/voice demo/\"é\\/__sys__","o":"peers"},"p":{"users":[]}}"#
    );
}

#[test]
fn a_relayed_frame_has_its_true_sender_and_nothing_else_is_touched() {
    let cases = [
        // v3: the SDK writes a sender of its own making.
        (
            r#"{"t":"u","m":{"f":"undefinedann","o":"message"},"p":{"msg":"hi"}}"#,
            r#"{"t":"u","m":{"f":"/my/path/ann","o":"message"},"p":{"msg":"hi"}}"#,
        ),
        // A bare string and a name with escapes, from C#.
        (
            r#"{"t":"u","m":{"t":"Bob \"B\"","o":"message","f":"x/y"},"p":"hi"}"#,
            r#"{"t":"u","m":{"f":"/my/path/ann","o":"message","t":"Bob \"B\""},"p":"hi"}"#,
        ),
        // Numbers, order and spaces inside the payload stay as they are.
        (
            r#" {"p": {"z":1.0e+05, "a":12345678901234567890, "a":0} ,"m":{"o":"session","t":null},"t":"u"} "#,
            r#"{"t":"u","m":{"f":"/my/path/ann","o":"session"},"p":{"z":1.0e+05, "a":12345678901234567890, "a":0}}"#,
        ),
        // No payload, no operation, no receiver.
        (r#"{"t":"u","m":{"t":""}}"#, r#"{"t":"u","m":{"f":"/my/path/ann"},"p":null}"#),
        // What applications add to `m` goes along; what they add outside does not.
        (
            r#"{"t":"u","x":[{}],"m":{"id":7,"o":"create","a\"b":[1, 2]},"p":[]}"#,
            r#"{"t":"u","m":{"f":"/my/path/ann","o":"create","id":7,"a\"b":[1, 2]},"p":[]}"#,
        ),
        // Of equal members a browser keeps the last; so does everyone who gets this.
        (
            r#"{"t":"x","t":"u","m":{"o":"peers","\u006f":"message","\u0066":"/my/path/bob"},"p":1,"p":2}"#,
            r#"{"t":"u","m":{"f":"/my/path/ann","o":"message"},"p":2}"#,
        ),
    ];
    for (sent, expected) in cases {
        assert_eq!(relayed(sent), expected);
    }
}

#[test]
fn signs_of_life() {
    assert!(matches!(ClientFrame::parse("ping"), Ok(ClientFrame::TextPing)));
    assert!(matches!(ClientFrame::parse(" { } "), Ok(ClientFrame::Heartbeat)));
    assert!(matches!(
        ClientFrame::parse(r#"{"t":"ping","ts":1700000000123}"#),
        Ok(ClientFrame::Ping { ts: Some("1700000000123") })
    ));
    assert!(matches!(ClientFrame::parse(r#"{"t":"ping"}"#), Ok(ClientFrame::Ping { ts: None })));
    assert!(matches!(
        ClientFrame::parse(r#"{"t":"tm","m":{"o":"pub"},"p":{"sdp":"…"}}"#),
        Ok(ClientFrame::Mixer)
    ));
}

#[test]
fn what_is_not_a_frame() {
    for text in ["", "Ping", "ping ", "null", "[]", "1", "{", r#"{"t":"u","m":{},"p":}"#, "{} {}"] {
        assert!(matches!(ClientFrame::parse(text), Err(FrameError::Syntax(_))), "{text}");
    }
    for text in [r#"{"t":"e"}"#, r#"{"m":{}}"#, r#"{"t":null,"m":{}}"#, r#"{"x":1}"#] {
        assert_eq!(refused(text), FrameError::UnknownKind, "{text}");
    }
    for text in [r#"{"t":"u"}"#, r#"{"t":"u","m":null,"p":1}"#] {
        assert_eq!(refused(text), FrameError::MetaMissing, "{text}");
    }
    for text in [
        r#"{"t":"u","m":[]}"#,
        r#"{"t":"u","m":{"o":["peers"]}}"#,
        r#"{"t":"u","m":{"o":1}}"#,
        r#"{"t":"u","m":{"t":7}}"#,
        r#"{"t":7,"m":{}}"#,
    ] {
        assert_eq!(refused(text).code(), Code::BadRequest, "{text}");
    }
}

/// A page that took another client's `peer_removed` for the server's would drop a peer.
#[test]
fn only_the_server_says_who_is_present() {
    for text in [
        r#"{"t":"u","m":{"o":"peers"},"p":{"users":[]}}"#,
        r#"{"t":"u","m":{"o":"peer_connected"}}"#,
        r#"{"t":"u","m":{"o":"message","o":"peer_removed"}}"#,
        r#"{"t":"u","m":{"\u006f":"\u0070eers"}}"#,
    ] {
        let error = refused(text);
        assert_eq!((error.code(), error), (Code::NotAllowed, FrameError::SystemOp), "{text}");
    }
}

/// The parser does not recurse into what it only passes on.
#[test]
fn a_payload_as_deep_as_a_message_can_be() {
    let depth = 1 << 20;
    let payload = format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    let text = format!(r#"{{"x":{payload},"t":"u","m":{{"x":{payload}}},"p":{payload}}}"#);
    assert_eq!(user(&text).payload, payload);
}

#[test]
fn names() {
    for (identity, expected) in [
        ("ann", "ann"),
        ("Az09._~-", "Az09._~-"),
        ("a/b", "a%2Fb"),
        ("a%2Fb", "a%252Fb"),
        ("John Smith", "John%20Smith"),
        ("é", "%C3%A9"),
        ("\"\\\u{1}", "%22%5C%01"),
    ] {
        assert_eq!(name(identity).as_str(), expected);
    }
    assert!(Name::encode("").is_err());
    assert!(Name::encode("__sys__").is_err());
    assert!(Name::encode(&"x".repeat(NAME_BYTES_MAX)).is_ok());
    assert!(Name::encode(&"x".repeat(NAME_BYTES_MAX + 1)).is_err());
    assert!(Name::encode(&"/".repeat(NAME_BYTES_MAX / 3)).is_ok());
    assert!(Name::encode(&"/".repeat(NAME_BYTES_MAX / 3 + 1)).is_err());
}

fn json() -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        ".{0,12}".prop_map(Into::into),
    ];
    leaf.prop_recursive(3, 20, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Into::into),
            prop::collection::btree_map(".{0,6}", inner, 0..4)
                .prop_map(|map| serde_json::Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn relaying_changes_the_sender_alone(
        meta in prop::collection::btree_map("[fot]|.{0,6}", json(), 0..6),
        op in ".{0,10}",
        to in prop::option::of(".{1,10}"),
        payload in json(),
    ) {
        let mut meta: serde_json::Map<_, _> = meta.into_iter().collect();
        meta.insert("o".into(), op.into());
        meta.remove("t");
        if let Some(to) = to {
            meta.insert("t".into(), to.into());
        }
        let sent = serde_json::json!({"t": "u", "m": meta, "p": payload}).to_string();
        let mut expected = meta;
        expected.insert("f".into(), "/my/path/ann".into());
        let expected = serde_json::json!({"t": "u", "m": expected, "p": payload});
        let got: serde_json::Value = serde_json::from_str(&relayed(&sent)).expect("JSON");
        prop_assert_eq!(got, expected);
    }

    #[test]
    fn garbage_is_an_answer(text in r#"(\{|\}|\[|\]|"|:|,|t|u|m|p|ping|tm|null|1|\\|é|"t":"u"|"m":\{|"o":"peers"){0,20}"#) {
        if let Ok(ClientFrame::User(frame)) = ClientFrame::parse(&text) {
            let path = path("/p");
            written(ServerFrame::User { path: &path, from: None, frame: &frame });
        }
    }

    #[test]
    fn distinct_identities_have_distinct_names(a in "[a%2F/5 é]{1,4}", b in "[a%2F/5 é]{1,4}") {
        if let (Ok(first), Ok(second)) = (Name::encode(&a), Name::encode(&b)) {
            prop_assert_eq!(a == b, first == second);
        }
    }
}
