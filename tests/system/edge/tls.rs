//! TLS: certificates of files that are replaced, one for development, sockets, and the client verbs.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result, bail};
use tests::curl;
use tests::neuron::{Neuron, SYS_SECRET, program};
use tests::socket::Client;
use tests::wait::until;

/// A certificate for localhost that openssl made, and its key.
pub(super) struct Certificate {
    folder: tempfile::TempDir,
}

impl Certificate {
    pub(super) fn make(name: &str) -> Result<Certificate> {
        Certificate::with(name, "IP:127.0.0.1", "CA:FALSE")
    }

    /// For localhost and one address more.
    fn with(name: &str, address: &str, constraints: &str) -> Result<Certificate> {
        let certificate = Certificate { folder: tempfile::TempDir::new()? };
        let status = Command::new("openssl")
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"])
            .args(["-nodes", "-days", "2", "-subj", &format!("/CN={name}")])
            .args(["-addext", &format!("subjectAltName=DNS:localhost,{address}")])
            .args(["-addext", &format!("basicConstraints=critical,{constraints}")])
            .arg("-keyout")
            .arg(certificate.key())
            .arg("-out")
            .arg(certificate.chain())
            .stderr(Stdio::null())
            .status()?;
        if !status.success() {
            bail!("openssl req ended with {status}");
        }
        Ok(certificate)
    }

    pub(super) fn chain(&self) -> PathBuf {
        self.folder.path().join("cert.pem")
    }

    fn key(&self) -> PathBuf {
        self.folder.path().join("key.pem")
    }

    fn copy_over(&self, other: &Certificate) -> Result<()> {
        std::fs::copy(self.key(), other.key())?;
        std::fs::copy(self.chain(), other.chain())?;
        Ok(())
    }
}

pub(super) fn tls_neuron(certificate: &Certificate, settings: &[(&str, &str)]) -> Result<Neuron> {
    let (chain, key) = (certificate.chain(), certificate.key());
    let (chain, key) = (chain.display().to_string(), key.display().to_string());
    let tls = [
        ("GANGLION_LISTEN__HTTPS", "[\"127.0.0.1:0\"]"),
        ("GANGLION_TLS__CERT", &chain),
        ("GANGLION_TLS__KEY", &key),
    ];
    Neuron::start_with(&[&tls, settings].concat(), &[])
}

/// The subject of the certificate that a new connection is shown.
fn subject(address: &str) -> Result<String> {
    let shown = Command::new("openssl")
        .args(["s_client", "-connect", address])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()?;
    let text = String::from_utf8_lossy(&shown.stdout).into_owned();
    let line = text.lines().find_map(|line| line.strip_prefix("subject="));
    Ok(line.with_context(|| format!("no subject in {text}"))?.trim().to_owned())
}

/// A TLS connection that stays open, made by openssl.
struct Open {
    child: Child,
    write: ChildStdin,
    read: BufReader<ChildStdout>,
}

impl Open {
    fn connect(address: &str) -> Result<Open> {
        let mut child = Command::new("openssl")
            .args(["s_client", "-quiet", "-ign_eof", "-alpn", "http/1.1", "-connect", address])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let write = child.stdin.take().context("stdin")?;
        let read = BufReader::new(child.stdout.take().context("stdout")?);
        Ok(Open { child, write, read })
    }

    /// Asks for the front page; answers the status line.
    fn ask(&mut self) -> Result<String> {
        self.write.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n")?;
        let mut status = String::new();
        self.read.read_line(&mut status)?;
        let mut length = 0;
        loop {
            let mut line = String::new();
            self.read.read_line(&mut line)?;
            if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse()?;
            }
            if line.trim().is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        self.read.read_exact(&mut body)?;
        Ok(status.trim().to_owned())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_certificate_is_replaced_without_dropping_a_connection() -> Result<()> {
    let certificate = Certificate::make("before")?;
    let neuron = tls_neuron(&certificate, &[])?;
    let address = neuron.address("https")?;
    let chain = certificate.chain();
    let ca = chain.to_str().context("a path")?;
    let front =
        curl::run(&["--cacert", ca, "-w", "\n%{http_version}", &format!("https://{address}/")])?;
    assert!(front.ends_with("\n2"), "TLS agrees on HTTP/2: {front}");

    let mut open = Open::connect(&address)?;
    assert_eq!(open.ask()?, "HTTP/1.1 200 OK");
    assert!(subject(&address)?.contains("before"));
    Certificate::make("after")?.copy_over(&certificate)?;
    until(|| subject(&address), |subject| subject.contains("after"))?;
    assert_eq!(open.ask()?, "HTTP/1.1 200 OK", "the connection of before goes on");

    // Half a pair leaves what there is.
    std::fs::write(certificate.key(), "not a key")?;
    until(|| neuron.log(), |log| log.contains("cannot be read"))?;
    assert!(subject(&address)?.contains("after"));
    Ok(())
}

#[test]
fn a_development_certificate_needs_no_files() -> Result<()> {
    let neuron = Neuron::start_with(
        &[("GANGLION_LISTEN__HTTPS", "[\"127.0.0.1:0\"]"), ("GANGLION_TLS__SELF_SIGNED", "true")],
        &[],
    )?;
    let url = format!("https://{}", neuron.address("https")?);
    let credentials = format!("$sys:{SYS_SECRET}");
    let host = curl::run(&["-k", "-u", &credentials, &format!("{url}/_host/best/signal")])?;
    assert!(host.contains("\"wss://"), "{host}");
    Ok(())
}

/// The first frame of a WebSocket is not the beginning of a request's head.
#[test]
fn a_socket_outlives_the_time_for_a_requests_head() -> Result<()> {
    const HEADER_TIME: Duration = Duration::from_secs(1);
    let certificate = Certificate::make("localhost")?;
    let neuron = tls_neuron(&certificate, &[("GANGLION_LIMITS__HEADER_TIME", "1s")])?;
    let credentials = format!("elena:{}", neuron.account("elena")?);
    let token = curl::json("PUT", &neuron.url(), "/_token?k=ann", &credentials, None)?;
    let token = token["v"].as_str().context("a token")?;
    let plain = format!("ws://{}/ws/v2/{token}", neuron.address("http")?);
    let port = neuron.address("https")?.rsplit(':').next().unwrap_or_default().to_owned();
    let secure = format!("wss://localhost:{port}/ws/v2/{token}");
    let mut clients =
        [Client::connect(&plain)?, Client::connect_tls(&secure, &certificate.chain())?];
    for client in &mut clients {
        client.frame()?;
    }
    let begun = Instant::now();
    while begun.elapsed() < HEADER_TIME * 2 {
        for client in &mut clients {
            client.hears_nothing()?;
        }
        std::thread::sleep(HEADER_TIME / 4);
    }
    for client in clients {
        client.leave()?;
    }
    Ok(())
}

/// Runs a client verb in a folder; answers what it printed, or what it complained of.
fn verb(folder: &Path, arguments: &[&str], variables: &[(&str, &Path)]) -> Result<String, String> {
    let output = Command::new(program().expect("it is built"))
        .args(arguments)
        .env("XDG_CONFIG_HOME", folder)
        .envs(variables.iter().copied())
        .current_dir(folder)
        .output()
        .expect("it runs");
    let text = |bytes| String::from_utf8(bytes).expect("text");
    if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
}

#[test]
fn the_client_verbs_speak_https_with_whom_they_trust() -> Result<()> {
    let (certificate, another) = (Certificate::make("one")?, Certificate::make("another")?);
    let neuron = tls_neuron(&certificate, &[])?;
    let url = format!("https://{}", neuron.address("https")?);
    let credentials = format!("elena:{}", neuron.account("elena")?);
    let folder = tempfile::TempDir::new()?;
    let folder = folder.path();
    let ask = |arguments: &[&str], variables: &[(&str, &Path)]| {
        let place = ["--url", &url, "--user", &credentials];
        verb(folder, &[arguments, &place].concat(), variables)
    };
    let chain = certificate.chain();
    let ca = chain.to_str().context("a path")?;
    let put = ["put", "/_data/p", r#"{"k":"a","v":{"n":1}}"#];

    let nobody = ask(&put, &[]).expect_err("nobody here trusts it");
    assert!(nobody.contains(&url) && nobody.contains("--ca"), "{nobody}");
    let other = another.chain().display().to_string();
    let wrong = ask(&[&put[..], &["--ca", &other]].concat(), &[]).expect_err("another's");
    assert!(wrong.contains("--ca"), "{wrong}");
    let key = certificate.key().display().to_string();
    let none = ask(&[&put[..], &["--ca", &key]].concat(), &[]).expect_err("it is a key");
    assert!(none.contains("there is no certificate in"), "{none}");
    let read = ["get", "/_data/p", "--ca", ca];
    let keys = ask(&read, &[]).map_err(Error::msg)?;
    assert!(keys.contains("\"v\": []"), "nothing was written: {keys}");

    ask(&[&put[..], &["--ca", ca]].concat(), &[]).map_err(Error::msg)?;
    let of_system = [("SSL_CERT_FILE", chain.as_path())];
    let keys = ask(&["get", "/_data/p"], &of_system).map_err(Error::msg)?;
    assert!(keys.contains("\"a\""), "the system trusts it: {keys}");

    // A context remembers the file, wherever it is used.
    std::fs::copy(&chain, folder.join("ca.pem"))?;
    let port = url.rsplit(':').next().context("a port")?;
    let named = format!("https://localhost:{port}");
    let add = ["context", "add", "here", "--ca", "ca.pem", "--user", &credentials, "--url", &named];
    verb(folder, &add, &[]).map_err(Error::msg)?;
    let elsewhere = tempfile::TempDir::new()?;
    let read = verb(elsewhere.path(), &["get", "/_data/p?k=a"], &[("XDG_CONFIG_HOME", folder)]);
    assert!(read.map_err(Error::msg)?.contains("\"n\": 1"));
    Ok(())
}

#[test]
fn the_client_verbs_say_what_is_wrong_with_a_certificate() -> Result<()> {
    for (address, constraints, says) in
        [("IP:127.0.0.1", "CA:TRUE", "CA:FALSE"), ("IP:127.0.0.2", "CA:FALSE", "for another name")]
    {
        let certificate = Certificate::with("wrong", address, constraints)?;
        let neuron = tls_neuron(&certificate, &[])?;
        let url = format!("https://{}", neuron.address("https")?);
        let chain = certificate.chain().display().to_string();
        let folder = tempfile::TempDir::new()?;
        let ask = ["get", "/_ds", "--url", &url, "--user", "a:b", "--ca", &chain];
        let said = verb(folder.path(), &ask, &[]).expect_err("it is wrong");
        assert!(said.contains(&url) && said.contains(says), "{said}");
    }
    Ok(())
}
