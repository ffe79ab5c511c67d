//! Signalling frames as the deployed clients send and read them, byte for byte.

use proptest::prelude::*;
use wire::envelope::Fault;
use wire::errors::Code;
use wire::frames::{
    ClientFrame, Cursor, FrameError, Generation, Hello, ID_BYTES_MAX, Id, Incarnation,
    NAME_BYTES_MAX, Name, Present, ServerFrame, Session, UserFrame, Verb, Welcome, watched,
};
use wire::names::Path;

fn path(text: &str) -> Path {
    Path::parse(text).expect("a path")
}

fn name(text: &str) -> Name {
    Name::encode(text).expect("a name")
}

/// As v2 and v3 read it.
fn written(frame: ServerFrame<'_>) -> String {
    written_for(Generation::V2, frame)
}

fn written_for(generation: Generation, frame: ServerFrame<'_>) -> String {
    let mut out = String::new();
    frame.write(generation, &mut out);
    assert_eq!(frame.to_ws(generation), wire::ws::text_frame(&out));
    serde_json::from_str::<serde_json::Value>(&out).expect("JSON");
    out
}

fn parse(text: &str) -> Result<ClientFrame<'_>, FrameError> {
    ClientFrame::parse(Generation::V2, text).map_err(|bad| bad.error)
}

fn user(text: &str) -> UserFrame<'_> {
    user_of(Generation::V2, text)
}

fn user_of(generation: Generation, text: &str) -> UserFrame<'_> {
    match ClientFrame::parse(generation, text) {
        Ok(ClientFrame::User(frame)) => frame,
        other => panic!("{text}: {other:?}"),
    }
}

fn refused(text: &str) -> FrameError {
    parse(text).expect_err("not a frame")
}

fn relayed(text: &str) -> String {
    written(ServerFrame::User {
        path: &path("/my/path"),
        from: Some(&name("ann")),
        frame: &user(text),
        cursor: None,
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
        written(ServerFrame::PeerConnected { path: &room, name: &ann, data: Some("{}") }),
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
            frame: &user(r#"{"t":"u","m":{"o":"news"},"p":1}"#),
            cursor: None,
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

/// xRTC 1.4, whose handlers read exactly these members (`spec/xirsys.md` §1.8).
#[test]
fn v1_has_words_of_its_own() {
    let v1 = |frame: ServerFrame<'_>| written_for(Generation::V1, frame);
    let room = path("/my/path");
    let (ann, bob) = (name("ann"), name("bob"));
    assert_eq!(
        v1(ServerFrame::Peers { path: &room, names: &[&ann, &bob] }),
        r#"{"type":"peers","message":{"users":["ann","bob"]}}"#
    );
    assert_eq!(
        v1(ServerFrame::PeerConnected { path: &room, name: &ann, data: Some("1") }),
        r#"{"type":"peer_connected","message":"ann"}"#
    );
    assert_eq!(
        v1(ServerFrame::PeerRemoved { path: &room, name: &ann }),
        r#"{"type":"peer_removed","message":"ann"}"#
    );
    assert_eq!(
        v1(ServerFrame::Error { fault: &Fault::new(Code::NotAllowed) }),
        r#"{"type":"error","message":{"v":"not_allowed","s":"error"}}"#
    );
    let offer = r#"{"eventName":"receiveoffer","data":{"connectionId":"c1","offer":{"offer":"sdp"}},"targetUserId":"bob"}"#;
    let frame = user_of(Generation::V1, offer);
    let relayed = ServerFrame::User { path: &room, from: Some(&ann), frame: &frame, cursor: None };
    assert_eq!(
        v1(relayed),
        r#"{"type":"receiveoffer","userid":"ann","message":{"targetUserId":"bob","data":{"connectionId":"c1","offer":{"offer":"sdp"}}}}"#
    );
    // The same, as the others of the room hear it, and the other way about.
    assert_eq!(
        written(relayed),
        r#"{"t":"u","m":{"f":"/my/path/ann","o":"receiveoffer","t":"bob"},"p":{"connectionId":"c1","offer":{"offer":"sdp"}}}"#
    );
    let frame = user(r#"{"t":"u","m":{"o":"a\"b","x":1},"p":"hi"}"#);
    assert_eq!(
        v1(ServerFrame::User { path: &room, from: Some(&ann), frame: &frame, cursor: None }),
        r#"{"type":"a\"b","userid":"ann","message":{"targetUserId":null,"data":"hi"}}"#
    );

    let parse = |text| ClientFrame::parse(Generation::V1, text).map_err(|bad| bad.error);
    assert!(matches!(parse("{}"), Ok(ClientFrame::Heartbeat)));
    assert!(matches!(parse("ping"), Ok(ClientFrame::TextPing)));
    assert!(matches!(parse(r#"{"eventName":"peers"}"#), Err(FrameError::SystemOp)));
    assert!(matches!(parse(r#"{"t":"u","m":{}}"#), Err(FrameError::UnknownKind(_))));
    assert!(matches!(parse(r#"{"eventName":7}"#), Err(FrameError::Syntax(_))));
    let everyone = user_of(Generation::V1, r#"{"eventName":"x","targetUserId":""}"#);
    assert_eq!((everyone.to, everyone.payload), (None, "null"));
}

#[test]
fn v4_is_told_more() {
    let v4 = |frame: ServerFrame<'_>| written_for(Generation::V4, frame);
    let room = path("/my/path");
    let (ann, bob) = (name("ann"), name("bob"));
    let cursor = Cursor::of(Incarnation(0xBEEF), 26);
    let present = [Present { name: &ann, data: None }, Present { name: &bob, data: Some("[1]") }];
    let welcome = Welcome {
        path: &room,
        topic: "topic",
        name: &ann,
        session: Session {
            incarnation: Incarnation(0xBEEF),
            number: 0xF00D,
            born: 7,
            seal: 0xCAFE,
        },
        cursor: &cursor,
        present: &present,
        is_resumed: None,
        last_id: None,
        refused: &[],
    };
    assert_eq!(
        v4(ServerFrame::Welcome(&welcome)),
        r#"{"t":"welcome","m":{"f":"/my/path/__sys__","c":"abeef-1a"},"p":{"path":"/my/path","topic":"topic","name":"ann","session":"000000000000beef000000000000f00d0000000000000007000000000000cafe","users":["ann","bob"],"data":{"bob":[1]}}}"#
    );
    let again = Welcome {
        is_resumed: Some(true),
        last_id: Some("7"),
        refused: &[("6", Code::NotFound), (r#""a""#, Code::NotAllowed)],
        present: &[],
        ..welcome
    };
    assert_eq!(
        v4(ServerFrame::Welcome(&again)),
        r#"{"t":"welcome","m":{"f":"/my/path/__sys__","c":"abeef-1a"},"p":{"path":"/my/path","topic":"topic","name":"ann","session":"000000000000beef000000000000f00d0000000000000007000000000000cafe","resumed":true,"last":7,"refused":[[6,"not_found"],["a","not_allowed"]],"users":[],"data":{}}}"#
    );
    let told = |data| ServerFrame::PeerConnected { path: &room, name: &bob, data };
    assert_eq!(v4(told(None)), r#"{"t":"joined","m":{"f":"/my/path/bob"},"p":null}"#);
    assert_eq!(v4(told(Some("[1]"))), r#"{"t":"joined","m":{"f":"/my/path/bob"},"p":[1]}"#);
    assert_eq!(
        v4(ServerFrame::PeerRemoved { path: &room, name: &bob }),
        r#"{"t":"left","m":{"f":"/my/path/bob"},"p":null}"#
    );
    assert_eq!(
        v4(ServerFrame::Presence { path: &room, name: &bob, data: Some("2") }),
        r#"{"t":"presence","m":{"f":"/my/path/bob"},"p":2}"#
    );
    let frame = user_of(Generation::V4, r#"{"t":"u","m":{"id":"a","o":"x","c":"a0","y":1},"p":2}"#);
    let id = frame.id.expect("an id");
    assert_eq!(id.as_str(), "\"a\"");
    assert_eq!(
        v4(ServerFrame::User {
            path: &room,
            from: Some(&bob),
            frame: &frame,
            cursor: Some(&cursor)
        }),
        r#"{"t":"u","m":{"f":"/my/path/bob","o":"x","y":1,"c":"abeef-1a"},"p":2}"#
    );
    assert_eq!(
        v4(ServerFrame::Reply {
            id,
            cursor: Some(&cursor),
            ver: None,
            envelope: r#"{"v":null,"s":"ok"}"#
        }),
        r#"{"t":"r","m":{"id":"a","c":"abeef-1a"},"p":{"v":null,"s":"ok"}}"#
    );
    assert_eq!(
        v4(ServerFrame::Reply {
            id,
            cursor: None,
            ver: Some("7-a"),
            envelope: r#"{"v":"not_found","s":"error"}"#
        }),
        r#"{"t":"r","m":{"id":"a","ver":"7-a"},"p":{"v":"not_found","s":"error"}}"#
    );
    assert_eq!(
        watched(&path("/a b/\"c"), "data", r#"{"k":"x"}"#),
        wire::ws::text_frame(r#"{"t":"w","m":{"path":"/a b/\"c"},"p":{"k":"x"}}"#)
    );
    assert_eq!(
        watched(&path("/a"), "conf", "1"),
        wire::ws::text_frame(r#"{"t":"w","m":{"path":"/a","service":"conf"},"p":1}"#)
    );
}

#[test]
fn v4_says_more() {
    fn parse(text: &str) -> Result<ClientFrame<'_>, FrameError> {
        ClientFrame::parse(Generation::V4, text).map_err(|bad| bad.error)
    }
    let hello = r#"{"t":"hello","p":{"token":"t","path":"/a","join":false,"data":[1],"session":"f","cursor":"a"}}"#;
    let Ok(ClientFrame::Hello(hello)) = parse(hello) else { panic!("a hello") };
    let Hello { token, ident, secret, path, join, data, session, cursor } = hello;
    assert_eq!([token, ident, secret], [Some("t".into()), None, None]);
    assert_eq!([path, session, cursor], [Some("/a".into()), Some("f".into()), Some("a".into())]);
    assert_eq!((join, data), (Some(false), Some("[1]")));
    for text in [r#"{"t":"hello"}"#, r#"{"t":"hello","p":[]}"#, r#"{"t":"hello","p":{"token":1}}"#]
    {
        assert!(matches!(parse(text), Err(FrameError::Syntax(_))), "{text}");
    }
    for (kind, expected) in [
        ("delete", Verb::Delete),
        ("get", Verb::Get),
        ("list", Verb::List),
        ("put", Verb::Put),
        ("series", Verb::Series),
        ("unwatch", Verb::Unwatch),
        ("watch", Verb::Watch),
    ] {
        let text = format!(r#"{{"t":"{kind}","m":{{"id":7}},"p":{{"k":"x"}}}}"#);
        let Ok(ClientFrame::Ask { id, verb, params }) = parse(&text) else { panic!("{text}") };
        assert_eq!((id.as_str(), verb, params), ("7", expected, r#"{"k":"x"}"#));
        let text = format!(r#"{{"t":"{kind}","m":{{}},"p":{{"k":"x"}}}}"#);
        assert_eq!(parse(&text).expect_err("no id"), FrameError::IdMissing);
    }
    let Ok(ClientFrame::Presence { id: None, data: "null" }) = parse(r#"{"t":"presence"}"#) else {
        panic!("a presence")
    };
    // An id at its limit, past it, and what is none.
    let id = |text: &str| parse(&format!(r#"{{"t":"u","m":{{"id":{text}}}}}"#)).map(drop);
    let long = |bytes: usize| format!("\"{}\"", "x".repeat(bytes - 2));
    assert_eq!(id(&long(ID_BYTES_MAX)), Ok(()));
    for text in [&long(ID_BYTES_MAX + 1), "null", "true", "[]", "{}"] {
        assert_eq!(id(text), Err(FrameError::BadId), "{text}");
    }
    for text in [r#"{"t":"tm"}"#, r#"{"t":"welcome"}"#, r#"{"x":1}"#] {
        assert!(matches!(parse(text), Err(FrameError::UnknownKind(_))), "{text}");
    }
}

/// Or whoever waits for an answer waits for ever.
#[test]
fn a_frame_that_is_refused_is_known_by_its_id() {
    for (text, error) in [
        (r#"{"t":"u","m":{"id":7,"o":"peers"}}"#, FrameError::SystemOp),
        (r#"{"t":"u","m":{"o":"peers","id":7}}"#, FrameError::SystemOp),
        (
            r#"{"t":"u","m":{"o":5,"id":7}}"#,
            FrameError::Syntax(
                "invalid type: integer `5`, expected a string at line 1 column 19".into(),
            ),
        ),
    ] {
        let bad = ClientFrame::parse(Generation::V4, text).expect_err("a bad frame");
        assert_eq!((bad.id.map(Id::as_str), bad.error), (Some("7"), error), "{text}");
    }
    let bad = ClientFrame::parse(Generation::V4, r#"{"t":"shout","m":{"id":"x"}}"#);
    assert_eq!(bad.expect_err("a bad frame").id.map(Id::as_str), Some(r#""x""#));
    for text in [r#"{"t":"u","m":{"id":[],"o":"x"}}"#, r#"{"t":"u","#, r#"{"t":"u"}"#] {
        let bad = ClientFrame::parse(Generation::V4, text).expect_err("a bad frame");
        assert_eq!(bad.id, None, "{text}");
    }
}

/// Whoever calls himself by how another is spelled is not meant by that.
#[test]
fn a_text_means_one_name() {
    for (text, meant) in [
        ("ann", Some("ann")),
        ("ann lee", Some("ann%20lee")),
        ("ann%20lee", Some("ann%20lee")),
        ("ann%2520lee", Some("ann%2520lee")),
        ("it's%20ann", Some("it%27s%20ann")),
        ("50% off", Some("50%25%20off")),
        ("100%", Some("100%25")),
        ("%4", Some("%254")),
        ("%zz", Some("%25zz")),
        ("%ff", Some("%25ff")),
        ("%c3%a4", Some("%C3%A4")),
        ("ä", Some("%C3%A4")),
        ("%61nn", Some("ann")),
        ("a/b", Some("a%2Fb")),
        ("", None),
        ("__sys__", None),
        ("%5F_sys__", None),
    ] {
        assert_eq!(Name::meant(text).ok().as_ref().map(Name::as_str), meant, "{text}");
    }
    let long = "x".repeat(NAME_BYTES_MAX);
    assert!(Name::meant(&long).is_ok() && Name::meant(&format!("{long}x")).is_err());
}

#[test]
fn cursors() {
    let cursor = Cursor::of(Incarnation(u64::MAX), u64::MAX);
    assert_eq!(cursor.to_string().parse(), Ok(cursor));
    let of_two: Cursor = "a1-2.3-4".parse().expect("a cursor");
    assert_eq!((of_two.offset(Incarnation(3)), of_two.offset(Incarnation(2))), (Some(4), None));
    assert_eq!("a".parse(), Ok(Cursor::default()));
    for text in ["", "b1-2", "a1", "a1-", "a-2", "a1-2.", "a3-1.1-1", "a1-1.1-1", "a+1-2", "a1-é"]
    {
        assert!(text.parse::<Cursor>().is_err(), "{text}");
    }
    let entries = |count: u64| {
        let entries: Vec<_> = (0..count).map(|at| format!("{at:x}-1")).collect();
        format!("a{}", entries.join("."))
    };
    assert!(entries(64).parse::<Cursor>().is_ok());
    assert!(entries(65).parse::<Cursor>().is_err());
    assert!(entries(1 << 16).parse::<Cursor>().is_err());
    let incarnation = Incarnation(9);
    let session = Session { incarnation, number: 7, born: 0, seal: u64::MAX };
    assert_eq!(session.to_string().parse(), Ok(session));
    let whole = "1".repeat(64);
    assert!(whole.parse::<Session>().is_ok());
    let (short, long, signed) = (&whole[1..], format!("{whole}1"), format!("+{}", &whole[1..]));
    for text in ["", "7", short, &long, &signed, "é"] {
        assert!(text.parse::<Session>().is_err(), "{text}");
    }
}

#[test]
fn signs_of_life() {
    assert!(matches!(parse("ping"), Ok(ClientFrame::TextPing)));
    assert!(matches!(parse(" { } "), Ok(ClientFrame::Heartbeat)));
    assert!(matches!(
        parse(r#"{"t":"ping","ts":1700000000123}"#),
        Ok(ClientFrame::Ping { ts: Some("1700000000123") })
    ));
    assert!(matches!(parse(r#"{"t":"ping"}"#), Ok(ClientFrame::Ping { ts: None })));
    assert!(matches!(
        parse(r#"{"t":"tm","m":{"o":"pub"},"p":{"sdp":"…"}}"#),
        Ok(ClientFrame::Mixer)
    ));
}

#[test]
fn what_is_not_a_frame() {
    for text in ["", "Ping", "ping ", "null", "[]", "1", "{", r#"{"t":"u","m":{},"p":}"#, "{} {}"] {
        assert!(matches!(parse(text), Err(FrameError::Syntax(_))), "{text}");
    }
    for text in [r#"{"t":"e"}"#, r#"{"m":{}}"#, r#"{"t":null,"m":{}}"#, r#"{"x":1}"#] {
        assert!(matches!(refused(text), FrameError::UnknownKind(_)), "{text}");
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
        if let Ok(ClientFrame::User(frame)) = parse(&text) {
            let path = path("/p");
            written(ServerFrame::User { path: &path, from: None, frame: &frame, cursor: None });
        }
    }

    #[test]
    fn distinct_identities_have_distinct_names(a in "[a%2F/5 é]{1,4}", b in "[a%2F/5 é]{1,4}") {
        if let (Ok(first), Ok(second)) = (Name::encode(&a), Name::encode(&b)) {
            prop_assert_eq!(a == b, first == second);
        }
    }
}

/// A reader's complaint quotes the text, which may be as long as a message and longer when escaped.
#[test]
fn what_is_told_of_a_bad_text_is_short() {
    let complaint = |bytes: usize| {
        let text = format!(r#"{{"t":"hello","p":{{"join":"{}"}}}}"#, "x".repeat(bytes));
        match ClientFrame::parse(Generation::V4, &text).map_err(|bad| bad.error) {
            Err(FrameError::Syntax(why)) => why,
            other => panic!("{other:?}"),
        }
    };
    let around = complaint(0).len();
    assert!(complaint(200 - around - 1).contains("column"), "whole below the limit");
    assert_eq!(complaint(200).len(), 200);
    assert_eq!(complaint(60_000).len(), 200);
}
