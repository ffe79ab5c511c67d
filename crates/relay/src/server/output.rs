//! What a server wants done, and how a packet goes on.

use std::net::SocketAddr;
use std::sync::Arc;

use super::relayed::{Payer, RelayId};
use crate::framing::CHANNEL_HEADER_BYTES;
use crate::stun::{INDICATION_HEAD_BYTES_MAX, TransactionId, data_indication_head};

/// Where a client is: what it sent came by this listener, from this address.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Client {
    /// Which of the neuron's listeners: its address and transport.
    pub listener: u16,
    /// TCP or TLS: ChannelData is padded there (RFC 8656 §12.5), and nobody's address is spoofed.
    pub is_stream: bool,
    pub address: SocketAddr,
}

/// Which allocation is being asked about.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Asked {
    pub(super) slot: u32,
    pub(super) generation: u32,
}

/// What is to be done, in order.
#[derive(Debug)]
pub enum Output {
    /// Bytes for a client.
    Reply {
        client: Client,
        bytes: Vec<u8>,
    },
    /// Somebody has proven to be a user, and asks for an allocation: whether he may, and for whom it
    /// counts, is answered by [`super::Server::handle_admission`].
    Admit {
        asked: Asked,
        username: Arc<str>,
        client: Client,
    },
    /// A socket of a relayed address is to be opened; answered by [`super::Server::handle_opened`].
    Open {
        relay: RelayId,
        port: u16,
    },
    /// It is not needed any more. Its port may be taken at once by another server of the neuron, which
    /// tries another while it is not closed: no socket of a relayed address shares its port.
    Close {
        relay: RelayId,
    },
    Began(Session),
    Ended {
        session: Session,
        why: Why,
    },
}

/// Why an allocation is over.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Why {
    /// Nobody refreshed it.
    Expired,
    /// Its client ended it, or its stream.
    Left,
    /// It was ended from outside: revoked, kicked, drained.
    Ended,
}

/// One allocation as others see it, from when it was asked for.
#[derive(Clone, Debug)]
pub struct Session {
    pub asked: Asked,
    pub client: Client,
    pub username: Arc<str>,
    /// For whom it counts, once it was admitted.
    pub payer: Option<Payer>,
    /// What clients were or will be told, IPv4 first.
    pub relayed: [Option<SocketAddr>; 2],
    /// From the client to its peers, and back.
    pub sent: Traffic,
    pub received: Traffic,
}

/// What was relayed.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Traffic {
    pub packets: u64,
    /// Of their data, without what TURN puts around it.
    pub bytes: u64,
}

impl Traffic {
    pub(crate) fn add(&mut self, bytes: usize) {
        self.packets += 1;
        self.bytes += bytes as u64;
    }
}

/// How the data of one packet goes on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Forward<'a> {
    /// Not at all: it was a request, or is dropped.
    Nowhere,
    ToPeer {
        relay: RelayId,
        peer: SocketAddr,
        data: &'a [u8],
        /// Not to be sent in fragments.
        dont_fragment: bool,
    },
    /// Behind `head` come the data, and then so many zeros.
    ToClient { client: Client, head: Head, data: &'a [u8], padding: usize },
    /// To a relayed address of another server of this neuron, for its [`super::Server::handle_peer`].
    ToServer { relay: RelayId, from: SocketAddr, data: &'a [u8] },
}

/// What stands before data on its way to a client.
#[derive(Clone, Copy, Eq, PartialEq)]
pub struct Head {
    bytes: [u8; INDICATION_HEAD_BYTES_MAX],
    length: u8,
}

impl Head {
    pub(super) fn of_channel(header: [u8; CHANNEL_HEADER_BYTES]) -> Head {
        let mut bytes = [0; INDICATION_HEAD_BYTES_MAX];
        bytes[..header.len()].copy_from_slice(&header);
        Head { bytes, length: header.len() as u8 }
    }

    pub(super) fn of_indication(
        transaction: TransactionId,
        peer: SocketAddr,
        data_bytes: usize,
    ) -> Head {
        let (bytes, length) = data_indication_head(transaction, peer, data_bytes);
        Head { bytes, length: length as u8 }
    }

    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }
}

impl std::fmt::Debug for Head {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Head").field(&self.as_slice()).finish()
    }
}
