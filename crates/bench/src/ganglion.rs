//! Ours under measurement: a neuron with its own folder, an account in it, and who asks in that
//! account's name.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use crate::load::{self, push, push_body};
use crate::process::Process;

/// The account that asks ours; rivals are asked without credentials, which they have no need to check.
pub(crate) const WHO: &str = "bench";
const SYS_SECRET: &str = "bench-sys-secret";
/// For how long `$sys`, who makes the account, counts as its company from the account's first call on
/// (`turns` of `ganglion`, with a second or two to spare): in company an account gets a share of the
/// cores, which is not what is measured.
const COMPANY: Duration = Duration::from_secs(5);

/// A neuron with its own folder, started as tests start it.
#[derive(Debug)]
pub(crate) struct Ganglion {
    pub(crate) process: Process,
    pub(crate) address: SocketAddr,
    admin: SocketAddr,
    authorization: String,
}

impl Ganglion {
    pub(crate) fn at(&self) -> (&Process, SocketAddr) {
        (&self.process, self.address)
    }

    pub(crate) fn start(
        program: &Path,
        folder: &Path,
        settings: &[(&str, &str)],
    ) -> Result<Ganglion> {
        std::fs::create_dir_all(folder)?;
        let ready_file = folder.join("ready.json");
        let mut command = Command::new(program);
        command
            .args(["serve", "--dev", "--listen", "127.0.0.1:0", "--sys-secret", SYS_SECRET])
            .arg("--data-dir")
            .arg(folder.join("data"))
            .arg("--ready-file")
            .arg(&ready_file)
            .env("GANGLION_LISTEN__ADMIN", "[\"127.0.0.1:0\"]")
            .envs(settings.iter().copied());
        let mut process = Process::start(&mut command, &folder.join("ganglion.log"))?;
        let ready = process.wait_for(|| std::fs::read(&ready_file).ok())?;
        let addresses: Value = serde_json::from_slice(&ready)?;
        let address = |kind: &str| -> Result<SocketAddr> {
            Ok(addresses[kind][0].as_str().context("no address")?.parse()?)
        };
        let mut ganglion = Ganglion {
            process,
            address: address("http")?,
            admin: address("admin")?,
            authorization: String::new(),
        };
        ganglion.authorization = ganglion.account(WHO)?;
        part_company();
        Ok(ganglion)
    }

    /// Makes an account, by `$sys`, and answers with what its requests say in `authorization`.
    pub(crate) fn account(&self, name: &str) -> Result<String> {
        let body = format!(
            "{{\"k\":\"{name}\",\"v\":{{\"email\":\"{name}@example.org\",\"password\":\"woot\"}}}}"
        );
        let mut request = Vec::new();
        let sys = basic(&format!("$sys:{SYS_SECRET}"));
        self.push_as(&sys, &mut request, "PUT", "/_acc/accounts", &body);
        let (_, answer) = load::ask(self.address, &request)?;
        let answer: Value = serde_json::from_slice(&answer)?;
        let secret = answer["v"]["secret"].as_str();
        let secret = secret.with_context(|| format!("no account: {answer}"))?;
        let authorization = basic(&format!("{name}:{secret}"));
        let mut first = Vec::new();
        self.push_as(&authorization, &mut first, "GET", "/_data", "");
        load::ask(self.address, &first)?;
        Ok(authorization)
    }

    pub(crate) fn push(&self, out: &mut Vec<u8>, method: &str, target: &str, body: &str) {
        self.push_as(&self.authorization, out, method, target, body);
    }

    pub(crate) fn push_as(
        &self,
        authorization: &str,
        out: &mut Vec<u8>,
        method: &str,
        target: &str,
        body: &str,
    ) {
        let host = self.address.to_string();
        push(out, &[method, " ", target, " HTTP/1.1\r\nhost: ", &host]);
        push(out, &["\r\nauthorization: ", authorization, "\r\n"]);
        push_body(out, body);
    }

    /// Durable transactions and the requests in them, since the start.
    pub(crate) fn commits(&self) -> Result<(f64, f64)> {
        let request = format!("GET /metrics HTTP/1.1\r\nhost: {}\r\n\r\n", self.admin);
        let (_, text) = load::ask(self.admin, request.as_bytes())?;
        let text = String::from_utf8(text)?;
        let metric = |name: &str| -> Result<f64> {
            let value = text.lines().find_map(|line| line.strip_prefix(name));
            Ok(value.with_context(|| format!("no metric {name}"))?.trim().parse()?)
        };
        Ok((metric("ganglion_store_commits_total")?, metric("ganglion_store_requests_total")?))
    }
}

/// Waits until who called before is nobody's company any more.
pub(crate) fn part_company() {
    std::thread::sleep(COMPANY);
}

fn basic(credentials: &str) -> String {
    format!("Basic {}", STANDARD.encode(credentials))
}

/// Builds the program as it is measured; `main` has refused to be anything but a release build.
pub(crate) fn build() -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let target = own.ancestors().nth(2).context("this program is nowhere")?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["build", "--quiet", "--release", "-p", "ganglion"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env("CARGO_TARGET_DIR", target)
        .status()?;
    let built = target.join("release/ganglion");
    ensure!(status.success() && built.exists(), "ganglion could not be built");
    Ok(built)
}
