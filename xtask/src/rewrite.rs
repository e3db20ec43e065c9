//! `cargo xtask rewrite`: the pass that turns plain compute shaders into kernels, on its own.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use crate::cargo;

/// Rewrites a plain compute shader, so that what the runtime makes of it can be studied.
#[derive(Args)]
pub(crate) struct Rewrite {
    /// The SPIR-V module to read
    #[arg(value_name = "IN.spv")]
    from: PathBuf,
    /// Where to write the rewritten one
    #[arg(value_name = "OUT.spv")]
    to: PathBuf,
    /// Print what was found and done
    #[arg(long)]
    stats: bool,
}

impl Rewrite {
    pub(crate) fn run(self) -> Result<()> {
        let mut command = cargo::cargo();
        // File names are relative to where the user is.
        command.current_dir(std::env::current_dir().unwrap_or_else(|_| PathBuf::from(".")));
        command.arg("run").arg("--quiet").arg("--manifest-path").arg(cargo::root().join("Cargo.toml"));
        command.args(["--release", "--package", "vksvm", "--example", "rewrite", "--"]).arg(self.from).arg(self.to);
        command.args(self.stats.then_some("--stats"));
        cargo::run(&mut command)
    }
}
