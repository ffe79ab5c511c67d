//! The suites: what each runs, at what length, and what it needs.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::baseline::compare;
use crate::needs::{self, Need};
use crate::run::{output, released, run, run_and_keep, say};

/// One suite: tests of crates, or a module of the system tests.
struct Suite {
    name: &'static str,
    what: &'static str,
    needs: &'static [Need],
    /// Arguments of `cargo test`, and among them the module of the test program.
    tests: &'static [&'static str],
    /// Whether what is looked at is in the test program, or that takes the time that what is looked
    /// at should have, so that a soak builds it optimised. System suites start the optimised
    /// `ganglion`, and the speed of most of them does not matter.
    is_released: bool,
    /// Variables that make it as long as the issues name; none when it is so already.
    soak: &'static [(&'static str, &'static str)],
}

const SUITES: &[Suite] = &[
    Suite {
        name: "units",
        what: "every crate's own tests: wire, kv4, store, services, signal, relay, neuron, ganglion",
        needs: &[],
        tests: &["--workspace", "--exclude", "tests", "--exclude", "sim"],
        is_released: true,
        soak: &[("GANGLION_CASES", "2000"), ("PROPTEST_CASES", "2000")],
    },
    Suite {
        name: "sim",
        what: "the seeded simulation and the fuzz entry points",
        needs: &[],
        tests: &["-p", "sim"],
        is_released: true,
        soak: &[("GANGLION_SEEDS", "2000")],
    },
    Suite {
        name: "data",
        what: "the HTTP API with curl: seed 002, the spec, shapes, errors, attacks",
        needs: &[needs::CURL, needs::OPENSSL],
        tests: &["-p", "tests", "--test", "system", "data::"],
        is_released: false,
        soak: &[],
    },
    Suite {
        name: "signal",
        what: "signalling on a path with a client written from the spec; who may do what there",
        needs: &[needs::CURL],
        tests: &[
            "-p",
            "tests",
            "--test",
            "system",
            "signal::",
            "rules::",
            "--skip=signal::crowd::",
        ],
        is_released: false,
        soak: &[("GANGLION_SILENT", "10000")],
    },
    Suite {
        name: "crowd",
        what: "many at once on signalling paths: all hear all, thousands come and go, thousands are silent",
        needs: &[needs::CURL],
        tests: &["-p", "tests", "--test", "system", "signal::crowd::", "--test-threads=1"],
        is_released: true,
        soak: &[
            ("GANGLION_SILENT", "10000"),
            ("GANGLION_JOINS", "20000"),
            ("GANGLION_ROOM_JOINS", "100000"),
            ("GANGLION_SAYS", "50"),
        ],
    },
    Suite {
        name: "watch",
        what: "watches as server-sent events and as long polls, with curl and Chromium",
        needs: &[needs::CURL, needs::CHROMIUM],
        tests: &["-p", "tests", "--test", "system", "watch::"],
        is_released: false,
        soak: &[],
    },
    Suite {
        name: "crash",
        what: "kill -9, full disks, clocks that jump, backups",
        needs: &[needs::CURL, needs::FAKETIME],
        tests: &["-p", "tests", "--test", "system", "crash::"],
        is_released: false,
        soak: &[("GANGLION_KILLS", "100")],
    },
    Suite {
        name: "edge",
        what: "TLS, HTTP/2, proxies, health, draining, idempotency, the API's document",
        needs: &[needs::CURL, needs::OPENSSL],
        tests: &["-p", "tests", "--test", "system", "edge::"],
        is_released: false,
        soak: &[],
    },
    Suite {
        name: "flood",
        what: "what one caller's flood does to another's waiting time",
        needs: &[needs::CURL],
        tests: &["-p", "tests", "--test", "system", "flood::", "--test-threads=1"],
        is_released: false,
        soak: &[("GANGLION_FLOOD_ROUNDS", "30")],
    },
    Suite {
        name: "demo",
        what: "Chromium pages in a call, and in a room with rules, data, outages and a terminal",
        needs: &[needs::CHROMIUM],
        tests: &["-p", "tests", "--test", "system", "demo::"],
        is_released: false,
        soak: &[("GANGLION_DEMO_SECONDS", "30"), ("GANGLION_AWAY_S", "20")],
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
    run(root, "cargo", &["test", "--workspace", "--no-run", "--locked"])?;
    run(root, "cargo", &["build", "-p", "ganglion", "--locked"])?;
    times.push(("build", built.elapsed()));
    for suite in chosen {
        times.push((suite.name, carry_out(root, suite)?));
    }
    say("\nseconds by suite");
    for (name, time) in times {
        say(&format!("{:>8.1}  {name}", time.as_secs_f64()));
    }
    Ok(())
}

/// Runs one suite at the length that the issues name, on an optimised `ganglion`; what it printed
/// becomes the report `docs/measured/soak-NAME.txt`, with the tree and the profiles that it is of.
pub(crate) fn soak(root: &Path, name: &str) -> Result<()> {
    let suite = find(name)?;
    // As it is before the run, which may outlast the next commit.
    let tree = tree(root)?;
    run(root, "cargo", &["build", "--release", "-p", "ganglion", "--locked"])?;
    let program = released(root, "ganglion").display().to_string();
    let mut variables = vec![("GANGLION_BIN", program)];
    variables.extend(suite.soak.iter().map(|(name, value)| (*name, (*value).to_owned())));
    needs::install(suite.needs)?;
    let profile = match suite.is_released {
        true => "the test programs are release builds",
        false => "ganglion is a release build, the test program that starts it is not",
    };
    let arguments = arguments(suite, suite.is_released, &["--nocapture"]);
    let begun = std::time::Instant::now();
    let printed = run_and_keep(root, "cargo", &arguments, &variables)?;
    let settings: Vec<_> = suite.soak.iter().map(|(n, v)| format!("{n}={v}")).collect();
    let report = format!(
        "cargo xtask soak {name}: {}\ncommit {tree}\n{profile}\n{}\n{:.1} s\n\n{printed}",
        suite.what,
        settings.join(" "),
        begun.elapsed().as_secs_f64(),
    );
    let file = root.join(format!("docs/measured/soak-{name}.txt"));
    std::fs::write(&file, report).with_context(|| format!("writing {}", file.display()))?;
    say(&format!("report: {}", file.display()));
    Ok(())
}

/// The commit that is checked out, and whether the tree is another: reports of earlier runs aside.
fn tree(root: &Path) -> Result<String> {
    let root = root.display().to_string();
    let git = |arguments: &[&str]| {
        let all: Vec<&str> = ["-C", &root].iter().chain(arguments).copied().collect();
        output("git", &all).with_context(|| format!("git {}", arguments.join(" ")))
    };
    let changed = git(&["status", "--porcelain", "--", ".", ":!docs/measured"])?;
    let dirty = if changed.is_empty() { "" } else { ", dirty: the tree differs from it" };
    Ok(format!("{}{dirty}", git(&["rev-parse", "HEAD"])?.trim()))
}

#[allow(clippy::print_stdout)]
pub(crate) fn list_soaks() -> Result<()> {
    for suite in SUITES {
        let variables: Vec<_> = suite.soak.iter().map(|(n, v)| format!("{n}={v}")).collect();
        println!("{:<8} {}  {}", suite.name, suite.what, variables.join(" "));
    }
    Ok(())
}

/// Runs one benchmark; its arguments are those of the `bench` program, but for two of its own.
/// `--keep` writes the figures to `docs/measured/NAME.json`, behind a line that says of which tree
/// they are; `--baseline FILE` puts them beside such a file.
pub(crate) fn bench(root: &Path, name: &str, rest: &[&str]) -> Result<()> {
    let program = released(root, "ganglion").display().to_string();
    let mut arguments = vec![name, "--ganglion", &program];
    let (mut baseline, mut keep) = (None, false);
    let mut words = rest.iter();
    while let Some(word) = words.next() {
        match *word {
            "--baseline" => baseline = Some(words.next().context("--baseline needs a file")?),
            "--keep" => keep = true,
            word => arguments.push(word),
        }
    }
    let tree = tree(root)?;
    let earlier = baseline.map(std::fs::read_to_string).transpose().context("--baseline")?;
    let build = ["build", "--release", "-p", "ganglion", "-p", "bench", "--locked"];
    run(root, "cargo", &build)?;
    let bench = released(root, "bench").display().to_string();
    if earlier.is_none() && !keep {
        return run(root, &bench, &arguments).map(drop);
    }
    if !arguments.contains(&"--json") {
        arguments.push("--json");
    }
    let figures = run_and_keep(root, &bench, &arguments, &[])?;
    if let Some(earlier) = earlier {
        say(&format!("\nearlier, later, later / earlier\n{}", compare(&earlier, &figures)?));
    }
    if keep {
        let file = root.join(format!("docs/measured/{name}.json"));
        let text = format!("{{\"tree\":\"{tree}\"}}\n{figures}");
        std::fs::write(&file, text).with_context(|| format!("writing {}", file.display()))?;
        say(&format!("figures: {}", file.display()));
    }
    Ok(())
}

fn carry_out(root: &Path, suite: &Suite) -> Result<Duration> {
    say(&format!("\n== {}: {}", suite.name, suite.what));
    needs::install(suite.needs)?;
    run(root, "cargo", &arguments(suite, false, &[]))
}

fn arguments<'a>(suite: &'a Suite, is_release: bool, extra: &[&'a str]) -> Vec<&'a str> {
    let mut arguments = vec!["test", "--locked"];
    if is_release {
        arguments.push("--release");
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cargo_and_the_test_program_each_get_their_arguments() -> Result<()> {
        assert_eq!(
            arguments(find("sim")?, true, &["--nocapture"]),
            ["test", "--locked", "--release", "-p", "sim", "--", "--nocapture"]
        );
        assert_eq!(
            arguments(find("flood")?, false, &[]),
            [
                "test",
                "--locked",
                "-p",
                "tests",
                "--test",
                "system",
                "--",
                "flood::",
                "--test-threads=1"
            ]
        );
        Ok(())
    }

    #[test]
    fn a_report_says_when_the_tree_is_not_the_commit() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let root = folder.path();
        assert!(tree(root).is_err(), "no checkout, no report");
        run(root, "git", &["init", "--quiet"])?;
        std::fs::create_dir_all(root.join("docs/measured"))?;
        std::fs::write(root.join("a"), "1")?;
        run(root, "git", &["add", "."])?;
        let name = ["-c", "user.name=a", "-c", "user.email=a@example.org"];
        run(root, "git", &[&name[..], &["commit", "--quiet", "--message", "a"]].concat())?;
        let clean = tree(root)?;
        assert!(clean.len() == 40 && clean.bytes().all(|byte| byte.is_ascii_hexdigit()), "{clean}");
        std::fs::write(root.join("docs/measured/soak-a.txt"), "an earlier report")?;
        assert_eq!(tree(root)?, clean);
        std::fs::write(root.join("a"), "2")?;
        assert!(tree(root)?.starts_with(&format!("{clean}, dirty")));
        std::fs::write(root.join("a"), "1")?;
        std::fs::write(root.join("b"), "not added")?;
        assert!(tree(root)?.contains("dirty"));
        Ok(())
    }
}
