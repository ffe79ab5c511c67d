//! The client verbs `get put post delete token chat watch`, with named contexts (seed 002's `xirsys get`).
//!
//! A context is an address and credentials; `--url` and `--user` stand in for one. [`contexts`] keeps
//! them, [`exchange`](mod@exchange) is one request over http or https and its answer, [`link`] a
//! signalling socket, [`print`](mod@print) what is printed.

mod chat;
mod contexts;
mod exchange;
mod link;
mod print;
mod watch;

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};

use self::contexts::Context;
pub(crate) use self::contexts::{ContextVerb, context};
use self::exchange::exchange;
pub(crate) use self::print::print;

/// How a call names its context.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Where {
    /// A named context; the current one when left out.
    #[arg(long, env = "GANGLION_CONTEXT")]
    context: Option<String>,
    /// The neuron's address, such as http://127.0.0.1:4006 or https://localhost:4008; else
    /// $GANGLION_URL, unless a context is named.
    #[arg(long)]
    url: Option<String>,
    /// Credentials, such as 'elena:secret' or 'elena#lily:!secret'; else $GANGLION_USER, unless a
    /// context is named. Those of a context or the variable are not seen in `ps`.
    #[arg(long, short)]
    user: Option<String>,
    /// A PEM file with certificates that are trusted in place of the system's: of a self-made
    /// certificate, itself.
    #[arg(long)]
    ca: Option<PathBuf>,
}

impl Where {
    fn find(&self) -> Result<Context> {
        let or_variable = |said: &Option<String>, name: &str| match (said, &self.context) {
            (None, None) => std::env::var(name).ok(),
            _ => said.clone(),
        };
        let (url, user) =
            (or_variable(&self.url, "GANGLION_URL"), or_variable(&self.user, "GANGLION_USER"));
        if let Some(user) = &user {
            contexts::check_user(user)?;
        }
        let (url, user) = match (url, user) {
            (Some(url), Some(user)) => return Ok(Context { url, user, ca: self.ca.clone() }),
            pair => pair,
        };
        let contexts = contexts::load()?;
        let name = self.context.as_ref().or(contexts.current.as_ref());
        let Some(name) = name else {
            match (url, user) {
                (Some(_), None) => bail!("only --user is missing, such as --user 'elena:secret'"),
                (None, Some(_)) => {
                    bail!("only --url is missing, such as --url http://127.0.0.1:4006")
                }
                _ => bail!(
                    "name a neuron: --url and --user, or `ganglion context add NAME --url … --user …`"
                ),
            }
        };
        let known = contexts.context.get(name);
        let known = known.with_context(|| format!("there is no context `{name}`"))?;
        Ok(Context {
            url: url.unwrap_or_else(|| known.url.clone()),
            user: user.unwrap_or_else(|| known.user.clone()),
            ca: self.ca.clone().or_else(|| known.ca.clone()),
        })
    }
}

/// Asks the API; prints the answer in full, and fails when it is an error.
pub(crate) async fn ask(
    place: &Where,
    method: &str,
    path: &str,
    body: Option<&str>,
) -> Result<String> {
    let context = place.find()?;
    let (status, text) = exchange(&context, method, path, body).await?;
    let Ok(answer) = serde_json::from_str::<serde_json::Value>(&text) else {
        bail!("{} answered {status} to {path}, and not as this API: {}", context.url, text.trim());
    };
    if answer["s"] == "error" {
        let detail = answer["detail"].as_str().map(|detail| format!(": {detail}"));
        bail!("{}{}", answer["v"].as_str().unwrap_or("error"), detail.unwrap_or_default());
    }
    Ok(serde_json::to_string_pretty(&answer)?)
}

/// Is in a room until standard input ends.
pub(crate) async fn chat(place: &Where, path: &str, name: &str) -> Result<()> {
    chat::chat(&place.find()?, path, name).await
}

/// Follows the entries of a path, or one of them, until that is refused.
pub(crate) async fn watch(place: &Where, path: &str, key: Option<&str>) -> Result<()> {
    watch::watch(&place.find()?, path, key).await
}
