//! The configuration: one typed tree, from a TOML file and the environment.
//!
//! `GANGLION_STATS__FLUSH=1s` overrides `stats.flush`. A key that does not exist is refused with the
//! nearest one that does. The reference is made from the documentation of the fields here.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use toml::{Table, Value};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

/// Prefix of environment variables that override keys.
const ENV_PREFIX: &str = "GANGLION_";
/// Where a configuration is looked for when none is named.
const PLACES: [&str; 2] = ["ganglion.toml", "/etc/ganglion/ganglion.toml"];

/// Fewer bytes of headers the HTTP library does not take.
const HEADERS_BYTES_MIN: usize = 8 << 10;
/// With less, the services could not read their own rows; half of it is what one path may have.
const VIEWS_BYTES_MIN: usize = 128 << 10;

/// One key, for the reference and for suggestions.
#[derive(Debug)]
pub(crate) struct Key {
    pub(crate) section: &'static str,
    pub(crate) name: &'static str,
    pub(crate) doc: &'static str,
    /// What its type takes, for a value that is none.
    expected: &'static str,
}

impl Key {
    fn is(&self, section: &str, name: &str) -> bool {
        self.section == section && self.name == name
    }
}

/// Types of keys say what they take.
trait Expected {
    const EXPECTED: &'static str;
}

macro_rules! expected {
    ($($type:ty: $text:literal,)*) => {
        $(impl Expected for $type {
            const EXPECTED: &'static str = $text;
        })*
    };
}

expected! {
    bool: "true or false",
    f64: "a number such as 0.25",
    u32: "a whole number, 0 or more",
    usize: "a whole number, 0 or more",
    String: "a text in quotes",
    PathBuf: "a path in quotes",
    Vec<String>: "a list of texts such as [\"a\", \"b\"]",
    Vec<SocketAddr>: "a list of addresses with ports, such as [\"127.0.0.1:4006\"]",
    Span: "a time such as \"250ms\", \"15s\", \"2m\", \"1h\", \"1d\"",
    Size: "a size such as \"4096\", \"64KiB\", \"16MiB\"",
}

macro_rules! sections {
    ($($(#[doc = $section_doc:literal])+ $section:ident : $type:ident {
        $($(#[doc = $doc:literal])+ $field:ident : $field_type:ty = $default:expr,)*
    })*) => {
        /// The whole configuration.
        #[derive(Clone, Debug, Default, Deserialize, Serialize)]
        #[serde(deny_unknown_fields, default)]
        pub(crate) struct Config {
            $($(#[doc = $section_doc])+ pub(crate) $section: $type,)*
        }

        $(
            $(#[doc = $section_doc])+
            #[derive(Clone, Debug, Deserialize, Serialize)]
            #[serde(deny_unknown_fields, default)]
            pub(crate) struct $type {
                $($(#[doc = $doc])+ pub(crate) $field: $field_type,)*
            }

            impl Default for $type {
                fn default() -> $type {
                    $type { $($field: $default,)* }
                }
            }
        )*

        /// Every section with its documentation, in order.
        pub(crate) const SECTIONS: &[(&str, &str)] =
            &[$((stringify!($section), concat!($($section_doc, "\n"),+))),*];

        /// Every key, in order.
        pub(crate) const KEYS: &[Key] = &[$($(Key {
            section: stringify!($section),
            name: stringify!($field),
            doc: concat!($($doc, "\n"),+),
            expected: <$field_type as Expected>::EXPECTED,
        }),*),*];
    };
}

sections! {
    /// Who this neuron is.
    neuron: NeuronConfig {
        /// The region: the first half of `origin` in `_subs`.
        cluster: String = "local".to_owned(),
        /// The neuron's name on its machine.
        name: String = "ganglion".to_owned(),
        /// The machine's name; empty for the one that the machine gives, without its domain.
        host: String = String::new(),
        /// The `$sys` account's secret. Must be set outside `--dev`; better in `sys_secret_file`.
        sys_secret: String = String::new(),
        /// A file that holds the `$sys` account's secret.
        sys_secret_file: PathBuf = PathBuf::new(),
    }
    /// Where data is kept.
    store: StoreConfig {
        /// The folder of the embedded store, made if it is missing.
        data_dir: PathBuf = PathBuf::from("/var/lib/ganglion"),
        /// A file with the 32-byte cluster key in hexadecimal, which seals secrets that are used
        /// again. Empty for `cluster.key` in the data folder, made on first start, never beside a
        /// store. It is in no backup: keep it elsewhere.
        cluster_key_file: PathBuf = PathBuf::new(),
        /// Free space of the data folder's disk below which `/readyz` says no; 0 for none. The default
        /// is what some commits of the largest size take.
        free_min: Size = Size(32 << 20),
        /// Memory for pages of the store's file; warm reads come from views.
        cache: Size = Size(16 << 20),
    }
    /// Addresses to listen on. Port 0 takes a free one.
    listen: ListenConfig {
        /// HTTP API, signalling and pages, in the clear.
        http: Vec<SocketAddr> = vec![SocketAddr::from(([0, 0, 0, 0], 4006))],
        /// The same by TLS; needs `[tls]`.
        https: Vec<SocketAddr> = Vec::new(),
        /// Metrics, and health with its reasons. Keep it private.
        admin: Vec<SocketAddr> = vec![SocketAddr::from(([127, 0, 0, 1], 4007))],
        /// Addresses of proxies (CIDR) that are believed when they say who the client is and whether
        /// it speaks TLS.
        trusted_proxies: Vec<String> = Vec::new(),
        /// The one header in which they say it: `x-forwarded-for` (with `x-forwarded-proto`), or
        /// `forwarded`. A proxy passes the other one on as its client wrote it.
        forwarded_header: String = "x-forwarded-for".to_owned(),
    }
    /// The certificate of TLS listeners; read again when a file changes.
    tls: TlsConfig {
        /// PEM file with the certificate chain.
        cert: PathBuf = PathBuf::new(),
        /// PEM file with the private key.
        key: PathBuf = PathBuf::new(),
        /// Make a certificate that nobody trusts, for development.
        self_signed: bool = false,
    }
    /// Limits of every listener.
    limits: LimitsConfig {
        /// Open connections, all listeners together.
        connections: usize = 50_000,
        /// Open connections of one client address; of IPv6, of one /64.
        connections_per_address: usize = 20_000,
        /// Bytes of a request's body.
        body: Size = Size(1 << 20),
        /// Bytes of the bodies of all requests under way; of one account a quarter. Those of senders
        /// whose credentials were not proven from their address before are together half of it, and
        /// of one address an eighth. More are refused as overloaded.
        bodies: Size = Size(256 << 20),
        /// Bytes of finished answers that clients have not taken yet; of one address a quarter, of
        /// one connection an eighth, but always one answer. Reads beyond it are refused as
        /// overloaded.
        answers: Size = Size(256 << 20),
        /// Bytes of a request's line and headers; at least 8 KiB.
        headers: Size = Size(32 << 10),
        /// How long a client may take to send a request's headers.
        header_time: Span = Span(Duration::from_secs(10)),
        /// How long a connection may be idle between requests.
        keep_alive: Span = Span(Duration::from_secs(75)),
        /// How long a client may take to send a request's body.
        body_time: Span = Span(Duration::from_secs(20)),
        /// Requests of one account that are carried out at the same time; more wait their turn. While
        /// others call too, its reads are as many as there are cores but one. Here and below, who
        /// proves to be no account counts by address.
        requests_at_once: usize = 256,
        /// Requests of one account that wait their turn; more are refused as overloaded.
        requests_waiting: usize = 1_024,
        /// Part of the time of all cores that one account may take while others call too: what it
        /// asks beyond that waits, so that theirs need not. 1 for no bound.
        share: f64 = 0.25,
        /// Requests of one account in a second, a second's worth at once; more are refused. 0 for no
        /// bound.
        requests_per_account: u32 = 0,
        /// Requests of one address in a second, whoever makes them; 0 for no bound. A proxy that is
        /// not in listen.trusted_proxies is one address.
        requests_per_address: u32 = 0,
        /// Slow password hashes at the same time, each with 19 MiB that are kept for the next.
        password_hashes: usize = 2,
        /// Password hashes that wait, half for new passwords and half for logins; of one account or
        /// address a quarter. More are refused as overloaded.
        password_waiting: usize = 64,
    }
    /// Signalling.
    signal: SignalConfig {
        /// Base WebSocket URLs that `_host` hands out, without a trailing slash, such as
        /// wss://rtc.example.org/ws. Empty: the address at which the request came.
        urls: Vec<String> = Vec::new(),
        /// Bytes of one message.
        message: Size = Size(64 << 10),
        /// Bytes that wait for one slow socket before it is cut, besides what is being written to
        /// it and the list of names that it joins with. At least `message` and the envelope of a
        /// relayed frame, 2.5 KiB.
        queue: Size = Size(1 << 20),
        /// Silence after which a socket is asked whether it is there; shorter than `idle`.
        ping_after: Span = Span(Duration::from_secs(45)),
        /// Silence after which a socket is closed.
        idle: Span = Span(Duration::from_secs(120)),
        /// Sockets of one account; fewer than `limits.connections`, so that others can connect too.
        sockets_per_account: usize = signal::Limits::default().sockets_per_bucket,
        /// Sockets in one room.
        sockets_per_room: usize = signal::Limits::default().sockets_per_room,
        /// Sockets of one name in a room.
        sockets_per_name: usize = signal::Limits::default().sockets_per_name,
        /// Rooms of one account that somebody is in.
        rooms_per_account: usize = signal::Limits::default().rooms_per_bucket,
    }
    /// Views: the newest values in memory.
    views: ViewsConfig {
        /// Bytes of all views together; at least 128 KiB.
        bytes: Size = Size(256 << 20),
        /// A path and layer with more bytes than this is read from the store instead; at least 64 KiB.
        node: Size = Size(64 << 20),
        /// Time without a read after which a view is dropped.
        idle: Span = Span(Duration::from_secs(600)),
    }
    /// Statistics and logs of accounts.
    stats: StatsConfig {
        /// How often they are written.
        flush: Span = Span(Duration::from_secs(15)),
    }
    /// How the process ends.
    stop: StopConfig {
        /// How long requests and sockets may go on after the signal to stop.
        deadline: Span = Span(Duration::from_secs(10)),
    }
    /// The process's own log, on standard error.
    log: LogConfig {
        /// A level, or directives such as `info,ganglion=debug`.
        level: String = "info".to_owned(),
        /// `text` or `json`.
        format: String = "text".to_owned(),
    }
}

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

    /// Refuses, by the key's name, what no neuron could run with. What stands in the files that are
    /// named here is looked at by `serve::check`.
    fn check(&self) -> Result<()> {
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
        let frame_bytes = signal.message.0.saturating_add(signal::ENVELOPE_BYTES_MAX);
        if signal.queue.0 < frame_bytes {
            bail!(
                "signal.queue must hold one message of signal.message bytes as it is relayed: {} \
                 bytes and {} around them",
                signal.message.0,
                signal::ENVELOPE_BYTES_MAX
            );
        }
        for proxy in &self.listen.trusted_proxies {
            if services::access::Network::parse(proxy).is_none() {
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

/// The reference: every key with its default and what it means, itself a legal configuration.
pub(crate) fn reference() -> Result<String> {
    let defaults = Table::try_from(Config::default())?;
    let mut out = String::from(
        "# Every key of Ganglion's configuration with its default, made by `ganglion config\n\
         # reference`. A variable such as GANGLION_STATS__FLUSH=1s overrides a key.\n",
    );
    for (section, section_doc) in SECTIONS {
        out.push('\n');
        push_comment(&mut out, section_doc);
        out.push_str(&format!("[{section}]\n"));
        for key in KEYS.iter().filter(|key| key.section == *section) {
            push_comment(&mut out, key.doc);
            let value = &defaults[*section][key.name];
            out.push_str(&format!("{} = {value}\n", key.name));
        }
    }
    Ok(out)
}

/// What one key means, its default, and its value in a configuration; or the keys of a section.
pub(crate) fn explain(config: &Config, name: &str) -> Result<String> {
    if let Some((section, doc)) = SECTIONS.iter().find(|(section, _)| *section == name) {
        let values = Table::try_from(config)?;
        let mut out = format!("{section}\n  {}\n", doc.trim());
        for key in KEYS.iter().filter(|key| key.section == *section) {
            let value = shown(key.name, &values[*section][key.name]);
            out.push_str(&format!("{section}.{} = {value}\n", key.name));
        }
        return Ok(out);
    }
    let key = KEYS.iter().find(|key| format!("{}.{}", key.section, key.name) == name);
    let Some(key) = key else { bail!("{}", unknown(name)) };
    let of = |config: &Config| -> Result<String> {
        Ok(shown(key.name, &Table::try_from(config)?[key.section][key.name]))
    };
    let variable = variable_of(key.section, key.name);
    Ok(format!(
        "{name}\n{}default: {}\nhere:    {}\nvariable: {variable}\n",
        key.doc.lines().map(|line| format!("  {}\n", line.trim())).collect::<String>(),
        of(&Config::default())?,
        of(config)?,
    ))
}

/// A value as it is told; a secret stays one.
fn shown(name: &str, value: &Value) -> String {
    if name == "sys_secret" && value.as_str() != Some("") {
        return "(not shown)".to_owned();
    }
    value.to_string()
}

/// The variable that overrides a key.
fn variable_of(section: &str, name: &str) -> String {
    format!("{ENV_PREFIX}{section}__{name}").to_uppercase()
}

fn push_comment(out: &mut String, doc: &str) {
    for line in doc.lines() {
        out.push_str(&format!("# {}\n", line.trim()));
    }
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

fn unknown(name: &str) -> String {
    let keys = KEYS.iter().map(|key| format!("{}.{}", key.section, key.name));
    let known = keys.chain(SECTIONS.iter().map(|(section, _)| (*section).to_owned()));
    match known.min_by_key(|known| distance(known, name)) {
        Some(nearest) => {
            format!("there is no configuration key `{name}`; the nearest is `{nearest}`")
        }
        None => format!("there is no configuration key `{name}`"),
    }
}

/// Edits between two names (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut corner = i;
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let substituted = corner + usize::from(x != y);
            corner = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(corner + 1);
        }
    }
    row[b.len()]
}

/// A length of time, written `250ms`, `15s`, `2m`, `1h`, `1d`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Span(pub(crate) Duration);

/// A number of bytes, written `4096`, `64KiB`, `16MiB`, `2GiB`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Size(pub(crate) usize);

const SPAN_UNITS: [(&str, u64); 5] =
    [("ms", 1), ("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000)];
const SIZE_UNITS: [(&str, u64); 4] =
    [("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("B", 1)];

fn parse_units(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let (number, unit) =
        units.iter().find_map(|(name, unit)| Some((text.strip_suffix(name)?, *unit)))?;
    number.trim().parse::<u64>().ok()?.checked_mul(unit)
}

fn show_units(value: u64, units: &[(&str, u64)]) -> String {
    let mut units = units.to_vec();
    units.sort_by_key(|(_, unit)| std::cmp::Reverse(*unit));
    let fits = |unit: u64| unit == 1 || (value != 0 && value.is_multiple_of(unit));
    units
        .into_iter()
        .find(|(_, unit)| fits(*unit))
        .map_or_else(|| value.to_string(), |(name, unit)| format!("{}{name}", value / unit))
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Span, D::Error> {
        let text = String::deserialize(deserializer)?;
        let ms = parse_units(&text, &SPAN_UNITS).ok_or_else(|| {
            serde::de::Error::custom(format!("`{text}` is not {}", Span::EXPECTED))
        })?;
        Ok(Span(Duration::from_millis(ms)))
    }
}

impl Serialize for Span {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let ms = u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX);
        serializer.serialize_str(&show_units(ms, &SPAN_UNITS))
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Size, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = text.parse().ok().or_else(|| parse_units(&text, &SIZE_UNITS));
        let bytes = bytes.and_then(|bytes| usize::try_from(bytes).ok()).ok_or_else(|| {
            serde::de::Error::custom(format!("`{text}` is not {}", Size::EXPECTED))
        })?;
        Ok(Size(bytes))
    }
}

impl Serialize for Size {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&show_units(self.0 as u64, &SIZE_UNITS))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reference_is_a_configuration_and_says_the_defaults() -> Result<()> {
        let table = reference()?.parse::<Table>()?;
        refuse_unknown(&table)?;
        let parsed = Config::deserialize(Value::Table(table))?;
        assert_eq!(Table::try_from(parsed)?, Table::try_from(Config::default())?);
        Ok(())
    }

    #[test]
    fn a_wrong_key_is_refused_with_the_nearest() {
        let table = "[stats]\nflsh = \"1s\"\n".parse::<Table>().expect("TOML");
        let error = refuse_unknown(&table).expect_err("the key does not exist").to_string();
        assert!(error.contains("`stats.flsh`") && error.contains("`stats.flush`"), "{error}");
    }

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

    fn table_of(text: &str) -> Table {
        text.parse().expect("TOML")
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
            ("[signal]\nurls = [\"http://a.example/ws\"]", "signal.urls"),
            ("[signal]\nurls = [\"wss://a.example/ws/\"]", "signal.urls"),
            ("[signal]\nurls = [\"wss://\"]", "signal.urls"),
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
        ] {
            typed(table_of(text))?.check().with_context(|| text.to_owned())?;
        }
        Ok(())
    }

    #[test]
    fn a_value_of_another_type_is_refused_by_its_key_with_what_is_expected() -> Result<()> {
        for (text, says) in [
            ("[listen]\nhttp = \"127.0.0.1:1\"", "listen.http: expected a list of addresses"),
            ("[limits]\nshare = \"a\"", "limits.share: expected a number such as 0.25, not \"a\""),
            ("[limits]\nconnections = -1", "limits.connections: expected a whole number"),
            ("[stats]\nflush = 1", "stats.flush: expected a time such as \"250ms\""),
            ("[limits]\nbody = \"huge\"", "limits.body: expected a size"),
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
        for name in ["GANGLION_CONFIG", "GANGLION_SIGNAL_SERVICE_HOST", "OTHER_LIMITS_BODY"] {
            assert!(over(name, "x")?.is_empty(), "{name}");
        }
        let error = typed(over("GANGLION_LIMITS__SHARE", "a")?).expect_err("no number");
        assert!(error.to_string().contains("not \"a\""), "{error}");
        assert!(typed(over("GANGLION_LISTEN__HTTPS", "")?)?.listen.https.is_empty());
        Ok(())
    }

    #[test]
    fn a_section_is_explained_by_its_keys() -> Result<()> {
        for (section, _) in SECTIONS {
            let explained = explain(&Config::default(), section)?;
            for key in KEYS.iter().filter(|key| key.section == *section) {
                assert!(explained.contains(&format!("{section}.{} = ", key.name)), "{explained}");
            }
        }
        let mut config = Config::default();
        config.neuron.sys_secret = "hidden".to_owned();
        for name in ["neuron", "neuron.sys_secret"] {
            assert!(!explain(&config, name)?.contains("hidden"), "{name}");
        }
        Ok(())
    }

    #[test]
    fn a_queue_holds_the_longest_message_with_its_envelope() -> Result<()> {
        let mut config = Config::default();
        config.signal.message = Size(1000);
        config.signal.queue = Size(1000 + signal::ENVELOPE_BYTES_MAX);
        config.check()?;
        config.signal.queue.0 -= 1;
        let error = config.check().expect_err("a frame of which nobody could be sent").to_string();
        assert!(error.contains("signal.queue"), "{error}");
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
