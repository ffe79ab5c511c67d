//! Attackers on a path: broken frames, huge ones, forged words, tokens and sessions, floods.
//!
//! Beside every attack sit honest members of each kind, who must notice nothing but that somebody comes
//! and goes; behind it the neuron must hold nothing more than before.

mod floods;
mod frames;
mod words;

use std::sync::PoisonError;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tests::plain;
use tests::raw::Raw;
use tests::socket::Client;

use super::crowd::{SILENCE, count};
use super::{Stage, wait_until};

/// Every name of an attacker begins with this.
const MALLORY: &str = "mallory";
/// What the neuron's memory may grow by, in KiB: its allocator keeps some of what was freed, of each
/// thread.
const GROWTH_KIB_MAX: u64 = 48 << 10;

/// How an attacker comes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Way {
    V1,
    V2,
    V4,
    Tcp,
}

impl Way {
    const ALL: [Way; 4] = [Way::V1, Way::V2, Way::V4, Way::Tcp];
    const WEB_SOCKETS: [Way; 3] = [Way::V1, Way::V2, Way::V4];
}

/// An honest member, of whatever generation.
enum Member {
    WebSocket(Box<Client>),
    Plain(plain::Client),
}

impl Member {
    fn send(&mut self, text: &str) -> Result<()> {
        match self {
            Member::WebSocket(client) => client.send_text(text),
            Member::Plain(client) => client.send_text(text.as_bytes()),
        }
    }

    /// Waits until all that he has said is acted on: what he says to himself comes after it. Answers
    /// what he heard meanwhile.
    fn is_heard_out(&mut self, way: Way, name: &str) -> Result<Vec<Value>> {
        let text = match way {
            Way::V1 => json!({ "eventName": "self", "targetUserId": name, "data": "heard" }),
            _ => json!({ "t": "u", "m": { "o": "self", "t": name }, "p": "heard" }),
        };
        self.send(&text.to_string())?;
        let mut heard = Vec::new();
        loop {
            let frame = self.frame()?;
            if frame["p"] == "heard" || frame["message"]["data"] == "heard" {
                return Ok(heard);
            }
            heard.push(frame);
        }
    }

    fn frame(&mut self) -> Result<Value> {
        match self {
            Member::WebSocket(client) => client.frame(),
            Member::Plain(client) => client.frame(),
        }
    }
}

/// A room with an honest member of every kind, and where else the neuron listens.
struct Room {
    stage: Stage,
    base: String,
    tcp: String,
    members: Vec<(Way, Member)>,
    /// What was said to look whether it is heard.
    marks: u64,
    rss_kib: u64,
    /// Attackers that did not read what they brought about, which is theirs.
    cut: u64,
}

impl Room {
    fn new(settings: &[(&str, &str)]) -> Result<Room> {
        let mut settings = settings.to_vec();
        settings.push(("GANGLION_LISTEN__TCP", r#"["127.0.0.1:0"]"#));
        let stage = Stage::with(&settings)?;
        let (base, tcp) = (stage.base()?, stage.neuron.places("tcp").remove(0));
        let members = Vec::new();
        let mut room = Room { stage, base, tcp, members, marks: 0, rss_kib: 0, cut: 0 };
        for (way, name) in Way::ALL.into_iter().zip(["old", "ann", "bob", "cid"]) {
            let token = room.token(name)?;
            let member = room.enter(way, &token)?;
            room.members.push((way, member));
        }
        room.notices_nothing().ok();
        room.rss_kib = room.stage.neuron.rss_kib()?;
        Ok(room)
    }

    fn token(&self, name: &str) -> Result<String> {
        self.stage.token(&format!("/my/path?k={name}&expire=3600"))
    }

    /// A client in the room, which has heard who is there.
    fn enter(&self, way: Way, token: &str) -> Result<Member> {
        let mut member = self.come(way, token)?;
        member.frame()?;
        Ok(member)
    }

    fn url(&self, way: Way, token: &str) -> String {
        match way {
            Way::V1 => format!("{}/{token}", self.base),
            Way::V2 => format!("{}/v2/{token}", self.base),
            Way::V4 | Way::Tcp => format!("{}/v4", self.base),
        }
    }

    /// A client that has shown its token.
    fn come(&self, way: Way, token: &str) -> Result<Member> {
        let hello = json!({ "token": token });
        Ok(match way {
            Way::V1 | Way::V2 => {
                Member::WebSocket(Box::new(Client::connect(&self.url(way, token))?))
            }
            Way::V4 => Member::WebSocket(Box::new(Client::greet(&self.base, &hello)?)),
            Way::Tcp => Member::Plain(plain::Client::greet(&self.tcp, &hello)?),
        })
    }

    /// The code with which one who shows a token is turned away.
    fn turned_away(&self, way: Way, token: &str) -> Result<u64> {
        match self.come(way, token)? {
            Member::WebSocket(mut client) => Ok(client.close_code()?.into()),
            Member::Plain(mut client) => client.close_code(),
        }
    }

    /// A WebSocket in the room that sends bytes as they are.
    fn enter_raw(&self, way: Way, token: &str) -> Result<Raw> {
        let mut raw = Raw::connect(&self.url(way, token))?;
        if way == Way::V4 {
            raw.send_text(&json!({ "t": "hello", "p": { "token": token } }).to_string())?;
        }
        raw.frame()?;
        Ok(raw)
    }

    /// What each honest member has heard since the last look, but for comers and goers that are
    /// attackers. Each says something, which all others hear.
    fn heard(&mut self) -> Result<Vec<(Way, Vec<Value>)>> {
        let mut heard: Vec<_> = self.members.iter().map(|(way, _)| (*way, Vec::new())).collect();
        for from in 0..self.members.len() {
            self.marks += 1;
            let mark = format!("mark {}", self.marks);
            let (way, member) = &mut self.members[from];
            let text = match way {
                Way::V1 => json!({ "eventName": "mark", "data": mark }),
                _ => json!({ "t": "u", "m": { "o": "mark" }, "p": mark }),
            };
            member.send(&text.to_string())?;
            for (at, (way, member)) in self.members.iter_mut().enumerate() {
                if at == from {
                    continue;
                }
                loop {
                    let about = || format!("{way:?} waits for {mark}");
                    let frame = member.frame().with_context(about)?;
                    let said =
                        if *way == Way::V1 { &frame["message"]["data"] } else { &frame["p"] };
                    if *said == json!(mark) {
                        break;
                    }
                    if !is_of_attackers(*way, &frame) {
                        heard[at].1.push(frame);
                    }
                }
            }
        }
        Ok(heard)
    }

    fn notices_nothing(&mut self) -> Result<()> {
        for (way, heard) in self.heard()? {
            ensure!(heard.is_empty(), "{way:?} heard {heard:?}");
        }
        Ok(())
    }

    fn metric(&self, name: &str) -> Result<u64> {
        self.stage.neuron.metric(name)
    }

    /// Ends an attack: the honest are as they were, and nothing is left of anybody else.
    fn is_as_before(&mut self) -> Result<()> {
        let members = self.members.len() as u64;
        for figure in ["connections", "signal_sockets", "signal_names"] {
            wait_until(figure, || Ok(self.metric(figure)? == members))?;
        }
        for figure in ["watches", "watch_queued_bytes"] {
            wait_until(figure, || Ok(self.metric(figure)? == 0))?;
        }
        ensure!(self.metric("socket_slow_total")? == self.cut, "somebody was cut");
        self.notices_nothing()?;
        self.stays_small()
    }

    /// The neuron's memory is about what it was before.
    fn stays_small(&self) -> Result<()> {
        let rss = self.stage.neuron.rss_kib()?;
        let most = self.rss_kib + GROWTH_KIB_MAX;
        ensure!(rss < most, "{rss} KiB after, {} KiB before", self.rss_kib);
        Ok(())
    }
}

/// Whether a frame tells that an attacker comes, goes, or shows something beside his name.
fn is_of_attackers(way: Way, frame: &Value) -> bool {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (kind, who) = match way {
        Way::V1 => (text(&frame["type"]), text(&frame["message"])),
        Way::V2 => (text(&frame["m"]["o"]), text(&frame["m"]["f"])),
        Way::V4 | Way::Tcp => (text(&frame["t"]), text(&frame["m"]["f"])),
    };
    let kinds: &[&str] = match way {
        Way::V1 | Way::V2 => &["peer_connected", "peer_removed"],
        Way::V4 | Way::Tcp => &["joined", "left", "presence"],
    };
    kinds.contains(&&*kind) && who.rsplit('/').next().is_some_and(|who| who.starts_with(MALLORY))
}

#[test]
fn tokens_that_are_not_right_open_nothing_by_any_way() -> Result<()> {
    let mut room = Room::new(&[])?;
    let stage = &room.stage;
    let good = room.token("mallory")?;
    let mut wrong: Vec<(String, String)> = Vec::new();
    for (what, token) in [
        ("nothing", "x"),
        ("none", "null"),
        ("dots", "..."),
        ("long", &*"x".repeat(4_000)),
        ("a JWT of no key", "eyJhbGciOiJub25lIn0.eyJhY2NvdW50IjoiZWxlbmEifQ."),
    ] {
        wrong.push((what.to_owned(), token.to_owned()));
    }
    // Any byte of it. The last bits of the last character do not count.
    for at in (0..good.len() - 1).step_by(5) {
        let mut forged = good.clone().into_bytes();
        forged[at] = if forged[at] == b'A' { b'B' } else { b'A' };
        wrong.push((format!("forged at {at}"), String::from_utf8(forged)?));
    }
    for cut in [1, 10, good.len() / 2] {
        wrong.push((format!("cut by {cut}"), good[..good.len() - cut].to_owned()));
    }
    let revoked = room.token("mallory-revoked")?;
    stage.ok("DELETE", &format!("/_token?id={revoked}"), None)?;
    wrong.push(("revoked".to_owned(), revoked));
    let of_user = room.token("mallory-gone")?;
    stage.ok("DELETE", "/_token/my/path?k=mallory-gone", None)?;
    wrong.push(("of a revoked user".to_owned(), of_user));
    let expired = stage.token("/my/path?k=mallory&expire=1")?;
    let expires = Instant::now() + Duration::from_millis(2_100);
    let deaf = stage.token("/my/path?k=mallory&expire=600&grants=publish,send")?;
    wrong.push(("that may not hear".to_owned(), deaf));
    let refused = room.metric("socket_refused_total")?;
    let mut count = 0;
    for (what, token) in &wrong {
        for way in Way::ALL {
            let code = room.turned_away(way, token).with_context(|| format!("{way:?} {what}"))?;
            assert_eq!(code, 4401, "{way:?} {what}");
            count += 1;
        }
    }
    // By the neuron's clock, of which nothing else tells; nobody was here with it before.
    std::thread::sleep(expires.saturating_duration_since(Instant::now()));
    for way in Way::ALL {
        assert_eq!(room.turned_away(way, &expired)?, 4401, "{way:?} expired");
        count += 1;
    }
    assert!(room.metric("socket_refused_total")? >= refused + count);
    // One that is right opens its own path, and no other.
    let hello = json!({ "token": good, "path": "/my" });
    assert_eq!(Client::greet(&room.base, &hello)?.close_code()?, 4401);
    assert_eq!(plain::Client::greet(&room.tcp, &hello)?.close_code()?, 4401);
    for way in [Way::V1, Way::V2] {
        let url = format!("{}?path=/my", room.url(way, &good));
        assert_eq!(Client::connect(&url)?.close_code()?, 4401, "{way:?}");
    }
    room.is_as_before()
}

/// A kick takes the token with it, whatever way it is shown again.
#[test]
fn a_token_that_was_kicked_is_no_good_by_any_way() -> Result<()> {
    let mut room = Room::new(&[])?;
    for way in Way::ALL {
        let token = room.token("mallory")?;
        let mut member = room.enter(way, &token)?;
        let kicked = room.stage.ok("DELETE", "/_subs/my/path?k=mallory", None)?;
        assert_eq!(kicked, json!(1), "{way:?}");
        // What he says until he hears of it is heard by nobody.
        let _ = member.send(r#"{"t":"u","m":{"o":"x"},"p":"after the kick"}"#);
        let code = match &mut member {
            Member::WebSocket(client) => client.close_code()?.into(),
            Member::Plain(client) => client.close_code()?,
        };
        assert_eq!(code, 4403, "{way:?}");
        for again in Way::ALL {
            assert_eq!(room.turned_away(again, &token)?, 4401, "{way:?}, then {again:?}");
        }
    }
    room.is_as_before()
}

/// Paths of two accounts are two rooms, whatever they are called.
#[test]
fn another_accounts_token_opens_another_accounts_room() -> Result<()> {
    let mut room = Room::new(&[])?;
    let oscar = format!("oscar:{}", room.stage.neuron.account("oscar")?);
    let url = room.stage.neuron.url();
    tests::curl::json("PUT", &url, "/_ns/my/path", &oscar, None)?;
    let token = "/_token/my/path?k=mallory&expire=600";
    let token = tests::curl::json("PUT", &url, token, &oscar, None)?;
    let token = token["v"].as_str().context("a token")?.to_owned();
    let (mut bob, welcome) = room.stage.greet("mallory-too")?;
    for way in Way::ALL {
        let mut mallory = room.enter(way, &token)?;
        mallory.send(r#"{"t":"u","m":{"o":"x"},"p":"hi"}"#)?;
        mallory.send(r#"{"eventName":"x","data":"hi"}"#)?;
        mallory.send(r#"{"t":"u","m":{"o":"x","t":"/my/path/ann"},"p":"hi"}"#)?;
    }
    // What he knows of a session and a room elsewhere is worth nothing in his own.
    let hello = json!({
        "token": token, "session": welcome["p"]["session"], "cursor": welcome["m"]["c"],
    });
    let mut mallory = Client::greet(&room.base, &hello)?;
    let own = mallory.frame()?;
    assert_eq!((&own["p"]["resumed"], &own["p"]["users"]), (&json!(false), &json!(["mallory"])));
    // Whoever knows no cursor of this room is told what is known of it: nothing but his own.
    mallory.send_text(r#"{"t":"ping","ts":1}"#)?;
    loop {
        let frame = mallory.frame()?;
        if frame["t"] == "pong" {
            break;
        }
        assert_eq!(frame["m"]["f"], "/my/path/mallory", "{frame}");
    }
    bob.hears_nothing()?;
    mallory.leave()?;
    bob.leave()?;
    room.is_as_before()
}

/// Names that would break frames, lists or paths if they stood there as they are.
#[test]
fn names_of_every_kind_are_one_segment_of_a_path() -> Result<()> {
    let mut room = Room::new(&[])?;
    for (name, spelled) in [
        ("a/b", "a%2Fb"),
        ("/my/path/ann", "%2Fmy%2Fpath%2Fann"),
        ("\"],\"x\":[\"", "%22%5D%2C%22x%22%3A%5B%22"),
        ("\\", "%5C"),
        ("😀", "%F0%9F%98%80"),
        ("__proto__", "__proto__"),
        ("a%2Fb", "a%252Fb"),
        ("<script>", "%3Cscript%3E"),
        ("a b", "a%20b"),
    ] {
        let identity = format!("{MALLORY}{name}");
        let escaped: String = identity.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let token = room.stage.token(&format!("/my/path?k={escaped}&expire=600"))?;
        let expected = format!("{MALLORY}{spelled}");
        for way in Way::ALL {
            let first = room.come(way, &token)?.frame()?;
            let users = match way {
                Way::V1 => &first["message"]["users"],
                _ => &first["p"]["users"],
            };
            assert!(users.as_array().context("users")?.contains(&json!(expected)), "{first}");
        }
        let row = format!("/_subs/my/path?k={escaped}");
        wait_until("he has gone", || {
            let answer = tests::curl::json(
                "GET",
                &room.stage.neuron.url(),
                &row,
                &room.stage.credentials,
                None,
            )?;
            Ok(answer["v"] == "not_found")
        })?;
    }
    // The server's own name, and one that is too long, are no member's.
    let long = "x".repeat(200);
    for name in ["__sys__", &*long] {
        let asked = format!("/_token/my/path?k={name}&expire=600");
        let url = room.stage.neuron.url();
        let answer = tests::curl::json("PUT", &url, &asked, &room.stage.credentials, None)?;
        let Some(token) = answer["v"].as_str().filter(|_| answer["s"] == "ok") else { continue };
        for way in Way::ALL {
            let code = room.turned_away(way, token);
            assert!(matches!(code, Ok(1008 | 4401)), "{name:?} by {way:?}: {code:?}");
        }
    }
    room.is_as_before()
}

/// They hold a place until they are to have said who they are, and no longer.
#[test]
fn connections_that_never_speak_are_closed_on_tcp_too() -> Result<()> {
    let _alone = SILENCE.lock().unwrap_or_else(PoisonError::into_inner);
    let silent = count("GANGLION_SILENT", 300);
    let mut room = Room::new(&[("GANGLION_LIMITS__CONNECTIONS_PER_ADDRESS", "20000")])?;
    // What the first leave to the allocator is enough for those who follow.
    for wave in 1..=2 {
        let mut sockets = Vec::new();
        for number in 0..silent {
            let mut client = plain::Client::connect(&room.tcp)?;
            // Some say a little: half a length, half a text, or only that they are there.
            match number % 4 {
                0 => client.send_bytes(&[0, 0])?,
                1 => client.send_bytes(&[0, 0, 0xFF, 0xFF, b'{'])?,
                2 => client.send_bytes(&[0; 64])?,
                _ => {}
            }
            sockets.push(client);
        }
        room.notices_nothing()?;
        let each = room.stage.neuron.rss_kib()?.saturating_sub(room.rss_kib) / silent as u64;
        assert!(each < 64, "{each} KiB for each");
        for socket in &mut sockets {
            assert_eq!(socket.close_code()?, 1008);
        }
        drop(sockets);
        assert_eq!(room.metric("socket_idle_total")?, wave * silent as u64);
        if wave == 1 {
            room.rss_kib = room.stage.neuron.rss_kib()?;
        }
    }
    room.is_as_before()
}
