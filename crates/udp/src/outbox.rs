//! Datagrams that are to go out: queued while a worker drains its sockets, and sent by as few system calls
//! as can be when it is done.
//!
//! [`Queue`] puts datagrams into messages as they come, [`Pass`] sends the messages of one socket and decides
//! what becomes of those that are refused.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd as _;

use crate::flows::Flows;
use crate::inbox::{SKIPPED_MAX, is_of_icmp};
use crate::sys::{Batch, Gather, MESSAGES_MAX};
use crate::{Inbox, Socket, Span};

/// Datagrams that wait for a flush.
pub const DATAGRAMS_MAX: usize = 65_536;
/// Bytes that are copied and wait for a flush: heads, and data that is in no inbox.
pub const COPIED_BYTES_MAX: usize = 16 << 20;
/// Bytes that may be put before the data of a datagram.
pub const HEAD_BYTES_MAX: usize = 48;
/// Zeros that may be put behind it.
pub const PADDING_BYTES_MAX: u8 = 3;
/// Datagrams that one message may be cut into (UDP_MAX_SEGMENTS of the kernel when it began).
pub const SEGMENTS_MAX: usize = 64;
/// Bytes of a message of several datagrams, below what fits into an IP packet with any options.
pub const SEGMENTED_BYTES_MAX: usize = 65_000;
/// No datagram is longer than its head can say (RFC 768).
const DATAGRAM_BYTES_MAX: usize = 65_535;
/// Ends a list of datagrams.
const NONE: u32 = u32::MAX;
const ZEROS: [u8; PADDING_BYTES_MAX as usize] = [0; PADDING_BYTES_MAX as usize];

// A head, data and padding each.
const _: () = assert!(3 * SEGMENTS_MAX <= MESSAGES_MAX);

/// What a worker calls a socket of its own, such as its place in a table.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct SocketId(pub u32);

/// The bytes of a datagram.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Data<'a> {
    /// Copied when they are pushed.
    Copied(&'a [u8]),
    /// Sent from the inbox as it is when they are flushed.
    Span(Span),
}

/// A datagram to be sent.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Outgoing<'a> {
    pub socket: SocketId,
    pub to: SocketAddr,
    /// Bytes before the data, at most [`HEAD_BYTES_MAX`], which are copied.
    pub head: &'a [u8],
    pub data: Data<'a>,
    /// Zeros behind the data, at most [`PADDING_BYTES_MAX`].
    pub padding: u8,
    /// Whether routers have to drop it rather than to cut it up (RFC 8656 §12.6).
    pub dont_fragment: bool,
}

impl<'a> Outgoing<'a> {
    /// Data alone.
    pub fn new(socket: SocketId, to: SocketAddr, data: Data<'a>) -> Outgoing<'a> {
        Outgoing { socket, to, head: &[], data, padding: 0, dont_fragment: false }
    }
}

/// What an outbox has counted. Each datagram that was pushed is in one of `datagrams` and `dropped_…` after
/// a flush.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Sent {
    /// Those that the kernel has taken.
    pub datagrams: u64,
    /// Of these.
    pub bytes: u64,
    /// As they were handed to the kernel: of one datagram, or of several.
    pub messages: u64,
    /// System calls that sent them, or tried.
    pub calls: u64,
    /// Datagrams for a socket whose buffer was full.
    pub dropped_full: u64,
    /// Datagrams that the kernel would not send, or that were for a socket that is gone.
    pub dropped_error: u64,
    /// Datagrams past [`DATAGRAMS_MAX`] or [`COPIED_BYTES_MAX`].
    pub dropped_bound: u64,
}

/// What waits to be sent, for all sockets of a worker. Its memory is kept for the next time.
#[derive(Debug)]
pub struct Outbox {
    queue: Queue,
    /// Messages of a socket.
    whole: Lane,
    /// The datagrams of one message that was refused.
    parts: Lane,
    sent: Sent,
}

impl Default for Outbox {
    fn default() -> Outbox {
        let queue = Queue {
            datagrams: Vec::new(),
            messages: Vec::new(),
            copied: Vec::new(),
            flows: Flows::new(),
            latest: 0,
            order: Vec::new(),
        };
        Outbox { queue, whole: Lane::default(), parts: Lane::default(), sent: Sent::default() }
    }
}

impl Outbox {
    /// Queues a datagram. Those of one socket to one destination are sent in the order in which they were
    /// pushed. One that has no room, or is longer than any datagram, is dropped and counted.
    ///
    /// # Panics
    /// When the head or the padding is longer than it may be.
    pub fn push(&mut self, outgoing: &Outgoing<'_>) {
        assert!(outgoing.head.len() <= HEAD_BYTES_MAX, "a head of {}", outgoing.head.len());
        assert!(outgoing.padding <= PADDING_BYTES_MAX, "{} bytes of padding", outgoing.padding);
        let (data_bytes, copied_bytes) = match outgoing.data {
            Data::Copied(data) => (data.len(), data.len()),
            Data::Span(span) => (span.length(), 0),
        };
        let around_bytes = outgoing.head.len() + usize::from(outgoing.padding);
        let copied_bytes = self.queue.copied.len() + copied_bytes + around_bytes;
        if around_bytes + data_bytes > DATAGRAM_BYTES_MAX {
            self.sent.dropped_error += 1;
        } else if self.waiting() == DATAGRAMS_MAX || copied_bytes > COPIED_BYTES_MAX {
            self.sent.dropped_bound += 1;
        } else {
            self.queue.push(outgoing);
        }
    }

    /// Datagrams that wait for a flush.
    pub fn waiting(&self) -> usize {
        self.queue.datagrams.len()
    }

    /// Sends all that waits, as far as it goes without waiting, and forgets the rest. `inbox` is the one that
    /// the spans name, not cleared since; `find` is asked once for each socket that something is for, and
    /// answers `None` for one that is gone.
    ///
    /// # Panics
    /// When a span names nothing in the inbox.
    pub fn flush<'s>(&mut self, inbox: &Inbox, find: impl FnMut(SocketId) -> Option<&'s Socket>) {
        self.flush_by(inbox, find, |socket, gather, first| gather.send(socket.as_fd(), first));
    }

    pub fn sent(&self) -> &Sent {
        &self.sent
    }

    /// `send` makes the system call: tests have it refused.
    fn flush_by<'s, S>(
        &mut self,
        inbox: &Inbox,
        mut find: impl FnMut(SocketId) -> Option<&'s Socket>,
        mut send: S,
    ) where
        S: FnMut(&Socket, &mut Gather<'_, '_>, usize) -> io::Result<usize>,
    {
        self.queue.sort();
        let Outbox { queue, whole, parts, sent } = self;
        let socket_of = |message: &u32| queue.messages[*message as usize].socket;
        for messages in queue.order.chunk_by(|a, b| socket_of(a) == socket_of(b)) {
            match find(socket_of(&messages[0])) {
                Some(socket) => {
                    let send = &mut send;
                    Pass { queue, inbox, socket, sent, send }.send_all(messages, whole, parts);
                }
                None => sent.dropped_error += queue.datagrams_in(messages),
            }
        }
        self.queue.clear();
    }
}

/// Datagrams, and the messages that they make.
#[derive(Debug)]
struct Queue {
    datagrams: Vec<Queued>,
    messages: Vec<Message>,
    /// Heads, and data that is in no inbox.
    copied: Vec<u8>,
    /// By socket and destination, the number of its last message, from 1.
    flows: Flows,
    /// The message that was put into last; of its flow, there is none behind it.
    latest: u32,
    /// Messages by socket, those of one in the order in which they began.
    order: Vec<u32>,
}

#[derive(Clone, Copy, Debug)]
struct Queued {
    /// Where its head is in what was copied, and behind it its data, if that is no span, and padding.
    copied: u32,
    copied_bytes: u32,
    /// Data, and the padding behind it.
    span: Option<(Span, u8)>,
    bytes: u32,
    /// The next one in its message.
    next: u32,
}

/// Datagrams of one socket to one destination, all of one length but for the last.
#[derive(Clone, Copy, Debug)]
struct Message {
    socket: SocketId,
    to: SocketAddr,
    dont_fragment: bool,
    /// Of the first datagram.
    segment_bytes: usize,
    bytes: usize,
    datagrams: u32,
    first: u32,
    last: u32,
}

impl Queue {
    fn push(&mut self, outgoing: &Outgoing<'_>) {
        let Outgoing { head, data, padding, .. } = *outgoing;
        let copied = self.copied.len();
        self.copied.extend_from_slice(head);
        let (span, data_bytes) = match data {
            Data::Span(span) => (Some((span, padding)), span.length() + usize::from(padding)),
            Data::Copied(data) => {
                self.copied.extend_from_slice(data);
                self.copied.extend_from_slice(&ZEROS[..padding.into()]);
                (None, 0)
            }
        };
        let copied_bytes = self.copied.len() - copied;
        let bytes = copied_bytes + data_bytes;
        let index = self.datagrams.len() as u32;
        // All numbers are bounded by `DATAGRAMS_MAX`, `COPIED_BYTES_MAX` and `DATAGRAM_BYTES_MAX`.
        self.datagrams.push(Queued {
            copied: copied as u32,
            copied_bytes: copied_bytes as u32,
            span,
            bytes: bytes as u32,
            next: NONE,
        });
        self.put(index, bytes, outgoing);
    }

    /// Puts a datagram into the last message of its flow, or a new one.
    fn put(&mut self, datagram: u32, bytes: usize, outgoing: &Outgoing<'_>) {
        let Outgoing { socket, to, dont_fragment, .. } = *outgoing;
        let Queue { datagrams, messages, flows, latest, .. } = self;
        let is_of = |message: &Message| message.socket == socket && message.to == to;
        let takes = |message: &Message| message.takes(bytes, dont_fragment);
        let mut follow = |message: &mut Message| {
            datagrams[message.last as usize].next = datagram;
            message.last = datagram;
            message.datagrams += 1;
            message.bytes += bytes;
        };
        // Bursts need no table.
        let message = messages.get_mut(*latest as usize);
        if let Some(message) = message.filter(|message| is_of(message) && takes(message)) {
            follow(message);
            return;
        }
        let last = flows.message(socket, to, |number| is_of(&messages[number as usize - 1]));
        *latest = last.wrapping_sub(1);
        let message = messages.get_mut(*latest as usize);
        if let Some(message) = message.filter(|message| takes(message)) {
            follow(message);
            return;
        }
        messages.push(Message {
            socket,
            to,
            dont_fragment,
            segment_bytes: bytes,
            bytes,
            datagrams: 1,
            first: datagram,
            last: datagram,
        });
        *latest = messages.len() as u32 - 1;
        *last = messages.len() as u32;
    }

    fn sort(&mut self) {
        let Queue { messages, order, .. } = self;
        order.extend(0..messages.len() as u32);
        order.sort_unstable_by_key(|index| (messages[*index as usize].socket, *index));
    }

    fn clear(&mut self) {
        self.datagrams.clear();
        self.messages.clear();
        self.copied.clear();
        self.flows.clear();
        self.order.clear();
    }

    fn message(&self, index: u32) -> &Message {
        &self.messages[index as usize]
    }

    fn datagrams_in(&self, messages: &[u32]) -> u64 {
        messages.iter().map(|index| u64::from(self.message(*index).datagrams)).sum()
    }
}

impl Message {
    /// Whether a datagram may follow: while all are of one length, and it is no longer. An empty one would
    /// be no segment at all.
    fn takes(&self, bytes: usize, dont_fragment: bool) -> bool {
        let is_whole = self.bytes == self.datagrams as usize * self.segment_bytes;
        is_whole
            && (1..=self.segment_bytes).contains(&bytes)
            && self.bytes + bytes <= SEGMENTED_BYTES_MAX
            && (self.datagrams as usize) < SEGMENTS_MAX
            && self.dont_fragment == dont_fragment
    }
}

/// What is handed to the kernel at once.
#[derive(Debug, Default)]
struct Lane {
    batch: Batch,
    parcels: Vec<Parcel>,
}

/// One message for the kernel: all datagrams of a [`Message`], or one.
#[derive(Clone, Copy, Debug)]
struct Parcel {
    message: u32,
    /// Its place among the messages of the socket that are not over.
    place: usize,
    first: u32,
    datagrams: u32,
    bytes: usize,
}

/// How far a lane went.
enum End {
    /// All of it was sent or dropped.
    Over,
    /// The socket takes no more: this parcel and all behind it are left.
    Full(usize),
    /// The socket takes no segments any more: this place and all behind it are left.
    Unsegmented(usize),
}

/// Sends what is for one socket.
struct Pass<'a, S> {
    queue: &'a Queue,
    inbox: &'a Inbox,
    socket: &'a Socket,
    sent: &'a mut Sent,
    send: &'a mut S,
}

impl<'a, S> Pass<'a, S>
where
    S: FnMut(&Socket, &mut Gather<'_, '_>, usize) -> io::Result<usize>,
{
    fn send_all(&mut self, messages: &[u32], whole: &mut Lane, parts: &mut Lane) {
        let mut left = messages;
        while let Some(first) = left.first() {
            let dont_fragment = self.queue.message(*first).dont_fragment;
            let taken = self.fill(whole, left, dont_fragment);
            if self.socket.set_dont_fragment(dont_fragment).is_err() {
                self.sent.dropped_error += self.queue.datagrams_in(&left[..taken]);
                left = &left[taken..];
                continue;
            }
            left = match self.deliver(whole, Some(parts)) {
                End::Over => &left[taken..],
                End::Unsegmented(place) => &left[place..],
                End::Full(at) => {
                    let here = whole.parcels[at..].iter().map(|parcel| u64::from(parcel.datagrams));
                    self.sent.dropped_full +=
                        here.sum::<u64>() + self.queue.datagrams_in(&left[taken..]);
                    return;
                }
            };
        }
    }

    /// Fills a lane with messages that want the same of fragments, until it is as long as one call takes;
    /// answers how many are in it.
    fn fill(&self, lane: &mut Lane, messages: &[u32], dont_fragment: bool) -> usize {
        lane.parcels.clear();
        let is_segmenting = self.socket.is_segmenting();
        for (place, index) in messages.iter().enumerate() {
            let message = self.queue.message(*index);
            let Message { first, datagrams, bytes, .. } = *message;
            let parcels = if is_segmenting { 1 } else { datagrams as usize };
            if message.dont_fragment != dont_fragment || lane.parcels.len() + parcels > MESSAGES_MAX
            {
                return place;
            }
            if is_segmenting {
                lane.parcels.push(Parcel { message: *index, place, first, datagrams, bytes });
            } else {
                self.split(lane, *index, place);
            }
        }
        messages.len()
    }

    /// Puts the datagrams of a message into a lane, one by one.
    fn split(&self, lane: &mut Lane, message: u32, place: usize) {
        let mut next = self.queue.message(message).first;
        while let Some(datagram) = self.queue.datagrams.get(next as usize) {
            let bytes = datagram.bytes as usize;
            lane.parcels.push(Parcel { message, place, first: next, datagrams: 1, bytes });
            next = datagram.next;
        }
    }

    /// Sends a lane. `parts` is for messages whose segments are refused; without it, there are none.
    fn deliver(&mut self, lane: &mut Lane, mut parts: Option<&mut Lane>) -> End {
        let Lane { batch, parcels } = lane;
        let mut gather = self.gather(batch, parcels);
        let mut at = 0;
        // Errors of the parcel to be sent that may be of one sent before.
        let mut skipped = 0;
        while let Some(parcel) = parcels.get(at) {
            self.sent.calls += 1;
            let error = match (self.send)(self.socket, &mut gather, at) {
                Ok(0) => return End::Full(at),
                Ok(messages) => {
                    for parcel in &parcels[at..at + messages] {
                        self.sent.messages += 1;
                        self.sent.datagrams += u64::from(parcel.datagrams);
                        self.sent.bytes += parcel.bytes as u64;
                    }
                    at += messages;
                    skipped = 0;
                    continue;
                }
                Err(error) => error,
            };
            let code = error.raw_os_error().unwrap_or(libc::EIO);
            match code {
                libc::EINTR => continue,
                libc::EAGAIN | libc::ENOBUFS => return End::Full(at),
                code if skipped < earlier_errors_max(code) => {
                    skipped += 1;
                    continue;
                }
                libc::EIO | libc::ENOPROTOOPT | libc::EOPNOTSUPP if parcel.datagrams > 1 => {
                    self.socket.stop_segmenting();
                    return End::Unsegmented(parcel.place);
                }
                libc::EINVAL | libc::EMSGSIZE if parcel.datagrams > 1 => {
                    if let Some(parts) = parts.as_deref_mut() {
                        parts.parcels.clear();
                        self.split(parts, parcel.message, parcel.place);
                        if let End::Full(part) = self.deliver(parts, None) {
                            self.sent.dropped_full += (parts.parcels.len() - part) as u64;
                            return End::Full(at + 1);
                        }
                    }
                }
                _ => self.sent.dropped_error += u64::from(parcel.datagrams),
            }
            at += 1;
            skipped = 0;
        }
        End::Over
    }

    fn gather<'b>(&self, batch: &'b mut Batch, parcels: &[Parcel]) -> Gather<'b, 'a> {
        let Pass { queue, inbox, .. } = *self;
        let mut gather = Gather::new(batch);
        for parcel in parcels {
            let message = queue.message(parcel.message);
            // Below 2¹⁶ as any datagram.
            let segment_bytes = (parcel.datagrams > 1).then_some(message.segment_bytes as u16);
            gather.message(message.to, segment_bytes);
            let mut next = parcel.first;
            for _ in 0..parcel.datagrams {
                let datagram = &queue.datagrams[next as usize];
                let copied = datagram.copied as usize;
                gather.slice(&queue.copied[copied..copied + datagram.copied_bytes as usize]);
                if let Some((span, padding)) = datagram.span {
                    gather.slice(inbox.bytes(span));
                    gather.slice(&ZEROS[..padding.into()]);
                }
                next = datagram.next;
            }
        }
        gather
    }
}

/// How often an error may be of a datagram that was sent before, to somebody else, and is told once.
fn earlier_errors_max(code: i32) -> usize {
    match code {
        // No datagram is refused before it is sent.
        libc::ECONNREFUSED => SKIPPED_MAX,
        // Nearly always the datagram's own.
        libc::EMSGSIZE => 0,
        _ => usize::from(is_of_icmp(code)),
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::time::Duration;

    use super::*;
    use crate::Options;

    /// Two sockets, two peers and an outbox, whose system calls may be refused.
    struct Bench {
        sockets: [Socket; 2],
        peers: [UdpSocket; 2],
        inbox: Inbox,
        outbox: Outbox,
    }

    impl Bench {
        fn new() -> Bench {
            let address: SocketAddr = "127.0.0.1:0".parse().unwrap();
            let sockets = [(); 2].map(|()| Socket::bind(address, &Options::default()).unwrap());
            let peers = [(); 2].map(|()| {
                let peer = UdpSocket::bind(address).unwrap();
                peer.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
                peer
            });
            Bench { sockets, peers, inbox: Inbox::new(1), outbox: Outbox::default() }
        }

        /// Queues datagrams of four bytes from one socket to one peer.
        fn push(&mut self, socket: u32, peer: usize, numbers: std::ops::Range<u32>) {
            let to = self.peers[peer].local_addr().unwrap();
            for number in numbers {
                let bytes = number.to_be_bytes();
                self.outbox.push(&Outgoing::new(SocketId(socket), to, Data::Copied(&bytes)));
            }
        }

        /// `refused` are errors of the first system calls, 0 for one that is made.
        fn flush(&mut self, refused: &[i32]) -> Sent {
            let before = self.outbox.sent;
            let mut refused = refused.iter();
            let Bench { sockets, inbox, outbox, .. } = self;
            outbox.flush_by(
                inbox,
                |id| sockets.get(id.0 as usize),
                |socket, gather, first| match refused.next() {
                    None | Some(0) => gather.send(socket.as_fd(), first),
                    Some(code) => Err(io::Error::from_raw_os_error(*code)),
                },
            );
            assert_eq!(refused.next(), None, "all errors were met");
            assert_eq!(outbox.waiting(), 0);
            let sent = outbox.sent;
            Sent {
                datagrams: sent.datagrams - before.datagrams,
                bytes: sent.bytes - before.bytes,
                messages: sent.messages - before.messages,
                calls: sent.calls - before.calls,
                dropped_full: sent.dropped_full - before.dropped_full,
                dropped_error: sent.dropped_error - before.dropped_error,
                dropped_bound: sent.dropped_bound - before.dropped_bound,
            }
        }

        fn arrive(&self, peer: usize, numbers: std::ops::Range<u32>) {
            for number in numbers {
                let mut bytes = [0; 8];
                assert_eq!(self.peers[peer].recv(&mut bytes).unwrap(), 4);
                assert_eq!(bytes[..4], number.to_be_bytes());
            }
        }
    }

    #[test]
    fn segments_that_are_refused_for_good_are_not_tried_again() {
        for code in [libc::EIO, libc::ENOPROTOOPT, libc::EOPNOTSUPP] {
            let mut bench = Bench::new();
            bench.push(0, 0, 0..10);
            bench.push(0, 1, 10..20);
            bench.push(1, 0, 20..30);
            // What ICMP may have left is taken for the message's own when it comes again.
            let refused = if code == libc::EIO { &[code][..] } else { &[code, code] };
            let sent = bench.flush(refused);
            assert_eq!((sent.datagrams, sent.messages), (30, 21), "of one socket only");
            bench.push(0, 0, 30..40);
            assert_eq!(bench.flush(&[]).messages, 10);
            bench.arrive(0, 0..10);
            bench.arrive(1, 10..20);
            bench.arrive(0, 20..40);
            assert!(!bench.sockets[0].is_segmenting() && bench.sockets[1].is_segmenting());
        }
        // What went before the refusal is not sent again.
        let mut bench = Bench::new();
        bench.push(0, 0, 0..10);
        bench.push(0, 1, 10..20);
        let sent = bench.flush(&[libc::EINVAL, 0, libc::EIO]);
        assert_eq!((sent.datagrams, sent.messages), (20, 20));
        bench.arrive(0, 0..10);
        bench.arrive(1, 10..20);
    }

    #[test]
    fn fragments_are_forbidden_to_those_that_want_it_alone() {
        let Bench { sockets, peers, inbox, mut outbox } = Bench::new();
        let socket = &sockets[0];
        let (level, name) = (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER);
        let now = || crate::sys::option(socket.as_fd(), level, name).unwrap();
        let otherwise = now();
        for (peer, dont_fragment) in [(0, false), (1, true), (0, true), (1, true), (1, false)] {
            let to = peers[peer].local_addr().unwrap();
            let plain = Outgoing::new(SocketId(0), to, Data::Copied(b"x"));
            outbox.push(&Outgoing { dont_fragment, ..plain });
        }
        let mut calls = Vec::new();
        outbox.flush_by(
            &inbox,
            |_| Some(socket),
            |socket, gather, first| {
                let sent = gather.send(socket.as_fd(), first)?;
                calls.push((now(), sent));
                Ok(sent)
            },
        );
        let always = libc::IP_PMTUDISC_DO;
        assert_eq!(calls, [(otherwise, 1), (always, 2), (otherwise, 1)]);
    }

    #[test]
    fn one_message_that_is_refused_goes_in_parts() {
        for code in [libc::EINVAL, libc::EMSGSIZE] {
            let mut bench = Bench::new();
            bench.push(0, 0, 0..10);
            bench.push(0, 1, 10..20);
            let sent = bench.flush(&[code]);
            assert_eq!((sent.datagrams, sent.messages, sent.calls), (20, 11, 3));
            bench.push(0, 0, 20..30);
            assert_eq!(bench.flush(&[]).messages, 1);
            bench.arrive(0, 0..10);
            bench.arrive(1, 10..20);
            bench.arrive(0, 20..30);
            // One that is too long by itself.
            bench.push(0, 0, 0..1);
            bench.push(0, 1, 30..40);
            let sent = bench.flush(&[code]);
            assert_eq!((sent.datagrams, sent.dropped_error), (10, 1));
            bench.arrive(1, 30..40);
        }
    }

    #[test]
    fn a_full_buffer_drops_what_is_left_for_its_socket_alone() {
        for code in [libc::EAGAIN, libc::ENOBUFS] {
            let mut bench = Bench::new();
            bench.push(0, 0, 0..10);
            bench.push(1, 1, 10..20);
            let sent = bench.flush(&[code]);
            assert_eq!((sent.datagrams, sent.dropped_full, sent.dropped_error), (10, 10, 0));
            bench.arrive(1, 10..20);
            // After one message went in parts, and then within one that does.
            for (refused, gone) in [(&[libc::EINVAL, 0, code][..], 10), (&[libc::EINVAL, code], 0)]
            {
                bench.push(0, 0, 0..10);
                bench.push(0, 1, 20..30);
                let sent = bench.flush(refused);
                assert_eq!((sent.datagrams, sent.dropped_full), (gone, 20 - gone));
                bench.arrive(0, 0..gone as u32);
            }
            bench.push(0, 0, 40..50);
            bench.push(0, 1, 50..60);
            bench.flush(&[]);
            bench.arrive(0, 40..50);
            bench.arrive(1, 50..60);
        }
    }

    #[test]
    fn other_errors_drop_one_and_go_on() {
        let mut bench = Bench::new();
        bench.push(0, 0, 0..10);
        bench.push(0, 1, 10..20);
        let sent = bench.flush(&[libc::EINTR, libc::EPERM]);
        assert_eq!((sent.datagrams, sent.dropped_error), (10, 10));
        bench.arrive(1, 10..20);
        for code in [libc::ECONNREFUSED, libc::EHOSTUNREACH, libc::ENOPROTOOPT] {
            bench.push(0, 0, 0..10);
            bench.push(0, 1, 10..20);
            let sent = bench.flush(&[code]);
            assert_eq!((sent.datagrams, sent.dropped_error, sent.messages), (20, 0, 2));
            bench.arrive(0, 0..10);
            bench.arrive(1, 10..20);
        }
        bench.push(0, 0, 0..10);
        bench.push(0, 1, 10..20);
        let sent = bench.flush(&[libc::ENETUNREACH, libc::ENETUNREACH]);
        assert_eq!((sent.datagrams, sent.dropped_error), (10, 10), "no way there");
        bench.arrive(1, 10..20);
    }
}
