//! UDP sockets whose datagrams are read and sent in batches, for a thread that has thousands of them.
//!
//! A worker has one [`Inbox`] and one [`Outbox`] for all of its [`Socket`]s. A drain is: read what waits at
//! the sockets that are ready, [`Outbox::push`] what is to be sent, with [`Span`]s for bytes that came in and
//! go out as they are, then [`Outbox::flush`] and [`Inbox::clear`]. What came coalesced (UDP_GRO) is handed
//! out datagram by datagram; datagrams to one destination become one message of segments (UDP_SEGMENT),
//! gathered from where their bytes lie. Nothing waits for a timer, and nothing is held after a flush.
//!
//! Not here: who is to be waited for (epoll is the worker's), what the bytes mean, and time. Linux only.
//!
//! ```
//! use udp::{Data, Inbox, Options, Outbox, Outgoing, Socket, SocketId};
//!
//! let socket = Socket::bind_first("127.0.0.1:0".parse().expect("an address"), &Options::default())?;
//! let (mut inbox, mut outbox) = (Inbox::new(32), Outbox::default());
//! # let peer = std::net::UdpSocket::bind("127.0.0.1:0")?;
//! # peer.send_to(b"hello", socket.local_address())?;
//! # while outbox.waiting() == 0 {
//! while !inbox.is_full() && inbox.receive(&socket)? > 0 {
//!     for datagram in inbox.datagrams() {
//!         let (to, data) = (datagram.from, Data::Span(datagram.span));
//!         outbox.push(&Outgoing { head: b"echo ", ..Outgoing::new(SocketId(0), to, data) });
//!     }
//! }
//! # }
//! outbox.flush(&inbox, |SocketId(_)| Some(&socket));
//! inbox.clear();
//! # let mut buffer = [0; 100];
//! # let bytes = peer.recv(&mut buffer)?;
//! # assert_eq!(&buffer[..bytes], b"echo hello");
//! # Ok::<(), std::io::Error>(())
//! ```

mod flows;
mod inbox;
mod outbox;
mod socket;
mod sys;

pub use inbox::{Datagram, Datagrams, Inbox, Received, SLOT_BYTES, SLOTS_MAX, Span};
pub use outbox::{
    COPIED_BYTES_MAX, DATAGRAMS_MAX, Data, HEAD_BYTES_MAX, Outbox, Outgoing, PADDING_BYTES_MAX,
    SEGMENTED_BYTES_MAX, SEGMENTS_MAX, Sent, SocketId,
};
pub use socket::{Options, Socket};
