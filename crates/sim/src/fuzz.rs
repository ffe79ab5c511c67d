//! Fuzz entry points: whatever the bytes are, these hold. Each takes any input and panics when a
//! property does not hold. The seeded tests call them; a coverage-guided fuzzer can call the same.

mod relay;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use kv4::address::{Bucket, Entry, Node};
use kv4::memory::MemoryStore;
use kv4::store::Store;
use kv4::write::{Condition, KeyChange, Op, Write};
use kv4::{Stamp, Ver};
use signal::{Address, Coming, Departure, Join, Limits, Output, Signal, SocketId, Topic};
use store::EmbeddedStore;
use store::embedded::Options;
use wire::credentials::{Credentials, Secret};
use wire::envelope::Fault;
use wire::errors::Code;
use wire::frames::{
    ClientFrame, Cursor, Generation, ID_BYTES_MAX, Id, Incarnation, Name, ServerFrame, Session,
};
use wire::json::{Json, Members, push_string};
use wire::lengths;
use wire::names::{self, Ident, Key, Layer, Path, percent_decode};
use wire::params::{PARAMS_MAX, Params};
use wire::timegroup::TimeGroup;
use wire::token::{COMPACT_BYTES_MAX, Claims, Grants, TokenError};
use wire::ws::{CONTROL_BYTES_MAX, Decoder, Message, Opcode, ProtocolError, masked_frame};

use crate::disk::Disk;
use crate::embedded::block_on;

/// A fuzz target: its name, which is that of its corpus, and its entry point.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: [Target; 16] = [
    ("path", fuzz_path),
    ("query", fuzz_query),
    ("body", fuzz_body),
    ("credentials", fuzz_credentials),
    ("time_group", fuzz_time_group),
    ("token", fuzz_token),
    ("ws", fuzz_ws),
    ("lengths", fuzz_lengths),
    ("frames", fuzz_frames),
    ("asks", fuzz_asks),
    ("signal", fuzz_signal),
    ("json", fuzz_json),
    ("store_keys", fuzz_store_keys),
    ("stun", relay::fuzz_stun),
    ("relay_frames", relay::fuzz_relay_frames),
    ("turn", relay::fuzz_turn),
];

/// A path is one canonical text, within its limits, and a URL can spell it.
pub fn fuzz_path(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    for path in [Path::parse(text), Path::from_url(text)].into_iter().flatten() {
        assert_eq!(Path::parse(path.as_str()).as_ref(), Ok(&path), "not canonical");
        assert!(path.as_str().len() <= names::PATH_BYTES_MAX);
        assert_eq!(path.depth(), path.segments().count());
        assert!(path.depth() <= names::SEGMENTS_MAX);
        assert_eq!(path.ancestors().count(), path.depth() + 1);
        assert!(path.ancestors().all(|above| path.is_within(&above)));
        assert_eq!(path.ancestors().last(), Some(Path::root()));
        let escaped: String = path.as_str().bytes().map(|byte| format!("%{byte:02X}")).collect();
        assert_eq!(Path::from_url(&escaped).as_ref(), Ok(&path), "a URL gives another path");
        if let Some((parent, last)) = path.split_last() {
            assert_eq!(parent.join(last).as_ref(), Ok(&path));
            assert_eq!(path.relative_to(&parent), Some(last));
            assert!(!parent.is_within(&path));
        }
    }
}

/// A query that is read is the same when it is written and read again.
pub fn fuzz_query(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(params) = Params::read(text, b"") else { return };
    assert!(params.query().count() <= PARAMS_MAX);
    let held: usize = params.query().map(|(name, value)| name.len() + value.len()).sum();
    assert!(held <= text.len(), "decoding made it longer");
    let pair = |(name, value): (&str, &str)| format!("{}={}", escape(name), escape(value));
    // `&` and a bare `=` are pairs of nothing, which a written query keeps as `=`.
    let written = params.query().map(pair).collect::<Vec<_>>().join("&");
    let again = Params::read(&written, b"").expect("what was written can be read");
    assert!(again.query().eq(params.query()));
    for (name, _) in params.query() {
        let first = params.query().find(|(known, _)| *known == name).map(|(_, v)| v);
        assert_eq!(params.text(name).as_deref(), first, "the first of equal names stands");
        let _ = params.flag(name);
    }
}

/// A body that is read holds members that are read again as they were.
pub fn fuzz_body(bytes: &[u8]) {
    let Ok(params) = Params::read("", bytes) else { return };
    let written = params.body().to_json();
    let again = Params::read("", written.as_str().as_bytes()).expect("written by us");
    assert_eq!(again.body(), params.body());
    let mut known = BTreeSet::new();
    for (name, value) in params.body().iter() {
        assert!(known.insert(name), "a name twice");
        assert_eq!(Json::parse(value.as_str()).as_ref(), Ok(value));
        assert_eq!(params.json(name).as_ref(), Some(value));
        let _ = (params.text(name), params.flag(name));
    }
}

/// Credentials that are read can be written so that they are read alike, and do not show in a log.
pub fn fuzz_credentials(bytes: &[u8]) {
    use base64::Engine as _;
    if let Ok(header) = std::str::from_utf8(bytes) {
        drop(Credentials::from_basic(header));
    }
    let encoded = base64::engine::general_purpose::STANDARD.encode(bytes);
    let header = format!("basic  {encoded} ");
    let Ok(read) = Credentials::from_basic(&header) else { return };
    let ident = match &read.sub {
        None => read.account.clone(),
        Some(sub) => format!("{}#{sub}", read.account),
    };
    let mark = if read.by_parent { "!" } else { "" };
    let (secret, hidden) = match &read.secret {
        Secret::Account(secret) => (secret.clone(), secret),
        Secret::Admin { key, password } => (format!("{key}#{password}"), password),
    };
    if !ident.starts_with('%') {
        let again = Credentials::from_parts(&ident, &format!("{mark}{secret}"));
        assert_eq!(again.as_ref(), Ok(&read));
    }
    let shown = format!("{read:?}");
    let elsewhere = [&read.account, read.sub.as_ref().unwrap_or(&read.account)];
    let is_elsewhere = elsewhere.iter().any(|text| format!("{text:?}").contains(hidden.as_str()));
    // Short texts turn up by chance.
    assert!(hidden.len() < 16 || is_elsewhere || !shown.contains(hidden.as_str()), "{shown}");
}

/// A time group is one text and one span, and the span's ends lie in it.
pub fn fuzz_time_group(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(group) = TimeGroup::parse(text) else { return };
    assert_eq!(TimeGroup::parse(&group.to_string()).as_ref(), Ok(&group));
    assert!(group.first_s() <= group.last_s());
    assert_eq!(group.first_micros(), group.first_s() * 1_000_000);
    assert_eq!(group.last_micros() + 1, (group.last_s() + 1) * 1_000_000);
    for inside in [group.first_s(), group.last_s()] {
        assert_eq!(TimeGroup::at(inside, group.depth()), group);
    }
    assert_ne!(TimeGroup::at(group.last_s() + 1, group.depth()), group);
    if let Some(before) = group.first_s().checked_sub(1) {
        assert_ne!(TimeGroup::at(before, group.depth()), group);
    }
}

/// Claims that are read can be written and are read alike; a token with a wrong mac is refused
/// whatever it says.
pub fn fuzz_token(bytes: &[u8]) {
    use base64::Engine as _;
    let encoded = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes);
    let texts = [std::str::from_utf8(bytes).unwrap_or_default(), &encoded];
    for text in texts {
        let refused = Claims::from_compact(text, |_, _, _| false);
        assert!(refused.is_err());
        let Ok(claims) = Claims::from_compact(text, |_, _, _| true) else { continue };
        assert_eq!(refused, Err(TokenError::BadSignature));
        // A path that is not written canonically becomes so, and then it may be too short to differ.
        if let Some(written) = claims.to_compact(mac) {
            assert!(written.len() <= COMPACT_BYTES_MAX);
            let verify = |_: u8, signed: &[u8], theirs: &[u8]| mac(signed) == theirs;
            assert_eq!(Claims::from_compact(&written, verify).as_ref(), Ok(&claims));
        }
        let names = claims.grants.names().collect::<Vec<_>>().join(",");
        let grants = wire::token::Grants::parse(&names).expect("names of grants");
        assert!(claims.grants.contains(grants));
    }
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Ok(ver) = text.parse::<Ver>()
    {
        assert_eq!(ver.to_string().parse::<Ver>(), Ok(ver));
    }
}

/// Not a mac, only something that depends on every byte.
fn mac(signed: &[u8]) -> [u8; 16] {
    let mut sum = [0u8; 16];
    for (at, byte) in signed.iter().enumerate() {
        sum[at % 16] = sum[at % 16].wrapping_mul(31) ^ byte;
    }
    sum
}

/// Longest message that the fuzzed decoder takes.
const MESSAGE_BYTES_MAX: usize = 300;

/// What a decoder made of its bytes.
#[derive(Debug, Default, Eq, PartialEq)]
struct Decoded {
    messages: Vec<String>,
    error: Option<ProtocolError>,
}

/// Frames mean the same however the network cuts them, hold little memory, and what we write as a
/// client is read as it was meant.
pub fn fuzz_ws(bytes: &[u8]) {
    let whole = decode(bytes, bytes.len().max(1));
    for step in [1, 2, 7] {
        assert_eq!(decode(bytes, step), whole, "in pieces of {step}");
    }
    let key = [bytes.first().copied().unwrap_or(9), 2, 3, 4];
    let payload = &bytes[..bytes.len().min(MESSAGE_BYTES_MAX)];
    let frame = masked_frame(true, Opcode::Binary, payload, key);
    let message = format!("{:?}", Message::Binary(payload));
    assert_eq!(decode(&frame, 5), Decoded { messages: vec![message], error: None });
    let ping = &payload[..payload.len().min(CONTROL_BYTES_MAX)];
    let frame = masked_frame(true, Opcode::Ping, ping, key);
    let message = format!("{:?}", Message::Ping(ping));
    assert_eq!(decode(&frame, 3), Decoded { messages: vec![message], error: None });
}

fn decode(bytes: &[u8], step: usize) -> Decoded {
    let mut decoder = Decoder::new(MESSAGE_BYTES_MAX);
    let mut decoded = Decoded::default();
    for piece in bytes.chunks(step) {
        let mut rest = piece;
        while !rest.is_empty() {
            let taken = decoder.push(rest);
            rest = &rest[taken..];
            loop {
                match decoder.next_message() {
                    Ok(Some(message)) => decoded.messages.push(format!("{message:?}")),
                    Ok(None) => break,
                    Err(error) => {
                        decoded.error = Some(error);
                        break;
                    }
                }
            }
            // One frame's bytes, one message's fragments, and the growth of buffers.
            assert!(decoder.held_bytes() <= 4 * (MESSAGE_BYTES_MAX + 64), "holds too much");
        }
    }
    decoded
}

/// Texts after their lengths mean the same however the network cuts them, hold little memory, and end
/// with the first that is none.
pub fn fuzz_lengths(bytes: &[u8]) {
    let whole = texts(bytes, bytes.len().max(1));
    for step in [1, 2, 3, 7, MESSAGE_BYTES_MAX + 1] {
        assert_eq!(texts(bytes, step), whole, "in pieces of {step}");
    }
    let (read, _) = &whole;
    assert!(read.iter().all(|text| text.len() <= MESSAGE_BYTES_MAX));
    let framed = |text: &String| [&lengths::header(text.len())[..], text.as_bytes()].concat();
    let written: Vec<u8> = read.iter().flat_map(framed).collect();
    assert!(bytes.starts_with(&written), "what was read is what came");
}

fn texts(bytes: &[u8], step: usize) -> (Vec<String>, Option<ProtocolError>) {
    let mut decoder = lengths::Decoder::new(MESSAGE_BYTES_MAX);
    let mut read = Vec::new();
    for mut rest in bytes.chunks(step) {
        while !rest.is_empty() {
            let taken = decoder.push(rest);
            assert!(taken > 0, "something is taken once nothing is left to read");
            rest = &rest[taken..];
            loop {
                match decoder.next_text() {
                    Ok(Some(text)) => read.push(text.to_owned()),
                    Ok(None) => break,
                    Err(error) => {
                        assert_eq!(decoder.push(bytes), bytes.len(), "dropped from here on");
                        assert_eq!(decoder.next_text(), Err(error));
                        return (read, Some(error));
                    }
                }
            }
        }
    }
    (read, None)
}

/// What a socket begins with and asks for is answered by an envelope, whatever it is, and nothing that a
/// user asks for is done elsewhere than in his account.
pub fn fuzz_asks(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match ClientFrame::parse(Generation::V4, text) {
        Ok(ClientFrame::Ask { id, verb, params }) => {
            assert!(id.as_str().len() <= ID_BYTES_MAX);
            assert_eq!(Id::of_json(id.as_str()), Ok(id));
            assert!(serde_json::from_str::<&serde_json::value::RawValue>(params).is_ok());
            if let Some((envelope, ver)) = crate::neuron::ask(verb, params) {
                let ver = ver.as_deref();
                check_frame(&ServerFrame::Reply { id, cursor: None, ver, envelope: &envelope });
                let said = Json::parse(&envelope).ok().and_then(|json| json.members());
                let s = said.and_then(|members| members.text("s"));
                assert!(matches!(s.as_deref(), Some("ok" | "error")), "{envelope}");
            }
        }
        Ok(ClientFrame::Hello(hello)) => {
            if let Some(Ok(session)) = hello.session.map(|text| text.parse::<Session>()) {
                assert_eq!(session.to_string().parse(), Ok(session));
            }
            if let Some(Ok(cursor)) = hello.cursor.map(|text| text.parse::<Cursor>()) {
                assert_eq!(cursor.to_string().parse(), Ok(cursor));
            }
            if let Some(data) = hello.data {
                assert!(serde_json::from_str::<&serde_json::value::RawValue>(data).is_ok());
            }
        }
        Ok(_) => {}
        Err(error) => assert!(error.to_string().len() < 400, "a complaint is short"),
    }
}

/// A room of one socket of each generation, which say the lines of an input in turn: whatever those are,
/// what each hears is a frame of its generation from its true sender, and nothing is left of it.
pub fn fuzz_signal(bytes: &[u8]) {
    let mut signal = Signal::new(*BEGINNING, rooms(), 1, crate::sealer());
    let mut now = *BEGINNING;
    for (socket, (name, generation)) in (0..).zip(SPEAKERS) {
        signal
            .join(now, SocketId(socket), joiner(name, generation, socket))
            .expect("there is room");
        heard(&mut signal, None);
    }
    let text = String::from_utf8_lossy(bytes);
    for (nth, line) in text.split('\n').enumerate() {
        let speaker = nth % SPEAKERS.len();
        now += Duration::from_millis(700);
        signal.handle_text(now, SocketId(speaker as u64), line);
        heard(&mut signal, Some((speaker, line)));
        let stats = signal.stats();
        assert!(stats.history_messages <= rooms().history_messages, "{stats:?}");
        assert!(stats.history_bytes <= rooms().history_bytes_per_account, "{stats:?}");
        assert_eq!((stats.sockets, stats.names), (SPEAKERS.len(), SPEAKERS.len()));
    }
    for socket in 0..SPEAKERS.len() as u64 {
        signal.leave(now, SocketId(socket), Departure::Lost);
        heard(&mut signal, None);
    }
    signal.handle_timeout(now + rooms().history_lasts);
    assert_eq!(signal.poll_timeout(), None);
    let stats = signal.stats();
    assert_eq!((stats.sockets, stats.histories, stats.history_bytes), (0, 0, 0));
}

static BEGINNING: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Who is in the room of [`fuzz_signal`], by socket.
const SPEAKERS: [(&str, Generation); 3] =
    [("one", Generation::V1), ("two", Generation::V2), ("four", Generation::V4)];

fn rooms() -> Limits {
    Limits {
        data_bytes: 40,
        history_lasts: Duration::from_secs(5),
        history_messages: 5,
        history_bytes_per_account: 2_000,
        ..Limits::default()
    }
}

fn joiner(name: &str, generation: Generation, socket: u64) -> Join {
    let ident = Ident::parse("elena").expect("an ident");
    Join {
        address: Address {
            bucket: Bucket::account(&ident, None).expect("short"),
            path: Path::parse("/my/path").expect("a legal path"),
            topic: Topic::default(),
        },
        name: Name::encode(name).expect("a legal name"),
        ident,
        service: "xs_signal",
        generation,
        grants: Grants::CHATTER,
        token: Some(signal::Token { id: socket, expires_unix_s: 0 }),
        client_ip: [127, 0, 0, 1].into(),
        since_unix_s: 0,
        coming: Coming::default(),
    }
}

/// Looks at everything that is handed out after a speaker's text, if it was one that brought it about.
fn heard(signal: &mut Signal, said: Option<(usize, &str)>) {
    while let Some(output) = signal.poll_output() {
        match output {
            Output::Begin { socket, frames } => {
                frames.iter().for_each(|frame| check_heard(socket, frame, said));
            }
            Output::Send { socket, frame } => check_heard(socket, &frame, said),
            Output::Fanout(fanout) => {
                let mut receivers = BTreeSet::new();
                for socket in fanout.receivers() {
                    assert!(receivers.insert(socket), "to each once");
                    check_heard(socket, &fanout.frame, said);
                }
            }
            Output::Close { .. } => panic!("nothing that is said closes a socket"),
            Output::Stat(_) => {}
        }
    }
}

fn check_heard(socket: SocketId, frame: &bytes::Bytes, said: Option<(usize, &str)>) {
    let (_, generation) = SPEAKERS[usize::try_from(socket.0).expect("one of three")];
    let mut decoder = Decoder::client(1 << 20);
    assert_eq!(decoder.push(frame), frame.len());
    let text = match decoder.next_message() {
        Ok(Some(Message::Text(text))) => text.to_owned(),
        other => panic!("{other:?}"),
    };
    assert!(serde_json::from_str::<&serde_json::value::RawValue>(&text).is_ok(), "{text}");
    // Deeper than what is read here is what a client made it.
    let Some(members) = Json::parse(&text).ok().and_then(|json| json.members()) else { return };
    let kind = members.text(if generation == Generation::V1 { "type" } else { "t" });
    let kind = kind.expect("every frame is of a kind");
    let meta = members.get("m").and_then(|meta| meta.members());
    let from = match generation {
        Generation::V1 => members.text("userid"),
        _ => meta.and_then(|meta| meta.text("f")),
    };
    let is_users = match generation {
        Generation::V1 => members.get("userid").is_some(),
        _ => kind == "u" && from.as_deref() != Some("/my/path/__sys__"),
    };
    let Some((speaker, line)) = said else { return };
    if is_users {
        let from = from.expect("from somebody");
        assert_eq!(
            from.trim_start_matches("/my/path/"),
            SPEAKERS[speaker].0,
            "{text} after {line}"
        );
        assert!(frame.len() <= line.len() + signal::ENVELOPE_BYTES_MAX, "{text} after {line}");
    } else {
        let kinds: &[&str] = match generation {
            Generation::V1 => &["error", "pong"],
            Generation::V2 => &["e", "pong"],
            Generation::V4 => &["e", "r", "pong", "presence"],
        };
        // Nobody comes or goes for what is said.
        let is_pong = generation == Generation::V1 && members.text("t").is_some();
        assert!(is_pong || kinds.contains(&&*kind), "{text} after {line}");
    }
}

/// Whatever a client says, what the server relays is one JSON text with the payload as it came.
pub fn fuzz_frames(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(name) = Name::encode(text) {
        let back = percent_decode(name.as_str(), false);
        assert_eq!(back.as_deref(), Ok(text), "distinct names must stay distinct");
    }
    if let Ok(cursor) = text.parse::<Cursor>() {
        assert_eq!(cursor.to_string().parse(), Ok(cursor), "a cursor is read as it is written");
    }
    for generation in Generation::ALL {
        fuzz_frame(generation, text);
    }
}

/// What a generation's client says is relayed to every other as JSON, from its true sender.
fn fuzz_frame(generation: Generation, text: &str) {
    let path = Path::parse("/my/path").expect("a legal path");
    let name = Name::encode("somebody").expect("a legal name");
    let frame = match ClientFrame::parse(generation, text) {
        Ok(ClientFrame::User(frame)) => frame,
        Ok(ClientFrame::Ping { ts }) => return check_frame(&ServerFrame::Pong { ts }),
        Ok(ClientFrame::Presence { data, .. }) => {
            let data = Some(data);
            return check_frame(&ServerFrame::Presence { path: &path, name: &name, data });
        }
        Ok(ClientFrame::Ask { id, .. }) => {
            let envelope = "{}";
            return check_frame(&ServerFrame::Reply { id, cursor: None, ver: None, envelope });
        }
        Ok(_) => return,
        Err(error) => {
            let fault = Fault::with(error.error.code(), error.to_string());
            return check_frame(&ServerFrame::Error { fault: &fault });
        }
    };
    let cursor = Cursor::of(Incarnation(7), 1);
    let (from, cursor) = (Some(&name), Some(&cursor));
    let relayed = ServerFrame::User { path: &path, from, frame: &frame, cursor };
    check_frame(&relayed);
    for reader in Generation::ALL {
        let mut out = String::new();
        relayed.write(reader, &mut out);
        assert!(out.contains(frame.payload), "the payload is not as it came");
        let members = Json::parse(&out).ok().and_then(|json| json.members());
        let from = match (reader, members) {
            (_, None) => continue,
            (Generation::V1, Some(members)) => members.text("userid"),
            (_, Some(members)) => members.get("m").and_then(|m| m.members()).and_then(|meta| {
                let is_own = meta.text("c").as_deref() == Some("a7-1");
                assert!(is_own || reader != Generation::V4, "nobody writes the server's cursor");
                meta.text("f").map(|f| f.trim_start_matches("/my/path/").to_owned())
            }),
        };
        assert_eq!(from.as_deref(), Some("somebody"), "nobody speaks as another");
    }
}

fn check_frame(frame: &ServerFrame<'_>) {
    for generation in Generation::ALL {
        let mut text = String::new();
        frame.write(generation, &mut text);
        let is_json = serde_json::from_str::<&serde_json::value::RawValue>(&text).is_ok();
        assert!(is_json, "not JSON: {text}");
        let wire = frame.to_ws(generation);
        let mut decoder = Decoder::client(1 << 20);
        assert_eq!(decoder.push(&wire), wire.len());
        match decoder.next_message() {
            Ok(Some(Message::Text(read))) => assert_eq!(read, text),
            other => panic!("{other:?}"),
        }
    }
}

/// JSON stays the text that it was; strings and objects are written as they are read.
pub fn fuzz_json(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let mut quoted = String::new();
    push_string(&mut quoted, text);
    assert_eq!(serde_json::from_str::<String>(&quoted).as_deref().ok(), Some(text));
    assert_eq!(Json::string(text).to_text().as_deref(), Some(text));
    let Ok(json) = Json::parse(text) else { return };
    assert_eq!(Json::parse(json.as_str()).as_ref(), Ok(&json));
    let mut shown = String::new();
    json.push_with(&mut shown, "_ver_", "1-x");
    let shown = Json::parse(&shown).expect("still JSON");
    if let Some(members) = json.members() {
        let again = members.to_json();
        assert_eq!(again.members().as_ref(), Some(&members));
        assert_eq!(shown.members().and_then(|m| m.text("_ver_")).as_deref(), Some("1-x"));
    } else if !json.is_object() {
        assert_eq!(shown, json);
    }
    drop(json.read::<serde_json::Value>());
    let refusal = wire::envelope::error(&Fault::with(Code::BadRequest, text));
    assert!(Json::parse(&refusal).is_ok_and(|refusal| refusal.is_object()));
    let mut members = Members::default();
    members.set(text, json);
    // One level deeper than what was read, which may be one too many.
    let written = members.to_json();
    assert!(serde_json::from_str::<&serde_json::value::RawValue>(written.as_str()).is_ok());
}

/// Names lie in the embedded engine as they do in ordered maps: none is taken for another, and
/// listings and scans end where they should.
pub fn fuzz_store_keys(bytes: &[u8]) {
    static EMBEDDED: LazyLock<EmbeddedStore> = LazyLock::new(|| {
        let (disk, options) = (Disk::default(), Options::default());
        EmbeddedStore::open_on(disk.store(), disk.log(), options).expect("an empty disk")
    });
    static NEXT: AtomicU64 = AtomicU64::new(0);
    // A bucket of its own for each input, and a neighbour that must not be seen.
    let number = NEXT.fetch_add(1, Relaxed);
    let bucket = |name: &str| {
        let ident = Ident::parse(&format!("{name}{number}")).expect("a legal name");
        Bucket::account(&ident, None).expect("short")
    };
    let (bucket, neighbour) = (bucket("a"), bucket("a-"));
    let entries = entries(bytes, &bucket);
    let reference = MemoryStore::new();
    let mut writes: Vec<Write> = Vec::new();
    for (nth, entry) in entries.iter().enumerate() {
        let mut theirs = entry.clone();
        theirs.node.bucket = neighbour.clone();
        writes.extend([put(entry, nth), put(&theirs, nth)]);
    }
    let expected = block_on(reference.write(writes.clone()));
    assert_eq!(block_on(EMBEDDED.write(writes)), expected);
    let layers = block_on(reference.layers(&bucket)).expect("in memory");
    assert_eq!(block_on(EMBEDDED.layers(&bucket)).as_ref(), Ok(&layers));
    for layer in &layers {
        for under in entries.iter().map(|entry| &entry.node.path).chain([&Path::root()]) {
            let paths = block_on(reference.paths(&bucket, layer, under));
            assert_eq!(block_on(EMBEDDED.paths(&bucket, layer, under)), paths, "under {under}");
        }
    }
    for entry in &entries {
        let node = &entry.node;
        let heads = block_on(reference.node(node, usize::MAX));
        assert_eq!(block_on(EMBEDDED.node(node, usize::MAX)), heads, "{node:?}");
        let newest = block_on(reference.newest(entry));
        assert_eq!(block_on(EMBEDDED.newest(entry)), newest, "{entry:?}");
        let after = block_on(reference.keys(node, Some(&entry.key), 3));
        assert_eq!(block_on(EMBEDDED.keys(node, Some(&entry.key), 3)), after, "{entry:?}");
        let by = block_on(reference.by_secondary(node, 2, &entry.key));
        assert_eq!(block_on(EMBEDDED.by_secondary(node, 2, &entry.key)), by, "{entry:?}");
    }
    for bucket in [&bucket, &neighbour] {
        assert_eq!(block_on(EMBEDDED.drop_bucket(bucket)), Ok(()));
        assert_eq!(block_on(EMBEDDED.layers(bucket)), Ok(Vec::new()));
    }
}

/// Most entries that one input makes.
const ENTRIES_MAX: usize = 12;

/// Layers, paths and keys out of the lines of an input: three lines an entry, what is no name
/// becomes a short one.
fn entries(bytes: &[u8], bucket: &Bucket) -> Vec<Entry> {
    let text = String::from_utf8_lossy(bytes);
    let lines: Vec<&str> = text.split('\n').collect();
    let entry = |lines: &[&str]| {
        let line = |at: usize| lines.get(at).copied().unwrap_or("a");
        let layer = Layer::parse(line(0)).or_else(|_| Layer::parse("*d")).expect("a legal layer");
        let path = Path::parse(line(1)).unwrap_or_else(|_| Path::root());
        let key = Key::parse(line(2)).or_else(|_| Key::parse("k")).expect("a legal key");
        Node::new(bucket.clone(), layer, path).entry(key)
    };
    lines.chunks(3).take(ENTRIES_MAX).map(entry).collect()
}

/// A put with the entry's own key as k2 as well, unless another has it.
fn put(entry: &Entry, nth: usize) -> Write {
    let k2 = KeyChange::Set(entry.key.clone());
    Write {
        entry: entry.clone(),
        op: Op::Put { value: Json::from(nth as u64), keys: [k2, KeyChange::Keep, KeyChange::Keep] },
        condition: Condition::Any,
        who: Arc::from("elena"),
        stamp: Stamp { micros: 1, neuron: 1 },
    }
}

fn escape(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}
