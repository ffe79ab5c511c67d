//! `--dev`: a neuron that is ready at once: made-up keys, an account for the demo, and what to do next.
//!
//! It listens on loopback only; its keys stand in `dev.json` of the data folder.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use services::precondition::Precondition;
use services::principal::{Caller, Role};
use services::{Call, Method, Service, Services};
use wire::errors::Code;
use wire::names::Ident;
use wire::params::Params;

use crate::http::DemoAccess;
use crate::serve::{Addresses, STORE_FILE, write_secret};
use crate::system::SystemRng;

const KEYS_FILE: &str = "dev.json";
const DEMO_IDENT: &str = "demo";

/// The made-up keys of a development neuron.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Keys {
    pub(crate) sys_secret: String,
    /// Made with the demo account.
    demo_secret: Option<String>,
}

impl Keys {
    /// Reads the keys of a data folder, or makes them for one without a store.
    pub(crate) fn load(data_dir: &Path) -> Result<Keys> {
        let file = data_dir.join(KEYS_FILE);
        let store = data_dir.join(STORE_FILE);
        if !file.exists() && store.exists() {
            bail!(
                "the store {} was not made by `serve --dev`, which would show its accounts to whoever \
                 is at this machine: leave --dev out, or name another --data-dir",
                store.display()
            );
        }
        if file.exists() {
            let text =
                std::fs::read(&file).with_context(|| format!("reading {}", file.display()))?;
            return serde_json::from_slice(&text)
                .with_context(|| format!("{} is not what a neuron wrote", file.display()));
        }
        let keys =
            Keys { sys_secret: services::secrets::random_uuid(&SystemRng), demo_secret: None };
        keys.save(data_dir)?;
        Ok(keys)
    }

    fn save(&self, data_dir: &Path) -> Result<()> {
        write_secret(&data_dir.join(KEYS_FILE), &serde_json::to_string_pretty(self)?)
    }

    /// Makes sure that the demo's account is there and its secret known.
    pub(crate) async fn demo_account(
        mut self,
        services: &Services,
        data_dir: &Path,
    ) -> Result<DemoAccess> {
        let secret = make_demo_account(services, self.demo_secret.as_deref()).await?;
        if self.demo_secret.as_ref() != Some(&secret) {
            self.demo_secret = Some(secret.clone());
            self.save(data_dir)?;
        }
        Ok(DemoAccess {
            ident: DEMO_IDENT.to_owned(),
            secret,
            base: String::new(),
            path: "/demo".to_owned(),
        })
    }
}

/// Makes the account as `$sys` would over HTTP, unless it is there and `known` is its secret; one whose
/// secret was lost is given a new one. The store may be an empty one beside the keys of an older.
async fn make_demo_account(services: &Services, known: Option<&str>) -> Result<String> {
    let sys = Caller {
        account: Ident::sys(),
        sub: None,
        bucket: kv4::Bucket::sys(),
        payer: kv4::Bucket::sys(),
        who: "$sys".into(),
        role: Role::Owner,
    };
    let secret = services::secrets::random_uuid(&SystemRng);
    let create = serde_json::json!({ "k": DEMO_IDENT, "v": { "email": "demo@localhost" } });
    let change = serde_json::json!({ "k": DEMO_IDENT, "v": { "secret": secret } });
    for (method, body) in [(Method::Put, create), (Method::Post, change)] {
        let params = Params::read("", body.to_string().as_bytes())?;
        let call = Call {
            caller: &sys,
            method,
            path: wire::names::Path::parse("/accounts")?,
            params: &params,
            precondition: Precondition::Unsaid,
            address: std::net::Ipv4Addr::LOCALHOST.into(),
            authority: "",
            is_tls: false,
        };
        match services::call(services, Service::Accounts, &call).await {
            Ok(answer) if method == Method::Put => {
                let account: serde_json::Value = serde_json::from_str(&answer.v)?;
                let made = account["secret"].as_str().context("a new account has a secret")?;
                return Ok(made.to_owned());
            }
            Ok(_) => return Ok(secret),
            Err(fault) if fault.code == Code::UsernameExists => {
                if let Some(known) = known {
                    return Ok(known.to_owned());
                }
            }
            Err(fault) => bail!("making the demo account: {}", fault.code.as_str()),
        }
    }
    bail!("making the demo account: it is neither new nor old")
}

/// Tells a person what there is and what to do next.
#[allow(clippy::print_stdout)]
pub(crate) fn print_welcome(
    addresses: &Addresses,
    moved: &[SocketAddr],
    access: &DemoAccess,
    sys_secret: &str,
    data_dir: &Path,
) {
    let Some(api) = addresses.http.first() else { return };
    let (ident, secret) = (&access.ident, &access.secret);
    println!(
        "Ganglion {} is ready, in development mode: loopback only.\n",
        env!("CARGO_PKG_VERSION")
    );
    for address in moved {
        println!(
            "  {address} is taken by another program: do not send it this neuron's secrets.\n"
        );
    }
    println!("  API      http://{api}");
    println!("  Demo     http://{api}/demo");
    if let Some(admin) = addresses.admin.first() {
        println!("  Metrics  http://{admin}/metrics");
    }
    println!("  Data     {}", data_dir.display());
    println!("  $sys     {sys_secret}");
    println!("  {ident}     {secret}\n");
    println!("Put a value and read it back:\n");
    println!(
        "  curl -u {ident}:{secret} -X PUT http://{api}/_data/hello -d '{{\"k\":\"world\",\"v\":{{\"greeting\":\"hello\"}}}}'"
    );
    println!("  curl -u {ident}:{secret} 'http://{api}/_data/hello?k=world'\n");
    println!("Then open the demo in two windows and call yourself.\n");
}
