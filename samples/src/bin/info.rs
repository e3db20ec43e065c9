//! Says which device the runtime would use and how; or why none can be used, and what to do about it.

use clap::Parser;
use std::process::ExitCode;

/// Shows the Vulkan device that vksvm uses, how it tracks CPU accesses, and the shared heap
#[derive(Parser)]
#[command(version)]
struct Options {}

fn main() -> ExitCode {
    let Options {} = Options::parse();
    match vksvm::Svm::new() {
        Ok(svm) => {
            println!("{}", svm.info());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("Error: {error}");
            ExitCode::FAILURE
        }
    }
}
