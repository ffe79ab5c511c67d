//! An example of each rule of `spec/xirsys.md` §1.7 and of each limit.

use signal::{
    Departure, ENVELOPE_BYTES_MAX, Join, Limits, Output, Refusal, Row, Signal, SocketId,
    SocketView, Token, Topic,
};
use wire::frames::{NAME_BYTES_MAX, Name};
use wire::json::Json;
use wire::names::{Ident, PATH_BYTES_MAX};
use wire::token::Grants;
use wire::ws::CloseCode;

use crate::{Seen, address, bucket, drain, ip, join, now, sealer};

const PATH: &str = "/my/path";

/// What is told to whoever may not say something.
fn not_allowed(to: &str) -> String {
    let why = format!("the token, or a `send` rule of the path, does not permit to `{to}`");
    format!(r#"{{"t":"e","m":{{}},"p":{{"v":"not_allowed","s":"error","detail":"{why}"}}}}"#)
}

fn signal() -> Signal {
    Signal::new(now(), Limits::default(), 1, sealer())
}

/// A room in which each name sits on the socket of its place, from 1.
fn room(names: &[&str]) -> Signal {
    let mut signal = signal();
    for (socket, name) in (1..).zip(names) {
        signal.join(now(), SocketId(socket), join(PATH, name, socket)).expect("room for all");
    }
    drain(&mut signal);
    signal
}

fn send(signal: &mut Signal, socket: u64, text: &str) -> Seen {
    signal.handle_text(now(), SocketId(socket), text);
    drain(signal)
}

#[test]
fn a_joiner_hears_who_is_here_and_the_others_hear_of_the_joiner() {
    let mut signal = room(&["rt"]);
    signal.join(now(), SocketId(2), join(PATH, "ann", 2)).expect("joins");
    let seen = drain(&mut signal);
    assert_eq!(
        seen.of(2),
        [r#"{"t":"u","m":{"f":"/my/path/__sys__","o":"peers"},"p":{"users":["ann","rt"]}}"#]
    );
    assert_eq!(seen.of(1), [r#"{"t":"u","m":{"f":"/my/path/ann","o":"peer_connected"},"p":{}}"#]);
    assert_eq!(seen.stats, [("router:sub", PATH.to_owned(), "ann".to_owned(), 1)]);
}

#[test]
fn a_name_comes_with_its_first_socket_and_goes_with_its_last() {
    let mut signal = room(&["rt", "ann"]);
    signal.join(now(), SocketId(3), join(PATH, "ann", 3)).expect("joins");
    let seen = drain(&mut signal);
    assert!(seen.of(1).is_empty() && seen.of(2).is_empty());
    assert!(seen.of(3)[0].ends_with(r#"{"users":["ann","rt"]}}"#), "each name once");
    signal.leave(now(), SocketId(2), Departure::Closed);
    assert!(drain(&mut signal).sockets.is_empty());
    signal.leave(now(), SocketId(3), Departure::Closed);
    let seen = drain(&mut signal);
    assert_eq!(seen.of(1), [r#"{"t":"u","m":{"f":"/my/path/ann","o":"peer_removed"},"p":{}}"#]);
}

#[test]
fn a_broadcast_skips_the_sending_socket_but_not_its_other_devices() {
    let mut signal = room(&["ann", "ann", "bob"]);
    let seen = send(&mut signal, 1, r#"{"t":"u","m":{"f":"x","o":"message"},"p":{"msg":"hi"}}"#);
    let text = r#"{"t":"u","m":{"f":"/my/path/ann","o":"message"},"p":{"msg":"hi"}}"#;
    assert!(seen.of(1).is_empty());
    assert_eq!((seen.of(2), seen.of(3)), (vec![text], vec![text]));
    let value = text.len() as u64 + 2;
    assert_eq!(seen.stats, [("router:pkt", PATH.to_owned(), "ann".to_owned(), value)]);
}

#[test]
fn a_direct_frame_reaches_every_device_of_one_name() {
    let mut signal = room(&["ann", "bob", "bob", "cid"]);
    for to in ["bob", "/my/path/bob"] {
        let seen =
            send(&mut signal, 1, &format!(r#"{{"t":"u","m":{{"o":"o","t":"{to}"}},"p":1}}"#));
        let text = format!(r#"{{"t":"u","m":{{"f":"/my/path/ann","o":"o","t":"{to}"}},"p":1}}"#);
        assert_eq!((seen.of(2), seen.of(3)), (vec![&*text], vec![&*text]));
        assert_eq!(seen.sockets.len(), 2);
    }
    let seen = send(&mut signal, 1, r#"{"t":"u","m":{"o":"o","t":"ann"},"p":1}"#);
    assert_eq!(seen.of(1).len(), 1, "one may write to oneself");
}

#[test]
fn a_frame_to_nobody_is_dropped_and_counted() {
    let mut signal = room(&["ann", "bob"]);
    for to in ["dan", "undefined", "/my/bob", "/other/path/bob", "/my/path", "/my/path/"] {
        let seen = send(&mut signal, 1, &format!(r#"{{"t":"u","m":{{"t":"{to}"}},"p":1}}"#));
        assert_eq!(seen, Seen::default(), "{to}");
    }
    assert_eq!(signal.stats().counters.unknown_peers, 6);
    assert_eq!(signal.stats().counters.packets, 0);
}

#[test]
fn awkward_names_are_found_in_each_spelling() {
    let mut signal = room(&["ann", "a/b c"]);
    for to in ["a%2Fb%20c", "a/b c", "/my/path/a%2Fb%20c", "/my/path/a/b c"] {
        let seen = send(&mut signal, 1, &format!(r#"{{"t":"u","m":{{"t":"{to}"}},"p":1}}"#));
        assert_eq!(seen.of(2).len(), 1, "{to}");
    }
    assert_eq!(signal.rows(&address(PATH))[0].key.as_str(), "a%2Fb%20c");
}

#[test]
fn topics_of_one_path_are_rooms_of_their_own() {
    let mut signal = room(&["ann"]);
    let mut other = join(PATH, "bob", 2);
    other.address.topic = Topic::parse("games").expect("a topic");
    signal.join(now(), SocketId(2), other.clone()).expect("joins");
    let seen = drain(&mut signal);
    assert_eq!(seen.sockets.len(), 1);
    assert!(seen.of(2)[0].starts_with(r#"{"t":"u","m":{"f":"/my/path/__sys__""#));
    assert!(send(&mut signal, 1, r#"{"t":"u","m":{},"p":1}"#).sockets.is_empty());
    let topics: Vec<_> = signal.rooms(&bucket()).map(|(_, topic)| topic.as_str()).collect();
    assert_eq!(topics, ["games", "topic"]);
    assert_eq!(signal.rows(&other.address).len(), 1);
    for text in ["", "/", "a/b", "..", "\n"] {
        assert!(Topic::parse(text).is_err(), "{text}");
    }
}

#[test]
fn only_the_server_says_who_is_present() {
    let mut signal = room(&["ann", "bob"]);
    let seen = send(&mut signal, 1, r#"{"t":"u","m":{"o":"peer_removed","f":"/my/path/bob"}}"#);
    assert_eq!((seen.of(1), seen.sockets.len()), (vec![crate::ONLY_THE_SERVER], 1));
    assert_eq!(signal.stats().counters.system_ops, 1);
}

#[test]
fn what_is_wrong_with_a_frame_is_told_to_its_sender() {
    let mut signal = room(&["ann", "bob"]);
    for text in ["hello", r#"{"t":"x","m":{}}"#, r#"{"t":"u"}"#] {
        let seen = send(&mut signal, 1, text);
        assert_eq!(seen.sockets.len(), 1);
        let answer = seen.of(1)[0];
        assert!(answer.starts_with(r#"{"t":"e","m":{},"p":{"v":"bad_request","#), "{answer}");
        Json::parse(answer).expect("JSON");
    }
    assert_eq!(signal.stats().counters.bad_frames, 3);
    // A complaint that quotes the whole text could be longer than a queue holds.
    let long = format!(r#"{{"t":"u","m":"{}"}}"#, "\u{202e}".repeat(20_000));
    let seen = send(&mut signal, 1, &long);
    assert!(seen.of(1)[0].len() < 1000, "{} bytes", seen.of(1)[0].len());
    assert_eq!(send(&mut signal, 1, r#"{"t":"tm","m":{"o":"pub"}}"#), Seen::default());
}

#[test]
fn heartbeats_are_taken_and_json_pings_are_answered() {
    let mut signal = room(&["ann"]);
    for heartbeat in ["ping", "{}"] {
        assert_eq!(send(&mut signal, 1, heartbeat), Seen::default());
    }
    let seen = send(&mut signal, 1, r#"{"t":"ping","ts":1700000000123}"#);
    assert_eq!(seen.of(1), [r#"{"t":"pong","ts":1700000000123}"#]);
    assert!(seen.stats.is_empty());
    let counters = signal.stats().counters;
    assert_eq!((counters.heartbeats, counters.packets), (3, 0));
}

#[test]
fn the_root_path_has_one_slash() {
    let mut signal = signal();
    signal.join(now(), SocketId(1), join("/", "ann", 1)).expect("joins");
    signal.join(now(), SocketId(2), join("/", "bob", 2)).expect("joins");
    let seen = drain(&mut signal);
    assert!(seen.of(1)[0].contains(r#""f":"/__sys__""#));
    assert!(seen.of(1)[1].contains(r#""f":"/bob""#));
    for to in ["bob", "/bob"] {
        let seen = send(&mut signal, 1, &format!(r#"{{"t":"u","m":{{"t":"{to}"}},"p":1}}"#));
        assert_eq!(seen.of(2).len(), 1);
    }
}

#[test]
fn a_kick_closes_every_socket_of_the_name_and_tells_the_rest() {
    let mut signal = room(&["ann", "bob", "bob"]);
    let kicked = signal.kick(now(), &address(PATH), Some("bob"));
    assert_eq!((kicked.names, kicked.sockets), (1, 2));
    let token = |id| Token { id, expires_unix_s: 1_700_000_060 };
    assert_eq!(kicked.tokens, [token(2), token(3)]);
    let seen = drain(&mut signal);
    assert_eq!((seen.of(2), seen.of(3)), (vec!["close 4403 kicked"], vec!["close 4403 kicked"]));
    assert_eq!(seen.of(1), [r#"{"t":"u","m":{"f":"/my/path/bob","o":"peer_removed"},"p":{}}"#]);
    // The connection is still there for a moment; what it says goes nowhere.
    assert_eq!(send(&mut signal, 2, r#"{"t":"u","m":{},"p":1}"#), Seen::default());
    signal.leave(now(), SocketId(2), Departure::Closed);
    assert_eq!(drain(&mut signal), Seen::default());
    assert_eq!(signal.kick(now(), &address(PATH), Some("bob")).sockets, 0);
    assert_eq!(signal.kick(now(), &address("/nowhere"), None).sockets, 0);
}

#[test]
fn kicking_a_room_tells_nobody_of_the_others() {
    let mut signal = room(&["ann", "bob", "bob"]);
    assert_eq!(signal.kick(now(), &address(PATH), None).names, 2);
    let seen = drain(&mut signal);
    assert!(seen.sockets.values().all(|seen| *seen == ["close 4403 kicked"]));
    assert_eq!(signal.stats().rooms, 0);
}

#[test]
fn a_ban_closes_whoever_it_matches_in_every_room() {
    let mut signal = room(&["ann", "bob"]);
    signal.join(now(), SocketId(6), join("/other", "cid", 6)).expect("joins");
    drain(&mut signal);
    let code = CloseCode::KICKED;
    let kicked =
        signal.close_where(now(), &bucket(), code, "banned", |view| view.client_ip == ip(2));
    assert_eq!((kicked.names, kicked.sockets), (2, 2));
    let seen = drain(&mut signal);
    assert_eq!((seen.of(2), seen.of(6)), (vec!["close 4403 banned"], vec!["close 4403 banned"]));
    assert_eq!(seen.of(1).len(), 1);
}

#[test]
fn a_name_is_one_row_and_each_of_its_sockets_is_shown() {
    let signal = room(&["bob", "ann", "bob"]);
    let ident = Ident::parse("elena").expect("an ident");
    let row = |name: &str| Row {
        key: Name::encode(name).expect("a name"),
        ident: ident.clone(),
        service: "xs_signal",
        data: None,
    };
    assert_eq!(signal.rows(&address(PATH)), [row("ann"), row("bob")]);
    assert_eq!(signal.rows(&address("/nowhere")), []);
    let sockets: Vec<_> = signal
        .sockets(&bucket())
        .map(|view| (view.socket.0, view.name.to_string(), view.client_ip, view.since_unix_s))
        .collect();
    let view = |socket, name: &str| (socket, name.to_owned(), ip(socket), 1_700_000_000);
    assert_eq!(sockets, [view(2, "ann"), view(1, "bob"), view(3, "bob")]);
}

/// A queue that holds a client's longest message must hold it with what the relay adds to it.
#[test]
fn a_relayed_frame_is_longer_than_its_message_by_a_bounded_envelope() {
    let segment = "\"".repeat(255);
    let mut path = format!("/{segment}").repeat(4);
    path.truncate(PATH_BYTES_MAX);
    let name = "/".repeat(NAME_BYTES_MAX / 3);
    let mut signal = signal();
    signal.join(now(), SocketId(1), join(&path, &name, 1)).expect("joins");
    signal.join(now(), SocketId(2), join(&path, "bob", 2)).expect("joins");
    drain(&mut signal);
    for text in [
        r#"{"t":"u","m":{}}"#,
        r#"{"m":{"o":"\n\b\f\"\\\u0001","t":"bob"},"t":"u"}"#,
        r#"{"m":{"o":"\b\b\b\b\b\b\b\b\b\b\b\b\b\b\b\b\b\b\b\b\b\b\b\b\b\b\b\b\b\b\b\b\b\b\b\b\b\b\b\b\b\b\b\b\b\b\b\b\b\b\b\b\b\b\b\b\b\b\b\b\b\b\b\b\b\b\b\b\b\b\b\b\b\b\b\b\b\b\b\b"},"t":"u"}"#,
        r#"{"t":"u","m":{"":0,"x":"y"},"p":{"a":[1.50]}}"#,
    ] {
        signal.handle_text(now(), SocketId(1), text);
        let mut frames = Vec::new();
        while let Some(output) = signal.poll_output() {
            match output {
                Output::Fanout(fanout) => frames.push(fanout.frame.len()),
                Output::Send { frame, .. } => frames.push(frame.len()),
                Output::Begin { .. } | Output::Close { .. } | Output::Stat(_) => {}
            }
        }
        let [bytes] = frames[..] else { panic!("{text}: {frames:?}") };
        assert!(bytes > text.len() + 2 * PATH_BYTES_MAX, "{text}: {bytes}");
        assert!(bytes <= text.len() + ENVELOPE_BYTES_MAX, "{text}: {bytes}");
    }
}

#[test]
fn grants_say_who_may_speak() {
    let mut signal = room(&["ann"]);
    let only = |grants, socket| Join { grants, ..join(PATH, "bob", socket) };
    assert_eq!(signal.join(now(), SocketId(2), only(Grants::SEND, 2)), Err(Refusal::NotGranted));
    signal.join(now(), SocketId(3), only(Grants::SUBSCRIBE, 3)).expect("may listen");
    drain(&mut signal);
    for (text, needed) in
        [(r#"{"t":"u","m":{},"p":1}"#, "publish"), (r#"{"t":"u","m":{"t":"ann"},"p":1}"#, "send")]
    {
        let seen = send(&mut signal, 3, text);
        assert_eq!((seen.of(3), seen.sockets.len()), (vec![&*not_allowed(needed)], 1));
    }
    assert_eq!(signal.stats().counters.ungranted, 3);
    assert_eq!(send(&mut signal, 1, r#"{"t":"u","m":{},"p":1}"#).of(3).len(), 1);
}

/// A room's rules change under open sockets.
#[test]
fn grants_are_taken_and_given_back_but_never_more_than_a_socket_joined_with() {
    const BROADCAST: &str = r#"{"t":"u","m":{},"p":1}"#;
    let mut signal = room(&["ann"]);
    let listener = Join { grants: Grants::SUBSCRIBE, ..join(PATH, "bob", 2) };
    signal.join(now(), SocketId(2), listener).expect("may listen");
    let elsewhere = Join { address: address("/other"), ..join(PATH, "ann", 3) };
    signal.join(now(), SocketId(3), elsewhere).expect("joins");
    drain(&mut signal);
    let is_refused = |signal: &mut Signal, socket| {
        send(signal, socket, BROADCAST).of(socket).contains(&&*not_allowed("publish"))
    };
    let in_room = |grants| {
        move |view: &SocketView<'_>| (view.address.path.as_str() == PATH).then_some(grants)
    };
    signal.regrant(&bucket(), in_room(Grants::CHATTER.without(Grants::SPEAK)));
    assert!(drain(&mut signal).sockets.is_empty(), "nobody is told");
    assert!(is_refused(&mut signal, 1) && is_refused(&mut signal, 2));
    assert!(!is_refused(&mut signal, 3), "nothing was said of its room");
    signal.regrant(&bucket(), |view| Some(view.granted));
    assert!(!is_refused(&mut signal, 1) && is_refused(&mut signal, 2));
    signal.regrant(&bucket(), in_room(Grants(u16::MAX)));
    assert!(is_refused(&mut signal, 2), "it came to listen");
    signal.grant(SocketId(1), Grants::SUBSCRIBE);
    assert!(is_refused(&mut signal, 1));
    signal.grant(SocketId(99), Grants::CHATTER);
    assert_eq!(signal.stats().sockets, 3);
}

#[test]
fn a_broadcast_to_a_thousand_is_one_output() {
    let mut signal = signal();
    for socket in 1..=1000 {
        let name = format!("user{socket}");
        signal.join(now(), SocketId(socket), join(PATH, &name, socket)).expect("room for all");
    }
    drain(&mut signal);
    for _ in 0..2 {
        signal.handle_text(now(), SocketId(7), r#"{"t":"u","m":{"o":"message"},"p":1}"#);
        let mut outputs = Vec::new();
        while let Some(output) = signal.poll_output() {
            outputs.push(output);
        }
        let [Output::Fanout(fanout), Output::Stat(_)] = &outputs[..] else {
            panic!("{outputs:?}");
        };
        let receivers: Vec<_> = fanout.receivers().collect();
        assert_eq!(receivers.len(), 999);
        assert!(!receivers.contains(&SocketId(7)));
    }
    assert_eq!(signal.stats().counters.deliveries, 1000 + 999 * 1000 / 2 + 2 * 999);
}

#[test]
fn limits_refuse_the_next_and_count_it() {
    let limits = Limits {
        rooms_per_bucket: 2,
        sockets_per_bucket: 5,
        sockets_per_room: 3,
        sockets_per_name: 2,
        ..Limits::default()
    };
    let mut signal = Signal::new(now(), limits, 1, sealer());
    let mut try_join = |path: &str, name: &str, socket: u64| {
        signal.join(now(), SocketId(socket), join(path, name, socket)).err()
    };
    assert_eq!(try_join("/a", "ann", 1), None);
    assert_eq!(try_join("/a", "ann", 2), None);
    assert_eq!(try_join("/a", "ann", 3), Some(Refusal::SocketsPerName));
    assert_eq!(try_join("/a", "bob", 2), Some(Refusal::Seated));
    assert_eq!(try_join("/a", "bob", 3), None);
    assert_eq!(try_join("/a", "cid", 4), Some(Refusal::SocketsPerRoom));
    assert_eq!(try_join("/b", "ann", 4), None);
    assert_eq!(try_join("/c", "ann", 5), Some(Refusal::RoomsPerBucket));
    assert_eq!(try_join("/b", "ann", 5), None);
    assert_eq!(try_join("/b", "ann", 6), Some(Refusal::SocketsPerBucket));
    drain(&mut signal);

    let counters = signal.stats().counters;
    assert_eq!(counters.refused_sockets_per_name, 1);
    assert_eq!(counters.refused_sockets_per_room, 1);
    assert_eq!(counters.refused_rooms_per_bucket, 1);
    assert_eq!(counters.refused_sockets_per_bucket, 1);
    assert_eq!(Refusal::SocketsPerRoom.close_code(), CloseCode::TRY_AGAIN_LATER);
}
