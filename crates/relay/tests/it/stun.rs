//! Messages: the samples of RFC 5769, `stun-types` on the other side, and whatever comes.

use std::net::SocketAddr;

use proptest::prelude::*;
use relay::stun::{
    Attributes, Class, ErrorCode, Family, HEADER_BYTES, Hash, Key, Kind, MAGIC_COOKIE, Malformed,
    Message, Method, PasswordAlgorithm, TransactionId, Writer,
};

/// Hexadecimal digits, with spaces where one likes.
fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u32> = text.chars().filter_map(|c| c.to_digit(16)).collect();
    digits.chunks(2).map(|pair| (pair[0] << 4 | pair[1]) as u8).collect()
}

const PASSWORD: &[u8] = b"VOkJxbRl1RmTxUk/WvJxBt";

/// RFC 5769 §2.1.
#[test]
fn the_sample_request_is_read() {
    let bytes = hex("00010058 2112a442 b7e7a701bc34d686fa87dfae
         80220010 5354554e2074657374 20636c69656e74
         00240004 6e0001ff 80290008 932ff9b151263b36
         00060009 6576746a3a68367659202020
         00080014 9aeaa70cbfd8cb56781ef2b5b2d3f249c1b571a2
         80280004 e57a3bcf");
    let message = Message::read(&bytes).expect("a message");
    assert_eq!((message.class(), message.method()), (Class::Request, Some(Method::Binding)));
    assert_eq!(message.attributes().username, Some(&b"evtj:h6vY"[..]));
    // PRIORITY is of ICE, and nothing that a relay knows.
    assert_eq!(message.attributes().unknown.as_slice(), [0x0024]);
    assert_eq!(message.integrity(), Some(Hash::Sha1));
    assert!(message.is_of(&Key::short_term(PASSWORD)));
    assert!(!message.is_of(&Key::short_term(b"another")));
    let mut forged = bytes.clone();
    forged[60] ^= 1;
    assert_eq!(Message::read(&forged).expect_err("a fingerprint"), Malformed::Fingerprint);
}

/// RFC 5769 §2.2 and §2.3.
#[test]
fn the_sample_responses_are_read_and_written() {
    for (bytes, mapped) in [
        (
            "0101003c 2112a442 b7e7a701bc34d686fa87dfae 8022000b 7465737420766563746f7220
             00200008 0001a147e112a643 00080014 2b91f599fd9e90c38c7489f92af9ba53f06be7d7
             80280004 c07d4c96",
            "192.0.2.1:32853",
        ),
        (
            "01010048 2112a442 b7e7a701bc34d686fa87dfae 8022000b 7465737420766563746f7220
             00200014 0002a1470113a9faa5d3f179bc25f4b5bed2b9d9
             00080014 a382954e4be67bf11784c97c8292c275bfe3ed41 80280004 c8fb0b4c",
            "[2001:db8:1234:5678:11:2233:4455:6677]:32853",
        ),
    ] {
        let (bytes, mapped) = (hex(bytes), mapped.parse::<SocketAddr>().expect("an address"));
        let message = Message::read(&bytes).expect("a message");
        assert_eq!((message.class(), message.method()), (Class::Success, Some(Method::Binding)));
        let value = message.attributes().mapped.expect("an address");
        assert_eq!(message.address(value), Some(mapped));
        assert!(message.is_of(&Key::short_term(PASSWORD)));
        assert!(message.attributes().unknown.is_empty(), "SOFTWARE may be passed over");
        let mut written = Vec::new();
        Writer::new(&mut written, Class::Success, Method::Binding, message.transaction())
            .address(Kind::XOR_MAPPED_ADDRESS, mapped);
        assert_eq!(written[HEADER_BYTES..], bytes[36..36 + written.len() - HEADER_BYTES]);
    }
}

/// RFC 5769 §2.4.
#[test]
fn the_sample_of_long_term_credentials_is_right() {
    let bytes = hex("00010060 2112a442 78ad3433c6ad72c029da412e
         00060012 e3839ee38388e383aae38383e382afe382b9 0000
         0015001c 662f2f3439396b393534643 64f4c33346f4c39465354767936347341
         0014000b 6578616d706c652e6f726700
         00080014 f67024656dd64a3e02b8e0712e85c9a28ca89666");
    let message = Message::read(&bytes).expect("a message");
    let Attributes { username, realm, nonce, .. } = *message.attributes();
    let (username, realm) = (username.expect("a name"), realm.expect("a realm"));
    assert_eq!((username, realm), ("マトリックス".as_bytes(), &b"example.org"[..]));
    assert_eq!(nonce, Some(&b"f//499k954d6OL34oL9FSTvy64sA"[..]));
    let key = Key::long_term(PasswordAlgorithm::Md5, username, realm, b"TheMatrIX");
    assert!(message.is_of(&key));
    let key = Key::long_term(PasswordAlgorithm::Sha256, username, realm, b"TheMatrIX");
    assert!(!message.is_of(&key));
}

fn request() -> Vec<u8> {
    let mut bytes = Vec::new();
    Writer::new(&mut bytes, Class::Request, Method::Allocate, TransactionId([3; 12]))
        .attribute(Kind::REQUESTED_TRANSPORT, &[17, 0, 0, 0])
        .attribute(Kind::USERNAME, b"ann");
    bytes
}

#[test]
fn what_is_no_message_is_told_apart() {
    let whole = request();
    assert!(Message::read(&whole).is_ok());
    let changed = |at: usize, byte: u8| {
        let mut bytes = whole.clone();
        bytes[at] = byte;
        Message::read(&bytes).expect_err("no message")
    };
    for cut in 0..HEADER_BYTES {
        assert_eq!(Message::read(&whole[..cut]).expect_err("no message"), Malformed::Short);
    }
    for first in [0x40, 0x80, 0xC0] {
        assert_eq!(changed(0, first), Malformed::NotStun);
    }
    assert_eq!(changed(4, 0x22), Malformed::NotStun);
    for length in [0, 4, 15, 17, 20] {
        assert_eq!(changed(3, length), Malformed::Length, "{length}");
    }
    assert_eq!(
        Message::read(&[&whole[..], &[0; 4]].concat()).expect_err("more"),
        Malformed::Length
    );
    // The last attribute says that it is longer than what is left.
    assert_eq!(changed(HEADER_BYTES + 8 + 3, 5), Malformed::Attribute);
    assert_eq!(changed(HEADER_BYTES + 2, 0xFF), Malformed::Attribute);
    let mut early = Vec::new();
    Writer::new(&mut early, Class::Request, Method::Binding, TransactionId([1; 12]))
        .fingerprint()
        .attribute(Kind(0x8022), b"late");
    assert_eq!(Message::read(&early).expect_err("not at the end"), Malformed::Fingerprint);
}

/// What comes after an integrity was not signed, and so was not said by who signed.
#[test]
fn what_comes_after_an_integrity_does_not_count() {
    let key = Key::short_term(b"secret");
    for hash in [Hash::Sha1, Hash::Sha256] {
        let mut bytes = Vec::new();
        Writer::new(&mut bytes, Class::Request, Method::CreatePermission, TransactionId([1; 12]))
            .address(Kind::XOR_PEER_ADDRESS, "192.0.2.7:9".parse().expect("an address"))
            .integrity(&key, hash)
            .address(Kind::XOR_PEER_ADDRESS, "192.0.2.8:9".parse().expect("an address"))
            .attribute(Kind::USERNAME, b"mallory")
            .attribute(Kind(0x7FFF), b"x");
        let message = Message::read(&bytes).expect("a message");
        assert!(message.is_of(&key), "{hash:?}");
        assert_eq!(message.attributes().username, None);
        assert!(message.attributes().unknown.is_empty());
        let peers: Vec<_> = message.peers().collect();
        assert_eq!(peers, [Some("192.0.2.7:9".parse().expect("an address"))]);
    }
    // The stronger of two counts, wherever they stand.
    let other = Key::short_term(b"other");
    let mut bytes = Vec::new();
    Writer::new(&mut bytes, Class::Request, Method::Refresh, TransactionId([1; 12]))
        .integrity(&other, Hash::Sha1)
        .integrity(&key, Hash::Sha256);
    let message = Message::read(&bytes).expect("a message");
    assert_eq!(message.integrity(), Some(Hash::Sha256));
    assert!(message.is_of(&key) && !message.is_of(&other));
}

/// RFC 8489 §14.6: a SHA-256 may be cut, to no fewer than 16 bytes, of which each counts.
#[test]
fn a_cut_integrity_is_one_down_to_sixteen_bytes() {
    let key = Key::short_term(b"secret");
    for (length, is_one) in
        [(32, true), (28, true), (16, true), (12, false), (18, false), (0, false)]
    {
        let mut bytes = Vec::new();
        let mut writer =
            Writer::new(&mut bytes, Class::Request, Method::Refresh, TransactionId([1; 12]));
        writer.attribute(Kind::MESSAGE_INTEGRITY_SHA256, &vec![0; length]);
        // The mac of what comes before, with this length in the head.
        let mut whole = bytes.clone();
        whole.truncate(HEADER_BYTES);
        let made = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, b"secret");
        let mac = aws_lc_rs::hmac::sign(&made, &whole);
        bytes[HEADER_BYTES + 4..HEADER_BYTES + 4 + length].copy_from_slice(&mac.as_ref()[..length]);
        let message = Message::read(&bytes).expect("a message");
        assert_eq!(message.is_of(&key), is_one, "{length}");
        if is_one {
            bytes[HEADER_BYTES + 4 + length - 1] ^= 1;
            assert!(!Message::read(&bytes).expect("a message").is_of(&key), "{length}");
        }
    }
}

#[test]
fn errors_say_what_and_why() {
    for code in [ErrorCode::TryAlternate, ErrorCode::StaleNonce, ErrorCode::InsufficientCapacity] {
        let mut bytes = Vec::new();
        Writer::new(&mut bytes, Class::Error, Method::Allocate, TransactionId([1; 12]))
            .error(code)
            .unknown(&[0x7F01, 0x7F02, 0x7F03]);
        let message = Message::read(&bytes).expect("a message");
        assert_eq!((message.class(), message.error()), (Class::Error, Some(code.number())));
        let (_, value) =
            message.all().find(|(kind, _)| *kind == Kind::ERROR_CODE).expect("an error");
        assert_eq!(&value[4..], code.reason().as_bytes());
    }
    let names = |value| Attributes::family(value);
    assert_eq!([names(&[1, 0, 0, 0]), names(&[2, 0, 0, 0])], [Some(Family::V4), Some(Family::V6)]);
    assert_eq!([names(&[3, 0, 0, 0]), names(&[])], [None, None]);
    assert_eq!(Attributes::algorithm(&[0, 2, 0, 0]), Some(PasswordAlgorithm::Sha256));
    for none in [&[0, 3, 0, 0][..], &[0, 2, 0, 4], &[0, 2], &[]] {
        assert_eq!(Attributes::algorithm(none), None);
    }
}

#[test]
fn of_several_of_one_kind_the_first_counts() {
    let mut bytes = Vec::new();
    Writer::new(&mut bytes, Class::Request, Method::Allocate, TransactionId([1; 12]))
        .attribute(Kind::USERNAME, b"ann")
        .attribute(Kind::USERNAME, b"bob")
        .number(Kind::LIFETIME, 600)
        .number(Kind::LIFETIME, 0);
    let message = Message::read(&bytes).expect("a message");
    assert_eq!(message.attributes().username, Some(&b"ann"[..]));
    assert_eq!(message.attributes().lifetime, Some(&[0, 0, 2, 0x58][..]));
}

/// Every method and class there is a number for is read as what was written.
#[test]
fn methods_and_classes_are_read_as_they_are_written() {
    for method in Method::ALL {
        for class in [Class::Request, Class::Indication, Class::Success, Class::Error] {
            let mut bytes = Vec::new();
            Writer::new(&mut bytes, class, method, TransactionId([9; 12]));
            let ours = Message::read(&bytes).expect("a message");
            assert_eq!((ours.class(), ours.method()), (class, Some(method)));
            let theirs = stun_types::message::Message::from_bytes(&bytes).expect("a message");
            assert_eq!(theirs.method().value(), method as u16);
        }
    }
    // A method that nobody knows.
    let mut bytes = Vec::new();
    Writer::new(&mut bytes, Class::Request, Method::Binding, TransactionId([9; 12]));
    bytes[0..2].copy_from_slice(&0x3EEF_u16.to_be_bytes());
    let message = Message::read(&bytes).expect("a message");
    assert_eq!((message.class(), message.method()), (Class::Request, None));
}

/// One attribute, of a kind that is known or not.
fn attribute() -> impl Strategy<Value = (u16, Vec<u8>)> {
    let kind = prop_oneof![
        Just(0x0006_u16),
        Just(0x0014),
        Just(0x0012),
        Just(0x0008),
        Just(0x001C),
        Just(0x8028),
        any::<u16>(),
    ];
    (kind, prop::collection::vec(any::<u8>(), 0..40))
}

proptest! {
    #[test]
    fn nothing_that_comes_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = Message::read(&bytes);
    }

    /// A head that is right, with whatever behind it: what we take for a message another library does too,
    /// with the same attributes.
    #[test]
    fn what_is_a_message_is_one_to_others(
        kind in 0..0x4000_u16,
        attributes in prop::collection::vec(attribute(), 0..6),
        cut in prop::option::weighted(0.2, 0..4_usize),
    ) {
        let mut bytes = kind.to_be_bytes().to_vec();
        bytes.extend([0, 0]);
        bytes.extend(MAGIC_COOKIE);
        bytes.extend([5; 12]);
        for (kind, value) in &attributes {
            bytes.extend(kind.to_be_bytes());
            bytes.extend((value.len() as u16).to_be_bytes());
            bytes.extend(value);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        bytes.truncate(bytes.len().saturating_sub(4 * cut.unwrap_or(0)).max(HEADER_BYTES));
        let length = (bytes.len() - HEADER_BYTES) as u16;
        bytes[2..4].copy_from_slice(&length.to_be_bytes());
        let ours = Message::read(&bytes);
        let theirs = stun_types::message::Message::from_bytes(&bytes);
        if let (Ok(ours), Ok(theirs)) = (&ours, &theirs) {
            let ours: Vec<_> = ours.all().map(|(kind, value)| (kind.0, value.to_vec())).collect();
            let theirs: Vec<_> = theirs
                .iter_attributes()
                .map(|(_, raw)| (raw.header.get_type().value(), raw.value.to_vec()))
                .collect();
            // It stops at what cannot count.
            prop_assert!(ours.starts_with(&theirs), "{ours:?} and {theirs:?}");
        }
        // It does not look at what stands after an integrity, which is looked at here; nothing else that
        // it takes is refused.
        let is_signed = attributes.iter().any(|(kind, _)| [0x0008, 0x001C].contains(kind));
        prop_assert!(theirs.is_err() || ours.is_ok() || is_signed, "{:?}", ours.err());
    }

    #[test]
    fn addresses_are_read_as_they_are_written(
        ip in prop_oneof![any::<u32>().prop_map(|ip| std::net::IpAddr::from(ip.to_be_bytes())),
                          any::<u128>().prop_map(|ip| std::net::IpAddr::from(ip.to_be_bytes()))],
        port in any::<u16>(),
        transaction in any::<[u8; 12]>(),
    ) {
        let address = SocketAddr::new(ip, port);
        let mut bytes = Vec::new();
        Writer::new(&mut bytes, Class::Success, Method::Allocate, TransactionId(transaction))
            .address(Kind::XOR_RELAYED_ADDRESS, address);
        let message = Message::read(&bytes).expect("a message");
        let value = message.attributes().relayed.expect("an address");
        prop_assert_eq!(message.address(value), Some(address));
        prop_assert_eq!(message.address(&value[..value.len() - 1]), None);
    }

    #[test]
    fn what_is_signed_is_of_its_key_and_of_no_other(
        password in prop::collection::vec(any::<u8>(), 0..40),
        username in prop::collection::vec(any::<u8>(), 0..40),
        is_strong in any::<bool>(),
        flip in any::<prop::sample::Index>(),
    ) {
        let hash = if is_strong { Hash::Sha256 } else { Hash::Sha1 };
        let key = Key::short_term(&password);
        let mut bytes = Vec::new();
        Writer::new(&mut bytes, Class::Request, Method::Refresh, TransactionId([1; 12]))
            .attribute(Kind::USERNAME, &username)
            .integrity(&key, hash);
        let signed = bytes.len();
        prop_assert!(Message::read(&bytes).expect("a message").is_of(&key));
        let at = flip.index(signed);
        bytes[at] ^= 0x10;
        if let Ok(message) = Message::read(&bytes) {
            prop_assert!(!message.is_of(&key), "byte {at}");
        }
    }
}
