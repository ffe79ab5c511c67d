//! `ganglion watch`: the entries of a path, or one key of it, and every change, a line of JSON each.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use super::contexts::Context;
use super::link::{Backoff, Event, Link, PING_EVERY, is_final};

/// The only request of a link.
const ID: u64 = 1;

/// What has been printed: the versions of the entries, by key.
#[derive(Default)]
struct Printed(BTreeMap<String, Value>);

/// Prints what is there, then every change, until it is refused. After a lost connection it prints what
/// has changed meanwhile.
pub(super) async fn watch(context: &Context, path: &str, key: Option<&str>) -> Result<()> {
    let (ident, secret) =
        context.user.split_once(':').context("credentials are a name, a colon and a secret")?;
    let hello = json!({ "ident": ident, "secret": secret });
    let mut params = json!({ "path": format!("/{}", path.trim_start_matches('/')) });
    if let Some(key) = key {
        params["k"] = key.into();
    }
    let (mut printed, mut backoff, mut has_begun) = (Printed::default(), Backoff::default(), false);
    loop {
        let mut link = match Link::open(context, &hello).await {
            Ok(link) => link,
            // The first time it may be a mistake; later on the neuron is away.
            Err(error) if !has_begun => return Err(error),
            Err(_) => {
                backoff.wait().await;
                continue;
            }
        };
        let ask = json!({ "t": "watch", "m": { "id": ID }, "p": params });
        let begun = match link.send(&ask).await {
            Ok(()) => follow(link, &mut printed).await?,
            Err(_) => false,
        };
        match begun {
            true => {
                has_begun = true;
                backoff.is_well();
            }
            false if !has_begun => bail!("{}: the connection was cut", context.url),
            false => {}
        }
        backoff.wait().await;
    }
}

/// Prints what comes over one connection until that is lost; answers whether it had begun.
async fn follow(mut link: Link, printed: &mut Printed) -> Result<bool> {
    let mut ping = tokio::time::interval(PING_EVERY);
    let mut has_begun = false;
    loop {
        let event = tokio::select! {
            event = link.next() => event,
            _ = ping.tick() => match link.ping().await {
                Ok(()) => continue,
                Err(_) => return Ok(has_begun),
            },
        };
        let frame = match event {
            Ok(Event::Frame(frame)) => frame,
            Ok(Event::Closed(code, reason)) if is_final(code) => {
                bail!("{reason} ({})", code.0);
            }
            Ok(Event::Closed(..)) | Err(_) => return Ok(has_begun),
        };
        let envelope = &frame["p"];
        match frame["t"].as_str() {
            Some("r") if envelope["s"] == "ok" => {
                has_begun = true;
                printed.begin(&envelope["v"]["entries"]);
            }
            Some("r" | "end") => {
                let detail = envelope["detail"].as_str().map(|detail| format!(": {detail}"));
                let code = envelope["v"].as_str().unwrap_or("error");
                bail!("{code}{}", detail.unwrap_or_default());
            }
            Some("w") => printed.change(envelope),
            _ => {}
        }
    }
}

impl Printed {
    /// Prints what is new among all that is there, and what is there no more.
    fn begin(&mut self, entries: &Value) {
        let mut gone = std::mem::take(&mut self.0);
        for entry in entries.as_array().into_iter().flatten() {
            let (key, ver) = (entry["k"].as_str().unwrap_or_default(), &entry["_ver_"]);
            if gone.remove(key).as_ref() != Some(ver) {
                print(entry);
            }
            self.0.insert(key.to_owned(), ver.clone());
        }
        for key in gone.keys() {
            print(&json!({ "k": key, "deleted": true }));
        }
    }

    fn change(&mut self, change: &Value) {
        print(change);
        let key = change["k"].as_str().unwrap_or_default();
        match change["deleted"].as_bool() {
            Some(true) => self.0.remove(key),
            _ => self.0.insert(key.to_owned(), change["_ver_"].clone()),
        };
    }
}

#[allow(clippy::print_stdout)]
fn print(entry: &Value) {
    println!("{entry}");
}
