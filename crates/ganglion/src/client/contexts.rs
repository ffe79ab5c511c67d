//! Named contexts, kept in `contexts.toml` of the user's configuration folder, which only he may read.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};

use super::exchange::Address;
use crate::serve::write_secret;

/// Where to ask, and as whom.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Context {
    /// `http://127.0.0.1:4006`, `https://rtc.example.org`
    pub(super) url: String,
    /// `ident:secret`, in any form that the API takes.
    pub(super) user: String,
    /// A PEM file with certificates that are trusted in place of the system's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) ca: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Contexts {
    pub(super) current: Option<String>,
    #[serde(default)]
    pub(super) context: BTreeMap<String, Context>,
}

/// What to do with contexts.
#[derive(Clone, Debug, clap::Subcommand)]
pub(crate) enum ContextVerb {
    /// Add or replace a context, and use it from here on.
    Add {
        /// What to call it.
        name: String,
        /// The neuron's address, such as http://127.0.0.1:4006 or https://localhost:4008.
        #[arg(long)]
        url: String,
        /// Credentials, such as 'elena:secret' or 'elena#lily:!secret'; in $GANGLION_USER they are
        /// not seen in `ps`.
        #[arg(long, short, env = "GANGLION_USER", hide_env_values = true)]
        user: String,
        /// A PEM file with certificates that are trusted in place of the system's: of a self-made
        /// certificate, itself.
        #[arg(long)]
        ca: Option<PathBuf>,
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
        ContextVerb::Add { name, url, user, ca } => {
            Address::parse(&url)?;
            check_user(&user)?;
            // It is read from wherever a verb is called.
            let ca = ca.map(std::path::absolute).transpose()?;
            contexts.context.insert(name.clone(), Context { url, user, ca });
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

/// Refuses credentials that nobody could log in with.
pub(super) fn check_user(user: &str) -> Result<()> {
    match user.split_once(':') {
        Some((ident, _)) if !ident.is_empty() => Ok(()),
        // It may be a secret, and is not told.
        _ => bail!("credentials are a name, a colon and a secret, such as 'elena:secret'"),
    }
}

fn file() -> Result<PathBuf> {
    let base = crate::user_folder("XDG_CONFIG_HOME", ".config")?;
    Ok(base.join("ganglion/contexts.toml"))
}

pub(super) fn load() -> Result<Contexts> {
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
