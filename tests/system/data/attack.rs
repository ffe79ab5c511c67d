//! What somebody hostile sends, and what a flood does to others.
//!
//! Every attacker has an address of its own on loopback, so that no other test is counted with him.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use base64::Engine as _;
use serde_json::{Value, json};
use tests::curl::{self, Request};
use tests::http::{self, Connection};
use tests::neuron::{Neuron, SYS_SECRET};
use tests::wait::{PATIENCE, until};

use super::{Account, Caller, connect, join, shared, v, word};

/// Sockets that are opened and say nothing.
const HALF_OPEN_MAX: u64 = 10_000;
/// Fewer of them are no attack.
const HALF_OPEN_MIN: u64 = 1_000;
/// Files that this process has open beside them.
const OTHER_FILES: u64 = 500;
/// How long one client may wait while those are open.
const SERVED_WITHIN: Duration = Duration::from_secs(5);
/// A body in chunks, of which a neuron need take no more than its limit.
const BODY_BYTES: u64 = 64 << 20;
/// Exit codes of curl when the other side hangs up while it sends.
const CURL_SEND_ERROR: i32 = 55;
const CURL_RECV_ERROR: i32 = 56;
/// Requests a second in tests of that limit.
const RATE: u64 = 20;

/// Asks with credentials from an attacker's address.
fn ask(url: &str, credentials: &str, address: &str, path: &str) -> Result<Value> {
    Request::new("GET", format!("{url}{path}"))
        .user(credentials)
        .from_address(address)
        .send()?
        .json()
}

#[test]
fn nobody_reads_what_is_not_his() -> Result<()> {
    let neuron = shared()?;
    let (mine, other) = (Account::new(&neuron)?, Account::new(&neuron)?);
    let (lily, rose) = (mine.sub("lily")?, other.sub("rose")?);
    other.sub("lily")?;
    v(mine.put("/_acc/users/admins", json!({ "k": "ann", "v": { "password": "password" } })))?;
    let (m, o) = (&mine.name, &other.name);
    let encode = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
    for credentials in [
        format!("{o}:{}", mine.secret),
        format!("{o}#rose:{}", mine.secret),
        format!("{o}#rose:!{}", mine.secret),
        format!("{o}#rose:{}", lily.secret),
        format!("{o}#lily:{}", lily.secret),
        format!("{o}:ann#password"),
        format!("{o}#rose:!ann#password"),
        format!("{m}#rose:{}", rose.secret),
        format!("{m}:{}", lily.secret),
        format!("lily:{}", lily.secret),
        format!("{m}#lily:{}", mine.secret),
        format!("{m}#lily:!{}", lily.secret),
        format!("{m}#:{}", mine.secret),
        format!("#lily:{}", lily.secret),
        format!("{m}:ann#wrong"),
        format!("{m}:#password"),
        format!("{m}:ann#"),
        format!("{m}:"),
        format!(":{}", mine.secret),
        format!("$sys:{}", mine.secret),
        format!("$sys#{m}:{}", other.secret),
        format!("{}:{SYS_SECRET}", "sys"),
        format!("kv4_${m}_data:{}", mine.secret),
    ] {
        let answer = ask(&mine.url, &credentials, "127.0.0.60", "/_data")?;
        assert_eq!(answer["v"], "unauthorized", "{credentials}: {answer}");
    }
    for header in [
        String::new(),
        "Basic".to_owned(),
        "Basic !!!".to_owned(),
        format!("Basic {}", encode("no colon")),
        format!("Bearer {}", encode(&mine.credentials)),
        format!("Basic {}", encode(&format!("{}{}", mine.credentials, "x".repeat(3000)))),
    ] {
        let request = Request::new("GET", format!("{}/_data", mine.url)).from_address("127.0.0.61");
        let answer = request.header(&format!("authorization: {header}")).send()?.json()?;
        assert_eq!(answer["v"], "unauthorized", "{header}: {answer}");
    }
    let bare =
        Request::new("PUT", format!("{}/_acc/accounts", mine.url)).from_address("127.0.0.61");
    let bare = bare.body(r#"{"k":"evil","v":{"email":"e@example.org"}}"#).send()?.json();
    assert_eq!(word(bare)?, "unauthorized");

    v(Caller::sys(&neuron).post("/_acc/accounts", json!({ "k": m, "v": { "active": false } })))?;
    for credentials in [&mine.credentials, &lily.credentials, &format!("{m}:ann#password")] {
        let answer = ask(&mine.url, credentials, "127.0.0.62", "/_data")?;
        assert_eq!(answer["v"], "unauthorized", "the parent is inactive: {credentials}: {answer}");
    }
    Ok(())
}

#[test]
fn no_spelling_of_a_path_leaves_its_place() -> Result<()> {
    let top = Account::new(&*shared()?)?;
    v(top.put("/_data/a", json!({ "k": "inside", "v": 1 })))?;
    let segments = |count: usize| "/a".repeat(count);
    let long = "a".repeat(256);
    let longest = format!("/{}", "a".repeat(250)).repeat(5);
    for path in [
        "/..",
        "/a/../../_acc/accounts",
        "/%2e%2e/_acc",
        "/a/%2E%2E/b",
        "/a%2f..%2fb",
        "/.",
        "/a/%2e",
        "/%c0%ae%c0%ae/a",
        "/%c0%af",
        "/%e0%80%af",
        "/%ed%a0%80",
        "/%ff",
        "/a%00",
        "/%00",
        "/a%0d%0aSet-Cookie:x=1",
        "/a%7f",
        "/a%c2%85",
        "/a%zz",
        "/a%",
        "/a%4",
        &segments(33),
        &format!("/{long}"),
        &longest,
    ] {
        for service in ["_data", "_ns", "_subs", "_auth", "_token"] {
            let method = if service == "_token" { "PUT" } else { "GET" };
            let answer = top.request(method, &format!("/{service}{path}")).send()?.json()?;
            assert_eq!(answer["v"], "bad_segment", "{service}{path}: {answer}");
        }
    }
    v(top.put(&format!("/_data{}", segments(32)), json!({ "k": "a", "v": 1 })))?;
    v(top.put(&format!("/_data/{}", "a".repeat(255)), json!({ "k": "a", "v": 1 })))?;
    for (path, expected) in [("/%252e%252e", "/%2e%2e"), ("/...", "/..."), ("/a;b", "/a;b")] {
        v(top.put(&format!("/_data{path}"), json!({ "k": "a", "v": 1 })))?;
        let paths = v(top.get("/_ds?a=paths&l=*data"))?;
        assert!(
            paths.as_array().is_some_and(|all| all.contains(&json!(expected))),
            "{path}: {paths}"
        );
    }
    for path in [
        "/../../etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/demo/../../etc/passwd",
        "/..%2f..%2fetc%2fpasswd",
    ] {
        let answer = top.request("GET", path).send()?;
        assert!(answer.status == 404 && !answer.body.contains("root:"), "{path}: {answer:?}");
    }
    Ok(())
}

#[test]
fn what_is_too_large_is_refused_and_the_neuron_lives_on() -> Result<()> {
    // Of its own: what it takes of memory is nobody else's doing.
    let neuron = Neuron::start()?;
    let top = Account::new(&neuron)?;
    let peak_before = neuron.peak_rss_kib()?;
    let long_header = format!("x-long: {}", "x".repeat(100_000));
    let answer = top.request("GET", "/_data").header(&long_header).send()?;
    assert!(matches!(answer.status, 400 | 431), "headers: {answer:?}");
    let many: Vec<String> = (0..200).map(|at| format!("x-{at}: 1")).collect();
    let request =
        many.iter().fold(top.request("GET", "/_data"), |request, header| request.header(header));
    assert!(matches!(request.send()?.status, 400 | 431), "the number of headers");
    let answer = top.request("GET", &format!("/_data/{}", "a".repeat(100_000))).send()?;
    assert!(matches!(answer.status, 400 | 414 | 431), "the URL: {answer:?}");
    let params: String = (0..300).map(|at| format!("p{at}=1&")).collect();
    assert_eq!(word(top.get(&format!("/_data?{params}")))?, "bad_request");

    let chunked = format!(
        "head -c {BODY_BYTES} /dev/zero | curl --silent --include --max-time 20 -u '{}' -X PUT -T - \
         -H 'Expect:' {}/_data/p",
        top.credentials, top.url
    );
    let output = Command::new("sh").args(["-c", &chunked]).output()?;
    let printed = String::from_utf8_lossy(&output.stdout);
    // Who goes on sending to a neuron that has hung up may lose what it said, and is told so.
    match output.status.code() {
        Some(0) => assert!(printed.contains(" 413 "), "chunks without end: {printed}"),
        Some(CURL_SEND_ERROR | CURL_RECV_ERROR) => {}
        code => bail!("curl ended with {code:?}: {output:?}"),
    }
    assert_eq!(v(top.get("/_data"))?, json!([]));
    let grown = neuron.peak_rss_kib()?.saturating_sub(peak_before);
    println!("RSS grew by {grown} KiB at most");
    assert!(grown < BODY_BYTES / 1024 / 2, "{grown} KiB");
    Ok(())
}

#[test]
fn a_client_that_dribbles_is_cut() -> Result<()> {
    let short = [("GANGLION_LIMITS__HEADER_TIME", "1s"), ("GANGLION_LIMITS__BODY_TIME", "1s")];
    let neuron = Neuron::start_with(&short, &[])?;
    let head = "PUT /_data/p HTTP/1.1\r\nhost: a\r\ncontent-length: 1000\r\n\r\n";
    for (what, start) in [
        ("headers", "GET /_data HTTP/1.1\r\nhost: a\r\nx-slow: "),
        ("a request line", "GET /_da"),
        ("a body", head),
    ] {
        let cut_after = dribble(&neuron, start).with_context(|| what.to_owned())?;
        println!("{what}: cut after {cut_after:?}");
    }
    Ok(())
}

#[test]
fn a_client_that_never_begins_is_cut() -> Result<()> {
    let neuron = Neuron::start_with(&[("GANGLION_LIMITS__HEADER_TIME", "1s")], &[])?;
    for start in ["", "P", "PRI * HTTP/2.0\r\n"] {
        let mut stream = TcpStream::connect(neuron.address("http")?)?;
        stream.set_read_timeout(Some(PATIENCE / 2))?;
        stream.write_all(start.as_bytes())?;
        let begun = Instant::now();
        let end = stream.read(&mut [0; 1024]);
        println!("{start:?} and silence: {end:?} after {:?}", begun.elapsed());
        let is_open = end.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock);
        assert!(!is_open, "still open after {:?} of silence: {start:?}", begun.elapsed());
    }
    Ok(())
}

/// Sends a start and then a byte at a time, until the neuron hangs up.
fn dribble(neuron: &Neuron, start: &str) -> Result<Duration> {
    let mut stream = TcpStream::connect(neuron.address("http")?)?;
    stream.set_read_timeout(Some(Duration::from_millis(100)))?;
    let begun = Instant::now();
    stream.write_all(start.as_bytes())?;
    let mut buffer = [0; 1024];
    while begun.elapsed() < PATIENCE {
        // An answer such as 408 may come before the end.
        match stream.read(&mut buffer) {
            Ok(0) => return Ok(begun.elapsed()),
            Err(error) if error.kind() != std::io::ErrorKind::WouldBlock => {
                return Ok(begun.elapsed());
            }
            Ok(_) | Err(_) => {}
        }
        if stream.write_all(b"x").is_err() {
            return Ok(begun.elapsed());
        }
    }
    bail!("still open after {PATIENCE:?}")
}

#[test]
fn thousands_of_half_open_sockets_do_not_keep_others_out() -> Result<()> {
    let neuron = Neuron::start()?;
    let top = Account::new(&neuron)?;
    v(top.put("/_data/p", json!({ "k": "a", "v": 1 })))?;
    let files = tests::os::raise_file_limit()?;
    let count = HALF_OPEN_MAX.min(files.saturating_sub(OTHER_FILES));
    ensure!(count >= HALF_OPEN_MIN, "this process may have {files} files: raise `ulimit -Hn`");
    let address: std::net::SocketAddr = neuron.address("http")?.parse()?;
    let begun = Instant::now();
    let mut open = Vec::new();
    for at in 0..count {
        let mut socket = TcpStream::connect_timeout(&address, PATIENCE)?;
        if at % 2 == 0 {
            socket.write_all(b"GET /_data HTTP/1.1\r\n")?;
        }
        open.push(socket);
    }
    println!("{count} half-open sockets in {:?}, RSS {} KiB", begun.elapsed(), neuron.rss_kib()?);
    let begun = Instant::now();
    let served = top.request("GET", "/_data/p?k=a").from_address("127.0.0.2").send()?;
    let took = begun.elapsed();
    println!("another client was served in {took:?}");
    assert_eq!(v(served.json())?, 1);
    assert!(took < SERVED_WITHIN, "{took:?}");
    drop(open);
    assert_eq!(v(top.get("/_data/p?k=a"))?, 1);
    Ok(())
}

#[test]
fn an_account_over_its_rate_is_refused_and_others_are_not() -> Result<()> {
    let rate = RATE.to_string();
    let neuron = Neuron::start_with(&[("GANGLION_LIMITS__REQUESTS_PER_ACCOUNT", &rate)], &[])?;
    let (loud, quiet) = (Account::new(&neuron)?, Account::new(&neuron)?);
    let [of_loud, of_quiet] =
        [&loud, &quiet].map(|account| [http::request("GET", "/_data", &account.credentials, "")]);
    let address = neuron.address("http")?;
    let mut calls = Connection::open_from(&address, "127.0.0.80")?;
    let mut flood = Flood::begin(&of_loud);
    flood.until_refused(&mut calls)?;
    assert_eq!(calls.ask(&of_quiet[0])?.status, 200, "somebody else from the same address");
    // The account has no more by calling from another place.
    flood.until_refused(&mut Connection::open_from(&address, "127.0.0.81")?)?;
    flood.check_metrics(&neuron)?;
    std::thread::sleep(Duration::from_secs(1));
    Flood::begin(&of_loud).until_refused(&mut calls)
}

#[test]
fn an_address_over_its_rate_is_refused_whoever_calls_from_it() -> Result<()> {
    let rate = RATE.to_string();
    let neuron = Neuron::start_with(&[("GANGLION_LIMITS__REQUESTS_PER_ADDRESS", &rate)], &[])?;
    let (one, other) = (Account::new(&neuron)?, Account::new(&neuron)?);
    let callers = [
        http::request("GET", "/_data", &one.credentials, ""),
        http::request("GET", "/_data", &other.credentials, ""),
        http::request("GET", "/_data", "", ""),
        http::request("GET", "/livez", "", ""),
    ];
    let address = neuron.address("http")?;
    let mut calls = Connection::open_from(&address, "127.0.0.82")?;
    let mut flood = Flood::begin(&callers);
    flood.until_refused(&mut calls)?;
    let elsewhere = Connection::open_from(&address, "127.0.0.83")?.ask(&callers[0])?;
    assert_eq!(elsewhere.status, 200, "the account itself is not over a rate");
    // The address has no more by calling on another connection.
    flood.until_refused(&mut Connection::open_from(&address, "127.0.0.82")?)?;
    flood.check_metrics(&neuron)?;
    std::thread::sleep(Duration::from_secs(1));
    Flood::begin(&callers).until_refused(&mut calls)
}

#[test]
fn a_rate_of_0_is_none() -> Result<()> {
    let none = ["GANGLION_LIMITS__REQUESTS_PER_ACCOUNT", "GANGLION_LIMITS__REQUESTS_PER_ADDRESS"]
        .map(|name| (name, "0"));
    let neuron = Neuron::start_with(&none, &[])?;
    let top = Account::new(&neuron)?;
    let request = http::request("GET", "/_data", &top.credentials, "");
    let mut calls = Connection::open(&neuron.address("http")?)?;
    for _ in 0..50 * RATE {
        assert_eq!(calls.ask(&request)?.status, 200);
    }
    let metrics = curl::run(&[&format!("http://{}/metrics", neuron.address("admin")?)])?;
    assert!(metrics.contains("\nganglion_http_over_rate_total 0\n"), "{metrics}");
    Ok(())
}

/// Requests in turn of whoever shares one rate.
struct Flood<'a> {
    requests: &'a [String],
    begun: Instant,
    allowed: u64,
    refused: u64,
}

impl Flood<'_> {
    fn begin(requests: &[String]) -> Flood<'_> {
        Flood { requests, begun: Instant::now(), allowed: 0, refused: 0 }
    }

    /// Asks until it is refused, which has to be in time: a second's worth is there at the
    /// beginning, and a request more comes with each part of a second since.
    fn until_refused(&mut self, connection: &mut Connection) -> Result<()> {
        let refused = loop {
            ensure!(self.begun.elapsed() < PATIENCE, "never refused, {} allowed", self.allowed);
            let at = (self.allowed % self.requests.len() as u64) as usize;
            let answer = connection.ask(&self.requests[at])?;
            if answer.status == 429 {
                break answer;
            }
            ensure!(answer.status == 200, "{answer:?}");
            self.allowed += 1;
        };
        self.refused += 1;
        let allowed = self.allowed;
        let most = RATE + (self.begun.elapsed().as_secs_f64() * RATE as f64) as u64 + 1;
        ensure!(
            (RATE..=most).contains(&allowed),
            "{allowed} allowed: at least {RATE}, at most {most}"
        );
        ensure!(refused.json()?["v"] == "too_many_requests", "{refused:?}");
        let wait: u64 = refused.header("retry-after").context("Retry-After")?.parse()?;
        ensure!((1..=60).contains(&wait), "{wait} s");
        Ok(())
    }

    /// What was refused is counted, and nothing else is.
    fn check_metrics(&self, neuron: &Neuron) -> Result<()> {
        let metrics = curl::run(&[&format!("http://{}/metrics", neuron.address("admin")?)])?;
        let counted = format!("\nganglion_http_over_rate_total {}\n", self.refused);
        ensure!(metrics.contains(&counted), "not {counted:?}: {metrics}");
        Ok(())
    }
}

#[test]
fn guessing_is_stopped_at_the_address_that_guesses_and_nowhere_else() -> Result<()> {
    let neuron = shared()?;
    let (victim, bystander) = (Account::new(&neuron)?, Account::new(&neuron)?);
    let guess = |at: u32| {
        let caller = victim.with(format!("{}:guess{at}", victim.name));
        caller.request("GET", "/_data").from_address("127.0.0.70").send()
    };
    let mut tried = 0;
    let blocked = loop {
        let answer = guess(tried)?;
        if answer.status == 429 {
            break answer;
        }
        assert_eq!(word(answer.json())?, "unauthorized");
        tried += 1;
        ensure!(tried < 100, "never stopped");
    };
    println!("stopped after {tried} guesses");
    let wait: u64 = blocked.header("retry-after").context("Retry-After")?.parse()?;
    assert!((1..=60).contains(&wait), "{wait} s");
    let from = |account: &Account, address: &str| {
        account.request("GET", "/_data").from_address(address).send().map(|answer| answer.status)
    };
    assert_eq!(from(&victim, "127.0.0.2")?, 200, "the account itself is not locked");
    assert_eq!(
        from(&victim, "127.0.0.70")?,
        429,
        "a right guess is not told, proven elsewhere or not"
    );
    assert_eq!(
        from(&bystander, "127.0.0.70")?,
        200,
        "a neighbour of the guesser is not locked out yet"
    );

    // A list of names with one password each is stopped by address.
    let stuffed = (0..200).find_map(|at| {
        let caller = victim.with(format!("name{at}:stolen"));
        let answer = caller.request("GET", "/_data").from_address("127.0.0.71").send();
        match answer {
            Ok(answer) if answer.status == 429 => Some(Ok(at)),
            Ok(_) => None,
            Err(error) => Some(Err(error)),
        }
    });
    println!("a list was stopped after {} names", stuffed.context("never stopped")??);
    assert_eq!(from(&bystander, "127.0.0.71")?, 429);
    assert_eq!(from(&bystander, "127.0.0.2")?, 200);
    Ok(())
}

/// A guess is counted before it is looked at.
#[test]
fn guesses_at_the_same_time_are_as_few_as_those_one_after_another() -> Result<()> {
    /// Failures of an address at an account, and how long until it may make another.
    const GUESSES_MAX: usize = 10;
    const ANOTHER_AFTER: Duration = Duration::from_secs(6);
    let neuron = shared()?;
    let victim = Account::new(&neuron)?;
    v(victim.put("/_acc/users/admins", json!({ "k": "ann", "v": { "password": "password" } })))?;
    let guess = |at: usize| {
        let caller = victim.with(format!("{}:ann#guess{at}", victim.name));
        caller.request("GET", "/_data").from_address("127.0.0.73").send()
    };
    let guess = &guess;
    let begun = Instant::now();
    let answers = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..40).map(|at| scope.spawn(move || guess(at))).collect();
        threads.into_iter().filter_map(|thread| thread.join().ok()).collect::<Result<Vec<_>>>()
    })?;
    let refilled = begun.elapsed().div_duration_f64(ANOTHER_AFTER) as usize;
    let mut looked_at = 0;
    for answer in &answers {
        match answer.status {
            429 => {}
            _ => {
                assert_eq!(word(answer.json())?, "unauthorized");
                looked_at += 1;
            }
        }
    }
    assert_eq!(answers.len(), 40);
    assert!((GUESSES_MAX..=GUESSES_MAX + refilled).contains(&looked_at), "{looked_at} looked at");
    Ok(())
}

/// Each needs 19 MiB, whichever thread makes it.
#[test]
fn slow_hashes_leave_no_memory_behind() -> Result<()> {
    const CALLERS: usize = 16;
    const CALLS: usize = 4;
    /// Two hashes' memory at a time, and what the connections take.
    const GROWN_MAX_KIB: u64 = 96 << 10;
    // Of its own: what it takes of memory is nobody else's doing.
    let neuron = Neuron::start()?;
    let top = Account::new(&neuron)?;
    let address = neuron.address("http")?;
    let before = neuron.rss_kib()?;
    let set = |caller: usize| -> Result<()> {
        let mut client = http::Client::connect(&address, &top.credentials)?;
        let admin = json!({ "k": format!("a{caller}"), "v": { "password": "password" } });
        for _ in 0..CALLS {
            let answer = client.call("PUT", "/_acc/users/admins", &admin.to_string())?;
            ensure!(matches!(answer.word(), "" | "overloaded" | "no_key"), "{answer:?}");
        }
        Ok(())
    };
    let set = &set;
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..CALLERS).map(|at| scope.spawn(move || set(at))).collect();
        threads.into_iter().try_for_each(|thread| thread.join().expect("no panic"))
    })?;
    let grown = neuron.rss_kib()?.saturating_sub(before);
    println!("RSS grew by {grown} KiB");
    ensure!(grown < GROWN_MAX_KIB, "{grown} KiB");
    Ok(())
}

#[test]
fn no_secret_is_in_the_log_the_store_or_an_answer() -> Result<()> {
    let mut neuron = Neuron::start_with(&[("GANGLION_LOG__LEVEL", "trace")], &[])?;
    let sys = Caller::sys(&neuron);
    let top = Account::new(&neuron)?;
    for caller in [&sys, &top.caller] {
        v(caller.put("/_conf", json!({ "k": "debug_log", "v": true })))?;
    }
    let details = json!({ "email": "lily@example.org", "password": "lily-password-1", "secret": "lily-secret-2" });
    v(top.put("/_acc/accounts", json!({ "k": "lily", "v": details })))?;
    v(top.post(
        "/_acc/accounts",
        json!({ "k": "lily", "v": { "password": "lily-password-3", "secret": "lily-secret-4" } }),
    ))?;
    let admin = json!({ "k": "ann", "v": { "password": "ann-password-5" } });
    let once = top.request("PUT", "/_acc/users/admins").header("idempotency-key: once");
    v(once.body(admin.to_string()).send()?.json())?;
    v(top
        .with(format!("{}:ann#ann-password-5", top.name))
        .put("/_data/p", json!({ "k": "a", "v": 1 })))?;
    v(top.with(format!("{}#lily:lily-secret-4", top.name)).get("/_data"))?;
    let wrong = top.with(format!("{}:wrong-secret-6", top.name));
    assert_eq!(word(wrong.get("/_data"))?, "unauthorized");
    let parts = format!("{}/_data?ident={}&secret={}", top.url, top.name, top.secret);
    v(Request::new("GET", parts).send()?.json())?;
    v(top.put("/_ns/room", json!({})))?;
    let [signed, kept] =
        ["/_token/room?k=bob", "/_token?k=bob&expire=0"].map(|path| v(top.put(path, json!({}))));
    let (signed, kept) = (signed?, kept?);
    let tokens = [signed.as_str().context("a token")?, kept.as_str().context("a token")?];
    for token in tokens {
        join(&neuron, token)?;
    }
    let broken = top
        .request("PUT", "/_acc/users/admins")
        .body(r#"{"k":"x","v":{"password":"broken-password-7"}"#);
    assert_eq!(word(broken.send()?.json())?, "bad_request");

    let mut secrets = vec![
        top.secret.as_str(),
        "lily-password-1",
        "lily-secret-2",
        "lily-password-3",
        "lily-secret-4",
        "ann-password-5",
        "wrong-secret-6",
        "broken-password-7",
    ];
    secrets.extend(tokens);
    let encoded = base64::engine::general_purpose::STANDARD.encode(&top.credentials);
    secrets.push(&encoded);

    let logged = |layer: &str| sys.get(&format!("/_ds/runtime/hosts/active?a=values&l={layer}"));
    until(|| v(logged("*logs:info")), |lines| *lines != json!([]))?;
    let mut shown = Vec::new();
    for caller in [&sys, &top.caller] {
        for layer in v(caller.get("/_ds"))?.as_array().context("layers")? {
            let layer = layer.as_str().unwrap_or_default();
            for path in
                v(caller.get(&format!("/_ds?a=paths&l={layer}")))?.as_array().context("paths")?
            {
                let path = path.as_str().unwrap_or_default().replace(' ', "%20");
                shown.push(caller.get(&format!("/_ds{path}?a=values&l={layer}"))?.to_string());
            }
        }
        for path in [
            "/_ds?a=changes&limit=1000",
            "/_acc/accounts?time_series=1",
            "/_acc/users/admins?time_series=1",
            "/_sess?as=values",
        ] {
            shown.push(v(caller.get(path))?.to_string());
        }
    }
    shown.push(
        Request::new("GET", format!("http://{}/metrics", neuron.address("admin")?)).send()?.body,
    );
    assert_eq!(neuron.stop()?, Some(0));
    let log = neuron.log()?;
    ensure!(log.contains("ready"), "{log}");
    let mut places = vec![("the log".to_owned(), log.into_bytes())];
    places.extend(shown.into_iter().map(|text| ("an answer".to_owned(), text.into_bytes())));
    for entry in std::fs::read_dir(neuron.data_dir())? {
        let file = entry?.path();
        // The control socket is no file to read.
        if file.is_file() {
            places.push((file.display().to_string(), std::fs::read(&file)?));
        }
    }
    for (place, bytes) in &places {
        for secret in &secrets {
            let is_there = bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
            assert!(!is_there, "{secret} is in {place}");
        }
        // `dev.json` is where a development neuron keeps it; the welcome and arguments show it too.
        if place.contains(".redb") || place == "an answer" {
            let sys = SYS_SECRET.as_bytes();
            assert!(
                !bytes.windows(sys.len()).any(|window| window == sys),
                "$sys's secret is in {place}"
            );
        }
    }
    Ok(())
}

#[test]
fn a_token_that_is_not_right_in_every_bit_opens_nothing() -> Result<()> {
    let (neuron, foreign) = (shared()?, Neuron::start()?);
    let top = Account::new(&neuron)?;
    v(top.put("/_ns/room", json!({})))?;
    let token = |caller: &Caller, query: &str| -> Result<String> {
        let token = v(caller.put(&format!("/_token{query}"), json!({})))?;
        Ok(token.as_str().context("a token")?.to_owned())
    };
    let right = token(&top, "/room?k=bob&expire=600")?;
    let kept = token(&top, "?k=bob&expire=0")?;
    let mut wrong = vec!["A".to_owned(), "t".to_owned(), format!("{right}A"), format!("t{right}")];
    for (of, at) in [
        (&right, 0),
        (&right, 3),
        (&right, 20),
        (&right, 30),
        (&right, 50),
        (&right, right.len() - 2),
        (&kept, 1),
        (&kept, 20),
    ] {
        let mut forged = of.clone().into_bytes();
        forged[at] = if forged[at] == b'B' { b'C' } else { b'B' };
        wrong.push(String::from_utf8(forged)?);
    }
    wrong.push(right[..right.len() - 4].to_owned());

    // The same account name at another cluster, whose keys are others.
    let details = json!({ "email": "namesake@example.org" });
    let made =
        v(Caller::sys(&foreign).put("/_acc/accounts", json!({ "k": top.name, "v": details })))?;
    let namesake = Caller::new(
        &foreign,
        format!("{}:{}", top.name, made["secret"].as_str().context("a secret")?),
    );
    wrong.push(token(&namesake, "?k=bob&expire=600")?);
    wrong.push(token(&namesake, "?k=bob&expire=0")?);

    let rose = top.sub("rose")?;
    let of_deleted = token(&rose, "?k=bob&expire=600")?;
    let short = v(top.put("/_token?k=bob&expire=1&as=values", json!({})))?;
    v(top.delete("/_acc/accounts?k=rose"))?;
    until(|| Ok(clock_s()), |now| short["expires_at"].as_u64().is_some_and(|end| *now >= end))?;
    top.sub("rose")?;
    wrong.push(of_deleted);
    wrong.push(short["token"].as_str().context("a token")?.to_owned());
    for token in wrong {
        let code = connect(&neuron, &token)?.close_code()?;
        assert_eq!(code, 4401, "{token}");
    }
    for (credentials, address) in
        [(format!("{}:{right}", top.name), "127.0.0.63"), (format!("bob:{right}"), "127.0.0.63")]
    {
        assert_eq!(ask(&top.url, &credentials, address, "/_data")?["v"], "unauthorized");
    }
    join(&neuron, &right)?;
    join(&neuron, &kept)?;
    Ok(())
}

fn clock_s() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

#[test]
fn keys_and_tokens_are_shown_to_nobody() -> Result<()> {
    let neuron = shared()?;
    let (sys, top) = (Caller::sys(&neuron), Account::new(&neuron)?);
    v(top.put("/_token?k=bob&expire=0", json!({})))?;
    v(top.delete("/_token?k=bob"))?;
    v(sys.put("/_token?k=bob&expire=0", json!({})))?;
    for caller in [&sys, &top.caller] {
        let layers = v(caller.get("/_ds"))?.to_string();
        for layer in ["*keys", "*token"] {
            assert!(!layers.contains(layer), "{layers}");
            for query in [
                "",
                "&a=paths",
                "&a=keys",
                "&a=values",
                "&k=1",
                "&k=1&as=datum",
                "&k=1&time_series=1",
            ] {
                for path in ["", "/token", "/tokens", "/revoked"] {
                    let target = format!("/_ds{path}?l={layer}{query}");
                    let answer = caller.get(&target)?;
                    assert_eq!(answer["v"], "bad_layer_prefix", "{target}: {answer}");
                }
            }
            let spelled = format!("/_ds/token?a=values&l=%2A{}", &layer[1..]);
            assert_eq!(word(caller.get(&spelled))?, "bad_layer_prefix");
        }
        let changes = v(caller.get("/_ds?a=changes&limit=1000"))?.to_string();
        for hidden in ["sealed", "not_before_ms", "*keys", "*token"] {
            assert!(!changes.contains(hidden), "{hidden} is in {changes}");
        }
    }
    for path in ["/_acc/accounts", "/_acc/users/admins", "/_ds?a=paths&l=*acc"] {
        assert_eq!(v(top.get(path))?, json!([]), "{path} of a new account is empty");
    }
    assert_eq!(word(top.get("/_acc/tokens"))?, "not_found");
    Ok(())
}
