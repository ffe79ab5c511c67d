//! The one evaluator: may this caller, from this address, do this here?
//!
//! It knows accounts, sub-accounts, admins, tokens with their grants and paths, rules of paths and of
//! addresses; services do not decide access themselves. The caller has been proven already
//! ([`crate::principal`]). A token's grants say what its holder may do, rules who may do it where: both
//! must agree.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use kv4::{Bucket, Head};
use wire::envelope::Fault;
use wire::errors::Code;
use wire::names::Path;
use wire::network::Network;
use wire::token::{Claims, Grants};

use crate::path_rules::{Act, Seats};
use crate::principal::Role;
use crate::{Call, Closing, Method, Service, Services, Socket, accounts};
use crate::{namespace, store_fault, subscriptions, watch};

/// The flag by which a whole series goes.
pub(crate) const ERASE: &str = "erase";
/// What is told of all that is for accounts only.
const NO_USERS: &str = "a token does not permit this; send the account's credentials";

/// Decides a call of the HTTP API; one that watches is decided by [`decide_watch`].
///
/// # Errors
/// `unauthorized` where an address rule denies, `not_allowed` where the credentials, or rules of the
/// path, do not permit.
pub async fn decide(services: &Services, service: Service, call: &Call<'_>) -> Result<(), Fault> {
    let Call { caller, method, ref path, address, .. } = *call;
    if let Role::User(claims) = &caller.role {
        return decide_user(services, service, call, claims).await;
    }
    let is_read = method == Method::Get;
    // `_auth` is never denied by its own rule, so nobody locks himself out.
    if service != Service::Authorization {
        permit(services, &caller.bucket, path, address).await?;
    }
    let refusal = match service {
        Service::Statistics if !is_read => Some("statistics are written by services only"),
        Service::Accounts
            if !is_read && caller.sub.is_some() && path.as_str() == accounts::ACCOUNTS_PATH =>
        {
            Some("a sub-account cannot have sub-accounts")
        }
        _ if call.params.flag(ERASE) && caller.role != Role::Owner => {
            Some("only the account's owner may erase a series")
        }
        _ => None,
    };
    match refusal {
        Some(why) => Err(Fault::with(Code::NotAllowed, why)),
        None => Ok(()),
    }
}

/// Decides a live watch of what a call would read: when it begins, and again when rules or the caller's
/// login may have changed. An account may watch what it may read. Who holds a token may watch `_data`
/// where grant and rule of `watch` let him; whom a rule of `read` leaves out is told nothing either.
///
/// # Errors
/// As [`decide`].
pub async fn decide_watch(
    services: &Services,
    service: Service,
    call: &Call<'_>,
) -> Result<(), Fault> {
    let Call { caller, ref path, address, .. } = *call;
    let Role::User(claims) = &caller.role else { return decide(services, service, call).await };
    permit(services, &caller.bucket, path, address).await?;
    if service != Service::Data {
        return refuse(NO_USERS);
    }
    decide_data(services, &caller.bucket, claims, (Grants::WATCH, Act::Watch), path).await?;
    decide_rule(services, &caller.bucket, claims, Act::Read, path).await
}

/// Decides a call of somebody who holds a token: he has the data of its path and what is below it, and
/// its room. All else is for accounts.
async fn decide_user(
    services: &Services,
    service: Service,
    call: &Call<'_>,
    claims: &Claims,
) -> Result<(), Fault> {
    let Call { caller, method, ref path, address, .. } = *call;
    let bucket = &caller.bucket;
    permit(services, bucket, path, address).await?;
    let names_key = || ["k", "k2", "k3", "k4"].iter().any(|name| call.params.has(name));
    let data = match (service, method) {
        (Service::Data, Method::Get) => (Grants::READ, Act::Read),
        (Service::Data, Method::Put | Method::Post) => (Grants::WRITE, Act::Write),
        (Service::Data, Method::Delete) if call.params.flag(ERASE) => {
            return refuse("only the account's owner may erase a series");
        }
        (Service::Data, Method::Delete) if !names_key() => {
            return refuse("only the account may delete all of a path; name one key by `k`");
        }
        (Service::Data, Method::Delete) => (Grants::WRITE, Act::Write),
        (Service::Subscriptions, Method::Get) => {
            return decide_room(services, call, claims, Grants::SUBSCRIBE).await;
        }
        (Service::Subscriptions, Method::Delete) => {
            return decide_room(services, call, claims, Grants::MODERATE).await;
        }
        (Service::Subscriptions, Method::Post) => {
            let to_one = call.params.text("t").is_some_and(|to| !to.is_empty());
            let grant = if to_one { Grants::SEND } else { Grants::PUBLISH };
            return decide_room(services, call, claims, grant).await;
        }
        _ => return refuse(NO_USERS),
    };
    decide_data(services, bucket, claims, data, path).await
}

/// Decides whether the holder of a token may do something with the data at a path.
async fn decide_data(
    services: &Services,
    bucket: &Bucket,
    claims: &Claims,
    (grant, act): (Grants, Act),
    path: &Path,
) -> Result<(), Fault> {
    if let Some(scope) = claims.path.as_ref().filter(|scope| !path.is_within(scope)) {
        return refuse(format!("the token is for {scope} and what is below it"));
    }
    require(claims, grant)?;
    decide_rule(services, bucket, claims, act, path).await
}

async fn decide_rule(
    services: &Services,
    bucket: &Bucket,
    claims: &Claims,
    act: Act,
    path: &Path,
) -> Result<(), Fault> {
    let rules = services.path_rules.of(&services.kv, bucket).await.map_err(store_fault)?;
    match rules.permit(act, path, &claims.identity) {
        true => Ok(()),
        false => refuse(format!("a `{}` rule in /_conf leaves this user out", act.as_str())),
    }
}

/// Decides whether the holder of a token may see who is in a room, or send them away: it is the one
/// that his token opens, and he might be there himself.
async fn decide_room(
    services: &Services,
    call: &Call<'_>,
    claims: &Claims,
    grant: Grants,
) -> Result<(), Fault> {
    let Call { caller, address, .. } = *call;
    let room = subscriptions::room(services, call).await?;
    if let Some(scope) = &claims.path {
        let own = namespace::resolve(services, &caller.bucket, scope).await?;
        if own.is_none_or(|own| own != (room.path.clone(), room.topic.clone())) {
            return refuse(format!("the token is for {scope} alone"));
        }
    }
    require(claims, grant)?;
    match decide_seat(services, claims, &caller.bucket, &room.place(), address).await {
        // Of what a token grants, rules of `send` take away what speaks.
        Ok(left) if left.contains(grant) => Ok(()),
        Ok(_) => refuse("a `send` rule in /_conf leaves this user out"),
        Err(NotSeated::Ruled(fault) | NotSeated::Token(fault)) => Err(fault),
    }
}

fn require(claims: &Claims, grant: Grants) -> Result<(), Fault> {
    if claims.grants.contains(grant) {
        return Ok(());
    }
    let names: Vec<_> = grant.names().collect();
    refuse(format!("the token does not grant `{}`", names.join("`, `")))
}

fn refuse(why: impl Into<String>) -> Result<(), Fault> {
    Err(Fault::with(Code::NotAllowed, why))
}

/// Why the holder of a token may not be in a room.
#[derive(Clone, Debug)]
pub enum NotSeated {
    /// A rule of the path leaves him out. Rules change: he may come again with the same token.
    Ruled(Fault),
    /// His token does not open it, his address is denied, or it cannot be known.
    Token(Fault),
}

impl NotSeated {
    /// Whether it is not he but the store that is at fault, for a moment.
    pub fn is_passing(&self) -> bool {
        let (NotSeated::Ruled(fault) | NotSeated::Token(fault)) = self;
        fault.code.status() >= 500
    }
}

impl From<Fault> for NotSeated {
    fn from(fault: Fault) -> NotSeated {
        NotSeated::Token(fault)
    }
}

/// Decides whether the holder of a token may sit at a place, which is a room's path with its topic, and
/// what of that which it grants he may do there.
///
/// # Errors
/// `not_allowed` where a rule of the path leaves him out, `unauthorized` where an address rule denies;
/// the store's.
pub async fn decide_seat(
    services: &Services,
    claims: &Claims,
    bucket: &Bucket,
    place: &Path,
    address: IpAddr,
) -> Result<Grants, NotSeated> {
    permit(services, bucket, place, address).await?;
    let rules = services.path_rules.of(&services.kv, bucket).await.map_err(store_fault)?;
    rules.seats(place).grants(&claims.identity, claims.grants).ok_or_else(|| {
        let why = "a `join` rule in /_conf leaves this user out";
        NotSeated::Ruled(Fault::with(Code::NotAllowed, why))
    })
}

/// Closes what an account's address rules deny.
pub(crate) async fn enforce_addresses(services: &Services, bucket: &Bucket) -> Result<(), Fault> {
    let rules = services.rules.of(&services.kv, bucket).await.map_err(store_fault)?;
    services.rooms.close(bucket, Closing::Denied, &|socket| {
        // A rule that is on the path is on its topics too.
        rules.denied(&socket.place(), socket.address)
    });
    watch::end_denied(services, bucket).await
}

/// Closes whom an account's rules leave out of their rooms, and sets what the others may do there.
pub(crate) async fn enforce_path_rules(services: &Services, bucket: &Bucket) -> Result<(), Fault> {
    // One at a time, each by the newest rules: of two, the older ones must not come last.
    let _turn = services.seating.pass().await;
    let rules = services.path_rules.of(&services.kv, bucket).await.map_err(store_fault)?;
    // Sockets come room by room, each of whose rules are found once.
    let latest = RefCell::new((Path::root(), String::new(), Seats::default()));
    let grants = |socket: &Socket<'_>| {
        let mut latest = latest.borrow_mut();
        if latest.0 != *socket.path || latest.1 != socket.topic {
            let seats = rules.seats(&socket.place());
            *latest = (socket.path.clone(), socket.topic.to_owned(), seats);
        }
        latest.2.grants(&socket.identity(), socket.granted)
    };
    services.rooms.close(bucket, Closing::Denied, &|socket| grants(socket).is_none());
    services.rooms.regrant(bucket, &grants);
    Ok(())
}

/// Decides whether the holder of a token may be on a path. The token's signature, time and
/// revocation have been seen to.
///
/// # Errors
/// `channel_override_not_allowed` outside the token's path, `not_allowed` without the grant,
/// `unauthorized` where an address rule denies.
pub async fn decide_join(
    services: &Services,
    claims: &Claims,
    bucket: &Bucket,
    path: &Path,
    address: IpAddr,
) -> Result<(), Fault> {
    if claims.path.as_ref().is_some_and(|scope| scope != path) {
        return Err(Fault::new(Code::ChannelOverrideNotAllowed));
    }
    require(claims, Grants::SUBSCRIBE)?;
    permit(services, bucket, path, address).await
}

/// Permits what no address rule of the bucket denies.
///
/// # Errors
/// `unauthorized` where one does; the store's, when the rules have to be read.
pub(crate) async fn permit(
    services: &Services,
    bucket: &Bucket,
    path: &Path,
    address: IpAddr,
) -> Result<(), Fault> {
    let rules = services.rules.of(&services.kv, bucket).await.map_err(store_fault)?;
    if rules.denied(path, address) {
        let why = format!("a rule in /_auth denies {address} here");
        return Err(Fault::with(Code::Unauthorized, why));
    }
    Ok(())
}

/// The address rules of one bucket.
#[derive(Clone, Debug, Default)]
pub struct Rules(HashMap<Path, Vec<Network>>);

impl Rules {
    pub(crate) fn compile(rows: &[(Path, Arc<Head>)]) -> Rules {
        let mut rules: HashMap<Path, Vec<Network>> = HashMap::new();
        for (path, head) in rows {
            if let Some(network) = Network::parse(head.key.as_str()) {
                rules.entry(path.clone()).or_default().push(network);
            }
        }
        Rules(rules)
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.0.values().map(Vec::len).sum()
    }

    /// Whether a rule at the path or above it denies the address.
    pub fn denied(&self, path: &Path, address: IpAddr) -> bool {
        !self.0.is_empty()
            && path.ancestors().any(|path| {
                self.0
                    .get(&path)
                    .is_some_and(|networks| networks.iter().any(|net| net.contains(address)))
            })
    }
}
