//! y = a * x + y, on ordinary vectors that a Vulkan device reads and writes where they are.

use anyhow::{Result, ensure};
use clap::Parser;

/// Computes y = a * x + y on a Vulkan device and checks the result
#[derive(Parser)]
struct Options {
    /// Number of elements
    #[arg(default_value_t = 1_000_000, value_parser = clap::value_parser!(u32).range(1..=4_000_000))]
    n: u32,
}

fn main() -> Result<()> {
    let Options { n } = Options::parse();
    let svm = vksvm::Svm::new()?;
    let x = svm.heap().vec_from_slice(&vec![1.0f32; n as usize])?;
    let mut y = svm.heap().vec_from_slice(&(0..n).map(|i| i as f32).collect::<Vec<_>>())?;

    // SAFETY: the kernel reads x[..n], and reads and writes y[..n]; every launch below gives it vectors of n elements.
    let saxpy = unsafe { svm.kernel("saxpy", include_bytes!("../../shaders/spv/saxpy.spv"))? };
    let groups = n.div_ceil(64); // of 64 invocations
    let report = saxpy.launch([groups, 1, 1]).read(&x[..]).write(&mut y[..]).value(2.0f32).value(n).run()?;

    println!("{report}");
    let wrong = (0..n).filter(|&i| y[i as usize] != 2.0 + i as f32).count();
    ensure!(wrong == 0, "{wrong} of {n} results are wrong");
    println!("ok: {n} results are right");
    Ok(())
}
