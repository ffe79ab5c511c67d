//! Passwords in the form that coturn's REST API has (draft-uberti-behave-turn-rest-00 §2.2), so that back ends
//! that make them go on: a name begins with the second until which it holds, and its password is an HMAC-SHA1
//! of it, in base64, by a secret that both sides know.

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::server::Passwords;

/// Secrets of which each makes a password: two while one is being replaced.
pub struct RestPasswords {
    secrets: Vec<hmac::Key>,
    /// How far ahead the end of a name may be, in seconds.
    ahead_max_s: u64,
}

impl std::fmt::Debug for RestPasswords {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RestPasswords")
            .field("secrets", &self.secrets.len())
            .finish_non_exhaustive()
    }
}

impl RestPasswords {
    /// A name that holds for longer than `ahead_max_s` from when it is used is nobody's.
    pub fn new<'a>(secrets: impl IntoIterator<Item = &'a [u8]>, ahead_max_s: u64) -> RestPasswords {
        let key = |secret| hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, secret);
        RestPasswords { secrets: secrets.into_iter().map(key).collect(), ahead_max_s }
    }
}

/// The second until which a name holds: all of it, or what stands before a colon.
fn end_s(username: &str) -> Option<u64> {
    let end = username.split_once(':').map_or(username, |(end, _)| end);
    let is_number = !end.is_empty() && end.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| end.parse().ok()).flatten()
}

impl Passwords for RestPasswords {
    fn of(&self, unix_s: u64, username: &str) -> Vec<String> {
        let holds = |end_s: u64| end_s > unix_s && end_s - unix_s <= self.ahead_max_s;
        if !end_s(username).is_some_and(holds) {
            return Vec::new();
        }
        let password = |key| STANDARD.encode(hmac::sign(key, username.as_bytes()));
        self.secrets.iter().map(password).collect()
    }
}
