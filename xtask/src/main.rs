//! `cargo xtask VERB`: everything that is done to this repository, in Rust.
//!
//! `check` reads it, `test` shows that it works, `soak` shows one thing at the length that an issue
//! names, `bench` measures it beside its rivals, `codegen` makes files from files, `dev-cluster`
//! starts neurons to play with.

mod baseline;
mod check;
mod codegen;
mod dev_cluster;
mod needs;
mod run;
mod suites;

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

const USAGE: &str = "cargo xtask VERB

  check               formatting, lints, generated files, house rules
  test [--only NAME]  check and every suite, or one suite, with short parameters
  soak NAME           one suite at the durations, counts and seeds that the issues name
  soak                lists them
  bench NAME [--keep] [--baseline FILE] [arguments of bench]
                      one benchmark beside its rivals, and beside an earlier run
  codegen             make generated files
  dev-cluster [N]     start N development neurons (1) until interrupted";

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let root = root();
    match words.as_slice() {
        ["check"] => check::check(&root),
        ["test"] => suites::test(&root, None),
        ["test", "--only", name] => suites::test(&root, Some(name)),
        ["soak"] => suites::list_soaks(),
        ["soak", name] => suites::soak(&root, name),
        ["bench", name, rest @ ..] => suites::bench(&root, name, rest),
        ["codegen"] => codegen::write(&root),
        ["dev-cluster"] => dev_cluster::run(&root, 1),
        ["dev-cluster", count] => dev_cluster::run(&root, count.parse()?),
        _ => bail!("{USAGE}"),
    }
}

fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_owned()
}
