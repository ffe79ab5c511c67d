//! `cargo xtask VERB`: everything that is done to this repository, in Rust.

mod codegen;

use std::path::Path;

fn main() -> anyhow::Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."));
    codegen::write(root)
}
