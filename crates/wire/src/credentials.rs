//! Credentials: who asks, and with what secret (`spec/xirsys.md` §1.1).
//!
//! `acct:secret`, `acct#sub:subsecret`, `acct#sub:!acctsecret`, `acct:admin#password`, and the system
//! account as `$sys` or `%24sys`. Not here: whether the secret is right (`services`).

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use thiserror::Error;

use crate::errors::Code;
use crate::names::percent_decode;

/// Longest `Authorization` value that is read, in bytes.
pub const AUTHORIZATION_BYTES_MAX: usize = 2048;

/// What a caller presents; nothing of it is verified.
#[derive(Clone, Eq, PartialEq)]
pub struct Credentials {
    /// The top account, or `$sys`.
    pub account: String,
    pub sub: Option<String>,
    /// Whose secret follows: the parent's for a sub-account that was marked with `!`.
    pub by_parent: bool,
    pub secret: Secret,
}

#[derive(Clone, Eq, PartialEq)]
pub enum Secret {
    Account(String),
    Admin { key: String, password: String },
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("account", &self.account)
            .field("sub", &self.sub)
            .field("by_parent", &self.by_parent)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Secret::Account(_) => f.write_str("Account(…)"),
            Secret::Admin { key, .. } => write!(f, "Admin({key:?}, …)"),
        }
    }
}

/// Why credentials cannot be read.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum CredentialsError {
    #[error(
        "the Authorization header is neither `Basic` with base64 of `ident:secret`, nor `Bearer` with a token"
    )]
    NotBasic,
    #[error("a sub-account of a sub-account does not exist: write `account#sub`")]
    TooManyLevels,
}

impl CredentialsError {
    /// The word that this answers on the wire.
    pub fn code(self) -> Code {
        match self {
            CredentialsError::NotBasic => Code::Unauthorized,
            CredentialsError::TooManyLevels => Code::MalformedPartner,
        }
    }
}

impl Credentials {
    /// Reads the value of an `Authorization` header.
    ///
    /// # Errors
    /// Another scheme, bad base64, no colon, or more than one level of sub-account.
    pub fn from_basic(header: &str) -> Result<Credentials, CredentialsError> {
        let (scheme, encoded) = header.split_once(' ').ok_or(CredentialsError::NotBasic)?;
        if header.len() > AUTHORIZATION_BYTES_MAX || !scheme.eq_ignore_ascii_case("basic") {
            return Err(CredentialsError::NotBasic);
        }
        let decoded = STANDARD.decode(encoded.trim()).map_err(|_| CredentialsError::NotBasic)?;
        let text = String::from_utf8(decoded).map_err(|_| CredentialsError::NotBasic)?;
        let (ident, secret) = text.split_once(':').ok_or(CredentialsError::NotBasic)?;
        Credentials::from_parts(ident, secret)
    }

    /// Reads an ident and a secret that came apart, as in a query or form.
    ///
    /// # Errors
    /// More than one level of sub-account.
    pub fn from_parts(ident: &str, secret: &str) -> Result<Credentials, CredentialsError> {
        let decoded;
        let ident = if ident.starts_with('%') {
            decoded = percent_decode(ident, false).map_err(|_| CredentialsError::NotBasic)?;
            decoded.as_str()
        } else {
            ident
        };
        let (account, sub) = match ident.split_once('#') {
            None => (ident, None),
            Some((_, sub)) if sub.contains('#') => return Err(CredentialsError::TooManyLevels),
            Some((account, sub)) => (account, Some(sub.to_owned())),
        };
        let (by_parent, secret) = match secret.strip_prefix('!') {
            Some(rest) if sub.is_some() => (true, rest),
            _ => (false, secret),
        };
        let secret = match secret.split_once('#') {
            Some((key, password)) => {
                Secret::Admin { key: key.to_owned(), password: password.to_owned() }
            }
            None => Secret::Account(secret.to_owned()),
        };
        Ok(Credentials { account: account.to_owned(), sub, by_parent, secret })
    }
}
