//! `cargo xtask bench`: the benchmark program, optimised, on the device.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;

use crate::{cargo, driver::Choice, run};

const BENCH: &str = "vksvm-bench";

/// Runs the benchmarks; each measures the alternative and the physical limit in the same run.
#[derive(Args)]
pub(crate) struct Bench {
    /// Which benchmarks (default: all)
    names: Vec<String>,
    /// Smaller sizes and fewer repetitions
    #[arg(long)]
    quick: bool,
    /// Write the results to this file as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draw the results as SVG files into this folder
    #[arg(long, value_name = "DIR")]
    svg: Option<PathBuf>,
}

impl Bench {
    pub(crate) fn run(self, choice: Choice) -> Result<()> {
        if !cargo::has_package(BENCH) {
            bail!("there are no benchmarks yet: this workspace has no package `{BENCH}`");
        }
        let mut args = self.names;
        args.extend(self.quick.then(|| "--quick".to_owned()));
        for (option, path) in [("--json", self.json), ("--svg", self.svg)] {
            args.extend(path.map(|path| format!("{option}={}", path.display())));
        }
        run::program(choice, BENCH, BENCH, &args)
    }
}
