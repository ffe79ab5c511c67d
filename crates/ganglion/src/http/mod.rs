//! HTTP: connections that a listener has accepted, hyper's requests on them, and the answers.
//!
//! A [`connection`] is served by hyper over a transport with a [`pace`], below which HTTP/2's
//! [`frames`] are counted; its [`streams`] are metered. Each of the [`requests`] has its head looked at
//! ([`forwarded`]), its body read within limits ([`bodies`]), and is answered by the neuron, by
//! [`health`] (on a private listener to nobody [`foreign`]) or by one of the [`pages`]; the answer is put into HTTP in [`replies`] and counted until
//! its client has taken it ([`answers`]); a watch has an answer that goes on ([`feeds`]). Not here: what a request means (`neuron`), and WebSockets
//! after their handshake (`sockets`).

pub(crate) mod answers;
mod bodies;
mod connection;
mod feeds;
mod foreign;
mod forwarded;
mod frames;
mod health;
mod pace;
mod pages;
mod replies;
mod requests;
#[cfg(test)]
pub(crate) mod stage;
mod streams;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use neuron::Neuron;
use wire::network::Network;

pub(crate) use self::connection::{Incoming, serve_connection};
pub(crate) use self::feeds::{Feeds, hand_on};
pub(crate) use self::pace::Paced;
pub(crate) use self::pages::{DemoAccess, Pages};
pub(crate) use self::replies::plain;
use crate::config::Config;
use crate::lifecycle::Lifecycle;
use crate::listen::Gate;
use crate::sockets::SocketTable;
use crate::tls::Tls;
use crate::turns::Turns;

/// What every connection of a neuron shares.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) neuron: Neuron,
    pub(crate) config: Config,
    pub(crate) sockets: Arc<SocketTable>,
    pub(crate) store: Arc<store::embedded::EmbeddedStore>,
    pub(crate) pages: Pages,
    pub(crate) lifecycle: Arc<Lifecycle>,
    pub(crate) trusted_proxies: Vec<Network>,
    pub(crate) gate: Arc<Gate>,
    pub(crate) admin_gate: Arc<Gate>,
    /// Each account's share of the requests that are carried out at a time.
    pub(crate) turns: Arc<Turns>,
    pub(crate) counters: Counters,
    pub(crate) feeds: Feeds,
    /// That of the listeners, when they have one.
    pub(crate) tls: Option<Arc<Tls>>,
}

impl Shared {
    /// What is still under way, in words.
    pub(crate) fn left(&self) -> Vec<String> {
        let open = [(self.sockets.len(), "sockets"), (self.feeds.len(), "streams of events")];
        self.lifecycle.left(&open)
    }
}

/// What HTTP has done, for metrics.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) requests: AtomicU64,
    pub(crate) refused_body: AtomicU64,
    /// Connections that were cut because of frames that ask for nothing.
    pub(crate) floods: AtomicU64,
}
