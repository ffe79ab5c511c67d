//! `_sess`: the logins and sockets of the caller's bucket, live (layer `*sess`, volatile).
//!
//! A login is a connection over which somebody proved who he is; ending it closes the connection.
//! A socket is a signalling WebSocket; ending it closes that. Ids start with `login-` or `socket-`.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use kv4::Bucket;
use wire::envelope::Fault;
use wire::errors::Code;

use crate::principal::Caller;
use crate::{Answer, Call, Closing, Method, Services, entries};

/// The connections over which somebody has logged in.
#[derive(Debug, Default)]
pub struct Sessions {
    logins: Mutex<HashMap<u64, Login>>,
    next: AtomicU64,
}

#[derive(Clone, Debug)]
struct Login {
    bucket: Bucket,
    who: Arc<str>,
    address: IpAddr,
    since_s: u64,
    ended: Arc<AtomicBool>,
}

/// A login's hold on its row; the row goes when this is dropped.
#[derive(Debug)]
pub struct LoginGuard {
    sessions: Arc<Services>,
    id: u64,
    /// Whether `caller` is still the one that logged in.
    bucket: Bucket,
    who: Arc<str>,
    ended: Arc<AtomicBool>,
}

impl LoginGuard {
    /// Whether somebody ended this login: the connection is to be closed.
    pub fn is_ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }

    /// Whether this login is that of a caller.
    pub fn is_of(&self, caller: &Caller) -> bool {
        self.bucket == caller.bucket && self.who == caller.who
    }
}

impl Drop for LoginGuard {
    fn drop(&mut self) {
        let mut logins =
            self.sessions.sessions.logins.lock().unwrap_or_else(PoisonError::into_inner);
        logins.remove(&self.id);
    }
}

impl Sessions {
    /// Notes that a caller has logged in over a connection.
    pub fn login(services: &Arc<Services>, caller: &Caller, address: IpAddr) -> LoginGuard {
        let id = services.sessions.next.fetch_add(1, Ordering::Relaxed);
        let ended = Arc::new(AtomicBool::new(false));
        let login = Login {
            bucket: caller.bucket.clone(),
            who: caller.who.clone(),
            address,
            since_s: services.now_s(),
            ended: ended.clone(),
        };
        let mut logins = services.sessions.logins.lock().unwrap_or_else(PoisonError::into_inner);
        logins.insert(id, login);
        LoginGuard {
            sessions: services.clone(),
            id,
            bucket: caller.bucket.clone(),
            who: caller.who.clone(),
            ended,
        }
    }

    /// Ends every login of a bucket and of its sub-accounts.
    pub(crate) fn end_all(&self, bucket: &Bucket) {
        let logins = self.logins.lock().unwrap_or_else(PoisonError::into_inner);
        for login in logins.values().filter(|login| login.bucket.is_within(bucket)) {
            login.ended.store(true, Ordering::Relaxed);
        }
    }

    fn of(&self, bucket: &Bucket) -> Vec<(u64, Login)> {
        let logins = self.logins.lock().unwrap_or_else(PoisonError::into_inner);
        let mut found: Vec<_> = logins
            .iter()
            .filter(|(_, login)| login.bucket == *bucket && !login.ended.load(Ordering::Relaxed))
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
                    login.is_some_and(|(_, login)| !login.ended.swap(true, Ordering::Relaxed))
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
        let row = serde_json::json!({
            "id": id, "kind": "login", "who": &*login.who, "address": login.address.to_string(),
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
