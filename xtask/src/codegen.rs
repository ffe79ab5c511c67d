//! Files made from other files: the error catalogue in Rust and in the reference.
//!
//! `write` makes them; `stale` lists those that differ from what would be made.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Catalogue {
    error: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    code: String,
    status: u16,
    #[serde(default)]
    always: bool,
    text: String,
}

/// Writes every generated file.
pub(crate) fn write(root: &Path) -> Result<()> {
    for (path, text) in generated(root)? {
        let path = root.join(path);
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

/// The generated files that are missing or differ from what [`write`] would make.
pub(crate) fn stale(root: &Path) -> Result<Vec<&'static str>> {
    let mut stale = Vec::new();
    for (path, text) in generated(root)? {
        if std::fs::read_to_string(root.join(path)).ok().as_deref() != Some(&*text) {
            stale.push(path);
        }
    }
    Ok(stale)
}

fn generated(root: &Path) -> Result<Vec<(&'static str, String)>> {
    let source = root.join("crates/wire/errors.toml");
    let text = std::fs::read_to_string(&source)
        .with_context(|| format!("reading {}", source.display()))?;
    let catalogue: Catalogue = toml::from_str(&text)?;
    Ok(vec![
        ("crates/wire/src/errors.rs", errors_rust(&catalogue)),
        ("docs/reference/errors.md", errors_markdown(&catalogue)),
    ])
}

fn errors_rust(catalogue: &Catalogue) -> String {
    let mut out = String::from(
        "//! The wire's error vocabulary, made from `errors.toml` by `cargo xtask codegen`.\n\n\
         /// A word of the error vocabulary (`spec/xirsys.md` §1.6 and §3).\n\
         #[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]\n\
         #[non_exhaustive]\npub enum Code {\n",
    );
    for entry in &catalogue.error {
        let _ = writeln!(out, "    /// {}\n    {},", entry.text, variant(&entry.code));
    }
    out.push_str("}\n\nimpl Code {\n    /// Every code, in the order of the catalogue.\n    pub const ALL: &[Code] = &[\n");
    for entry in &catalogue.error {
        let _ = writeln!(out, "        Code::{},", variant(&entry.code));
    }
    out.push_str("    ];\n");
    let table = |out: &mut String, doc: &str, signature: &str, value: &dyn Fn(&Entry) -> String| {
        let _ = writeln!(out, "\n    /// {doc}\n    pub fn {signature} {{\n        match self {{");
        for entry in &catalogue.error {
            let _ =
                writeln!(out, "            Code::{} => {},", variant(&entry.code), value(entry));
        }
        out.push_str("        }\n    }\n");
    };
    table(&mut out, "The word as it stands in `v`.", "as_str(self) -> &'static str", &|entry| {
        format!("{:?}", entry.code)
    });
    table(
        &mut out,
        "The HTTP status for callers who opted in to real ones.",
        "status(self) -> u16",
        &|entry| entry.status.to_string(),
    );
    table(
        &mut out,
        "What was wrong and what to do, for a person.",
        "text(self) -> &'static str",
        &|entry| format!("{:?}", entry.text),
    );
    let always: Vec<_> = catalogue
        .error
        .iter()
        .filter(|entry| entry.always)
        .map(|entry| format!("Code::{}", variant(&entry.code)))
        .collect();
    let _ = writeln!(
        out,
        "\n    /// Whether the status is real even in the compatible mode.\n    \
         pub fn is_always_real(self) -> bool {{\n        matches!(\n            self,\n            {}\n        )\n    }}\n}}",
        always.join(" | ")
    );
    rustfmt(out)
}

fn errors_markdown(catalogue: &Catalogue) -> String {
    let mut out = String::from(
        "# Errors\n\nMade from `crates/wire/errors.toml` by `cargo xtask codegen`.\n\n\
         A domain error answers HTTP 200 with `{\"v\":\"<code>\",\"s\":\"error\"}`; with \
         `Accept: application/problem+json` it answers the status below. Statuses in bold are \
         real for everyone.\n\n| code | status | meaning |\n|---|---|---|\n",
    );
    for entry in &catalogue.error {
        let bold = if entry.always { "**" } else { "" };
        let _ =
            writeln!(out, "| `{}` | {bold}{}{bold} | {} |", entry.code, entry.status, entry.text);
    }
    out
}

fn variant(code: &str) -> String {
    let mut out = String::new();
    for word in code.split('_').filter(|word| !word.is_empty()) {
        let mut letters = word.chars();
        out.extend(letters.next().map(|letter| letter.to_ascii_uppercase()));
        out.push_str(letters.as_str());
    }
    out
}

/// Formats with the repository's settings; rustfmt is part of the pinned toolchain.
fn rustfmt(source: String) -> String {
    use std::io::Write as _;
    use std::process::{Command, Stdio};
    let child = Command::new("rustfmt")
        .args(["--edition", "2024", "--config", "style_edition=2024,use_small_heuristics=Max"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn();
    let Ok(mut child) = child else { return source };
    if let Some(mut input) = child.stdin.take() {
        let _ = input.write_all(source.as_bytes());
    }
    match child.wait_with_output() {
        Ok(output) if output.status.success() => String::from_utf8(output.stdout).unwrap_or(source),
        _ => source,
    }
}
