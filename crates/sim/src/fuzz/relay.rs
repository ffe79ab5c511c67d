//! The relay's entry points: messages, frames of streams, and a server whose users mean ill.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use relay::framing::{
    CHANNEL_HEADER_BYTES, ChannelData, FRAME_BYTES_MAX, Frames, frame_bytes, is_channel_data,
};
use relay::nonce::{Features, Nonces};
use relay::peers::Peers;
use relay::server::{
    Client, Forward, Output, Passwords, Payer, Quotas, RelayId, Relayed, RelayedIp, Server,
    Settings,
};
use relay::stun::{
    Class, HEADER_BYTES, Hash, Key, Kind, Message, Method, PasswordAlgorithm, TransactionId, Writer,
};

const REALM: &str = "fuzz";
const USER: &str = "ann";

/// A message that is read has what was written into it, and is the same when it is written again.
pub(super) fn fuzz_stun(bytes: &[u8]) {
    let key = Key::short_term(b"fuzz");
    let Ok(message) = Message::read(bytes) else { return };
    assert_eq!(message.bytes(), bytes.len());
    let held: usize = message.all().map(|(_, value)| 4 + value.len().next_multiple_of(4)).sum();
    assert!(held <= bytes.len() - HEADER_BYTES, "an attribute is read beyond the message");
    assert!(!message.is_of(&key) || message.integrity().is_some());
    for peer in message.peers().flatten() {
        let mut again = Vec::new();
        Writer::new(&mut again, Class::Request, Method::Binding, message.transaction())
            .address(Kind::XOR_PEER_ADDRESS, peer);
        let again = Message::read(&again).expect("written by us");
        assert_eq!(again.peers().collect::<Vec<_>>(), [Some(peer)]);
    }
    let Some(method) = message.method() else { return };
    // Those that are no end of what counts.
    let ends = [Kind::MESSAGE_INTEGRITY, Kind::MESSAGE_INTEGRITY_SHA256, Kind::FINGERPRINT];
    let attributes = || message.all().take_while(|(kind, _)| !ends.contains(kind));
    let mut written = Vec::new();
    let mut writer = Writer::new(&mut written, message.class(), method, message.transaction());
    for (kind, value) in attributes() {
        writer.attribute(kind, value);
    }
    writer.integrity(&key, Hash::Sha1).integrity(&key, Hash::Sha256).fingerprint();
    let again = Message::read(&written).expect("written by us");
    assert!(again.is_of(&key) && again.attributes().has_fingerprint);
    assert!(again.all().take_while(|(kind, _)| !ends.contains(kind)).eq(attributes()));
    assert_eq!((again.class(), again.method()), (message.class(), Some(method)));
}

/// The frames of a stream do not depend on how it is cut, and what is held of one is bounded.
pub(super) fn fuzz_relay_frames(bytes: &[u8]) {
    let Some((first, stream)) = bytes.split_first() else { return };
    let found = |piece: usize| {
        let (mut frames, mut all) = (Frames::default(), Vec::new());
        for piece in stream.chunks(piece) {
            frames.push(piece);
            loop {
                match frames.next_frame() {
                    Ok(Some(frame)) => {
                        assert!(
                            frame.len() <= FRAME_BYTES_MAX && frame.len() >= CHANNEL_HEADER_BYTES
                        );
                        all.push(frame.to_vec());
                    }
                    Ok(None) => break,
                    Err(_) => return (all, true),
                }
            }
            assert!(frames.held_bytes() < FRAME_BYTES_MAX);
        }
        (all, false)
    };
    let whole = found(stream.len().max(1));
    assert_eq!(found(usize::from(*first).max(1)), whole);
    assert_eq!(found(1), whole);
    let sum: usize = whole.0.iter().map(Vec::len).sum();
    assert!(stream.starts_with(&whole.0.concat()) && sum <= stream.len());
    for frame in &whole.0 {
        assert_eq!(frame_bytes(frame), Ok(Some(frame.len())));
        match ChannelData::read(frame) {
            Some(data) if is_channel_data(frame) => assert!(data.data.len() + 4 <= frame.len()),
            _ => drop(Message::read(frame)),
        }
    }
}

struct Names;

impl Passwords for Names {
    fn of(&self, _: u64, username: &str) -> Vec<String> {
        (username == USER).then(|| username.to_owned()).into_iter().collect()
    }
}

/// What a user does who has a password, and writes his messages by hand: whatever that is, every answer
/// can be read, data go to nobody who may not be relayed to, and when all is over nothing is left.
pub(super) fn fuzz_turn(bytes: &[u8]) {
    let now = <Instant>::now();
    let mut stage = Stage::new(now);
    let mut rest = bytes;
    while let Some((&code, more)) = rest.split_first() {
        let (taken, left) = match more.split_first() {
            Some((&length, left)) => left.split_at(usize::from(length).min(left.len())),
            None => (&[][..], &[][..]),
        };
        rest = left;
        stage.step(code, taken);
    }
    stage.now += Duration::from_secs(8_000);
    stage.server.handle_timeout(stage.now);
    stage.drain();
    assert!(stage.server.is_empty() && stage.open.is_empty());
    assert_eq!((stage.relayed.allocations(), stage.relayed.reserved()), (0, 0));
}

struct Stage {
    now: Instant,
    server: Server,
    relayed: Arc<Relayed>,
    nonces: Nonces,
    open: Vec<RelayId>,
    peers: Peers,
    transactions: u8,
}

impl Stage {
    fn new(now: Instant) -> Stage {
        let ip = |text: &str| RelayedIp {
            advertised: text.parse().expect("an address"),
            bound: None,
            ports: 60_000..=60_007,
        };
        let quotas = Quotas { per_user: 5, per_account: 6, per_neuron: 7 };
        let relayed = Arc::new(Relayed::new([ip("192.0.2.1"), ip("2001:db8::1")], quotas));
        let features = Features { password_algorithms: true, username_anonymity: false };
        let nonces = Nonces::new(b"fuzz", features);
        let settings = Settings { realm: REALM.to_owned(), ..Settings::default() };
        let (peers, names) = (Peers::default(), Box::new(Names));
        let server = Server::new(
            0,
            settings,
            relayed.clone(),
            peers.clone(),
            names,
            nonces.clone(),
            [1; 32],
            now,
            1_700_000_000,
        );
        Stage { now, server, relayed, nonces, open: Vec::new(), peers, transactions: 0 }
    }

    /// The low bits of a code say who, the high ones what.
    fn step(&mut self, code: u8, bytes: &[u8]) {
        let address = SocketAddr::from(([198, 51, 100, code & 3], 4_000));
        let is_stream = code & 4 != 0;
        let client = Client { listener: u16::from(is_stream), is_stream, address };
        match code >> 3 {
            0 => self.give(client, bytes),
            1 => {
                let seconds = bytes.first().copied().map_or(1, u64::from);
                self.now += Duration::from_secs(seconds * 4);
                self.server.handle_timeout(self.now);
            }
            2 => self.server.handle_gone(client),
            3 => {
                if let (Some(relay), Some((port, data))) = (self.open.first(), bytes.split_first())
                {
                    let peer = SocketAddr::from(([8, 8, 8, 8], 5_000 + u16::from(*port)));
                    let forward = self.server.handle_peer(self.now, *relay, peer, data);
                    check(&self.peers, &self.relayed, forward);
                }
            }
            4..=7 => {
                let mut data = ChannelData::header(0x4000 | u16::from(code), bytes.len())
                    .expect("it is short")
                    .to_vec();
                data.extend_from_slice(bytes);
                self.give(client, &data);
            }
            kind => {
                let methods = [
                    Method::Allocate,
                    Method::Allocate,
                    Method::Refresh,
                    Method::CreatePermission,
                    Method::ChannelBind,
                    Method::Send,
                    Method::Binding,
                    Method::Connect,
                ];
                let method = methods[usize::from(kind) % methods.len()];
                let message = self.message(client, method, bytes);
                self.give(client, &message);
            }
        }
        self.drain();
    }

    /// A message whose attributes are as the bytes have them: a kind, a length and a value each.
    fn message(&mut self, client: Client, method: Method, bytes: &[u8]) -> Vec<u8> {
        const KINDS: [Kind; 15] = [
            Kind::REQUESTED_TRANSPORT,
            Kind::LIFETIME,
            Kind::XOR_PEER_ADDRESS,
            Kind::CHANNEL_NUMBER,
            Kind::DATA,
            Kind::EVEN_PORT,
            Kind::RESERVATION_TOKEN,
            Kind::REQUESTED_ADDRESS_FAMILY,
            Kind::ADDITIONAL_ADDRESS_FAMILY,
            Kind::DONT_FRAGMENT,
            Kind::PASSWORD_ALGORITHM,
            Kind::PASSWORD_ALGORITHMS,
            Kind::USERHASH,
            Kind(0x7FFF),
            Kind(0xC001),
        ];
        self.transactions = self.transactions.wrapping_add(1);
        let transaction = TransactionId([self.transactions; 12]);
        let class = if method == Method::Send { Class::Indication } else { Class::Request };
        let mut written = Vec::new();
        let mut writer = Writer::new(&mut written, class, method, transaction);
        let mut rest = bytes;
        while let [kind, length, more @ ..] = rest {
            let (value, left) = more.split_at(usize::from(*length).min(more.len()));
            rest = left;
            let kind = KINDS[usize::from(*kind) % KINDS.len()];
            match (kind, value) {
                // Of chance alone few would be addresses.
                (Kind::XOR_PEER_ADDRESS, [a, b, c, d, port, ..]) => {
                    let peer = ([*a, *b, *c, *d], 5_000 + u16::from(*port));
                    writer.address(kind, peer.into());
                }
                (Kind::REQUESTED_TRANSPORT, []) => {
                    writer.attribute(kind, &[17, 0, 0, 0]);
                }
                (kind, value) => {
                    writer.attribute(kind, value);
                }
            }
        }
        if class == Class::Request {
            let nonce = self.nonces.make(1_700_000_000, client.address);
            let (user, realm) = (USER.as_bytes(), REALM.as_bytes());
            let key = Key::long_term(PasswordAlgorithm::Md5, user, realm, user);
            writer
                .attribute(Kind::USERNAME, user)
                .attribute(Kind::REALM, realm)
                .attribute(Kind::NONCE, nonce.as_bytes())
                .integrity(&key, Hash::Sha1);
        }
        written
    }

    fn give(&mut self, client: Client, bytes: &[u8]) {
        let forward = self.server.handle_client(self.now, client, bytes);
        check(&self.peers, &self.relayed, forward);
    }

    fn drain(&mut self) {
        while let Some(output) = self.server.poll_output() {
            match output {
                Output::Reply { bytes, .. } => {
                    let message = Message::read(&bytes).expect("an answer can be read");
                    assert!([Class::Success, Class::Error].contains(&message.class()));
                }
                Output::Admit { asked, username, .. } => {
                    let payer = Payer { account: "elena".into(), user: username };
                    self.server.handle_admission(self.now, asked, Ok(payer));
                }
                Output::Open { relay, port } => {
                    let is_open = port % 4 != 3;
                    if is_open {
                        self.open.push(relay);
                    }
                    self.server.handle_opened(self.now, relay, is_open);
                }
                Output::Close { relay } => {
                    let at = self.open.iter().position(|open| *open == relay);
                    self.open.swap_remove(at.expect("it was opened"));
                }
                Output::Began(_) | Output::Ended { .. } => {}
            }
        }
    }
}

fn check(peers: &Peers, relayed: &Relayed, forward: Forward<'_>) {
    match forward {
        Forward::Nowhere => {}
        Forward::ToPeer { peer, .. } => assert_eq!(peers.look(peer), Ok(())),
        Forward::ToClient { client, head, data, padding } => {
            let bytes = [head.as_slice(), data, &vec![0; padding]].concat();
            assert!(frame_bytes(&bytes).is_ok());
            assert!(!client.is_stream || bytes.len().is_multiple_of(4));
        }
        Forward::ToServer { .. } => panic!("there is no other: {}", relayed.allocations()),
    }
}
