//! Permissions and channels.

use relay::stun::{Kind, Method};

use super::{Stage, at, client};

#[test]
fn a_permission_is_for_public_addresses_of_the_family() {
    let mut stage = Stage::new();
    assert_eq!(stage.permit(client(1), &["8.8.8.8:5353"]), 437);
    stage.allocate(client(1), "ann");
    for (expected, peers) in [
        (0, &["8.8.8.8:0"][..]),
        (0, &["8.8.8.8:5353", "9.9.9.9:5353"]),
        (400, &[]),
        (403, &["127.0.0.1:5353"]),
        (403, &["8.8.4.4:5353", "169.254.169.254:80"]),
        (443, &["[2606:4700::1]:5353"]),
        (443, &["[::ffff:127.0.0.1]:5353"]),
        // This relay's own address may be named: each packet asks whose port it is.
        (0, &["192.0.2.1:80"]),
        (0, &["10.0.0.1:80"]),
        (403, &["10.0.0.2:80"]),
    ] {
        assert_eq!(stage.permit(client(1), peers), expected, "{peers:?}");
    }
    // Of those that were refused as a whole none was taken.
    let session = stage.server.sessions().next().expect("one");
    assert_eq!(session.sent.packets, 0);
    let broken = stage.request(client(1), "ann", Method::CreatePermission, |writer| {
        writer.attribute(Kind::XOR_PEER_ADDRESS, &[0, 1, 2]);
    });
    assert_eq!(broken, 400);
}

#[test]
fn a_channel_is_one_number_for_one_peer() {
    let mut stage = Stage::new();
    assert_eq!(stage.bind(client(1), 0x4000, at("8.8.8.8:5353")), 437);
    stage.allocate(client(1), "ann");
    for (expected, number, peer) in [
        (0, 0x4000, "8.8.8.8:5353"),
        (0, 0x4000, "8.8.8.8:5353"),
        (400, 0x4000, "8.8.8.8:5354"),
        (400, 0x4001, "8.8.8.8:5353"),
        (0, 0x4FFF, "8.8.8.8:5354"),
        (400, 0x3FFF, "9.9.9.9:5353"),
        (400, 0x5000, "9.9.9.9:5353"),
        (403, 0x4001, "192.168.1.1:5353"),
        (403, 0x4001, "8.8.8.8:0"),
        (403, 0x4001, "8.8.8.8:53"),
        (443, 0x4001, "[2606:4700::1]:5353"),
    ] {
        assert_eq!(stage.bind(client(1), number, at(peer)), expected, "{number:x} {peer}");
    }
    let without = |stage: &mut Stage, kind: Kind| {
        stage.request(client(1), "ann", Method::ChannelBind, |writer| {
            if kind != Kind::CHANNEL_NUMBER {
                writer.number(Kind::CHANNEL_NUMBER, 0x4002 << 16);
            }
            if kind != Kind::XOR_PEER_ADDRESS {
                writer.address(Kind::XOR_PEER_ADDRESS, at("9.9.9.9:5353"));
            }
        })
    };
    for kind in [Kind::CHANNEL_NUMBER, Kind::XOR_PEER_ADDRESS] {
        assert_eq!(without(&mut stage, kind), 400);
    }
    // When it is over, either may be used anew.
    stage.refresh(client(1), 3_600);
    stage.pass_s(601);
    assert_eq!(stage.bind(client(1), 0x4000, at("8.8.8.8:5399")), 0);
    assert_eq!(stage.bind(client(1), 0x4003, at("8.8.8.8:5353")), 0);
}

#[test]
fn there_are_so_many_of_both_and_no_more() {
    let mut stage = Stage::with(
        |settings| (settings.permissions_max, settings.channels_max) = (4, 2),
        super::QUOTAS,
    );
    stage.allocate(client(1), "ann");
    assert_eq!(stage.bind(client(1), 0x4000, at("8.8.8.1:5353")), 0);
    assert_eq!(stage.bind(client(1), 0x4001, at("8.8.8.2:5353")), 0);
    assert_eq!(stage.bind(client(1), 0x4002, at("8.8.8.1:5354")), 508);
    assert_eq!(stage.permit(client(1), &["8.8.8.1:1", "8.8.8.3:1", "8.8.8.4:1"]), 0);
    assert_eq!(stage.permit(client(1), &["8.8.8.4:1", "8.8.8.5:1"]), 508);
    assert_eq!(stage.permit(client(1), &["8.8.8.4:1"]), 0);
    stage.pass_s(301);
    assert_eq!(stage.permit(client(1), &["8.8.8.5:1", "8.8.8.6:1"]), 0, "those before are over");
}
