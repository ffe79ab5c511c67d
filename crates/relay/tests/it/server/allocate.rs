//! How allocations come to be, are refused, and end.

use std::net::SocketAddr;

use relay::server::{Client, Forward, Output, Payer, Quotas, Unadmitted, Why};
use relay::stun::{Class, Family, Kind, Message, Method, Writer};

use super::{PORTS, QUOTAS, Stage, at, client, code, relayed_of, signed, udp};

const V4: [u8; 4] = [1, 0, 0, 0];
const V6: [u8; 4] = [2, 0, 0, 0];

#[test]
fn an_allocation_is_told_with_all_that_belongs_to_it() {
    let mut stage = Stage::new();
    let bytes = stage.signed(client(1), "ann", Method::Allocate, udp);
    let reply = stage.ask(client(1), &bytes);
    let message = Message::read(&reply).expect("a message");
    assert_eq!((message.class(), message.method()), (Class::Success, Some(Method::Allocate)));
    assert!(message.is_of(&super::key("ann")), "it is signed");
    let [relayed] = relayed_of(&message)[..] else { panic!("one address") };
    assert_eq!(relayed.ip(), at("192.0.2.1:1").ip());
    assert!(PORTS.contains(&relayed.port()));
    assert_eq!(message.attributes().lifetime, Some(&600_u32.to_be_bytes()[..]));
    let mapped = message.attributes().mapped.and_then(|value| message.address(value));
    assert_eq!(mapped, Some(client(1).address));
    assert_eq!(stage.open.values().copied().collect::<Vec<_>>(), [relayed.port()]);
    let [session] = &stage.began[..] else { panic!("one session") };
    assert_eq!((&*session.username, session.relayed[0]), ("ann", Some(relayed)));

    // It is asked for again since the answer was lost: it is the same one, and nothing else is.
    assert_eq!(relayed_of(&Message::read(&stage.ask(client(1), &bytes)).expect("one"))[0], relayed);
    assert_eq!(stage.request(client(1), "ann", Method::Allocate, udp), 437);
    assert_eq!(stage.request(client(1), "bob", Method::Allocate, udp), 437);
    assert_eq!(stage.began.len(), 1);

    assert_eq!(stage.refresh(client(1), 0), 0);
    assert!(matches!(stage.ended[..], [(_, Why::Left)]));
    stage.pass_s(4_000);
    stage.assert_empty();
    assert_eq!(stage.server.poll_timeout(), None, "nobody is waited for");
}

#[test]
fn what_is_asked_for_in_a_wrong_way_is_refused() {
    let mut stage = Stage::new();
    type Fill = fn(&mut Writer<'_>);
    let cases: [(u16, Fill); 15] = [
        (400, |_| {}),
        (400, |w| {
            w.attribute(Kind::REQUESTED_TRANSPORT, &[17]);
        }),
        (442, |w| {
            w.attribute(Kind::REQUESTED_TRANSPORT, &[6, 0, 0, 0]);
        }),
        (400, |w| {
            w.attribute(Kind::LIFETIME, &[1, 2]);
        }),
        (440, |w| {
            w.attribute(Kind::REQUESTED_ADDRESS_FAMILY, &[3, 0, 0, 0]);
        }),
        (440, |w| {
            w.attribute(Kind::ADDITIONAL_ADDRESS_FAMILY, &[3, 0, 0, 0]);
        }),
        (400, |w| {
            w.attribute(Kind::ADDITIONAL_ADDRESS_FAMILY, &V4);
        }),
        (400, |w| {
            w.attribute(Kind::REQUESTED_ADDRESS_FAMILY, &V6);
            w.attribute(Kind::ADDITIONAL_ADDRESS_FAMILY, &V6);
        }),
        (400, |w| {
            w.attribute(Kind::EVEN_PORT, &[0, 0]);
        }),
        (400, |w| {
            w.attribute(Kind::EVEN_PORT, &[0x80]);
            w.attribute(Kind::ADDITIONAL_ADDRESS_FAMILY, &V6);
        }),
        (400, |w| {
            w.attribute(Kind::EVEN_PORT, &[0]);
            w.attribute(Kind::RESERVATION_TOKEN, &[1; 8]);
        }),
        (400, |w| {
            w.attribute(Kind::REQUESTED_ADDRESS_FAMILY, &V4);
            w.attribute(Kind::RESERVATION_TOKEN, &[1; 8]);
        }),
        (508, |w| {
            w.attribute(Kind::RESERVATION_TOKEN, &[1; 8]);
        }),
        (508, |w| {
            w.attribute(Kind::RESERVATION_TOKEN, &[1; 3]);
        }),
        (420, |w| {
            w.attribute(Kind(0x7FFF), &[]);
        }),
    ];
    for (number, (expected, fill)) in cases.into_iter().enumerate() {
        let got = stage.request(client(9), "ann", Method::Allocate, |writer| {
            if number > 2 {
                udp(writer);
            }
            fill(writer);
        });
        assert_eq!(got, expected, "case {number}");
    }
    stage.assert_empty();
}

#[test]
fn families_are_those_that_were_asked_for() {
    let mut stage = Stage::new();
    let ask = |stage: &mut Stage, number, kind: Option<(Kind, [u8; 4])>| {
        let bytes = stage.signed(client(number), "ann", Method::Allocate, |writer| {
            udp(writer);
            if let Some((kind, family)) = kind {
                writer.attribute(kind, &family);
            }
        });
        let reply = stage.ask(client(number), &bytes);
        let relayed = relayed_of(&Message::read(&reply).expect("a message"));
        relayed.iter().map(|address| address.is_ipv4()).collect::<Vec<_>>()
    };
    assert_eq!(ask(&mut stage, 1, None), [true]);
    assert_eq!(ask(&mut stage, 2, Some((Kind::REQUESTED_ADDRESS_FAMILY, V4))), [true]);
    assert_eq!(ask(&mut stage, 3, Some((Kind::REQUESTED_ADDRESS_FAMILY, V6))), [false]);
    assert_eq!(ask(&mut stage, 4, Some((Kind::ADDITIONAL_ADDRESS_FAMILY, V6))), [true, false]);

    // One of two may be ended, and the other goes on.
    let of = |family: [u8; 4], lifetime_s: u32| {
        move |writer: &mut Writer<'_>| {
            writer.number(Kind::LIFETIME, lifetime_s);
            writer.attribute(Kind::REQUESTED_ADDRESS_FAMILY, &family);
        }
    };
    assert_eq!(stage.request(client(1), "ann", Method::Refresh, of(V6, 0)), 443);
    assert_eq!(stage.open.len(), 5);
    assert_eq!(stage.request(client(4), "ann", Method::Refresh, of(V4, 0)), 0);
    assert_eq!(stage.open.len(), 4);
    assert_eq!(stage.permit(client(4), &["8.8.8.8:53"]), 443);
    assert_eq!(stage.permit(client(4), &["[2606:4700::1]:53"]), 0);
    assert_eq!(stage.request(client(4), "ann", Method::Refresh, of(V4, 600)), 443);
    assert_eq!(stage.request(client(4), "ann", Method::Refresh, of(V6, 0)), 0);
    assert_eq!(stage.ended.len(), 1);
}

#[test]
fn a_second_family_that_cannot_be_had_is_told_beside_the_first() {
    let mut stage = Stage::new();
    let mut taken = Vec::new();
    let bytes = stage.signed(client(1), "ann", Method::Allocate, |writer| {
        udp(writer);
        writer.attribute(Kind::ADDITIONAL_ADDRESS_FAMILY, &V6);
    });
    assert_eq!(stage.server.handle_client(stage.now, client(1), &bytes), Forward::Nowhere);
    while let Some(output) = stage.server.poll_output() {
        match output {
            Output::Admit { asked, .. } => {
                let payer = Payer { account: "elena".into(), user: "ann".into() };
                stage.server.handle_admission(stage.now, asked, Ok(payer));
            }
            // IPv6 has no port that can be opened.
            Output::Open { relay, .. } => {
                stage.server.handle_opened(stage.now, relay, relay.family == Family::V4);
            }
            Output::Reply { bytes, .. } => taken.push(bytes),
            _ => {}
        }
    }
    let message = Message::read(&taken[0]).expect("a message");
    assert_eq!(message.class(), Class::Success);
    assert_eq!(relayed_of(&message).len(), 1);
    let error = message.all().find(|(kind, _)| *kind == Kind::ADDRESS_ERROR_CODE);
    assert_eq!(error.expect("why").1[..4], [2, 0, 5, 8]);
    assert_eq!(stage.relayed.taken(Family::V6), 0);
}

#[test]
fn a_port_that_cannot_be_opened_is_not_the_last() {
    let mut stage = Stage::new();
    stage.broken.extend((50_000..=50_099).filter(|port| port % 3 == 0));
    for number in 1..=10 {
        let relayed = stage.allocate(client(number), "ann");
        assert!(!relayed.port().is_multiple_of(3));
    }
    stage.broken.extend(PORTS);
    assert_eq!(stage.request(client(11), "ann", Method::Allocate, udp), 508);
    assert_eq!(stage.relayed.taken(Family::V4), 10, "what failed is given back");
}

#[test]
fn when_no_port_is_left_it_is_said() {
    let quotas = Quotas { per_user: 1_000, per_account: 1_000, per_neuron: 1_000 };
    let mut stage = Stage::with(|_| {}, quotas);
    let mut taken: Vec<SocketAddr> =
        (1..=100).map(|number| stage.allocate(client(number), "ann")).collect();
    assert_eq!(stage.request(client(101), "ann", Method::Allocate, udp), 508);
    taken.sort_unstable();
    taken.dedup();
    assert_eq!(taken.len(), 100);
    stage.pass_s(601);
    assert!(stage.ended.iter().all(|(_, why)| *why == Why::Expired) && stage.ended.len() == 100);
    stage.assert_empty();
}

/// The next port is kept for whoever names the token, for half a minute, if he is the same user.
#[test]
fn an_even_port_comes_with_the_next_one_if_that_is_asked_for() {
    let mut stage = Stage::new();
    let pair = |stage: &mut Stage, number, flags: u8| {
        let bytes = stage.signed(client(number), "ann", Method::Allocate, |writer| {
            udp(writer);
            writer.attribute(Kind::EVEN_PORT, &[flags]);
        });
        let reply = stage.ask(client(number), &bytes);
        let message = Message::read(&reply).expect("a message");
        let token = message.attributes().reservation_token.map(<[u8]>::to_vec);
        (relayed_of(&message)[0].port(), token)
    };
    let (even, none) = pair(&mut stage, 1, 0);
    assert!(even.is_multiple_of(2) && none.is_none());
    let (rtp, token) = pair(&mut stage, 2, 0x80);
    let token = token.expect("a token");
    assert!(rtp.is_multiple_of(2));
    let by_token = |writer: &mut Writer<'_>| {
        udp(writer);
        writer.attribute(Kind::RESERVATION_TOKEN, &token);
    };
    assert_eq!(stage.request(client(3), "bob", Method::Allocate, by_token), 508, "it is ann's");
    let bytes = stage.signed(client(3), "ann", Method::Allocate, by_token);
    let reply = stage.ask(client(3), &bytes);
    assert_eq!(relayed_of(&Message::read(&reply).expect("one"))[0].port(), rtp + 1);
    assert_eq!(stage.request(client(4), "ann", Method::Allocate, by_token), 508, "once");

    let (_, late) = pair(&mut stage, 5, 0x80);
    assert_eq!(stage.relayed.reserved(), 1);
    stage.pass_s(31);
    assert_eq!(stage.relayed.reserved(), 0);
    let by_token = |writer: &mut Writer<'_>| {
        udp(writer);
        writer.attribute(Kind::RESERVATION_TOKEN, &late.clone().expect("a token"));
    };
    assert_eq!(stage.request(client(6), "ann", Method::Allocate, by_token), 508);
    for number in [1, 2, 3, 5] {
        assert_eq!(stage.refresh(client(number), 0), 0);
    }
    stage.pass_s(4_000);
    stage.assert_empty();
    assert_eq!(stage.server.poll_timeout(), None, "nobody is waited for");
}

#[test]
fn quotas_have_answers_of_their_own() {
    let quotas = Quotas { per_user: 2, per_account: 3, per_neuron: 1_000 };
    let mut stage = Stage::with(|settings| settings.allocations_max = 4, quotas);
    stage.allocate(client(1), "ann");
    stage.allocate(client(2), "ann");
    assert_eq!(stage.request(client(3), "ann", Method::Allocate, udp), 486);
    stage.allocate(client(4), "bob");
    assert_eq!(stage.request(client(5), "bob", Method::Allocate, udp), 486, "the account's");
    stage.refresh(client(1), 0);
    stage.allocate(client(5), "bob");

    let quotas = Quotas { per_neuron: 1, ..QUOTAS };
    let mut stage = Stage::with(|_| {}, quotas);
    stage.allocate(client(1), "ann");
    assert_eq!(stage.request(client(2), "bob", Method::Allocate, udp), 508);
    let mut stage = Stage::with(|settings| settings.allocations_max = 1, QUOTAS);
    stage.allocate(client(1), "ann");
    assert_eq!(stage.request(client(2), "bob", Method::Allocate, udp), 508);
}

/// While it is being decided nothing is answered, and what comes of it is answered once.
#[test]
fn an_admission_may_take_its_time() {
    let mut stage = Stage::new();
    stage.admits = false;
    let nonce = stage.nonce(client(1));
    let transaction = stage.transaction();
    let bytes = signed(transaction, "ann", &nonce, Method::Allocate, udp);
    assert!(stage.give(client(1), &bytes).is_empty());
    assert!(stage.give(client(1), &bytes).is_empty(), "it was asked for again");
    let [(asked, username)] = &stage.waiting[..] else { panic!("{:?}", stage.waiting) };
    assert_eq!(&**username, "ann");
    let asked = *asked;
    stage.server.handle_admission(stage.now, asked, Err(Unadmitted::Forbidden));
    stage.drain();
    assert_eq!(code(&stage.replies.remove(0).1), 403);
    stage.assert_empty();

    // Of one that was given up nothing more is heard.
    stage.waiting.clear();
    assert!(stage.give(client(1), &bytes).is_empty());
    let (late, _) = stage.waiting.remove(0);
    stage.pass_s(11);
    let payer = Payer { account: "elena".into(), user: "ann".into() };
    for asked in [asked, late] {
        stage.server.handle_admission(stage.now, asked, Ok(payer.clone()));
    }
    stage.drain();
    assert!(stage.replies.is_empty());
    stage.assert_empty();
}

/// A socket that is opened after its allocation was given up is closed again.
#[test]
fn a_socket_that_opens_too_late_is_closed() {
    let mut stage = Stage::new();
    stage.admits = false;
    let bytes = stage.signed(client(1), "ann", Method::Allocate, udp);
    stage.give(client(1), &bytes);
    let (asked, _) = stage.waiting.remove(0);
    let payer = Payer { account: "elena".into(), user: "ann".into() };
    stage.server.handle_admission(stage.now, asked, Ok(payer));
    let Some(Output::Open { relay, port }) = stage.server.poll_output() else { panic!("it opens") };
    stage.server.handle_gone(client(1));
    stage.open.insert(relay, port);
    stage.server.handle_opened(stage.now, relay, true);
    stage.drain();
    assert!(stage.replies.is_empty());
    stage.assert_empty();
}

#[test]
fn lifetimes_are_what_was_asked_for_within_bounds() {
    let mut stage = Stage::new();
    let mut number = 0;
    for (asked, given) in [(0, 600), (1, 600), (601, 601), (3_600, 3_600), (u32::MAX, 3_600)] {
        number += 1;
        let bytes = stage.signed(client(number), "ann", Method::Allocate, |writer| {
            udp(writer);
            writer.number(Kind::LIFETIME, asked);
        });
        let reply = stage.ask(client(number), &bytes);
        let message = Message::read(&reply).expect("a message");
        let lifetime = message.attributes().lifetime.expect("a lifetime");
        assert_eq!(lifetime, u32::to_be_bytes(given), "{asked}");
    }
    // To the moment, and not a second before or after.
    stage.pass_s(599);
    assert_eq!(stage.ended.len(), 0);
    stage.pass_s(1);
    assert_eq!(stage.ended.len(), 2);
    assert_eq!(stage.refresh(client(3), 600), 0);
    stage.pass_s(599);
    assert_eq!(stage.ended.len(), 2);
    assert_eq!(stage.refresh(client(1), 600), 437, "it is over");
}

/// Old credentials open nothing, but what was opened with them is kept up.
#[test]
fn a_credential_gates_allocation_and_not_what_was_allocated() {
    let mut stage = Stage::new();
    stage.allocate(client(1), "old");
    stage.pass_s(200);
    let refresh = |writer: &mut Writer<'_>| {
        writer.number(Kind::LIFETIME, 600);
    };
    assert_eq!(stage.request(client(1), "old", Method::Refresh, refresh), 0);
    assert_eq!(stage.request(client(2), "old", Method::Allocate, udp), 401);
}

#[test]
fn it_can_be_ended_from_outside() {
    let mut stage = Stage::new();
    let stream = Client { is_stream: true, ..client(3) };
    for (client, user) in [(client(1), "ann"), (client(2), "bob"), (stream, "bob")] {
        stage.allocate(client, user);
    }
    assert_eq!(stage.server.end_where(|session| &*session.username == "ann"), 1);
    stage.drain();
    assert!(matches!(&stage.ended[..], [(one, Why::Ended)] if one.client == client(1)));
    assert_eq!(stage.refresh(client(1), 600), 437);
    stage.server.handle_gone(stream);
    stage.drain();
    assert!(matches!(&stage.ended[1..], [(one, Why::Left)] if one.client == stream));
    assert_eq!(stage.server.sessions().count(), 1);
}

#[test]
fn one_that_drains_sends_newcomers_on() {
    let mut stage = Stage::new();
    stage.allocate(client(1), "ann");
    let other = at("203.0.113.5:3478");
    stage.server.drain([(1, other)].into());
    let bytes = stage.signed(client(2), "ann", Method::Allocate, udp);
    let reply = stage.ask(client(2), &bytes);
    let message = Message::read(&reply).expect("a message");
    assert_eq!(message.error(), Some(300));
    let expected = [0, 1, 13, 150, 203, 0, 113, 5];
    assert_eq!(message.attributes().alternate_server, Some(&expected[..]));
    assert_eq!(stage.refresh(client(1), 600), 0, "who is here stays");
    let elsewhere = Client { listener: 2, ..client(2) };
    assert_eq!(stage.request(elsewhere, "ann", Method::Allocate, udp), 508, "none is known there");
}

/// What was decided and opened for one that was given up is not the next one's in its place.
#[test]
fn an_answer_that_is_late_is_not_taken_for_another() {
    let mut stage = Stage::new();
    stage.admits = false;
    let payer = |user: &str| Payer { account: "elena".into(), user: user.into() };
    let ask = |stage: &mut Stage, number, user| {
        let bytes = stage.signed(client(number), user, Method::Allocate, udp);
        assert!(stage.give(client(number), &bytes).is_empty());
        stage.waiting.remove(0).0
    };
    let early = ask(&mut stage, 1, "ann");
    stage.server.handle_gone(client(1));
    let later = ask(&mut stage, 2, "bob");
    stage.server.handle_admission(stage.now, early, Ok(payer("ann")));
    assert!(stage.server.poll_output().is_none(), "bob waits");
    stage.server.handle_admission(stage.now, later, Ok(payer("bob")));
    let Some(Output::Open { relay: early, .. }) = stage.server.poll_output() else {
        panic!("it opens")
    };
    stage.server.handle_gone(client(2));
    let last = ask(&mut stage, 3, "ann");
    stage.server.handle_admission(stage.now, last, Ok(payer("ann")));
    let Some(Output::Open { relay, port }) = stage.server.poll_output() else { panic!("it opens") };
    assert_eq!((relay.slot, relay.generation != early.generation), (early.slot, true));
    stage.server.handle_opened(stage.now, early, true);
    let closed = stage.server.poll_output();
    assert!(matches!(closed, Some(Output::Close { relay }) if relay == early), "{closed:?}");
    assert!(stage.server.poll_output().is_none(), "its own is not open yet");
    stage.open.insert(relay, port);
    stage.server.handle_opened(stage.now, relay, true);
    stage.drain();
    assert_eq!(stage.began.len(), 1);
    assert_eq!(stage.began[0].payer, Some(payer("ann")));
}

/// A credential that is revoked while its allocation is being made makes none.
#[test]
fn what_is_being_made_can_be_ended_too() {
    let mut stage = Stage::new();
    stage.admits = false;
    for number in [1, 2] {
        let bytes = stage.signed(client(number), "ann", Method::Allocate, udp);
        assert!(stage.give(client(number), &bytes).is_empty());
    }
    let payer = Payer { account: "elena".into(), user: "ann".into() };
    let [(asked, _), (opening, _)] = stage.waiting[..] else { panic!("both wait") };
    stage.server.handle_admission(stage.now, opening, Ok(payer.clone()));
    let Some(Output::Open { relay, port }) = stage.server.poll_output() else { panic!("it opens") };
    assert_eq!(stage.server.end_where(|session| &*session.username == "ann"), 2);
    stage.server.handle_admission(stage.now, asked, Ok(payer));
    stage.open.insert(relay, port);
    stage.server.handle_opened(stage.now, relay, true);
    stage.drain();
    assert!(stage.began.is_empty() && stage.replies.is_empty() && stage.ended.is_empty());
    stage.assert_empty();
}

/// However often a user reserves, he has one port of all.
#[test]
fn a_user_has_one_reservation() {
    let mut stage = Stage::new();
    for number in 0..20 {
        let status = stage.request(client(number), "ann", Method::Allocate, |writer| {
            udp(writer);
            writer.attribute(Kind::EVEN_PORT, &[0x80]);
        });
        assert_eq!(status, 0);
        assert_eq!(stage.refresh(client(number), 0), 0);
        assert_eq!(stage.relayed.taken(Family::V4), 1);
    }
    stage.pass_s(31);
    stage.assert_empty();
}

/// As when its thread ends by itself.
#[test]
fn a_server_that_is_gone_holds_nothing() {
    let mut stage = Stage::new();
    stage.allocate(client(1), "ann");
    let relayed = stage.relayed.clone();
    drop(stage);
    assert_eq!((relayed.taken(Family::V4), relayed.allocations()), (0, 0));
}
