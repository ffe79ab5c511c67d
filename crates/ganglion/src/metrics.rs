//! Prometheus metrics: one rendering of the figures that every part keeps of itself.

use std::fmt::Write as _;
use std::sync::atomic::Ordering;
use std::time::UNIX_EPOCH;

use signal::Stats;

use crate::http::Shared;
use crate::sockets::Counters;
use crate::system;

/// Of the text exposition format.
pub(crate) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The text exposition format, version 0.0.4.
pub(crate) fn render(shared: &Shared) -> String {
    let mut out = Text::default();
    out.process(shared);
    let load = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);

    let http = &shared.counters;
    out.counter("http_requests_total", "Requests answered.", load(&http.requests));
    out.counter(
        "http_bodies_refused_total",
        "Bodies too large or too slow.",
        load(&http.refused_body),
    );
    out.counter(
        "http2_floods_total",
        "HTTP/2 connections cut because of too many frames that neither ask for anything nor bring \
         anything.",
        load(&http.floods),
    );
    let turns = &shared.turns.counters;
    out.counter(
        "http_turns_refused_total",
        "Requests refused because too many of their account or address were under way.",
        load(&turns.overloaded),
    );
    out.counter(
        "http_over_rate_total",
        "Requests refused because their account or address makes too many a second.",
        load(&turns.over_rate),
    );
    out.counter(
        "http_delayed_total",
        "Requests that waited for their account's or address's share of time.",
        load(&turns.delayed),
    );
    out.gauge(
        "http_body_bytes",
        "Bytes of the bodies of requests under way.",
        shared.turns.body_bytes(),
    );
    out.counter(
        "http_answers_refused_total",
        "Requests refused because too many bytes of answers were not taken yet.",
        load(&turns.answers_refused),
    );
    out.gauge(
        "http_answer_bytes",
        "Bytes of answers that were not taken yet.",
        shared.turns.answer_bytes(),
    );
    out.gauge(
        "http_requests_under_way",
        "Requests that are being answered.",
        shared.lifecycle.busy_count(),
    );

    let gate = &shared.gate;
    out.gauge("connections", "Open connections.", gate.open());
    out.counter("connections_accepted_total", "Connections accepted.", load(&gate.accepted));
    out.counter(
        "connections_refused_total",
        "Connections closed at once, over a limit.",
        load(&gate.refused),
    );

    let (mut failures, mut end_s) = (0, None);
    if let Some(tls) = &shared.tls {
        failures = load(&tls.failures);
        end_s = tls.end_s();
    }
    out.counter(
        "tls_reload_failures_total",
        "Times that a changed certificate or key was not one to use.",
        failures,
    );
    if let Some(end_s) = end_s {
        out.line(
            "gauge",
            "ganglion_tls_certificate_end_seconds",
            "Unix time after which the certificate is not valid; only with listen.https.",
            format_args!(" {end_s}"),
        );
    }

    for met in shared.neuron.services.bounds() {
        out.counter(&format!("{}_total", met.name), met.help, met.count);
    }

    let views = shared.neuron.services.kv.view_stats();
    out.counter("view_hits_total", "Reads that found their node loaded.", views.hits);
    out.counter("view_misses_total", "Reads that had to load their node.", views.misses);
    out.counter("view_writes_total", "Commits that changed a loaded node.", views.writes);
    out.counter("view_evictions_total", "Nodes dropped.", views.evicted);
    out.gauge("view_nodes", "Nodes loaded.", views.nodes);
    out.gauge("view_bytes", "Bytes of loaded nodes.", views.bytes);

    let watches = shared.neuron.services.kv.watches().stats();
    out.gauge("watches", "Watches of paths and keys.", watches.watches);
    out.gauge("watch_targets", "Paths and keys that are watched.", watches.targets);
    out.gauge(
        "watch_queued_bytes",
        "Bytes of changes that were written and not yet handed on.",
        watches.queued_bytes,
    );
    out.gauge("http_feeds", "Open streams of server-sent events.", shared.feeds.len());

    let commits = shared.store.commits();
    out.counter("store_commits_total", "Transactions made durable.", commits.commits);
    out.counter(
        "store_checkpoints_total",
        "Transactions that let the log begin anew.",
        commits.checkpoints,
    );
    out.counter("store_requests_total", "Requests in them.", commits.requests);
    out.counter("store_failures_total", "Transactions that failed.", commits.failures);
    out.counter(
        "store_recoveries_total",
        "Times the store was opened anew after a failure.",
        commits.recoveries,
    );
    out.gauge("store_queue", "Requests that wait for a transaction.", shared.store.queue_depth());

    let free = usize::try_from(shared.lifecycle.disk_free()).unwrap_or(usize::MAX);
    out.gauge("store_disk_free_bytes", "Free space of the data folder's disk.", free);

    out.signal(&shared.neuron.sockets.stats());
    out.sockets(&shared.sockets.counters);

    let (cells, lost) = shared.neuron.services.stats.held();
    out.gauge("stats_cells", "Cells of statistics in memory.", cells);
    out.counter("stats_lost_total", "Values lost because there were too many cells.", lost);
    let (lines, lost) = shared.neuron.services.logs.held();
    out.gauge("log_lines", "Lines of accounts' logs that wait to be written.", lines);
    out.counter("log_lines_lost_total", "Lines lost because too many waited.", lost);
    out.0
}

#[derive(Default)]
struct Text(String);

impl Text {
    /// What Prometheus's own conventions name for every process.
    fn process(&mut self, shared: &Shared) {
        let version = env!("CARGO_PKG_VERSION");
        self.line(
            "gauge",
            "ganglion_build_info",
            "1, with the program's version as a label.",
            format_args!("{{version=\"{version}\"}} 1"),
        );
        let started = shared.lifecycle.started.duration_since(UNIX_EPOCH).unwrap_or_default();
        self.line(
            "gauge",
            "process_start_time_seconds",
            "Unix time at which the process started.",
            format_args!(" {:.3}", started.as_secs_f64()),
        );
        if let Some(bytes) = system::resident_bytes() {
            self.line(
                "gauge",
                "process_resident_memory_bytes",
                "Resident memory.",
                format_args!(" {bytes}"),
            );
        }
    }

    /// Every figure of the rooms: a field that is not rendered does not compile.
    fn signal(&mut self, stats: &Stats) {
        let Stats {
            buckets,
            rooms,
            names,
            sockets,
            histories,
            history_messages,
            history_bytes,
            counters,
        } = stats;
        self.gauge("signal_sockets", "Sockets in rooms.", *sockets);
        self.gauge("signal_rooms", "Rooms that somebody is in.", *rooms);
        self.gauge("signal_names", "Names present, once for each of their rooms.", *names);
        self.gauge("signal_accounts", "Accounts that have a socket.", *buckets);
        self.gauge("signal_histories", "Rooms to which sockets may come back.", *histories);
        self.gauge("signal_history_messages", "Messages kept for them.", *history_messages);
        self.gauge("signal_history_bytes", "Bytes of these messages.", *history_bytes);
        let signal::Counters {
            joins,
            leaves,
            closes,
            replaced,
            resumed,
            unresumed,
            heartbeats,
            mixer_frames,
            packets,
            deliveries,
            duplicates,
            unknown_peers,
            bad_frames,
            system_ops,
            ungranted,
            refused_data,
            refused_messages,
            history_cut,
            lost_cut,
            refused_rooms_per_bucket,
            refused_sockets_per_bucket,
            refused_sockets_per_name,
            refused_sockets_per_room,
        } = counters;
        for (name, help, value) in [
            ("joins", "Sockets that joined a room.", joins),
            ("leaves", "Sockets that left by themselves.", leaves),
            ("closes", "Sockets closed by a kick, a ban or a revocation.", closes),
            ("replaced", "Sockets closed since their session came back by another.", replaced),
            ("resumed", "Sessions that came back and missed nothing.", resumed),
            ("unresumed", "Sessions that came back and may have missed something.", unresumed),
            ("heartbeats", "JSON pings and heartbeats.", heartbeats),
            ("mixer_frames", "Frames for a media mixer, ignored.", mixer_frames),
            ("packets", "Frames relayed.", packets),
            ("deliveries", "Frames handed to sockets.", deliveries),
            ("duplicates", "Frames that were sent again, and not relayed again.", duplicates),
            ("unknown_peers", "Frames to a name that is not in the room.", unknown_peers),
            ("bad_frames", "Frames that could not be read.", bad_frames),
            ("system_ops", "Frames that posed as the server's.", system_ops),
            ("ungranted", "Joins and frames beyond the grants of a token.", ungranted),
            ("refused_presence", "Joins and changes over signal.presence.", refused_data),
            (
                "refused_messages",
                "Messages to a room by HTTP that were over signal.message.",
                refused_messages,
            ),
            (
                "history_cut",
                "Messages let go of before their time, for signal.resume_messages or resume_bytes.",
                history_cut,
            ),
            (
                "lost_cut",
                "Names and sessions that were lost and forgotten before their time, so many were.",
                lost_cut,
            ),
            (
                "refused_rooms_per_account",
                "Joins over signal.rooms_per_account.",
                refused_rooms_per_bucket,
            ),
            (
                "refused_sockets_per_account",
                "Joins over signal.sockets_per_account.",
                refused_sockets_per_bucket,
            ),
            (
                "refused_sockets_per_name",
                "Joins over signal.sockets_per_name.",
                refused_sockets_per_name,
            ),
            (
                "refused_sockets_per_room",
                "Joins over signal.sockets_per_room.",
                refused_sockets_per_room,
            ),
        ] {
            self.counter(&format!("signal_{name}_total"), help, *value);
        }
    }

    /// Every figure of the sockets' transport.
    fn sockets(&mut self, counters: &Counters) {
        let Counters {
            opened,
            refused,
            slow,
            idle,
            too_long,
            broken,
            paced,
            text_pings,
            frames_out,
            writes,
        } = counters;
        for (name, help, value) in [
            ("signal_text_pings", "Text pings.", text_pings),
            ("socket_opened", "WebSockets admitted.", opened),
            ("socket_refused", "WebSockets refused.", refused),
            ("socket_slow", "WebSockets cut because they did not keep up.", slow),
            ("socket_idle", "WebSockets closed after signal.idle.", idle),
            ("socket_too_long", "WebSockets closed over signal.message.", too_long),
            ("socket_broken", "WebSockets closed for another breach of the protocol.", broken),
            (
                "socket_paced",
                "Times that a socket was not read from for signal.messages_per_second, or for a room that does not keep up with it.",
                paced,
            ),
            ("socket_frames", "Frames written.", frames_out),
            ("socket_writes", "Writes in which they went.", writes),
        ] {
            self.counter(&format!("{name}_total"), help, value.load(Ordering::Relaxed));
        }
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.line("counter", &format!("ganglion_{name}"), help, format_args!(" {value}"));
    }

    fn gauge(&mut self, name: &str, help: &str, value: usize) {
        self.line("gauge", &format!("ganglion_{name}"), help, format_args!(" {value}"));
    }

    /// One figure by its whole name; `rest` is what follows that, labels and value.
    fn line(&mut self, kind: &str, name: &str, help: &str, rest: std::fmt::Arguments<'_>) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name}{rest}");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use super::*;

    /// The values rendered, in order.
    fn values(text: &Text) -> Vec<u64> {
        let lines = text.0.lines().filter(|line| !line.starts_with('#'));
        let mut values: Vec<u64> = lines
            .filter_map(|line| line.split_once(' '))
            .filter_map(|(_, value)| value.parse().ok())
            .collect();
        values.sort_unstable();
        values
    }

    #[test]
    fn every_figure_of_the_rooms_is_rendered() {
        let counters = signal::Counters {
            joins: 8,
            leaves: 9,
            closes: 10,
            replaced: 11,
            resumed: 12,
            unresumed: 13,
            heartbeats: 14,
            mixer_frames: 15,
            packets: 16,
            deliveries: 17,
            duplicates: 18,
            unknown_peers: 19,
            bad_frames: 20,
            system_ops: 21,
            ungranted: 22,
            refused_data: 23,
            refused_messages: 30,
            history_cut: 24,
            lost_cut: 25,
            refused_rooms_per_bucket: 26,
            refused_sockets_per_bucket: 27,
            refused_sockets_per_name: 28,
            refused_sockets_per_room: 29,
        };
        let mut text = Text::default();
        text.signal(&Stats {
            buckets: 1,
            rooms: 2,
            names: 3,
            sockets: 4,
            histories: 5,
            history_messages: 6,
            history_bytes: 7,
            counters,
        });
        assert_eq!(values(&text), (1..=30).collect::<Vec<u64>>());
        assert!(
            text.0.contains("\nganglion_signal_refused_sockets_per_room_total 29\n"),
            "{}",
            text.0
        );
    }

    #[test]
    fn every_figure_of_the_sockets_is_rendered() {
        let counters = Counters {
            opened: AtomicU64::new(1),
            refused: AtomicU64::new(2),
            slow: AtomicU64::new(3),
            idle: AtomicU64::new(4),
            too_long: AtomicU64::new(5),
            broken: AtomicU64::new(6),
            paced: AtomicU64::new(7),
            text_pings: AtomicU64::new(8),
            frames_out: AtomicU64::new(9),
            writes: AtomicU64::new(10),
        };
        let mut text = Text::default();
        text.sockets(&counters);
        assert_eq!(values(&text), (1..=10).collect::<Vec<u64>>());
    }
}
