//! `cargo xtask`: everything one does with this repository besides editing it, on a machine that has
//! nothing but a Rust toolchain. Each command has a module; `driver` finds or fetches a Vulkan device
//! for those that need one.

mod bench;
mod cargo;
mod ci;
mod driver;
mod models;
mod rewrite;
mod run;
mod shaders;
mod test;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Build, run, test and check vksvm.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", disable_help_subcommand = true)]
struct Cli {
    #[command(flatten)]
    choice: driver::Choice,
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Ray-trace a pointer tree on the device, with pages that move, and compare with the CPU (ends with `demo: ok`)
    Demo(run::Demo),
    /// Run one of the sample programs on the device
    Run(run::Run),
    /// Run all tests, under both trackers, and in live mode
    Test(test::Test),
    /// Run the benchmarks
    Bench(bench::Bench),
    /// Compile the kernels to the SPIR-V that is committed beside them
    Shaders(shaders::Shaders),
    /// Turn a plain compute shader into the kernel that the runtime would make of it
    Rewrite(rewrite::Rewrite),
    /// Find or set up a Vulkan device and say which
    Driver(driver::Driver),
    /// Print `export` lines under which plain cargo commands use the device: eval "$(cargo xtask env)"
    Env,
    /// What continuous integration runs: format, lints, docs, SPIR-V, tests
    Ci(ci::Ci),
}

fn main() -> ExitCode {
    let Err(error) = run(Cli::parse()) else { return ExitCode::SUCCESS };
    eprintln!("error: {error}");
    error.chain().skip(1).for_each(|cause| eprintln!("because: {cause}"));
    ExitCode::FAILURE
}

fn run(Cli { choice, task }: Cli) -> Result<()> {
    match task {
        Task::Demo(demo) => demo.run(choice),
        Task::Run(run) => run.run(choice),
        Task::Test(test) => test.run(choice),
        Task::Bench(bench) => bench.run(choice),
        Task::Shaders(shaders) => shaders.run(),
        Task::Rewrite(rewrite) => rewrite.run(),
        Task::Driver(driver) => driver.run(choice),
        Task::Env => driver::print_env(choice),
        Task::Ci(ci) => ci.run(choice),
    }
}
