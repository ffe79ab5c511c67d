//! Making tokens: what they say, and their texts.

use std::sync::atomic::{AtomicU64, Ordering};

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use wire::envelope::Fault;
use wire::errors::Code;
use wire::frames::Name;
use wire::json::Json;
use wire::names::Path;
use wire::token::{Claims, Grants, IDENTITY_BYTES_MAX};

use super::keys::MAC_BYTES;
use super::rows;
use super::verify::since;
use crate::{Answer, Call, Services, namespace, store_fault};

/// Lifetime of a token that names none, in seconds.
const EXPIRE_DEFAULT_S: u64 = 60;
/// Longest lifetime of a signed token, in seconds; old keys are kept as long.
const EXPIRE_MAX_S: u64 = 366 * 86_400;

/// The newest moment at which a token of this process begins to hold: one that was made before the
/// clock was set back is older than a revocation after that.
#[derive(Debug, Default)]
pub(crate) struct Moments(AtomicU64);

impl Moments {
    fn note(&self, ms: u64) -> u64 {
        self.0.fetch_max(ms, Ordering::Relaxed);
        ms
    }

    pub(super) fn newest(&self, now_ms: u64) -> u64 {
        self.0.load(Ordering::Relaxed).max(now_ms)
    }

    /// A moment at which no token has begun to hold yet.
    pub(crate) fn after(&self, now_ms: u64) -> u64 {
        now_ms.max(self.0.load(Ordering::Relaxed) + 1)
    }
}

pub(super) async fn create(services: &Services, call: &Call<'_>) -> Result<Answer, Fault> {
    let bucket = &call.caller.bucket;
    if !call.path.is_root() && namespace::resolve(services, bucket, &call.path).await?.is_none() {
        return Err(Code::NoNamespace.into());
    }
    let claims = claims(services, call).await?;
    let text = issue(services, &claims).await?;
    let v = match call.params.text("as").as_deref() {
        Some("values") => serde_json::json!({
            "token": text,
            "id": format!("{:016x}", claims.id),
            "k": claims.identity,
            "path": claims.path.as_ref().map(Path::as_str),
            "grants": claims.grants.names().collect::<Vec<_>>(),
            "expires_at": claims.expires_s,
        })
        .to_string(),
        _ => Json::string(&text).as_str().to_owned(),
    };
    Ok(Answer { v, ver: None, no_store: true })
}

async fn claims(services: &Services, call: &Call<'_>) -> Result<Claims, Fault> {
    let now_micros = services.clock.now_micros();
    let settings = services.settings.of(&services.kv, &call.caller.bucket).await;
    let set = settings.map_err(store_fault)?.at::<u64>(&call.path, "token_expire_max_s");
    let expire_max_s = set.unwrap_or(EXPIRE_MAX_S).min(EXPIRE_MAX_S);
    let expire_s = match call.params.text("expire").filter(|text| !text.is_empty()) {
        None => EXPIRE_DEFAULT_S.min(expire_max_s),
        Some(text) => text.parse::<u64>().map_err(|_| {
            Fault::with(Code::BadRequest, format!("`expire` is not a number of seconds: {text}"))
        })?,
    };
    if expire_s > expire_max_s || (expire_s == 0 && set.is_some()) {
        return Err(Fault::with(
            Code::BadRequest,
            format!("`expire` may be at most {expire_max_s} here"),
        ));
    }
    let identity = match call.params.text("k").filter(|name| !name.is_empty()) {
        None => URL_SAFE_NO_PAD.encode(services.random::<9>()),
        Some(name) if !is_identity(&name) => {
            return Err(Fault::with(
                Code::BadName,
                format!(
                    "`k` is too long ({IDENTITY_BYTES_MAX} bytes), or not a name that can join"
                ),
            ));
        }
        Some(name) => name.into_owned(),
    };
    let grants = match call.params.text("grants") {
        None => Grants::CHATTER,
        Some(text) => Grants::parse(&text).ok_or_else(|| {
            Fault::with(
                Code::BadRequest,
                "`grants` are publish, subscribe, send, watch, moderate, relay, read and write",
            )
        })?,
    };
    let (account, sub) = (&call.caller.account, call.caller.sub.as_ref());
    let bucket = &call.caller.bucket;
    let since_ms = since(services, account, sub, bucket, &identity, &call.path).await?;
    let since_ms = since_ms.ok_or(Code::Unauthorized)?;
    Ok(Claims {
        id: u64::from_be_bytes(services.random()),
        account: account.clone(),
        sub: sub.cloned(),
        identity,
        path: (!call.path.is_root()).then(|| call.path.clone()),
        grants,
        not_before_ms: services.moments.note(since_ms.max(now_micros / 1000)),
        expires_s: if expire_s == 0 { 0 } else { now_micros / 1_000_000 + expire_s },
        key_id: 0,
    })
}

/// Whether a text can be the `k` of a token.
pub(crate) fn is_identity(text: &str) -> bool {
    text.len() <= IDENTITY_BYTES_MAX
        && !text.chars().any(char::is_control)
        && Name::encode(text).is_ok()
}

/// The text of a token: signed, or kept as a row when it has no end or does not fit.
async fn issue(services: &Services, claims: &Claims) -> Result<String, Fault> {
    let (key_id, key) = services
        .keys
        .newest()
        .ok_or_else(|| Fault::with(Code::Internal, "there is no key to sign tokens with"))?;
    let claims = Claims { key_id, ..claims.clone() };
    if claims.expires_s != 0 {
        let mac = |signed: &[u8]| {
            let tag = hmac::sign(&key, signed);
            let mut mac = [0; MAC_BYTES];
            mac.copy_from_slice(&tag.as_ref()[..MAC_BYTES]);
            mac
        };
        if let Some(text) = claims.to_compact(mac) {
            return Ok(text);
        }
    }
    rows::keep(services, &claims).await
}
