//! Requests of a socket: a v4 client's `get`, `put`, `delete`, `list`, `series` and `watch` become
//! requests of the HTTP API, and are carried out as those are (`docs/reference/signalling.md`).
//!
//! Input is a verb with its parameters and who opened the socket; output is the API's envelope. Frames,
//! and how many requests may wait, are the shell's.

use std::net::IpAddr;
use std::sync::Arc;

use services::Service;
use services::sessions::{Login, Session};
use services::watch::Sink;
use wire::envelope::{self, Fault};
use wire::errors::Code;
use wire::frames::{Verb, percent_encode};
use wire::names::Path;
use wire::params::Params;

use crate::Neuron;
use crate::requests::{Admission, Request};
use crate::watching::Opened;

/// The service of a request that names none.
const SERVICE: &str = "data";
/// Parameters of which one names an entry.
const KEYS: [&str; 4] = ["k", "k2", "k3", "k4"];

/// Who asks: the same for every request of a socket.
#[derive(Debug)]
pub struct Asker {
    pub opener: Arc<Login>,
    pub session: Session,
    pub address: IpAddr,
    pub is_tls: bool,
    /// Where requests are about that name no path: the socket's room.
    pub path: Path,
}

/// What a request comes to.
#[derive(Debug)]
pub struct Reply {
    /// `{"v":…,"s":…}`.
    pub envelope: String,
    /// The version of the entry that was read or written.
    pub ver: Option<String>,
}

/// A request, as the HTTP API has it.
struct Asked {
    method: &'static str,
    /// As it stands in a URL.
    path: String,
    query: &'static str,
    /// Where it is about.
    at: Path,
}

impl Reply {
    /// A refusal.
    pub fn of(fault: &Fault) -> Reply {
        Reply { envelope: envelope::error(fault), ver: None }
    }
}

impl Neuron {
    /// Carries out a request of a socket; `params` is JSON text.
    pub async fn ask(
        &self,
        asker: &Asker,
        verb: Verb,
        params: &str,
        admission: &impl Admission,
    ) -> Reply {
        let asked = match asked(asker, verb, params) {
            Ok(asked) => asked,
            Err(fault) => return Reply::of(&fault),
        };
        match self.request(&asker.request(&asked, params), admission).await {
            Some(response) => Reply {
                envelope: response.body,
                ver: response.etag.map(|tag| tag.trim_matches('"').to_owned()),
            },
            None => Reply::of(&no_such_service()),
        }
    }

    /// Opens a watch that a socket asks for. Answers where it is, the reply, and the watch, which lasts
    /// until that is dropped.
    ///
    /// # Errors
    /// The reply that refuses it.
    pub async fn ask_watch(
        &self,
        asker: &Asker,
        params: &str,
        admission: &impl Admission,
        sink: impl FnOnce(&Path) -> Arc<dyn Sink>,
    ) -> Result<(Reply, Opened), Reply> {
        let asked = asked(asker, Verb::Watch, params).map_err(|fault| Reply::of(&fault))?;
        let request = asker.request(&asked, params);
        match self.watch(&request, admission, sink(&asked.at)).await {
            Ok(opening) => {
                let envelope = envelope::ok(&opening.start.json());
                Ok((Reply { envelope, ver: None }, opening.opened))
            }
            Err(response) => Err(Reply { envelope: response.body, ver: None }),
        }
    }

    /// Looks whether a socket may still have a watch.
    ///
    /// # Errors
    /// The refusal.
    pub async fn may_still_watch(&self, asker: &Asker, opened: &Opened) -> Result<(), Fault> {
        let (path, query) = (String::new(), "");
        let asked = Asked { method: "GET", path, query, at: Path::root() };
        self.may_watch(&asker.request(&asked, ""), opened).await
    }
}

impl Asker {
    fn request<'a>(&'a self, asked: &'a Asked, params: &'a str) -> Request<'a> {
        Request {
            method: asked.method,
            path: &asked.path,
            query: asked.query,
            authorization: None,
            accept: None,
            origin: None,
            if_match: None,
            if_none_match: None,
            idempotency_key: None,
            authority: "",
            is_tls: self.is_tls,
            address: self.address,
            session: &self.session,
            opener: Some(&self.opener),
            body: params.as_bytes(),
        }
    }
}

fn no_such_service() -> Fault {
    Fault::with(Code::BadName, "there is no such service")
}

/// What a verb asks of the API.
fn asked(asker: &Asker, verb: Verb, text: &str) -> Result<Asked, Fault> {
    let params = Params::read("", text.as_bytes());
    let params = params.map_err(|error| Fault::with(Code::BadRequest, error.to_string()))?;
    let service = params.text("service").unwrap_or(SERVICE.into());
    if Service::of_prefix(&format!("_{service}")).is_none() {
        return Err(no_such_service());
    }
    let names_key = KEYS.iter().any(|name| params.has(name));
    let (method, query) = match verb {
        Verb::Delete if names_key => ("DELETE", ""),
        Verb::Get if names_key => ("GET", ""),
        Verb::List if !names_key => ("GET", ""),
        Verb::Put => ("PUT", ""),
        Verb::Series => ("GET", "time_series=1"),
        Verb::Unwatch | Verb::Watch => ("GET", ""),
        Verb::List => return Err(Fault::with(Code::BadRequest, "a list is of all keys of a path")),
        Verb::Delete | Verb::Get => {
            return Err(Fault::with(Code::BadName, "`k` names the entry that is meant"));
        }
    };
    let at = match params.text("path") {
        Some(path) => Path::parse(&path)?,
        None => asker.path.clone(),
    };
    let mut path = format!("/_{}", percent_encode(&service));
    for segment in at.segments() {
        path.push('/');
        path.push_str(&percent_encode(segment));
    }
    Ok(Asked { method, path, query, at })
}
