//! A UDP socket: how it is bound, and what is remembered of it for batches.
//!
//! It neither reads nor sends: [`Inbox`](crate::Inbox) and [`Outbox`](crate::Outbox) do.

use std::ffi::c_int;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering};

use socket2::{Domain, Protocol, SockAddr, Type};

use crate::sys;

/// How a socket is bound.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Options {
    /// Others of the same user may have the address too, when they say so as well (SO_REUSEPORT): the
    /// kernel deals datagrams out by the addresses of both ends.
    pub reuse_port: bool,
    /// Bytes of datagrams that wait to be read, of which the kernel counts its own share too; it cuts what
    /// is above `net.core.rmem_max`. `None` leaves `net.core.rmem_default`.
    pub receive_buffer_bytes: Option<usize>,
    /// The same of what waits to be sent, and `wmem_max`.
    pub send_buffer_bytes: Option<usize>,
    /// What comes in may be coalesced (UDP_GRO, Linux 5.0), if the kernel can.
    pub gro: bool,
    /// What goes out may be messages of segments (UDP_SEGMENT, Linux 4.18), if the kernel can.
    pub gso: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            reuse_port: false,
            receive_buffer_bytes: None,
            send_buffer_bytes: None,
            gro: true,
            gso: true,
        }
    }
}

/// A bound UDP socket that never waits. One for IPv6 takes no IPv4 (IPV6_V6ONLY).
#[derive(Debug)]
pub struct Socket {
    socket: socket2::Socket,
    local: SocketAddr,
    /// Off for good once segments were refused for a reason that does not pass.
    gso: AtomicBool,
    dont_fragment: AtomicBool,
    /// IP_MTU_DISCOVER as it was before it was first changed.
    mtu_discover: AtomicI32,
    /// What SO_RXQ_OVFL said last.
    lost: AtomicU32,
}

impl Socket {
    /// Binds; with port 0 to a port that is free.
    ///
    /// # Errors
    /// As bind(2) and the options: `AddrInUse` when somebody else has it.
    pub fn bind(address: SocketAddr, options: &Options) -> io::Result<Socket> {
        let socket = Socket::open(address, options)?;
        if options.reuse_port {
            socket.set_reuse_port(true)?;
        }
        Socket::bound(socket, address, options)
    }

    /// Binds as the first of those that are to have the address, whether or not they are to be several:
    /// others may join it by [`Options::reuse_port`] only after this has come back, so two processes with
    /// one configuration do not share a port in silence.
    ///
    /// # Errors
    /// As [`Socket::bind`]; `AddrInUse` also when those who have the address would share it.
    pub fn bind_first(address: SocketAddr, options: &Options) -> io::Result<Socket> {
        let socket = Socket::open(address, options)?;
        let socket = Socket::bound(socket, address, options)?;
        if options.reuse_port {
            // The kernel makes the group of sockets when the second one binds (reuseport_add_sock).
            socket.socket.set_reuse_port(true)?;
        }
        Ok(socket)
    }

    /// Where it is bound, with the port that it got.
    pub fn local_address(&self) -> SocketAddr {
        self.local
    }

    /// Bytes that may wait to be read, as the kernel counts: twice what was asked for, unless it was cut.
    ///
    /// # Errors
    /// As getsockopt(2).
    pub fn receive_buffer_bytes(&self) -> io::Result<usize> {
        self.socket.recv_buffer_size()
    }

    /// Whether datagrams are sent as segments of messages.
    pub fn is_segmenting(&self) -> bool {
        self.gso.load(Ordering::Relaxed)
    }

    /// Datagrams that found no room in the receive buffer, or were wrong, modulo 2³², as was told with the
    /// last one received.
    pub fn lost(&self) -> u32 {
        self.lost.load(Ordering::Relaxed)
    }

    fn open(address: SocketAddr, options: &Options) -> io::Result<socket2::Socket> {
        let domain = Domain::for_address(address);
        let socket = socket2::Socket::new(domain, Type::DGRAM.nonblocking(), Some(Protocol::UDP))?;
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        if let Some(bytes) = options.receive_buffer_bytes {
            socket.set_recv_buffer_size(bytes)?;
        }
        if let Some(bytes) = options.send_buffer_bytes {
            socket.set_send_buffer_size(bytes)?;
        }
        Ok(socket)
    }

    fn bound(
        socket: socket2::Socket,
        address: SocketAddr,
        options: &Options,
    ) -> io::Result<Socket> {
        // Before it is bound: what comes at once is told of as what comes later.
        sys::set_option(socket.as_fd(), libc::SOL_SOCKET, sys::SO_RXQ_OVFL, 1)?;
        if options.gro {
            // A kernel that cannot does without.
            let _ = sys::set_option(socket.as_fd(), libc::SOL_UDP, libc::UDP_GRO, 1);
        }
        // A kernel that does not know the option would send all segments as one datagram.
        let gso =
            options.gso && sys::option(socket.as_fd(), libc::SOL_UDP, libc::UDP_SEGMENT).is_ok();
        socket.bind(&SockAddr::from(address))?;
        let local = socket.local_addr()?.as_socket();
        let local = local.ok_or_else(|| io::Error::from(io::ErrorKind::Unsupported))?;
        Ok(Socket {
            socket,
            local,
            gso: AtomicBool::new(gso),
            dont_fragment: AtomicBool::new(false),
            mtu_discover: AtomicI32::new(0),
            lost: AtomicU32::new(0),
        })
    }

    pub(crate) fn stop_segmenting(&self) {
        self.gso.store(false, Ordering::Relaxed);
    }

    /// Takes note of what SO_RXQ_OVFL says; answers how many more it is than before.
    pub(crate) fn note_lost(&self, lost: u32) -> u32 {
        let before = self.lost.swap(lost, Ordering::Relaxed);
        lost.wrapping_sub(before)
    }

    /// Has what is sent from here on dropped where it is too long for the way, with an ICMP message back
    /// (DO), or as the system has it. A system call only when it changes.
    pub(crate) fn set_dont_fragment(&self, wanted: bool) -> io::Result<()> {
        if self.dont_fragment.load(Ordering::Relaxed) == wanted {
            return Ok(());
        }
        let (level, name, always) = self.mtu_option();
        let value = if wanted {
            let before = sys::option(self.as_fd(), level, name)?;
            self.mtu_discover.store(before, Ordering::Relaxed);
            always
        } else {
            self.mtu_discover.load(Ordering::Relaxed)
        };
        sys::set_option(self.as_fd(), level, name, value)?;
        self.dont_fragment.store(wanted, Ordering::Relaxed);
        Ok(())
    }

    fn mtu_option(&self) -> (c_int, c_int, c_int) {
        match self.local {
            SocketAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DO),
            SocketAddr::V6(_) => {
                (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DO)
            }
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fragments_are_forbidden_while_that_is_wanted() -> io::Result<()> {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let address = address.parse().expect("an address");
            let socket = Socket::bind(address, &Options::default())?;
            let (level, name, always) = socket.mtu_option();
            let now = || sys::option(socket.as_fd(), level, name);
            let before = now()?;
            assert_ne!(before, always);
            for _ in 0..2 {
                socket.set_dont_fragment(false)?;
                assert_eq!(now()?, before);
                socket.set_dont_fragment(true)?;
                socket.set_dont_fragment(true)?;
                assert_eq!(now()?, always);
            }
            socket.set_dont_fragment(false)?;
            assert_eq!(now()?, before);
        }
        Ok(())
    }
}
