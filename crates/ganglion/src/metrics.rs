//! Prometheus metrics: one rendering of the figures that every part keeps of itself.

use std::fmt::Write as _;
use std::sync::atomic::Ordering;

use crate::http::Shared;

/// The text exposition format, version 0.0.4.
pub(crate) fn render(shared: &Shared) -> String {
    let mut out = Text::default();
    let load = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);

    let http = &shared.counters;
    out.counter("http_requests_total", "Requests answered.", load(&http.requests));
    out.counter(
        "http_bodies_refused_total",
        "Bodies too large or too slow.",
        load(&http.refused_body),
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

    let views = shared.neuron.services.kv.view_stats();
    out.counter("view_hits_total", "Reads that found their node loaded.", views.hits);
    out.counter("view_misses_total", "Reads that had to load their node.", views.misses);
    out.counter("view_writes_total", "Commits that changed a loaded node.", views.writes);
    out.counter("view_evictions_total", "Nodes dropped.", views.evicted);
    out.gauge("view_nodes", "Nodes loaded.", views.nodes);
    out.gauge("view_bytes", "Bytes of loaded nodes.", views.bytes);

    let commits = shared.store.commits();
    out.counter("store_commits_total", "Transactions made durable.", commits.commits);
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

    let signal = shared.neuron.sockets.stats();
    out.gauge("signal_sockets", "Sockets in rooms.", signal.sockets);
    out.gauge("signal_rooms", "Rooms that somebody is in.", signal.rooms);
    let counters = &signal.counters;
    out.counter("signal_joins_total", "Sockets that joined a room.", counters.joins);
    out.counter("signal_deliveries_total", "Frames handed to sockets.", counters.deliveries);
    out.counter(
        "signal_text_pings_total",
        "Text pings.",
        load(&shared.sockets.counters.text_pings),
    );
    out.counter("signal_bad_frames_total", "Frames that could not be read.", counters.bad_frames);
    let sockets = &shared.sockets.counters;
    out.counter("socket_opened_total", "WebSockets admitted.", load(&sockets.opened));
    out.counter("socket_refused_total", "WebSockets refused.", load(&sockets.refused));
    out.counter(
        "socket_slow_total",
        "WebSockets cut because they did not keep up.",
        load(&sockets.slow),
    );
    out.counter("socket_frames_total", "Frames written.", load(&sockets.frames_out));
    out.counter("socket_writes_total", "Writes in which they went.", load(&sockets.writes));

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
    fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.line("counter", name, help, value);
    }

    fn gauge(&mut self, name: &str, help: &str, value: usize) {
        self.line("gauge", name, help, value as u64);
    }

    fn line(&mut self, kind: &str, name: &str, help: &str, value: u64) {
        let _ = writeln!(
            self.0,
            "# HELP ganglion_{name} {help}\n# TYPE ganglion_{name} {kind}\nganglion_{name} {value}"
        );
    }
}
