//! Random plain shaders against an interpreter.
//!
//! Each program is rewritten and run cold and warm, replayed and live, with room and with as many frames as a workgroup needs; replayed also
//! hot, several times in a row, the last of them by its fast variant. What it leaves in memory must be what the interpreter left. A program that fails is made smaller while it still fails, and printed.
//!
//! `VKSVM_FUZZ_SECONDS` sets how long (default 5, CI sets 60), `VKSVM_FUZZ_SEED` repeats a run: the seed that is printed with a
//! failure makes the failing program the first. `VKSVM_FUZZ_VERBOSE=1` says which program runs, and keeps its module.

mod emit;
mod function;
mod generate;
mod interpret;
mod program;
mod types;

use interpret::{Unusable, World};
use program::{COUNTER_STRIDE, COUNTERS, Program};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use types::Memory;
use vksvm::{FaultMode, Svm, SvmVec};
use vksvm_tests::{Fixture, moving, with};

/// How long a failing program is made smaller.
const REDUCING: Duration = Duration::from_secs(60);

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Programs of more words take drivers too long.
const MAX_WORDS: usize = 3000;

/// Makes the program of a seed, and the random numbers that fill its memory.
fn program_of(seed: u64) -> (Program, SmallRng) {
    let mut random = SmallRng::seed_from_u64(seed);
    loop {
        let program = generate::program(&mut random);
        if emit::emit(&program).len() <= MAX_WORDS {
            return (program, random);
        }
    }
}

/// Has llvmpipe compile without optimising, which takes most of the time.
pub(super) fn compile_fast() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        if std::env::var_os("GALLIVM_PERF").is_none() {
            // SAFETY: before these tests open a device; other tests' threads do not write the environment, and read it under std's lock.
            unsafe { std::env::set_var("GALLIVM_PERF", "nopt") };
        }
    });
}

fn bytes_of(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// Memory of a program in the heap.
struct Buffers {
    source: Buffer,
    destination: Buffer,
    counters: Buffer,
}

/// Aligned to 16 bytes.
type Buffer = SvmVec<u128>;

fn buffer(svm: &Svm, bytes: usize) -> Buffer {
    svm.heap().vec_from_slice(&vec![0u128; bytes.div_ceil(16)]).expect("the heap has room")
}

fn memory_of(buffer: &[u128]) -> Memory {
    Memory { base: buffer.as_ptr() as u64, bytes: bytemuck::cast_slice(buffer).to_vec() }
}

/// How a program is run.
#[derive(Clone, Copy, Debug)]
struct How {
    mode: FaultMode,
    tight: bool,
}

/// Launches in a row, nobody looking in between: the first maps what the CPU wrote, the second misses nothing, the third is fast.
const HOT: u32 = 3;

/// Runs a program; says what went wrong.
fn run(svm: &Svm, program: &Program, random: &SmallRng, How { mode, tight }: How) -> Result<(), String> {
    let replayed = mode == FaultMode::Replay;
    let types = &program.types;
    let mut buffers = Buffers {
        source: buffer(svm, types.buffer_bytes(0..types.destination())),
        destination: buffer(svm, types.buffer_bytes(types.destination()..types.nodes.len())),
        counters: buffer(svm, (COUNTERS * COUNTER_STRIDE) as usize),
    };
    let mut world = World {
        source: memory_of(&buffers.source),
        destination: memory_of(&buffers.destination),
        counters: memory_of(&buffers.counters),
    };
    types.fill(&mut random.clone(), &mut world.source, &mut world.destination);
    random.clone().fill(&mut world.counters.bytes[..]);
    bytemuck::cast_slice_mut(&mut buffers.source[..]).copy_from_slice(&world.source.bytes);
    let expected = match interpret::run(program, world.clone()) {
        Ok(run) => run,
        Err(Unusable::Long) => return Ok(()),
        Err(Unusable::Wild(what)) => panic!("the generator made a program that goes astray: {what}\n{program:#?}"),
    };
    let interpret::Run { world: expected, pages } = expected;
    if tight {
        svm.set_budget(pages.max(1) as u64 * 4096);
    }
    let words = emit::emit(program);
    // SAFETY: the interpreter has shown that the program stays inside its buffers.
    let kernel = unsafe { svm.kernel("random", &bytes_of(&words)) }.map_err(|error| error.to_string())?;
    // Hot, each launch goes on from what the one before left.
    let mut hot = expected.clone();
    let lasts = replayed
        && (1..HOT).all(|_| {
            interpret::run(program, hot.clone()).is_ok_and(|run| {
                hot = run.world;
                true
            })
        });
    for (temperature, launches) in [("cold", 1), ("warm", 1), ("hot", HOT)] {
        let expected = match temperature {
            "hot" if !lasts => continue,
            "hot" => &hot,
            _ => &expected,
        };
        bytemuck::cast_slice_mut(&mut buffers.destination[..]).copy_from_slice(&world.destination.bytes);
        bytemuck::cast_slice_mut(&mut buffers.counters[..]).copy_from_slice(&world.counters.bytes);
        for _ in 0..launches {
            let mut launch = kernel.launch([program.grid[0], program.grid[1], 1]);
            for node in 0..types.nodes.len() {
                let address = types.address(node, 0, world.source.base, world.destination.base);
                launch = launch.value(address);
            }
            // A block ends at the alignment of its members.
            let launch = launch.value(world.counters.base).value(program.count);
            let launch = if kernel.module().argument_bytes.is_multiple_of(8) { launch.value(0u32) } else { launch };
            launch.run().map_err(|error| format!("{temperature}: {error}"))?;
        }
        for (name, buffer, expected) in [
            ("source", &buffers.source, &expected.source),
            ("destination", &buffers.destination, &expected.destination),
            ("counters", &buffers.counters, &expected.counters),
        ] {
            let found: &[u8] = bytemuck::cast_slice(&buffer[..]);
            if let Some(at) = (0..found.len()).find(|&at| found[at] != expected.bytes[at]) {
                let (is, should) = (found[at], expected.bytes[at]);
                return Err(format!("{temperature}: {name} byte {at} is {is:#x} and should be {should:#x}"));
            }
        }
    }
    Ok(())
}

/// A runtime that keeps nothing of the programs, which never come again.
fn open(mode: FaultMode) -> Fixture {
    with(|builder| builder.fault_mode(mode).cache(None))
}

/// Runtimes for the programs to come: one for each mode with room; those with few frames are opened for each program.
struct Runtimes {
    roomy: Vec<(FaultMode, Fixture)>,
}

impl Runtimes {
    fn open(modes: &[FaultMode]) -> Self {
        Self { roomy: modes.iter().map(|&mode| (mode, open(mode))).collect() }
    }

    fn run(&self, how: How, program: &Program, random: &SmallRng) -> Result<(), String> {
        if how.tight {
            let svm = moving(|builder| builder.fault_mode(how.mode).cache(None));
            return run(&svm, program, random, how);
        }
        let svm = self.roomy.iter().find(|(mode, _)| *mode == how.mode).map(|(_, svm)| svm);
        run(svm.expect("open for every mode"), program, random, how)
    }
}

/// Makes a failing program smaller while it still fails.
fn reduce(program: Program, fails: impl Fn(&Program) -> Option<String>) -> Program {
    let begin = Instant::now();
    let mut smallest = program;
    let mut which = 0;
    while begin.elapsed() < REDUCING {
        let Some(candidate) = smallest.without(which) else { break };
        if fails(&candidate).is_some() {
            smallest = candidate;
        } else {
            which += 1;
        }
    }
    smallest
}

/// Names the program during which something panics, such as the validation layers' complaints.
struct Named {
    seed: u64,
    how: How,
}

impl Drop for Named {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("VKSVM_FUZZ_SEED={}, {:?}", self.seed, self.how);
        }
    }
}

fn fuzz(modes: &[FaultMode]) {
    let first: u64 = setting("VKSVM_FUZZ_SEED").unwrap_or_else(|| SmallRng::from_os_rng().random());
    let seconds = setting("VKSVM_FUZZ_SECONDS").unwrap_or(5);
    println!("VKSVM_FUZZ_SEED={first}");
    let verbose = setting("VKSVM_FUZZ_VERBOSE").is_some();
    compile_fast();
    let runtimes = Runtimes::open(modes);
    let begin = Instant::now();
    let mut programs = 0u64;
    while begin.elapsed() < Duration::from_secs(seconds) || programs < 3 {
        let seed = first.wrapping_add(programs);
        let (program, random) = program_of(seed);
        if verbose {
            println!("{}", write(seed, &program).display());
        }
        for (mode, tight) in modes.iter().flat_map(|&mode| [(mode, false), (mode, true)]) {
            let how = How { mode, tight };
            let _named = Named { seed, how };
            if verbose {
                println!("program {seed}, {how:?}");
            }
            let start = Instant::now();
            let result = runtimes.run(how, &program, &random);
            if verbose {
                println!("… took {:?}", start.elapsed());
            }
            if let Err(error) = result {
                // A program without an access left is refused, which is another failure.
                let fails = |program: &Program| {
                    runtimes.run(how, program, &random).err().filter(|e| !e.contains("follows no pointers"))
                };
                let small = reduce(program, fails);
                let reduced = runtimes.run(how, &small, &random).err();
                let error = format!("{error}; reduced: {}", reduced.unwrap_or_default());
                let path = write(seed, &small);
                panic!("VKSVM_FUZZ_SEED={seed}, {how:?}: {error}\nthe module: {}\n{small:#?}", path.display());
            }
        }
        programs += 1;
    }
    println!("{programs} programs in {:?}", begin.elapsed());
}

/// Keeps a program's module for a look at it.
fn write(seed: u64, program: &Program) -> PathBuf {
    let path = std::env::temp_dir().join(format!("vksvm-random-{seed}.spv"));
    if let Err(error) = std::fs::write(&path, bytes_of(&emit::emit(program))) {
        eprintln!("{}: {error}", path.display());
    }
    path
}

#[test]
fn random_shaders_do_what_the_interpreter_does_replayed() {
    fuzz(&[FaultMode::Replay]);
}

#[test]
fn random_shaders_do_what_the_interpreter_does_live() {
    fuzz(&[FaultMode::Live]);
}
