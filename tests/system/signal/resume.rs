//! Sockets that are lost and come back: nothing is missed, or that is told.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use tests::socket::{Client, masked_text};

use super::{Stage, wait_until};

/// What a client keeps to come back with.
struct Kept {
    token: String,
    session: Value,
    cursor: Value,
}

impl Kept {
    fn of(token: String, welcome: &Value) -> Kept {
        let (session, cursor) = (welcome["p"]["session"].clone(), welcome["m"]["c"].clone());
        Kept { token, session, cursor }
    }

    /// Takes note of a frame that was read.
    fn note(&mut self, frame: &Value) {
        if frame["m"]["c"].is_string() {
            self.cursor = frame["m"]["c"].clone();
        }
    }

    fn back(&self, stage: &Stage) -> Result<(Client, Value)> {
        let Kept { token, session, cursor } = self;
        let hello = json!({ "token": token, "session": session, "cursor": cursor });
        let mut client = Client::greet(&stage.base()?, &hello)?;
        let welcome = client.frame()?;
        Ok((client, welcome))
    }
}

fn come(stage: &Stage, name: &str) -> Result<(Client, Kept)> {
    let token = stage.token(&format!("/my/path?k={name}&expire=600"))?;
    let mut client = Client::greet(&stage.base()?, &json!({ "token": token }))?;
    let welcome = client.frame()?;
    Ok((client, Kept::of(token, &welcome)))
}

#[test]
fn who_was_cut_off_hears_what_was_said_meanwhile() -> Result<()> {
    let stage = Stage::new()?;
    let mut ann = stage.join("ann")?;
    ann.frame()?;
    let (mut bob, mut kept) = come(&stage, "bob")?;
    ann.say("message", None, &json!(1))?;
    kept.note(&bob.frame()?);
    bob.vanish();
    wait_until("bob is gone", || Ok(stage.ok("GET", "/_subs/my/path", None)? == json!(["ann"])))?;
    // To everybody, to bob who is away, and to somebody who is nobody.
    ann.say("message", None, &json!(2))?;
    ann.say("message", Some("bob"), &json!(3))?;
    ann.say("message", Some("zoe"), &json!(4))?;
    ann.hears_nothing().ok();
    ann.say("message", None, &json!(5))?;
    wait_until("it was said", || Ok(stage.neuron.metric("signal_packets_total")? == 4))?;

    let (mut bob, welcome) = kept.back(&stage)?;
    assert_eq!(welcome["p"]["resumed"], true, "{welcome}");
    assert_eq!(welcome["p"]["session"], kept.session);
    assert_eq!(welcome["p"]["users"], json!(["ann", "bob"]));
    for said in [2, 3, 5] {
        let frame = bob.frame()?;
        assert_eq!(frame["p"], said, "{frame}");
        kept.note(&frame);
    }
    bob.hears_nothing()?;
    ann.say("message", None, &json!(6))?;
    assert_eq!(bob.frame()?["p"], 6);
    assert_eq!(stage.neuron.metric("signal_resumed_total")?, 1);
    Ok(())
}

/// A page's socket may be dead for long before the neuron knows: by then it is back.
#[test]
fn who_comes_back_before_the_neuron_knows_takes_its_own_place() -> Result<()> {
    let stage = Stage::new()?;
    let mut ann = stage.join("ann")?;
    ann.frame()?;
    let (mut dead, kept) = come(&stage, "bob")?;
    ann.frame()?;
    // Heard by the neuron's end of the dead socket, and by nobody behind it.
    ann.say("message", None, &json!("lost on the way"))?;
    let (mut bob, welcome) = kept.back(&stage)?;
    assert_eq!(welcome["p"]["resumed"], true, "{welcome}");
    assert_eq!(bob.frame()?["p"], "lost on the way");
    assert_eq!(dead.close_code()?, 4409);
    ann.hears_nothing()?;
    assert_eq!(stage.ok("GET", "/_subs/my/path", None)?, json!(["ann", "bob"]));

    // Another session of the name is another device, and so is the session under another name.
    let (_, welcome) = stage.greet("bob")?;
    assert_ne!(welcome["p"]["session"], kept.session);
    let token = stage.token("/my/path?k=cid")?;
    let thief = Kept { token, session: kept.session.clone(), cursor: kept.cursor.clone() };
    let (_cid, _) = thief.back(&stage)?;
    bob.hears_nothing().ok();
    assert_eq!(stage.neuron.metric("signal_replaced_total")?, 1);
    Ok(())
}

#[test]
fn a_neuron_that_was_killed_says_that_it_knows_nothing() -> Result<()> {
    let mut stage = Stage::new()?;
    let (mut bob, kept) = come(&stage, "bob")?;
    bob.hears_nothing()?;
    bob.vanish();
    stage.neuron.kill()?;
    stage.neuron = stage.neuron.restart()?;
    // What is said to the new one before bob is back is not lost for him.
    let (mut ann, _) = come(&stage, "ann")?;
    let reply = ann.ask("u", &json!(1), &json!("after"))?;
    assert_eq!(reply["p"]["s"], "ok", "{reply}");
    let (mut bob, welcome) = kept.back(&stage)?;
    assert_eq!(welcome["p"]["resumed"], false, "{welcome}");
    assert!(welcome["p"]["last"].is_null(), "{welcome}");
    assert_eq!(bob.frame()?["p"], "after");
    bob.hears_nothing()
}

#[test]
fn what_is_kept_is_bounded_and_who_misses_something_is_told() -> Result<()> {
    let stage = Stage::with(&[("GANGLION_SIGNAL__RESUME_MESSAGES", "3")])?;
    let mut ann = stage.join("ann")?;
    ann.frame()?;
    let (bob, kept) = come(&stage, "bob")?;
    bob.vanish();
    for said in 1..=4 {
        ann.say("message", None, &json!(said))?;
    }
    wait_until("it was said", || Ok(stage.neuron.metric("signal_packets_total")? == 4))?;
    let (mut bob, welcome) = kept.back(&stage)?;
    assert_eq!(welcome["p"]["resumed"], false, "{welcome}");
    for said in 2..=4 {
        assert_eq!(bob.frame()?["p"], said);
    }
    bob.hears_nothing()?;
    assert_eq!(stage.neuron.metric("signal_history_cut_total")?, 1);
    Ok(())
}

#[test]
fn what_is_too_old_is_let_go_of() -> Result<()> {
    let stage = Stage::with(&[("GANGLION_SIGNAL__RESUME", "1s")])?;
    let (mut bob, kept) = come(&stage, "bob")?;
    bob.ask("u", &json!(1), &json!("x"))?;
    assert_eq!(stage.neuron.metric("signal_history_messages")?, 1);
    bob.vanish();
    wait_until("nothing is kept", || Ok(stage.neuron.metric("signal_histories")? == 0))?;
    assert_eq!(stage.neuron.metric("signal_history_bytes")?, 0);
    let (_, welcome) = kept.back(&stage)?;
    assert_eq!(welcome["p"]["resumed"], false, "{welcome}");
    Ok(())
}

/// A frame that was cut anywhere was said or was not: who comes back is told which, and nobody hears
/// it twice.
#[test]
fn a_frame_that_is_cut_at_any_byte_is_heard_once() -> Result<()> {
    let stage = Stage::new()?;
    let (mut ann, _) = come(&stage, "ann")?;
    let token = stage.token("/my/path?k=bob&expire=600")?;
    let base = stage.base()?;
    let authority = base.trim_start_matches("ws://").split('/').next().context("an authority")?;
    let text = |id: usize| format!(r#"{{"t":"u","m":{{"id":{id},"o":"m"}},"p":{id}}}"#);
    let bytes = masked_text(&text(100)).len();
    let (mut session, mut cursor) = (Value::Null, Value::Null);
    for cut in 0..=bytes {
        let id = 100 + cut;
        let mut stream = TcpStream::connect(authority)?;
        let request = format!(
            "GET /ws/v4 HTTP/1.1\r\nhost: {authority}\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
             sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        );
        stream.write_all(request.as_bytes())?;
        let mut hello = json!({ "token": token });
        if session.is_string() {
            (hello["session"], hello["cursor"]) = (session.clone(), cursor.clone());
        }
        let hello = json!({ "t": "hello", "p": hello }).to_string();
        stream.write_all(&masked_text(&hello))?;
        // The head of the answer, and the welcome behind it.
        let mut read = Vec::new();
        let welcome = loop {
            let mut more = [0; 4096];
            let count = stream.read(&mut more)?;
            anyhow::ensure!(count > 0, "the neuron hung up");
            read.extend_from_slice(&more[..count]);
            let text = String::from_utf8_lossy(&read);
            if let Some(at) = text.find(r#"{"t":"welcome""#)
                && let Ok(welcome) = serde_json::from_str::<Value>(&text[at..])
            {
                break welcome;
            }
        };
        if session.is_string() {
            assert_eq!(welcome["p"]["resumed"], true, "{cut}: {welcome}");
        }
        (session, cursor) = (welcome["p"]["session"].clone(), welcome["m"]["c"].clone());
        let frame = masked_text(&text(id));
        stream.write_all(&frame[..cut])?;
        drop(stream);

        let kept = Kept { token: token.clone(), session: session.clone(), cursor: cursor.clone() };
        let (mut bob, welcome) = kept.back(&stage)?;
        assert_eq!(welcome["p"]["resumed"], true, "{cut}: {welcome}");
        // The old socket's end of it may be read after this one came: what is whole then counts.
        if welcome["p"]["last"] != id {
            bob.send_text(&text(id))?;
            bob.reply(&json!(id))?;
        }
        cursor = welcome["m"]["c"].clone();
        bob.vanish();
        let mut heard = Vec::new();
        while heard.is_empty() {
            let frame = ann.frame()?;
            heard.extend(frame["p"].as_u64().filter(|_| frame["t"] == "u"));
        }
        assert_eq!(heard, [id as u64], "cut after {cut} of {bytes} bytes");
    }
    assert_eq!(stage.neuron.metric("signal_packets_total")?, bytes as u64 + 1);
    wait_until("bob is gone", || Ok(stage.ok("GET", "/_subs/my/path", None)? == json!(["ann"])))
}
