//! The program as an operator meets it: starting, stopping, configuration, the client verbs.

use std::path::Path;
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;
use tests::curl;
use tests::neuron::{Neuron, program};
use tests::socket::Client;
use tests::wait::until;

use super::{Account, Caller, shared, v};

/// A version that nobody writes: a read that asks for it lasts five seconds.
const FUTURE: &str = "1000000-7fffffffffffff00000001";
/// Starts of which the quickest counts, since other tests run beside.
const STARTS: usize = 3;
/// What a release build may take, and what any other.
const READY_MS_MAX: [u128; 2] = [300, 5_000];
const IDLE_KIB_MAX: [u64; 2] = [40 << 10, 80 << 10];

/// Runs a verb, with nothing of this machine's configuration.
fn verb(home: &Path, arguments: &[&str], variables: &[(&str, &str)]) -> Result<Output> {
    Command::new(program()?)
        .args(arguments)
        .env("XDG_CONFIG_HOME", home)
        .env("XDG_STATE_HOME", home)
        .envs(variables.iter().copied())
        .current_dir(home)
        .output()
        .with_context(|| format!("running ganglion {arguments:?}"))
}

/// What a verb that succeeded printed.
fn printed(output: Output) -> Result<String> {
    ensure!(output.status.success(), "{output:?}");
    Ok(String::from_utf8(output.stdout)?)
}

/// What a verb that failed said.
fn complaint(output: Output) -> Result<String> {
    ensure!(output.status.code() == Some(1), "{output:?}");
    Ok(String::from_utf8(output.stderr)?)
}

/// A start that is to be refused; a neuron that started would run until it is stopped.
fn start_that_ends(arguments: &[&str]) -> Result<Output> {
    let mut command = Command::new("timeout");
    command.arg("30").arg(program()?).arg("serve").args(arguments);
    command.output().with_context(|| format!("running ganglion serve {arguments:?}"))
}

#[test]
fn the_two_commands_that_dev_prints_work_when_pasted() -> Result<()> {
    let log = shared()?.log()?;
    let commands: Vec<&str> =
        log.lines().map(str::trim).filter(|line| line.starts_with("curl ")).collect();
    assert_eq!(commands.len(), 2, "{log}");
    let mut answers = Vec::new();
    for command in commands {
        let output = Command::new("sh").args(["-c", command]).output()?;
        ensure!(output.status.success(), "{command}: {output:?}");
        answers.push(v(Ok(serde_json::from_slice(&output.stdout)?))?);
    }
    assert_eq!(answers[0]["greeting"], "hello");
    assert_eq!(answers[0], answers[1]);
    Ok(())
}

#[test]
fn the_ready_file_names_every_address_that_was_bound() -> Result<()> {
    let neuron = shared()?;
    for kind in ["http", "admin"] {
        let address: std::net::SocketAddr = neuron.address(kind)?.parse()?;
        assert!(address.port() != 0 && address.ip().is_loopback(), "{kind}: {address}");
        assert_eq!(curl::run(&[&format!("http://{address}/readyz")])?, "ok\n", "{kind}");
    }
    assert!(neuron.address("https").is_err(), "none was asked for");
    Ok(())
}

#[test]
fn a_stop_answers_what_is_under_way_writes_what_was_counted_and_keeps_the_data() -> Result<()> {
    let mut neuron = Neuron::start_with(&[("GANGLION_STATS__FLUSH", "1h")], &[])?;
    let top = Account::new(&neuron)?;
    let stored = v(top.put("/_data/p", json!({ "k": "a", "v": { "n": 1 } })))?;
    assert_eq!(v(top.get("/_stats/data/PUT?l=api:3"))?, json!([]), "not flushed yet");

    let lasting = top.clone();
    let under_way = std::thread::spawn(move || lasting.get(&format!("/_data/p?k=a&at={FUTURE}")));
    let metrics = format!("http://{}/metrics", neuron.address("admin")?);
    // The request for metrics is one of them.
    let requests = || {
        let text = curl::run(&[&metrics])?;
        let line =
            text.lines().find_map(|line| line.strip_prefix("ganglion_http_requests_under_way "));
        Ok(line.context("the gauge")?.parse::<u32>()?)
    };
    until(requests, |count| *count >= 2)?;
    assert_eq!(neuron.stop()?, Some(0));
    let answer = under_way.join().map_err(|_| anyhow::anyhow!("the thread panicked"))??;
    assert_eq!(answer["v"], "store_unavailable", "answered and not cut: {answer}");

    let mut neuron = neuron.restart()?;
    let top = Caller { url: neuron.url(), ..top.caller };
    assert_eq!(v(top.get("/_data/p?k=a"))?, stored);
    assert_eq!(v(top.get("/_stats/data/PUT?l=api:3"))?["count"], 1);

    let stored = v(top.put("/_data/p", json!({ "k": "a", "v": { "n": 2 } })))?;
    neuron.kill()?;
    let recovery = "was not stopped in order; its store was recovered";
    assert!(!neuron.log()?.contains(recovery), "it was, so far");
    let neuron = neuron.restart()?;
    assert_eq!(neuron.log()?.matches(recovery).count(), 1);
    let top = Caller { url: neuron.url(), ..top };
    assert_eq!(v(top.get("/_data/p?k=a"))?, stored, "what was answered survives SIGKILL");
    assert_eq!(v(top.get("/_data/p?k=a&time_series=1"))?.as_array().map(Vec::len), Some(2));
    Ok(())
}

#[test]
fn a_second_neuron_on_the_same_data_or_port_fails_and_says_so() -> Result<()> {
    let neuron = shared()?;
    let home = TempDir::new()?;
    let data_dir = neuron.data_dir().display().to_string();
    let on_data = verb(
        home.path(),
        &["serve", "--dev", "--listen", "127.0.0.1:0", "--data-dir", &data_dir],
        &[],
    )?;
    let said = complaint(on_data)?;
    assert!(said.contains("open in another process"), "{said}");

    let config = home.path().join("ganglion.toml");
    let taken = neuron.address("http")?;
    std::fs::write(
        &config,
        format!(
            "[neuron]\nsys_secret = \"s\"\n[listen]\nhttp = [\"{taken}\"]\nadmin = [\"127.0.0.1:0\"]\n"
        ),
    )?;
    let own = home.path().join("data").display().to_string();
    let config = config.display().to_string();
    let said =
        complaint(verb(home.path(), &["serve", "--config", &config, "--data-dir", &own], &[])?)?;
    assert!(said.contains(&taken) && said.to_lowercase().contains("in use"), "{said}");

    std::fs::write(
        &config,
        format!(
            "[neuron]\nsys_secret = \"s\"\n[listen]\nhttp = [\"127.0.0.1:0\"]\nadmin = [\"{taken}\"]\n"
        ),
    )?;
    let said =
        complaint(verb(home.path(), &["serve", "--config", &config, "--data-dir", &own], &[])?)?;
    assert!(said.contains("listen.admin") && said.contains(&taken), "{said}");

    std::fs::write(&config, "[listen]\nhttp = [\"127.0.0.1:0\"]\n")?;
    let said =
        complaint(verb(home.path(), &["serve", "--config", &config, "--data-dir", &own], &[])?)?;
    assert!(said.contains("sys_secret"), "outside --dev no secret is made up: {said}");
    Ok(())
}

#[test]
fn a_secret_that_credentials_could_not_carry_refuses_to_start() -> Result<()> {
    let home = TempDir::new()?;
    let (config, secret) = (home.path().join("ganglion.toml"), home.path().join("secret"));
    std::fs::write(
        &config,
        format!(
            "[neuron]\nsys_secret_file = {secret:?}\n[listen]\nhttp = [\"127.0.0.1:0\"]\n\
             admin = [\"127.0.0.1:0\"]\n"
        ),
    )?;
    let (config, data) =
        (config.display().to_string(), home.path().join("data").display().to_string());
    for (text, hint) in
        [("", "empty"), (" \n", "empty"), ("a#b", "hold `#`"), ("!a\n", "start with `!`")]
    {
        std::fs::write(&secret, text)?;
        let output = start_that_ends(&["--config", &config, "--data-dir", &data])?;
        let said = complaint(output).with_context(|| format!("{text:?}"))?;
        assert!(said.contains("`$sys`") && said.contains(hint), "{text:?}: {said}");
    }
    std::fs::remove_file(&secret)?;
    let serve = ["serve", "--config", &config, "--data-dir", &data];
    let said = complaint(verb(home.path(), &serve, &[])?)?;
    assert!(said.contains("sys_secret_file"), "{said}");
    Ok(())
}

#[test]
fn a_development_neuron_listens_on_loopback_whatever_is_configured() -> Result<()> {
    let everywhere = "[\"0.0.0.0:0\"]";
    let settings = [
        ("GANGLION_LISTEN__HTTP", everywhere),
        ("GANGLION_LISTEN__HTTPS", everywhere),
        ("GANGLION_TLS__SELF_SIGNED", "true"),
    ];
    let neuron = Neuron::start_with(&settings, &[])?;
    for kind in ["http", "https", "admin"] {
        let address: std::net::SocketAddr = neuron.address(kind)?.parse()?;
        assert!(address.ip().is_loopback(), "{kind}: {address}");
    }
    let home = TempDir::new()?;
    let said = complaint(verb(home.path(), &["serve", "--dev", "--listen", "0.0.0.0:0"], &[])?)?;
    assert!(said.contains("0.0.0.0"), "{said}");
    Ok(())
}

#[test]
fn what_a_neuron_keeps_is_its_owners_alone() -> Result<()> {
    use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
    let neuron = Neuron::start()?;
    let data_dir = neuron.data_dir();
    let mode = |path: &Path| -> Result<u32> {
        Ok(std::fs::symlink_metadata(path)?.permissions().mode() & 0o777)
    };
    assert_eq!(mode(&data_dir)?, 0o700);
    let mut kept = Vec::new();
    for entry in std::fs::read_dir(&data_dir)? {
        let entry = entry?;
        assert_eq!(mode(&entry.path())?, 0o600, "{}", entry.path().display());
        kept.push(entry.file_name().to_string_lossy().into_owned());
    }
    kept.sort();
    let files = ["cluster.key", "control.sock", "dev.json", "ganglion.redb", "ganglion.redb.log"];
    assert_eq!(kept, files);
    assert!(std::fs::symlink_metadata(data_dir.join("control.sock"))?.file_type().is_socket());
    Ok(())
}

fn names_in(folder: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// A start without the key made another one beside the store; a start without the store served an empty
/// one beside the old key.
#[test]
fn a_data_folder_that_has_lost_a_file_is_refused_and_left_as_it_is() -> Result<()> {
    let mut neuron = Neuron::start()?;
    let secret = neuron.account("elena")?;
    neuron.stop()?;
    let data_dir = neuron.data_dir();
    let away = TempDir::new()?;
    let refused = |lost: &[&str], says: &[&str]| -> Result<()> {
        for name in lost {
            std::fs::rename(data_dir.join(name), away.path().join(name))?;
        }
        let before = names_in(&data_dir)?;
        let shown = data_dir.display().to_string();
        let said = complaint(start_that_ends(&["--dev", "--data-dir", &shown])?)
            .with_context(|| format!("without {lost:?}"))?;
        for part in says {
            assert!(said.contains(part), "without {lost:?}: {said}");
        }
        assert_eq!(names_in(&data_dir)?, before, "without {lost:?}");
        for name in lost {
            std::fs::rename(away.path().join(name), data_dir.join(name))?;
        }
        Ok(())
    };
    let (store, log, key) = ("ganglion.redb", "ganglion.redb.log", "cluster.key");
    let place = |name: &str| data_dir.join(name).display().to_string();
    refused(&[key], &[&place(key), "missing", "where you keep it"])?;
    refused(&[store], &[&place(store), &place(log), &place(key), "missing", "empty store"])?;
    refused(&[store, key], &[&place(store), &place(log), "missing"])?;
    refused(&[store, log], &[&place(store), &place(key), "missing"])?;

    std::fs::rename(data_dir.join(key), away.path().join(key))?;
    std::fs::write(data_dir.join(key), "07".repeat(32))?;
    let said = complaint(start_that_ends(&["--dev", "--data-dir", &place("")])?)?;
    assert!(said.contains("another cluster key") && said.contains(&place(key)), "{said}");
    std::fs::rename(away.path().join(key), data_dir.join(key))?;

    // With all of it back, it is the neuron that it was.
    let neuron = neuron.restart()?;
    let kept = Caller { url: neuron.url(), credentials: format!("elena:{secret}") };
    assert_eq!(v(kept.get("/_data/p"))?, json!([]));
    Ok(())
}

/// The key gets its name after the store is there; a start may be cut off between any two steps.
#[test]
fn a_first_start_that_was_cut_off_is_gone_on_with() -> Result<()> {
    let mut neuron = Neuron::start()?;
    neuron.stop()?;
    let place = |name: &str| neuron.data_dir().join(name);
    std::fs::rename(place("cluster.key"), place("cluster.key.new"))?;
    let mut neuron = neuron.restart()?;
    neuron.stop()?;
    let place = |name: &str| neuron.data_dir().join(name);
    assert!(place("cluster.key").exists() && !place("cluster.key.new").exists());
    std::fs::rename(place("cluster.key"), place("cluster.key.new"))?;
    for name in ["ganglion.redb", "ganglion.redb.log"] {
        std::fs::remove_file(place(name))?;
    }
    let neuron = neuron.restart()?;
    neuron.account("elena")?;
    // `dev.json` of the store before is there, and its demo account is made again.
    let keys: Value = serde_json::from_slice(&std::fs::read(neuron.data_dir().join("dev.json"))?)?;
    let secret = keys["demo_secret"].as_str().context("the demo's secret")?;
    let demo = Caller { url: neuron.url(), credentials: format!("demo:{secret}") };
    assert_eq!(v(demo.get("/_data/p"))?, json!([]));
    Ok(())
}

#[test]
fn a_restore_that_fails_names_the_place_and_leaves_nothing() -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let neuron = shared()?;
    let home = TempDir::new()?;
    let place = |name: &str| home.path().join(name).display().to_string();
    let run = |arguments: &[&str]| verb(home.path(), arguments, &[]);
    let (copy, data, wrong) = (place("copy"), place("a/b"), place("wrong"));

    let said = complaint(run(&["restore", "--data-dir", &data, &copy])?)?;
    assert!(said.contains(&format!("reading {copy}")) && !said.contains("writing"), "{said}");
    std::fs::write(&wrong, "not a store")?;
    let said = complaint(run(&["restore", "--data-dir", &data, &wrong])?)?;
    assert!(said.contains(&wrong) && !said.contains("fsck"), "{said}");
    assert_eq!(names_in(home.path())?, ["wrong"], "the folder that was made is gone again");

    let of_neuron = neuron.data_dir().display().to_string();
    printed(run(&["backup", "--data-dir", &of_neuron, &copy])?)?;
    let said = complaint(run(&["backup", "--data-dir", &of_neuron, &copy])?)?;
    assert!(said.contains(&copy) && said.contains("already"), "{said}");
    let said = printed(run(&["restore", "--data-dir", &data, &copy])?)?;
    assert!(said.contains(&format!("{data}/cluster.key")), "{said}");
    assert_eq!(std::fs::metadata(&data)?.permissions().mode() & 0o777, 0o700);
    let said = complaint(run(&["restore", "--data-dir", &data, &copy])?)?;
    assert!(said.contains(&format!("{data}/ganglion.redb")) && said.contains("already"), "{said}");
    // The key of the copied store is elsewhere; none is made in its place.
    let said = complaint(start_that_ends(&["--dev", "--data-dir", &data])?)?;
    assert!(said.contains(&format!("{data}/cluster.key")), "{said}");
    assert!(!Path::new(&data).join("cluster.key").exists());

    std::fs::write(Path::new(&data).join("ganglion.redb"), "not a store")?;
    let said = complaint(run(&["fsck", "--data-dir", &data])?)?;
    assert!(said.contains("ganglion.redb") && !said.contains("`ganglion fsck"), "{said}");
    std::fs::write(place("real.toml"), format!("[store]\ndata_dir = {of_neuron:?}\n"))?;
    printed(run(&["backup", "--config", &place("real.toml"), &place("second")])?)?;
    assert!(
        complaint(run(&["fsck", "--config", &place("real.toml")])?)?.contains("another process")
    );
    let said = complaint(run(&["fsck", "--data-dir", &place("none")])?)?;
    assert_eq!(said.matches("No such file").count(), 1, "{said}");
    Ok(())
}

#[test]
fn the_configuration_is_checked_explained_and_printed() -> Result<()> {
    let home = TempDir::new()?;
    let home = home.path();
    let config = |arguments: &[&str], variables: &[(&str, &str)]| {
        verb(home, &[&["config"], arguments].concat(), variables)
    };
    assert!(printed(config(&["check"], &[])?)?.contains("no file; defaults"));
    // Without a file it is a development neuron that is explained.
    let said = printed(config(&["explain", "listen.http"], &[])?)?;
    assert!(said.contains("here:    [\"127.0.0.1:4006\"]"), "{said}");
    assert!(printed(verb(home, &["help"], &[])?)?.starts_with("A whole real-time communications"));
    let settings = printed(config(&["settings"], &[])?)?;
    let committed = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference/settings.md");
    if std::env::var_os("GANGLION_BLESS").is_some() {
        std::fs::write(&committed, &settings)?;
    }
    assert_eq!(std::fs::read_to_string(committed)?, settings, "run this with GANGLION_BLESS=1");
    let reference = printed(config(&["reference"], &[])?)?;
    for key in ["flush = \"15s\"", "header_time = \"10s\"", "[store]", "data_dir = "] {
        assert!(reference.contains(key), "{key} is not in the reference");
    }
    let file = home.join("ganglion.toml");
    std::fs::write(&file, &reference)?;
    let said = complaint(config(&["check"], &[])?)?;
    assert!(said.contains("neuron.sys_secret_file"), "all that the reference lacks: {said}");
    let secret = ("GANGLION_NEURON__SYS_SECRET", "s");
    assert!(printed(config(&["check"], &[secret])?)?.contains("ganglion.toml"));

    let explained =
        printed(config(&["explain", "stats.flush"], &[("GANGLION_STATS__FLUSH", "3s")])?)?;
    for part in ["default: \"15s\"", "here:    \"3s\"", "GANGLION_STATS__FLUSH"] {
        assert!(explained.contains(part), "{part}: {explained}");
    }
    let data_dir =
        |folder: &Path| format!("[neuron]\nsys_secret = \"s\"\n[store]\ndata_dir = {folder:?}");
    std::fs::write(home.join("taken"), "")?;
    for (text, hint) in [
        (data_dir(&home.join("taken")), "taken is not a folder"),
        (data_dir(&home.join("taken/data")), "taken is not a folder"),
        ("[neuron]\nsys_secret = \"s\"\nsys_secret_file = \"/s\"".to_owned(), "both"),
        ("[listen]\nadmin = [\"127.0.0.1:9\", \"127.0.0.1:9\"]".to_owned(), "are the same"),
    ] {
        std::fs::write(&file, &text)?;
        let said = complaint(config(&["check"], &[])?)?;
        assert!(said.contains(hint), "{text:?}: {said:?} does not say {hint:?}");
    }
    for (text, hint) in [
        ("[stats]\nflsh = \"1s\"", "`stats.flush`"),
        ("[stat]\nflush = \"1s\"", "`stats`"),
        ("[stats]\nflush = \"soon\"", "soon"),
        ("[stats]\nflush = 1", "flush"),
        ("[limits]\nbody = \"huge\"", "huge"),
        ("[stats", "not TOML"),
        ("[neuron]\nsys_secret_file = \"/nope\"", "neuron.sys_secret_file /nope"),
        ("[neuron]\nsys_secret = \"s\"\n[tls]\ncert = \"/nope\"", "tls.cert"),
        ("[neuron]\nsys_secret = \"s\"\n[tls]\nkey = \"/nope\"", "tls.key"),
        (
            "[neuron]\nsys_secret = \"s\"\n[store]\ncluster_key_file = \"/nope\"",
            "the cluster key /nope",
        ),
        ("[log]\nlevel = \"nonsense===\"", "log.level"),
        ("[neuron]\nsys_secret = 123", "neuron.sys_secret: expected a text"),
        ("[limits]\nshare = \"a\"", "limits.share: expected a number"),
        ("[log]\nformat = \"xml\"", "xml"),
        ("[listen]\nhttps = [\"127.0.0.1:0\"]", "tls.cert"),
    ] {
        std::fs::write(&file, text)?;
        let said = complaint(config(&["check"], &[])?)?;
        assert!(said.contains(hint), "{text:?}: {said:?} does not say {hint:?}");
    }
    std::fs::remove_file(&file)?;
    let said = complaint(config(&["check"], &[("GANGLION_STATS__FLSH", "1s")])?)?;
    assert!(said.contains("`stats.flsh`") && said.contains("`stats.flush`"), "{said}");
    let said = complaint(config(&["check"], &[("GANGLION_STATS_FLUSH", "1s")])?)?;
    assert!(said.contains("GANGLION_STATS__FLUSH"), "{said}");
    let said = printed(config(&["explain", "stats"], &[])?)?;
    assert!(said.contains("stats.flush = \"15s\""), "{said}");
    let said = complaint(config(&["explain", "limits.bodi"], &[])?)?;
    assert!(said.contains("`limits.body`"), "{said}");
    assert!(complaint(config(&["check", "--config", "none.toml"], &[])?)?.contains("none.toml"));
    Ok(())
}

/// A certificate for localhost and its key, made by openssl, valid for so many days from `from`.
fn make_pair(folder: &Path, from: Option<&str>, days: &str) -> Result<()> {
    let mut command = Command::new(if from.is_some() { "faketime" } else { "openssl" });
    command.args(from).args(from.map(|_| "openssl"));
    let made = command
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"])
        .args(["-subj", "/CN=localhost", "-days", days, "-keyout", "key.pem", "-out", "cert.pem"])
        .current_dir(folder)
        .output()?;
    ensure!(made.status.success(), "{made:?}");
    Ok(())
}

#[test]
fn an_expired_certificate_and_open_secrets_are_warned_of() -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let home = TempDir::new()?;
    let place = |name: &str| home.path().join(name).display().to_string();
    make_pair(home.path(), Some("2020-01-01 12:00:00"), "1")?;
    std::fs::create_dir(place("data"))?;
    let made_private = |name: &str, mode: u32| {
        std::fs::set_permissions(place(name), std::fs::Permissions::from_mode(mode))
    };
    std::fs::write(place("secret"), "s")?;
    std::fs::write(
        place("ganglion.toml"),
        format!(
            "[neuron]\nsys_secret_file = {:?}\n[store]\ndata_dir = {:?}\n[listen]\n\
             http = [\"127.0.0.1:0\"]\nhttps = [\"127.0.0.1:0\"]\nadmin = [\"127.0.0.1:0\"]\n\
             [tls]\ncert = {:?}\nkey = {:?}\n",
            place("secret"),
            place("data"),
            place("cert.pem"),
            place("key.pem"),
        ),
    )?;
    let check = || {
        let output = verb(home.path(), &["config", "check"], &[])?;
        ensure!(output.status.success(), "{output:?}");
        Ok(String::from_utf8(output.stderr)?)
    };
    for mode in [0o644, 0o640] {
        for name in ["secret", "key.pem"] {
            made_private(name, mode)?;
        }
        made_private("data", mode | 0o111)?;
        let said = check()?;
        assert!(said.contains("has expired on 2020-01-02 12:00:0"), "{said}");
        for name in ["secret", "key.pem", "data"] {
            // Of a folder, others may enter it in both rounds.
            let is_open = mode == 0o644 || name == "data";
            let advice = format!(" {}", place(name));
            assert_eq!(said.lines().any(|line| line.ends_with(&advice)), is_open, "{name}: {said}");
        }
    }
    made_private("data", 0o700)?;
    make_pair(home.path(), None, "1")?;
    assert_eq!(check()?, "");
    Ok(())
}

#[test]
fn what_is_wrong_with_a_certificate_is_told_once_and_a_hangup_looks_at_once() -> Result<()> {
    let home = TempDir::new()?;
    make_pair(home.path(), None, "1")?;
    let (cert, key) = (home.path().join("cert.pem"), home.path().join("key.pem"));
    let right = std::fs::read(&cert)?;
    let (shown_cert, shown_key) = (cert.display().to_string(), key.display().to_string());
    let settings = [
        ("GANGLION_LISTEN__HTTPS", "[\"127.0.0.1:0\"]"),
        ("GANGLION_TLS__CERT", &*shown_cert),
        ("GANGLION_TLS__KEY", &*shown_key),
    ];
    let neuron = Neuron::start_with(&settings, &[])?;
    let log_has = |text: &str, count: usize| {
        until(|| neuron.log(), |log| log.matches(text).count() >= count)?;
        assert_eq!(neuron.log()?.matches(text).count(), count, "{text}");
        anyhow::Ok(())
    };
    assert!(neuron.metric("tls_certificate_end_seconds")? > 1_700_000_000);
    std::fs::write(&cert, "garbage")?;
    let wrong = format!("there is no PEM certificate in {shown_cert}");
    log_has(&wrong, 1)?;
    // Two looks later it is still told once.
    std::thread::sleep(std::time::Duration::from_secs(5));
    log_has(&wrong, 1)?;
    assert_eq!(neuron.metric("tls_reload_failures_total")?, 1);
    let other = TempDir::new()?;
    make_pair(other.path(), None, "1")?;
    std::fs::copy(other.path().join("cert.pem"), &cert)?;
    log_has("do not fit", 1)?;
    std::fs::write(&cert, right)?;
    log_has("the TLS certificate was read again", 1)?;
    assert_eq!(neuron.metric("tls_reload_failures_total")?, 2);

    let hangup = Command::new("kill").args(["-HUP", &neuron.pid().to_string()]).status()?;
    ensure!(hangup.success());
    log_has("the TLS certificate was read again", 2)?;
    log_has("SIGHUP", 1)?;
    Ok(())
}

#[test]
fn a_drain_that_begins_succeeds_and_is_logged() -> Result<()> {
    let mut neuron = Neuron::start()?;
    let top = Account::new(&neuron)?;
    let token = v(top.put("/_token?k=bob&expire=600", json!({})))?;
    let token = token.as_str().context("a token")?;
    let mut socket = Client::connect(&format!("ws://{}/ws/v2/{token}", neuron.address("http")?))?;
    socket.frame()?;
    let drain = format!("http://{}/drainz", neuron.address("admin")?);
    for _ in 0..2 {
        // A status from 400 on fails with `-f`.
        assert_eq!(curl::run(&["-f", "-X", "POST", &drain])?, "ok\n1 sockets\n");
    }
    assert_eq!(curl::run(&["-o", "/dev/null", "-w", "%{http_code}", &drain])?, "503");
    assert_eq!(curl::run(&["-f", "-X", "DELETE", &drain])?, "ok\n");
    let log = neuron.log()?;
    for part in ["draining: new sockets", "back in service", "ready", "admin=[127.0.0.1:"] {
        assert_eq!(log.matches(part).count(), 1 + usize::from(part == "ready"), "{part}: {log}");
    }
    assert_eq!(neuron.stop()?, Some(0));
    assert!(!neuron.data_dir().join("control.sock").exists());
    Ok(())
}

#[test]
fn metrics_say_what_prometheus_looks_for() -> Result<()> {
    let neuron = shared()?;
    let url = format!("http://{}/metrics", neuron.address("admin")?);
    let text = curl::run(&["-i", &url])?;
    assert!(text.contains("content-type: text/plain; version=0.0.4; charset=utf-8\r\n"), "{text}");
    let value = |start: &str| -> Result<f64> {
        let value = text.lines().find_map(|line| line.strip_prefix(start));
        Ok(value.with_context(|| format!("{start}: {text}"))?.trim().parse()?)
    };
    assert_eq!(value("ganglion_build_info{version=\"0.1.0\"} ")?, 1.0);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs_f64();
    let age = now - value("process_start_time_seconds ")?;
    assert!((-1.0..3600.0).contains(&age), "{age}");
    let resident = value("process_resident_memory_bytes ")?;
    assert!((1e6..1e9).contains(&resident), "{resident}");
    Ok(())
}

#[test]
fn a_development_neuron_says_that_its_port_was_taken() -> Result<()> {
    let taken = shared()?.address("http")?;
    let neuron = Neuron::start_with(&[], &["--listen", &taken])?;
    let log = neuron.log()?;
    assert!(log.contains(&format!("{taken} is taken by another program")), "{log}");
    let hangup = Command::new("kill").args(["-HUP", &neuron.pid().to_string()]).status()?;
    ensure!(hangup.success());
    until(|| neuron.log(), |log| log.contains("SIGHUP: there is no certificate"))?;
    Ok(())
}

#[test]
fn a_store_of_a_real_neuron_is_not_shown_by_a_development_one() -> Result<()> {
    let mut neuron = Neuron::start()?;
    neuron.stop()?;
    std::fs::remove_file(neuron.data_dir().join("dev.json"))?;
    let data_dir = neuron.data_dir().display().to_string();
    let said = complaint(start_that_ends(&["--dev", "--data-dir", &data_dir])?)?;
    assert!(said.contains("was not made by `serve --dev`"), "{said}");
    assert!(!neuron.data_dir().join("dev.json").exists());
    Ok(())
}

/// The lines of the README are pasted, but for where files go, and up to the start.
#[test]
fn what_the_readme_says_to_paste_makes_a_right_configuration() -> Result<()> {
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md");
    let readme = std::fs::read_to_string(readme)?;
    let (_, section) = readme.split_once("## Run it for real").context("the section")?;
    let block = section.split("```").nth(1).context("its lines")?;
    let home = TempDir::new()?;
    let is_elsewhere =
        |line: &&str| line.starts_with("install ") || line.contains("ganglion serve");
    assert_eq!(block.lines().filter(is_elsewhere).count(), 2, "{block}");
    let kept: Vec<&str> = block.lines().filter(|line| !is_elsewhere(line)).collect();
    let etc = home.path().join("etc/ganglion").display().to_string();
    let script = format!(
        "ganglion() {{ \"$PROGRAM\" \"$@\"; }}\n{}",
        kept.join("\n").replace("/etc/ganglion", &etc)
    );
    let mut pasted = Command::new("sh");
    pasted.args(["-e", "-c", &script]).env("PROGRAM", program()?).current_dir(home.path());
    // Not everybody who tests may write in /var/lib.
    pasted.env("GANGLION_STORE__DATA_DIR", home.path().join("data"));
    let said = printed(pasted.output()?)?;
    assert_eq!(said, format!("right: {etc}/ganglion.toml\n"));
    Ok(())
}

#[test]
fn the_client_verbs_ask_with_contexts() -> Result<()> {
    let neuron = shared()?;
    let (top, other) = (Account::new(&neuron)?, Account::new(&neuron)?);
    let home = TempDir::new()?;
    let run = |arguments: &[&str]| verb(home.path(), arguments, &[]);
    let value = |arguments: &[&str]| -> Result<Value> {
        v(Ok(serde_json::from_str(&printed(run(arguments)?)?)?))
    };
    assert!(complaint(run(&["get", "/_data"])?)?.contains("context add"), "says what to do");
    assert!(complaint(run(&["get", "/_ds", "--url", &top.url])?)?.contains("only --user"));
    assert!(complaint(run(&["get", "/_ds", "--user", "a:b"])?)?.contains("only --url"));
    for (name, account) in [("mine", &top), ("other", &other)] {
        printed(run(&[
            "context",
            "add",
            name,
            "--url",
            &top.url,
            "--user",
            &account.credentials,
        ])?)?;
    }
    printed(run(&["context", "use", "mine"])?)?;
    let listed = printed(run(&["context", "list"])?)?;
    assert!(listed.contains("* mine") && listed.contains("  other"), "{listed}");
    assert!(!listed.contains(&top.secret), "a list shows no secrets: {listed}");
    let file = home.path().join("ganglion/contexts.toml");
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&file)?.permissions());
    assert_eq!(mode & 0o777, 0o600, "{}", file.display());

    let put = value(&["put", "/_data/my path", r#"{"k":"a","v":{"n":1}}"#])?;
    assert_eq!(value(&["get", "/_data/my path?k=a"])?, put);
    assert_eq!(value(&["post", "/_data/my path", r#"{"k":"b","v":2}"#])?, 2);
    assert_eq!(value(&["get", "_data/my path"])?, json!(["a", "b"]));
    assert_eq!(value(&["get", "/_data/my path", "--context", "other"])?, json!([]));
    assert_eq!(value(&["get", "/_data/my path", "--user", &other.credentials])?, json!([]));
    assert_eq!(value(&["delete", "/_data/my path?k=a"])?, 1);
    assert!(complaint(run(&["get", "/_data/my path?k=a"])?)?.contains("not_found"));
    value(&["put", "/_ns/room", "{}"])?;
    for arguments in [&["token", "/room", "--k", "bob", "--expire", "600"][..], &["token"]] {
        assert!(value(arguments)?.as_str().is_some_and(|token| token.len() > 40), "{arguments:?}");
    }

    // A body and credentials that `ps` does not show.
    let file = home.path().join("body.json");
    std::fs::write(&file, r#"{"k":"c","v":3}"#)?;
    let named = format!("@{}", file.display());
    assert_eq!(value(&["put", "/_data/of a file", &named])?, 3);
    assert!(complaint(run(&["put", "/_data/p", "@none"])?)?.contains("reading none"));
    let piped = Command::new("sh")
        .args(["-c", r#"echo '{"k":"d","v":4}' | "$PROGRAM" put '/_data/of a pipe' -"#])
        .env("PROGRAM", program()?)
        .env("XDG_CONFIG_HOME", home.path())
        .output()?;
    assert!(printed(piped)?.contains("\"v\": 4"));
    let mine = [("GANGLION_URL", &*top.url), ("GANGLION_USER", &*other.credentials)];
    let of = |arguments: &[&str]| -> Result<Value> {
        v(Ok(serde_json::from_str(&printed(verb(home.path(), arguments, &mine)?)?)?))
    };
    assert_eq!(
        of(&["get", "/_data/of a file"])?,
        json!([]),
        "the variables over the current context"
    );
    assert_eq!(of(&["get", "/_data/of a file", "--context", "mine"])?, json!(["c"]));
    for (url, user, hint) in [
        ("rtc.example.org", "a:b", "not an address"),
        ("ftp://a", "a:b", "not an address"),
        (&*top.url, "elena", "a colon"),
    ] {
        let add = ["context", "add", "wrong", "--url", url, "--user", user];
        let said = complaint(run(&add)?)?;
        assert!(said.contains(hint), "{url} {user}: {said}");
    }
    assert!(!printed(run(&["context", "list"])?)?.contains("wrong"));

    let said = complaint(run(&["get", "nope"])?)?;
    assert!(said.contains("404") && !said.contains("at line"), "{said}");
    let said = complaint(run(&["get", "/_ds", "--url", "ftp://a.example"])?)?;
    assert!(said.contains("not an address such as http://"), "{said}");
    printed(run(&["context", "remove", "other"])?)?;
    assert!(complaint(run(&["context", "use", "other"])?)?.contains("`other`"));
    assert!(complaint(run(&["get", "/_data", "--context", "other"])?)?.contains("`other`"));
    let nowhere = ["get", "/_data", "--url", "http://127.0.0.1:1", "--user", "a:b"];
    assert!(complaint(run(&nowhere)?)?.contains("127.0.0.1:1"));
    Ok(())
}

#[test]
fn a_start_is_quick_and_an_idle_neuron_is_small() -> Result<()> {
    let mut neuron = Neuron::start()?;
    let mut quickest = neuron.ready_after;
    for _ in 1..STARTS {
        neuron.stop()?;
        neuron = neuron.restart()?;
        quickest = quickest.min(neuron.ready_after);
    }
    let rss_kib = neuron.rss_kib()?;
    println!("start to ready {} ms, idle RSS {rss_kib} KiB", quickest.as_millis());
    let is_release = program()?.components().any(|part| part.as_os_str() == "release");
    let at = usize::from(!is_release);
    assert!(quickest.as_millis() < READY_MS_MAX[at], "{quickest:?}");
    assert!(rss_kib < IDLE_KIB_MAX[at], "{rss_kib} KiB");
    Ok(())
}
