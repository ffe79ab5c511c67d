//! WebSocket framing: whatever the fragments and however the stream is cut, the same messages; from
//! anything else an error, never a panic, never more memory than the bound.

use proptest::collection::vec;
use proptest::prelude::*;
use wire::ws::{
    CONTROL_BYTES_MAX, CloseCode, Decoder, FRAGMENTS_MAX, Message, Opcode, ProtocolError,
    REASON_BYTES_MAX, binary_frame, close_frame, close_payload, masked_frame, ping_frame,
    pong_frame, text_frame, text_frame_with,
};

/// A message that outlives the decoder's buffer.
#[derive(Clone, Debug, Eq, PartialEq)]
enum Owned {
    Binary(Vec<u8>),
    Close(u16, String),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Text(String),
}

impl From<Message<'_>> for Owned {
    fn from(message: Message<'_>) -> Owned {
        match message {
            Message::Binary(payload) => Owned::Binary(payload.to_vec()),
            Message::Close { code, reason } => Owned::Close(code.0, reason.to_owned()),
            Message::Ping(payload) => Owned::Ping(payload.to_vec()),
            Message::Pong(payload) => Owned::Pong(payload.to_vec()),
            Message::Text(text) => Owned::Text(text.to_owned()),
        }
    }
}

/// Feeds the stream in the given chunks, the rest at once, and checks the memory bound throughout.
fn decode(
    decoder: &mut Decoder,
    stream: &[u8],
    chunks: &[usize],
    held_bytes_max: usize,
) -> Result<Vec<Owned>, ProtocolError> {
    let mut messages = Vec::new();
    let mut rest = stream;
    let mut chunks = chunks.iter();
    while !rest.is_empty() {
        let chunk = chunks.next().map_or(rest.len(), |chunk| (*chunk).clamp(1, rest.len()));
        let (mut pushed, tail) = rest.split_at(chunk);
        while !pushed.is_empty() {
            let taken = decoder.push(pushed);
            assert!(taken > 0, "a drained decoder takes at least one byte");
            pushed = &pushed[taken..];
            while let Some(message) = decoder.next_message()? {
                messages.push(Owned::from(message));
            }
            assert!(decoder.held_bytes() <= held_bytes_max, "{}", decoder.held_bytes());
        }
        rest = tail;
    }
    Ok(messages)
}

fn decode_all(stream: &[u8]) -> Result<Vec<Owned>, ProtocolError> {
    decode(&mut Decoder::new(1 << 20), stream, &[], usize::MAX)
}

/// How one message is put on the wire: where its payload is cut, and what control frames come
/// before each later fragment.
#[derive(Clone, Debug)]
struct Sent {
    message: Owned,
    cuts: Vec<prop::sample::Index>,
    between: Vec<Owned>,
    key: [u8; 4],
}

fn control() -> impl Strategy<Value = Owned> {
    let payload = vec(any::<u8>(), 0..=CONTROL_BYTES_MAX);
    prop_oneof![payload.clone().prop_map(Owned::Ping), payload.prop_map(Owned::Pong)]
}

fn sent() -> impl Strategy<Value = Sent> {
    let sizes = prop_oneof![19 => 0..200usize, 1 => 65_530..65_545usize];
    let data = prop_oneof![
        ".{0,200}".prop_map(Owned::Text),
        sizes.prop_flat_map(|size| vec(any::<u8>(), size)).prop_map(Owned::Binary),
        control(),
    ];
    (data, vec(any::<prop::sample::Index>(), 0..5), vec(control(), 0..3), any::<[u8; 4]>())
        .prop_map(|(message, cuts, between, key)| Sent { message, cuts, between, key })
}

/// Appends a message's frames to the stream, and what a decoder must make of them to `expected`.
fn send(sent: &Sent, masked: bool, stream: &mut Vec<u8>, expected: &mut Vec<Owned>) {
    let mut frame = |fin, opcode, payload: &[u8]| {
        if masked {
            stream.extend(masked_frame(fin, opcode, payload, sent.key));
        } else {
            let mut unmasked = masked_frame(fin, opcode, payload, [0; 4]);
            let key_at = unmasked.len() - payload.len() - 4;
            unmasked.drain(key_at..key_at + 4);
            unmasked[1] &= 0x7F;
            stream.extend(unmasked);
        }
    };
    let (opcode, payload) = match &sent.message {
        Owned::Binary(payload) => (Opcode::Binary, &payload[..]),
        Owned::Text(text) => (Opcode::Text, text.as_bytes()),
        Owned::Ping(payload) => (Opcode::Ping, &payload[..]),
        Owned::Pong(payload) => (Opcode::Pong, &payload[..]),
        Owned::Close(..) => unreachable!("not generated"),
    };
    let mut cuts: Vec<_> = match sent.message {
        Owned::Binary(_) | Owned::Text(_) => {
            sent.cuts.iter().map(|cut| cut.index(payload.len() + 1)).collect()
        }
        _ => Vec::new(),
    };
    cuts.sort_unstable();
    let mut between = sent.between.iter();
    let mut from = 0;
    let mut next_opcode = opcode;
    for cut in cuts {
        frame(false, next_opcode, &payload[from..cut]);
        next_opcode = Opcode::Continuation;
        from = cut;
        match between.next() {
            Some(Owned::Ping(payload)) => {
                frame(true, Opcode::Ping, payload);
                expected.push(Owned::Ping(payload.clone()));
            }
            Some(Owned::Pong(payload)) => {
                frame(true, Opcode::Pong, payload);
                expected.push(Owned::Pong(payload.clone()));
            }
            _ => {}
        }
    }
    frame(true, next_opcode, &payload[from..]);
    expected.push(sent.message.clone());
}

proptest! {
    #[test]
    fn fragments_and_chunks_do_not_show(
        sents in vec(sent(), 0..8),
        chunks in vec(prop_oneof![1..20usize, 1..70_000usize], 0..60),
        masked in any::<bool>(),
        code in prop_oneof![1000..=1003u16, 1007..=1014u16, 3000..=4999u16],
        reason in "[a-zé]{0,50}",
    ) {
        let message_bytes_max = 65_544;
        let mut stream = Vec::new();
        let mut expected = Vec::new();
        for sent in &sents {
            send(sent, masked, &mut stream, &mut expected);
        }
        let close = close_payload(CloseCode(code), &reason);
        if masked {
            stream.extend(masked_frame(true, Opcode::Close, &close, [9; 4]));
        } else {
            stream.extend(close_frame(CloseCode(code), &reason));
        }
        expected.push(Owned::Close(code, reason));
        stream.extend(b"bytes after the close mean nothing");
        let mut decoder = match masked {
            true => Decoder::new(message_bytes_max),
            false => Decoder::client(message_bytes_max),
        };
        let messages = decode(&mut decoder, &stream, &chunks, 2 * message_bytes_max + 14);
        prop_assert_eq!(messages, Ok(expected));
        prop_assert_eq!(decoder.held_bytes(), 0);
    }

    #[test]
    fn garbage_is_an_error_or_a_message_and_stays_within_the_bound(
        stream in vec(prop_oneof![any::<u8>(), Just(0x81), Just(0x80), Just(0x01), Just(0xFF)], 0..600),
        chunks in vec(1..50usize, 0..50),
        message_bytes_max in 0..300usize,
        client in any::<bool>(),
    ) {
        let mut decoder = match client {
            true => Decoder::client(message_bytes_max),
            false => Decoder::new(message_bytes_max),
        };
        let bound = 2 * message_bytes_max.max(CONTROL_BYTES_MAX) + 14;
        if let Err(error) = decode(&mut decoder, &stream, &chunks, bound) {
            prop_assert_eq!(decoder.push(&stream), stream.len());
            prop_assert_eq!(decoder.next_message(), Err(error));
            prop_assert_eq!(decoder.held_bytes(), 0);
        }
    }

    #[test]
    fn masking_is_a_byte_by_byte_exclusive_or(payload in vec(any::<u8>(), 0..100), key: [u8; 4]) {
        let frame = masked_frame(true, Opcode::Binary, &payload, key);
        let expected: Vec<_> =
            payload.iter().enumerate().map(|(at, byte)| byte ^ key[at % 4]).collect();
        prop_assert_eq!(&frame[frame.len() - payload.len()..], &expected[..]);
    }
}

/// RFC 6455 §5.7, byte for byte.
#[test]
fn the_examples_of_the_rfc() {
    assert_eq!(&text_frame("Hello")[..], b"\x81\x05Hello");
    assert_eq!(
        masked_frame(true, Opcode::Text, b"Hello", [0x37, 0xFA, 0x21, 0x3D]),
        [0x81, 0x85, 0x37, 0xFA, 0x21, 0x3D, 0x7F, 0x9F, 0x4D, 0x51, 0x58]
    );
    assert_eq!(&ping_frame(b"Hello")[..], b"\x89\x05Hello");
    assert_eq!(&pong_frame(b"Hello")[..], b"\x8A\x05Hello");
    assert_eq!(&binary_frame(&[0; 256])[..4], b"\x82\x7E\x01\x00");
    assert_eq!(&binary_frame(&[0; 65_536])[..10], b"\x82\x7F\0\0\0\0\0\x01\0\0");

    let mut client = Decoder::client(100);
    let messages = decode(&mut client, b"\x01\x03Hel\x80\x02lo", &[], usize::MAX);
    assert_eq!(messages, Ok(vec![Owned::Text("Hello".into())]));
}

#[test]
fn a_frame_written_in_place_is_the_frame_of_its_text() {
    for length in [0, 1, 125, 126, 65_535, 65_536] {
        let text = "x".repeat(length);
        for hint in [0, length] {
            assert_eq!(text_frame_with(hint, |out| out.push_str(&text)), text_frame(&text));
        }
    }
}

#[test]
fn every_cut_gives_the_same_messages() {
    let text = "é€🙂".as_bytes();
    let mut stream = Vec::new();
    stream.extend(masked_frame(true, Opcode::Text, b"ping", [1, 2, 3, 4]));
    stream.extend(masked_frame(false, Opcode::Text, &text[..1], [5, 6, 7, 8]));
    stream.extend(masked_frame(true, Opcode::Ping, b"p", [9, 10, 11, 12]));
    stream.extend(masked_frame(false, Opcode::Continuation, &text[1..7], [13, 14, 15, 16]));
    stream.extend(masked_frame(true, Opcode::Continuation, &text[7..], [17, 18, 19, 20]));
    stream.extend(masked_frame(true, Opcode::Binary, &[7; 300], [21, 22, 23, 24]));
    let expected = decode_all(&stream).expect("legal");
    assert_eq!(expected.len(), 4);
    for cut in 0..=stream.len() {
        let mut decoder = Decoder::new(300);
        assert_eq!(decode(&mut decoder, &stream, &[cut], 2 * 300 + 14), Ok(expected.clone()));
        let mut alone = Decoder::new(300);
        let prefix = decode(&mut alone, &stream[..cut], &[], 2 * 300 + 14).expect("legal");
        assert!(expected.starts_with(&prefix), "cut at {cut}");
    }
}

#[test]
fn an_idle_decoder_holds_nothing() {
    let mut decoder = Decoder::new(1 << 20);
    let stream = masked_frame(true, Opcode::Text, b"ping", [1; 4]);
    for _ in 0..3 {
        assert_eq!(decoder.push(&stream), stream.len());
        assert_eq!(decoder.next_message(), Ok(Some(Message::Text("ping"))));
        assert_eq!(decoder.next_message(), Ok(None));
        assert_eq!(decoder.held_bytes(), 0);
    }
}

#[test]
fn a_message_at_the_limit_passes_and_one_byte_more_is_refused_by_its_header() {
    let limit = 1000;
    let stream = masked_frame(true, Opcode::Binary, &vec![1; limit], [1; 4]);
    assert!(decode(&mut Decoder::new(limit), &stream, &[], limit + 14).is_ok());

    // Two bytes of opcode and two of length are enough to know; the payload is never awaited.
    let stream = masked_frame(true, Opcode::Binary, &vec![1; limit + 1], [1; 4]);
    let mut decoder = Decoder::new(limit);
    assert_eq!(decode(&mut decoder, &stream[..4], &[], 8), Err(ProtocolError::MessageTooLong));

    // Together fragments are bound by the same limit, and control frames do not count.
    let mut stream = masked_frame(false, Opcode::Binary, &vec![1; limit - 1], [1; 4]);
    stream.extend(masked_frame(true, Opcode::Ping, &[1; CONTROL_BYTES_MAX], [1; 4]));
    stream.extend(masked_frame(false, Opcode::Continuation, &[1], [1; 4]));
    let mut decoder = Decoder::new(limit);
    assert!(decode(&mut decoder, &stream, &[], 2 * limit + 14).is_ok());
    let more = masked_frame(true, Opcode::Continuation, &[1], [1; 4]);
    assert_eq!(
        decode(&mut decoder, &more, &[], 2 * limit + 14),
        Err(ProtocolError::MessageTooLong)
    );
}

/// A caller that does not drain is told so by what is taken, and costs no more memory.
#[test]
fn what_is_not_drained_is_not_taken() {
    let limit = 200;
    let frame = masked_frame(true, Opcode::Binary, &[1; 100], [1; 4]);
    let mut decoder = Decoder::new(limit);
    let taken: usize = (0..10).map(|_| decoder.push(&frame)).sum();
    assert_eq!(taken, limit + 14);
    assert_eq!(decoder.held_bytes(), limit + 14);
    assert_eq!(decoder.push(&frame), 0);
    assert_eq!(decoder.next_message(), Ok(Some(Message::Binary(&[1; 100]))));
    assert_eq!(decoder.push(&frame), frame.len());
}

#[test]
fn control_frames_pass_below_the_message_limit() {
    let stream = masked_frame(true, Opcode::Ping, &[7; CONTROL_BYTES_MAX], [1; 4]);
    let messages = decode(&mut Decoder::new(0), &stream, &[1; 200], 200);
    assert_eq!(messages, Ok(vec![Owned::Ping(vec![7; CONTROL_BYTES_MAX])]));
}

#[test]
fn fragments_without_end_are_refused() {
    let mut stream = masked_frame(false, Opcode::Text, b"", [1; 4]);
    for _ in 2..FRAGMENTS_MAX {
        stream.extend(masked_frame(false, Opcode::Continuation, b"", [1; 4]));
    }
    let mut last = stream.clone();
    last.extend(masked_frame(true, Opcode::Continuation, b"", [1; 4]));
    assert_eq!(decode_all(&last), Ok(vec![Owned::Text(String::new())]));
    for _ in 0..2 {
        stream.extend(masked_frame(false, Opcode::Continuation, b"", [1; 4]));
    }
    assert_eq!(decode_all(&stream), Err(ProtocolError::TooManyFragments));
}

#[test]
fn what_breaks_the_protocol_and_the_code_that_says_so() {
    let masked = |first: u8, rest: &[u8]| {
        let mut frame = vec![first];
        frame.extend_from_slice(rest);
        frame
    };
    let close = |payload: &[u8]| masked_frame(true, Opcode::Close, payload, [1; 4]);
    let continued = |first: Opcode, second: Opcode| {
        let mut stream = masked_frame(false, first, b"a", [1; 4]);
        stream.extend(masked_frame(true, second, b"b", [1; 4]));
        stream
    };
    let cases = [
        (masked(0xC1, &[0x80]), ProtocolError::ReservedBits, 1002),
        (masked(0xA1, &[0x80]), ProtocolError::ReservedBits, 1002),
        (masked(0x91, &[0x80]), ProtocolError::ReservedBits, 1002),
        (masked(0x83, &[0x80]), ProtocolError::UnknownOpcode, 1002),
        (masked(0x8F, &[0x80]), ProtocolError::UnknownOpcode, 1002),
        (masked(0x81, &[0x04]), ProtocolError::Unmasked, 1002),
        (masked(0x09, &[0x80]), ProtocolError::ControlFragmented, 1002),
        (masked(0x89, &[0xFE]), ProtocolError::ControlTooLong, 1002),
        (masked(0x82, &[0xFF, 0x80, 0, 0, 0, 0, 0, 0, 0]), ProtocolError::LengthOverflow, 1002),
        (masked(0x82, &[0xFF, 0x7F, 0, 0, 0, 0, 0, 0, 0]), ProtocolError::MessageTooLong, 1009),
        (masked(0x80, &[0x80]), ProtocolError::NothingToContinue, 1002),
        (continued(Opcode::Text, Opcode::Binary), ProtocolError::Interrupted, 1002),
        (continued(Opcode::Text, Opcode::Text), ProtocolError::Interrupted, 1002),
        (masked_frame(true, Opcode::Text, b"\xC3", [1; 4]), ProtocolError::NotUtf8, 1007),
        (masked_frame(true, Opcode::Text, b"\xED\xA0\x80", [1; 4]), ProtocolError::NotUtf8, 1007),
        (close(b"\x03"), ProtocolError::BadClosePayload, 1002),
        (close(b"\x03\xE8\xFF"), ProtocolError::NotUtf8, 1007),
        (close(&999u16.to_be_bytes()), ProtocolError::BadCloseCode, 1002),
        (close(&1004u16.to_be_bytes()), ProtocolError::BadCloseCode, 1002),
        (close(&1005u16.to_be_bytes()), ProtocolError::BadCloseCode, 1002),
        (close(&1006u16.to_be_bytes()), ProtocolError::BadCloseCode, 1002),
        (close(&1015u16.to_be_bytes()), ProtocolError::BadCloseCode, 1002),
        (close(&2999u16.to_be_bytes()), ProtocolError::BadCloseCode, 1002),
        (close(&5000u16.to_be_bytes()), ProtocolError::BadCloseCode, 1002),
    ];
    for (stream, error, code) in cases {
        assert_eq!(decode_all(&stream), Err(error), "{stream:02X?}");
        assert_eq!(error.close_code(), CloseCode(code));
    }
    let masked_by_server = masked_frame(true, Opcode::Text, b"", [1; 4]);
    let mut client = Decoder::client(10);
    assert_eq!(decode(&mut client, &masked_by_server, &[], usize::MAX), Err(ProtocolError::Masked));
}

#[test]
fn a_length_longer_than_it_needs_to_be_is_understood() {
    let stream =
        [0x82, 0xFE, 0, 1, 0, 0, 0, 0, 42, 0x82, 0xFF, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 43];
    assert_eq!(decode_all(&stream), Ok(vec![Owned::Binary(vec![42]), Owned::Binary(vec![43])]));
}

#[test]
fn a_close_may_say_nothing_and_never_too_much() {
    let stream = masked_frame(true, Opcode::Close, b"", [1; 4]);
    assert_eq!(decode_all(&stream), Ok(vec![Owned::Close(1005, String::new())]));
    assert_eq!(&close_frame(CloseCode::NO_STATUS, "ignored")[..], b"\x88\x00");
    assert_eq!(&close_frame(CloseCode::KICKED, "kicked")[..], b"\x88\x08\x11\x33kicked");

    let reason = format!("{}é", "x".repeat(REASON_BYTES_MAX - 1));
    let payload = close_payload(CloseCode::NORMAL, &reason);
    assert_eq!(payload.len(), CONTROL_BYTES_MAX - 1, "half a character is not sent");
}
