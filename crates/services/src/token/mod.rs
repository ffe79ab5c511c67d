//! `_token`: what a user connects with, and taking it back (seed 002 "Token Service",
//! `spec/xirsys.md` §1.2, §3).
//!
//! A token is signed and verified without the store, unless it never expires or does not fit: then
//! it is a row, found by its hash. Keys are sealed rows of `$sys`; revocations are rows of the
//! account's bucket, by token id or by identity and path.

mod graces;
mod issue;
mod keys;
mod revoke;
mod rows;
mod verify;

use kv4::Bucket;
use kv4::store::StoreError;
use wire::envelope::Fault;

pub use self::graces::{Counted, Graces};
pub(crate) use self::issue::{Moments, is_identity};
pub(crate) use self::keys::KEYS_LAYER;
pub use self::keys::{Keys, KeysError};
pub use self::revoke::revoke_id;
pub(crate) use self::rows::forget_endless;
pub use self::verify::{Verified, recheck, room, verify};
pub(crate) use self::verify::{claimed_account, holds, verify_for_call};
use crate::{Answer, Call, Method, Services, ending, entries, layer, path};

/// Revocations in an account's bucket; tokens kept as rows in that of `$sys`.
pub(crate) const LAYER: &str = "*token";
/// How long after its token's last day a revocation is kept, in seconds: a clock that jumps ahead by
/// less, and is set right again, lets no revoked token in.
const KEPT_AFTER_S: u64 = 7 * 86_400;

pub(crate) async fn call(services: &Services, call: &Call<'_>) -> Result<Answer, Fault> {
    match call.method {
        Method::Put | Method::Post => issue::create(services, call).await,
        Method::Delete => revoke::revoke(services, call).await,
        Method::Get => Err(entries::no_method(call)),
    }
}

/// Lets go of revocations and row tokens whose tokens have expired; answers how many went.
pub(crate) async fn forget_expired(
    services: &Services,
    bucket: &Bucket,
) -> Result<u64, StoreError> {
    let layer = layer(LAYER);
    let mut gone = 0;
    for base in [rows::ROWS_PATH, revoke::REVOKED_UNTIL_PATH] {
        gone += ending::forget(services, bucket, &layer, &path(base), KEPT_AFTER_S).await?;
    }
    Ok(gone)
}
