//! The data suite: the HTTP API and the program around it, asked with curl.
//!
//! Most tests share one neuron and keep apart by accounts of their own; what fails to log in does so
//! from an address of its own, since failures are counted by address.

// Figures and seeds are printed for whoever reads a run's output.
#![allow(clippy::print_stdout)]

mod attack;
mod errors;
mod pattern;
mod program;
mod resolutions;
mod seed;
mod shapes;

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, Once, PoisonError};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use tests::curl::{self, Request};
use tests::neuron::{Neuron, SYS_SECRET};
use tests::socket::Client;

static SHARED: Mutex<Option<Arc<Neuron>>> = Mutex::new(None);

/// The neuron that tests of this suite share; it ends with the test program.
fn shared() -> Result<Arc<Neuron>> {
    static AT_EXIT: Once = Once::new();
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(neuron) = &*shared {
        return Ok(neuron.clone());
    }
    AT_EXIT.call_once(|| tests::os::at_exit(end_shared));
    let neuron = Arc::new(Neuron::start()?);
    *shared = Some(neuron.clone());
    Ok(neuron)
}

extern "C" fn end_shared() {
    drop(SHARED.lock().unwrap_or_else(PoisonError::into_inner).take());
}

/// Somebody who calls a neuron with credentials.
#[derive(Clone, Debug)]
pub(super) struct Caller {
    url: String,
    pub(super) credentials: String,
}

impl Caller {
    fn new(neuron: &Neuron, credentials: impl Into<String>) -> Caller {
        Caller { url: neuron.url(), credentials: credentials.into() }
    }

    fn sys(neuron: &Neuron) -> Caller {
        Caller::new(neuron, format!("$sys:{SYS_SECRET}"))
    }

    /// A request that is to be completed.
    fn request(&self, method: &str, path: &str) -> Request {
        Request::new(method, format!("{}{path}", self.url)).user(&self.credentials)
    }

    fn call(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value> {
        curl::json(method, &self.url, path, &self.credentials, body)
    }

    pub(super) fn get(&self, path: &str) -> Result<Value> {
        self.call("GET", path, None)
    }

    pub(super) fn put(&self, path: &str, body: Value) -> Result<Value> {
        self.call("PUT", path, Some(&body))
    }

    fn post(&self, path: &str, body: Value) -> Result<Value> {
        self.call("POST", path, Some(&body))
    }

    pub(super) fn delete(&self, path: &str) -> Result<Value> {
        self.call("DELETE", path, None)
    }
}

/// An account of its own for a test, with its secret and name.
#[derive(Clone, Debug)]
pub(super) struct Account {
    pub(super) name: String,
    secret: String,
    caller: Caller,
}

impl Account {
    pub(super) fn new(neuron: &Neuron) -> Result<Account> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("account{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let body = json!({ "k": name, "v": { "email": format!("{name}@example.org") } });
        let made = v(Caller::sys(neuron).put("/_acc/accounts", body))?;
        let secret = made["secret"].as_str().context("a new account has a secret")?.to_owned();
        let caller = Caller::new(neuron, format!("{name}:{secret}"));
        Ok(Account { name, secret, caller })
    }

    /// A sub-account of this one.
    fn sub(&self, name: &str) -> Result<Account> {
        let body = json!({ "k": name, "v": { "email": format!("{name}@example.org") } });
        let made = v(self.put("/_acc/accounts", body))?;
        let secret = made["secret"].as_str().context("a new account has a secret")?.to_owned();
        let credentials = format!("{}#{name}:{secret}", self.name);
        let caller = Caller { credentials, ..self.caller.clone() };
        Ok(Account { name: name.to_owned(), secret, caller })
    }

    /// The same account of a neuron that was started anew.
    pub(super) fn at(&self, neuron: &Neuron) -> Account {
        let caller = Caller { url: neuron.url(), ..self.caller.clone() };
        Account { caller, ..self.clone() }
    }

    /// `ident:secret`
    pub(super) fn credentials(&self) -> &str {
        &self.caller.credentials
    }

    pub(super) fn url(&self, path: &str) -> String {
        format!("{}{path}", self.caller.url)
    }

    pub(super) fn ask(&self, method: &str, path: &str) -> Request {
        self.caller.request(method, path)
    }

    /// The same account with other credentials.
    fn with(&self, credentials: impl Into<String>) -> Caller {
        Caller { credentials: credentials.into(), ..self.caller.clone() }
    }
}

impl std::ops::Deref for Account {
    type Target = Caller;
    fn deref(&self) -> &Caller {
        &self.caller
    }
}

/// `v` of an answer that is not an error.
pub(super) fn v(answer: Result<Value>) -> Result<Value> {
    let mut answer = answer?;
    if answer["s"] != "ok" {
        bail!("refused: {answer}");
    }
    Ok(answer["v"].take())
}

/// The word of an answer that is an error.
fn word(answer: Result<Value>) -> Result<String> {
    let answer = answer?;
    match (answer["s"].as_str(), answer["v"].as_str()) {
        (Some("error"), Some(word)) => Ok(word.to_owned()),
        _ => bail!("not an error: {answer}"),
    }
}

/// A socket of the user that a token names; `token` may go on with a query.
fn connect(neuron: &Neuron, token: &str) -> Result<Client> {
    Client::connect(&format!("ws://{}/ws/v2/{token}", neuron.address("http")?))
}

/// The same, once it is in its room.
fn join(neuron: &Neuron, token: &str) -> Result<Client> {
    let mut chatter = connect(neuron, token)?;
    let first = chatter.frame()?;
    if first["m"]["o"] != "peers" {
        bail!("the first frame was {first}");
    }
    Ok(chatter)
}
