//! `thrash`: CPU and a running kernel on the same pages, with the policy off, throttling only, and full.
//!
//! In *turns*, a strict ping-pong, each side waits for the other. In *false sharing* each adds to words of its own on the same
//! pages, in *true sharing* to the same words; the CPU does nothing for as long after each addition as the kernel needs for one.
//! *Producer and consumer* hand over a page's worth of data each turn. Peers: the policy off, and the best placement that
//! a programmer can choose by hand for such memory: at home, where both sides reach it; for turns also plain Vulkan on a buffer that both sides
//! map. Kernels run in live mode, so that both sides run at once; the rest, where nothing is fought over, in the mode that the environment
//! says.

use crate::harness::{Samples, Suite, Wanted, seconds};
use crate::kernels::{Push, Raw, STREAM_GROUP, idempotent, once};
use crate::spirv;
use anyhow::{Result, ensure};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use vksvm::device::vulkan::{RawBuffer, RawCommand, RawKernel};
use vksvm::{Builder, FaultMode, Kernel, Mapping, Permission, Stats, Svm, ThrashOptions, ThrashPolicy};

const ROUNDS: u32 = 5;
const PAGE: usize = 4096;
/// Ends a game of turns.
const END: u32 = u32::MAX;
/// Where on a page the CPU's word is that it shares falsely.
const FALSE: usize = 64;

pub(super) fn run(suite: &mut Suite) -> Result<()> {
    let games = contestants(suite, |builder| builder.fault_mode(FaultMode::Live))?;
    let mut raw = RawDuel::new(&games[0].svm)?;
    for pages in [1, 16, 256] {
        turns(suite, &games, &mut raw, &format!("turns on {pages} pages"), pages, 0)?;
    }
    turns(suite, &games, &mut raw, "producer and consumer", 16, (PAGE / 4 - 1) as u32)?;
    drop(raw);
    sharing(suite, &games, "false sharing", FALSE)?;
    sharing(suite, &games, "true sharing", 0)?;
    drop(games);
    peaceful(suite)
}

/// The contestants, in order.
const NAMES: [&str; 4] = ["off", "throttle", "full", "at home by hand"];

fn contestants(suite: &mut Suite, options: impl Fn(Builder) -> Builder) -> Result<Vec<Game>> {
    let policy = |policy| ThrashOptions { policy, ..ThrashOptions::default() };
    let mut games = Vec::new();
    for which in [ThrashPolicy::Off, ThrashPolicy::Throttle, ThrashPolicy::Full] {
        games.push(Game::new(suite.open_moving(|builder| options(builder).thrash(policy(which)))?)?);
    }
    let at_home = |builder| options(builder).thrash(policy(ThrashPolicy::Off)).placement(vksvm::Placement::Remote);
    games.push(Game::new(suite.open_moving(at_home)?)?);
    Ok(games)
}

/// A runtime with its kernels.
struct Game {
    svm: Svm,
    duel: Kernel,
    contend: Kernel,
}

/// What a game came to.
struct Score {
    cpu: f64,
    device: f64,
    stats: Stats,
}

impl Game {
    fn new(svm: Svm) -> Result<Self> {
        let duel = once(&svm, "duel", spirv!("duel"))?;
        let contend = once(&svm, "contend", spirv!("contend"))?;
        Ok(Self { svm, duel, contend })
    }

    /// Turns a second.
    fn turns(&self, pages: usize, payload: u32, time: Duration) -> Result<Score> {
        let words = self.svm.map(pages * PAGE, Permission::ReadWrite)?;
        let result = self.svm.map(PAGE, Permission::ReadWrite)?;
        // The answers lie beside the payload where there is none, else on a page of their own: data flows one way.
        let answers = self.svm.map(pages * PAGE, Permission::ReadWrite)?;
        let answers = if payload == 0 { &words } else { &answers };
        for page in 0..pages {
            word(&words, page * PAGE).store(0, Ordering::Relaxed);
        }
        let before = self.svm.stats();
        let launch = self.duel.launch([1, 1, 1]);
        // SAFETY: the mappings outlive the launch, which is waited for below; both sides access them atomically, or in turns.
        let launch = unsafe {
            launch.pointer(words.as_ptr()).pointer(answers.as_ptr()).pointer(result.as_ptr()).value(PAGE as u32)
        };
        // SAFETY: as above.
        let running = unsafe { launch.value(pages as u32).value(payload).value(0u32).submit_unscoped() }?;
        let ended = || {
            ensure!(!running.is_done(), "the kernel ended early");
            Ok(())
        };
        let (turn, elapsed, sum) = play(|at| word(&words, at), |at| word(answers, at), pages, payload, time, ended)?;
        word(&words, turn as usize % pages * PAGE).store(END, Ordering::Release);
        running.wait()?;
        ensure!(word(&result, 0).load(Ordering::Relaxed) == sum, "the kernel read something else than the CPU stored");
        let turns = f64::from(turn) / elapsed;
        Ok(Score { cpu: turns, device: turns, stats: self.svm.stats().since(&before) })
    }

    /// Additions a second. The CPU makes one each `period`.
    fn sharing(&self, apart: usize, period: Duration, time: Duration) -> Result<Score> {
        let words = self.svm.map(PAGE, Permission::ReadWrite)?;
        let (stop, result) = (self.svm.map(PAGE, Permission::ReadWrite)?, self.svm.map(PAGE, Permission::ReadWrite)?);
        let before = self.svm.stats();
        let launch = self.contend.launch([1, 1, 1]);
        // SAFETY: as in `turns`.
        let launch = unsafe { launch.pointer(words.as_ptr()).pointer(stop.as_ptr()).pointer(result.as_ptr()) };
        // SAFETY: as above.
        let running = unsafe { launch.value(PAGE as u32).value(1u32).submit_unscoped() }?;
        // The kernel may first have to be compiled.
        while word(&words, 0).load(Ordering::Relaxed) == 0 && !running.is_done() {
            std::thread::sleep(Duration::from_millis(1));
        }
        let (start, before_start, mut count) = (Instant::now(), word(&words, 0).load(Ordering::Relaxed), 0u32);
        let mut now = start;
        while now < start + time {
            word(&words, apart).fetch_add(1, Ordering::Relaxed);
            count += 1;
            let rested = now + period;
            now = Instant::now();
            while now < rested {
                std::hint::spin_loop();
                now = Instant::now();
            }
        }
        let elapsed = start.elapsed().as_secs_f64();
        word(&stop, 0).store(1, Ordering::Release);
        running.wait()?;
        let of_device = word(&result, 0).load(Ordering::Relaxed);
        let (first, second) = (word(&words, 0).load(Ordering::Relaxed), word(&words, apart).load(Ordering::Relaxed));
        let right = if apart == 0 { first == count + of_device } else { (first, second) == (of_device, count) };
        ensure!(right, "additions were lost: {first} and {second} of {of_device} and {count}");
        let stats = self.svm.stats().since(&before);
        let device = f64::from(of_device.saturating_sub(before_start)) / elapsed;
        Ok(Score { cpu: f64::from(count) / elapsed, device, stats })
    }
}

/// The CPU's side of a game of turns: how many there were, how many seconds they took, and the sum of what it stored.
fn play<'a>(
    words: impl Fn(usize) -> &'a AtomicU32,
    answers: impl Fn(usize) -> &'a AtomicU32,
    pages: usize,
    payload: u32,
    time: Duration,
    ended: impl Fn() -> Result<()>,
) -> Result<(u32, f64, u32)> {
    let start = Instant::now();
    let (mut sum, mut turn) = (0u32, 0u32);
    while start.elapsed() < time {
        let at = turn as usize % pages * PAGE;
        for i in 0..payload {
            words(at + 4 + 4 * i as usize).store(turn ^ i, Ordering::Relaxed);
            sum = sum.wrapping_add(turn ^ i);
        }
        words(at).store(2 * turn + 1, Ordering::Release);
        let mut polls = 0u32;
        while answers(at).load(Ordering::Acquire) != 2 * turn + 2 {
            ended()?;
            polls += 1;
            // There may be fewer processors than threads that want one.
            if polls.is_multiple_of(256) { std::thread::yield_now() } else { std::hint::spin_loop() }
        }
        turn += 1;
    }
    Ok((turn, start.elapsed().as_secs_f64(), sum))
}

/// The same kernel on plain Vulkan buffers that the host maps.
struct RawDuel {
    raw: Raw,
    kernel: RawKernel,
}

impl RawDuel {
    fn new(svm: &Svm) -> Result<Self> {
        let raw = Raw::new(svm)?;
        let kernel = raw.kernel("raw_duel", spirv!("raw_duel"), 40)?;
        Ok(Self { raw, kernel })
    }

    /// Turns a second.
    fn turns(&mut self, pages: usize, payload: u32, time: Duration) -> Result<f64> {
        let words = self.raw.results(pages * PAGE)?;
        let answers = self.raw.results(pages * PAGE)?;
        let answers = if payload == 0 { &words } else { &answers };
        let result = self.raw.results(PAGE)?;
        let push = Push::default().address(&words).address(answers).address(&result);
        let push = push.add(PAGE as u32).add(pages as u32).add(payload).add(0u32);
        let command = RawCommand::Dispatch { kernel: &self.kernel, push: push.bytes(), groups: [1, 1, 1] };
        // SAFETY: the kernel uses the buffers only, and is waited for before they go.
        unsafe { self.raw.stream.submit(&[command]) }?;
        let (start, limit) = (Instant::now(), time + Duration::from_secs(30));
        let ended = || {
            ensure!(start.elapsed() < limit, "the kernel does not answer");
            Ok(())
        };
        let played = play(|at| raw_word(&words, at), |at| raw_word(answers, at), pages, payload, time, ended);
        // All of them, since after a failure nobody knows which one the kernel looks at.
        (0..pages).for_each(|page| raw_word(&words, page * PAGE).store(END, Ordering::Release));
        self.raw.stream.wait()?;
        let (turn, elapsed, sum) = played?;
        ensure!(raw_word(&result, 0).load(Ordering::Relaxed) == sum, "the kernel read something else");
        Ok(f64::from(turn) / elapsed)
    }
}

/// A word of a buffer.
fn raw_word(buffer: &RawBuffer, at: usize) -> &AtomicU32 {
    assert!(at + 4 <= buffer.bytes() && at.is_multiple_of(4));
    let host = buffer.host().expect("results are mapped");
    // SAFETY: in bounds and aligned, and lives as long as the buffer; everybody accesses it atomically.
    unsafe { AtomicU32::from_ptr(host.as_ptr().add(at).cast()) }
}

/// A word of a mapping.
fn word(mapping: &Mapping, at: usize) -> &AtomicU32 {
    assert!(at + 4 <= mapping.len() && at.is_multiple_of(4));
    // SAFETY: in bounds and aligned, and lives as long as the mapping; everybody accesses it atomically.
    unsafe { AtomicU32::from_ptr(mapping.as_ptr().add(at).cast()) }
}

fn turns(suite: &mut Suite, games: &[Game], raw: &mut RawDuel, case: &str, pages: usize, payload: u32) -> Result<()> {
    if !suite.wants(case) {
        return Ok(());
    }
    // With the policy off, a busy machine does not get round many pages in less.
    let time = Duration::from_millis(suite.size(1000, if pages > 16 { 750 } else { 250 }));
    let mut throttled = Samples::default();
    let samples = suite.interleave(case, ROUNDS, games.len() + 1, |which| {
        if which == games.len() {
            return raw.turns(pages, payload, time);
        }
        let score = games[which].turns(pages, payload, time)?;
        if NAMES[which] == "full" {
            throttled.0.push(score.stats.throttles as f64);
        }
        Ok(score.cpu)
    })?;
    for (which, name) in NAMES.iter().enumerate() {
        suite.row(case, &format!("turns, {name}"), "/s", &samples[which]);
    }
    let row = suite.row(case, "full", "/s", &samples[2]);
    row.against("off", &samples[2], &samples[0]);
    if payload == 0 {
        // With data to move, most of a turn is the moving.
        row.wanted(Wanted::RatioAtLeast(5.0));
    }
    let row = suite.row(case, "full", "/s", &samples[2]);
    row.against("at home by hand", &samples[2], &samples[3]).wanted(Wanted::RatioAtLeast(0.7));
    suite.row(case, "full", "/s", &samples[2]).against("raw Vulkan", &samples[2], &samples[games.len()]);
    suite.row(case, "throttled, full", "", &throttled);
    Ok(())
}

fn sharing(suite: &mut Suite, games: &[Game], case: &str, apart: usize) -> Result<()> {
    if !suite.wants(case) {
        return Ok(());
    }
    let time = Duration::from_millis(suite.size(1000, 250));
    // What an addition costs the kernel when nobody interferes.
    let alone = games[3].sharing(apart, time, time)?.device;
    let period = Duration::from_secs_f64(1.0 / alone);
    let mut of_device = vec![Samples::default(); games.len()];
    let of_cpu = suite.interleave(case, ROUNDS, games.len(), |which| {
        let score = games[which].sharing(apart, period, time)?;
        of_device[which].0.push(score.device);
        Ok(score.cpu)
    })?;
    let both: Vec<Samples> = (0..games.len())
        .map(|which| {
            // The first is the warm-up.
            of_device[which].0.remove(0);
            Samples(of_cpu[which].0.iter().zip(&of_device[which].0).map(|(a, b)| a + b).collect())
        })
        .collect();
    for (which, name) in NAMES.iter().enumerate() {
        suite.row(case, &format!("CPU's, {name}"), "/s", &of_cpu[which]);
        suite.row(case, &format!("kernel's, {name}"), "/s", &of_device[which]);
    }
    suite.row(case, "both, full", "/s", &both[2]).against("off", &both[2], &both[0]);
    let row = suite.row(case, "both, full", "/s", &both[2]);
    row.against("at home by hand", &both[2], &both[3]).wanted(Wanted::RatioAtLeast(0.7));
    Ok(())
}

/// Work in which CPU and kernels take turns by launches: nothing to fight over, and nothing the policy may cost.
fn peaceful(suite: &mut Suite) -> Result<()> {
    let policy = |policy| ThrashOptions { policy, ..ThrashOptions::default() };
    let off = suite.open_moving(|builder| builder.thrash(policy(ThrashPolicy::Off)))?;
    let full = suite.open_moving(|builder| builder.thrash(policy(ThrashPolicy::Full)))?;
    let pages = suite.size(16_384usize, 4096);
    for (case, pages, repeats) in [("launches and reads in turn", 16, 50), ("cold stream", pages, 1)] {
        if !suite.wants(case) {
            continue;
        }
        let n = (pages * PAGE / 4) as u32;
        let mut contestants = Vec::new();
        for svm in [&off, &full] {
            contestants
                .push((idempotent(svm, "fill", spirv!("fill"))?, svm.heap().vec_from_slice(&vec![1u32; n as usize])?));
        }
        let mut seed = 0u32;
        let samples = suite.interleave(case, 2 * ROUNDS + 1, 2, |which| {
            let (kernel, data) = &mut contestants[which];
            let (time, done) = seconds(|| -> Result<()> {
                for _ in 0..repeats {
                    seed += 1;
                    kernel.launch([n.div_ceil(STREAM_GROUP), 1, 1]).write(&mut data[..]).value(n).value(seed).run()?;
                    let right = (0..pages).all(|page| data[page * PAGE / 4] == (page * PAGE / 4) as u32 + seed);
                    ensure!(right, "the CPU read something else than the kernel wrote");
                    data.iter_mut().step_by(PAGE / 4).for_each(|word| *word = 0);
                }
                Ok(())
            });
            done.map(|()| time)
        })?;
        let row = suite.row(case, "full", "s", &samples[1]);
        row.against("off", &samples[1], &samples[0]).wanted(Wanted::RatioAtMost(1.05));
    }
    Ok(())
}
