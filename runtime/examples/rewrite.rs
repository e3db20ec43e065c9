//! `rewrite IN.spv OUT.spv [--stats]`: rewrites a plain compute shader into a kernel; `cargo xtask rewrite` runs it.

use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (options, paths): (Vec<_>, Vec<_>) = args.iter().partition(|arg| arg.starts_with("--"));
    let ([from, to], true) = (&paths[..], options.iter().all(|option| *option == "--stats")) else {
        eprintln!("usage: rewrite IN.spv OUT.spv [--stats]");
        return ExitCode::FAILURE;
    };
    match run(from, to, !options.is_empty()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {from}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(from: &str, to: &str, stats: bool) -> Result<(), Box<dyn std::error::Error>> {
    let rewritten = vksvm::kernel::rewrite::rewrite(&std::fs::read(from)?)?;
    let bytes: Vec<u8> = rewritten.words.iter().flat_map(|word| word.to_le_bytes()).collect();
    std::fs::write(to, bytes)?;
    if stats {
        println!("{}", rewritten.stats);
    }
    Ok(())
}
