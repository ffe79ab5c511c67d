//! `turn-server-proto`.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use relay::stun::Method;
use turn_server_proto::api::{Transmit, TurnServerApi, TurnServerPollRet};
use turn_server_proto::server::TurnServer;
use turn_server_proto::types::Instant;
use turn_server_proto::types::stun::TransportType;

use super::{Core, REALM, USER, asked, bound, client, key, peer, proven, udp};

pub(super) struct Theirs {
    server: TurnServer,
    now: Instant,
    listen: SocketAddr,
    relayed: Vec<SocketAddr>,
}

impl Theirs {
    fn take(&mut self, from: SocketAddr, to: SocketAddr, bytes: &[u8]) -> Option<Vec<u8>> {
        let transmit = Transmit { data: bytes, transport: TransportType::Udp, from, to };
        let answer = self.server.recv(transmit, self.now);
        answer.map(|built| built.build().data)
    }

    fn ask(&mut self, session: usize, bytes: &[u8]) -> Vec<u8> {
        let mut replies: VecDeque<Vec<u8>> =
            self.take(client(session), self.listen, bytes).into_iter().collect();
        while let TurnServerPollRet::AllocateSocket {
            transport,
            listen_addr,
            client_addr,
            allocation_transport,
            family,
        } = self.server.poll(self.now)
        {
            let port = 20_000 + session as u16;
            let relayed: SocketAddr = ([192, 0, 2, 1], port).into();
            self.relayed.push(relayed);
            self.server.allocated_socket(
                transport,
                listen_addr,
                client_addr,
                allocation_transport,
                family,
                Ok(relayed),
                self.now,
            );
        }
        while let Some(transmit) = self.server.poll_transmit(self.now) {
            replies.push_back(transmit.data);
        }
        replies.pop_front().unwrap_or_default()
    }
}

impl Core for Theirs {
    fn new(sessions: usize) -> Theirs {
        let listen = SocketAddr::from(([192, 0, 2, 9], 3_478));
        let mut server = TurnServer::new(TransportType::Udp, listen, REALM.to_owned());
        server.add_user(USER.to_owned(), USER.to_owned());
        server.set_nonce_expiry_duration(Duration::from_secs(3_600));
        let now = Instant::from_nanos(1_000_000_000);
        let mut theirs = Theirs { server, now, listen, relayed: Vec::new() };
        let key = key();
        for session in 0..sessions {
            let refusal = theirs.ask(session, &asked(Method::Allocate));
            theirs.ask(session, &proven(&refusal, &key, Method::Allocate, udp));
            let refusal = theirs.ask(session, &asked(Method::ChannelBind));
            let request =
                proven(&refusal, &key, Method::ChannelBind, |writer| bound(writer, session));
            theirs.ask(session, &request);
        }
        assert_eq!(theirs.relayed.len(), sessions);
        theirs
    }

    fn up(&mut self, session: usize, bytes: &[u8]) -> bool {
        self.take(client(session), self.listen, bytes).is_some()
    }

    fn down(&mut self, session: usize, bytes: &[u8]) -> bool {
        let relayed = self.relayed[session];
        self.take(peer(session), relayed, bytes).is_some()
    }
}
