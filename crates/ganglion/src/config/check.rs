//! What no neuron could run with, refused by the key's name.

use std::net::SocketAddr;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use super::keys::{Config, ListenConfig};
use crate::listen::plain::Place;

/// Fewer bytes of headers the HTTP library does not take.
const HEADERS_BYTES_MIN: usize = 8 << 10;
/// With less, the services could not read their own rows; half of it is what one path may have.
const VIEWS_BYTES_MIN: usize = 128 << 10;
/// Longest path that a Unix socket is bound to; the system ends it with a zero in 108 bytes (unix(7)).
const SOCKET_PATH_BYTES_MAX: usize = 107;

impl Config {
    /// Refuses, by the key's name, what no neuron could run with. What stands in the files that are
    /// named here is looked at by `crate::check`.
    pub(super) fn check(&self) -> Result<()> {
        if self.neuron.sys_secret.contains('#') || self.neuron.sys_secret.starts_with('!') {
            bail!("neuron.sys_secret cannot hold `#` or start with `!`");
        }
        if !matches!(self.log.format.as_str(), "text" | "json") {
            bail!("log.format is text or json, not `{}`", self.log.format);
        }
        if !matches!(self.listen.forwarded_header.as_str(), "x-forwarded-for" | "forwarded") {
            bail!(
                "listen.forwarded_header is x-forwarded-for or forwarded, not `{}`",
                self.listen.forwarded_header
            );
        }
        check_level(&self.log.level)?;
        if self.listen.http.is_empty() && self.listen.https.is_empty() {
            bail!("listen.http and listen.https are both empty: the API would be nowhere");
        }
        let (limits, signal) = (&self.limits, &self.signal);
        for (name, is_zero) in [
            ("limits.connections", limits.connections == 0),
            ("limits.connections_per_address", limits.connections_per_address == 0),
            ("limits.body", limits.body.0 == 0),
            ("limits.header_time", limits.header_time.0.is_zero()),
            ("limits.keep_alive", limits.keep_alive.0.is_zero()),
            ("limits.body_time", limits.body_time.0.is_zero()),
            ("limits.requests_at_once", limits.requests_at_once == 0),
            ("limits.password_hashes", limits.password_hashes == 0),
            ("signal.message", signal.message.0 == 0),
            ("signal.ping_after", signal.ping_after.0.is_zero()),
            ("signal.idle", signal.idle.0.is_zero()),
            ("signal.resume", signal.resume.0.is_zero()),
            ("signal.requests_per_socket", signal.requests_per_socket == 0),
            ("stats.flush", self.stats.flush.0.is_zero()),
        ] {
            if is_zero {
                bail!("{name} cannot be zero");
            }
        }
        for (name, size, least) in [
            ("limits.headers", limits.headers, HEADERS_BYTES_MIN),
            ("views.bytes", self.views.bytes, VIEWS_BYTES_MIN),
            ("views.node", self.views.node, VIEWS_BYTES_MIN / 2),
        ] {
            if size.0 < least {
                bail!("{name} is at least {least} bytes, not {}", size.0);
            }
        }
        if signal.ping_after.0 >= signal.idle.0 {
            bail!(
                "signal.ping_after must be shorter than signal.idle, after which a socket is closed"
            );
        }
        for url in &signal.urls {
            let rest = url.strip_prefix("wss://").or_else(|| url.strip_prefix("ws://"));
            if rest.is_none_or(|rest| rest.is_empty() || rest.starts_with('/')) {
                bail!("signal.urls: `{url}` is not such as wss://rtc.example.org/ws");
            }
            if url.ends_with('/') {
                bail!("signal.urls: `{url}` must not end with a slash");
            }
        }
        if limits.bodies.0 / 8 < limits.body.0 {
            bail!("limits.bodies must hold eight bodies of limits.body bytes");
        }
        if !(limits.share > 0.0 && limits.share <= 1.0) {
            bail!("limits.share is above 0 and at most 1, not {}", limits.share);
        }
        if signal.presence.0 > signal.message.0 {
            bail!(
                "signal.presence is at most signal.message, in which it comes: {} bytes, not {}",
                signal.message.0,
                signal.presence.0
            );
        }
        let frame_bytes = signal.message.0.saturating_add(signal::ENVELOPE_BYTES_MAX);
        if signal.queue.0 < frame_bytes {
            bail!(
                "signal.queue must hold one message of signal.message bytes as it is relayed: {} \
                 bytes and {} around them",
                signal.message.0,
                signal::ENVELOPE_BYTES_MAX
            );
        }
        if !self.neuron.sys_secret.is_empty() && !self.neuron.sys_secret_file.as_os_str().is_empty()
        {
            bail!("neuron.sys_secret and neuron.sys_secret_file are both set: which one is meant?");
        }
        if let Some((one, other)) = overlapping(&self.listen) {
            bail!("{one} and {other} are the same: an address is listened on once");
        }
        let has_pair =
            !self.tls.cert.as_os_str().is_empty() || !self.tls.key.as_os_str().is_empty();
        if self.tls.self_signed && has_pair {
            bail!(
                "tls.self_signed makes a certificate in place of tls.cert and tls.key: set one or the others"
            );
        }
        for place in &self.listen.tcp {
            match Place::parse(place) {
                None => bail!(
                    "listen.tcp: `{place}` is neither such as 127.0.0.1:4008 nor such as \
                     unix:/run/ganglion/signal.sock"
                ),
                Some(Place::Unix(path)) => {
                    let length = path.as_os_str().as_bytes().len();
                    if length > SOCKET_PATH_BYTES_MAX {
                        bail!(
                            "listen.tcp: `{place}`: a socket's path has at most \
                             {SOCKET_PATH_BYTES_MAX} bytes, not {length}"
                        );
                    }
                }
                Some(Place::Tcp(_)) => {}
            }
        }
        for proxy in &self.listen.trusted_proxies {
            if wire::network::Network::parse(proxy).is_none() {
                bail!("listen.trusted_proxies: `{proxy}` is not an address or CIDR prefix");
            }
        }
        if !self.listen.https.is_empty()
            && !self.tls.self_signed
            && (self.tls.cert.as_os_str().is_empty() || self.tls.key.as_os_str().is_empty())
        {
            bail!("listen.https needs tls.cert and tls.key, or tls.self_signed");
        }
        Ok(())
    }

    /// Refuses places of Unix sockets where `serve` could not make one.
    pub(crate) fn check_places(&self) -> Result<()> {
        for place in &self.listen.tcp {
            if let Some(Place::Unix(path)) = Place::parse(place) {
                check_socket(&path).with_context(|| format!("listen.tcp: `{place}`"))?;
            }
        }
        Ok(())
    }
}

/// Refuses a path at which no socket can be made. One that is there was left, or is in use by the
/// neuron that this configuration is of.
fn check_socket(path: &Path) -> Result<()> {
    if let Some(folder) = path.parent() {
        let found = std::fs::metadata(folder);
        let found = found.with_context(|| format!("its folder {}", folder.display()))?;
        if !found.is_dir() {
            bail!("{} is not a folder", folder.display());
        }
    }
    match path.symlink_metadata() {
        Ok(found) if !found.file_type().is_socket() => bail!("there is something else"),
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

/// Two addresses, as they are told, of which the second could not be bound beside the first.
fn overlapping(listen: &ListenConfig) -> Option<(String, String)> {
    let lists = [("http", &listen.http), ("https", &listen.https), ("admin", &listen.admin)];
    let all: Vec<(&str, SocketAddr)> = lists
        .into_iter()
        .flat_map(|(name, list)| list.iter().map(move |address| (name, *address)))
        .chain(listen.tcp.iter().filter_map(|place| match Place::parse(place)? {
            Place::Tcp(address) => Some(("tcp", address)),
            Place::Unix(_) => None,
        }))
        .collect();
    let is_same = |a: &SocketAddr, b: &SocketAddr| {
        let is_everywhere = a.ip().is_unspecified() || b.ip().is_unspecified();
        a.port() == b.port()
            && a.port() != 0
            && a.is_ipv4() == b.is_ipv4()
            && (is_everywhere || a.ip() == b.ip())
    };
    let told = |(name, address): &(&str, SocketAddr)| format!("listen.{name} {address}");
    all.iter().enumerate().find_map(|(at, one)| {
        let other = all[at + 1..].iter().find(|other| is_same(&one.1, &other.1))?;
        Some((told(one), told(other)))
    })
}

/// A level, or directives; a word that is neither would be taken for a target, and silence all others.
fn check_level(text: &str) -> Result<()> {
    let is_level = |part: &str| part.trim().parse::<LevelFilter>().is_ok();
    let is_plausible = |part: &str| part.contains(['=', '[', ']', '{', '}']) || is_level(part);
    if text.split(',').all(is_plausible) && EnvFilter::try_new(text).is_ok() {
        return Ok(());
    }
    bail!(
        "log.level is error, warn, info, debug or trace, or directives such as \
         `info,ganglion=debug`, not `{text}`"
    )
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;
    use serde::Deserialize as _;
    use toml::{Table, Value};

    use super::super::keys::KEYS;
    use super::super::tests::table_of;
    use super::super::typed;
    use super::super::units::{SPAN_UNITS, Size, parse_units};
    use super::*;

    /// Zero either has a meaning of its own or is refused by the key's name.
    #[test]
    fn a_time_of_zero_is_refused_where_it_would_mean_nothing() -> Result<()> {
        // No view outlives a look at it; the rest is cut at once.
        let meaningful = ["views.idle", "stop.deadline"];
        let defaults = Table::try_from(Config::default())?;
        for key in KEYS {
            let default = &defaults[key.section][key.name];
            let is_span =
                default.as_str().is_some_and(|text| parse_units(text, &SPAN_UNITS).is_some());
            if !is_span {
                continue;
            }
            let name = format!("{}.{}", key.section, key.name);
            let mut table = defaults.clone();
            let section = table[key.section].as_table_mut().expect("a section is a table");
            section.insert(key.name.to_owned(), Value::String("0s".to_owned()));
            let checked = Config::deserialize(Value::Table(table))?.check();
            if meaningful.contains(&name.as_str()) {
                checked?;
            } else {
                let error = checked.expect_err(&name).to_string();
                assert!(error.contains(&name), "{name}: {error}");
            }
        }
        Ok(())
    }

    /// Each of these was called right, and then refused or made nonsense of by `serve`.
    #[test]
    fn what_no_neuron_could_run_with_is_refused_by_its_name() -> Result<()> {
        for (text, name) in [
            ("[log]\nlevel = \"nonsense===\"", "log.level"),
            ("[log]\nlevel = \"loud\"", "log.level"),
            ("[views]\nbytes = \"0\"", "views.bytes"),
            ("[views]\nnode = \"1KiB\"", "views.node"),
            ("[limits]\nconnections = 0", "limits.connections "),
            ("[limits]\nconnections_per_address = 0", "limits.connections_per_address"),
            ("[limits]\nbody = \"0\"", "limits.body "),
            ("[limits]\nheaders = \"1B\"", "limits.headers"),
            ("[listen]\nhttp = []", "listen.http"),
            ("[signal]\nmessage = \"0\"", "signal.message"),
            ("[signal]\nping_after = \"2m\"", "signal.ping_after"),
            ("[signal]\npresence = \"65537\"", "signal.presence"),
            ("[signal]\nmessage = \"1023\"", "signal.presence"),
            ("[signal]\nurls = [\"http://a.example/ws\"]", "signal.urls"),
            ("[signal]\nurls = [\"wss://a.example/ws/\"]", "signal.urls"),
            ("[signal]\nurls = [\"wss://\"]", "signal.urls"),
            (
                "[neuron]\nsys_secret = \"a\"\nsys_secret_file = \"/b\"",
                "neuron.sys_secret and neuron.sys_secret_file",
            ),
            (
                "[listen]\nhttp = [\"127.0.0.1:1\", \"127.0.0.1:1\"]",
                "listen.http 127.0.0.1:1 and listen.http 127.0.0.1:1",
            ),
            ("[listen]\nhttp = [\"0.0.0.0:4007\"]", "and listen.admin 127.0.0.1:4007"),
            ("[listen]\ntcp = [\"0.0.0.0:4006\"]", "and listen.tcp 0.0.0.0:4006"),
            ("[listen]\ntcp = [\"unix:a.sock\"]", "listen.tcp: `unix:a.sock`"),
            ("[tls]\nself_signed = true\nkey = \"/k\"", "tls.self_signed"),
        ] {
            let error = typed(table_of(text))?.check().expect_err(text).to_string();
            assert!(error.contains(name), "{text}: {error}");
        }
        for text in [
            "[log]\nlevel = \"info,ganglion=debug\"",
            "[log]\nlevel = \"WARN\"",
            "[limits]\nheaders = \"8KiB\"",
            "[views]\nbytes = \"128KiB\"\nnode = \"64KiB\"",
            "[listen]\nhttp = []\nhttps = [\"127.0.0.1:0\"]\n[tls]\nself_signed = true",
            "[signal]\nurls = [\"ws://a.example\", \"wss://a.example/ws\"]",
            "[signal]\npresence = \"64KiB\"",
            "[listen]\nhttp = [\"127.0.0.1:0\", \"127.0.0.1:0\", \"127.0.0.1:1\", \"[::]:1\"]",
        ] {
            typed(table_of(text))?.check().with_context(|| text.to_owned())?;
        }
        Ok(())
    }

    #[test]
    fn the_path_of_a_socket_is_one_that_it_can_be_bound_to() -> Result<()> {
        let folder = tempfile::TempDir::new()?;
        let at = |path: &Path| -> Result<Config> {
            let mut config = Config::default();
            config.listen.tcp = vec![Place::Unix(path.to_owned()).to_string()];
            config.check()?;
            Ok(config)
        };
        let long = |bytes: usize| {
            let name = "s".repeat(bytes - folder.path().as_os_str().len() - 1);
            folder.path().join(name)
        };
        let longest = long(SOCKET_PATH_BYTES_MAX);
        at(&longest)?.check_places()?;
        drop(std::os::unix::net::UnixListener::bind(&longest)?);
        at(&longest)?.check_places().context("one that was left")?;
        let too_long = long(SOCKET_PATH_BYTES_MAX + 1);
        std::os::unix::net::UnixListener::bind(&too_long).expect_err("the system says so too");
        let error = at(&too_long).expect_err("a byte too many").to_string();
        assert!(error.starts_with("listen.tcp: ") && error.contains("107 bytes"), "{error}");

        let file = folder.path().join("file");
        std::fs::write(&file, "precious")?;
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&longest, &link)?;
        for (path, why) in [
            (file.clone(), "there is something else"),
            (link, "there is something else"),
            (file.join("s.sock"), "is not a folder"),
            (folder.path().join("none/s.sock"), "its folder"),
        ] {
            let error = at(&path)?.check_places().expect_err(why);
            let error = format!("{error:#}");
            assert!(error.starts_with("listen.tcp: ") && error.contains(why), "{error}");
        }
        Ok(())
    }

    #[test]
    fn a_queue_holds_the_longest_message_with_its_envelope() -> Result<()> {
        let mut config = Config::default();
        config.signal.message = Size(2000);
        config.signal.queue = Size(2000 + signal::ENVELOPE_BYTES_MAX);
        config.check()?;
        config.signal.queue.0 -= 1;
        let error = config.check().expect_err("a frame of which nobody could be sent").to_string();
        assert!(error.contains("signal.queue"), "{error}");
        Ok(())
    }
}
