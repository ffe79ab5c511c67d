//! Signalling WebSockets: what a page opens to be in a room.
//!
//! A request that asks for one goes through [`upgrade`](mod@upgrade), and if its token is right it
//! becomes a [`socket`] with a task of its own. A frame that is meant for many is one buffer that all
//! queues of the [`table`] share; a socket's task takes all that its queue holds and writes it at once
//! ([`batch`]), and goes on reading meanwhile. A socket that does not keep up leaves its room when its
//! queue is full, whatever is being written to it. Not here: who hears what (`signal`), framing
//! (`wire::ws`).

mod asks;
mod batch;
mod framing;
mod hello;
mod pace;
mod socket;
mod table;
mod upgrade;

pub(crate) use self::socket::Socket;
pub(crate) use self::table::{Counters, SocketTable};
pub(crate) use self::upgrade::upgrade;
