//! Datagrams that came in: read by one recvmmsg from a socket, taken apart where the kernel had coalesced
//! them, and kept where they are until all that a worker does with them is sent.

use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::os::fd::AsFd as _;

use crate::Socket;
use crate::sys::{Arrived, Slots};

/// Bytes of a slot that takes whatever the kernel may hand over, coalesced or not.
pub const SLOT_BYTES: usize = 65_535;
/// Slots that an inbox may have.
pub const SLOTS_MAX: usize = 4_096;
/// Errors that ICMP left at a socket which are skipped at a time, before one is taken for the call's own.
pub(crate) const SKIPPED_MAX: usize = 64;

/// The name of bytes in an inbox, until that is cleared.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Span {
    generation: u16,
    slot: u16,
    offset: u16,
    length: u16,
}

impl Span {
    /// Some of its bytes; `None` if it has fewer.
    pub fn part(self, range: Range<usize>) -> Option<Span> {
        if range.start > range.end || range.end > self.length() {
            return None;
        }
        let offset = self.offset + u16::try_from(range.start).ok()?;
        let length = u16::try_from(range.len()).ok()?;
        Some(Span { offset, length, ..self })
    }

    /// Its bytes from one on; `None` if it has fewer.
    pub fn after(self, bytes: usize) -> Option<Span> {
        self.part(bytes..self.length())
    }

    /// Its bytes.
    pub fn length(self) -> usize {
        self.length.into()
    }

    pub fn is_empty(self) -> bool {
        self.length == 0
    }
}

/// A datagram as it came.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Datagram<'a> {
    pub from: SocketAddr,
    pub bytes: &'a [u8],
    /// What to call the bytes once they are no longer borrowed.
    pub span: Span,
}

/// What an inbox has counted.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Received {
    pub datagrams: u64,
    pub bytes: u64,
    /// As the kernel handed them over: of one datagram, or of several that it had coalesced.
    pub messages: u64,
    /// Messages that were longer than a slot, and left out.
    pub truncated: u64,
    /// Datagrams that the kernel had no room for, as far as was told (SO_RXQ_OVFL).
    pub lost: u64,
    /// Errors that ICMP messages had left at sockets, and that were skipped.
    pub unreachable: u64,
}

/// Slots for what is received, for all sockets of a worker. Each [`Inbox::receive`] takes slots behind those
/// that are taken; [`Inbox::clear`] frees all of them.
#[derive(Debug)]
pub struct Inbox {
    slots: Slots,
    /// What is in the slots that are taken.
    arrived: Vec<Arrived>,
    /// Where the slots of the last receive begin.
    last: usize,
    /// Counts [`Inbox::clear`], modulo 2¹⁶, so that a span that is older is noticed.
    generation: u16,
    received: Received,
}

impl Inbox {
    /// With so many slots of [`SLOT_BYTES`] each, of which the system gives memory as messages fill it.
    ///
    /// # Panics
    /// Without a slot, or with more than [`SLOTS_MAX`].
    pub fn new(slots: usize) -> Inbox {
        Inbox::with_slot_bytes(slots, SLOT_BYTES)
    }

    /// With slots that may be shorter. What does not fit into one is left out, and what the kernel coalesces
    /// may be as long as [`SLOT_BYTES`].
    ///
    /// # Panics
    /// As [`Inbox::new`], and with slots of more than [`SLOT_BYTES`] or of none.
    pub fn with_slot_bytes(slots: usize, slot_bytes: usize) -> Inbox {
        assert!((1..=SLOTS_MAX).contains(&slots), "{slots} slots");
        assert!((1..=SLOT_BYTES).contains(&slot_bytes), "slots of {slot_bytes} bytes");
        Inbox {
            slots: Slots::new(slots, slot_bytes),
            arrived: Vec::with_capacity(slots),
            last: 0,
            generation: 0,
            received: Received::default(),
        }
    }

    /// Reads what waits at a socket into the slots that are free, by one call: to be asked again until it
    /// answers 0, or until the worker has done enough for a turn. Answers how many messages came: 0 when
    /// none waits. Those that came before keep their spans, but are not among [`Inbox::datagrams`].
    ///
    /// What ICMP said of datagrams that were sent is no error of the socket, and skipped.
    ///
    /// # Errors
    /// As recvmsg(2); none of them passes by itself, but for a want of memory.
    ///
    /// # Panics
    /// When it [is full](Inbox::is_full): 0 would say that nothing waits.
    pub fn receive(&mut self, socket: &Socket) -> io::Result<usize> {
        assert!(!self.is_full(), "an inbox is cleared before it is read into again");
        let first = self.arrived.len();
        self.last = first;
        let mut skipped = 0;
        let messages = loop {
            let error = match self.slots.receive(socket.as_fd(), first) {
                Ok(messages) => break messages,
                Err(error) => error,
            };
            match error.raw_os_error() {
                Some(libc::EINTR) => {}
                Some(libc::EAGAIN) => return Ok(0),
                Some(code) if is_of_icmp(code) && skipped < SKIPPED_MAX => {
                    skipped += 1;
                    self.received.unreachable += 1;
                }
                _ => return Err(error),
            }
        };
        for slot in first..first + messages {
            let mut arrived = self.slots.take(slot);
            if let Some(lost) = arrived.lost {
                self.received.lost += u64::from(socket.note_lost(lost));
            }
            if arrived.is_truncated {
                self.received.truncated += 1;
                arrived.from = None;
            }
            if arrived.from.is_some() {
                self.received.messages += 1;
                self.received.datagrams += arrived.datagrams() as u64;
                self.received.bytes += arrived.bytes as u64;
            }
            self.arrived.push(arrived);
        }
        Ok(messages)
    }

    /// The datagrams of the last [`Inbox::receive`], in the order in which they came.
    pub fn datagrams(&self) -> Datagrams<'_> {
        Datagrams { inbox: self, slot: self.last, offset: 0 }
    }

    /// The bytes that a span names.
    ///
    /// # Panics
    /// When the inbox was cleared since, or the span is another's.
    pub fn bytes(&self, span: Span) -> &[u8] {
        assert_eq!(span.generation, self.generation, "the span is older than the inbox's content");
        let offset = usize::from(span.offset);
        &self.slots.bytes(span.slot.into())[offset..offset + span.length()]
    }

    /// Whether all slots are taken: it is to be cleared before more can be received.
    pub fn is_full(&self) -> bool {
        self.arrived.len() == self.slots.count()
    }

    /// Frees all slots; the spans of what was in them name nothing any more.
    pub fn clear(&mut self) {
        self.arrived.clear();
        self.last = 0;
        self.generation = self.generation.wrapping_add(1);
    }

    pub fn received(&self) -> &Received {
        &self.received
    }
}

impl Arrived {
    /// Bytes of each datagram but the last.
    fn step(&self) -> usize {
        if self.segment_bytes == 0 { self.bytes } else { self.segment_bytes }
    }

    fn datagrams(&self) -> usize {
        // An empty message is an empty datagram.
        if self.bytes == 0 { 1 } else { self.bytes.div_ceil(self.step()) }
    }
}

/// Goes over the datagrams that a [`Inbox::receive`] brought.
#[derive(Clone, Debug)]
pub struct Datagrams<'a> {
    inbox: &'a Inbox,
    slot: usize,
    /// Where the next one begins in the slot.
    offset: usize,
}

impl<'a> Iterator for Datagrams<'a> {
    type Item = Datagram<'a>;

    fn next(&mut self) -> Option<Datagram<'a>> {
        loop {
            let (slot, offset) = (self.slot, self.offset);
            let arrived = self.inbox.arrived.get(slot)?;
            let end = (offset + arrived.step()).min(arrived.bytes);
            if end == arrived.bytes {
                (self.slot, self.offset) = (slot + 1, 0);
            } else {
                self.offset = end;
            }
            let Some(from) = arrived.from else {
                (self.slot, self.offset) = (slot + 1, 0);
                continue;
            };
            let bytes = &self.inbox.slots.bytes(slot)[offset..end];
            // A slot is shorter than 2¹⁶ bytes, and there are fewer than 2¹⁶ slots.
            let span = Span {
                generation: self.inbox.generation,
                slot: slot as u16,
                offset: offset as u16,
                length: bytes.len() as u16,
            };
            return Some(Datagram { from, bytes, span });
        }
    }
}

/// Whether an error may be what an ICMP message said of a datagram that was sent before: what
/// `icmp_err_convert` and `icmpv6_err_convert` of the kernel make of their types and codes.
pub(crate) fn is_of_icmp(code: i32) -> bool {
    matches!(
        code,
        libc::ECONNREFUSED
            | libc::EHOSTUNREACH
            | libc::ENETUNREACH
            | libc::EHOSTDOWN
            | libc::ENONET
            | libc::ENOPROTOOPT
            | libc::EOPNOTSUPP
            | libc::EMSGSIZE
            | libc::EPROTO
            | libc::EACCES
    )
}
