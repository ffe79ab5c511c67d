//! Every key: its type, its default, and the words from which the reference is made.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::units::{Size, Span};

/// One key, for the reference and for suggestions.
#[derive(Debug)]
pub(super) struct Key {
    pub(super) section: &'static str,
    pub(super) name: &'static str,
    pub(super) doc: &'static str,
    /// What its type takes, for a value that is none.
    pub(super) expected: &'static str,
}

impl Key {
    pub(super) fn is(&self, section: &str, name: &str) -> bool {
        self.section == section && self.name == name
    }
}

/// Types of keys say what they take.
pub(super) trait Expected {
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
    Span: "a time in quotes, such as \"250ms\", \"15s\", \"2m\", \"1h\", \"1d\"",
    Size: "a size in quotes, such as \"4096\", \"64KiB\", \"16MiB\"",
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
        pub(super) const SECTIONS: &[(&str, &str)] =
            &[$((stringify!($section), concat!($($section_doc, "\n"),+))),*];

        /// Every key, in order.
        pub(super) const KEYS: &[Key] = &[$($(Key {
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
        /// Signalling without HTTP, each text after its length, for clients beside the neuron: addresses
        /// such as "127.0.0.1:4008", and paths of Unix sockets such as "unix:/run/ganglion/signal.sock".
        /// Nothing is encrypted there.
        tcp: Vec<String> = Vec::new(),
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
        /// of one address an eighth. Heads that are not whole count too, above 8 KiB. More are refused
        /// as overloaded.
        bodies: Size = Size(256 << 20),
        /// Bytes of finished answers that clients have not taken yet; of one account a quarter, of one
        /// connection an eighth. Those to callers without proven credentials are together half of it,
        /// and of one address an eighth. Requests beyond it are refused as overloaded, a write before
        /// it is done. Pages are not counted.
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
        /// Watches of one account: streams of server-sent events, sockets' watches, reads with `wait`.
        watches_per_account: usize = kv4::watch::Limits::default().per_account,
        /// Bytes of changes that were written and not yet handed on to those who watch. Past it the
        /// watches for which most of them wait are ended.
        watch_queue: Size = Size(kv4::watch::Limits::default().queued_bytes),
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
        /// Messages of one socket in a second, ten seconds' worth at once; one that sends more is not
        /// read from until it is within it. 0 for no bound. Of bare `ping` texts, 32 that come at once
        /// count as one.
        messages_per_second: u32 = 1_000,
        /// Requests of one socket that wait for those before them; one with more is not read from.
        requests_per_socket: usize = 32,
        /// Watches of one socket; more are refused.
        watches_per_socket: usize = 128,
        /// Bytes of what a client shows beside its name, as JSON.
        presence: Size = Size(signal::Limits::default().data_bytes),
        /// For how long a client whose socket was lost may come back and hear what it missed.
        resume: Span = Span(signal::Limits::default().history_lasts),
        /// Messages of one room that are kept for that.
        resume_messages: usize = signal::Limits::default().history_messages,
        /// Bytes of them and of the sessions that may come back, all accounts together; of one account,
        /// and of each of its sub-accounts, a thirty-second at most.
        resume_bytes: Size = Size(signal::Limits::default().history_bytes),
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
