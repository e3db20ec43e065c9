//! `vksvm-bench`: benchmarks of the runtime, each with the alternative a user would pick and the physical limit measured in
//! the same run.
//!
//! Every bench interleaves its contestants (A B A B …), so that a noisy machine disturbs all of them alike, and compares
//! them round by round: a ratio is the median of the rounds' ratios. Results are checked in every round.

mod benches;
mod harness;
mod kernels;
mod output;

use anyhow::{Context, Result, bail};
use clap::Parser;
use harness::Suite;
use std::path::PathBuf;
use std::process::ExitCode;

/// Benchmarks of vksvm against hand-written alternatives and the limits of the machine.
#[derive(Parser)]
struct Arguments {
    /// Which benchmarks (default: all); `list` prints their names
    names: Vec<String>,
    /// Smaller sizes and fewer repetitions; each benchmark ends within 60 seconds
    #[arg(long)]
    quick: bool,
    /// Write the results to this file as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draw the results as SVG files into this folder
    #[arg(long, value_name = "DIR")]
    svg: Option<PathBuf>,
    /// Rounds of each measurement (default: each benchmark's own)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    runs: Option<u32>,
    /// Only cases whose names contain this, in benchmarks that measure cases one by one (`coalesce`, `cold`,
    /// `invalidate`, `live`, `oversub`, `resident`, `rewrite`, `sparse`, `thrash`)
    #[arg(long, value_name = "TEXT")]
    case: Option<String>,
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vksvm-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<()> {
    let all = benches::all();
    if arguments.names == ["list"] {
        for bench in &all {
            println!("{:12} {}", bench.name, bench.about);
        }
        return Ok(());
    }
    if let Some(unknown) = arguments.names.iter().find(|name| !all.iter().any(|bench| bench.name == **name)) {
        let known: Vec<_> = all.iter().map(|bench| bench.name).collect();
        bail!("there is no benchmark `{unknown}`; there are {}", known.join(", "));
    }
    let mut rows = Vec::new();
    let mut failed = Vec::new();
    for bench in &all {
        if !arguments.names.is_empty() && !arguments.names.iter().any(|name| name == bench.name) {
            continue;
        }
        let mut suite = Suite::new(bench.name, arguments.quick, arguments.runs, arguments.case.clone());
        // What was measured before a failure is shown all the same.
        if let Err(error) = (bench.run)(&mut suite) {
            eprintln!("vksvm-bench: {}: {error:#}", bench.name);
            failed.push(bench.name);
        }
        let measured = suite.finish();
        output::table(bench.name, bench.about, &measured);
        rows.extend(measured);
        // Written after each bench, so that an interrupted run leaves something.
        if let Some(path) = &arguments.json {
            output::json(path, &rows).with_context(|| format!("cannot write {}", path.display()))?;
        }
    }
    if let Some(folder) = &arguments.svg {
        output::svg(folder, &rows).with_context(|| format!("cannot draw into {}", folder.display()))?;
    }
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    Ok(())
}
