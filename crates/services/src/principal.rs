//! Who asks: credentials, or a token, become a [`Caller`], or are refused.
//!
//! A proof is remembered under a per-process keyed hash together with the versions of the rows that
//! proved it, so a repeated caller costs one hash and a look at those rows, and a changed or
//! deactivated account is asked anew. The proof of a token is its signature, which a connection
//! remembers; its time, its account and revocations are looked at with each request.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use aws_lc_rs::digest::{Context, SHA256};
use kv4::store::StoreError;
use kv4::{Bucket, Head, Node, Ver};
use wire::credentials::{Credentials, CredentialsError, Secret};
use wire::envelope::Fault;
use wire::errors::Code;
use wire::names::{Ident, Key, percent_decode};
use wire::token::Claims;

use crate::accounts::{ACCOUNTS_PATH, ADMINS_PATH, AccountRow, AdminRow, LAYER};
use crate::limits::{Attempt, Charge};
use crate::logs::Level;
use crate::sessions::{Login, Session};
use crate::token::{self, Verified};
use crate::{Rng, Services, layer, limits, path, secrets, store_fault};

/// Proofs remembered; beyond it half of them are forgotten.
const PROOFS_MAX: usize = 50_000;

const BEARER: &str = "Bearer";

/// How long an attempt waits for those before it, and how often it looks.
const ATTEMPT_WAIT: Duration = Duration::from_secs(5);
const ATTEMPT_LOOK_EVERY: Duration = Duration::from_millis(20);

/// Who made a request, and whose data it is about.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Caller {
    pub account: Ident,
    pub sub: Option<Ident>,
    pub bucket: Bucket,
    /// The bucket of the top account, which is who pays for what its sub-accounts ask.
    pub payer: Bucket,
    /// The admin's key when an admin asks, the user's name when he asks with a token, else the
    /// account's name.
    pub who: Arc<str>,
    pub role: Role,
}

/// In what right a caller asks.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Role {
    /// With the account's own secret, or its parent's.
    Owner,
    /// With a password of one of the account's admins.
    Admin,
    /// With a password of one of its parent's admins.
    ParentAdmin,
    /// With a token that the account gave one of its users.
    User(Arc<Claims>),
}

impl Caller {
    /// Whether the system account itself asks, and not one of its users.
    pub fn is_sys(&self) -> bool {
        self.account.is_sys() && self.user().is_none()
    }

    /// The token with which one of the account's users asks.
    pub fn user(&self) -> Option<&Claims> {
        match &self.role {
            Role::User(claims) => Some(claims),
            Role::Owner | Role::Admin | Role::ParentAdmin => None,
        }
    }

    /// By whom `api:3` counts: calls of its users are their account's.
    pub fn counted_as(&self) -> &str {
        if self.user().is_some() { self.ident().as_str() } else { &self.who }
    }

    /// The account or sub-account whose data it is.
    pub fn ident(&self) -> &Ident {
        self.sub.as_ref().unwrap_or(&self.account)
    }
}

/// Remembered proofs, keyed by the keyed hash of what was presented.
pub struct Proven {
    key: [u8; 32],
    sys_hash: String,
    /// By what was presented and from where: elsewhere a proof does not stand in for the limit on
    /// failures, or a blocked address would learn from it which of its guesses is right.
    proofs: papaya::HashMap<[u8; 32], Arc<Proof>, foldhash::fast::RandomState>,
    /// How often half of them were forgotten.
    pub(crate) halvings: AtomicU64,
}

impl std::fmt::Debug for Proven {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Proven").field("proofs", &self.proofs.len()).finish_non_exhaustive()
    }
}

/// What showed that somebody is who he says.
#[derive(Debug)]
pub(crate) struct Proof {
    pub(crate) caller: Arc<Caller>,
    basis: Basis,
    /// The count of changes before it was last found to hold.
    seen: AtomicU64,
}

#[derive(Debug)]
enum Basis {
    /// Rows that were looked at, with the versions at which they proved it.
    Rows(Vec<(Node, Key, Ver)>),
    Token(Verified),
}

impl Basis {
    /// A count that changes with whatever this stands on, but for the time.
    fn changes(&self, services: &Services) -> u64 {
        match self {
            Basis::Rows(_) => services.account_changes.count(),
            Basis::Token(_) => changes_of_tokens(services),
        }
    }
}

/// Neither count ever falls, so that their sum is the same only while both are.
fn changes_of_tokens(services: &Services) -> u64 {
    services.account_changes.count().wrapping_add(services.token_changes.count())
}

impl Proven {
    pub(crate) fn new(sys_secret: &str, rng: &dyn Rng) -> Proven {
        let mut key = [0; 32];
        rng.fill(&mut key);
        Proven {
            key,
            sys_hash: secrets::hash_random(sys_secret),
            proofs: papaya::HashMap::default(),
            halvings: AtomicU64::new(0),
        }
    }

    /// A key-first hash is enough here: the digest never leaves this process.
    fn digest(&self, presented: &[&str], address: IpAddr) -> [u8; 32] {
        let mut context = Context::new(&SHA256);
        context.update(&self.key);
        match limits::counted_as(address) {
            IpAddr::V4(address) => context.update(&address.octets()),
            IpAddr::V6(address) => context.update(&address.octets()),
        }
        for part in presented {
            context.update(part.as_bytes());
        }
        let mut digest = [0; 32];
        digest.copy_from_slice(context.finish().as_ref());
        digest
    }

    /// A proof that still holds.
    async fn known(
        &self,
        services: &Services,
        digest: &[u8; 32],
    ) -> Result<Option<Arc<Proof>>, Fault> {
        let Some(proof) = self.proofs.pin().get(digest).cloned() else { return Ok(None) };
        Ok(proof.still_holds(services).await?.then_some(proof))
    }

    fn remember(&self, digest: [u8; 32], proof: Proof) -> Arc<Proof> {
        let proofs = self.proofs.pin();
        if proofs.len() >= PROOFS_MAX {
            // Digests are as good as random, each bit by itself.
            let bit = self.halvings.fetch_add(1, Ordering::Relaxed) % 256;
            let (byte, bit) = (bit as usize / 8, bit % 8);
            proofs.retain(|digest, _| digest[byte] >> bit & 1 == 0);
        }
        let proof = Arc::new(proof);
        proofs.insert(digest, proof.clone());
        proof
    }
}

/// Finds the caller of an `Authorization` header's value, `Basic` or `Bearer`, and notes his login on
/// the connection.
///
/// # Errors
/// `unauthorized`, `malformed_partner`, or `too_many_requests` for an address with too many failures.
pub async fn from_header(
    services: &Arc<Services>,
    session: &Session,
    header: &str,
    address: IpAddr,
) -> Result<Arc<Login>, Fault> {
    if let Some(login) = session.known(header, address)
        && login.still_holds(services).await?
    {
        return Ok(login);
    }
    if let Some(token) = bearer(header) {
        return from_token(services, session, token, address).await;
    }
    let credentials = || Credentials::from_basic(header);
    let proof = proof(services, &[header], credentials, address).await?;
    session.log_in(services, proof, Some(header), address)
}

/// The caller whom the same header has proven before, from the same address, and still does; `None`
/// where that would take more than to remember.
pub async fn proven_before(
    services: &Services,
    session: &Session,
    header: &str,
    address: IpAddr,
) -> Option<Arc<Caller>> {
    if let Some(login) = session.known(header, address) {
        return login.still_holds(services).await.ok()?.then(|| login.caller().clone());
    }
    let digest = services.proven.digest(&[header], address);
    let proof = services.proven.known(services, &digest).await.ok()??;
    Some(proof.caller.clone())
}

/// Finds the caller of an ident and secret that came as parameters, and notes his login on the
/// connection.
///
/// # Errors
/// As [`from_header`].
pub async fn from_parts(
    services: &Arc<Services>,
    session: &Session,
    ident: &str,
    secret: &str,
    address: IpAddr,
) -> Result<Arc<Login>, Fault> {
    let credentials = || Credentials::from_parts(ident, secret);
    let proof = proof(services, &[ident, "\0", secret], credentials, address).await?;
    session.log_in(services, proof, None, address)
}

/// Finds the user who presents a token, and notes his login on the connection.
///
/// # Errors
/// As [`from_header`].
pub async fn from_token(
    services: &Arc<Services>,
    session: &Session,
    token: &str,
    address: IpAddr,
) -> Result<Arc<Login>, Fault> {
    let presented = format!("{BEARER} {token}");
    if let Some(login) = session.known(&presented, address)
        && login.still_holds(services).await?
    {
        return Ok(login);
    }
    let proof = prove_token(services, token, address).await?;
    session.log_in(services, Arc::new(proof), Some(&presented), address)
}

/// The user who has opened a socket with a token that was verified for that. It holds for as long as
/// the socket is open, whenever it ends.
///
/// # Errors
/// `unauthorized` when too many logins of this session were ended.
pub fn of_socket(
    services: &Arc<Services>,
    session: &Session,
    verified: Verified,
    address: IpAddr,
) -> Result<Arc<Login>, Fault> {
    // What it was verified by may have changed since: 0 is a count at which nothing was looked at.
    let proof = of_token(verified, 0);
    session.log_in(services, Arc::new(proof), None, address)
}

/// The token of an `Authorization` header (RFC 6750 §2.1).
fn bearer(header: &str) -> Option<&str> {
    let (scheme, token) = header.split_once(' ')?;
    scheme.eq_ignore_ascii_case(BEARER).then(|| token.trim())
}

/// What is no token of this system is a guess, as a wrong password is; one that has expired or was
/// revoked is none.
async fn prove_token(services: &Services, token: &str, address: IpAddr) -> Result<Proof, Fault> {
    let account = token::claimed_account(token);
    let attempt = attempt(services, &account, address).await?;
    let seen = changes_of_tokens(services);
    let Some(verified) = token::verify_for_call(services, token).await? else {
        attempt.wrong();
        services.logs.note(&Bucket::sys(), Level::Warn, || {
            format!("forged token of account {account:?} from {address}")
        });
        return Err(Fault::with(Code::Unauthorized, "the token is not valid"));
    };
    Ok(of_token(verified, seen))
}

fn of_token(verified: Verified, seen: u64) -> Proof {
    let Verified { claims, bucket } = &verified;
    let caller = Caller {
        account: claims.account.clone(),
        sub: claims.sub.clone(),
        payer: bucket.top(),
        bucket: bucket.clone(),
        who: Arc::from(claims.identity.as_str()),
        role: Role::User(Arc::new(claims.clone())),
    };
    let basis = Basis::Token(verified);
    Proof { caller: Arc::new(caller), basis, seen: AtomicU64::new(seen) }
}

/// The remembered proof of what was presented, or a new one.
async fn proof(
    services: &Services,
    presented: &[&str],
    credentials: impl FnOnce() -> Result<Credentials, CredentialsError>,
    address: IpAddr,
) -> Result<Arc<Proof>, Fault> {
    let digest = services.proven.digest(presented, address);
    if let Some(proof) = services.proven.known(services, &digest).await? {
        return Ok(proof);
    }
    let credentials =
        credentials().map_err(|error| Fault::with(error.code(), error.to_string()))?;
    let look = async {
        let proof = prove_limited(services, &credentials, address).await?;
        Ok(services.proven.remember(digest, proof))
    };
    services.joining.join((digest, services.account_changes.count()), look).await
}

impl Proof {
    /// Whether the rows that proved it are what they were, or the token still holds.
    pub(crate) async fn still_holds(&self, services: &Services) -> Result<bool, Fault> {
        match &self.basis {
            // Time passes without a change.
            Basis::Token(verified) if verified.is_over(services.now_s()) => Ok(false),
            _ => self.holds_while_open(services).await,
        }
    }

    /// The same for what was opened with it: a token's end is that of connecting.
    pub(crate) async fn holds_while_open(&self, services: &Services) -> Result<bool, Fault> {
        let changes = self.basis.changes(services);
        let is_unchanged = self.seen.load(Ordering::Relaxed) == changes;
        match &self.basis {
            _ if is_unchanged => return Ok(true),
            Basis::Token(verified) if !token::holds(services, verified).await? => return Ok(false),
            Basis::Token(_) => {}
            Basis::Rows(rows) => {
                for (node, key, ver) in rows {
                    let head = services.kv.get(node, key).await.map_err(store_fault)?;
                    if head.is_none_or(|head| head.ver != *ver) {
                        return Ok(false);
                    }
                }
            }
        }
        self.seen.store(changes, Ordering::Relaxed);
        Ok(true)
    }
}

async fn prove_limited(
    services: &Services,
    credentials: &Credentials,
    address: IpAddr,
) -> Result<Proof, Fault> {
    // `$sys#elena` is a guess at elena.
    let account = match (credentials.account.as_str(), &credentials.sub) {
        ("$sys", Some(top)) => top,
        (account, _) => account,
    };
    let attempt = Arc::new(attempt(services, account, address).await?);
    let proof = prove(services, credentials, address, &attempt).await?;
    proof.ok_or_else(|| {
        attempt.wrong();
        services.logs.note(&Bucket::sys(), Level::Warn, || {
            let account: String = credentials.account.chars().take(64).collect();
            format!("failed login as {account:?} from {address}")
        });
        Fault::new(Code::Unauthorized)
    })
}

/// Takes one of the attempts that an address has, or waits until those before it are looked at.
async fn attempt(services: &Services, account: &str, address: IpAddr) -> Result<Attempt, Fault> {
    let looks = ATTEMPT_WAIT.as_millis() / ATTEMPT_LOOK_EVERY.as_millis();
    for _ in 0..looks {
        match services.failures.charge(address, account, services.clock.now_micros()) {
            Ok(attempt) => return Ok(attempt),
            Err(Charge::Later) => services.clock.sleep(ATTEMPT_LOOK_EVERY).await,
            Err(Charge::Never(seconds)) => {
                let why =
                    format!("too many failed logins from this address; try again in {seconds} s");
                return Err(Fault::with(Code::TooManyRequests, why).retry_after(seconds));
            }
        }
    }
    Err(Fault::with(Code::Overloaded, "too many logins are being checked"))
}

/// Checks credentials against the rows; `None` when they do not hold.
async fn prove(
    services: &Services,
    credentials: &Credentials,
    address: IpAddr,
    attempt: &Arc<Attempt>,
) -> Result<Option<Proof>, Fault> {
    let mut rows = Vec::new();
    let seen = AtomicU64::new(services.account_changes.count());
    // `$sys` owns the top accounts as they own theirs: `$sys#elena` is elena herself.
    let (account, sub) = match (credentials.account.as_str(), &credentials.sub) {
        ("$sys", None) => (Ident::sys(), None),
        ("$sys", Some(top)) => match Ident::parse(top) {
            Ok(top) => (top, None),
            Err(_) => return Ok(None),
        },
        (account, sub) => {
            let Ok(account) = Ident::parse(account) else { return Ok(None) };
            match sub.as_deref().map(Ident::parse).transpose() {
                Ok(sub) => (account, sub),
                Err(_) => return Ok(None),
            }
        }
    };
    let Some(bucket) = Bucket::account(&account, sub.as_ref()) else { return Ok(None) };
    let Some(payer) = Bucket::account(&account, None) else { return Ok(None) };
    let verify = async |secret: &str, stored: &str| {
        verify(services, secret, stored, (&payer, address), attempt).await
    };
    // As slow as a wrong password: who is an admin, and of what, is not told by the time it takes.
    let nobody = async || match &credentials.secret {
        Secret::Admin { password, .. } => verify(password, secrets::OF_NOTHING).await.map(|_| None),
        Secret::Account(_) => Ok(None),
    };

    // Every account on the way must exist and be active.
    let mut own_hash = services.proven.sys_hash.clone();
    let mut parent_hash = own_hash.clone();
    let mut parent_bucket = Bucket::sys();
    if !account.is_sys() {
        let Some(row) = account_row(services, &Bucket::sys(), &account, &mut rows).await? else {
            return nobody().await;
        };
        own_hash = row.secret;
    }
    if let Some(sub) = &sub {
        let Some(row) = account_row(services, &payer, sub, &mut rows).await? else {
            return nobody().await;
        };
        parent_hash = std::mem::replace(&mut own_hash, row.secret);
        parent_bucket = payer.clone();
    }

    let (hash, secret_bucket) =
        if credentials.by_parent { (parent_hash, &parent_bucket) } else { (own_hash, &bucket) };
    let ident = sub.as_ref().unwrap_or(&account);
    let (proves, who, role) = match &credentials.secret {
        Secret::Account(secret) => {
            (verify(secret, &hash).await?, Arc::from(ident.as_str()), Role::Owner)
        }
        Secret::Admin { key, password } => {
            let Ok(key) = Key::parse(key) else { return Ok(None) };
            let node = Node::new(secret_bucket.clone(), layer(LAYER), path(ADMINS_PATH));
            let head = row(services, &node, &key, &mut rows).await?;
            let admin = head.and_then(|head| head.value.read::<AdminRow>().ok());
            let admin = admin.filter(|admin| admin.active);
            let hash = admin.as_ref().map_or(secrets::OF_NOTHING, |admin| &admin.password);
            let proves = verify(password, hash).await?;
            let is_own = *secret_bucket == bucket;
            let role = if is_own { Role::Admin } else { Role::ParentAdmin };
            (proves && admin.is_some(), Arc::from(key.as_str()), role)
        }
    };
    let caller = Caller { account, sub, bucket, payer, who, role };
    Ok(proves.then(|| Proof { caller: Arc::new(caller), basis: Basis::Rows(rows), seen }))
}

async fn account_row(
    services: &Services,
    owner: &Bucket,
    ident: &Ident,
    rows: &mut Vec<(Node, Key, Ver)>,
) -> Result<Option<AccountRow>, Fault> {
    let Ok(key) = Key::parse(ident.as_str()) else { return Ok(None) };
    let node = Node::new(owner.clone(), layer(LAYER), path(ACCOUNTS_PATH));
    let Some(head) = row(services, &node, &key, rows).await? else { return Ok(None) };
    Ok(head.value.read::<AccountRow>().ok().filter(|row| row.active))
}

async fn row(
    services: &Services,
    node: &Node,
    key: &Key,
    rows: &mut Vec<(Node, Key, Ver)>,
) -> Result<Option<Arc<Head>>, Fault> {
    let head = services.kv.get(node, key).await.map_err(store_fault)?;
    if let Some(head) = &head {
        rows.push((node.clone(), key.clone(), head.ver));
    }
    Ok(head)
}

async fn verify(
    services: &Services,
    secret: &str,
    stored: &str,
    (of, from): (&Bucket, IpAddr),
    attempt: &Arc<Attempt>,
) -> Result<bool, Fault> {
    if !secrets::is_slow(stored) {
        return Ok(secrets::verify_random(secret, stored));
    }
    // Who asks may hang up meanwhile: a guess counts all the same.
    let attempt = attempt.clone();
    let wrong = Box::new(move || attempt.wrong());
    services
        .passwords
        .verify(of, from, secret.to_owned(), stored.to_owned(), wrong)
        .await
        .ok_or_else(|| Fault::with(Code::Overloaded, "too many logins are being checked"))
}

/// Whether the account of a bucket, and the one above it, exist; active or not.
pub(crate) async fn is_there(services: &Services, bucket: &Bucket) -> Result<bool, StoreError> {
    let Some((top, sub)) = idents(bucket) else { return Ok(false) };
    let mut owner = Bucket::sys();
    for ident in std::iter::once(&top).chain(&sub).filter(|ident| !ident.is_sys()) {
        let Ok(key) = Key::parse(ident.as_str()) else { return Ok(false) };
        let node = Node::new(owner, layer(LAYER), path(ACCOUNTS_PATH));
        if services.kv.get(&node, &key).await?.is_none() {
            return Ok(false);
        }
        let Some(own) = Bucket::account(&top, None) else { return Ok(false) };
        owner = own;
    }
    Ok(true)
}

/// The account whose bucket this is, and its sub-account when it is that one's.
fn idents(bucket: &Bucket) -> Option<(Ident, Option<Ident>)> {
    let names = bucket.as_str().strip_prefix("kv4_$")?.strip_suffix("_data")?;
    let ident = |escaped: &str| {
        let name = percent_decode(&escaped.replace('+', "%"), false).ok()?;
        Ident::parse(&name).ok()
    };
    let (top, sub) = match names.split_once(')') {
        Some((top, sub)) => (top, Some(ident(sub)?)),
        None => (names, None),
    };
    let sys = (*bucket == Bucket::sys()).then(Ident::sys);
    let top = sys.or_else(|| ident(top))?;
    (Bucket::account(&top, sub.as_ref())? == *bucket).then_some((top, sub))
}

/// Since when an account, and the one above it, are those that they are, in milliseconds since 1970:
/// a name that was given anew does not inherit its predecessor's tokens. `None` where one of them is
/// not there, or may not log in.
///
/// # Errors
/// The store's.
pub async fn active_since(
    services: &Services,
    account: &Ident,
    sub: Option<&Ident>,
) -> Result<Option<u64>, Fault> {
    if account.is_sys() {
        return Ok(Some(0));
    }
    let mut rows = Vec::new();
    let Some(top) = account_row(services, &Bucket::sys(), account, &mut rows).await? else {
        return Ok(None);
    };
    let Some(sub) = sub else { return Ok(Some(top.created_ms())) };
    let Some(owner) = Bucket::account(account, None) else { return Ok(None) };
    let row = account_row(services, &owner, sub, &mut rows).await?;
    Ok(row.map(|row| row.created_ms().max(top.created_ms())))
}
