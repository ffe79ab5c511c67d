//! `ganglion`: one program that is a whole real-time communications platform.
//!
//! This file reads the command line. The neuron is put together in `serve.rs`.

mod check;
mod client;
mod config;
mod control;
mod dev;
mod http;
mod lifecycle;
mod listen;
mod metrics;
mod os;
mod serve;
mod sockets;
mod system;
mod tls;
mod turns;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};

use crate::client::{ContextVerb, Where};
use crate::config::Config;

/// A whole real-time communications platform in one program.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run a neuron; the default. Without a configuration this is `serve --dev`.
    Serve(ServeArguments),
    /// Read from a neuron: `ganglion get '/_data/my/path?k=key'`.
    Get(Ask),
    /// Create: `ganglion put /_data/my/path '{"k":"key","v":1}'`.
    Put(Ask),
    /// Update.
    Post(Ask),
    /// Delete: `ganglion delete '/_data/my/path?k=key'`.
    Delete(Ask),
    /// Make a token for a path: `ganglion token /my/path --k chatter`.
    Token(TokenArguments),
    /// Be in a room: what is typed goes to everybody there, and after `@name ` to one; a space in the
    /// name is `%20`.
    Chat(ChatArguments),
    /// Follow data: what is at a path, and every change, a line of JSON each: `ganglion watch /my/path`,
    /// or of another service `ganglion watch /_conf/my/path`.
    Watch(WatchArguments),
    /// Named neurons and credentials for the verbs above.
    #[command(subcommand)]
    Context(ContextVerb),
    /// Look at the configuration.
    #[command(subcommand)]
    Config(ConfigVerb),
    /// Copy a store to a file, while its neuron runs or not.
    Backup {
        #[command(flatten)]
        place: Place,
        /// The copy to make, where there is no file yet.
        file: PathBuf,
    },
    /// Make a store of a copy, in a data folder that has none.
    Restore {
        #[command(flatten)]
        place: Place,
        /// The copy, which `backup` made.
        file: PathBuf,
    },
    /// Check every invariant of a store that no neuron has open.
    Fsck(Place),
}

#[derive(Debug, Default, clap::Args)]
struct ServeArguments {
    /// The configuration file; else $GANGLION_CONFIG, ./ganglion.toml or /etc/ganglion/ganglion.toml.
    #[arg(long)]
    config: Option<PathBuf>,
    /// Made-up keys, loopback only, a demo.
    #[arg(long)]
    dev: bool,
    /// Address of the HTTP API, in place of `listen.http`; port 0 takes a free one.
    #[arg(long)]
    listen: Vec<SocketAddr>,
    /// Data folder, in place of `store.data_dir`.
    #[arg(long)]
    data_dir: Option<PathBuf>,
    /// The `$sys` account's secret, in place of `neuron.sys_secret`: for trials, since every user of
    /// the machine sees it in `ps`.
    #[arg(long)]
    sys_secret: Option<String>,
    /// File to write every bound address to, as JSON, when ready.
    #[arg(long)]
    ready_file: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
struct Ask {
    #[command(flatten)]
    place: Where,
    /// Path and query, as after the host in a URL.
    path: String,
    /// JSON body; `-` reads it from standard input, `@file` from a file.
    body: Option<String>,
}

#[derive(Debug, clap::Args)]
struct TokenArguments {
    #[command(flatten)]
    place: Where,
    /// The namespace path; left out for a universal token.
    #[arg(default_value = "")]
    path: String,
    /// The user's name.
    #[arg(long)]
    k: Option<String>,
    /// Lifetime in seconds; 0 for ever.
    #[arg(long)]
    expire: Option<u64>,
    /// What its holder may do, such as `subscribe,read,watch`: of publish, subscribe, send, watch,
    /// moderate, relay, read and write. Left out it is what a member of a room needs.
    #[arg(long)]
    grants: Option<String>,
}

impl TokenArguments {
    /// The call that makes the token.
    fn ask(self) -> Ask {
        let TokenArguments { place, path, k, expire, grants } = self;
        let body = serde_json::json!({ "k": k, "expire": expire, "grants": grants }).to_string();
        Ask { place, path: format!("/_token/{}", path.trim_start_matches('/')), body: Some(body) }
    }
}

#[derive(Debug, clap::Args)]
struct ChatArguments {
    #[command(flatten)]
    place: Where,
    /// The room's path, such as /my/path.
    path: String,
    /// The name to have there; an empty one is made up.
    #[arg(long, env = "USER")]
    name: String,
}

#[derive(Debug, clap::Args)]
struct WatchArguments {
    #[command(flatten)]
    place: Where,
    /// The path, such as /my/path of `_data`, or with its service, such as /_conf/my/path.
    path: String,
    /// One key of it; all of them when left out.
    #[arg(long)]
    k: Option<String>,
}

#[derive(Debug, Subcommand)]
enum ConfigVerb {
    /// Read the configuration and say whether it is right.
    Check {
        /// The file; else $GANGLION_CONFIG, ./ganglion.toml or /etc/ganglion/ganglion.toml.
        #[arg(long)]
        config: Option<PathBuf>,
    },
    /// Say what a key means, its default and its value here.
    Explain {
        /// A key such as `stats.flush`, or a section such as `stats`.
        key: String,
        /// The file; else $GANGLION_CONFIG, ./ganglion.toml or /etc/ganglion/ganglion.toml.
        #[arg(long)]
        config: Option<PathBuf>,
    },
    /// Print every key with its default and meaning, as a configuration file.
    Reference,
    /// Print what an account may set in `_conf`, as Markdown.
    Settings,
}

/// Where a store is.
#[derive(Debug, clap::Args)]
struct Place {
    /// The data folder, in place of `store.data_dir`.
    #[arg(long)]
    data_dir: Option<PathBuf>,
    /// The configuration file that names it; else $GANGLION_CONFIG, ./ganglion.toml or
    /// /etc/ganglion/ganglion.toml.
    #[arg(long)]
    config: Option<PathBuf>,
}

impl Place {
    fn data_dir(self) -> Result<PathBuf> {
        match self.data_dir {
            Some(data_dir) => Ok(data_dir),
            None => Ok(load(self.config.as_deref(), false)?.0.store.data_dir),
        }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(arguments.verb.unwrap_or_else(|| Verb::Serve(ServeArguments::default()))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report(&error);
            ExitCode::FAILURE
        }
    }
}

#[allow(clippy::print_stderr)]
fn report(error: &anyhow::Error) {
    eprintln!("ganglion: {}", told(error));
}

/// An error and its causes; a cause that the error before it tells already is left out.
fn told(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.ends_with(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    text
}

#[allow(clippy::print_stderr)]
fn warn(text: &str) {
    eprintln!("ganglion: warning: {text}");
}

fn print(text: &str) {
    client::print(text.trim_end());
}

/// A body as it is named: standard input, a file, or itself.
fn body(named: String) -> Result<String> {
    match named.strip_prefix('@') {
        Some(file) => std::fs::read_to_string(file).with_context(|| format!("reading {file}")),
        None if named == "-" => {
            std::io::read_to_string(std::io::stdin()).context("reading standard input")
        }
        None => Ok(named),
    }
}

fn run(verb: Verb) -> Result<()> {
    let runtime = || tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let ask = |ask: Ask, method: &str| -> Result<()> {
        let body = ask.body.map(body).transpose()?;
        let asking = client::ask(&ask.place, method, &ask.path, body.as_deref());
        print(&runtime()?.block_on(asking)?);
        Ok(())
    };
    match verb {
        Verb::Serve(arguments) => {
            let start = start(arguments)?;
            log_to_stderr(&start.config)?;
            runtime()?.block_on(serve::serve(start))
        }
        Verb::Get(arguments) => ask(arguments, "GET"),
        Verb::Put(arguments) => ask(arguments, "PUT"),
        Verb::Post(arguments) => ask(arguments, "POST"),
        Verb::Delete(arguments) => ask(arguments, "DELETE"),
        Verb::Token(arguments) => ask(arguments.ask(), "PUT"),
        Verb::Chat(ChatArguments { place, path, name }) => {
            runtime()?.block_on(client::chat(&place, &path, &name))
        }
        Verb::Watch(WatchArguments { place, path, k }) => {
            runtime()?.block_on(client::watch(&place, &path, k.as_deref()))
        }
        Verb::Context(verb) => {
            print(&client::context(verb)?);
            Ok(())
        }
        Verb::Config(verb) => config_verb(verb),
        Verb::Backup { place, file } => {
            runtime()?.block_on(control::backup(&place.data_dir()?, &file))
        }
        Verb::Restore { place, file } => {
            let data_dir = place.data_dir()?;
            restore(&data_dir, &file)?;
            let key = data_dir.join(serve::CLUSTER_KEY_FILE);
            print(&format!(
                "restored; the cluster key is not in a copy: {} must be the one that the copied store \
                 had",
                key.display()
            ));
            Ok(())
        }
        Verb::Fsck(place) => {
            let file = place.data_dir()?.join(serve::STORE_FILE);
            let report = store::embedded::fsck(&file);
            let report = report.with_context(|| format!("checking {}", file.display()))?;
            print(&report.to_string());
            if report.is_clean() { Ok(()) } else { bail!("the store is damaged") }
        }
    }
}

/// Makes a store of a copy; the folder that it makes for that is gone again when there is no store.
fn restore(data_dir: &Path, copy: &Path) -> Result<()> {
    let found = std::fs::metadata(copy).with_context(|| format!("reading {}", copy.display()))?;
    if !found.is_file() {
        bail!("{} is not a file", copy.display());
    }
    let store = data_dir.join(serve::STORE_FILE);
    if store.try_exists()? {
        bail!("there is a store already, {}: restore into another folder", store.display());
    }
    let made: Vec<&Path> = data_dir.ancestors().take_while(|folder| !folder.exists()).collect();
    serve::make_private_folder(data_dir)?;
    let restored = store::embedded::restore(copy, &store);
    if restored.is_err() {
        for folder in made {
            // One in which somebody has put something meanwhile stays.
            let _ = std::fs::remove_dir(folder);
        }
    }
    restored.with_context(|| format!("restoring {} as {}", copy.display(), store.display()))
}

fn config_verb(verb: ConfigVerb) -> Result<()> {
    match verb {
        ConfigVerb::Check { config } => {
            let (config, file) = load(config.as_deref(), false)?;
            for warning in check::check(&config, file.as_deref(), file.is_none())? {
                warn(&warning);
            }
            let place = file.map_or("no file; defaults".to_owned(), |f| f.display().to_string());
            print(&format!("right: {place}"));
        }
        ConfigVerb::Explain { key, config } => {
            let (config, _) = load(config.as_deref(), false)?;
            print(&config::explain(&config, &key)?);
        }
        ConfigVerb::Reference => print(&config::reference()?),
        ConfigVerb::Settings => print(&services::describe::settings()),
    }
    Ok(())
}

/// The configuration with what the command line says over it.
fn start(arguments: ServeArguments) -> Result<serve::Start> {
    let ServeArguments { config, dev, listen, data_dir, sys_secret, ready_file } = arguments;
    let (mut loaded, file) = load(config.as_deref(), dev)?;
    let is_dev = dev || file.is_none();
    if let Some(first) = listen.first() {
        if is_dev && listen.iter().any(|address| !address.ip().is_loopback()) {
            bail!("--dev listens on loopback only, not on {first}");
        }
        loaded.listen.http = listen;
    }
    if let Some(data_dir) = data_dir {
        loaded.store.data_dir = data_dir;
    }
    if let Some(secret) = sys_secret {
        if secret.contains('#') || secret.starts_with('!') || secret.is_empty() {
            bail!("--sys-secret cannot be empty, hold `#` or start with `!`");
        }
        loaded.neuron.sys_secret = secret;
        loaded.neuron.sys_secret_file = PathBuf::new();
    }
    Ok(serve::Start { config: loaded, file, is_dev, ready_file })
}

/// The configuration as it holds for `serve`, which is `serve --dev` without a file; and the file.
fn load(named: Option<&Path>, dev: bool) -> Result<(Config, Option<PathBuf>)> {
    let (mut config, file) = Config::load(named)?;
    if dev || file.is_none() {
        let listen = &mut config.listen;
        for address in listen.http.iter_mut().chain(&mut listen.https).chain(&mut listen.admin) {
            address.set_ip(std::net::Ipv4Addr::LOCALHOST.into());
        }
        if config.store.data_dir == Config::default().store.data_dir {
            config.store.data_dir = state_folder()?;
        }
    }
    Ok((config, file))
}

/// A folder of the user's: the one that a variable names, or one of his home. An empty or relative name
/// counts as none (XDG Base Directory Specification, "Environment variables").
fn user_folder(variable: &str, of_home: &str) -> Result<PathBuf> {
    let named = std::env::var_os(variable).map(PathBuf::from).filter(|named| named.is_absolute());
    match named {
        Some(named) => Ok(named),
        None => {
            Ok(PathBuf::from(std::env::var_os("HOME").context("HOME is not set")?).join(of_home))
        }
    }
}

/// Where a development neuron keeps its data: the user's state folder.
fn state_folder() -> Result<PathBuf> {
    let base = user_folder("XDG_STATE_HOME", ".local/state").context("name a --data-dir")?;
    Ok(base.join("ganglion/dev"))
}

fn log_to_stderr(config: &Config) -> Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_new(&config.log.level)
        .context("log.level is a level or directives")?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()));
    let installed =
        if config.log.format == "json" { builder.json().try_init() } else { builder.try_init() };
    installed.map_err(|error| anyhow::anyhow!("installing the log: {error}"))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn check_help(command: &clap::Command) {
        assert!(command.get_about().is_some(), "{}", command.get_name());
        for argument in command.get_arguments() {
            assert!(argument.get_help().is_some(), "{} {argument}", command.get_name());
        }
        command.get_subcommands().for_each(check_help);
    }

    #[test]
    fn every_verb_and_argument_says_what_it_is() {
        check_help(&Arguments::command());
    }

    #[test]
    fn a_token_is_asked_for_with_what_is_said_of_it() {
        let ask = |more: &[&str]| {
            let arguments = ["ganglion", "token"].iter().chain(more);
            match Arguments::try_parse_from(arguments).expect("arguments").verb {
                Some(Verb::Token(arguments)) => arguments.ask(),
                verb => panic!("{verb:?}"),
            }
        };
        let whole = ask(&["my/path", "--k", "a", "--grants", "subscribe,read", "--expire", "9"]);
        assert_eq!(whole.path, "/_token/my/path");
        let body = r#"{"expire":9,"grants":"subscribe,read","k":"a"}"#;
        assert_eq!(whole.body.as_deref(), Some(body));
        let bare = ask(&[]);
        assert_eq!(bare.path, "/_token/");
        assert_eq!(bare.body.as_deref(), Some(r#"{"expire":null,"grants":null,"k":null}"#));
    }

    #[test]
    fn a_cause_is_told_once() {
        let cause = std::io::Error::from(std::io::ErrorKind::NotFound);
        let text = cause.to_string();
        // As errors do that show their cause and have it as a source too.
        let error = anyhow::Error::new(cause).context(format!("opening: {text}")).context("first");
        assert_eq!(told(&error), format!("first: opening: {text}"));
    }
}
