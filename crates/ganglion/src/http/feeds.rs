//! Feeds: watches as server-sent events (HTML, 9.2): a start, then every change, for as long as the
//! client takes them and may have them.
//!
//! A feed holds nothing of its account's turns. What waits for its client is bounded by
//! `signal.queue`, and counts as an answer that was not taken (`answers`); one that owes nothing may be
//! silent for ever, but for a heartbeat. Driven by the watches' changes, by its connection's polls, and
//! by [`Feeds::tick`]. Not here: what may be watched and by whom (`neuron`).

use std::collections::{HashMap, VecDeque};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use http::header::{self, HeaderName, HeaderValue};
use neuron::requests::{Admission as _, Payer};
use neuron::watching::{self, EVENTS, Opened, Opening};
use services::Services;
use services::watch::{self, Ended, Full, Sink, Told};
use tokio::time::{Instant, Sleep};
use wire::envelope::{self, Fault};
use wire::errors::Code;

use super::answers::{Answer, Untaken, Whole, counted_piece};
use super::connection::Connection;
use super::replies::{HttpResponse, closing, faulted, reply, wants_problem};
use super::requests::Asker;
use crate::turns::Spender;

/// How often a feed says that it lives; proxies cut what is silent for a minute.
const BEAT: Duration = Duration::from_secs(15);
/// How long after it could not be known whether a feed may go on that is looked at again.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// How often: then the feed ends, before what waits counts as not taken.
const LOOKS_MAX: u32 = 10;
/// A comment, which clients leave out.
const BEAT_BYTES: &[u8] = b": \n\n";
/// nginx's.
const BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");
/// Milliseconds after which a client whose feed ended comes again.
const RETRY_MS: u32 = 1_000;

/// Every open feed.
#[derive(Debug, Default)]
pub(crate) struct Feeds {
    open: Mutex<HashMap<u64, Arc<Queue>>>,
    next: AtomicU64,
    /// What [`watch::proofs`] was at the last tick.
    proofs: AtomicU64,
}

impl Feeds {
    pub(crate) fn len(&self) -> usize {
        self.open().len()
    }

    /// To be called every second or so: has feeds look whether their callers are still who they were,
    /// when that may have changed, and ends all while the neuron drains.
    pub(crate) fn tick(&self, proofs: u64, is_draining: bool) {
        if is_draining {
            for queue in self.open().values() {
                queue.ended(Ended::Stopping);
            }
        } else if self.proofs.swap(proofs, Ordering::Relaxed) != proofs {
            for queue in self.open().values() {
                queue.check();
            }
        }
    }

    fn open(&self) -> MutexGuard<'_, HashMap<u64, Arc<Queue>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What waits for one feed's client.
#[derive(Debug)]
struct Queue {
    waiting: Mutex<Waiting>,
    bytes_max: usize,
    spender: Arc<Spender>,
    untaken: Arc<Untaken>,
    services: Arc<Services>,
    /// What [`watch::proofs`] was as of what was told last.
    proofs: AtomicU64,
}

#[derive(Debug, Default)]
struct Waiting {
    events: VecDeque<Bytes>,
    bytes: usize,
    end: Option<Ended>,
    must_check: bool,
    waker: Option<Waker>,
}

/// What a feed finds in its queue.
enum Next {
    Event(Bytes),
    Check,
    End(Ended),
    Nothing,
}

impl Queue {
    fn check(&self) {
        self.change(|waiting| waiting.must_check = true);
    }

    /// What comes next; while it `is_checking` whether it may, only that there is nothing.
    fn next(&self, is_checking: bool, context: &Context<'_>) -> Next {
        let mut waiting = self.waiting();
        if !is_checking && std::mem::take(&mut waiting.must_check) {
            return Next::Check;
        }
        if !is_checking && let Some(event) = waiting.events.pop_front() {
            waiting.bytes -= event.len();
            return Next::Event(event);
        }
        // Whoever cannot be told what waits comes again elsewhere.
        if let Some(why) = waiting.end
            && (waiting.events.is_empty() || why == Ended::Stopping)
        {
            return Next::End(why);
        }
        if waiting.waker.as_ref().is_none_or(|waker| !waker.will_wake(context.waker())) {
            waiting.waker = Some(context.waker().clone());
        }
        Next::Nothing
    }

    fn change(&self, change: impl FnOnce(&mut Waiting)) {
        let waker = {
            let mut waiting = self.waiting();
            change(&mut waiting);
            waiting.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sink for Queue {
    fn told(&self, change: &Arc<Told>) -> Result<(), Full> {
        let event = change.event();
        let bytes = self.waiting().bytes + event.len();
        if bytes > self.bytes_max {
            return Err(Full);
        }
        let event = counted_piece(event.clone(), &self.spender, &self.untaken).ok_or(Full)?;
        let proofs = watch::proofs(&self.services);
        let has_changed = self.proofs.swap(proofs, Ordering::Relaxed) != proofs;
        self.change(|waiting| {
            // Whoever was left out before this was said does not hear it.
            waiting.must_check |= has_changed;
            waiting.bytes += event.len();
            waiting.events.push_back(event);
        });
        Ok(())
    }

    fn ended(&self, why: Ended) {
        self.change(|waiting| {
            waiting.end.get_or_insert(why);
            if why == Ended::Slow {
                // Whoever does not take it, does not get it.
                waiting.events = VecDeque::new();
                waiting.bytes = 0;
            }
        });
    }
}

/// One feed: a response's body without an end of its own.
pub(super) struct Feed {
    queue: Arc<Queue>,
    /// What is on its way: the start at first.
    now: Whole,
    beat: Pin<Box<Sleep>>,
    checking: Option<Checking>,
    asked: Arc<Asked>,
    id: u64,
    has_ended: bool,
}

type Checking = Pin<Box<dyn Future<Output = Result<(), Fault>> + Send>>;

/// Who has asked for a feed, and how.
struct Asked {
    connection: Arc<Connection>,
    parts: http::request::Parts,
    asker: Asker,
    opened: Opened,
}

impl std::fmt::Debug for Feed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Feed").field("queue", &self.queue).finish_non_exhaustive()
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.asked.connection.shared.feeds.open().remove(&self.id);
    }
}

impl Feed {
    /// The next bytes; `None` at the end.
    pub(super) fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Bytes>> {
        loop {
            if let Some(piece) = self.now.next() {
                return Poll::Ready(Some(piece));
            }
            if self.has_ended {
                return Poll::Ready(None);
            }
            if let Some(checking) = &mut self.checking
                && let Poll::Ready(checked) = checking.as_mut().poll(context)
            {
                self.checking = None;
                if let Err(fault) = checked {
                    self.end(Some(&fault));
                    continue;
                }
            }
            match self.queue.next(self.checking.is_some(), context) {
                Next::Event(event) => self.pass(event),
                Next::End(Ended::Stopping) => self.end(None),
                Next::End(why) => self.end(Some(&watch::ended(why))),
                Next::Check => self.check(),
                Next::Nothing if self.beat.as_mut().poll(context).is_ready() => {
                    self.beat.as_mut().reset(Instant::now() + BEAT);
                    // What has an end of its own, as a token does, is nobody's change.
                    self.check();
                    self.pass(Bytes::from_static(BEAT_BYTES));
                }
                Next::Nothing => return Poll::Pending,
            }
        }
    }

    fn pass(&mut self, event: Bytes) {
        self.now = Whole::new(event, self.asked.connection.pace.is_http2());
    }

    fn end(&mut self, fault: Option<&Fault>) {
        self.has_ended = true;
        if let Some(fault) = fault {
            let data = envelope::error(fault);
            self.pass(Bytes::from(format!("event: end\ndata: {data}\n\n")));
        }
    }

    fn check(&mut self) {
        let asked = self.asked.clone();
        self.checking.get_or_insert_with(|| Box::pin(async move { asked.may_watch().await }));
    }
}

impl Asked {
    /// Looks until it is known: a store that is away for a moment says nothing of the caller.
    async fn may_watch(&self) -> Result<(), Fault> {
        let mut looks = 0;
        loop {
            let request = self.connection.request(&self.parts, b"", &self.asker);
            match self.connection.shared.neuron.may_watch(&request, &self.opened).await {
                Err(fault) if fault.code.status() >= 500 && looks < LOOKS_MAX => looks += 1,
                known => return known,
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }
}

impl Connection {
    /// Opens the feed that a request asks for.
    pub(super) async fn feed(
        self: &Arc<Self>,
        parts: http::request::Parts,
        asker: Asker,
    ) -> Result<hyper::Response<Answer>, HttpResponse> {
        let shared = &self.shared;
        let refused = |fault: &Fault| {
            let status = StatusCode::from_u16(fault.code.status());
            let status = status.unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
            faulted(fault, status, wants_problem(&parts.headers))
        };
        if shared.lifecycle.is_draining() {
            return Err(self.send_on(&asker).await.unwrap_or_else(|| {
                refused(&Fault::with(Code::Overloaded, "this neuron is about to stop"))
            }));
        }
        let queue = Arc::new(Queue {
            waiting: Mutex::default(),
            bytes_max: shared.config.signal.queue.0,
            spender: asker.spender.clone(),
            untaken: self.pace.untaken().clone(),
            services: shared.neuron.services.clone(),
            proofs: AtomicU64::new(watch::proofs(&shared.neuron.services)),
        });
        let opened = {
            let request = self.request(&parts, b"", &asker);
            let ticket = asker.spender.ticket();
            let work = shared.neuron.watch(&request, &ticket, queue.clone());
            ticket.carry_out(work).await
        };
        self.pace.answered();
        let opening = opened.map_err(|response| reply(*response, &parts.method))?;
        let Opening { start, head, opened } = opening;
        let text = start.json();
        let start = Bytes::from(format!("retry: {RETRY_MS}\n\nevent: start\ndata: {text}\n\n"));
        let Some(start) = counted_piece(start, &asker.spender, self.pace.untaken()) else {
            let why = "too many bytes of answers to this client, or to all, were not taken yet";
            return Err(refused(&Fault::with(Code::Overloaded, why)));
        };
        let mut head = reply(head, &parts.method);
        // Or nginx keeps what is said until it has some pages of it.
        head.headers_mut().insert(BUFFERING, HeaderValue::from_static("no"));
        let id = shared.feeds.next.fetch_add(1, Ordering::Relaxed);
        shared.feeds.open().insert(id, queue.clone());
        let now = Whole::new(start, self.pace.is_http2());
        let asked = Arc::new(Asked { connection: self.clone(), parts, asker, opened });
        let beat = Box::pin(tokio::time::sleep(BEAT));
        let feed = Feed { queue, now, beat, checking: None, asked, id, has_ended: false };
        Ok(head.map(|_| Answer::Feed(Box::new(feed))))
    }

    /// Sends a client on to another neuron. A page's `EventSource` gives up for good on whatever is no
    /// stream, and comes again when one ends.
    async fn send_on(&self, asker: &Asker) -> Option<HttpResponse> {
        let ticket = asker.spender.ticket();
        let _turn = ticket.turn(Payer::Address(asker.address), true).await.ok()?;
        let mut response = hyper::Response::new(Bytes::from(format!("retry: {RETRY_MS}\n\n")));
        for (name, value) in [
            (header::CONTENT_TYPE, EVENTS),
            (header::CACHE_CONTROL, "no-store"),
            (header::ACCESS_CONTROL_ALLOW_ORIGIN, "*"),
        ] {
            response.headers_mut().insert(name, HeaderValue::from_static(value));
        }
        Some(closing(response))
    }

    /// Whether a request asks for a feed.
    pub(super) fn wants_feed(&self, parts: &http::request::Parts, asker: &Asker) -> bool {
        // Hardly any does, and none of the others is to pay for it.
        let accept = || parts.headers.get(header::ACCEPT)?.to_str().ok();
        let may = parts.method == http::Method::GET
            && (parts.uri.query().is_some_and(|query| query.contains("watch="))
                || accept().is_some_and(|accept| accept.contains(EVENTS)));
        may && watching::wants_events(&self.request(parts, b"", asker))
    }
}

/// Hands on what changes, for as long as the neuron runs.
pub(crate) async fn hand_on(watches: Arc<kv4::watch::Watches>) {
    loop {
        watches.waiting().await;
        while watches.drain() {
            tokio::task::yield_now().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use kv4::watch::Watches;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
    use tokio::time::timeout;

    use super::super::stage::{Stage, address, authorization};
    use super::*;

    fn watches(stage: &Stage) -> Arc<Watches> {
        stage.shared.neuron.services.kv.watches().clone()
    }

    /// A stage on which changes are handed on.
    fn stage(change: impl FnOnce(&mut crate::config::Config)) -> Stage {
        let stage = Stage::new(change);
        tokio::spawn(hand_on(watches(&stage)));
        stage
    }

    async fn open(stage: &Stage, path: &str) -> DuplexStream {
        let mut connection = stage.connect(1);
        let head = format!("GET {path} HTTP/1.1\r\nhost: a\r\n{}\r\n", authorization());
        connection.write_all(head.as_bytes()).await.expect("it is taken");
        connection
    }

    /// Reads until a text has come; what came.
    async fn until(connection: &mut DuplexStream, text: &str) -> String {
        let mut all = String::new();
        while !all.contains(text) {
            let mut some = [0; 4096];
            let length = connection.read(&mut some).await.expect("more");
            assert!(length > 0, "it ended: {all}");
            all.push_str(std::str::from_utf8(&some[..length]).expect("text"));
        }
        all
    }

    #[tokio::test(start_paused = true)]
    async fn a_feed_beats_every_15_seconds_and_holds_no_turn() {
        let stage = stage(|config| config.limits.requests_at_once = 1);
        let mut feed = open(&stage, "/_data/p?watch=sse").await;
        until(&mut feed, "event: start").await;
        let begun = Instant::now();
        for beat in 1..=20 {
            until(&mut feed, ": \n\n").await;
            assert_eq!(begun.elapsed().as_secs(), 15 * beat);
        }
        stage.put("_data/p", r#"{"k":"a","v":"x"}"#).await;
        until(&mut feed, "event: change").await;
        assert_eq!(stage.shared.feeds.len(), 1);
        drop(feed);
        while stage.shared.feeds.len() > 0 || !watches(&stage).is_empty() {
            tokio::task::yield_now().await;
        }
        assert_eq!(stage.shared.turns.answer_bytes(), 0);
    }

    /// It takes the head, and nothing after it.
    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_none_of_its_changes_is_cut() {
        let stage = stage(|_| {});
        let mut feed = open(&stage, "/_data/p?watch=sse").await;
        until(&mut feed, "event: start").await;
        // More than a pipe and hyper's buffer hold, less than the queue.
        for _ in 0..10 {
            let value = "x".repeat(30_000);
            stage.put("_data/p", &format!(r#"{{"k":"a","v":"{value}"}}"#)).await;
        }
        let begun = Instant::now();
        while stage.shared.feeds.len() > 0 {
            tokio::time::sleep(Duration::from_secs(1)).await;
            assert!(begun.elapsed() < Duration::from_secs(60), "it is never cut");
        }
        assert_eq!(watches(&stage).stats().slow, 0, "it was no faster than it may be");
        while stage.shared.turns.answer_bytes() > 0 {
            tokio::task::yield_now().await;
        }
        let mut rest = Vec::new();
        timeout(Duration::from_secs(1), feed.read_to_end(&mut rest)).await.expect("the end").ok();
    }

    #[tokio::test]
    async fn what_waits_for_a_client_is_bounded() {
        let stage = stage(|_| {});
        let change = stage.told().await;
        let queue = |bytes_max| Queue {
            waiting: Mutex::default(),
            bytes_max,
            spender: Spender::new(stage.shared.turns.clone(), address(1)),
            untaken: Arc::default(),
            services: stage.shared.neuron.services.clone(),
            proofs: AtomicU64::default(),
        };
        let bytes = change.event().len();
        let (exact, less) = (queue(2 * bytes), queue(2 * bytes - 1));
        assert_eq!(exact.told(&change), Ok(()));
        assert_eq!(exact.told(&change), Ok(()), "at the limit");
        assert_eq!(exact.told(&change), Err(Full), "past it");
        assert_eq!(less.told(&change), Ok(()));
        assert_eq!(less.told(&change), Err(Full));
        assert_eq!(stage.shared.turns.answer_bytes(), 3 * bytes);
        exact.ended(Ended::Gone);
        assert_eq!(exact.waiting().events.len(), 2, "what waits comes before the end");
        less.ended(Ended::Slow);
        assert!(less.waiting().events.is_empty(), "it does not keep up");
        assert_eq!(stage.shared.turns.answer_bytes(), 2 * bytes);
        drop(exact);
        assert_eq!(stage.shared.turns.answer_bytes(), 0);
    }
}
