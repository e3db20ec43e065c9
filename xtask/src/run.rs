//! `cargo xtask demo` and `cargo xtask run`: sample programs, optimised, on the device. The program's output
//! and its exit status are passed through.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::{
    cargo,
    driver::{self, Choice, Profile},
};

const SAMPLES: &str = "vksvm-samples";

/// Builds a bounding-volume hierarchy out of linked heap nodes on the CPU, ray-traces it on the device
/// through the same pointers, changes it on the CPU, ray-traces it again, and compares both pictures with
/// the CPU's. Ends with `demo: ok` and its figures.
#[derive(Args)]
pub(crate) struct Demo {
    /// More arguments for the sample `raytrace`
    #[arg(last = true)]
    args: Vec<String>,
}

impl Demo {
    pub(crate) fn run(self, choice: Choice) -> Result<()> {
        let args = [vec!["--demo".to_owned()], self.args].concat();
        program(choice, SAMPLES, "raytrace", &args)
    }
}

/// Runs one of the sample programs, optimised, on the device that `cargo xtask driver` finds.
#[derive(Args)]
pub(crate) struct Run {
    /// The sample's name (`saxpy`, `raytrace`, `graph`, `outofcore`, `pingpong`, `info`), then its arguments (`--help` lists them)
    #[arg(required = true, value_name = "NAME [ARGS]", trailing_var_arg = true, allow_hyphen_values = true)]
    words: Vec<String>,
}

impl Run {
    pub(crate) fn run(self, choice: Choice) -> Result<()> {
        let (name, args) = self.words.split_first().context("no sample named")?;
        program(choice, SAMPLES, name, args)
    }
}

/// Runs a binary of the workspace, built for release, on a device, in the folder the user is in.
pub(crate) fn program(choice: Choice, package: &str, binary: &str, args: &[String]) -> Result<()> {
    let known = cargo::binaries(package);
    if !known.iter().any(|name| name == binary) {
        bail!("the package `{package}` has no program `{binary}`; it has: {}", known.join(", "));
    }
    let device = driver::ensure(choice, Profile::Release)?;
    let mut command = cargo::cargo();
    // File names among the arguments are relative to where the user is.
    command.current_dir(std::env::current_dir().unwrap_or_else(|_| PathBuf::from(".")));
    command.arg("run").arg("--manifest-path").arg(cargo::root().join("Cargo.toml"));
    command.args(["--package", package, "--bin", binary]).args(Profile::Release.args()).arg("--").args(args);
    cargo::run(device.prepare(&mut command)?)
}
