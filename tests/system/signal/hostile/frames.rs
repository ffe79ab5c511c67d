//! Bytes that are no frames, or that would be too many.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde_json::json;
use tests::plain;
use tests::raw::{BINARY, CLOSE, CONTINUATION, FIN, PING, Raw, TEXT, frame, header};

use super::super::wait_until;
use super::{MALLORY, Member, Room, Way};

const HUNDRED_MIB: u64 = 100 << 20;
/// What `signal.message` is by default, and the frames of one message (`wire::ws::FRAGMENTS_MAX`).
const MESSAGE: usize = 64 << 10;
const FRAGMENTS: usize = 1024;

/// What breaks the protocol, and with which code it is closed (RFC 6455 §5, §7.4).
fn broken() -> Vec<(String, Vec<u8>, u16)> {
    let mut all: Vec<(String, Vec<u8>, u16)> = Vec::new();
    let mut add = |what: String, bytes: Vec<u8>, code| all.push((what, bytes, code));
    for first in [TEXT, BINARY, FIN | TEXT, FIN | BINARY] {
        add(format!("100 MiB announced by {first:x}"), header(first, HUNDRED_MIB), 1009);
        add(format!("a byte too many by {first:x}"), header(first, MESSAGE as u64 + 1), 1009);
    }
    for length in [1 << 63, u64::MAX] {
        add(format!("a length of {length:x}"), header(FIN | TEXT, length), 1002);
    }
    add("2⁶³-1 bytes".to_owned(), header(FIN | TEXT, (1 << 63) - 1), 1009);
    for bits in [0x10, 0x20, 0x40, 0x70] {
        add(format!("reserved bits {bits:x}"), frame(FIN | TEXT | bits, b"ping"), 1002);
        add(format!("of a ping {bits:x}"), frame(FIN | PING | bits, b""), 1002);
    }
    for opcode in (3..8).chain(0xB..=0xF) {
        add(format!("opcode {opcode:x}"), frame(FIN | opcode, b"x"), 1002);
    }
    for opcode in [CLOSE, PING, 0xA] {
        add(format!("control {opcode:x} in parts"), frame(opcode, b""), 1002);
        add(format!("control {opcode:x} of 126"), frame(FIN | opcode, &[0; 126]), 1002);
        add(format!("control {opcode:x} of 64 KiB"), header(FIN | opcode, 1 << 16), 1002);
    }
    add("not masked".to_owned(), [&[FIN | TEXT, 4][..], b"ping"].concat(), 1002);
    add("a ping that is not masked".to_owned(), vec![FIN | PING, 0], 1002);
    add("a part of nothing".to_owned(), frame(FIN | CONTINUATION, b"ping"), 1002);
    add("an endless part of nothing".to_owned(), frame(CONTINUATION, b""), 1002);
    let interrupted = [frame(TEXT, b"{"), frame(FIN | TEXT, b"ping")].concat();
    add("a message in a message".to_owned(), interrupted, 1002);
    for code in [0_u16, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65535] {
        add(format!("close {code}"), frame(FIN | CLOSE, &code.to_be_bytes()), 1002);
    }
    add("half a code".to_owned(), frame(FIN | CLOSE, &[3]), 1002);
    add("a reason of no text".to_owned(), frame(FIN | CLOSE, &[3, 0xE8, 0xFF]), 1007);
    for bytes in [&[0xFF][..], &[0xC0, 0xAF], &[0xED, 0xA0, 0x80], &[0xF4, 0x90, 0x80, 0x80]] {
        add(format!("text {bytes:x?}"), frame(FIN | TEXT, bytes), 1007);
        let (first, rest) = bytes.split_at(1);
        let cut = [frame(TEXT, first), frame(FIN | CONTINUATION, rest)].concat();
        add(format!("text {bytes:x?} in parts"), cut, 1007);
    }
    let half = [frame(TEXT, "é".as_bytes().get(..1).unwrap_or_default())];
    let cut_off = [&half[0][..], &frame(FIN | CONTINUATION, b"")].concat();
    add("a text that ends in a letter".to_owned(), cut_off, 1007);
    let endless = [frame(TEXT, b""), frame(CONTINUATION, b"").repeat(FRAGMENTS)].concat();
    add("parts of nothing for ever".to_owned(), endless, 1009);
    let bytewise = [frame(TEXT, b"{"), frame(CONTINUATION, b" ").repeat(FRAGMENTS)].concat();
    add("parts of a byte for ever".to_owned(), bytewise, 1009);
    let part = vec![b' '; 4 << 10];
    let growing = [frame(TEXT, b"{"), frame(CONTINUATION, &part).repeat(17)].concat();
    add("parts that grow too long".to_owned(), growing, 1009);
    let with_pings = [frame(CONTINUATION, b""), frame(FIN | PING, b"")].concat();
    let mixed = [frame(TEXT, b"{"), with_pings.repeat(FRAGMENTS)].concat();
    add("pings between parts for ever".to_owned(), mixed, 1009);
    all
}

#[test]
fn what_breaks_the_protocol_ends_its_socket_alone() -> Result<()> {
    let mut room = Room::new(&[])?;
    let token = room.token(MALLORY)?;
    let (all, ways) = (broken(), Way::WEB_SOCKETS);
    let too_long = all.iter().filter(|(.., code)| *code == 1009).count() as u64;
    for (what, bytes, code) in &all {
        for way in ways {
            let mut raw = room.enter_raw(way, &token)?;
            // The neuron may hang up while more comes.
            let _ = raw.send(bytes);
            let closed = raw.close_code().with_context(|| format!("{way:?}: {what}"))?;
            assert_eq!(closed, *code, "{way:?}: {what}");
        }
        // Before anybody has said who he is.
        let mut raw = Raw::connect(&room.url(Way::V4, ""))?;
        let _ = raw.send(bytes);
        let closed = raw.close_code().with_context(|| format!("a stranger: {what}"))?;
        assert_eq!(closed, *code, "a stranger: {what}");
    }
    let counted = room.metric("socket_too_long_total")?;
    assert_eq!(counted, too_long * (ways.len() as u64 + 1), "counted, of strangers too");
    room.is_as_before()
}

/// What is odd and allowed is taken: the limits themselves, and what small devices send.
#[test]
fn what_is_at_the_limit_is_taken() -> Result<()> {
    let mut room = Room::new(&[])?;
    let token = room.token(MALLORY)?;
    let said = |way: Way, text: String| match way {
        Way::V1 => format!(r#"{{"eventName":"o","data":"{text}"}}"#),
        _ => format!(r#"{{"t":"u","m":{{"o":"o"}},"p":"{text}"}}"#),
    };
    for way in Way::WEB_SOCKETS {
        let mut raw = room.enter_raw(way, &token)?;
        let empty = said(way, String::new()).len();
        let full = said(way, "x".repeat(MESSAGE - empty));
        assert_eq!(full.len(), MESSAGE);
        raw.send_text(&full)?;
        // In as many parts as there may be, cut inside a letter, with a ping between.
        let text = said(way, "é".repeat((FRAGMENTS - empty) / 2 + 40));
        let (mut parts, mut rest) = (frame(TEXT, b""), text.as_bytes());
        for _ in 0..FRAGMENTS - 2 {
            let (part, more) = rest.split_at(rest.len().min(1));
            parts.extend(frame(CONTINUATION, part));
            rest = more;
        }
        parts.extend(frame(FIN | PING, &[b'x'; 125]));
        parts.extend(frame(FIN | CONTINUATION, rest));
        raw.send(&parts)?;
        // Bytes that are no text mean nothing of old pages, and a close of any good code is answered by it.
        if way != Way::V4 {
            raw.send(&frame(FIN | BINARY, &[0xFF; 1000]))?;
        }
        raw.send(&frame(FIN | 0xA, b"nobody asked"))?;
        raw.send(&frame(FIN | CLOSE, &4999_u16.to_be_bytes()))?;
        assert_eq!(raw.close_code()?, 4999, "{way:?}");
        for (listener, heard) in room.heard()? {
            let lengths: Vec<usize> = heard.iter().map(|frame| frame.to_string().len()).collect();
            assert_eq!(heard.len(), 2, "{way:?} to {listener:?}: {lengths:?}");
            assert!(heard[1].to_string().contains("éé"), "{way:?} to {listener:?}");
        }
    }
    room.is_as_before()
}

/// Memory follows neither what is announced nor what is sent.
#[test]
fn hundred_mebibytes_are_neither_kept_nor_waited_for() -> Result<()> {
    const AT_ONCE: usize = 12;
    let mut room = Room::new(&[])?;
    let token = room.token(MALLORY)?;
    let peak = room.stage.neuron.peak_rss_kib()?;
    // One frame of 100 MiB, really sent; the same in frames that are each within the limit, before a
    // hello too; and with its length before it on TCP.
    let chunk = frame(CONTINUATION, &vec![b'x'; MESSAGE / 2]);
    let begun = Instant::now();
    for way in [Some(Way::V1), Some(Way::V2), Some(Way::V4), None] {
        for in_parts in [false, true] {
            let mut raw = match way {
                Some(way) => room.enter_raw(way, &token)?,
                None => Raw::connect(&room.url(Way::V4, ""))?,
            };
            let mut sent = 0;
            let first = if in_parts { frame(TEXT, b"x") } else { header(TEXT, HUNDRED_MIB) };
            let mut went = raw.send(&first);
            while went.is_ok() && sent < HUNDRED_MIB {
                went = raw.send(&chunk);
                sent += chunk.len() as u64;
            }
            // It may have hung up on what it will not read before its reason was looked at.
            drop(raw);
        }
    }
    let mut client = plain::Client::connect(&room.tcp)?;
    client.send_bytes(&u32::try_from(HUNDRED_MIB)?.to_be_bytes())?;
    while client.send_bytes(&chunk).is_ok() && begun.elapsed() < Duration::from_secs(60) {}
    drop(client);
    // Announced, with a trickle behind it, by many at once who do not read either.
    let mut trickling: Vec<Raw> = Vec::new();
    for number in 0..AT_ONCE {
        let mut raw = room.enter_raw(Way::WEB_SOCKETS[number % 3], &token)?;
        raw.send(&header(FIN | TEXT, MESSAGE as u64))?;
        trickling.push(raw);
    }
    for _ in 0..50 {
        for raw in &mut trickling {
            raw.send(b"x")?;
        }
    }
    room.notices_nothing()?;
    room.stays_small()?;
    let grown = room.stage.neuron.peak_rss_kib()?.saturating_sub(peak);
    assert!(grown < 48 << 10, "{grown} KiB more at the most");
    drop(trickling);
    room.is_as_before()
}

/// Texts after their lengths break in fewer ways.
#[test]
fn what_is_no_text_ends_its_connection_alone_on_tcp() -> Result<()> {
    let mut room = Room::new(&[])?;
    let token = room.token(MALLORY)?;
    let after = |bytes: &[u8]| {
        let mut all = u32::try_from(bytes.len()).unwrap_or_default().to_be_bytes().to_vec();
        all.extend_from_slice(bytes);
        all
    };
    for (what, bytes, code) in [
        ("4 GiB", vec![0xFF; 4], 1009),
        ("100 MiB", vec![6, 0x40, 0, 0], 1009),
        ("a byte too many", u32::try_from(MESSAGE + 1)?.to_be_bytes().to_vec(), 1009),
        ("no UTF-8", after(&[0xC3, 0x28]), 1007),
        ("half a letter", after(&[0xC3]), 1007),
        ("a WebSocket's frame", frame(FIN | TEXT, b"ping"), 1009),
    ] {
        for in_room in [false, true] {
            let mut client = match room.enter(Way::Tcp, &token)? {
                Member::Plain(client) if in_room => client,
                _ => plain::Client::connect(&room.tcp)?,
            };
            let _ = client.send_bytes(&bytes);
            let closed = client.close_code().with_context(|| what.to_owned())?;
            assert_eq!(closed, code, "{what}, in the room: {in_room}");
        }
    }
    // A text in pieces of a byte is a text, and signs of life are as many as anybody likes.
    if let Member::Plain(mut client) = room.enter(Way::Tcp, &token)? {
        client.send_bytes(&[0; 16_000])?;
        for byte in after(r#"{"t":"ping","ts":1}"#.as_bytes()) {
            client.send_bytes(&[byte])?;
        }
        assert_eq!(client.frame()?, json!({ "t": "pong", "ts": 1 }));
    }
    wait_until("they are counted", || Ok(room.metric("socket_too_long_total")? == 8))?;
    room.is_as_before()
}
