//! The keys that sign tokens: sealed rows of `$sys`, read once when the neuron starts.

use std::collections::HashMap;
use std::sync::{PoisonError, RwLock};

use aws_lc_rs::hmac;
use kv4::store::StoreError;
use kv4::write::{Condition, Op, Write, WriteError};
use kv4::{Bucket, Node};
use wire::json::Json;
use wire::names::Key;

use crate::{Services, layer, path};

/// Signing keys, in the bucket of `$sys`.
pub(crate) const KEYS_LAYER: &str = "*keys";
const KEYS_PATH: &str = "/token";
const SEAL_PURPOSE: &str = "token key";
pub(super) const MAC_BYTES: usize = 16;

/// The keys that sign tokens, by number; the greatest signs.
#[derive(Debug, Default)]
pub struct Keys(RwLock<HashMap<u8, hmac::Key>>);

impl Keys {
    pub(super) fn newest(&self) -> Option<(u8, hmac::Key)> {
        let keys = self.0.read().unwrap_or_else(PoisonError::into_inner);
        keys.iter().max_by_key(|(id, _)| **id).map(|(id, key)| (*id, key.clone()))
    }

    pub(super) fn verify(&self, id: u8, signed: &[u8], mac: &[u8]) -> bool {
        let keys = self.0.read().unwrap_or_else(PoisonError::into_inner);
        keys.get(&id).is_some_and(|key| {
            let tag = hmac::sign(key, signed);
            aws_lc_rs::constant_time::verify_slices_are_equal(&tag.as_ref()[..MAC_BYTES], mac)
                .is_ok()
        })
    }
}

impl Services {
    /// Reads the signing keys, and makes the first one when there is none.
    ///
    /// # Errors
    /// The store's, or a key that this neuron's cluster key does not open.
    pub async fn load_keys(&self) -> Result<(), KeysError> {
        let node = Node::new(Bucket::sys(), layer(KEYS_LAYER), path(KEYS_PATH));
        if self.kv.keys(&node).await?.is_empty() {
            let sealed = self.sealer.seal(SEAL_PURPOSE, &self.random::<32>(), &*self.rng);
            let write = Write {
                entry: node.entry(Key::parse("1").expect("a digit is a legal key")),
                op: Op::Put {
                    value: Json::from(serde_json::json!({ "sealed": sealed })),
                    keys: Default::default(),
                },
                condition: Condition::Absent,
                who: "$sys".into(),
                stamp: self.stamp(),
            };
            match self.kv.write(write).await {
                Ok(_) | Err(WriteError::Exists) => {}
                Err(error) => return Err(KeysError::Write(error)),
            }
        }
        let mut keys = HashMap::new();
        for head in self.kv.heads(&node).await? {
            let id: u8 = head.key.as_str().parse().map_err(|_| KeysError::Sealed)?;
            let sealed = head.value.member("sealed").and_then(|sealed| sealed.to_text());
            let opened = sealed.and_then(|sealed| self.sealer.open(SEAL_PURPOSE, &sealed));
            let secret = opened.ok_or(KeysError::Sealed)?;
            keys.insert(id, hmac::Key::new(hmac::HMAC_SHA256, &secret));
        }
        *self.keys.0.write().unwrap_or_else(PoisonError::into_inner) = keys;
        Ok(())
    }
}

/// Why the signing keys cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeysError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Write(WriteError),
    /// The store was made under another cluster key.
    #[error("the store's keys are sealed with another cluster key than this neuron's")]
    Sealed,
}
