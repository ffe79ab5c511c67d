//! Who a request is of (RFC 8489 §9.2.4): the long-term mechanism, over nonces that nobody remembers.

use std::sync::Arc;
use std::time::Instant;

use super::Server;
use super::output::{Client, Output};
use crate::nonce::Look;
use crate::stun::{
    Attributes, Class, ErrorCode, Hash, Key, Kind, Message, Method, PASSWORD_ALGORITHMS,
    PasswordAlgorithm, TransactionId, Writer,
};

/// Longest user name (RFC 8489 §14.3).
const USERNAME_BYTES_MAX: usize = 508;

/// Longest refusal without its realm: header, error, nonce, algorithms, fingerprint.
const REFUSAL_BYTES: usize = 20 + 24 + 8 + 52 + 12 + 8;

/// That a request is a user's.
pub(super) struct Proven {
    pub(super) username: Arc<str>,
    pub(super) key: Key,
    pub(super) hash: Hash,
}

/// What an answer goes to, and is signed with.
#[derive(Clone, Copy)]
pub(super) struct Answering<'a> {
    pub(super) client: Client,
    pub(super) method: Method,
    pub(super) transaction: TransactionId,
    pub(super) has_fingerprint: bool,
    pub(super) signed: Option<(&'a Key, Hash)>,
}

impl<'a> Answering<'a> {
    pub(super) fn to(client: Client, message: &Message<'_>, method: Method) -> Answering<'a> {
        Answering {
            client,
            method,
            transaction: message.transaction(),
            has_fingerprint: message.attributes().has_fingerprint,
            signed: None,
        }
    }

    /// Writes an answer.
    pub(super) fn write(&self, class: Class, fill: impl FnOnce(&mut Writer<'_>)) -> Output {
        let mut bytes = Vec::with_capacity(128);
        let mut writer = Writer::new(&mut bytes, class, self.method, self.transaction);
        fill(&mut writer);
        if let Some((key, hash)) = self.signed {
            writer.integrity(key, hash);
        }
        if self.has_fingerprint {
            writer.fingerprint();
        }
        Output::Reply { client: self.client, bytes }
    }

    pub(super) fn error(&self, code: ErrorCode) -> Output {
        self.write(Class::Error, |writer| {
            writer.error(code);
        })
    }
}

impl Server {
    /// Finds out whose a request is.
    ///
    /// # Errors
    /// What it is to be answered, which nobody has signed for.
    pub(super) fn authenticate(
        &mut self,
        now: Instant,
        client: Client,
        message: &Message<'_>,
    ) -> Result<Proven, ErrorCode> {
        let these = message.attributes();
        let Some(hash) = message.integrity() else { return Err(ErrorCode::Unauthenticated) };
        if these.userhash.is_some() {
            // Names are not kept by their hashes.
            return Err(ErrorCode::UnknownAttribute);
        }
        let (Some(username), Some(realm), Some(nonce)) = (these.username, these.realm, these.nonce)
        else {
            return Err(ErrorCode::BadRequest);
        };
        let algorithm = self.algorithm(these)?;
        let nonce_s = u32::try_from(self.unix_s(now)).unwrap_or(u32::MAX);
        match self.nonces.look(nonce_s, client.address, nonce) {
            Look::Fresh => {}
            Look::Stale | Look::Forged => return Err(ErrorCode::StaleNonce),
        }
        if realm != self.settings.realm.as_bytes() || username.len() > USERNAME_BYTES_MAX {
            return Err(ErrorCode::Unauthenticated);
        }
        let Ok(username) = std::str::from_utf8(username) else {
            return Err(ErrorCode::Unauthenticated);
        };
        // What an allocation was made with holds for as long as that does.
        let known = self.clients.get(&client).and_then(|slot| self.allocation(*slot));
        if let Some(known) = known.filter(|known| *known.username == *username)
            && message.is_of(&known.key)
        {
            return Ok(Proven { username: known.username.clone(), key: known.key.clone(), hash });
        }
        let passwords = self.passwords.of(self.unix_s(now), username);
        let mut keys = passwords.iter().map(|password| {
            Key::long_term(algorithm, username.as_bytes(), realm, password.as_bytes())
        });
        let key = keys.find(|key| message.is_of(key)).ok_or(ErrorCode::Unauthenticated)?;
        Ok(Proven { username: username.into(), key, hash })
    }

    /// By which algorithm a request's key was made (RFC 8489 §9.2.4).
    fn algorithm(&self, these: &Attributes<'_>) -> Result<PasswordAlgorithm, ErrorCode> {
        match (these.password_algorithms, these.password_algorithm) {
            (None, None) => Ok(PasswordAlgorithm::Md5),
            // What was offered comes back with it, or somebody has taken the stronger away.
            (Some(all), Some(one))
                if self.nonces.features().password_algorithms && all == PASSWORD_ALGORITHMS =>
            {
                Attributes::algorithm(one).ok_or(ErrorCode::BadRequest)
            }
            _ => Err(ErrorCode::BadRequest),
        }
    }

    /// Answers one who has not proven who he is, within what such may have.
    pub(super) fn refuse(
        &mut self,
        now: Instant,
        client: Client,
        message: &Message<'_>,
        method: Method,
        code: ErrorCode,
    ) {
        let most = REFUSAL_BYTES + self.settings.realm.len();
        if !self.may_answer(now, client, message, most) {
            return;
        }
        let nonce_s = u32::try_from(self.unix_s(now)).unwrap_or(u32::MAX);
        let answering = Answering::to(client, message, method);
        let output = answering.write(Class::Error, |writer| {
            writer.error(code);
            match code {
                ErrorCode::Unauthenticated | ErrorCode::StaleNonce => {
                    let nonce = self.nonces.make(nonce_s, client.address);
                    writer.attribute(Kind::REALM, self.settings.realm.as_bytes());
                    writer.attribute(Kind::NONCE, nonce.as_bytes());
                    if self.nonces.features().password_algorithms {
                        writer.attribute(Kind::PASSWORD_ALGORITHMS, &PASSWORD_ALGORITHMS);
                    }
                }
                ErrorCode::UnknownAttribute => {
                    writer.unknown(&[Kind::USERHASH.0]);
                }
                _ => {}
            }
        });
        self.outputs.push_back(output);
    }

    /// Whether one who has not proven who he is may be answered so much; asked before anything is made.
    pub(super) fn may_answer(
        &mut self,
        now: Instant,
        client: Client,
        message: &Message<'_>,
        bytes: usize,
    ) -> bool {
        let second = now.saturating_duration_since(self.begun).as_secs();
        let slot = self.clients.get(&client).copied();
        let own = slot.and_then(|slot| self.allocation_mut(slot)).is_some_and(|allocation| {
            let may = allocation.refusals.may_pass(now);
            if may {
                allocation.refusals.pass(now, 1);
            }
            may
        });
        // Who has a stream is where he says.
        let source = client.address.ip();
        let may =
            client.is_stream || own || self.caps.may_answer(second, source, message.bytes(), bytes);
        match may {
            true => self.counters.unproven += 1,
            false => self.counters.capped += 1,
        }
        may
    }
}
