//! The suites: what each runs, at what length, and what it needs.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::needs::{self, Need};
use crate::run::{output, run_and_keep, run_with, say};

/// One suite: tests of crates, or a module of the system tests.
struct Suite {
    name: &'static str,
    what: &'static str,
    needs: &'static [Need],
    /// Arguments of `cargo test`, and among them the module of the test program.
    tests: &'static [&'static str],
    /// Variables that make it as long as the issues name; none when it is so already.
    soak: &'static [(&'static str, &'static str)],
}

const SUITES: &[Suite] = &[
    Suite {
        name: "units",
        what: "every crate's own tests: wire, kv4, store, services, signal, neuron, ganglion",
        needs: &[],
        tests: &["--workspace", "--exclude", "tests", "--exclude", "sim"],
        soak: &[("GANGLION_CASES", "20000"), ("PROPTEST_CASES", "20000")],
    },
    Suite {
        name: "sim",
        what: "the seeded simulation and the fuzz entry points",
        needs: &[],
        tests: &["-p", "sim"],
        soak: &[("GANGLION_SEEDS", "20000")],
    },
    Suite {
        name: "data",
        what: "the HTTP API with curl: seed 002, the spec, shapes, errors, attacks",
        needs: &[needs::CURL, needs::OPENSSL],
        tests: &["-p", "tests", "--test", "system", "data::"],
        soak: &[],
    },
    Suite {
        name: "signal",
        what: "signalling on a path with a client written from the spec",
        needs: &[needs::CURL],
        tests: &["-p", "tests", "--test", "system", "signal::"],
        soak: &[],
    },
    Suite {
        name: "crash",
        what: "kill -9, full disks, backups",
        needs: &[needs::CURL],
        tests: &["-p", "tests", "--test", "system", "crash::"],
        soak: &[("GANGLION_KILLS", "100")],
    },
    Suite {
        name: "edge",
        what: "TLS, HTTP/2, proxies, health, draining, idempotency, the API's document",
        needs: &[needs::CURL, needs::OPENSSL],
        tests: &["-p", "tests", "--test", "system", "edge::"],
        soak: &[],
    },
    Suite {
        name: "flood",
        what: "what one caller's flood does to another's waiting time",
        needs: &[needs::CURL],
        tests: &["-p", "tests", "--test", "system", "flood::", "--test-threads=1"],
        soak: &[("GANGLION_FLOOD_ROUNDS", "30")],
    },
    Suite {
        name: "demo",
        what: "two Chromium pages in a call",
        needs: &[needs::CHROMIUM],
        tests: &["-p", "tests", "--test", "system", "demo::"],
        soak: &[("GANGLION_DEMO_SECONDS", "30")],
    },
];

/// Runs every suite, or one, with short parameters; prints each one's seconds.
pub(crate) fn test(root: &Path, only: Option<&str>) -> Result<()> {
    let mut times: Vec<(&str, Duration)> = Vec::new();
    let chosen: Vec<&Suite> = match only {
        Some(name) => vec![find(name)?],
        None => {
            let begun = std::time::Instant::now();
            crate::check::check(root)?;
            times.push(("check", begun.elapsed()));
            SUITES.iter().collect()
        }
    };
    let built = std::time::Instant::now();
    run_with(root, "cargo", &["test", "--workspace", "--no-run", "--locked"], &[])?;
    run_with(root, "cargo", &["build", "-p", "ganglion", "--locked"], &[])?;
    times.push(("build", built.elapsed()));
    for suite in chosen {
        times.push((suite.name, carry_out(root, suite, &[])?));
    }
    say("\nseconds by suite");
    for (name, time) in times {
        say(&format!("{:>8.1}  {name}", time.as_secs_f64()));
    }
    Ok(())
}

/// Runs one suite, optimised, at the length that the issues name; what it printed becomes the report
/// `docs/measured/soak-NAME.txt`.
pub(crate) fn soak(root: &Path, name: &str) -> Result<()> {
    let suite = find(name)?;
    run_with(root, "cargo", &["build", "--release", "-p", "ganglion", "--locked"], &[])?;
    let program = root.join("target/release/ganglion").display().to_string();
    let mut variables = vec![("GANGLION_BIN", program)];
    variables.extend(suite.soak.iter().map(|(name, value)| (*name, (*value).to_owned())));
    needs::install(suite.needs)?;
    let arguments = arguments(suite, &["--nocapture"]);
    let begun = std::time::Instant::now();
    let printed = run_and_keep(root, "cargo", &arguments, &variables)?;
    let commit = output("git", &["-C", &root.display().to_string(), "rev-parse", "HEAD"]);
    let settings: Vec<_> = suite.soak.iter().map(|(n, v)| format!("{n}={v}")).collect();
    let report = format!(
        "cargo xtask soak {name}: {}\ncommit {}\n{}\n{:.1} s\n\n{printed}",
        suite.what,
        commit.unwrap_or_default().trim(),
        settings.join(" "),
        begun.elapsed().as_secs_f64(),
    );
    let file = root.join(format!("docs/measured/soak-{name}.txt"));
    std::fs::write(&file, report).with_context(|| format!("writing {}", file.display()))?;
    say(&format!("report: {}", file.display()));
    Ok(())
}

#[allow(clippy::print_stdout)]
pub(crate) fn list_soaks() -> Result<()> {
    for suite in SUITES {
        let variables: Vec<_> = suite.soak.iter().map(|(n, v)| format!("{n}={v}")).collect();
        println!("{:<8} {}  {}", suite.name, suite.what, variables.join(" "));
    }
    Ok(())
}

/// Runs one benchmark; its arguments are those of the `bench` program.
pub(crate) fn bench(root: &Path, name: &str, rest: &[&str]) -> Result<()> {
    run_with(
        root,
        "cargo",
        &["build", "--release", "-p", "ganglion", "-p", "bench", "--locked"],
        &[],
    )?;
    let program = root.join("target/release/ganglion").display().to_string();
    let mut arguments = vec![name, "--ganglion", &program];
    arguments.extend(rest);
    let bench = root.join("target/release/bench").display().to_string();
    run_with(root, &bench, &arguments, &[])?;
    Ok(())
}

fn carry_out(root: &Path, suite: &Suite, variables: &[(&str, String)]) -> Result<Duration> {
    say(&format!("\n== {}: {}", suite.name, suite.what));
    needs::install(suite.needs)?;
    run_with(root, "cargo", &arguments(suite, &[]), variables)
}

fn arguments<'a>(suite: &'a Suite, extra: &[&'a str]) -> Vec<&'a str> {
    let mut arguments = vec!["test", "--locked"];
    let (of_cargo, of_tests): (Vec<&str>, Vec<&str>) =
        suite.tests.iter().partition(|argument| !is_of_tests(argument));
    arguments.extend(of_cargo);
    arguments.push("--");
    arguments.extend(of_tests);
    arguments.extend(extra);
    arguments
}

/// Whether the test program reads an argument, and not cargo.
fn is_of_tests(argument: &str) -> bool {
    argument.ends_with("::") || argument.starts_with("--test-threads")
}

fn find(name: &str) -> Result<&'static Suite> {
    let names: Vec<&str> = SUITES.iter().map(|suite| suite.name).collect();
    let found = SUITES.iter().find(|suite| suite.name == name);
    found.with_context(|| format!("there is no suite `{name}`; there are: {}", names.join(", ")))
}
