//! Ours.

use std::sync::Arc;
use std::time::Instant;

use relay::nonce::{Features, Nonces};
use relay::peers::Peers;
use relay::server::{
    Client, Forward, Output, Passwords, Payer, Quotas, RelayId, Relayed, RelayedIp, Server,
    Settings,
};
use relay::stun::{Key, Method};

use super::{Core, REALM, USER, asked, bound, client, key, peer, proven, udp};

struct Names;

impl Passwords for Names {
    fn of(&self, _: u64, username: &str) -> Vec<String> {
        vec![username.to_owned()]
    }
}

pub(super) struct Ours {
    server: Server,
    now: Instant,
    relays: Vec<RelayId>,
    /// Of the last reply.
    reply: Vec<u8>,
    /// The socket that was opened last.
    opened: Option<RelayId>,
}

impl Ours {
    fn empty() -> Ours {
        let now = Instant::now();
        // As they are by default, but for the rate that no session is to reach.
        let settings = Settings {
            realm: REALM.to_owned(),
            packets_per_second: 0,
            bytes_per_second: 0,
            ..Settings::default()
        };
        let ip =
            RelayedIp { advertised: [192, 0, 2, 1].into(), bound: None, ports: 49_152..=65_535 };
        let most = usize::MAX;
        let quotas = Quotas { per_user: most, per_account: most, per_neuron: most };
        let relayed = Arc::new(Relayed::new([ip], quotas));
        let nonces = Nonces::new(b"bench", Features::default());
        let (peers, names) = (Peers::default(), Box::new(Names));
        let server =
            Server::new(0, settings, relayed, peers, names, nonces, [1; 32], now, 1_700_000_000);
        Ours { server, now, relays: Vec::new(), reply: Vec::new(), opened: None }
    }

    fn ask(&mut self, session: usize, bytes: &[u8]) {
        let client = at(session);
        let forward = self.server.handle_client(self.now, client, bytes);
        assert_eq!(forward, Forward::Nowhere);
        while let Some(output) = self.server.poll_output() {
            match output {
                Output::Reply { bytes, .. } => self.reply = bytes,
                Output::Admit { asked, username, .. } => {
                    let payer = Payer { account: "elena".into(), user: username };
                    self.server.handle_admission(self.now, asked, Ok(payer));
                }
                Output::Open { relay, .. } => {
                    self.opened = Some(relay);
                    self.server.handle_opened(self.now, relay, true);
                }
                _ => {}
            }
        }
    }

    fn allocate(&mut self, session: usize, key: &Key) {
        self.ask(session, &asked(Method::Allocate));
        let request = proven(&self.reply, key, Method::Allocate, udp);
        self.ask(session, &request);
        self.relays.extend(self.opened.take());
        assert_eq!(self.relays.len(), session + 1, "of {USER}");
    }
}

fn at(session: usize) -> Client {
    Client { listener: 0, is_stream: false, address: client(session) }
}

impl Core for Ours {
    fn new(sessions: usize) -> Ours {
        let (mut ours, key) = (Ours::empty(), key());
        for session in 0..sessions {
            ours.allocate(session, &key);
            ours.ask(session, &asked(Method::ChannelBind));
            let request =
                proven(&ours.reply, &key, Method::ChannelBind, |writer| bound(writer, session));
            ours.ask(session, &request);
        }
        ours
    }

    fn up(&mut self, session: usize, bytes: &[u8]) -> bool {
        let forward = self.server.handle_client(self.now, at(session), bytes);
        matches!(forward, Forward::ToPeer { .. })
    }

    fn down(&mut self, session: usize, bytes: &[u8]) -> bool {
        let relay = self.relays[session];
        let forward = self.server.handle_peer(self.now, relay, peer(session), bytes);
        matches!(forward, Forward::ToClient { .. })
    }
}

/// How many allocations are made a second, each with the refusal before it, from as many addresses, the
/// clients' own proofs included; and what memory each takes of the heap.
pub(super) fn allocations(count: usize) -> (f64, f64) {
    let key = key();
    let mut ours = Ours::empty();
    ours.relays.reserve(count);
    let mut seconds = 0.0;
    let held = allocation_counter::measure(|| {
        let begun = Instant::now();
        for session in 0..count {
            ours.allocate(session, &key);
        }
        seconds = begun.elapsed().as_secs_f64();
    });
    assert_eq!(ours.server.len(), count);
    (count as f64 / seconds, held.bytes_current as f64 / count as f64)
}
