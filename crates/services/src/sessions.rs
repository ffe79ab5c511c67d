//! `_sess`: the logins and sockets of the caller's bucket, live (layer `*sess`, volatile).
//!
//! A login is a connection over which somebody proved who he is. Ending it closes the connection over
//! HTTP/1.1; over HTTP/2, where others' requests may be under way, the caller is refused for as long
//! as the connection lasts. One who came with a token is of the kind `user`. A socket is a signalling WebSocket; ending it closes that. Ids start with `login-` or `socket-`.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aws_lc_rs::constant_time::verify_slices_are_equal;
use kv4::Bucket;
use wire::envelope::Fault;
use wire::errors::Code;

use crate::principal::{Caller, Proof};
use crate::statistics::{Counter, Measured};
use crate::{Answer, Call, Closing, Method, Services, entries};

/// The connections over which somebody has logged in.
#[derive(Debug, Default)]
pub struct Sessions {
    logins: Mutex<HashMap<u64, Arc<Row>>>,
    next: AtomicU64,
    /// How often logins were ended.
    ended: AtomicU64,
}

/// What `_sess` shows of a login.
#[derive(Debug)]
struct Row {
    caller: Arc<Caller>,
    address: IpAddr,
    since_s: u64,
    ended: AtomicBool,
}

/// Keeps a row in the list until it is dropped.
struct Listed {
    services: Arc<Services>,
    id: u64,
    row: Arc<Row>,
}

impl Drop for Listed {
    fn drop(&mut self) {
        let sessions = &self.services.sessions;
        sessions.logins.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
    }
}

/// Who has logged in over a connection, and what proved it.
pub struct Login {
    listed: Arc<Listed>,
    proof: Arc<Proof>,
    /// The header that was proven, and from where.
    presented: Option<(Box<str>, IpAddr)>,
    /// What the last request was counted by.
    counter: Mutex<Option<(usize, Arc<Counter>)>>,
}

impl std::fmt::Debug for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Login").field("caller", self.caller()).finish_non_exhaustive()
    }
}

impl Login {
    pub fn caller(&self) -> &Arc<Caller> {
        &self.proof.caller
    }

    /// Whether what proved it is as it was.
    ///
    /// # Errors
    /// The store's.
    pub async fn still_holds(&self, services: &Services) -> Result<bool, Fault> {
        self.proof.still_holds(services).await
    }

    /// The same for a socket or stream that this login has opened: a token's end is that of
    /// connecting.
    ///
    /// # Errors
    /// The store's.
    pub async fn holds_while_open(&self, services: &Services) -> Result<bool, Fault> {
        self.proof.holds_while_open(services).await
    }

    /// Whether somebody ended this login: its caller is refused on its connection.
    pub fn is_ended(&self) -> bool {
        self.listed.row.ended.load(Ordering::Relaxed)
    }

    /// Counts a request of this login as one of a `kind`, when the last one was of that kind too;
    /// `false` when it has to be counted by [`Login::count`]. What it counts by ends with the bucket.
    pub fn count_again(&self, services: &Services, kind: usize) -> bool {
        let counter = self.counter.lock().unwrap_or_else(PoisonError::into_inner);
        counter.as_ref().is_some_and(|(of, counter)| {
            *of == kind && counter.count(&services.stats, services.now_s())
        })
    }

    /// Counts a request of this login as one of the `kind` that is `measured`. The account's end must
    /// wait meanwhile, as it does for what has entered ([`crate::writing`]).
    pub fn count(&self, services: &Services, kind: usize, measured: Measured) {
        let counted = services.stats.counter(measured, services.now_s());
        let mut counter = self.counter.lock().unwrap_or_else(PoisonError::into_inner);
        *counter = counted.map(|counted| (kind, counted));
    }
}

/// Callers that one connection remembers. Of more the one who called longest ago is forgotten, unless
/// his login was ended; where all were, nobody logs in any more.
const CALLERS_MAX: usize = 8;

/// What one connection remembers of its callers: the last login of each, the latest last. One that was
/// ended stays, so that its caller is refused for as long as the connection lasts.
#[derive(Debug, Default)]
pub struct Session(Mutex<Vec<Arc<Login>>>);

impl Session {
    /// The login that the same header was proven by before, from the same address.
    pub(crate) fn known(&self, header: &str, address: IpAddr) -> Option<Arc<Login>> {
        // A proxy may bring several clients over one connection.
        let is_same = |login: &&Arc<Login>| {
            login.presented.as_ref().is_some_and(|(known, from)| {
                *from == address
                    && verify_slices_are_equal(known.as_bytes(), header.as_bytes()).is_ok()
            })
        };
        self.logins().iter().rev().find(is_same).cloned()
    }

    /// Notes that somebody has proven who he is; it is the same login while the caller is the same.
    ///
    /// # Errors
    /// `unauthorized` when too many logins of this connection were ended.
    pub(crate) fn log_in(
        &self,
        services: &Arc<Services>,
        proof: Arc<Proof>,
        header: Option<&str>,
        address: IpAddr,
    ) -> Result<Arc<Login>, Fault> {
        let mut logins = self.logins();
        let listed = match logins.iter().position(|login| login.is_of(&proof.caller)) {
            Some(at) => logins.remove(at).listed.clone(),
            None => {
                if logins.len() >= CALLERS_MAX {
                    let Some(at) = logins.iter().position(|login| !login.is_ended()) else {
                        return Err(ended());
                    };
                    logins.remove(at);
                }
                Arc::new(services.sessions.list(services, proof.caller.clone(), address))
            }
        };
        let presented = header.map(|header| (Box::from(header), address));
        let login = Arc::new(Login { listed, proof, presented, counter: Mutex::default() });
        logins.push(login.clone());
        Ok(login)
    }

    /// Whether a login was ended: a connection that carries one request at a time is to be closed.
    pub fn has_ended(&self) -> bool {
        self.logins().iter().any(|login| login.is_ended())
    }

    fn logins(&self) -> MutexGuard<'_, Vec<Arc<Login>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The refusal of somebody whose login was ended.
pub fn ended() -> Fault {
    Fault::with(Code::Unauthorized, "this session was ended")
}

impl Login {
    fn is_of(&self, caller: &Caller) -> bool {
        let own = self.caller();
        own.bucket == caller.bucket && own.who == caller.who && own.role == caller.role
    }
}

impl Sessions {
    fn list(&self, services: &Arc<Services>, caller: Arc<Caller>, address: IpAddr) -> Listed {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let since_s = services.now_s();
        let row = Arc::new(Row { caller, address, since_s, ended: AtomicBool::new(false) });
        let mut logins = self.logins.lock().unwrap_or_else(PoisonError::into_inner);
        logins.insert(id, row.clone());
        Listed { services: services.clone(), id, row }
    }

    /// Ends every login of a bucket and of its sub-accounts.
    pub(crate) fn end_all(&self, bucket: &Bucket) {
        let logins = self.logins.lock().unwrap_or_else(PoisonError::into_inner);
        for login in logins.values().filter(|login| login.caller.bucket.is_within(bucket)) {
            login.ended.store(true, Ordering::Relaxed);
        }
        self.ended.fetch_add(1, Ordering::Release);
    }

    /// A count that has changed when a login was ended.
    pub(crate) fn ended(&self) -> u64 {
        self.ended.load(Ordering::Acquire)
    }

    fn of(&self, bucket: &Bucket) -> Vec<(u64, Arc<Row>)> {
        let logins = self.logins.lock().unwrap_or_else(PoisonError::into_inner);
        let mut found: Vec<_> = logins
            .iter()
            .filter(|(_, login)| {
                login.caller.bucket == *bucket && !login.ended.load(Ordering::Relaxed)
            })
            .map(|(id, login)| (*id, login.clone()))
            .collect();
        found.sort_by_key(|(id, _)| *id);
        found
    }
}

pub(crate) fn call(services: &Services, call: &Call<'_>) -> Result<Answer, Fault> {
    let bucket = &call.caller.bucket;
    let asked = entries::key(call)?;
    match call.method {
        Method::Get => {
            let rows = rows(services, bucket);
            let v: serde_json::Value = match (asked, call.params.text("as").as_deref()) {
                (Some(key), _) => {
                    let row = rows.into_iter().find(|(id, _)| id == key.as_str());
                    row.ok_or(Code::NotFound)?.1
                }
                (None, Some("values")) => rows.into_iter().map(|(_, row)| row).collect(),
                (None, _) => rows.into_iter().map(|(id, _)| id).collect(),
            };
            Ok(Answer::json(v.to_string()))
        }
        Method::Delete => {
            let key =
                asked.ok_or_else(|| Fault::with(Code::BadName, "`k` names the session to end"))?;
            let ended = match key.as_str().split_once('-') {
                Some(("socket", id)) => id.parse().is_ok_and(|id: u64| {
                    services.rooms.close(bucket, Closing::Ended, &|socket| socket.id == id) > 0
                }),
                Some(("login", id)) => id.parse().is_ok_and(|id: u64| {
                    let logins = services.sessions.of(bucket);
                    let login = logins.iter().find(|(known, _)| *known == id);
                    let ended =
                        login.is_some_and(|(_, login)| !login.ended.swap(true, Ordering::Relaxed));
                    services.sessions.ended.fetch_add(u64::from(ended), Ordering::Release);
                    ended
                }),
                _ => false,
            };
            if ended { Ok(Answer::number(1)) } else { Err(Code::NotFound.into()) }
        }
        Method::Put | Method::Post => Err(entries::no_method(call)),
    }
}

fn rows(services: &Services, bucket: &Bucket) -> Vec<(String, serde_json::Value)> {
    let logins = services.sessions.of(bucket).into_iter().map(|(id, login)| {
        let id = format!("login-{id}");
        let kind = if login.caller.user().is_some() { "user" } else { "login" };
        let row = serde_json::json!({
            "id": id, "kind": kind, "who": &*login.caller.who, "address": login.address.to_string(),
            "since": login.since_s,
        });
        (id, row)
    });
    let mut rows: Vec<_> = logins.collect();
    services.rooms.sockets(bucket, &mut |socket| {
        let id = format!("socket-{}", socket.id);
        let row = serde_json::json!({
            "id": id, "kind": "socket", "who": socket.name, "path": socket.path.as_str(),
            "topic": socket.topic, "address": socket.address.to_string(),
            "since": socket.since_s,
        });
        rows.push((id, row));
    });
    rows
}
