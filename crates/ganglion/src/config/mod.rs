//! The configuration: one typed tree, from a TOML file and the environment.
//!
//! `GANGLION_STATS__FLUSH=1s` overrides `stats.flush`. A key that does not exist is refused with the
//! nearest one that does. The keys with their documentation and defaults are in [`keys`], what no
//! neuron could run with in [`check`], and the reference that is made of them in [`reference`](mod@reference).

mod check;
mod keys;
mod reference;
mod units;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use toml::{Table, Value};

pub(crate) use self::keys::{Config, TlsConfig};
use self::keys::{KEYS, SECTIONS};
pub(crate) use self::reference::{explain, reference};
use self::reference::{shown, unknown};

/// Prefix of environment variables that override keys.
const ENV_PREFIX: &str = "GANGLION_";
/// Where a configuration is looked for when none is named.
const PLACES: [&str; 2] = ["ganglion.toml", "/etc/ganglion/ganglion.toml"];

impl Config {
    /// Reads the file that is named or found, and the environment over it. The second value is the
    /// file that was read; `None` when there is none.
    pub(crate) fn load(named: Option<&Path>) -> Result<(Config, Option<PathBuf>)> {
        let file = match named {
            Some(path) => Some(path.to_owned()),
            None => match std::env::var_os("GANGLION_CONFIG") {
                Some(path) => Some(PathBuf::from(path)),
                None => PLACES.iter().map(PathBuf::from).find(|place| place.exists()),
            },
        };
        let mut table = match &file {
            None => Table::new(),
            Some(path) => std::fs::read_to_string(path)
                .with_context(|| format!("reading {}", path.display()))?
                .parse::<Table>()
                .with_context(|| format!("{} is not TOML", path.display()))?,
        };
        refuse_unknown(&table)?;
        // What is no text is no value of a key.
        let texts = |(name, text): (OsString, OsString)| {
            Some((name.into_string().ok()?, text.into_string().ok()?))
        };
        overlay(&mut table, std::env::vars_os().filter_map(texts))?;
        refuse_unknown(&table)?;
        let config = typed(table)?;
        config.check()?;
        Ok((config, file))
    }
}

/// The configuration of a table whose keys are known, one key at a time, so that a wrong value is
/// refused by its key's name.
fn typed(table: Table) -> Result<Config> {
    for (section, values) in &table {
        for (name, value) in values.as_table().into_iter().flatten() {
            let key = KEYS.iter().find(|key| key.is(section, name));
            let key = key.with_context(|| unknown(&format!("{section}.{name}")))?;
            let alone = Table::from_iter([(name.clone(), value.clone())]);
            let alone = Table::from_iter([(section.clone(), Value::Table(alone))]);
            if Config::deserialize(Value::Table(alone)).is_err() {
                bail!("{section}.{name}: expected {}, not {}", key.expected, shown(name, value));
            }
        }
    }
    Config::deserialize(Value::Table(table)).context("the configuration")
}

/// The variable that overrides a key.
fn variable_of(section: &str, name: &str) -> String {
    format!("{ENV_PREFIX}{section}__{name}").to_uppercase()
}

/// Puts the environment's keys over the file's.
fn overlay(table: &mut Table, variables: impl Iterator<Item = (String, String)>) -> Result<()> {
    let defaults = Table::try_from(Config::default())?;
    for (variable, text) in variables {
        let Some(name) = variable.strip_prefix(ENV_PREFIX) else { continue };
        // Other variables of this prefix, such as GANGLION_CONFIG, have no section.
        let name = name.to_lowercase();
        let Some((section, key)) = name.split_once("__") else {
            if let Some(key) =
                KEYS.iter().find(|key| format!("{}_{}", key.section, key.name) == name)
            {
                bail!(
                    "{variable} sets nothing: {}.{} is {}, with two underscores",
                    key.section,
                    key.name,
                    variable_of(key.section, key.name)
                );
            }
            if let Some(key) = KEYS.iter().find(|key| key.section == name) {
                bail!(
                    "{variable} sets nothing: it is a section, whose keys are set by such as {}",
                    variable_of(key.section, key.name)
                );
            }
            continue;
        };
        let default = defaults.get(section).and_then(|section| section.get(key));
        let parsed = || format!("v = {text}").parse::<Table>().ok()?.remove("v");
        let value = match default {
            Some(Value::String(_)) => Value::String(text),
            Some(Value::Array(_)) => parsed().unwrap_or_else(|| {
                let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
                Value::Array(parts.map(|part| Value::String(part.to_owned())).collect())
            }),
            _ => parsed().unwrap_or(Value::String(text)),
        };
        let section = table
            .entry(section.to_owned())
            .or_insert_with(|| Value::Table(Table::new()))
            .as_table_mut();
        let Some(section) = section else { bail!("{variable}: that section is not a table") };
        section.insert(key.to_owned(), value);
    }
    Ok(())
}

fn refuse_unknown(table: &Table) -> Result<()> {
    for (section, keys) in table {
        if !SECTIONS.iter().any(|(known, _)| known == section) {
            bail!("{}", unknown(section));
        }
        let Some(keys) = keys.as_table() else {
            bail!("`{section}` is a section: write [{section}]");
        };
        for name in keys.keys() {
            if !KEYS.iter().any(|key| key.is(section, name)) {
                bail!("{}", unknown(&format!("{section}.{name}")));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::units::Span;
    use super::*;

    pub(super) fn table_of(text: &str) -> Table {
        text.parse().expect("TOML")
    }

    #[test]
    fn a_wrong_key_is_refused_with_the_nearest() {
        let table = "[stats]\nflsh = \"1s\"\n".parse::<Table>().expect("TOML");
        let error = refuse_unknown(&table).expect_err("the key does not exist").to_string();
        assert!(error.contains("`stats.flsh`") && error.contains("`stats.flush`"), "{error}");
    }

    #[test]
    fn a_value_of_another_type_is_refused_by_its_key_with_what_is_expected() -> Result<()> {
        for (text, says) in [
            ("[listen]\nhttp = \"127.0.0.1:1\"", "listen.http: expected a list of addresses"),
            ("[limits]\nshare = \"a\"", "limits.share: expected a number such as 0.25, not \"a\""),
            ("[limits]\nconnections = -1", "limits.connections: expected a whole number"),
            ("[stats]\nflush = 1", "stats.flush: expected a time in quotes, such as \"250ms\""),
            ("[limits]\nbody = \"huge\"", "limits.body: expected a size"),
            ("[limits]\nbody = 0", "limits.body: expected a size in quotes"),
            ("[tls]\nself_signed = 1", "tls.self_signed: expected true or false"),
        ] {
            let error = typed(table_of(text)).expect_err(text).to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
        let error = typed(table_of("[neuron]\nsys_secret = 1234")).expect_err("a number");
        assert!(!error.to_string().contains("1234"), "{error}");
        let config = typed(table_of("[views]\nidle = \"2d\""))?;
        assert_eq!(config.views.idle, Span(Duration::from_secs(2 * 86_400)));
        Ok(())
    }

    #[test]
    fn a_variable_with_one_underscore_is_refused_and_others_are_let_be() -> Result<()> {
        let over = |name: &str, text: &str| {
            let mut table = Table::new();
            overlay(&mut table, std::iter::once((name.to_owned(), text.to_owned())))?;
            anyhow::Ok(table)
        };
        let error = over("GANGLION_LIMITS_BODY", "2MiB").expect_err("it would set nothing");
        assert!(error.to_string().contains("GANGLION_LIMITS__BODY"), "{error}");
        for (name, right) in
            [("GANGLION_LOG", "GANGLION_LOG__LEVEL"), ("GANGLION_LISTEN", "GANGLION_LISTEN__HTTP")]
        {
            let error = over(name, "x").expect_err(name).to_string();
            assert!(error.contains(right), "{error}");
        }
        for name in ["GANGLION_CONFIG", "GANGLION_SIGNAL_SERVICE_HOST", "OTHER_LIMITS_BODY"] {
            assert!(over(name, "x")?.is_empty(), "{name}");
        }
        let error = typed(over("GANGLION_LIMITS__SHARE", "a")?).expect_err("no number");
        assert!(error.to_string().contains("not \"a\""), "{error}");
        assert!(typed(over("GANGLION_LISTEN__HTTPS", "")?)?.listen.https.is_empty());
        Ok(())
    }

    #[test]
    fn the_environment_overrides_keys_of_every_type() -> Result<()> {
        let mut table = Table::new();
        let variables = [
            ("GANGLION_STATS__FLUSH", "1s"),
            ("GANGLION_LISTEN__HTTP", "127.0.0.1:0,[::1]:0"),
            ("GANGLION_LIMITS__CONNECTIONS", "12"),
            ("GANGLION_TLS__SELF_SIGNED", "true"),
        ];
        overlay(&mut table, variables.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())))?;
        let config = Config::deserialize(Value::Table(table))?;
        assert_eq!(config.stats.flush, Span(Duration::from_secs(1)));
        assert_eq!(config.listen.http.len(), 2);
        assert_eq!(config.limits.connections, 12);
        assert!(config.tls.self_signed);
        Ok(())
    }
}
