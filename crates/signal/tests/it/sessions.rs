//! Sessions that are lost and come back, and who is sent away: an example of each rule.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use signal::{Coming, Departure, Limits, Signal, SocketId, Token};
use wire::frames::{Cursor, Incarnation, Session};
use wire::ws::CloseCode;

use crate::resume::{LASTS, PATH, frames, limits, v4};
use crate::{address, sealer};

/// The socket of who is there first.
const HOST: u64 = 2;

/// A room whose time a test moves, and members who come back to it.
struct Meeting {
    signal: Signal,
    now: Instant,
    next: u64,
}

impl Meeting {
    fn new() -> Meeting {
        let (now, limits) = (
            crate::now(),
            Limits { history_messages: 40, history_bytes_per_account: 1 << 20, ..limits() },
        );
        let mut meeting =
            Meeting { signal: Signal::new(crate::now(), limits, 1, sealer()), now, next: 1 };
        // Somebody stays, so that the room does; and time enough has passed since the start.
        assert_eq!(meeting.come("host", Coming::default()).0, SocketId(HOST));
        meeting.pass(LASTS);
        meeting
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.signal.handle_timeout(self.now);
    }

    /// Answers the socket, what it comes back with, and what followed the welcome.
    fn come(&mut self, name: &str, coming: Coming) -> (SocketId, Coming, Value, Vec<Value>) {
        self.next += 1;
        let socket = SocketId(self.next);
        self.signal.join(self.now, socket, v4(name, self.next, coming)).expect("joins");
        let mut frames = frames(&mut self.signal, self.next);
        let welcome = frames.remove(0);
        let kept = Coming {
            data: None,
            session: welcome["p"]["session"].as_str().map(|text| text.parse().expect("one")),
            cursor: welcome["m"]["c"].as_str().map(|text| text.parse().expect("one")),
        };
        (socket, kept, welcome["p"].clone(), frames)
    }

    fn lose(&mut self, socket: SocketId) {
        self.signal.leave(self.now, socket, Departure::Lost);
        crate::drain(&mut self.signal);
    }

    fn say(&mut self, socket: SocketId, id: u64, to: &str) {
        let frame = format!(r#"{{"t":"u","m":{{"o":"o","id":{id}{to}}},"p":{id}}}"#);
        self.signal.handle_text(self.now, socket, &frame);
        crate::drain(&mut self.signal);
    }
}

/// Members may have one name, so that a session that can be guessed is one that can be ended: only one
/// that was given goes on. And a cursor is what its reader says: what was said before a session began is
/// not for it, whatever it claims to have read.
#[test]
fn nobody_makes_a_session_nor_moves_his_own_back() {
    let mut meeting = Meeting::new();
    let (host, ..) = meeting.come("host", Coming::default());
    for number in 1..=5 {
        meeting.say(host, number, "");
    }
    let (_, given, ..) = meeting.come("bob", Coming::default());
    let session = given.session.expect("a session");
    let forged = [
        Session { number: session.number - 1, ..session },
        Session { born: 0, ..session },
        Session { incarnation: Incarnation(session.incarnation.0 + 1), ..session },
        Session { seal: session.seal ^ 1, ..session },
    ];
    for forged in forged {
        let coming = Coming { session: Some(forged), ..given.clone() };
        let (_, kept, welcome, heard) = meeting.come("bob", coming);
        assert_eq!((&welcome["resumed"], heard.len()), (&Value::Bool(false), 0), "{forged:?}");
        assert_ne!(kept.session, Some(session));
    }
    meeting.say(host, 6, "");
    for offset in [0, 3, 5, u64::MAX] {
        let cursor = Some(Cursor::of(session.incarnation, offset));
        let (.., heard) = meeting.come("bob", Coming { cursor, ..given.clone() });
        let heard: Vec<_> = heard.iter().map(|frame| frame["p"].as_u64()).collect();
        assert_eq!(heard, [Some(6)], "{offset}");
    }
}

/// One socket of a name that is closed does not end what its others came with.
#[test]
fn a_socket_that_stays_keeps_its_session() {
    let mut meeting = Meeting::new();
    let (laptop, of_laptop, ..) = meeting.come("ann", Coming::default());
    let (phone, of_phone, ..) = meeting.come("ann", Coming::default());
    let (host, ..) = meeting.come("host", Coming::default());
    let bucket = address(PATH).bucket;
    let now = meeting.now;
    meeting.signal.close_where(now, &bucket, CloseCode::UNAUTHORIZED, "revoked", |view| {
        view.socket == laptop
    });
    crate::drain(&mut meeting.signal);
    meeting.lose(phone);
    meeting.say(host, 1, r#","t":"ann""#);
    let (_, _, welcome, heard) = meeting.come("ann", of_phone);
    assert_eq!((&welcome["resumed"], heard.len()), (&Value::Bool(true), 1));
    let (_, _, welcome, heard) = meeting.come("ann", of_laptop);
    assert_eq!((&welcome["resumed"], heard.len()), (&Value::Bool(false), 0));
}

/// So many are sent away that not all are remembered, but those who were not are.
#[test]
fn however_many_are_sent_away_none_goes_on() {
    let mut meeting = Meeting::new();
    let (early, of_early, ..) = meeting.come("early", Coming::default());
    let mut kept = Vec::new();
    for number in 0..1_100 {
        let name = format!("n{number}");
        let (_, coming, ..) = meeting.come(&name, Coming::default());
        meeting.signal.kick(meeting.now, &address(PATH), Some(&name));
        crate::drain(&mut meeting.signal);
        kept.push((name, coming));
    }
    let (late, of_late, ..) = meeting.come("late", Coming::default());
    meeting.lose(early);
    meeting.lose(late);
    for (name, coming) in kept.into_iter().step_by(50) {
        assert_eq!(meeting.come(&name, coming).2["resumed"], false, "{name}");
    }
    assert_eq!(meeting.come("early", of_early).2["resumed"], true);
    assert_eq!(meeting.come("late", of_late).2["resumed"], true);
}

/// A rule that closes many sockets at once leaves those alone whom it does not concern, whether they are
/// here or will be back.
#[test]
fn who_stays_when_many_are_sent_away_at_once_goes_on() {
    let mut meeting = Meeting::new();
    let (away, of_away, ..) = meeting.come("away", Coming::default());
    meeting.lose(away);
    let (here, of_here, ..) = meeting.come("here", Coming::default());
    let mut gone = Vec::new();
    for number in 0..1_100 {
        let name = format!("n{number}");
        gone.push((name.clone(), meeting.come(&name, Coming::default()).1));
    }
    let bucket = address(PATH).bucket;
    let kicked =
        meeting.signal.close_where(meeting.now, &bucket, CloseCode::KICKED, "rule", |view| {
            view.name.as_str().starts_with('n')
        });
    assert_eq!(kicked.names, 1_100);
    crate::drain(&mut meeting.signal);
    meeting.lose(here);
    let (host, ..) = meeting.come("host", Coming::default());
    meeting.say(host, 1, "");
    for (name, coming) in [("away", of_away), ("here", of_here)] {
        let (_, _, welcome, heard) = meeting.come(name, coming);
        assert_eq!((&welcome["resumed"], heard.len()), (&Value::Bool(true), 1), "{name}");
    }
    for (name, coming) in gone.into_iter().step_by(50) {
        let (_, _, welcome, heard) = meeting.come(&name, coming);
        assert_eq!((&welcome["resumed"], heard.len()), (&Value::Bool(false), 0), "{name}");
    }
}

/// Whoever calls himself by how frames spell another's name neither hears what is said to that one, nor
/// is sent away in his place.
#[test]
fn nobody_stands_in_for_a_name_that_was_lost() {
    for shield in ["ann%20lee", "/my/path/ann lee", "ann%2520lee"] {
        let mut meeting = Meeting::new();
        let (host, ..) = meeting.come("host", Coming::default());
        let (ann, of_ann, ..) = meeting.come("ann lee", Coming::default());
        let (mallory, ..) = meeting.come(shield, Coming::default());
        meeting.lose(ann);
        for to in ["ann%20lee", "ann lee", "/room/ann%20lee", "/room/ann lee"] {
            let to = to.replace("/room", PATH);
            let frame = format!(r#"{{"t":"u","m":{{"id":1{},"t":"{to}"}},"p":1}}"#, to.len());
            meeting.signal.handle_text(meeting.now, host, &frame);
            let seen = crate::drain(&mut meeting.signal);
            assert_eq!(seen.of(mallory.0).len(), 0, "{to}");
        }
        let (ann, of_ann, welcome, heard) = meeting.come("ann lee", of_ann);
        assert_eq!((&welcome["resumed"], heard.len()), (&Value::Bool(true), 4), "{shield}");
        meeting.lose(ann);
        let kicked = meeting.signal.kick(meeting.now, &address(PATH), Some("ann%20lee"));
        assert_eq!((kicked.names, kicked.sockets, kicked.tokens.len()), (1, 0, 1), "{shield}");
        crate::drain(&mut meeting.signal);
        meeting.say(host, 5, "");
        let (_, _, welcome, heard) = meeting.come("ann lee", of_ann);
        assert_eq!((&welcome["resumed"], heard.len()), (&Value::Bool(false), 0), "{shield}");
    }
}

/// Else what nobody got would be taken for said.
#[test]
fn what_was_refused_is_told_to_who_was_cut_before_the_answer() {
    let mut meeting = Meeting::new();
    let (ann, of_ann, ..) = meeting.come("ann", Coming::default());
    meeting.say(ann, 1, "");
    meeting.say(ann, 2, r#","t":"nobody""#);
    meeting.say(ann, 3, "");
    meeting.lose(ann);
    let (ann, of_ann, welcome, _) = meeting.come("ann", of_ann);
    assert_eq!((&welcome["last"], &welcome["resumed"]), (&json!(3), &json!(true)));
    assert_eq!(welcome["refused"], json!([[2, "not_found"]]));
    // The first of a session may be one.
    meeting.lose(ann);
    let (bob, of_bob, ..) = meeting.come("bob", Coming::default());
    meeting.say(bob, 1, r#","o":"peers""#);
    meeting.lose(bob);
    let (bob, of_bob, welcome, _) = meeting.come("bob", of_bob);
    assert_eq!(
        (&welcome["last"], &welcome["refused"]),
        (&Value::Null, &json!([[1, "not_allowed"]]))
    );
    // So many that not all are known: then of none it is told that it was heard.
    for id in 2..40 {
        meeting.say(bob, id, r#","t":"nobody""#);
    }
    meeting.say(bob, 40, "");
    meeting.lose(bob);
    let (.., welcome, _) = meeting.come("bob", of_bob);
    assert_eq!(welcome["last"], Value::Null);
    // They are forgotten when nobody waits for an answer any more.
    let (ann, of_ann, ..) = meeting.come("ann", of_ann);
    for id in 10..60 {
        meeting.say(ann, id, r#","t":"nobody""#);
        meeting.pass(LASTS / 20);
    }
    meeting.say(ann, 60, "");
    meeting.lose(ann);
    let (.., welcome, _) = meeting.come("ann", of_ann);
    assert_eq!(welcome["last"], json!(60));
    assert_eq!(welcome["refused"].as_array().map(Vec::len), Some(20));
}

/// Two sockets of one name are two sessions: what one said is no gap of the other.
#[test]
fn what_another_socket_of_its_name_said_is_no_gap_of_a_session() {
    let mut meeting = Meeting::new();
    let (silent, of_silent, ..) = meeting.come("ann", Coming::default());
    let (loud, ..) = meeting.come("ann", Coming::default());
    let (_bob, ..) = meeting.come("bob", Coming::default());
    meeting.lose(silent);
    for id in 1..=60 {
        meeting.say(loud, id, r#","t":"bob""#);
    }
    let (_, _, welcome, heard) = meeting.come("ann", of_silent);
    assert_eq!((&welcome["resumed"], heard.len()), (&Value::Bool(true), 0));
}

/// However long ago he was sent away, and wherever he was then: only what he was given since goes on.
#[test]
fn who_was_sent_away_is_a_newcomer_for_good() {
    for whole in [false, true] {
        let mut meeting = Meeting::new();
        let (bob, of_bob, ..) = meeting.come("bob", Coming::default());
        meeting.lose(bob);
        let gone = meeting.signal.kick(meeting.now, &address(PATH), (!whole).then_some("bob"));
        assert_eq!(gone.sockets, usize::from(whole), "bob had none");
        let (host, ..) = meeting.come("host", Coming::default());
        for _ in 0..3 {
            meeting.pass(LASTS / 2);
            meeting.say(host, 1, "");
        }
        let (bob, anew, welcome, heard) = meeting.come("bob", of_bob.clone());
        assert_eq!((&welcome["resumed"], heard.len()), (&Value::Bool(false), 0), "{whole}");
        meeting.lose(bob);
        meeting.say(host, 2, "");
        let (_, _, welcome, heard) = meeting.come("bob", anew);
        assert_eq!((&welcome["resumed"], heard.len()), (&Value::Bool(true), 1), "{whole}");
    }
}

/// Who only listens has missed nothing of what was said to others, however much that was.
#[test]
fn what_others_were_told_alone_is_nobody_elses_gap() {
    let mut meeting = Meeting::new();
    let (bob, of_bob, ..) = meeting.come("bob", Coming::default());
    let (_, of_ann, ..) = meeting.come("ann", Coming::default());
    let (cid, of_cid, ..) = meeting.come("cid", Coming::default());
    for number in 0..100 {
        meeting.say(bob, number, r#","t":"ann""#);
    }
    meeting.lose(cid);
    meeting.lose(bob);
    let mut resumed = |name: &str, coming: &Coming| {
        let (_, _, welcome, heard) = meeting.come(name, coming.clone());
        (welcome["resumed"] == true, welcome["last"].as_u64(), heard.len())
    };
    assert_eq!(resumed("cid", &of_cid), (true, None, 0));
    assert_eq!(resumed("bob", &of_bob), (true, Some(99), 0), "what it said itself was heard");
    let (is_whole, _, heard) = resumed("ann", &of_ann);
    assert_eq!((is_whole, heard), (false, 40), "sixty more were to it");
}

/// One name whose sockets come and go does not make the room forget what others said last.
#[test]
fn a_name_that_comes_and_goes_costs_others_nothing() {
    let mut meeting = Meeting::new();
    let (ann, of_ann, ..) = meeting.come("ann", Coming::default());
    meeting.say(ann, 7, "");
    meeting.lose(ann);
    for _ in 0..2_000 {
        let (bob, ..) = meeting.come("bob", Coming::default());
        meeting.say(bob, 1, r#","t":"bob""#);
        meeting.lose(bob);
    }
    assert_eq!(meeting.signal.stats().counters.lost_cut, 2_000 - 16);
    let (_, _, welcome, _) = meeting.come("ann", of_ann);
    assert_eq!(welcome["last"], 7);
}

/// What stands beside a name is left when nothing is said of it, and taken away by `null`.
#[test]
fn who_comes_back_may_take_away_what_stood_beside_him() {
    let mut meeting = Meeting::new();
    let shows =
        |data: Option<&str>, kept: &Coming| Coming { data: data.map(Into::into), ..kept.clone() };
    let (_, kept, ..) = meeting.come("ann", shows(Some("1"), &Coming::default()));
    let (_, kept, welcome, _) = meeting.come("ann", kept);
    assert_eq!(welcome["data"]["ann"], 1);
    let (_, _, welcome, _) = meeting.come("ann", shows(Some("null"), &kept));
    assert_eq!(welcome["data"]["ann"], Value::Null);
}

/// Whatever became of a socket, what it came with opens nothing any more.
#[test]
fn a_kick_revokes_what_every_lost_socket_came_with() {
    for whole in [false, true] {
        let mut meeting = Meeting::new();
        let mut tokens = Vec::new();
        let mut lost = |meeting: &mut Meeting, returns: bool| {
            let (socket, kept, ..) = meeting.come("ann", Coming::default());
            meeting.lose(socket);
            match returns {
                true => drop(meeting.come("ann", kept)),
                false => tokens.push(socket.0),
            }
        };
        // One that is away for good, one while another is here, and one that came back.
        lost(&mut meeting, false);
        let (here, ..) = meeting.come("ann", Coming::default());
        lost(&mut meeting, false);
        lost(&mut meeting, true);
        let back = meeting.next;
        let kicked = meeting.signal.kick(meeting.now, &address(PATH), (!whole).then_some("ann"));
        assert_eq!(kicked.names, 1 + usize::from(whole), "each name once");
        tokens.extend([here.0, back]);
        if whole {
            tokens.push(HOST);
        }
        tokens.sort_unstable();
        let revoked: Vec<_> = kicked.tokens.iter().map(|token: &Token| token.id).collect();
        assert_eq!(revoked, tokens, "{whole}");
    }
}

/// The last socket of a name said goodbye, but one that was lost before it may come back.
#[test]
fn a_kick_finds_who_may_come_back_by_a_session_alone() {
    for whole in [false, true] {
        let mut meeting = Meeting::new();
        let (phone, ..) = meeting.come("ann", Coming::default());
        let (laptop, ..) = meeting.come("ann", Coming::default());
        meeting.lose(phone);
        meeting.signal.leave(meeting.now, laptop, Departure::Closed);
        let kicked = meeting.signal.kick(meeting.now, &address(PATH), (!whole).then_some("ann"));
        assert_eq!(kicked.names, 1 + usize::from(whole));
        assert!(kicked.tokens.iter().any(|token| token.id == phone.0), "{kicked:?}");
    }
}

/// Its session was forgotten, and it is no less kicked for that.
#[test]
fn a_kick_revokes_what_a_name_came_with_whose_session_was_forgotten() {
    let mut meeting = Meeting::new();
    let (ann, ..) = meeting.come("ann", Coming::default());
    meeting.lose(ann);
    // As many more as are known, by fewer names.
    for number in 0..1_000 {
        let (other, ..) = meeting.come(&format!("n{}", number % 63), Coming::default());
        meeting.pass(Duration::from_micros(1));
        meeting.lose(other);
    }
    assert!(meeting.signal.stats().counters.lost_cut > 0);
    let kicked = meeting.signal.kick(meeting.now, &address(PATH), Some("ann"));
    assert_eq!(kicked.names, 1);
    assert!(kicked.tokens.iter().any(|token| token.id == ann.0), "{kicked:?}");
}

/// A page of an older generation is the name too.
#[test]
fn a_name_that_came_back_in_another_way_is_lost_no_longer() {
    let mut meeting = Meeting::new();
    let (ann, ..) = meeting.come("ann", Coming::default());
    meeting.lose(ann);
    let old = SocketId(1_000);
    meeting.signal.join(meeting.now, old, crate::join(PATH, "ann", 1_000)).expect("joins");
    let kicked = meeting.signal.kick(meeting.now, &address(PATH), Some("ann"));
    assert_eq!((kicked.names, kicked.sockets), (1, 1));
}

/// It is not known what he said before, so what he says again may be heard again, and he is told so.
#[test]
fn who_was_forgotten_stays_so_until_he_is_heard() {
    let mut meeting = Meeting::new();
    let (host, ..) = meeting.come("host", Coming::default());
    let (ann, of_ann, ..) = meeting.come("ann", Coming::default());
    meeting.say(ann, 5, "");
    meeting.lose(ann);
    // More sessions of the name than are remembered.
    for _ in 0..16 {
        let (other, ..) = meeting.come("ann", Coming::default());
        meeting.lose(other);
    }
    let (ann, of_ann, welcome, _) = meeting.come("ann", of_ann);
    assert_eq!((&welcome["resumed"], &welcome["last"]), (&json!(true), &Value::Null));
    meeting.say(ann, 6, r#","t":"nobody""#);
    meeting.lose(ann);
    for number in 0..50 {
        meeting.say(host, number, r#","t":"host""#);
    }
    let (.., welcome, _) = meeting.come("ann", of_ann);
    assert_eq!((&welcome["resumed"], &welcome["last"]), (&json!(false), &Value::Null));
}

/// However much they were refused, and in however many rooms.
#[test]
fn sessions_that_may_come_back_are_held_within_the_bytes() {
    let limits = Limits { history_bytes_per_account: 20_000, ..limits() };
    let mut signal = Signal::new(crate::now(), limits, 1, sealer());
    let now = crate::now();
    let mut bytes_most = 0;
    for socket in 1..=400 {
        let mut join = v4(&format!("n{socket}"), socket, Coming::default());
        join.address = address(&format!("/room{}", socket % 7));
        signal.join(now, SocketId(socket), join).expect("joins");
        for id in 0..10 {
            let frame =
                format!(r#"{{"t":"u","m":{{"id":"{}{id}","t":"nobody"}}}}"#, "i".repeat(50));
            signal.handle_text(now, SocketId(socket), &frame);
        }
        signal.leave(now, SocketId(socket), Departure::Lost);
        crate::drain(&mut signal);
        bytes_most = bytes_most.max(signal.stats().history_bytes);
    }
    assert!((10_000..=20_000).contains(&bytes_most), "{bytes_most}");
    assert!(signal.stats().counters.lost_cut > 300, "{:?}", signal.stats());
    signal.handle_timeout(now + LASTS);
    assert_eq!(signal.stats().history_bytes, 0);
}

/// However many sessions an account loses, what others said is kept for those who come back to them.
#[test]
fn one_accounts_sessions_cost_another_none_of_its_messages() {
    let limits = Limits {
        history_messages: 100,
        history_bytes_per_account: 40_000,
        history_bytes: 48_000,
        ..limits()
    };
    let mut signal = Signal::new(crate::now(), limits, 1, sealer());
    let now = crate::now();
    let quiet = |name: &str, socket, coming| {
        let mut join = v4(name, socket, coming);
        join.address.bucket = kv4::Bucket::from_stored("kv4_$quiet_data");
        join
    };
    signal.join(now, SocketId(1), quiet("speaker", 1, Coming::default())).expect("joins");
    signal.join(now, SocketId(2), quiet("other", 2, Coming::default())).expect("joins");
    let welcome = frames(&mut signal, 2).remove(0);
    signal.leave(now, SocketId(2), Departure::Lost);
    for _ in 0..12 {
        let frame = format!(r#"{{"t":"u","m":{{"o":"o"}},"p":"{}"}}"#, "x".repeat(900));
        signal.handle_text(now, SocketId(1), &frame);
    }
    for socket in 3..=500 {
        let join = v4(&format!("n{socket}"), socket, Coming::default());
        signal.join(now, SocketId(socket), join).expect("joins");
        signal.leave(now, SocketId(socket), Departure::Lost);
        crate::drain(&mut signal);
        assert!(signal.stats().history_bytes <= 48_000);
    }
    assert!(signal.stats().counters.lost_cut > 100, "{:?}", signal.stats());
    let coming = Coming {
        data: None,
        session: welcome["p"]["session"].as_str().map(|text| text.parse().expect("one")),
        cursor: welcome["m"]["c"].as_str().map(|text| text.parse().expect("one")),
    };
    signal.join(now, SocketId(999), quiet("other", 999, coming)).expect("joins");
    let heard = frames(&mut signal, 999);
    assert_eq!((&heard[0]["p"]["resumed"], heard.len()), (&json!(true), 13));
}
