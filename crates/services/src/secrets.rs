//! The three kinds of secrets (`design.md` §5): random ones kept as SHA-256, chosen ones as argon2id,
//! and those that are used again, sealed with the cluster key.

use argon2::{Algorithm, Argon2, Block, Params, Version};
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::Rng;

/// argon2id memory in KiB, passes, lanes: the second recommendation of RFC 9106 §4 scaled to an
/// interactive login (OWASP's 19 MiB, two passes).
const ARGON2_MEMORY_KIB: u32 = 19 * 1024;
const ARGON2_PASSES: u32 = 2;
const ARGON2_LANES: u32 = 1;
const SALT_BYTES: usize = 16;
const HASH_BYTES: usize = 32;

/// What a slow hash works in, kept for the next one: given back and taken anew each time, it would
/// stay with the process many times over.
#[derive(Default)]
pub struct Memory(Vec<Block>);

impl std::fmt::Debug for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Memory(…)")
    }
}

/// A slow hash of no password: as slow to compare with as any.
pub const OF_NOTHING: &str =
    "argon2id:AAAAAAAAAAAAAAAAAAAAAA:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

/// A secret as it is stored when it was made by us: 122 random bits need no slow hash.
pub fn hash_random(secret: &str) -> String {
    format!("sha256:{}", URL_SAFE_NO_PAD.encode(digest(&SHA256, secret.as_bytes())))
}

/// Whether a stored hash is a slow one, to be verified by [`crate::Passwords`].
pub fn is_slow(stored: &str) -> bool {
    stored.starts_with("argon2id:")
}

/// Compares with a hash of [`hash_random`], in constant time.
pub fn verify_random(secret: &str, stored: &str) -> bool {
    let Some(expected) = stored.strip_prefix("sha256:") else { return false };
    let Ok(expected) = URL_SAFE_NO_PAD.decode(expected) else { return false };
    verify_slices_are_equal(digest(&SHA256, secret.as_bytes()).as_ref(), &expected).is_ok()
}

/// Hashes a secret that a person chose: `argon2id:<salt>:<hash>`. Takes tens of milliseconds and
/// 19 MiB: callers bound how many run at once.
pub fn hash_chosen(password: &str, salt: [u8; SALT_BYTES]) -> String {
    hash_chosen_in(&mut Memory::default(), password, salt)
}

/// [`hash_chosen`] in memory that is there already.
pub fn hash_chosen_in(memory: &mut Memory, password: &str, salt: [u8; SALT_BYTES]) -> String {
    let hash = argon2id(memory, password, &salt);
    format!("argon2id:{}:{}", URL_SAFE_NO_PAD.encode(salt), URL_SAFE_NO_PAD.encode(hash))
}

/// Compares with a hash of [`hash_chosen`]; as slow as making one.
pub fn verify_chosen(password: &str, stored: &str) -> bool {
    verify_chosen_in(&mut Memory::default(), password, stored)
}

/// [`verify_chosen`] in memory that is there already.
pub fn verify_chosen_in(memory: &mut Memory, password: &str, stored: &str) -> bool {
    let mut parts = stored.split(':').skip(1).map(|part| URL_SAFE_NO_PAD.decode(part));
    let (Some(Ok(salt)), Some(Ok(expected))) = (parts.next(), parts.next()) else { return false };
    verify_slices_are_equal(&argon2id(memory, password, &salt), &expected).is_ok()
}

fn argon2id(memory: &mut Memory, password: &str, salt: &[u8]) -> [u8; HASH_BYTES] {
    let params = Params::new(ARGON2_MEMORY_KIB, ARGON2_PASSES, ARGON2_LANES, Some(HASH_BYTES))
        .expect("constant parameters are legal");
    // Its first pass writes every block, whatever was there.
    memory.0.resize(params.block_count(), Block::default());
    let mut hash = [0; HASH_BYTES];
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
        .hash_password_into_with_memory(password.as_bytes(), salt, &mut hash, &mut memory.0)
        .expect("salt and output lengths are legal");
    hash
}

/// Seals secrets that are used again with the cluster key (AES-256-GCM, random nonce).
pub struct Sealer(LessSafeKey);

impl std::fmt::Debug for Sealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sealer(…)")
    }
}

impl Sealer {
    pub fn new(cluster_key: &[u8; 32]) -> Sealer {
        let key = UnboundKey::new(&AES_256_GCM, cluster_key).expect("32 bytes are an AES-256 key");
        Sealer(LessSafeKey::new(key))
    }

    /// Seals `secret` for one purpose: `purpose` has to be named again to open it.
    pub fn seal(&self, purpose: &str, secret: &[u8], rng: &dyn Rng) -> String {
        let mut nonce = [0; NONCE_LEN];
        rng.fill(&mut nonce);
        let mut sealed = secret.to_vec();
        self.0
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(purpose.as_bytes()),
                &mut sealed,
            )
            .expect("a secret is shorter than GCM's limit");
        URL_SAFE_NO_PAD.encode([&nonce[..], &sealed].concat())
    }

    /// `None` for a text that this cluster key did not seal for this purpose.
    pub fn open(&self, purpose: &str, sealed: &str) -> Option<Vec<u8>> {
        let bytes = URL_SAFE_NO_PAD.decode(sealed).ok()?;
        let (nonce, sealed) = bytes.split_first_chunk::<NONCE_LEN>()?;
        let mut sealed = sealed.to_vec();
        let secret = self
            .0
            .open_in_place(
                Nonce::assume_unique_for_key(*nonce),
                Aad::from(purpose.as_bytes()),
                &mut sealed,
            )
            .ok()?;
        Some(secret.to_vec())
    }
}

/// A random UUID (version 4), the form in which account secrets are handed out.
pub fn random_uuid(rng: &dyn Rng) -> String {
    let mut bytes = [0u8; 16];
    rng.fill(&mut bytes);
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let mut text = String::with_capacity(36);
    for (at, byte) in bytes.into_iter().enumerate() {
        if matches!(at, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_does_not_depend_on_what_its_memory_held() {
        let mut memory = Memory::default();
        let first = hash_chosen_in(&mut memory, "password", [1; SALT_BYTES]);
        hash_chosen_in(&mut memory, "another", [2; SALT_BYTES]);
        assert_eq!(hash_chosen_in(&mut memory, "password", [1; SALT_BYTES]), first);
        assert!(verify_chosen_in(&mut memory, "password", &first));
        assert!(!verify_chosen_in(&mut memory, "another", &first));
        assert!(verify_chosen("password", &first));
        let parts: Vec<usize> = OF_NOTHING.split(':').skip(1).map(str::len).collect();
        assert_eq!(parts, first.split(':').skip(1).map(str::len).collect::<Vec<_>>());
        assert!(OF_NOTHING.split(':').skip(1).all(|part| URL_SAFE_NO_PAD.decode(part).is_ok()));
    }
}
