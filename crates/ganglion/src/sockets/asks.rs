//! What a v4 socket asks for: requests that are carried out one after another, in their order, by a task
//! that lives while there are some, and watches that last.
//!
//! The socket's own task only hands them over, and reads no more of its peer while too many wait. Not
//! here: what a request means (`neuron::asking`).

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use neuron::asking::{Asker, Reply};
use neuron::watching::Opened;
use services::watch::{self, Ended, Full, Sink, Told};
use wire::envelope::{self, Fault};
use wire::errors::Code;
use wire::frames::{self, Generation, Id, ServerFrame, Verb};
use wire::names::Path;
use wire::params::Params;

use super::table::Queue;
use crate::http::Shared;
use crate::turns::Spender;

/// How long a request waits between looks whether its socket has room for an answer.
const ROOM_LOOK_EVERY: Duration = Duration::from_millis(5);

/// The requests and watches of one socket.
pub(super) struct Asks {
    shared: Arc<Shared>,
    asker: Asker,
    spender: Arc<Spender>,
    queue: Arc<Queue>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Ask>,
    /// Whether there is a task that carries them out.
    is_running: bool,
    /// Set once: nothing more is begun.
    is_over: bool,
    /// By the id of the request that asked for it, as JSON text.
    watches: BTreeMap<Box<str>, Watching>,
    /// What [`watch::proofs`] was when the watches were last looked at.
    proofs: u64,
}

/// What is to be done.
enum Ask {
    /// Look whether the watches may go on.
    Check,
    Request {
        id: Box<str>,
        verb: Verb,
        params: Box<str>,
    },
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
    /// What comes before the reply; none from then on.
    held: Mutex<Option<Vec<Bytes>>>,
}

impl Asks {
    pub(super) fn new(
        shared: Arc<Shared>,
        asker: Asker,
        spender: Arc<Spender>,
        queue: Arc<Queue>,
    ) -> Arc<Asks> {
        Arc::new(Asks { shared, asker, spender, queue, state: Mutex::default() })
    }

    /// Takes a request; it is answered after those before it.
    pub(super) fn take(self: &Arc<Self>, id: Id<'_>, verb: Verb, params: &str) {
        let (id, params) = (id.as_str().into(), params.into());
        self.add(Ask::Request { id, verb, params });
    }

    /// How many requests wait.
    pub(super) fn waiting(&self) -> usize {
        self.state().waiting.len()
    }

    /// To be called every second or so: has the watches looked at when their owner may be none any
    /// more.
    pub(super) fn look(self: &Arc<Self>) {
        let proofs = watch::proofs(&self.shared.neuron.services);
        let mut state = self.state();
        let is_due = !state.watches.is_empty() && state.proofs != proofs;
        state.proofs = proofs;
        drop(state);
        if is_due {
            self.add(Ask::Check);
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

    fn add(self: &Arc<Self>, ask: Ask) {
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
        tokio::spawn(async move {
            let spender = asks.spender.clone();
            spender.metered(asks.run()).await;
        });
    }

    /// Carries out what waits until there is no more.
    async fn run(&self) {
        loop {
            let ask = {
                let mut state = self.state();
                let Some(ask) = state.waiting.pop_front() else {
                    state.is_running = false;
                    return;
                };
                ask
            };
            match ask {
                Ask::Check => self.check().await,
                Ask::Request { id, verb, params } => {
                    let _busy = self.shared.lifecycle.busy();
                    self.carry_out(&id, verb, &params).await;
                }
            }
            // The peer may have been kept waiting.
            self.queue.wake.notify_one();
        }
    }

    async fn carry_out(&self, id: &str, verb: Verb, params: &str) {
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
                let reply = ticket.carry_out(work).await;
                self.answer(id, &reply);
            }
        }
    }

    async fn watch(&self, id: &str, params: &str) {
        let watches_max = self.shared.config.signal.watches_per_socket;
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
        let sink = |path: &Path| -> Arc<dyn Sink> {
            let feed = Arc::new(Feed {
                id: id.into(),
                path: path.clone(),
                queue: self.queue.clone(),
                queue_bytes_max: self.queue_bytes_max(),
                held: Mutex::new(Some(Vec::new())),
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
        if self.keep(id, opened, feed.clone()) {
            self.answer(id, &reply);
            feed.begin();
            // What changed between the opening and the look at `proofs` is looked at here.
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
        let watching = self.state().watches.remove(id.as_str());
        match watching {
            Some(_) => Ok(Reply { envelope: envelope::ok("null"), ver: None }),
            None => Err(Code::NotFound.into()),
        }
    }

    /// Ends the watches that their owner may not have any more.
    async fn check(&self) {
        let open: Vec<_> = {
            let state = self.state();
            let watches = state.watches.iter();
            watches.map(|(id, watching)| (id.clone(), watching.opened.clone())).collect()
        };
        for (id, opened) in open {
            let may = self.shared.neuron.may_still_watch(&self.asker, &opened).await;
            if let Err(fault) = may {
                let ended = self.state().watches.remove(&id);
                if let Some(watching) = ended {
                    watching.feed.end(&fault);
                }
            }
        }
    }

    fn answer(&self, id: &str, reply: &Reply) {
        let Ok(id) = Id::of_json(id) else { return };
        let frame = |reply: &Reply| {
            let (envelope, ver) = (&reply.envelope, reply.ver.as_deref());
            ServerFrame::Reply { id, cursor: None, ver, envelope }.to_ws(Generation::V4)
        };
        let mut text = frame(reply);
        if text.len() > self.queue_bytes_max() / 2 {
            let why = "the answer is longer than a socket's queue takes: ask for less, or by HTTP";
            text = frame(&Reply::of(&Fault::with(Code::TooLarge, why)));
        }
        self.queue.push(text, self.queue_bytes_max());
    }

    fn queue_bytes_max(&self) -> usize {
        self.shared.config.signal.queue.0
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Feed {
    /// Lets through what came before the reply, which is queued by now, and what comes from here on.
    fn begin(&self) {
        let mut held = self.held();
        for frame in held.take().into_iter().flatten() {
            self.queue.push(frame, self.queue_bytes_max);
        }
    }

    fn end(&self, fault: &Fault) {
        if let Ok(id) = Id::of_json(&self.id) {
            self.push(frames::watch_ended(id, &self.path, &envelope::error(fault)));
        }
    }

    fn push(&self, frame: Bytes) {
        let mut held = self.held();
        match &mut *held {
            Some(held) => held.push(frame),
            None => {
                self.queue.push(frame, self.queue_bytes_max);
            }
        }
    }

    fn held(&self) -> MutexGuard<'_, Option<Vec<Bytes>>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sink for Feed {
    fn told(&self, change: &Arc<Told>) -> Result<(), Full> {
        let written = |told: &Told| {
            let json = std::str::from_utf8(told.json()).unwrap_or("null");
            frames::watched(&told.entry().node.path, json)
        };
        // A socket that does not keep up is cut as a whole, by its queue.
        self.push(change.frame(written).clone());
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
