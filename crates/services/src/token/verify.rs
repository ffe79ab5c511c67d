//! Whether a token holds, and where its user may sit.

use kv4::Bucket;
use wire::envelope::Fault;
use wire::errors::Code;
use wire::names::{Ident, Path};
use wire::token::{Claims, Grants};

use super::revoke::{is_revoked, is_user_revoked, user_revoked};
use super::rows;
use crate::access::NotSeated;
use crate::{Services, access, namespace, principal, store_fault};

/// How far ahead of this neuron's clock the one that made a token may be, in milliseconds.
const AHEAD_MS: u64 = 1000;

/// A token that holds: what it says, and where.
#[derive(Clone, Debug)]
pub struct Verified {
    pub claims: Claims,
    pub bucket: Bucket,
}

impl Verified {
    /// Whether its last second has come.
    pub(crate) fn is_over(&self, now_s: u64) -> bool {
        self.claims.expires_s != 0 && self.claims.expires_s <= now_s
    }
}

/// Verifies a token for a new socket: signature, time, account, revocation. One that has expired may
/// come again for a while after its socket went.
///
/// # Errors
/// `unauthorized`, with what is wrong in the detail; the store's.
pub async fn verify(services: &Services, text: &str) -> Result<Verified, Fault> {
    let verified = own(services, text).await?;
    let verified = verified.ok_or_else(|| refused("the token is not valid"))?;
    let now_s = services.now_s();
    if verified.is_over(now_s) && !services.graces.holds(verified.claims.id, now_s) {
        return Err(refused(EXPIRED));
    }
    hold(services, &verified).await?;
    Ok(verified)
}

/// The same for a call of the HTTP API, which has no grace; `None` for a text that is no token of this
/// system.
///
/// # Errors
/// As [`verify`].
pub(crate) async fn verify_for_call(
    services: &Services,
    text: &str,
) -> Result<Option<Verified>, Fault> {
    let Some(verified) = own(services, text).await? else { return Ok(None) };
    if verified.is_over(services.now_s()) {
        return Err(refused(EXPIRED));
    }
    hold(services, &verified).await?;
    Ok(Some(verified))
}

/// The account of which a text says that it is a token, true or not; empty where it says nothing.
pub(crate) fn claimed_account(text: &str) -> String {
    let claims = Claims::from_compact(text, |_, _, _| true);
    claims.map_or(String::new(), |claims| claims.account.to_string())
}

/// Whether a token that was verified still holds; its time is not looked at.
///
/// # Errors
/// The store's.
pub(crate) async fn holds(services: &Services, verified: &Verified) -> Result<bool, Fault> {
    match hold(services, verified).await {
        Ok(()) => Ok(true),
        Err(fault) if fault.code == Code::Unauthorized => Ok(false),
        Err(fault) => Err(fault),
    }
}

const EXPIRED: &str = "the token has expired";

fn refused(why: &str) -> Fault {
    Fault::with(Code::Unauthorized, why)
}

/// A token whose signature or row is right; its time is not looked at.
async fn own(services: &Services, text: &str) -> Result<Option<Verified>, Fault> {
    let Some(claims) = read(services, text).await? else { return Ok(None) };
    let bucket = Bucket::account(&claims.account, claims.sub.as_ref());
    Ok(bucket.map(|bucket| Verified { claims, bucket }))
}

/// Whether what a verified token stands on still holds: its account, that it is not of a time to
/// come, and that it was not revoked.
async fn hold(services: &Services, verified: &Verified) -> Result<(), Fault> {
    let Verified { claims, bucket } = verified;
    let (account, sub) = (&claims.account, claims.sub.as_ref());
    let at = claims.path.clone().unwrap_or_else(Path::root);
    let since_ms = since(services, account, sub, bucket, &claims.identity, &at).await?;
    let since_ms = since_ms
        .ok_or_else(|| Fault::with(Code::Unauthorized, "the token's account is not active"))?;
    if claims.not_before_ms < since_ms {
        return Err(Fault::with(Code::Unauthorized, "the token has been revoked"));
    }
    let now_ms = services.clock.now_micros() / 1000;
    if claims.not_before_ms > since_ms.max(now_ms + AHEAD_MS) {
        return Err(Fault::with(Code::Unauthorized, "the token does not hold yet"));
    }
    if is_revoked(services, bucket, claims).await? {
        return Err(Fault::with(Code::Unauthorized, "the token has been revoked"));
    }
    Ok(())
}

/// From when on a token is one of this account and user, in milliseconds since 1970: not their
/// predecessors', nor revoked as a user's at the token's path or above it. It may be ahead of a clock
/// that was set back, and tokens are made to hold all the same. `None` for an account that may not
/// log in.
pub(super) async fn since(
    services: &Services,
    account: &Ident,
    sub: Option<&Ident>,
    bucket: &Bucket,
    identity: &str,
    at: &Path,
) -> Result<Option<u64>, Fault> {
    let Some(mut since_ms) = principal::active_since(services, account, sub).await? else {
        return Ok(None);
    };
    for at in at.ancestors() {
        let revoked_ms = user_revoked(services, bucket, identity, &at).await?;
        since_ms = since_ms.max(revoked_ms.map_or(0, |revoked_ms| revoked_ms + 1));
    }
    Ok(Some(since_ms))
}

/// Looks again at a socket that has joined, before anything that it says is heard: what changed between
/// its verification and its joining found nobody to close. What it may do there is settled here.
///
/// # Errors
/// As [`verify`] and [`room`].
pub async fn recheck(
    services: &Services,
    verified: &Verified,
    room: &crate::RoomRef,
    address: std::net::IpAddr,
    socket: u64,
) -> Result<(), NotSeated> {
    hold(services, verified).await?;
    // It joined with what its token grants. A rule that changes after the last look finds it seated.
    let mut seated = verified.claims.grants;
    loop {
        let grants = seat(services, verified, room, address).await?;
        if grants == seated {
            return Ok(());
        }
        services.rooms.grant(&room.bucket, socket, grants);
        seated = grants;
    }
}

/// Where a verified token joins: the path asked for, resolved to a namespace and topic.
///
/// # Errors
/// `no_namespace`, and those of [`access::decide_join`] and [`access::decide_seat`].
pub async fn room(
    services: &Services,
    verified: &Verified,
    asked: Option<&Path>,
    address: std::net::IpAddr,
) -> Result<crate::RoomRef, NotSeated> {
    let Verified { claims, bucket } = verified;
    let path = asked.or(claims.path.as_ref()).cloned().unwrap_or_else(Path::root);
    access::decide_join(services, claims, bucket, &path, address).await?;
    let (path, topic) = if path.is_root() {
        (path, namespace::TOPIC.to_owned())
    } else {
        let resolved = namespace::resolve(services, bucket, &path).await?;
        resolved.ok_or_else(|| Fault::new(Code::NoNamespace))?
    };
    let room = crate::RoomRef { bucket: bucket.clone(), path, topic };
    seat(services, verified, &room, address).await?;
    Ok(room)
}

/// What a verified token may do in a room.
async fn seat(
    services: &Services,
    verified: &Verified,
    room: &crate::RoomRef,
    address: std::net::IpAddr,
) -> Result<Grants, NotSeated> {
    let Verified { claims, bucket } = verified;
    let place = room.place();
    // A user may have been revoked on the path as it is called here: with or without its topic.
    for at in place.ancestors() {
        if is_user_revoked(services, bucket, claims, &at).await? {
            return Err(refused("the token has been revoked").into());
        }
    }
    access::decide_seat(services, claims, bucket, &place, address).await
}

/// The claims of a token whose signature or row is right; its time is not looked at.
pub(super) async fn read(services: &Services, text: &str) -> Result<Option<Claims>, Fault> {
    if !text.starts_with(rows::ROW_PREFIX) {
        return Ok(Claims::from_compact(text, |id, signed, mac| {
            services.keys.verify(id, signed, mac)
        })
        .ok());
    }
    let head =
        services.kv.get(&rows::row_node(text), &rows::row_key(text)).await.map_err(store_fault)?;
    Ok(head.and_then(|head| rows::claims_of_row(&head)))
}
