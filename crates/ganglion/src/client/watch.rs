//! `ganglion watch`: the entries of a path, or one key of it, and every change, a line of JSON each.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use tokio::time::Instant;
use wire::names::percent_decode;

use super::contexts::Context;
use super::link::{BACKOFF_MAX, Backoff, Event, Link, PASSING, PING_EVERY, is_final};
use super::print::{note, print};

/// The only request of a link.
const ID: u64 = 1;
/// The service of a path that names none.
const SERVICE: &str = "data";

/// What has been printed: the versions of the entries, by key.
#[derive(Default)]
struct Printed(BTreeMap<String, Value>);

/// A watch across the connections that follow one another.
struct Watch {
    /// What is asked for.
    params: Value,
    printed: Printed,
    has_begun: bool,
    /// Whether it was said that it is away, and it has not begun again.
    is_away: bool,
}

/// Why one connection ended.
#[derive(Debug, Eq, PartialEq)]
enum Ended {
    Lost,
    /// It was refused for a while, with this.
    Later(String),
}

/// Prints what is there, then every change, until it is refused for good. After a lost connection it
/// prints what has changed meanwhile.
pub(super) async fn watch(context: &Context, path: &str, key: Option<&str>) -> Result<()> {
    let (ident, secret) =
        context.user.split_once(':').context("credentials are a name, a colon and a secret")?;
    let hello = json!({ "ident": ident, "secret": secret });
    let (mut watch, mut backoff) = (Watch::new(path, key)?, Backoff::default());
    loop {
        match Link::open(context, &hello).await {
            Ok(link) => {
                let opened = Instant::now();
                let ended = watch.follow(link).await?;
                if !watch.has_begun {
                    bail!("{}: the connection was cut", context.url);
                }
                // One that begins and is refused or cut at once, again and again, is asked ever more seldom.
                if !watch.is_away && opened.elapsed() > BACKOFF_MAX {
                    backoff.is_well();
                }
                watch.go_away(&ended);
            }
            // The first time it may be a mistake; later on the neuron is away.
            Err(error) if !watch.has_begun => return Err(error),
            Err(_) => {}
        }
        backoff.wait().await;
    }
}

impl Watch {
    /// Reads a path as `ganglion get` does: as it stands in a URL, with its service or without.
    fn new(path: &str, key: Option<&str>) -> Result<Watch> {
        if path.contains('?') {
            bail!("{path}: a key is named with --k");
        }
        let trimmed = path.trim_start_matches('/');
        let (service, rest) = match trimmed.strip_prefix('_') {
            Some(named) => named.split_once('/').unwrap_or((named, "")),
            None => (SERVICE, trimmed),
        };
        let at = percent_decode(rest, false).with_context(|| path.to_owned())?;
        let mut params = json!({ "path": format!("/{at}"), "service": service });
        if let Some(key) = key {
            params["k"] = key.into();
        }
        Ok(Watch { params, printed: Printed::default(), has_begun: false, is_away: false })
    }

    /// Prints what comes over one connection until that is lost.
    ///
    /// # Errors
    /// It was refused for good, or before it had begun once.
    async fn follow(&mut self, mut link: Link) -> Result<Ended> {
        link.send(&json!({ "t": "watch", "m": { "id": ID }, "p": self.params }))?;
        let mut ping = tokio::time::interval(PING_EVERY);
        loop {
            let event = tokio::select! {
                event = link.next() => event,
                _ = ping.tick() => match link.ping() {
                    Ok(()) => continue,
                    Err(_) => return Ok(Ended::Lost),
                },
            };
            let frame = match event {
                Ok(Event::Frame(frame)) => frame,
                Ok(Event::Closed(code, reason)) if is_final(code) => {
                    bail!("{reason} ({})", code.0);
                }
                Ok(Event::Closed(..)) | Err(_) => return Ok(Ended::Lost),
            };
            if let Some(ended) = self.hear(&frame)? {
                return Ok(ended);
            }
        }
    }

    /// Prints what a frame tells; answers why the connection is of no use any more.
    fn hear(&mut self, frame: &Value) -> Result<Option<Ended>> {
        let envelope = &frame["p"];
        match frame["t"].as_str() {
            Some("r") if envelope["s"] == "ok" => {
                if std::mem::take(&mut self.is_away) {
                    note("back");
                }
                self.has_begun = true;
                self.printed.begin(&envelope["v"]["entries"]);
            }
            Some("r" | "end") => {
                let detail = envelope["detail"].as_str().map(|detail| format!(": {detail}"));
                let code = envelope["v"].as_str().unwrap_or("error");
                let told = format!("{code}{}", detail.unwrap_or_default());
                if self.has_begun && PASSING.contains(&code) {
                    return Ok(Some(Ended::Later(told)));
                }
                bail!(told);
            }
            Some("w") => self.printed.change(envelope),
            _ => {}
        }
        Ok(None)
    }

    /// Says why it is away, once until it is back.
    fn go_away(&mut self, ended: &Ended) {
        if std::mem::replace(&mut self.is_away, true) {
            return;
        }
        match ended {
            Ended::Lost => note("the connection was lost; coming back"),
            Ended::Later(why) => note(&format!("{why}; coming back")),
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
                print(&entry.to_string());
            }
            self.0.insert(key.to_owned(), ver.clone());
        }
        for key in gone.keys() {
            print(&json!({ "k": key, "deleted": true }).to_string());
        }
    }

    fn change(&mut self, change: &Value) {
        print(&change.to_string());
        let key = change["k"].as_str().unwrap_or_default();
        match change["deleted"].as_bool() {
            Some(true) => self.0.remove(key),
            _ => self.0.insert(key.to_owned(), change["_ver_"].clone()),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_taken_as_other_verbs_take_it() {
        for (path, service, at) in [
            ("/my/path", "data", "/my/path"),
            ("ships", "data", "/ships"),
            ("/", "data", "/"),
            ("_data/ships", "data", "/ships"),
            ("/_data/ships", "data", "/ships"),
            ("/_data", "data", "/"),
            ("/_data/_conf", "data", "/_conf"),
            ("_conf/x%20y/z", "conf", "/x y/z"),
            ("/a b/zoë", "data", "/a b/zoë"),
        ] {
            let params = Watch::new(path, None).expect(path).params;
            assert_eq!(params, json!({ "path": at, "service": service }), "{path}");
        }
        let params = Watch::new("/ships", Some("a")).expect("a path").params;
        assert_eq!(params, json!({ "path": "/ships", "service": "data", "k": "a" }));
        for (path, why) in [("/_data/ships?k=a", "--k"), ("/100%", "/100%")] {
            let error = Watch::new(path, None).err().expect(path).to_string();
            assert!(error.contains(why), "{path}: {error}");
        }
    }

    #[test]
    fn who_has_watched_comes_back_after_what_passes() {
        let refusal = |kind: &str, code: &str| {
            let p = json!({ "v": code, "s": "error", "detail": "why" });
            json!({ "t": kind, "m": { "id": ID, "watch": ID }, "p": p })
        };
        let begin =
            json!({ "t": "r", "m": { "id": ID }, "p": { "v": { "entries": [] }, "s": "ok" } });
        for kind in ["r", "end"] {
            for code in PASSING {
                let mut watch = Watch::new("/p", None).expect("a path");
                let error = watch.hear(&refusal(kind, code)).expect_err("it has not begun");
                assert_eq!(error.to_string(), format!("{code}: why"));
                assert_eq!(watch.hear(&begin).expect("it begins"), None);
                let ended = watch.hear(&refusal(kind, code)).expect("it passes");
                assert_eq!(ended, Some(Ended::Later(format!("{code}: why"))));
            }
            let mut watch = Watch::new("/p", None).expect("a path");
            watch.hear(&begin).expect("it begins");
            watch.hear(&refusal(kind, "not_allowed")).expect_err("that is for good");
        }
    }
}
