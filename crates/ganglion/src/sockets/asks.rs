//! What a v4 socket asks for: requests that are carried out one after another, in their order, by a task
//! that lives while there are some, and watches that last.
//!
//! The socket's own task only hands them over, and reads no more of its peer while too many wait. Not
//! here: what a request means (`neuron::asking`).

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use neuron::asking::{Asker, Reply};
use neuron::watching::Opened;
use services::Services;
use services::watch::{self, Ended, Full, Sink, Told};
use tokio::runtime::Handle;
use wire::envelope::{self, Fault};
use wire::errors::Code;
use wire::frames::{self, Generation, Id, ServerFrame, Verb};
use wire::names::Path;
use wire::params::Params;

use super::table::Queue;
use crate::http::Shared;
use crate::turns::Spender;

/// What a reply has at most beside its id, its version and its envelope: `{"t":"r","m":{"id":…}}` and
/// the WebSocket header.
const REPLY_BYTES: usize = 64;

/// How long a request waits between looks whether its socket has room for an answer.
const ROOM_LOOK_EVERY: Duration = Duration::from_millis(5);

/// The requests and watches of one socket.
pub(super) struct Asks {
    shared: Arc<Shared>,
    asker: Asker,
    spender: Arc<Spender>,
    queue: Arc<Queue>,
    state: Mutex<State>,
    /// Where what it begins runs: a change is told from anywhere.
    runtime: Handle,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Ask>,
    /// Whether there is a task that carries them out.
    is_running: bool,
    /// Whether there is one that looks whether the watches may go on.
    is_checking: bool,
    /// Set once: nothing more is begun.
    is_over: bool,
    /// By the id of the request that asked for it, as JSON text.
    watches: BTreeMap<Box<str>, Watching>,
    /// What [`watch::proofs`] was when the watches were last looked at.
    proofs: u64,
}

/// A request that waits.
struct Ask {
    id: Box<str>,
    verb: Verb,
    params: Box<str>,
}

/// One watch of a socket.
struct Watching {
    opened: Arc<Opened>,
    feed: Arc<Feed>,
}

/// Puts the changes of a watch into its socket's queue, after the reply that it begins with.
struct Feed {
    id: Box<str>,
    path: Path,
    queue: Arc<Queue>,
    queue_bytes_max: usize,
    asks: Weak<Asks>,
    services: Arc<Services>,
    /// What [`watch::proofs`] was as of what was told last.
    proofs: AtomicU64,
    told: Mutex<Telling>,
}

/// Whether the client is told of changes.
enum Telling {
    /// These wait for the reply that the watch begins with, or until it is known that its owner may have
    /// them; they may be all there is.
    Held {
        frames: Vec<Bytes>,
        bytes: usize,
        is_over: bool,
    },
    Open,
    /// Nothing more comes: the client was told so, or asked for it.
    Over,
}

impl Asks {
    pub(super) fn new(
        shared: Arc<Shared>,
        asker: Asker,
        spender: Arc<Spender>,
        queue: Arc<Queue>,
    ) -> Arc<Asks> {
        let runtime = Handle::current();
        Arc::new(Asks { shared, asker, spender, queue, state: Mutex::default(), runtime })
    }

    /// Takes a request; it is answered after those before it.
    pub(super) fn take(self: &Arc<Self>, id: Id<'_>, verb: Verb, params: &str) {
        let ask = Ask { id: id.as_str().into(), verb, params: params.into() };
        let mut state = self.state();
        if state.is_over {
            return;
        }
        state.waiting.push_back(ask);
        if std::mem::replace(&mut state.is_running, true) {
            return;
        }
        drop(state);
        let asks = self.clone();
        self.runtime.spawn(async move {
            let spender = asks.spender.clone();
            spender.metered(asks.run()).await;
        });
    }

    /// How many requests wait.
    pub(super) fn waiting(&self) -> usize {
        self.state().waiting.len()
    }

    /// Has the watches looked at when their owner may be none any more, beside the requests, which their
    /// owner may make slow. To be called every second or so, and before a change is told since which that
    /// may be.
    pub(super) fn look(self: &Arc<Self>) {
        let proofs = watch::proofs(&self.shared.neuron.services);
        let mut state = self.state();
        if state.is_checking || state.watches.is_empty() || state.proofs == proofs {
            return;
        }
        (state.is_checking, state.proofs) = (true, proofs);
        drop(state);
        let asks = self.clone();
        self.runtime.spawn(async move {
            let spender = asks.spender.clone();
            spender.metered(asks.check_until_settled()).await;
        });
    }

    /// Looks until nothing has changed meanwhile, or it cannot be known: then the next second's look is
    /// another.
    async fn check_until_settled(&self) {
        loop {
            let is_known = self.check().await;
            let mut state = self.state();
            let proofs = watch::proofs(&self.shared.neuron.services);
            if !is_known || std::mem::replace(&mut state.proofs, proofs) == proofs {
                state.is_checking = false;
                return;
            }
        }
    }

    /// Ends the watches, and drops what was not begun.
    pub(super) fn end(&self) {
        let mut state = self.state();
        state.is_over = true;
        state.waiting.clear();
        let watches = std::mem::take(&mut state.watches);
        // A watch that ends by itself meanwhile asks for the lock.
        drop(state);
        drop(watches);
    }

    /// Carries out what waits until there is no more.
    async fn run(self: &Arc<Self>) {
        loop {
            let ask = {
                let mut state = self.state();
                let Some(ask) = state.waiting.pop_front() else {
                    state.is_running = false;
                    return;
                };
                ask
            };
            let busy = self.shared.lifecycle.busy();
            self.carry_out(&ask.id, ask.verb, &ask.params).await;
            drop(busy);
            // The peer may have been kept waiting.
            self.queue.wake.notify_one();
        }
    }

    async fn carry_out(self: &Arc<Self>, id: &str, verb: Verb, params: &str) {
        while !self.queue.has_room(self.queue_bytes_max() / 2) {
            if self.state().is_over {
                return;
            }
            tokio::time::sleep(ROOM_LOOK_EVERY).await;
        }
        match verb {
            Verb::Watch => self.watch(id, params).await,
            Verb::Unwatch => {
                let reply = self.unwatch(params);
                self.answer(id, &reply.unwrap_or_else(|fault| Reply::of(&fault)));
            }
            verb => {
                let ticket = self.spender.ticket_for(0, params.len());
                let work = self.shared.neuron.ask(&self.asker, verb, params, &ticket);
                let mut reply = ticket.carry_out(work).await;
                let is_done = envelope::is_ok(&reply.envelope);
                if matches!(verb, Verb::Put | Verb::Delete) && is_done && !self.fits(id, &reply) {
                    // It was done: what was written comes back shorter, and not as a refusal.
                    reply.envelope = envelope::ok("null");
                }
                self.answer(id, &reply);
            }
        }
    }

    async fn watch(self: &Arc<Self>, id: &str, params: &str) {
        let watches_max = self.shared.config.signal.watches_per_socket;
        self.forget_ended();
        let refused = match &self.state().watches {
            watches if watches.contains_key(id) => {
                Some(Fault::with(Code::BadRequest, "there is a watch of this id"))
            }
            watches if watches.len() >= watches_max => {
                let why = format!("a socket has at most {watches_max} watches");
                Some(Fault::with(Code::Overloaded, why))
            }
            _ => None,
        };
        if let Some(fault) = refused {
            return self.answer(id, &Reply::of(&fault));
        }
        let mut made = None;
        let services = &self.shared.neuron.services;
        let proofs = watch::proofs(services);
        let sink = |path: &Path| -> Arc<dyn Sink> {
            let feed = Arc::new(Feed {
                id: id.into(),
                path: path.clone(),
                queue: self.queue.clone(),
                queue_bytes_max: self.queue_bytes_max(),
                asks: Arc::downgrade(self),
                services: services.clone(),
                proofs: AtomicU64::new(proofs),
                told: Mutex::new(Telling::held()),
            });
            made = Some(feed.clone());
            feed
        };
        let ticket = self.spender.ticket();
        let opening = self.shared.neuron.ask_watch(&self.asker, params, &ticket, sink);
        let (reply, opened) = match ticket.carry_out(opening).await {
            Ok(opened) => opened,
            Err(reply) => return self.answer(id, &reply),
        };
        let Some(feed) = made else { return };
        if !self.fits(id, &reply) {
            // Nobody knows of a watch whose start he was not given.
            drop(opened);
            return self.answer(id, &reply);
        }
        self.answer(id, &reply);
        if self.keep(id, opened, feed) {
            // What is told comes after the reply, and once it is known that nothing has changed since
            // the opening.
            self.check().await;
        }
    }

    /// Keeps a watch, unless the socket has gone.
    fn keep(&self, id: &str, opened: Opened, feed: Arc<Feed>) -> bool {
        let mut state = self.state();
        if state.is_over {
            return false;
        }
        if state.watches.is_empty() {
            state.proofs = watch::proofs(&self.shared.neuron.services);
        }
        state.watches.insert(id.into(), Watching { opened: Arc::new(opened), feed });
        true
    }

    fn unwatch(&self, params: &str) -> Result<Reply, Fault> {
        let params = Params::read("", params.as_bytes());
        let params = params.map_err(|error| Fault::with(Code::BadRequest, error.to_string()))?;
        let id = params.json("watch");
        let id = id.ok_or_else(|| Fault::with(Code::BadRequest, "`watch` is the watch's id"))?;
        let watching = self.state().watches.remove(id.as_str()).ok_or(Code::NotFound)?;
        // Who looks whether it may go on has a hold of it still.
        watching.feed.stop();
        Ok(Reply { envelope: envelope::ok("null"), ver: None })
    }

    /// Forgets the watches of which the client knows that the neuron has ended them: their ids may be used
    /// again.
    fn forget_ended(&self) {
        let ended: Vec<_> = {
            let watches = &mut self.state().watches;
            let is_over = |watching: &Watching| watching.feed.is_over();
            let ids = watches.iter().filter(|(_, watching)| is_over(watching));
            let ids: Vec<_> = ids.map(|(id, _)| id.clone()).collect();
            ids.iter().filter_map(|id| watches.remove(id)).collect()
        };
        // Not while the lock is held, which a watch that ends by itself may ask for.
        drop(ended);
    }

    /// Ends the watches that their owner may not have any more, and lets the others go on. Answers
    /// whether it is known of all: a store that is away for a moment says nothing of the caller, and what
    /// is held waits until it does.
    async fn check(&self) -> bool {
        let proofs = watch::proofs(&self.shared.neuron.services);
        let open: Vec<_> = {
            let state = self.state();
            let watches = state.watches.iter();
            let watches = watches.map(|(id, it)| (id.clone(), it.opened.clone(), it.feed.clone()));
            watches.collect()
        };
        let mut is_known = true;
        for (id, opened, feed) in open {
            match self.shared.neuron.may_still_watch(&self.asker, &opened).await {
                Ok(()) => feed.go_on(proofs),
                Err(fault) if fault.code.status() >= 500 => is_known = false,
                Err(fault) => {
                    // Its id may have been given to another meanwhile.
                    let ended = {
                        let watches = &mut self.state().watches;
                        let is_it = |watching: &Watching| Arc::ptr_eq(&watching.opened, &opened);
                        let is_it = watches.get(&id).is_some_and(is_it);
                        is_it.then(|| watches.remove(&id)).flatten()
                    };
                    if let Some(watching) = ended {
                        watching.feed.cut(&fault);
                    }
                }
            }
        }
        if !is_known {
            self.state().proofs = proofs.wrapping_sub(1);
        }
        is_known
    }

    fn answer(&self, id: &str, reply: &Reply) {
        let text = match self.fits(id, reply) {
            true => frame(id, reply),
            false => {
                let why =
                    "the answer is longer than a socket's queue takes: ask for less, or by HTTP";
                frame(id, &Reply::of(&Fault::with(Code::TooLarge, why)))
            }
        };
        if let Some(text) = text {
            self.queue.push(text, self.queue_bytes_max());
        }
    }

    /// Whether a reply is one that a socket's queue takes.
    fn fits(&self, id: &str, reply: &Reply) -> bool {
        let beside = id.len() + reply.ver.as_ref().map_or(0, String::len) + REPLY_BYTES;
        reply.envelope.len() + beside <= self.queue_bytes_max() / 2
    }

    fn queue_bytes_max(&self) -> usize {
        self.shared.config.signal.queue.0
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn frame(id: &str, reply: &Reply) -> Option<Bytes> {
    let id = Id::of_json(id).ok()?;
    let (envelope, ver) = (&reply.envelope, reply.ver.as_deref());
    Some(ServerFrame::Reply { id, cursor: None, ver, envelope }.to_ws(Generation::V4))
}

impl Telling {
    fn held() -> Telling {
        Telling::Held { frames: Vec::new(), bytes: 0, is_over: false }
    }
}

impl Feed {
    /// Lets through what was held, and what comes from here on, if all of it was told before
    /// [`watch::proofs`] was any later than this.
    fn go_on(&self, proofs: u64) {
        let mut told = self.telling();
        if self.proofs.load(Relaxed).wrapping_sub(proofs).cast_signed() > 0 {
            return;
        }
        self.proofs.store(proofs, Relaxed);
        let Telling::Held { frames, is_over, .. } = &mut *told else { return };
        for frame in frames.drain(..) {
            self.queue.push(frame, self.queue_bytes_max);
        }
        *told = if *is_over { Telling::Over } else { Telling::Open };
    }

    /// The last that the client is told of it, after what is held.
    fn end(&self, fault: &Fault) {
        let Some(last) = self.last(fault) else { return };
        let mut told = self.telling();
        match &mut *told {
            Telling::Held { frames, is_over, .. } => {
                frames.push(last);
                *is_over = true;
            }
            Telling::Open => {
                self.queue.push(last, self.queue_bytes_max);
                *told = Telling::Over;
            }
            Telling::Over => {}
        }
    }

    /// The same, and what is held is not told.
    fn cut(&self, fault: &Fault) {
        let Some(last) = self.last(fault) else { return };
        let mut told = self.telling();
        if !matches!(*told, Telling::Over) {
            self.queue.push(last, self.queue_bytes_max);
            *told = Telling::Over;
        }
    }

    fn last(&self, fault: &Fault) -> Option<Bytes> {
        let id = Id::of_json(&self.id).ok()?;
        Some(frames::watch_ended(id, &self.path, &envelope::error(fault)))
    }

    fn stop(&self) {
        *self.telling() = Telling::Over;
    }

    fn is_over(&self) -> bool {
        matches!(*self.telling(), Telling::Over)
    }

    fn telling(&self) -> MutexGuard<'_, Telling> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sink for Feed {
    fn told(&self, change: &Arc<Told>) -> Result<(), Full> {
        let written = |told: &Told| {
            let json = std::str::from_utf8(told.json()).unwrap_or("null");
            let node = &told.entry().node;
            frames::watched(&node.path, node.layer.as_str().trim_start_matches('*'), json)
        };
        let frame = change.frame(written).clone();
        let mut told = self.telling();
        // Under the lock, so that it is no older than what a look has found.
        let proofs = watch::proofs(&self.services);
        let has_changed = self.proofs.swap(proofs, Relaxed) != proofs;
        if has_changed && matches!(*told, Telling::Open) {
            *told = Telling::held();
        }
        match &mut *told {
            Telling::Held { bytes, is_over: false, .. }
                if *bytes + frame.len() > self.queue_bytes_max =>
            {
                return Err(Full);
            }
            Telling::Held { frames, bytes, is_over: false } => {
                *bytes += frame.len();
                frames.push(frame);
            }
            // A socket that does not keep up is cut as a whole, by its queue.
            Telling::Open => {
                self.queue.push(frame, self.queue_bytes_max);
            }
            Telling::Held { .. } | Telling::Over => {}
        }
        drop(told);
        if has_changed && let Some(asks) = self.asks.upgrade() {
            asks.look();
        }
        Ok(())
    }

    fn ended(&self, why: Ended) {
        self.end(&watch::ended(why));
    }
}

impl std::fmt::Debug for Asks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Asks").field("waiting", &self.waiting()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::hand_on;
    use crate::http::stage::Stage;
    use crate::sockets::table::SocketTable;

    const BYTES_MAX: usize = 1 << 20;

    /// A watch of `/p`, held as one is that has just been opened.
    fn feed(stage: &Stage) -> Feed {
        let services = stage.shared.neuron.services.clone();
        Feed {
            id: "1".into(),
            path: Path::parse("/p").expect("a path"),
            queue: SocketTable::new(BYTES_MAX).open().1,
            queue_bytes_max: BYTES_MAX,
            asks: Weak::new(),
            proofs: AtomicU64::new(watch::proofs(&services)),
            services,
            told: Mutex::new(Telling::held()),
        }
    }

    fn texts(feed: &Feed) -> Vec<String> {
        let frames = feed.queue.take();
        frames.iter().map(|frame| String::from_utf8_lossy(&frame[2..]).into_owned()).collect()
    }

    /// A stage, and a change that happened there.
    async fn changed() -> (Stage, Arc<Told>) {
        let stage = Stage::new(|_| {});
        tokio::spawn(hand_on(stage.shared.neuron.services.kv.watches().clone()));
        let told = stage.told().await;
        (stage, told)
    }

    /// Who may watch no longer hears nothing of what was held, and nothing that is told beside it.
    #[tokio::test]
    async fn what_is_cut_is_told_that_and_nothing_else() {
        let (stage, change) = changed().await;
        let feed = feed(&stage);
        let proofs = watch::proofs(&feed.services);
        feed.go_on(proofs);
        assert_eq!(feed.told(&change), Ok(()));
        assert_eq!(texts(&feed).len(), 1);
        stage.put("_conf/p", r#"{"k":"watch","v":["nobody"]}"#).await;
        assert_eq!(feed.told(&change), Ok(()));
        assert!(texts(&feed).is_empty(), "held, since it is not known whether he may have it");
        feed.cut(&Fault::from(Code::NotAllowed));
        assert_eq!(feed.told(&change), Ok(()));
        let texts = texts(&feed);
        assert!(texts.len() == 1 && texts[0].contains("not_allowed"), "{texts:?}");
    }

    /// What ends while it is held has its end held too: it is not over before that is told.
    #[tokio::test]
    async fn an_end_that_is_held_is_told() {
        let (stage, change) = changed().await;
        let feed = feed(&stage);
        let proofs = watch::proofs(&feed.services);
        feed.told(&change).expect("it fits");
        feed.end(&Fault::from(Code::Overloaded));
        assert!(!feed.is_over() && texts(&feed).is_empty());
        feed.go_on(proofs);
        let texts = texts(&feed);
        assert!(texts.len() == 2 && texts[1].contains("overloaded"), "{texts:?}");
        assert!(feed.is_over());
    }
}
