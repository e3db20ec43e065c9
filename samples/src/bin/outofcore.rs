//! c = a * b with matrices several times larger than the device memory that they may take, by one kernel that knows nothing of that.

use anyhow::{Context, Result, ensure};
use clap::{Parser, ValueEnum};
use std::time::{Duration, Instant};
use vksvm::{Placement, Svm, SvmVec};
use vksvm_samples::progress;

/// Rows and columns of a tile: those of a workgroup.
const TILE: u32 = 16;
/// Columns of a, and rows of b, that a launch works on.
const DEPTH: u32 = 64;

/// Multiplies matrices that are larger than the device memory that they may take
#[derive(Parser)]
struct Options {
    /// Rows and columns, a multiple of 64
    #[arg(default_value_t = 1024, value_parser = clap::value_parser!(u32).range(64..=8192))]
    n: u32,
    /// Device memory in MiB [default: a quarter of what the matrices take]
    #[arg(long)]
    budget: Option<u64>,
    /// The policies for short memory: by forecast, part by part and ahead of need, or simply going round
    #[arg(long, value_enum, default_value_t = Policy::Both)]
    policy: Policy,
}

#[derive(ValueEnum, Clone, Copy, PartialEq)]
enum Policy {
    On,
    Off,
    /// One after the other
    Both,
}

fn main() -> Result<()> {
    let Options { n, budget, policy } = Options::parse();
    ensure!(n.is_multiple_of(DEPTH), "{n} is no multiple of {DEPTH}");
    let bytes = 3 * 4 * u64::from(n) * u64::from(n);
    let budget = budget.map_or(bytes / 4, |mebibytes| mebibytes << 20);
    println!("matrices of {:.1} MiB, budget of {:.1} MiB", mebibytes(bytes), mebibytes(budget));
    let mut times = Vec::new();
    for on in [true, false] {
        if policy == if on { Policy::Off } else { Policy::On } {
            continue;
        }
        times.push(multiply(n, budget, on)?);
    }
    if let [on, off] = times[..] {
        println!("\nwith the policies {on:.2?}, without {off:.2?}: {:.1} times", off.as_secs_f64() / on.as_secs_f64());
    }
    println!("ok: the product is right");
    Ok(())
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// Multiplies once, prints what the runtime did, and checks the product.
fn multiply(n: u32, budget: u64, policy: bool) -> Result<Duration> {
    let svm = Svm::builder().budget(budget).placement(Placement::Copy).eviction_policy(policy).build()?;
    let size = n as usize;
    // Small whole numbers, so that sums are exact.
    let value = |seed: usize, index: usize| ((index * 31 + index / size * 17 + seed) % 7) as f32 - 3.0;
    let matrix = |seed: usize| svm.heap().vec_from_slice(&(0..size * size).map(|i| value(seed, i)).collect::<Vec<_>>());
    let (a, b) = (matrix(1)?, matrix(2)?);
    let mut c = svm.heap().vec_zeroed::<f32>(size * size)?;
    // SAFETY: the kernel reads `n` rows of DEPTH floats of a, DEPTH rows of b, and reads and writes c; launches give it matrices of n by n.
    let kernel = unsafe { svm.kernel("matmul", include_bytes!("../../shaders/spv/matmul.spv"))? };
    let before = svm.stats();
    let bar = progress::bar("matrix multiply", u64::from(n / DEPTH));
    let start = Instant::now();
    for from in (0..size).step_by(DEPTH as usize) {
        let launch = kernel.launch([n / TILE, n / TILE, 1]);
        let launch = launch.read(&a[from..]).read(&b[from * size..(from + DEPTH as usize) * size]).write(&mut c[..]);
        launch.value(n).value(DEPTH).run().context("multiplying")?;
        bar.inc(1);
    }
    let time = start.elapsed();
    bar.finish_and_clear();
    let done = svm.stats().since(&before);
    println!("\npolicies {}: {time:.2?}\n{done}", if policy { "on" } else { "off" });
    println!(
        "  moved {:.1} times what the matrices take",
        (done.bytes_in() + done.bytes_out()) as f64 / (12 * size * size) as f64
    );
    check(size, &a, &b, &c)?;
    Ok(time)
}

/// Checks c = a * b by multiplying both sides with a vector.
fn check(n: usize, a: &SvmVec<f32>, b: &SvmVec<f32>, c: &SvmVec<f32>) -> Result<()> {
    let times = |matrix: &SvmVec<f32>, vector: &[f64]| -> Vec<f64> {
        matrix.chunks(n).map(|row| row.iter().zip(vector).map(|(&x, y)| f64::from(x) * y).sum()).collect()
    };
    let vector: Vec<f64> = (0..n).map(|i| (i % 11) as f64 - 5.0).collect();
    let wanted = times(a, &times(b, &vector));
    let wrong = times(c, &vector).iter().zip(&wanted).filter(|(found, wanted)| found != wanted).count();
    ensure!(wrong == 0, "{wrong} of {n} rows are wrong");
    Ok(())
}
