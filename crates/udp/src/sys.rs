//! The system calls that no library wraps for us, and the only `unsafe` of this crate: recvmmsg into memory
//! that stays where it is, sendmmsg out of memory that is borrowed until then, and options of sockets.
//!
//! What is told of a message and what is done about an error is decided by who calls.

#![allow(unsafe_code)]

use std::ffi::c_int;
use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::mem;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::ptr::{self, NonNull};

/// Messages that one sendmmsg takes, and slices that one message may have.
pub(crate) const MESSAGES_MAX: usize = libc::UIO_MAXIOV as usize;
/// `SO_RXQ_OVFL` of asm-generic/socket.h, which `libc` does not have for Linux.
pub(crate) const SO_RXQ_OVFL: c_int = 40;
/// A cache line of most machines.
const LINE_BYTES: usize = 64;

/// Sets an option that is a number.
pub(crate) fn set_option(
    socket: BorrowedFd<'_>,
    level: c_int,
    name: c_int,
    value: c_int,
) -> io::Result<()> {
    // SAFETY: the kernel reads as many bytes of `value` as it is told that there are.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            mem::size_of::<c_int>() as libc::socklen_t,
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// An option that is a number.
pub(crate) fn option(socket: BorrowedFd<'_>, level: c_int, name: c_int) -> io::Result<c_int> {
    let mut value: c_int = 0;
    let mut bytes = mem::size_of::<c_int>() as libc::socklen_t;
    // SAFETY: the kernel writes no more bytes into `value` than it is told that there are.
    let done = unsafe {
        libc::getsockopt(socket.as_raw_fd(), level, name, (&raw mut value).cast(), &raw mut bytes)
    };
    if done == 0 { Ok(value) } else { Err(io::Error::last_os_error()) }
}

/// What was told of a message, beside its bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Arrived {
    /// `None` when it is not of the internet.
    pub(crate) from: Option<SocketAddr>,
    pub(crate) bytes: usize,
    /// Bytes of each datagram in it but the last; 0 if it was not coalesced.
    pub(crate) segment_bytes: usize,
    /// It, or what was told of it, was longer than the room for it.
    pub(crate) is_truncated: bool,
    /// Datagrams that the socket had lost when this one came, modulo 2³²; `None` if none.
    pub(crate) lost: Option<u32>,
}

/// Room for messages, and what recvmmsg wants to know of it. The headers are made once: after a call only
/// those that it filled are made ready again.
pub(crate) struct Slots {
    /// For the kernel only, which finds the other memory through it.
    headers: Fixed<libc::mmsghdr>,
    slices: Fixed<libc::iovec>,
    names: Fixed<Name>,
    controls: Fixed<Control>,
    memory: Fixed<u8>,
    count: usize,
    slot_bytes: usize,
    /// From one slot to the next. No power of two, or the beginnings of all slots, which are what most
    /// messages fill, would be in one another's way in the processor's caches.
    stride: usize,
}

// SAFETY: all pointers lead into memory that the value owns and shows to nobody else.
unsafe impl Send for Slots {}
// SAFETY: nothing is changed through a shared reference.
unsafe impl Sync for Slots {}

impl Slots {
    pub(crate) fn new(count: usize, slot_bytes: usize) -> Slots {
        let stride = slot_bytes.next_multiple_of(LINE_BYTES) + 5 * LINE_BYTES;
        // SAFETY: a header and a slice of nothing are all zeros.
        let (header, slice) =
            unsafe { (mem::zeroed::<libc::mmsghdr>(), mem::zeroed::<libc::iovec>()) };
        let slots = Slots {
            headers: Fixed::new(vec![header; count]),
            slices: Fixed::new(vec![slice; count]),
            names: Fixed::new(vec![Name::NONE; count]),
            controls: Fixed::new(vec![Control::NONE; count]),
            // Zeroed by the kernel when it is first used: a slot takes what its longest message took.
            memory: Fixed::new(vec![0; count * stride]),
            count,
            slot_bytes,
            stride,
        };
        for slot in 0..count {
            let slice = slots.slices.at(slot);
            let base = slots.memory.at(slot * stride);
            // SAFETY: both are in bounds (`at` looks), and nothing else refers to them.
            unsafe {
                slice.write(libc::iovec { iov_base: base.cast(), iov_len: slot_bytes });
                let header = &mut (*slots.headers.at(slot)).msg_hdr;
                header.msg_name = slots.names.at(slot).cast();
                header.msg_iov = slice;
                header.msg_iovlen = 1;
                header.msg_control = slots.controls.at(slot).cast();
                make_ready(header);
            }
        }
        slots
    }

    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// The bytes of a slot: of the message that was last received into it, and behind that of others.
    pub(crate) fn bytes(&self, slot: usize) -> &[u8] {
        assert!(slot < self.count, "slot {slot} of {}", self.count);
        // SAFETY: a slot is within the memory, which was zeroed, and is written through `&mut self` only.
        unsafe { std::slice::from_raw_parts(self.memory.at(slot * self.stride), self.slot_bytes) }
    }

    /// Receives into slots from `first` on; answers into how many. Does not wait.
    pub(crate) fn receive(&mut self, socket: BorrowedFd<'_>, first: usize) -> io::Result<usize> {
        let headers = self.headers.at(first);
        let count = (self.count - first).min(MESSAGES_MAX);
        // SAFETY: so many headers are there, and each leads to memory of the size that it says, to which
        // nothing refers while `self` is borrowed for a change.
        let done = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                headers,
                count as _,
                libc::MSG_DONTWAIT as _,
                ptr::null_mut(),
            )
        };
        usize::try_from(done).map_err(|_| io::Error::last_os_error())
    }

    /// What was told of a message that was received. To be asked once: it makes the header ready for the
    /// next one.
    pub(crate) fn take(&mut self, slot: usize) -> Arrived {
        // SAFETY: `at` looks at the bounds, and the kernel is done with the header.
        let header = unsafe { &mut *self.headers.at(slot) };
        let flags = header.msg_hdr.msg_flags;
        let mut arrived = Arrived {
            from: None,
            bytes: (header.msg_len as usize).min(self.slot_bytes),
            segment_bytes: 0,
            is_truncated: flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0,
            lost: None,
        };
        if header.msg_hdr.msg_namelen > 0 {
            // SAFETY: `at` looks at the bounds, and each pattern of bits is a name.
            arrived.from = unsafe { *self.names.at(slot) }.address();
        }
        // SAFETY: the control messages are as the kernel has left them, within the memory of a `Control`.
        unsafe {
            let mut control = libc::CMSG_FIRSTHDR(&raw const header.msg_hdr);
            while !control.is_null() {
                let is_number = (*control).cmsg_len as usize
                    >= libc::CMSG_LEN(mem::size_of::<c_int>() as _) as usize;
                let number = || libc::CMSG_DATA(control).cast::<c_int>().read_unaligned();
                match ((*control).cmsg_level, (*control).cmsg_type) {
                    (libc::SOL_UDP, libc::UDP_GRO) if is_number => {
                        arrived.segment_bytes = usize::try_from(number()).unwrap_or(0);
                    }
                    (libc::SOL_SOCKET, SO_RXQ_OVFL) if is_number => {
                        arrived.lost = Some(number().cast_unsigned());
                    }
                    _ => {}
                }
                control = libc::CMSG_NXTHDR(&raw const header.msg_hdr, control);
            }
        }
        make_ready(&mut header.msg_hdr);
        arrived
    }
}

impl fmt::Debug for Slots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Slots { count, slot_bytes, .. } = self;
        f.debug_struct("Slots")
            .field("count", count)
            .field("slot_bytes", slot_bytes)
            .finish_non_exhaustive()
    }
}

/// What recvmmsg changes in a header, as it is to be before.
fn make_ready(header: &mut libc::msghdr) {
    header.msg_namelen = mem::size_of::<Name>() as _;
    header.msg_controllen = mem::size_of::<Control>() as _;
    header.msg_flags = 0;
}

/// The memory in which messages are put together, kept from one call to the next.
#[derive(Default)]
pub(crate) struct Batch {
    headers: Vec<libc::mmsghdr>,
    slices: Vec<libc::iovec>,
    names: Vec<Name>,
    controls: Vec<Control>,
}

// SAFETY: its pointers are followed by a `Gather` only, which makes them first.
unsafe impl Send for Batch {}
// SAFETY: nothing at all is done through a shared reference.
unsafe impl Sync for Batch {}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batch").field("messages", &self.headers.len()).finish_non_exhaustive()
    }
}

/// Messages that are put together out of slices that live for `'d`, and sent.
#[derive(Debug)]
pub(crate) struct Gather<'b, 'd> {
    batch: &'b mut Batch,
    /// The headers lead to names, slices and controls as these are.
    is_sealed: bool,
    data: PhantomData<&'d [u8]>,
}

impl<'b, 'd> Gather<'b, 'd> {
    /// Begins without messages.
    pub(crate) fn new(batch: &'b mut Batch) -> Gather<'b, 'd> {
        batch.headers.clear();
        batch.slices.clear();
        batch.names.clear();
        batch.controls.clear();
        Gather { batch, is_sealed: false, data: PhantomData }
    }

    /// Begins a message; with `segment_bytes` it is sent as datagrams of that length, but for the last.
    pub(crate) fn message(&mut self, to: SocketAddr, segment_bytes: Option<u16>) {
        self.is_sealed = false;
        let (name, name_bytes) = Name::of(to);
        // SAFETY: a header of nothing is all zeros.
        let mut header: libc::mmsghdr = unsafe { mem::zeroed() };
        header.msg_hdr.msg_namelen = name_bytes;
        if segment_bytes.is_some() {
            header.msg_hdr.msg_controllen = Control::SEGMENT_BYTES as _;
        }
        self.batch.headers.push(header);
        self.batch.names.push(name);
        self.batch.controls.extend(segment_bytes.map(Control::segment));
    }

    /// Adds bytes to the message that was begun last.
    pub(crate) fn slice(&mut self, bytes: &'d [u8]) {
        self.is_sealed = false;
        let header = self.batch.headers.last_mut().expect("a message was begun");
        if bytes.is_empty() {
            return;
        }
        header.msg_hdr.msg_iovlen += 1;
        let base = bytes.as_ptr().cast_mut().cast();
        self.batch.slices.push(libc::iovec { iov_base: base, iov_len: bytes.len() });
    }

    /// Sends messages from `first` on, of which there must be one; answers how many went. Does not wait.
    /// An error is that of the first.
    pub(crate) fn send(&mut self, socket: BorrowedFd<'_>, first: usize) -> io::Result<usize> {
        if !self.is_sealed {
            self.seal();
        }
        let headers = &mut self.batch.headers[first..];
        let count = headers.len().min(MESSAGES_MAX);
        // SAFETY: so many headers are there; they lead into the batch, which has not changed since it was
        // sealed, and to bytes that are borrowed for `'d`, all of which the kernel only reads.
        let done = unsafe {
            libc::sendmmsg(
                socket.as_raw_fd(),
                headers.as_mut_ptr(),
                count as _,
                libc::MSG_DONTWAIT as _,
            )
        };
        usize::try_from(done).map_err(|_| io::Error::last_os_error())
    }

    fn seal(&mut self) {
        let Batch { headers, slices, names, controls } = &mut *self.batch;
        let (names, all_slices, all_controls) =
            (names.as_mut_ptr(), slices.as_mut_ptr(), controls.as_mut_ptr());
        let (mut slice, mut control) = (0, 0);
        for (index, header) in headers.iter_mut().enumerate() {
            let header = &mut header.msg_hdr;
            // `wrapping_add` stays in bounds: a name was pushed with each header, and as many slices and
            // controls as the headers say.
            header.msg_name = names.wrapping_add(index).cast();
            header.msg_iov = all_slices.wrapping_add(slice);
            slice += header.msg_iovlen;
            if header.msg_controllen > 0 {
                header.msg_control = all_controls.wrapping_add(control).cast();
                control += 1;
            }
        }
        assert_eq!(
            (slice, control),
            (slices.len(), controls.len()),
            "what the headers say is there"
        );
        self.is_sealed = true;
    }
}

/// Memory at one address for its life, wherever the value is moved.
struct Fixed<T>(NonNull<[T]>);

impl<T> Fixed<T> {
    fn new(items: Vec<T>) -> Fixed<T> {
        Fixed(NonNull::from(Box::leak(items.into_boxed_slice())))
    }

    fn at(&self, index: usize) -> *mut T {
        assert!(index < self.0.len(), "{index} of {}", self.0.len());
        self.0.cast::<T>().as_ptr().wrapping_add(index)
    }
}

impl<T> Drop for Fixed<T> {
    fn drop(&mut self) {
        // SAFETY: the pointer is that of a box, which nothing else frees.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}

/// An address as the kernel has it: `sockaddr_in6`, or `sockaddr_in` at its beginning.
#[derive(Clone, Copy)]
struct Name(libc::sockaddr_in6);

// An IPv4 address is read and written through a pointer to a `Name`.
const _: () = assert!(mem::size_of::<libc::sockaddr_in>() <= mem::size_of::<Name>());
const _: () = assert!(mem::align_of::<libc::sockaddr_in>() <= mem::align_of::<Name>());

impl Name {
    const NONE: Name = Name(libc::sockaddr_in6 {
        sin6_family: libc::AF_UNSPEC as _,
        sin6_port: 0,
        sin6_flowinfo: 0,
        sin6_addr: libc::in6_addr { s6_addr: [0; 16] },
        sin6_scope_id: 0,
    });

    fn of(address: SocketAddr) -> (Name, libc::socklen_t) {
        let mut name = Name::NONE;
        let bytes = match address {
            SocketAddr::V4(address) => {
                let v4 = libc::sockaddr_in {
                    sin_family: libc::AF_INET as _,
                    sin_port: address.port().to_be(),
                    sin_addr: libc::in_addr { s_addr: u32::from(*address.ip()).to_be() },
                    sin_zero: [0; 8],
                };
                // SAFETY: it has room and is aligned for it, as is asserted above.
                unsafe { (&raw mut name).cast::<libc::sockaddr_in>().write(v4) };
                mem::size_of::<libc::sockaddr_in>()
            }
            SocketAddr::V6(address) => {
                name.0.sin6_family = libc::AF_INET6 as _;
                name.0.sin6_port = address.port().to_be();
                name.0.sin6_flowinfo = address.flowinfo();
                name.0.sin6_addr.s6_addr = address.ip().octets();
                name.0.sin6_scope_id = address.scope_id();
                mem::size_of::<libc::sockaddr_in6>()
            }
        };
        (name, bytes as libc::socklen_t)
    }

    fn address(&self) -> Option<SocketAddr> {
        match c_int::from(self.0.sin6_family) {
            libc::AF_INET => {
                // SAFETY: it has room and is aligned for it, as is asserted above, and is initialised.
                let v4 = unsafe { (&raw const *self).cast::<libc::sockaddr_in>().read() };
                let ip = Ipv4Addr::from(u32::from_be(v4.sin_addr.s_addr));
                Some(SocketAddrV4::new(ip, u16::from_be(v4.sin_port)).into())
            }
            libc::AF_INET6 => {
                let ip = Ipv6Addr::from(self.0.sin6_addr.s6_addr);
                let port = u16::from_be(self.0.sin6_port);
                let (flow, scope) = (self.0.sin6_flowinfo, self.0.sin6_scope_id);
                Some(SocketAddrV6::new(ip, port, flow, scope).into())
            }
            _ => None,
        }
    }
}

/// Control messages: for what is received, a segment's size and what was lost; for what is sent, a
/// segment's size.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Control([u8; 64]);

// SAFETY: CMSG_SPACE computes, and touches no memory.
const _: () = assert!(2 * unsafe { libc::CMSG_SPACE(4) } as usize <= mem::size_of::<Control>());
const _: () = assert!(mem::align_of::<libc::cmsghdr>() <= mem::align_of::<Control>());

impl Control {
    const NONE: Control = Control([0; 64]);
    // SAFETY: CMSG_SPACE computes, and touches no memory.
    const SEGMENT_BYTES: usize = unsafe { libc::CMSG_SPACE(2) } as usize;

    fn segment(bytes: u16) -> Control {
        let mut control = Control::NONE;
        let header = (&raw mut control).cast::<libc::cmsghdr>();
        // SAFETY: a `Control` has room for two headers with numbers, is aligned for them, and is all zeros.
        unsafe {
            (*header).cmsg_level = libc::SOL_UDP;
            (*header).cmsg_type = libc::UDP_SEGMENT;
            (*header).cmsg_len = libc::CMSG_LEN(mem::size_of::<u16>() as _) as _;
            libc::CMSG_DATA(header).cast::<u16>().write_unaligned(bytes);
        }
        control
    }
}
