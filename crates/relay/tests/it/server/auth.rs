//! Whose a request is, and what is answered to nobody in particular.

use relay::nonce::Features;
use relay::server::{Client, Forward};
use relay::stun::{
    Class, Hash, Key, Kind, Message, Method, PASSWORD_ALGORITHMS, PasswordAlgorithm, Writer,
};

use super::{QUOTAS, REALM, Stage, client, code, key, signed, udp};

#[test]
fn where_a_client_is_seen_is_told_to_anybody() {
    let mut stage = Stage::new();
    let transaction = stage.transaction();
    for has_fingerprint in [false, true] {
        let mut bytes = Vec::new();
        let mut writer = Writer::new(&mut bytes, Class::Request, Method::Binding, transaction);
        if has_fingerprint {
            writer.fingerprint();
        }
        let reply = stage.ask(client(5), &bytes);
        let message = Message::read(&reply).expect("a message");
        assert_eq!((message.class(), message.transaction()), (Class::Success, transaction));
        let mapped = message.attributes().mapped.and_then(|value| message.address(value));
        assert_eq!(mapped, Some(client(5).address));
        assert_eq!(message.attributes().has_fingerprint, has_fingerprint);
        assert_eq!(reply.len(), 32 + if has_fingerprint { 8 } else { 0 }, "nothing else is said");
    }
    let mut bytes = Vec::new();
    Writer::new(&mut bytes, Class::Request, Method::Binding, transaction)
        .attribute(Kind(0x7FFE), &[1]);
    let reply = stage.ask(client(5), &bytes);
    let message = Message::read(&reply).expect("a message");
    assert_eq!(message.error(), Some(420));
    let listed = message.all().find(|(kind, _)| *kind == Kind::UNKNOWN_ATTRIBUTES);
    assert_eq!(listed.expect("a list").1, [0x7F, 0xFE]);
    stage.assert_empty();
}

#[test]
fn what_is_not_proven_is_refused() {
    let mut stage = Stage::new();
    let nonce = stage.nonce(client(1));
    let transaction = stage.transaction();
    let request =
        |user: &str, nonce: &[u8]| signed(transaction, user, nonce, Method::Allocate, udp);
    let stolen = stage.nonce(client(2));
    let mut other_key = Vec::new();
    let mut writer = Writer::new(&mut other_key, Class::Request, Method::Allocate, transaction);
    udp(&mut writer);
    writer
        .attribute(Kind::USERNAME, b"ann")
        .attribute(Kind::REALM, REALM.as_bytes())
        .attribute(Kind::NONCE, &nonce)
        .integrity(&key("bob"), Hash::Sha1);
    let missing = |without: Kind| {
        let mut bytes = Vec::new();
        let mut writer = Writer::new(&mut bytes, Class::Request, Method::Allocate, transaction);
        udp(&mut writer);
        let all =
            [(Kind::USERNAME, &b"ann"[..]), (Kind::REALM, REALM.as_bytes()), (Kind::NONCE, &nonce)];
        for (kind, value) in all.into_iter().filter(|(kind, _)| *kind != without) {
            writer.attribute(kind, value);
        }
        writer.integrity(&key("ann"), Hash::Sha1);
        bytes
    };
    for (what, bytes, expected) in [
        ("another's password", other_key, 401),
        ("nobody's name", request("zoe", &nonce), 401),
        ("no text", request("zo\u{EB}", &nonce), 401),
        ("another client's nonce", request("ann", &stolen), 438),
        ("a made-up nonce", request("ann", b"obMatJos2AAAA000000000000"), 438),
        ("no nonce at all", missing(Kind::NONCE), 400),
        ("no name", missing(Kind::USERNAME), 400),
        ("no realm", missing(Kind::REALM), 400),
    ] {
        let reply = stage.ask(client(1), &bytes);
        assert_eq!(code(&reply), expected, "{what}");
        let message = Message::read(&reply).expect("a message");
        assert_eq!(message.attributes().nonce.is_some(), expected != 400, "{what}");
        assert_eq!(message.integrity(), None, "{what}: nobody signs for it");
    }
    stage.assert_empty();
    stage.pass_s(601);
    let stale = request("ann", &nonce);
    assert_eq!(code(&stage.ask(client(1), &stale)), 438);
}

/// While a secret is changed both hold.
#[test]
fn each_of_several_passwords_opens() {
    let mut stage = Stage::new();
    let nonce = stage.nonce(client(1));
    let former = Key::long_term(PasswordAlgorithm::Md5, b"ann", REALM.as_bytes(), b"a former one");
    let transaction = stage.transaction();
    let mut bytes = Vec::new();
    let mut writer = Writer::new(&mut bytes, Class::Request, Method::Allocate, transaction);
    udp(&mut writer);
    writer
        .attribute(Kind::USERNAME, b"ann")
        .attribute(Kind::REALM, REALM.as_bytes())
        .attribute(Kind::NONCE, &nonce)
        .integrity(&former, Hash::Sha256)
        .fingerprint();
    let reply = stage.ask(client(1), &bytes);
    let message = Message::read(&reply).expect("a message");
    assert!(message.class() == Class::Success && message.is_of(&former));
    assert_eq!(message.integrity(), Some(Hash::Sha256), "by the same hash");
    assert!(message.attributes().has_fingerprint);
}

/// RFC 8489 §9.2.4: what was offered comes back, so that nobody in between can take the stronger away.
#[test]
fn the_algorithm_of_a_password_can_be_chosen() {
    let offers = Features { password_algorithms: true, username_anonymity: false };
    let ask = |features: Features, offered: Option<&[u8]>, chosen: Option<&[u8]>, algorithm| {
        let mut stage = Stage::offering(features, |_| {}, QUOTAS);
        let nonce = stage.nonce(client(1));
        let transaction = stage.transaction();
        let key = Key::long_term(algorithm, b"ann", REALM.as_bytes(), b"ann");
        let mut bytes = Vec::new();
        let mut writer = Writer::new(&mut bytes, Class::Request, Method::Allocate, transaction);
        udp(&mut writer);
        for (kind, value) in
            [(Kind::PASSWORD_ALGORITHMS, offered), (Kind::PASSWORD_ALGORITHM, chosen)]
        {
            if let Some(value) = value {
                writer.attribute(kind, value);
            }
        }
        writer
            .attribute(Kind::USERNAME, b"ann")
            .attribute(Kind::REALM, REALM.as_bytes())
            .attribute(Kind::NONCE, &nonce)
            .integrity(&key, Hash::Sha256);
        code(&stage.ask(client(1), &bytes))
    };
    let (md5, sha256) = (PasswordAlgorithm::Md5, PasswordAlgorithm::Sha256);
    let all = Some(&PASSWORD_ALGORITHMS[..]);
    assert_eq!(ask(offers, all, Some(&[0, 2, 0, 0]), sha256), 0);
    assert_eq!(ask(offers, all, Some(&[0, 1, 0, 0]), md5), 0);
    assert_eq!(ask(offers, None, None, md5), 0);
    assert_eq!(ask(offers, all, Some(&[0, 1, 0, 0]), sha256), 401);
    assert_eq!(ask(offers, Some(&[0, 1, 0, 0]), Some(&[0, 1, 0, 0]), md5), 400, "bid down");
    assert_eq!(ask(offers, all, Some(&[0, 3, 0, 0]), md5), 400);
    assert_eq!(ask(offers, all, None, md5), 400);
    assert_eq!(
        ask(Features::default(), all, Some(&[0, 2, 0, 0]), sha256),
        400,
        "it was not offered"
    );
}

#[test]
fn a_request_belongs_to_who_allocated() {
    let mut stage = Stage::new();
    stage.allocate(client(1), "ann");
    let refresh = |writer: &mut Writer<'_>| {
        writer.number(Kind::LIFETIME, 600);
    };
    assert_eq!(stage.request(client(1), "bob", Method::Refresh, refresh), 441);
    assert_eq!(stage.request(client(2), "ann", Method::Refresh, refresh), 437);
    assert_eq!(stage.request(client(1), "ann", Method::Refresh, refresh), 0);
    assert_eq!(stage.request(client(1), "ann", Method::Connect, |_| {}), 400);
}

#[test]
fn nobody_draws_more_than_he_sends() {
    let mut stage = Stage::with(|settings| settings.refusals_per_source = 5, QUOTAS);
    let transaction = stage.transaction();
    let mut bytes = Vec::new();
    Writer::new(&mut bytes, Class::Request, Method::Allocate, transaction);
    let one: usize = (0..100).map(|port| stage.give(client(port), &bytes).len()).sum();
    assert_eq!(one, 5, "by whatever port");
    assert_eq!(stage.server.counters().capped, 95);
    stage.pass_s(1);
    assert_eq!(stage.give(client(1), &bytes).len(), 1);
    // A stream's address is nobody else's.
    let stream = Client { is_stream: true, ..client(1) };
    assert!((0..50).all(|_| stage.give(stream, &bytes).len() == 1));
    stage.assert_empty();
}

#[test]
fn what_is_no_request_is_dropped() {
    let mut stage = Stage::new();
    let transaction = stage.transaction();
    let written = |class, method| {
        let mut bytes = Vec::new();
        Writer::new(&mut bytes, class, method, transaction);
        bytes
    };
    let mut unknown = written(Class::Request, Method::Binding);
    unknown[1] = 0x0F;
    for bytes in [
        b"".to_vec(),
        b"GET / HTTP/1.1\r\n".to_vec(),
        vec![0x80; 40],
        vec![0; 20],
        unknown,
        written(Class::Indication, Method::Binding),
        written(Class::Success, Method::Binding),
        written(Class::Error, Method::Allocate),
        written(Class::Indication, Method::Send),
        vec![0x40, 0, 0, 200, 1],
        vec![0x40, 0, 0, 1, 1],
    ] {
        assert!(stage.give(client(1), &bytes).is_empty(), "{bytes:?}");
        assert_eq!(stage.server.handle_client(stage.now, client(1), &bytes), Forward::Nowhere);
    }
    stage.assert_empty();
}

/// Nor is anybody's call ended by what others flood with.
#[test]
fn who_is_allocated_is_told_of_a_stale_nonce_beside_a_flood() {
    let mut stage = Stage::with(|settings| settings.refusals_per_source = 1, QUOTAS);
    stage.allocate(client(1), "ann");
    let transaction = stage.transaction();
    let mut bytes = Vec::new();
    Writer::new(&mut bytes, Class::Request, Method::Refresh, transaction);
    assert!(stage.give(client(9), &bytes).is_empty(), "its address has had its answer");
    assert_eq!(stage.give(client(1), &bytes).len(), 1);
    assert!((0..50).map(|_| stage.give(client(1), &bytes).len()).sum::<usize>() < 5);
}

/// There is no other address to answer from.
#[test]
fn an_answer_from_elsewhere_is_refused() {
    let mut stage = Stage::new();
    let transaction = stage.transaction();
    let mut bytes = Vec::new();
    Writer::new(&mut bytes, Class::Request, Method::Binding, transaction)
        .number(Kind::CHANGE_REQUEST, 6);
    let reply = stage.ask(client(5), &bytes);
    assert_eq!(code(&reply), 420);
}
