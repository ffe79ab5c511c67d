//! Whether a token holds, and where its user may sit.

use kv4::Bucket;
use wire::envelope::Fault;
use wire::errors::Code;
use wire::names::{Ident, Path};
use wire::token::Claims;

use super::revoke::{is_revoked, is_user_revoked, user_revoked};
use super::rows;
use crate::{Services, access, namespace, principal, store_fault};

/// How far ahead of this neuron's clock the one that made a token may be, in milliseconds.
const AHEAD_MS: u64 = 1000;

/// A token that holds: what it says, and where.
#[derive(Clone, Debug)]
pub struct Verified {
    pub claims: Claims,
    pub bucket: Bucket,
}

/// Verifies a token for a new connection: signature, time, account, revocation.
///
/// # Errors
/// `unauthorized`, with what is wrong in the detail; the store's.
pub async fn verify(services: &Services, text: &str) -> Result<Verified, Fault> {
    let refuse = |why: &str| Fault::with(Code::Unauthorized, why);
    let claims = read(services, text).await?.ok_or_else(|| refuse("the token is not valid"))?;
    let now_s = services.now_s();
    let is_over = claims.expires_s != 0 && claims.expires_s <= now_s;
    if is_over && !services.graces.holds(claims.id, now_s) {
        return Err(refuse("the token has expired"));
    }
    let bucket = Bucket::account(&claims.account, claims.sub.as_ref())
        .ok_or_else(|| refuse("the token names no account"))?;
    let verified = Verified { claims, bucket };
    hold(services, &verified).await?;
    Ok(verified)
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

/// Looks again at a socket that has joined: what changed between its verification and its joining
/// found nobody to close.
///
/// # Errors
/// As [`verify`] and [`room`].
pub async fn recheck(
    services: &Services,
    verified: &Verified,
    room: &crate::RoomRef,
    address: std::net::IpAddr,
) -> Result<(), Fault> {
    hold(services, verified).await?;
    for at in place(&room.path, &room.topic).ancestors() {
        if is_user_revoked(services, &verified.bucket, &verified.claims, &at).await? {
            return Err(Fault::with(Code::Unauthorized, "the token has been revoked"));
        }
    }
    access::permit(services, &verified.bucket, &place(&room.path, &room.topic), address).await
}

/// Where a verified token joins: the path asked for, resolved to a namespace and topic.
///
/// # Errors
/// `no_namespace`, and those of [`access::decide_join`].
pub async fn room(
    services: &Services,
    verified: &Verified,
    asked: Option<&Path>,
    address: std::net::IpAddr,
) -> Result<crate::RoomRef, Fault> {
    let Verified { claims, bucket } = verified;
    let path = asked.or(claims.path.as_ref()).cloned().unwrap_or_else(Path::root);
    access::decide_join(services, claims, bucket, &path, address).await?;
    let (path, topic) = if path.is_root() {
        (path, namespace::TOPIC.to_owned())
    } else {
        namespace::resolve(services, bucket, &path).await?.ok_or(Code::NoNamespace)?
    };
    // A user may have been revoked on the path as it is called here: with or without its topic.
    let with_topic = place(&path, &topic);
    access::permit(services, bucket, &with_topic, address).await?;
    for at in with_topic.ancestors() {
        if is_user_revoked(services, bucket, claims, &at).await? {
            return Err(Fault::with(Code::Unauthorized, "the token has been revoked"));
        }
    }
    Ok(crate::RoomRef { bucket: bucket.clone(), path, topic })
}

/// A room's path with its topic, which rules and revocations may name too.
fn place(path: &Path, topic: &str) -> Path {
    path.join(topic).unwrap_or_else(|_| path.clone())
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
