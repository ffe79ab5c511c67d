//! Streams cut anywhere, and ChannelData that says too much of itself.

use proptest::prelude::*;
use relay::framing::{
    CHANNEL_NUMBERS, ChannelData, FRAME_BYTES_MAX, Frames, NotTurn, frame_bytes, is_channel_data,
};
use relay::stun::{Class, Kind, Method, TransactionId, Writer};

fn message(data: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    Writer::new(&mut bytes, Class::Indication, Method::Send, TransactionId([2; 12]))
        .attribute(Kind::DATA, data);
    bytes
}

fn channel_data(number: u16, data: &[u8]) -> Vec<u8> {
    let mut bytes = ChannelData::header(number, data.len()).expect("short").to_vec();
    bytes.extend(data);
    bytes
}

#[test]
fn channel_data_is_what_it_says() {
    let bytes = channel_data(0x4001, b"hello");
    let read = ChannelData { number: 0x4001, data: b"hello" };
    assert_eq!(ChannelData::read(&bytes), Some(read));
    assert_eq!(ChannelData::read(&[&bytes[..], &[0; 3]].concat()), Some(read), "padded");
    assert_eq!(ChannelData::read(&bytes[..8]), None, "it says five");
    for cut in 0..4 {
        assert_eq!(ChannelData::read(&bytes[..cut]), None);
    }
    assert_eq!(ChannelData::read(&channel_data(0x4000, b"")).map(|read| read.data), Some(&b""[..]));
    for number in [0x3FFF, 0x5000, 0x7FFF, 0x8000, 0xFFFF] {
        assert_eq!(ChannelData::read(&channel_data(number, b"x")), None, "{number:x}");
        assert!(!CHANNEL_NUMBERS.contains(&number));
    }
    assert!(is_channel_data(&bytes) && !is_channel_data(&message(b"x")) && !is_channel_data(b""));
    assert_eq!(ChannelData::header(0x4000, 65_535), Some([0x40, 0, 0xFF, 0xFF]));
    assert_eq!(ChannelData::header(0x4000, 65_536), None);
}

#[test]
fn a_stream_of_something_else_is_given_up_at_once() {
    for stream in [&b"\x80"[..], b"\x16\x03\x01\x02\x00\x01", b"GET / HTTP/1.1\r\n", b"\xFF\xFF"] {
        // TLS and HTTP begin with bits of STUN and ChannelData.
        let is_turn = frame_bytes(stream);
        match stream[0] >> 6 {
            0 => assert_eq!(is_turn, Err(NotTurn), "{stream:?}"),
            1 => assert!(is_turn.is_ok(), "a length of letters, {stream:?}"),
            _ => assert_eq!(is_turn, Err(NotTurn), "{stream:?}"),
        }
    }
    let mut frames = Frames::default();
    frames.push(&message(b"x"));
    frames.push(b"\xC0");
    assert!(frames.next_frame().expect("a frame").is_some());
    assert_eq!(frames.next_frame(), Err(NotTurn));
}

#[test]
fn the_longest_frame_is_bounded() {
    for head in [[0_u8, 0x16, 0xFF, 0xFC], [0x40, 0, 0xFF, 0xFF]] {
        let mut stream = head.to_vec();
        stream.extend(relay::stun::MAGIC_COOKIE);
        stream.resize(FRAME_BYTES_MAX + 1, 0);
        let bytes = frame_bytes(&stream).expect("a frame").expect("whole");
        assert!(bytes <= FRAME_BYTES_MAX, "{bytes}");
    }
}

/// A frame as it stands in a stream, and as it is without its padding.
fn frame() -> impl Strategy<Value = Vec<u8>> {
    let data = prop::collection::vec(any::<u8>(), 0..60);
    prop_oneof![
        data.clone().prop_map(|data| message(&data)),
        (CHANNEL_NUMBERS, data).prop_map(|(number, data)| {
            let mut bytes = channel_data(number, &data);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
            bytes
        }),
    ]
}

proptest! {
    #[test]
    fn frames_are_found_however_the_stream_is_cut(
        sent in prop::collection::vec(frame(), 0..8),
        cuts in prop::collection::vec(1..50_usize, 0..40),
    ) {
        let stream: Vec<u8> = sent.concat();
        let mut frames = Frames::default();
        let (mut found, mut rest, mut cuts) = (Vec::new(), &stream[..], cuts.into_iter());
        while !rest.is_empty() {
            let (piece, more) = rest.split_at(cuts.next().unwrap_or(rest.len()).min(rest.len()));
            frames.push(piece);
            while let Some(frame) = frames.next_frame().expect("frames") {
                found.push(frame.to_vec());
            }
            rest = more;
        }
        prop_assert_eq!(found, sent);
        prop_assert_eq!(frames.held_bytes(), 0);
    }

    #[test]
    fn nothing_that_comes_panics(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
        let _ = (ChannelData::read(&bytes), frame_bytes(&bytes));
        let mut frames = Frames::default();
        frames.push(&bytes);
        while let Ok(Some(frame)) = frames.next_frame() {
            prop_assert!(!frame.is_empty());
        }
    }
}
