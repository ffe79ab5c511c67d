//! The client verbs `get put post delete token`, with named contexts (seed 002's `xirsys get`).
//!
//! A context is an address and credentials, kept in `contexts.toml` of the user's configuration
//! folder; `--url` and `--user` stand in for one.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use base64::Engine as _;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::serve::write_secret;

/// Longest answer that is read, in bytes.
const ANSWER_BYTES_MAX: u64 = 256 << 20;

/// Where to ask, and as whom.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Context {
    /// `http://127.0.0.1:4006`
    pub(crate) url: String,
    /// `ident:secret`, in any form that the API takes.
    pub(crate) user: String,
}

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Contexts {
    current: Option<String>,
    #[serde(default)]
    context: BTreeMap<String, Context>,
}

/// How a call names its context.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Where {
    /// A named context; the current one when left out.
    #[arg(long, env = "GANGLION_CONTEXT")]
    context: Option<String>,
    /// The neuron's address, such as http://127.0.0.1:4006. These verbs speak http only; for https use
    /// curl.
    #[arg(long)]
    url: Option<String>,
    /// Credentials, such as 'elena:secret' or 'elena#lily:!secret'.
    #[arg(long, short)]
    user: Option<String>,
}

fn file() -> Result<PathBuf> {
    let base = match std::env::var_os("XDG_CONFIG_HOME") {
        Some(base) => PathBuf::from(base),
        None => PathBuf::from(std::env::var_os("HOME").context("HOME is not set")?).join(".config"),
    };
    Ok(base.join("ganglion/contexts.toml"))
}

fn load() -> Result<Contexts> {
    let file = file()?;
    match std::fs::read_to_string(&file) {
        Ok(text) => toml::from_str(&text).with_context(|| format!("reading {}", file.display())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Contexts::default()),
        Err(error) => Err(error).with_context(|| format!("reading {}", file.display())),
    }
}

fn save(contexts: &Contexts) -> Result<()> {
    let file = file()?;
    if let Some(folder) = file.parent() {
        std::fs::create_dir_all(folder)?;
    }
    write_secret(&file, &toml::to_string(contexts)?)
}

impl Where {
    fn find(&self) -> Result<Context> {
        if let (Some(url), Some(user)) = (&self.url, &self.user) {
            return Ok(Context { url: url.clone(), user: user.clone() });
        }
        let contexts = load()?;
        let name = self.context.as_ref().or(contexts.current.as_ref());
        let Some(name) = name else {
            match (&self.url, &self.user) {
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
            url: self.url.clone().unwrap_or_else(|| known.url.clone()),
            user: self.user.clone().unwrap_or_else(|| known.user.clone()),
        })
    }
}

/// What to do with contexts.
#[derive(Clone, Debug, clap::Subcommand)]
pub(crate) enum ContextVerb {
    /// Add or replace a context, and use it from here on.
    Add {
        /// What to call it.
        name: String,
        /// The neuron's address, such as http://127.0.0.1:4006; http only.
        #[arg(long)]
        url: String,
        /// Credentials, such as 'elena:secret' or 'elena#lily:!secret'.
        #[arg(long, short)]
        user: String,
    },
    /// List contexts; the current one has a star.
    List,
    /// Use a context from here on.
    Use {
        /// Its name.
        name: String,
    },
    /// Forget a context.
    Remove {
        /// Its name.
        name: String,
    },
}

/// Carries out a verb on contexts; answers what to print.
pub(crate) fn context(verb: ContextVerb) -> Result<String> {
    let mut contexts = load()?;
    match verb {
        ContextVerb::Add { name, url, user } => {
            contexts.context.insert(name.clone(), Context { url, user });
            contexts.current = Some(name);
        }
        ContextVerb::Use { name } => {
            if !contexts.context.contains_key(&name) {
                bail!("there is no context `{name}`");
            }
            contexts.current = Some(name);
        }
        ContextVerb::Remove { name } => {
            if contexts.context.remove(&name).is_none() {
                bail!("there is no context `{name}`");
            }
            contexts.current = contexts.current.filter(|current| *current != name);
        }
        ContextVerb::List => {
            let line = |(name, context): (&String, &Context)| {
                let star = if contexts.current.as_ref() == Some(name) { '*' } else { ' ' };
                let ident = context.user.split(':').next().unwrap_or_default();
                format!("{star} {name}  {}  {ident}\n", context.url)
            };
            return Ok(contexts.context.iter().map(line).collect());
        }
    }
    save(&contexts)?;
    Ok(String::new())
}

/// Asks the API; prints the answer in full, and fails when it is an error.
pub(crate) async fn ask(
    place: &Where,
    method: &str,
    path: &str,
    body: Option<&str>,
) -> Result<String> {
    let context = place.find()?;
    let (status, text) = send(&context, method, path, body).await?;
    let Ok(answer) = serde_json::from_str::<serde_json::Value>(&text) else {
        bail!("{} answered {status} to {path}, and not as this API: {}", context.url, text.trim());
    };
    if answer["s"] == "error" {
        let detail = answer["detail"].as_str().map(|detail| format!(": {detail}"));
        bail!("{}{}", answer["v"].as_str().unwrap_or("error"), detail.unwrap_or_default());
    }
    Ok(serde_json::to_string_pretty(&answer)?)
}

async fn send(
    context: &Context,
    method: &str,
    path: &str,
    body: Option<&str>,
) -> Result<(u16, String)> {
    let Some(authority) = context.url.strip_prefix("http://") else {
        bail!("{}: these verbs speak http:// only; for https:// use curl", context.url);
    };
    let authority = authority.trim_end_matches('/');
    let host =
        if authority.contains(':') { authority.to_owned() } else { format!("{authority}:80") };
    let mut stream = tokio::net::TcpStream::connect(&host)
        .await
        .with_context(|| format!("connecting to {}", context.url))?;
    let path = path.replace(' ', "%20").replace('#', "%23");
    let slash = if path.starts_with('/') { "" } else { "/" };
    let credentials = base64::engine::general_purpose::STANDARD.encode(&context.user);
    let body = body.unwrap_or("");
    let head = format!(
        "{method} {slash}{path} HTTP/1.1\r\nhost: {authority}\r\nauthorization: Basic {credentials}\r\n\
         content-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer).await?;
    let answer = String::from_utf8(answer).context("the answer is not UTF-8")?;
    let (head, body) = answer.split_once("\r\n\r\n").context("the answer is not HTTP")?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    Ok((status.context("the answer has no status")?, body.to_owned()))
}
