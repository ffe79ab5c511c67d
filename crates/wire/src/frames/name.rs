//! The name of a member as it stands in frames and listings.

use std::borrow::Cow;
use std::fmt;
use std::fmt::Write as _;
use std::sync::Arc;

use thiserror::Error;

use super::SYSTEM_NAME;
use crate::names::percent_decode;
use crate::token::IDENTITY_BYTES_MAX;

/// Longest name of a member as it stands on the wire: the longest identity, each byte escaped.
pub const NAME_BYTES_MAX: usize = 3 * IDENTITY_BYTES_MAX;

/// A member's name as it stands in frames and listings. Every client takes what follows the last
/// `/` of `m.f`, so bytes other than `[A-Za-z0-9._~-]` are percent-encoded; distinct identities
/// give distinct names. A name needs no escaping in JSON.
#[derive(Clone, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Name(Arc<str>);

/// Why an identity is not a [`Name`].
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[error(
    "the name is empty, `{SYSTEM_NAME}`, or longer than {NAME_BYTES_MAX} bytes percent-encoded"
)]
pub struct BadName;

impl Name {
    /// The name of an identity, such as the `k` of a token.
    ///
    /// # Errors
    /// An empty identity, one that encodes to more than [`NAME_BYTES_MAX`] bytes, and the
    /// server's own name.
    pub fn encode(identity: &str) -> Result<Name, BadName> {
        let name = percent_encode(identity);
        if name.is_empty() || name.len() > NAME_BYTES_MAX || name == SYSTEM_NAME {
            return Err(BadName);
        }
        Ok(Name(Arc::from(name)))
    }

    /// The name that a text means which is either a name, as frames spell it, or an identity that is
    /// not percent-encoded. A text of nothing but what names are made of is a name, so that what a list
    /// shows means the one who is shown, whoever else calls himself that.
    ///
    /// # Errors
    /// As [`Name::encode`].
    pub fn meant(text: &str) -> Result<Name, BadName> {
        // What an encoder, here or in a browser, leaves.
        let is_encoded = text.contains('%')
            && text.bytes().all(|byte| is_plain(byte) || b"%!'()*".contains(&byte));
        let decoded = is_encoded.then(|| percent_decode(text, false).ok()).flatten();
        Name::encode(decoded.as_deref().unwrap_or(text))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::borrow::Borrow<str> for Name {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"._~-".contains(&byte)
}

/// The spelling of `identity` in which a [`Name`] keeps it.
pub fn percent_encode(identity: &str) -> Cow<'_, str> {
    if identity.bytes().all(is_plain) {
        return Cow::Borrowed(identity);
    }
    let mut encoded = String::with_capacity(identity.len() * 3);
    for byte in identity.bytes() {
        if is_plain(byte) {
            encoded.push(char::from(byte));
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    Cow::Owned(encoded)
}
