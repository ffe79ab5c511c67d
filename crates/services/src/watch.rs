//! Watches of what an account may read: a start, then every change of a node or of one key of it
//! ([`kv4::watch`]); and reads that wait for the next change.
//!
//! Streams, sockets and long polls open them here and nowhere else, so that who may watch is decided in
//! one place: by [`access::decide_watch`], before the watch and again once it is open. What denies
//! the same later ends it ([`end_denied`], [`end_account`]); that a caller is still who he was is looked
//! at by whoever has opened it, whenever [`proofs`] has changed.
//!
//! Not here: KV4's registry, and how changes get to a client.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use event_listener::Event;
use kv4::store::BoxFuture;
use kv4::watch::WatchError;
pub use kv4::watch::{Ended, Full, Guard, Sink, Start, Told, Watch};
use kv4::{Bucket, Node};
use wire::envelope::Fault;
use wire::errors::Code;
use wire::names::Key;
use wire::network::Network;

use crate::access;
use crate::entries::{self, Awaits, ROWS_MAX};
use crate::{
    Answer, Call, Service, Services, authorization, configuration, data, first_of, layer,
    namespace, store_fault,
};

/// Reads of one account that wait for a change at a time.
pub(crate) const POLLS_MAX: usize = 1_024;
/// Longest that a read waits for a change: some proxies give up after a minute.
pub const WAIT_MAX: Duration = Duration::from_secs(55);
/// The ETag of a key that is not there, for who waits for it to come.
pub const ABSENT_TAG: &str = "0";

/// Opens a watch of what a call addresses, one key by `k` or the whole path, for who may read it. A
/// change may be told to `sink` before this returns; it follows the start all the same. Whoever was
/// proven before this looks once more afterwards whether the caller still is: an account that ended in
/// between has ended what was open by then.
///
/// # Errors
/// As [`access::decide_watch`]; `bad_request` for what cannot be watched, `too_large` for a path with more
/// than one answer may have, `overloaded` when the account has too many watches; the store's.
pub async fn open(
    services: &Services,
    service: Service,
    call: &Call<'_>,
    sink: Arc<dyn Sink>,
) -> Result<(Start, Guard), Fault> {
    access::decide_watch(services, service, call).await?;
    if ["k2", "k3", "k4"].iter().any(|name| call.params.has(name)) {
        return Err(Fault::with(Code::BadRequest, "a watch is of a key `k`, or of a whole path"));
    }
    let (node, key) = target(service, call)?;
    let opened = open_at(services, &watch(call, node, key), sink).await?;
    // A rule that came in between has closed what was open by then.
    access::decide_watch(services, service, call).await?;
    Ok(opened)
}

/// Opens a watch for whoever has seen to it that its owner may have it, and looks at that again
/// afterwards.
///
/// # Errors
/// As [`open`].
pub async fn open_at(
    services: &Services,
    watch: &Watch,
    sink: Arc<dyn Sink>,
) -> Result<(Start, Guard), Fault> {
    let opened = services.kv.watch(watch, &sink).await.map_err(fault)?;
    match opened.0.len() > ROWS_MAX {
        true => Err(too_large()),
        false => Ok(opened),
    }
}

/// The node, and the key if there is one, that a call addresses in a service that can be watched.
///
/// # Errors
/// `bad_request` for another service, `bad_name` for a key that cannot exist.
pub fn target(service: Service, call: &Call<'_>) -> Result<(Node, Option<Key>), Fault> {
    let Some(name) = layer_of(service) else {
        let why = format!("`_{}` cannot be watched", service.name());
        return Err(Fault::with(Code::BadRequest, why));
    };
    let mut key = entries::key(call)?;
    if service == Service::Authorization
        && let Some(network) = key.as_ref().and_then(|key| Network::parse(key.as_str()))
    {
        key = Some(Key::parse(&network.to_key())?);
    }
    Ok((entries::node(call, layer(name)), key))
}

/// Whether a service's listings show all that its layer holds, so that a watch may too.
pub fn is_watchable(service: Service) -> bool {
    layer_of(service).is_some()
}

fn layer_of(service: Service) -> Option<&'static str> {
    match service {
        Service::Authorization => Some(authorization::LAYER),
        Service::Configuration => Some(configuration::LAYER),
        Service::Data => Some(data::LAYER),
        Service::Namespace => Some(namespace::LAYER),
        _ => None,
    }
}

fn watch(call: &Call<'_>, node: Node, key: Option<Key>) -> Watch {
    let Call { caller, address, .. } = *call;
    Watch { node, key, payer: caller.payer.clone(), who: caller.who.clone(), address }
}

fn fault(error: WatchError) -> Fault {
    match error {
        WatchError::Store(kv4::store::StoreError::TooLarge) => too_large(),
        WatchError::Store(error) => store_fault(error),
        WatchError::TooMany(_) => Fault::with(Code::Overloaded, error.to_string()),
        WatchError::Ended(why) => ended(why),
        error => Fault::with(Code::Internal, error.to_string()),
    }
}

fn too_large() -> Fault {
    Fault::with(
        Code::TooLarge,
        "the path has too much to be watched as a whole: watch a key by `k`",
    )
}

/// Why a watch is over, as its client is told.
pub fn ended(why: Ended) -> Fault {
    match why {
        Ended::Slow => Fault::with(Code::Overloaded, "changes came faster than they were taken"),
        Ended::Gone => Fault::with(Code::NotFound, "the account is no more"),
        Ended::Denied => Fault::new(Code::Unauthorized),
        Ended::Stopping => Fault::with(Code::StoreUnavailable, "the neuron stops"),
    }
}

/// Ends the watches of a bucket that its address rules deny.
pub(crate) async fn end_denied(services: &Services, bucket: &Bucket) -> Result<(), Fault> {
    let rules = services.rules.of(&services.kv, bucket).await.map_err(store_fault)?;
    let is_denied = |watch: &Watch| {
        // `_auth` is never denied by its own rule.
        let is_rule = watch.node.layer.as_str() == authorization::LAYER;
        watch.node.bucket == *bucket && !is_rule && rules.denied(&watch.node.path, watch.address)
    };
    services.kv.watches().end_where(Ended::Denied, &is_denied);
    Ok(())
}

/// Ends the watches of an account, and of those within it, that is inactive from here on.
pub(crate) fn end_account(services: &Services, own: &Bucket) {
    services.kv.watches().end_where(Ended::Denied, &|watch| watch.node.bucket.is_within(own));
}

/// A number that changes whenever some caller may be none any more, or may do less: an account, an admin,
/// a token or a rule of paths changed, or somebody ended a login. Whoever has proven callers over a longer time looks at them again then;
/// what else proves a caller is to be counted here.
pub fn proofs(services: &Services) -> u64 {
    let changes = [&services.account_changes, &services.token_changes, &services.setting_changes];
    changes.iter().fold(services.sessions.ended(), |sum, of| sum.wrapping_add(of.count()))
}

/// The ETag of a listing: of what it shows. Made only for who asks by it, since plain listings
/// have none.
pub fn tag(answer: &Answer) -> String {
    let digest = digest(&SHA256, answer.v.as_bytes());
    digest.as_ref()[..16].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// How long a call would wait for a change; `None` when it does not ask for that.
///
/// # Errors
/// `bad_request` for what is no time, or of what cannot be waited for.
pub fn wait(service: Service, call: &Call<'_>) -> Result<Option<Duration>, Fault> {
    let Some(text) = call.params.text("wait") else { return Ok(None) };
    let bad = |why: &str| Err(Fault::with(Code::BadRequest, why));
    let Ok(seconds) = text.parse::<u32>() else { return bad("`wait` is in whole seconds") };
    // A listing of `_ns` is of paths below, which a watch does not see.
    if !is_watchable(service) || service == Service::Namespace {
        return bad("there is nothing to `wait` for here");
    }
    if call.params.flag("time_series") {
        return bad("a series takes no `wait`");
    }
    Ok(Some(Duration::from_secs(seconds.into()).min(WAIT_MAX)))
}

/// A read that waits for a change.
pub struct Poll<'a> {
    bell: Arc<Bell>,
    deadline: BoxFuture<'static, ()>,
    _guard: Guard,
    _awaits: Awaits<'a>,
}

impl std::fmt::Debug for Poll<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Poll").field("bell", &self.bell).finish_non_exhaustive()
    }
}

/// Begins to hear of changes of what a call reads, which it has been decided that it may. What is read
/// after this and has not changed is worth [`Poll::changed`].
///
/// # Errors
/// As [`open`], and `overloaded` when too many reads of the account wait already.
pub async fn poll<'a>(
    services: &'a Services,
    service: Service,
    call: &'a Call<'_>,
    wait: Duration,
) -> Result<Poll<'a>, Fault> {
    let Some(_awaits) = services.polling.begin(&call.caller.payer) else {
        let why = format!("{POLLS_MAX} reads of this account wait for a change already");
        return Err(Fault::with(Code::Overloaded, why));
    };
    let (node, key) = target(service, call)?;
    let bell = Arc::new(Bell::default());
    let (_, _guard) = open_at(services, &watch(call, node, key), bell.clone()).await?;
    Ok(Poll { bell, deadline: services.clock.sleep(wait), _guard, _awaits })
}

impl Poll<'_> {
    /// Waits for a change since the last time, or since this began.
    pub async fn changed(&mut self) -> Woken {
        let rung = first_of(self.bell.rung(), Pin::new(&mut self.deadline)).await;
        rung.unwrap_or(Woken::Late)
    }
}

/// What ended a wait for a change.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Woken {
    Changed,
    /// Nothing more is told: it is to be looked at once more, and by whom.
    Over,
    /// It has waited for as long as it may.
    Late,
}

/// Rings when something changes.
#[derive(Debug, Default)]
struct Bell {
    has_changed: AtomicBool,
    is_over: AtomicBool,
    rings: Event,
}

impl Bell {
    async fn rung(&self) -> Woken {
        loop {
            let listener = self.rings.listen();
            // Listening came first: a ring after this look is heard.
            if self.has_changed.swap(false, Ordering::SeqCst) {
                return Woken::Changed;
            }
            if self.is_over.load(Ordering::SeqCst) {
                return Woken::Over;
            }
            listener.await;
        }
    }
}

impl Sink for Bell {
    fn told(&self, _: &Arc<Told>) -> Result<(), Full> {
        self.has_changed.store(true, Ordering::SeqCst);
        self.rings.notify(1);
        Ok(())
    }

    fn ended(&self, _: Ended) {
        self.is_over.store(true, Ordering::SeqCst);
        self.rings.notify(1);
    }
}
