//! `cargo xtask ci`: every check that a change must pass, cheapest first; stops at the first that fails.

use anyhow::{Result, bail};
use clap::Args;

use crate::{
    cargo::{self, heading},
    driver::Choice,
    shaders::Shaders,
    test::Test,
};

/// Checks format, lints, documentation and committed SPIR-V, then runs all tests and the bounded models.
#[derive(Args)]
pub(crate) struct Ci {}

impl Ci {
    pub(crate) fn run(self, choice: Choice) -> Result<()> {
        for (tool, component) in [("fmt", "rustfmt"), ("clippy", "clippy")] {
            if !cargo::succeeds(cargo::cargo().args([tool, "--version"])) {
                bail!("`cargo {tool}` is missing; install it with `rustup component add {component}`");
            }
        }
        heading("format");
        cargo::run(cargo::cargo().args(["fmt", "--all", "--check"]))?;
        heading("lints");
        cargo::run(cargo::cargo().args(["clippy", "--workspace", "--all-targets", "--", "--deny", "warnings"]))?;
        heading("documentation");
        let mut doc = cargo::cargo();
        cargo::run(doc.args(["doc", "--workspace", "--no-deps"]).env("RUSTDOCFLAGS", "--deny warnings"))?;
        heading("SPIR-V");
        Shaders::checking().run()?;
        Test::everything().run(choice)
    }
}
