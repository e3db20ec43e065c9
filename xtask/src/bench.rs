//! `cargo xtask bench`: the benchmark program, optimised, on the device.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use crate::{driver::Choice, run};

const BENCH: &str = "vksvm-bench";

/// Runs the benchmarks; each measures the alternative and the physical limit in the same run.
#[derive(Args)]
pub(crate) struct Bench {
    /// Which benchmarks (default: all); `list` prints their names
    names: Vec<String>,
    /// Smaller sizes and fewer repetitions
    #[arg(long)]
    quick: bool,
    /// Rounds of each measurement (default: each benchmark's own)
    #[arg(long, value_name = "N")]
    runs: Option<u32>,
    /// Only cases whose names contain this, in benchmarks that measure cases one by one
    #[arg(long, value_name = "TEXT")]
    case: Option<String>,
    /// Write the results to this file as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draw the results as SVG files into this folder
    #[arg(long, value_name = "DIR")]
    svg: Option<PathBuf>,
}

impl Bench {
    pub(crate) fn run(self, choice: Choice) -> Result<()> {
        let mut args = self.names;
        args.extend(self.quick.then(|| "--quick".to_owned()));
        for (option, path) in [("--json", self.json), ("--svg", self.svg)] {
            args.extend(path.map(|path| format!("{option}={}", path.display())));
        }
        args.extend(self.runs.map(|runs| format!("--runs={runs}")));
        args.extend(self.case.map(|case| format!("--case={case}")));
        run::program(choice, BENCH, BENCH, &args)
    }
}
