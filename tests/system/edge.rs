//! The edge of the program: TLS, HTTP/2, proxies, health, draining, idempotency, the API's document.

mod http2;
mod tls;

use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tests::curl;
use tests::neuron::{Neuron, SYS_SECRET};
use tests::socket::Client;
use tests::wait::until;

/// A page of a stranger whose name leads to this machine (DNS rebinding) could read the demo's
/// secret as its own.
#[test]
fn the_demo_is_shown_under_this_machines_names_only() -> Result<()> {
    let neuron = Neuron::start()?;
    let keys: Value = serde_json::from_slice(&std::fs::read(neuron.data_dir().join("dev.json"))?)?;
    let secret = keys["demo_secret"].as_str().context("the demo's secret")?;
    let url = format!("{}/demo", neuron.url());
    for version in ["--http1.1", "--http2-prior-knowledge"] {
        for page in ["", "/", "/demo.js"] {
            let url = format!("{url}{page}");
            let own = curl::Request::new("GET", &url).with(&[version]).send()?;
            assert_eq!(own.status, 200, "{version} {page}");
            assert_eq!(own.header("cache-control"), Some("no-store"));
            assert_eq!(own.header("x-content-type-options"), Some("nosniff"));
            let policy = own.header("content-security-policy").context("a policy")?;
            assert!(policy.contains("frame-ancestors 'none'"), "{policy}");
            assert_eq!(own.body.contains(secret), page != "/demo.js");
            let evil = curl::Request::new("GET", &url).with(&[version]);
            let evil = evil.header("host: evil.example:4006").send()?;
            assert_eq!(evil.status, 421, "{version} {page}");
            assert!(!evil.body.contains(secret));
        }
    }
    Ok(())
}

#[test]
fn only_trusted_proxies_say_who_the_client_is() -> Result<()> {
    let by_x = "x-forwarded-for: 198.51.100.1, 203.0.113.7";
    let by_standard = "forwarded: for=198.51.100.1, for=\"203.0.113.7:4711\";proto=http";
    for (trusted, believed, header, proxied) in [
        ("[]", "x-forwarded-for", by_x, "ok"),
        ("[\"127.0.0.0/8\"]", "x-forwarded-for", by_x, "error"),
        ("[\"127.0.0.0/8\"]", "x-forwarded-for", by_standard, "ok"),
        ("[\"127.0.0.0/8\"]", "forwarded", by_standard, "error"),
        ("[\"127.0.0.0/8\"]", "forwarded", by_x, "ok"),
    ] {
        let settings = [
            ("GANGLION_LISTEN__TRUSTED_PROXIES", trusted),
            ("GANGLION_LISTEN__FORWARDED_HEADER", believed),
        ];
        let neuron = Neuron::start_with(&settings, &[])?;
        let secret = neuron.account("elena")?;
        let credentials = format!("elena:{secret}");
        let body = json!({ "k": "203.0.113.7" });
        curl::json("PUT", &neuron.url(), "/_auth/", &credentials, Some(&body))?;
        let url = format!("{}/_data/x", neuron.url());
        let answer = curl::run(&["-u", &credentials, "-H", header, &url])?;
        let answer: Value = serde_json::from_str(&answer)?;
        assert_eq!(answer["s"], proxied, "{trusted} {believed} {header}: {answer}");
    }
    Ok(())
}

/// Browsers refuse `ws://` to a page that came by TLS.
#[test]
fn a_trusted_proxy_says_that_its_client_speaks_tls() -> Result<()> {
    let credentials = format!("$sys:{SYS_SECRET}");
    let (by_x, by_standard) =
        ("x-forwarded-proto: https", "forwarded: for=203.0.113.7;Proto=\"https\", for=10.0.0.1");
    for (trusted, believed, cases) in [
        ("[]", "x-forwarded-for", [(by_x, "ws"), (by_standard, "ws"), ("x-a: b", "ws")]),
        (
            "[\"127.0.0.0/8\"]",
            "x-forwarded-for",
            [(by_x, "wss"), (by_standard, "ws"), ("x-forwarded-proto: http", "ws")],
        ),
        (
            "[\"127.0.0.0/8\"]",
            "forwarded",
            [(by_x, "ws"), (by_standard, "wss"), ("forwarded: for=203.0.113.7", "ws")],
        ),
    ] {
        let settings = [
            ("GANGLION_LISTEN__TRUSTED_PROXIES", trusted),
            ("GANGLION_LISTEN__FORWARDED_HEADER", believed),
        ];
        let neuron = Neuron::start_with(&settings, &[])?;
        let authority = neuron.address("http")?;
        for (header, scheme) in cases {
            let url = format!("{}/_host/best/signal", neuron.url());
            let answer = curl::run(&["-u", &credentials, "-H", header, &url])?;
            let answer: Value = serde_json::from_str(&answer)?;
            let expected = format!("{scheme}://{authority}/ws");
            assert_eq!(answer["v"], expected, "{trusted} {believed} {header}");
            let list = curl::run(&["-H", header, &format!("{}/wsList", neuron.url())])?;
            let list: Value = serde_json::from_str(&list)?;
            assert_eq!(list["d"]["value"], expected, "{trusted} {believed} {header}");
        }
    }
    Ok(())
}

#[test]
fn health_readiness_and_drain_are_three_answers() -> Result<()> {
    let mut neuron = Neuron::start()?;
    let admin = format!("http://{}", neuron.address("admin")?);
    let ask = |url: String, method: &str| -> Result<(String, String)> {
        let answer = curl::run(&["-X", method, "-w", "\n%{http_code}", &url])?;
        let (body, status) = answer.rsplit_once('\n').context("two lines")?;
        Ok((status.to_owned(), body.to_owned()))
    };
    assert_eq!(ask(format!("{admin}/livez"), "GET")?.0, "200");
    assert_eq!(ask(format!("{admin}/readyz"), "GET")?.0, "200");
    assert_eq!(ask(format!("{admin}/drainz"), "GET")?.0, "503");
    let metrics = ask(format!("{admin}/metrics"), "GET")?.1;
    assert!(metrics.contains("\nganglion_store_commits_total "), "{metrics}");
    assert_eq!(ask(format!("{}/metrics", neuron.url()), "GET")?.0, "404", "not on the public port");

    for header in ["origin: https://evil.example", "host: evil.example"] {
        let drain = format!("{admin}/drainz");
        let status = curl::run(&[
            "-X",
            "POST",
            "-H",
            header,
            "-o",
            "/dev/null",
            "-w",
            "%{http_code}",
            &drain,
        ])?;
        assert_eq!(status, "403", "{header}");
    }
    assert_eq!(
        ask(format!("{admin}/readyz"), "GET")?.0,
        "200",
        "a page of a stranger drains nothing"
    );
    assert_eq!(ask(format!("{admin}/drainz"), "POST")?.0, "200");
    assert_eq!(ask(format!("{admin}/livez"), "GET")?.0, "200");
    let (status, why) = ask(format!("{admin}/readyz"), "GET")?;
    assert!(status == "503" && why.contains("draining"), "{status} {why}");
    let (status, why) = ask(format!("{}/readyz", neuron.url()), "GET")?;
    assert!(status == "503" && !why.contains("draining"), "reasons are private: {why}");

    // Draining can be taken back: an operator may have meant another neuron.
    let credentials = format!("$sys:{SYS_SECRET}");
    let token = curl::json("PUT", &neuron.url(), "/_token?k=bob&expire=600", &credentials, None)?;
    let url = format!(
        "ws://{}/ws/v2/{}",
        neuron.address("http")?,
        token["v"].as_str().context("a token")?
    );
    assert_eq!(Client::connect(&url)?.close_code()?, 1001);
    assert_eq!(ask(format!("{}/drainz", neuron.url()), "DELETE")?.0, "404", "private");
    assert_eq!(ask(format!("{admin}/drainz"), "DELETE")?, ("200".to_owned(), "ok\n".to_owned()));
    assert_eq!(ask(format!("{admin}/readyz"), "GET")?.0, "200");
    let mut socket = Client::connect(&url)?;
    socket.frame()?;
    let (status, why) = ask(format!("{admin}/drainz"), "GET")?;
    assert!(status == "503" && why.contains("1 sockets"), "{status} {why}");
    drop(socket);
    assert_eq!(neuron.stop()?, Some(0));
    Ok(())
}

#[test]
fn readiness_goes_while_the_disk_has_less_room_than_it_should() -> Result<()> {
    let free = tests::os::free_bytes(&std::env::temp_dir())?;
    let ready = |free_min: u64| -> Result<String> {
        let settings = [("GANGLION_STORE__FREE_MIN", free_min.to_string())];
        let settings = settings.each_ref().map(|(name, value)| (*name, value.as_str()));
        let neuron = Neuron::start_with(&settings, &[])?;
        let url = format!("http://{}/readyz", neuron.address("admin")?);
        curl::run(&[&url])
    };
    let neuron = Neuron::start()?;
    let metrics = curl::run(&[&format!("http://{}/metrics", neuron.address("admin")?)])?;
    let shown =
        metrics.lines().find_map(|line| line.strip_prefix("ganglion_store_disk_free_bytes "));
    let shown: u64 = shown.context("the gauge")?.parse()?;
    assert!((free / 2..free * 2).contains(&shown), "{shown} of {free} bytes");
    assert_eq!(ready(0)?, "ok\n");
    assert_eq!(ready(free / 2)?, "ok\n");
    let why = ready(free * 2)?;
    assert!(why.starts_with("no\ndisk: ") && why.contains("store.free_min"), "{why}");
    Ok(())
}

#[test]
fn a_socket_counts_as_the_connection_that_it_is() -> Result<()> {
    let neuron = Neuron::start_with(&[("GANGLION_LIMITS__CONNECTIONS_PER_ADDRESS", "4")], &[])?;
    let credentials = format!("$sys:{SYS_SECRET}");
    let token = curl::json("PUT", &neuron.url(), "/_token?k=bob&expire=600", &credentials, None)?;
    let token = token["v"].as_str().context("a token")?;
    let metrics = format!("http://{}/metrics", neuron.address("admin")?);
    let open = |count: usize| {
        let gauge = format!("\nganglion_connections {count}\n");
        until(|| curl::run(&[&metrics]), |text| text.contains(&gauge))
    };
    open(0).context("curl has gone")?;
    let url = format!("ws://{}/ws/v2/{token}", neuron.address("http")?);
    let mut sockets = Vec::new();
    for _ in 0..4 {
        let mut socket = Client::connect(&url)?;
        socket.frame()?;
        sockets.push(socket);
    }
    open(4).context("sockets are counted")?;
    assert!(Client::connect(&url).is_err(), "a fifth is one too many");
    drop(sockets.pop());
    open(3).context("the room of one that went")?;
    Client::connect(&url)?.frame()?;
    Ok(())
}

#[test]
fn a_request_with_an_idempotency_key_is_carried_out_once() -> Result<()> {
    let neuron = Neuron::start()?;
    let credentials = format!("elena:{}", neuron.account("elena")?);
    let send = |neuron: &Neuron, key: &str, body: &str| -> Result<Value> {
        let header = format!("idempotency-key: {key}");
        let url = format!("{}/_data/x", neuron.url());
        let answer =
            curl::run(&["-u", &credentials, "-X", "PUT", "-H", &header, "-d", body, &url])?;
        Ok(serde_json::from_str(&answer)?)
    };
    let first = send(&neuron, "one", r#"{"k":"a","v":{"n":1}}"#)?;
    assert_eq!(first["s"], "ok");
    assert_eq!(send(&neuron, "one", r#"{"k":"a","v":{"n":1}}"#)?, first);
    assert_eq!(send(&neuron, "one", r#"{"k":"a","v":{"n":2}}"#)?["v"], "idempotency_conflict");
    let neuron = neuron.restart()?;
    assert_eq!(send(&neuron, "one", r#"{"k":"a","v":{"n":1}}"#)?, first, "kept over a restart");
    let series =
        curl::json("GET", &neuron.url(), "/_data/x?k=a&time_series=1", &credentials, None)?;
    assert_eq!(series["v"].as_array().map(Vec::len), Some(1), "{series}");
    let long = "x".repeat(256);
    assert_eq!(send(&neuron, &long, r#"{"k":"a","v":1}"#)?["v"], "bad_request");
    let layers = curl::json("GET", &neuron.url(), "/_ds", &credentials, None)?;
    // On a busy machine this neuron's first statistics are written by now.
    let layers = layers["v"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let layers: Vec<_> = layers.filter(|layer| !layer.starts_with("*stats:")).collect();
    assert_eq!(layers, ["*data"], "kept answers are not shown");
    Ok(())
}

/// Sends a request and goes away before its answer.
fn send_and_go(neuron: &Neuron, credentials: &str, request: &str, body: &str) -> Result<()> {
    use base64::Engine as _;
    let encoded = base64::engine::general_purpose::STANDARD.encode(credentials);
    let mut stream = std::net::TcpStream::connect(neuron.address("http")?)?;
    let head = format!(
        "{request} HTTP/1.1\r\nhost: x\r\nauthorization: Basic {encoded}\r\n\
         idempotency-key: {}\r\ncontent-length: {}\r\n\r\n{body}",
        request.replace(' ', "+"),
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    Ok(())
}

/// Cut off between two steps, it would leave an account's data without its row, for the next owner of
/// the name to find.
#[test]
fn what_a_client_began_is_finished_when_it_hangs_up() -> Result<()> {
    let neuron = Neuron::start()?;
    let url = neuron.url();
    let sys = format!("$sys:{SYS_SECRET}");
    for round in 0..10 {
        let name = format!("gone{round}");
        let own = format!("{name}:{}", neuron.account(&name)?);
        let body = json!({ "k": "a", "v": "the first owner's" });
        curl::json("PUT", &url, "/_data/p", &own, Some(&body))?;
        // A request whose end of the connection came with it may not have begun.
        let listed = || {
            send_and_go(&neuron, &sys, &format!("DELETE /_acc/accounts?k={name}"), "")?;
            curl::json("GET", &url, "/_acc/accounts", &sys, None)
        };
        until(listed, |listed| !listed["v"].to_string().contains(&name))?;
        let own = format!("{name}:{}", neuron.account(&name)?);
        let found = curl::json("GET", &url, "/_data/p?k=a", &own, None)?;
        assert_eq!(found["v"], "not_found", "{found}");
    }
    Ok(())
}

#[test]
fn a_request_that_was_hung_up_on_is_not_carried_out_again() -> Result<()> {
    let neuron = Neuron::start()?;
    for round in 0..10 {
        let name = format!("once{round}");
        let own = format!("{name}:{}", neuron.account(&name)?);
        let body = r#"{"k":"a","v":1}"#;
        send_and_go(&neuron, &own, "PUT /_data/p", body)?;
        let url = format!("{}/_data/p", neuron.url());
        let again = || -> Result<Value> {
            let header = "idempotency-key: PUT+/_data/p";
            let answer = curl::run(&["-u", &own, "-X", "PUT", "-H", header, "-d", body, &url])?;
            Ok(serde_json::from_str(&answer)?)
        };
        until(again, |answer| answer["s"] == "ok")?;
        let series = format!("{url}?k=a&time_series=1");
        let series: Value = serde_json::from_str(&curl::run(&["-u", &own, &series])?)?;
        assert_eq!(series["v"].as_array().map(Vec::len), Some(1), "{series}");
    }
    Ok(())
}

/// The slower one must not drop what the first owner has written.
#[test]
fn creations_of_one_name_do_not_harm_each_other() -> Result<()> {
    let neuron = Neuron::start()?;
    let url = neuron.url();
    let sys = format!("$sys:{SYS_SECRET}");
    let body = json!({ "k": "twin", "v": { "email": "twin@example.org", "password": "woot" } });
    let create = || curl::json("PUT", &url, "/_acc/accounts", &sys, Some(&body));
    let answers: Vec<Result<Value>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(create)).collect();
        threads.into_iter().filter_map(|thread| thread.join().ok()).collect()
    });
    let mut secrets = Vec::new();
    for answer in answers {
        let answer = answer?;
        match answer["v"]["secret"].as_str() {
            Some(secret) => secrets.push(secret.to_owned()),
            None => {
                assert!(answer["v"] == "username_exists" || answer["v"] == "locked", "{answer}")
            }
        }
    }
    assert_eq!(secrets.len(), 1, "one of them made it");
    let own = format!("twin:{}", secrets[0]);
    curl::json("PUT", &url, "/_data/p", &own, Some(&json!({ "k": "a", "v": 1 })))?;
    assert_eq!(create()?["v"], "username_exists");
    assert_eq!(curl::json("GET", &url, "/_data/p?k=a", &own, None)?["v"], 1);
    Ok(())
}

/// What is still to be flushed of the one is nothing of the other.
#[test]
fn an_account_does_not_inherit_the_figures_of_an_earlier_one() -> Result<()> {
    let neuron = Neuron::start_with(&[("GANGLION_STATS__FLUSH", "300ms")], &[])?;
    let url = neuron.url();
    let sys = format!("$sys:{SYS_SECRET}");
    let own = format!("zed:{}", neuron.account("zed")?);
    for _ in 0..5 {
        curl::json("GET", &url, "/_data/p", &own, None)?;
    }
    curl::json("DELETE", &url, "/_acc/accounts?k=zed", &sys, None)?;
    let own = format!("zed:{}", neuron.account("zed")?);
    curl::json("GET", &url, "/_ds", &own, None)?;
    let counted = || curl::json("GET", &url, "/_stats/ds/GET?l=api:3", &own, None);
    until(counted, |figures| figures["v"]["sum"] == 1).context("a flush")?;
    let figures = curl::json("GET", &url, "/_stats/data/GET?l=api:3", &own, None)?;
    assert_eq!(figures["v"], json!([]));
    Ok(())
}

/// Asserts that a file of `docs/reference` holds a text; `GANGLION_BLESS=1` writes it anew.
fn is_committed(name: &str, text: &str) -> Result<()> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference").join(name);
    if std::env::var_os("GANGLION_BLESS").is_some() {
        std::fs::write(&file, text)?;
    }
    let committed = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(committed == text, "{name} is stale: look, then run this with GANGLION_BLESS=1");
    Ok(())
}

#[test]
fn the_configuration_reference_is_committed() -> Result<()> {
    let shown = Command::new(tests::neuron::program()?).args(["config", "reference"]).output()?;
    is_committed("ganglion.toml", &String::from_utf8(shown.stdout)?)
}

/// What is in `/metrics`, by what it says of itself.
#[test]
fn the_metrics_are_committed() -> Result<()> {
    let settings =
        [("GANGLION_LISTEN__HTTPS", "[\"127.0.0.1:0\"]"), ("GANGLION_TLS__SELF_SIGNED", "true")];
    let neuron = Neuron::start_with(&settings, &[])?;
    let text = curl::run(&[&format!("http://{}/metrics", neuron.address("admin")?)])?;
    let mut table = String::from(
        "# Metrics\n\nWhat `/metrics` of a private listener (`listen.admin`) shows, in Prometheus's text \
         format.\n\n| name | kind | what it is |\n|---|---|---|\n",
    );
    let mut help = "";
    for line in text.lines().filter_map(|line| line.strip_prefix("# ")) {
        let (what, rest) = line.split_once(' ').context("a word")?;
        let (name, rest) = rest.split_once(' ').context("a name")?;
        match what {
            "HELP" => help = rest,
            _ => table += &format!("| `{name}` | {rest} | {help} |\n"),
        }
    }
    is_committed("metrics.md", &table)
}

#[test]
fn the_api_describes_itself() -> Result<()> {
    let neuron = Neuron::start()?;
    let served: Value =
        serde_json::from_str(&curl::run(&[&format!("{}/openapi.json", neuron.url())])?)?;
    is_committed("openapi.json", &format!("{}\n", serde_json::to_string_pretty(&served)?))?;

    // What is described is there, and what is not is refused.
    let credentials = format!("elena:{}", neuron.account("elena")?);
    let paths = served["paths"].as_object().context("paths")?;
    for (path, item) in paths.iter().filter(|(path, _)| !path.ends_with("{path}")) {
        for method in ["GET", "PUT", "POST", "DELETE"] {
            let is_described = item.get(method.to_lowercase()).is_some();
            let answer =
                curl::json(method, &neuron.url(), &format!("{path}/nowhere"), &credentials, None)?;
            // Who writes statistics is a matter of rights, which come first.
            let is_refused = answer["v"] == "method_not_found" || answer["v"] == "not_allowed";
            assert_eq!(is_described, !is_refused, "{method} {path}: {answer}");
        }
    }
    Ok(())
}
