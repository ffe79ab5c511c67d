//! The one token: its claims, and the compact signed form that signalling, `_video` and WHIP carry.
//!
//! Compact form: base64url without padding of
//! `version(1) key(1) id(8) grants(2) not-before(6) expires(5) account sub identity path mac(16)`,
//! numbers big-endian, not-before in ms and expiry in s since 1970, texts as a length byte and UTF-8. The whole stays
//! under [`COMPACT_BYTES_MAX`] characters; claims that do not fit are kept as a row and found by
//! hash instead, as are tokens that never expire. Who signs and with what is the caller's business:
//! the mac is a function.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use thiserror::Error;

use crate::names::{Ident, Path};

/// Longest compact token, in characters.
pub const COMPACT_BYTES_MAX: usize = 199;
/// Longest identity, in bytes.
pub const IDENTITY_BYTES_MAX: usize = 128;

const VERSION: u8 = 1;
const MAC_BYTES: usize = 16;

/// What a token's holder may do on its path, where no rule of the path says otherwise.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Grants(pub u16);

impl Grants {
    pub const SUBSCRIBE: Grants = Grants(1);
    pub const SEND: Grants = Grants(1 << 1);
    pub const PUBLISH: Grants = Grants(1 << 2);
    pub const WATCH: Grants = Grants(1 << 3);
    pub const MODERATE: Grants = Grants(1 << 4);
    pub const RELAY: Grants = Grants(1 << 5);
    /// To read what `_data` holds on the path and below it.
    pub const READ: Grants = Grants(1 << 6);
    /// To write there.
    pub const WRITE: Grants = Grants(1 << 7);
    /// To say anything, to everybody or to one.
    pub const SPEAK: Grants = Grants(1 << 1 | 1 << 2);
    /// What a chatter needs: to be on the path, to hear and to talk, to relay its media.
    pub const CHATTER: Grants = Grants(1 | 1 << 1 | 1 << 2 | 1 << 5);

    const NAMES: [(&'static str, Grants); 8] = [
        ("subscribe", Grants::SUBSCRIBE),
        ("send", Grants::SEND),
        ("publish", Grants::PUBLISH),
        ("watch", Grants::WATCH),
        ("moderate", Grants::MODERATE),
        ("relay", Grants::RELAY),
        ("read", Grants::READ),
        ("write", Grants::WRITE),
    ];

    /// Reads names separated by commas or spaces; `None` for an unknown one.
    pub fn parse(text: &str) -> Option<Grants> {
        let mut bits = 0;
        for name in text.split([',', ' ']).filter(|name| !name.is_empty()) {
            bits |= Grants::NAMES.iter().find(|(known, _)| *known == name)?.1.0;
        }
        Some(Grants(bits))
    }

    pub fn contains(self, other: Grants) -> bool {
        self.0 & other.0 == other.0
    }

    /// What is granted here and there.
    #[must_use]
    pub fn and(self, other: Grants) -> Grants {
        Grants(self.0 & other.0)
    }

    /// What is left without another one's.
    #[must_use]
    pub fn without(self, other: Grants) -> Grants {
        Grants(self.0 & !other.0)
    }

    /// The names of what is granted.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        Grants::NAMES.into_iter().filter(move |(_, bit)| self.contains(*bit)).map(|(name, _)| name)
    }
}

/// What a token says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Claims {
    /// Names this token, for revocation.
    pub id: u64,
    pub account: Ident,
    pub sub: Option<Ident>,
    /// The user's name on the path (`k`).
    pub identity: String,
    /// The only path it opens; `None` for a universal token.
    pub path: Option<Path>,
    pub grants: Grants,
    /// When it was made, in ms since 1970, which is also when it begins to hold.
    pub not_before_ms: u64,
    /// 0 for never.
    pub expires_s: u64,
    /// Which signing key.
    pub key_id: u8,
}

/// Why a text is not a compact token.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum TokenError {
    #[error("the token is not one of this system")]
    Malformed,
    #[error("the token's signature is wrong, or its key is gone")]
    BadSignature,
}

impl Claims {
    /// The compact form; `None` when it would be longer than [`COMPACT_BYTES_MAX`].
    pub fn to_compact(&self, mac: impl FnOnce(&[u8]) -> [u8; MAC_BYTES]) -> Option<String> {
        let mut bytes = vec![VERSION, self.key_id];
        bytes.extend_from_slice(&self.id.to_be_bytes());
        bytes.extend_from_slice(&self.grants.0.to_be_bytes());
        bytes.extend_from_slice(&self.not_before_ms.to_be_bytes()[2..]);
        bytes.extend_from_slice(&self.expires_s.to_be_bytes()[3..]);
        let path = self.path.as_ref().map_or("", Path::as_str);
        let sub = self.sub.as_ref().map_or("", Ident::as_str);
        for text in [self.account.as_str(), sub, &self.identity, path] {
            bytes.push(u8::try_from(text.len()).ok()?);
            bytes.extend_from_slice(text.as_bytes());
        }
        let signature = mac(&bytes);
        bytes.extend_from_slice(&signature);
        let compact = URL_SAFE_NO_PAD.encode(bytes);
        (compact.len() <= COMPACT_BYTES_MAX).then_some(compact)
    }

    /// Reads a compact token. `verify` is given the key id, what was signed and the signature, and
    /// says whether they match.
    ///
    /// # Errors
    /// [`TokenError`]; whether the time is right is for the caller to see.
    pub fn from_compact(
        text: &str,
        verify: impl FnOnce(u8, &[u8], &[u8]) -> bool,
    ) -> Result<Claims, TokenError> {
        if text.len() > COMPACT_BYTES_MAX {
            return Err(TokenError::Malformed);
        }
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| TokenError::Malformed)?;
        let at = bytes.len().checked_sub(MAC_BYTES).ok_or(TokenError::Malformed)?;
        let (signed, signature) = bytes.split_at(at);
        let claims = read(signed).ok_or(TokenError::Malformed)?;
        if verify(claims.key_id, signed, signature) {
            Ok(claims)
        } else {
            Err(TokenError::BadSignature)
        }
    }
}

fn read(signed: &[u8]) -> Option<Claims> {
    let mut rest = signed;
    let mut take = |count: usize| -> Option<&[u8]> {
        let (head, tail) = rest.split_at_checked(count)?;
        rest = tail;
        Some(head)
    };
    let number = |bytes: &[u8]| bytes.iter().fold(0u64, |sum, byte| sum << 8 | u64::from(*byte));
    if take(1)? != [VERSION] {
        return None;
    }
    let key_id = take(1)?[0];
    let id = number(take(8)?);
    let grants = Grants(u16::try_from(number(take(2)?)).ok()?);
    let not_before_ms = number(take(6)?);
    let expires_s = number(take(5)?);
    let mut texts: [&str; 4] = [""; 4];
    for text in &mut texts {
        let length = usize::from(take(1)?[0]);
        *text = std::str::from_utf8(take(length)?).ok()?;
    }
    let [account, sub, identity, path] = texts;
    if !rest.is_empty() {
        return None;
    }
    let ident = |text: &str| Ident::from_stored(text).ok();
    Some(Claims {
        id,
        account: ident(account)?,
        sub: if sub.is_empty() { None } else { Some(ident(sub)?) },
        identity: identity.to_owned(),
        path: if path.is_empty() { None } else { Some(Path::parse(path).ok()?) },
        grants,
        not_before_ms,
        expires_s,
        key_id,
    })
}
