//! `live`: faults serviced, and pages taken away, while the kernel runs.
//!
//! The parts of a fault are measured in the same run, and under the same condition: a kernel waits on another processor. They are the
//! bare round trip between a waiting kernel and a host thread that does nothing but answer, one write-protect call on a page that the
//! CPU has written, and one copy of 4 KiB out of memory that is not in the cache. Both modes run with the same number of driver threads, which live mode chooses.

use super::fault::Alone;
use super::workloads::Link;
use crate::harness::{Samples, Suite, Wanted, seconds};
use crate::kernels::{Push, Raw, STREAM_GROUP, WALK_GROUP, idempotent, once};
use crate::spirv;
use anyhow::{Context, Result, ensure};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use vksvm::addr::{PageRange, VirtAddr};
use vksvm::device::vulkan::{RawBuffer, RawCommand, RawKernel};
use vksvm::hmm::{Blocking, Event};
use vksvm::{FaultMode, Svm, SvmVec, ThrashOptions, ThrashPolicy};

const ROUNDS: u32 = 7;
const WORDS: usize = 1024;

pub(super) fn run(suite: &mut Suite) -> Result<()> {
    // Live first: it decides how many threads the driver starts, for both.
    // Pages are taken from the kernel again and again, which the policy against thrashing would put off.
    let thrash = ThrashOptions { policy: ThrashPolicy::Off, ..ThrashOptions::default() };
    let live = suite.open_moving(|builder| builder.fault_mode(FaultMode::Live).thrash(thrash))?;
    let replay = suite.open_moving(|builder| builder.fault_mode(FaultMode::Replay).thrash(thrash))?;
    let mut parts = Parts::new(&live)?;
    if suite.wants("one waiting") {
        one_waiting(suite, &live, &mut parts)?;
    }
    if suite.wants("many waiting") {
        many_waiting(suite, &live, &mut parts)?;
    }
    if suite.wants("shootdown") {
        shootdown(suite, &live, &mut parts)?;
    }
    if suite.wants("chase") {
        chase(suite, &live, &replay)?;
    }
    if suite.wants("stream") {
        stream(suite, &live, &replay)?;
    }
    if suite.wants("resident") {
        // Without fast passes: what safe points cost, kernel for kernel.
        let live_checked =
            suite.open(|builder| builder.fault_mode(FaultMode::Live).thrash(thrash).fast_passes(false))?;
        let checked = suite.open(|builder| builder.fault_mode(FaultMode::Replay).thrash(thrash).fast_passes(false))?;
        resident(suite, &[&live, &replay, &live_checked, &checked])?;
    }
    Ok(())
}

/// What a fault cannot do without.
struct Parts {
    raw: Raw,
    kernel: RawKernel,
    words: RawBuffer,
    alone: Alone,
    order: Vec<u32>,
}

/// Pages of memory that the parts are measured on: more than caches hold.
const ALONE: usize = 1 << 15;
/// Times a part is done in a round.
const TIMES: usize = 2000;

impl Parts {
    fn new(svm: &Svm) -> Result<Self> {
        let raw = Raw::new(svm)?;
        let words = raw.results(128)?;
        let kernel = raw.kernel("raw_round_trip", spirv!("raw_round_trip"), 16)?;
        let mut order: Vec<u32> = (0..ALONE as u32).collect();
        order.shuffle(&mut SmallRng::seed_from_u64(21));
        order.truncate(TIMES);
        Ok(Self { raw, kernel, words, alone: Alone::new(ALONE, svm.info().tracker)?, order })
    }

    fn word(&self, index: usize) -> Result<&AtomicU32> {
        let host = self.words.host().context("the words are mapped")?.cast::<AtomicU32>();
        // SAFETY: the buffer holds 32 words, which both sides access atomically.
        Ok(unsafe { host.add(index).as_ref() })
    }

    /// Starts a kernel that asks `trips` times.
    fn ask(&mut self, trips: u32) -> Result<()> {
        self.word(0)?.store(0, Ordering::SeqCst);
        self.word(16)?.store(0, Ordering::SeqCst);
        let push = Push::default().address(&self.words).add(trips).add(u32::MAX);
        let command = RawCommand::Dispatch { kernel: &self.kernel, push: push.bytes(), groups: [1, 1, 1] };
        // SAFETY: the kernel uses the words only, and is waited for before they go.
        Ok(unsafe { self.raw.stream.submit(&[command]) }?)
    }

    fn wait_for_question(&self, trip: u32) -> Result<()> {
        let asked = self.word(0)?;
        while asked.load(Ordering::Acquire) < trip {
            std::hint::spin_loop();
        }
        Ok(())
    }

    /// Seconds of a round trip.
    fn round_trip(&mut self) -> Result<f64> {
        self.ask(TIMES as u32)?;
        self.wait_for_question(1)?;
        let (time, done) = seconds(|| {
            for trip in 1..=TIMES as u32 {
                self.wait_for_question(trip)?;
                self.word(16)?.store(trip, Ordering::Release);
            }
            anyhow::Ok(())
        });
        done?;
        self.raw.stream.wait()?;
        Ok(time / TIMES as f64)
    }

    /// Seconds of `work` while a kernel waits.
    fn beside_a_kernel(&mut self, work: impl FnOnce(&mut Alone, &[u32]) -> Result<f64>) -> Result<f64> {
        self.ask(1)?;
        self.wait_for_question(1)?;
        let result = work(&mut self.alone, &self.order);
        self.word(16)?.store(1, Ordering::Release);
        self.raw.stream.wait()?;
        Ok(result? / TIMES as f64)
    }

    fn protect(&mut self) -> Result<f64> {
        self.beside_a_kernel(|alone, _| alone.protect_one_by_one(TIMES))
    }

    fn copy(&mut self) -> Result<f64> {
        self.beside_a_kernel(|alone, order| Ok(alone.copy_one_by_one(order)))
    }

    /// The part with this number.
    fn measure(&mut self, which: usize) -> Result<f64> {
        match which {
            0 => self.round_trip(),
            1 => self.protect(),
            _ => self.copy(),
        }
    }
}

/// The rounds' sums.
fn sum(parts: &[Samples]) -> Samples {
    let rounds = parts[0].0.len();
    Samples((0..rounds).map(|round| parts.iter().map(|part| part.0[round]).sum()).collect())
}

/// Circular lists through memory in random order, one node a page, behind heads that lie together.
struct Lists {
    heads: SvmVec<Link>,
    nodes: SvmVec<[Link; 256]>,
    out: SvmVec<u32>,
    hops: u32,
    sum: u64,
}

impl Lists {
    /// `lists` lists with `hops` nodes each.
    fn new(svm: &Svm, lists: usize, hops: usize) -> Result<Self> {
        let heap = svm.heap();
        let mut order: Vec<usize> = (0..lists * hops).collect();
        order.shuffle(&mut SmallRng::seed_from_u64(22));
        let mut nodes = heap.vec_zeroed::<[Link; 256]>(lists * hops)?;
        let mut heads = heap.vec_zeroed::<Link>(lists)?;
        let base = nodes.as_ptr() as u64;
        let address = |place: usize| base + 4096 * order[place] as u64;
        for list in 0..lists {
            let first = list * hops;
            heads[list].next = address(first);
            for hop in 0..hops {
                let next = address(first + (hop + 1) % hops);
                nodes[order[first + hop]][0] = Link { next, value: order[first + hop] as u32, pad: 0 };
            }
        }
        let sum = (0..lists * hops).map(|value| value as u64).sum();
        let out = heap.vec_from_slice(&vec![0u32; lists])?;
        Ok(Self { heads, nodes, out, hops: hops as u32, sum })
    }

    /// The CPU takes all nodes back.
    fn cool(&mut self) {
        self.nodes.iter_mut().for_each(|node| node[0].pad += 1);
        self.heads.iter_mut().for_each(|head| head.pad += 1);
        self.out.fill(0);
    }

    /// Seconds to follow all lists from end to end.
    fn follow(&mut self, kernel: &vksvm::Kernel) -> Result<f64> {
        self.cool();
        let n = self.heads.len() as u32;
        let launch = kernel.launch([n.div_ceil(WALK_GROUP), 1, 1]).read(&self.heads[..]).write(&mut self.out[..]);
        // The head is a node too.
        let (time, report) = seconds(|| launch.value(n).value(self.hops + 1).run());
        let report = report?;
        ensure!(report.pages_in as usize >= self.nodes.len(), "pages were not cold: {report}");
        let wrapped: u64 = self.out.iter().fold(0, |all, &sum| all.wrapping_add(u64::from(sum)));
        ensure!(wrapped as u32 == self.sum as u32, "the lists add up to {wrapped}, not {}", self.sum);
        Ok(time)
    }
}

fn one_waiting(suite: &mut Suite, svm: &Svm, parts: &mut Parts) -> Result<()> {
    let mut lists = Lists::new(svm, 1, TIMES)?;
    let kernel = idempotent(svm, "chase", spirv!("chase"))?;
    let mut serving = Samples::default();
    let samples = suite.interleave("one waiting", ROUNDS, 4, |which| match which {
        0 => {
            let before = svm.stats().service_nanos;
            let time = lists.follow(&kernel)?;
            serving.0.push((svm.stats().service_nanos - before) as f64 / 1e9 / TIMES as f64);
            Ok(time / TIMES as f64)
        }
        part => parts.measure(part - 1),
    })?;
    for (part, name) in ["bare round trip", "one write-protect call", "one copy of 4 KiB"].iter().enumerate() {
        suite.row("parts", name, "s", &samples[part + 1]);
    }
    let row = suite.row("one waiting", "per fault", "s", &samples[0]);
    row.against("parts", &samples[0], &sum(&samples[1..])).wanted(Wanted::RatioAtMost(3.0));
    suite.row("one waiting", "of it service", "s", &serving);
    Ok(())
}

fn many_waiting(suite: &mut Suite, svm: &Svm, parts: &mut Parts) -> Result<()> {
    let n = suite.size(1usize << 15, 1 << 13);
    let heap = svm.heap();
    let kernel = idempotent(svm, "touch", spirv!("touch"))?;
    // Every other page, in random order, so that no two are neighbours.
    let mut data = heap.vec_zeroed::<[u32; WORDS]>(2 * n)?;
    let mut scattered: Vec<u32> = (0..n as u32).map(|page| 2 * page).collect();
    scattered.shuffle(&mut SmallRng::seed_from_u64(23));
    let lists = [heap.vec_from_slice(&scattered)?, heap.vec_from_slice(&(0..n as u32).collect::<Vec<_>>())?];
    let mut out = heap.vec_from_slice(&vec![0u32; n])?;
    let mut turn = 0;
    let samples = suite.interleave("many waiting", ROUNDS, 5, |which| {
        if which > 1 {
            return parts.measure(which - 2);
        }
        turn += 1;
        for &page in &lists[which][..] {
            data[page as usize][0] = page + turn;
        }
        out.fill(0);
        let launch = kernel.launch([(n as u32).div_ceil(WALK_GROUP), 1, 1]).read(&data[..]).read(&lists[which][..]);
        let (time, report) = seconds(|| launch.write(&mut out[..]).value(n as u32).value(0u32).run());
        let report = report?;
        ensure!(report.pages_in as usize >= n, "pages were not cold: {report}");
        let right = lists[which].iter().zip(&out[..]).all(|(&page, &found)| found == page + turn);
        ensure!(right, "wrong data");
        Ok(time / n as f64)
    })?;
    let sum = sum(&samples[2..]);
    let row = suite.row("many waiting, scattered", "per fault", "s", &samples[0]);
    row.against("parts", &samples[0], &sum).wanted(Wanted::RatioAtMost(1.5));
    let row = suite.row("many waiting, neighbours", "per fault", "s", &samples[1]);
    row.against("parts", &samples[1], &sum);
    Ok(())
}

/// Pages of which the running kernel loses one at a time.
const PAGES: usize = 16;

fn shootdown(suite: &mut Suite, svm: &Svm, parts: &mut Parts) -> Result<()> {
    let kernel = once(svm, "keep_storing", spirv!("keep_storing"))?;
    let heap = svm.heap();
    let groups = std::thread::available_parallelism()?.get() as u32;
    let mut data = heap.vec_zeroed::<[u32; WORDS]>(PAGES)?;
    let stop = heap.vec_from_slice(&[0u32; 1])?;
    let address = data.as_ptr() as u64;
    let times = suite.size(400, 100);
    let mut taken = Taken::default();
    let mut total = 0u64;
    let samples = suite.interleave("shootdown", ROUNDS, 2, |which| {
        if which == 1 {
            return parts.round_trip();
        }
        stop_word(&stop).store(0, Ordering::SeqCst);
        let launch = kernel.launch([groups, 1, 1]).write(&mut data[..]).read(&stop[..]);
        let launch = launch.value(PAGES as u32).value(u32::MAX);
        let (report, measured) = std::thread::scope(|scope| {
            let running = scope.spawn(|| launch.run());
            let measured = taken.measure(svm, address, times);
            stop_word(&stop).store(1, Ordering::SeqCst);
            (running.join().expect("the launch does not panic"), measured)
        });
        let report = report?;
        ensure!(report.pages_out as usize >= times, "nothing was stored meanwhile: {report}");
        let stored: u64 = data.iter().flatten().map(|&word| u64::from(word)).sum();
        ensure!(stored > total, "nothing was stored");
        total = stored;
        measured
    })?;
    let row = suite.row("shootdown of one page", "shootdown", "s", &samples[0]);
    row.against("bare round trip", &samples[0], &samples[1]).wanted(Wanted::RatioAtMost(20.0));
    suite.row("shootdown of one page", "invalidation, with the copy home", "s", &Samples(taken.calls));
    suite.row("shootdown of one page", "CPU store to it, with its fault", "s", &Samples(taken.touches));
    Ok(())
}

fn stop_word(stop: &SvmVec<u32>) -> &AtomicU32 {
    // SAFETY: a live word that is only accessed atomically while a kernel runs.
    unsafe { AtomicU32::from_ptr(stop.as_ptr().cast_mut()) }
}

/// What it takes to take pages away from a kernel that runs, in seconds.
#[derive(Default)]
struct Taken {
    /// Whole invalidations.
    calls: Vec<f64>,
    /// CPU stores that fault.
    touches: Vec<f64>,
}

impl Taken {
    /// Takes `times` pages away either way; returns the median of the shootdowns alone.
    fn measure(&mut self, svm: &Svm, address: u64, times: usize) -> Result<f64> {
        let notifiers = svm.address_space().notifiers();
        let views = &svm.address_space().home().views;
        // It starts when its pipeline is made, and has all pages soon after.
        let before = svm.stats().device_faults;
        while svm.stats().device_faults < before + 2 {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_millis(20));
        let mut shootdowns = Vec::new();
        for turn in 0..times {
            let page = address + 4096 * (turn % PAGES) as u64;
            let index = views.page_of(VirtAddr(page)).context("the page lies in the heap")?;
            let before = svm.stats();
            let (time, bracket) =
                seconds(|| notifiers.invalidate(PageRange::single(index), Event::Migrate, None, Blocking::Yes));
            drop(bracket?);
            let report = svm.stats().since(&before);
            if report.shootdowns == 1 {
                shootdowns.push(report.shootdown_nanos as f64 / 1e9);
                self.calls.push(time);
            }
            pause();
            // SAFETY: the last word of the page is nobody's but ours.
            let word = unsafe { AtomicU32::from_ptr((page as *mut u32).add(WORDS - 1)) };
            self.touches.push(seconds(|| word.fetch_add(1, Ordering::Relaxed)).0);
            pause();
        }
        ensure!(shootdowns.len() >= times / 2, "the kernel had the pages only {} times of {times}", shootdowns.len());
        Ok(Samples(shootdowns).median())
    }
}

/// Lets the kernel take the page again, without leaving the processor.
fn pause() {
    let start = Instant::now();
    while start.elapsed() < Duration::from_micros(200) {
        std::hint::spin_loop();
    }
}

fn chase(suite: &mut Suite, live: &Svm, replay: &Svm) -> Result<()> {
    // As many lists as a workgroup has invocations; one list alone is hopeless in replay mode beyond some thousand nodes, as
    // every fault walks all of it again.
    for (lists, hops, wanted) in [(64usize, 100_000usize / 64, true), (1, 2000, false)] {
        let mut contestants = Vec::new();
        for svm in [live, replay] {
            contestants.push((Lists::new(svm, lists, hops)?, idempotent(svm, "chase", spirv!("chase"))?));
        }
        let case = format!("chase, {} cold pages in {lists} list(s)", lists * hops);
        let samples = suite.interleave(&case, suite.size(5, 3), 2, |which| {
            let (lists, kernel) = &mut contestants[which];
            lists.follow(kernel)
        })?;
        let faster = Samples(samples[1].0.iter().zip(&samples[0].0).map(|(replay, live)| replay / live).collect());
        suite.row(&case, "launch, live", "s", &samples[0]).against("replay", &samples[0], &samples[1]);
        let row = suite.row(&case, "times faster than replay", "", &faster);
        if wanted {
            row.wanted(Wanted::ValueAtLeast(3.0));
        }
    }
    Ok(())
}

fn stream(suite: &mut Suite, live: &Svm, replay: &Svm) -> Result<()> {
    let n = suite.size(16usize << 20, 4 << 20);
    let mut contestants = Vec::new();
    for svm in [live, replay] {
        let heap = svm.heap();
        let vectors = [heap.vec_zeroed::<f32>(n)?, heap.vec_zeroed::<f32>(n)?, heap.vec_zeroed::<f32>(n)?];
        contestants.push((vectors, idempotent(svm, "saxpy", spirv!("saxpy"))?));
    }
    let case = format!("stream, saxpy over {} MiB", (12 * n) >> 20);
    let mut turn = 0f32;
    let samples = suite.interleave(&case, ROUNDS, 2, |which| {
        let ([x, y, z], kernel) = &mut contestants[which];
        turn += 1.0;
        [&mut *x, &mut *y, &mut *z].into_iter().for_each(|vector| vector.fill(turn));
        let launch = kernel.launch([(n as u32).div_ceil(STREAM_GROUP), 1, 1]).read(&x[..]).read(&y[..]);
        let (time, report) = seconds(|| launch.write(&mut z[..]).value(2f32).value(n as u32).run());
        ensure!(report?.pages_in as usize >= 2 * n / WORDS, "pages were not cold");
        ensure!(z.iter().all(|&z| z == 3.0 * turn), "wrong data");
        Ok(time)
    })?;
    suite.row(&case, "launch, live", "s", &samples[0]).against("replay", &samples[0], &samples[1]);
    Ok(())
}

/// Launches of one sample.
const LAUNCHES: u32 = 4;

/// Kernels on resident data, in live mode and replayed, as they are run by default and in their checked variants.
fn resident(suite: &mut Suite, modes: &[&Svm; 4]) -> Result<()> {
    let n = suite.size(1usize << 22, 1 << 21);
    // Streaming through pointers, the most translations for the least work.
    let mut streams = Vec::new();
    for &svm in modes {
        let heap = svm.heap();
        let mut vectors = [heap.vec_zeroed::<f32>(n)?, heap.vec_zeroed::<f32>(n)?, heap.vec_zeroed::<f32>(n)?];
        vectors.iter_mut().for_each(|vector| vector.fill(1.0));
        streams.push((vectors, idempotent(svm, "saxpy", spirv!("saxpy"))?));
    }
    let mut saxpy = |which: usize| {
        let ([x, y, z], kernel) = &mut streams[which];
        let launch = kernel.launch([(n as u32).div_ceil(STREAM_GROUP), 1, 1]).read(&x[..]).read(&y[..]);
        launch.write(&mut z[..]).value(2f32).value(n as u32).run().map(drop)
    };
    in_all_modes(suite, "resident, saxpy through pointers", &mut saxpy)?;
    drop(streams);
    // Following pointers.
    let (starts, hops) = (suite.size(1usize << 15, 1 << 14), 64u32);
    let nodes = starts * 8;
    let mut order: Vec<usize> = (0..nodes).collect();
    order.shuffle(&mut SmallRng::seed_from_u64(24));
    let mut lists = Vec::new();
    for &svm in modes {
        let heap = svm.heap();
        let mut list = heap.vec_zeroed::<Link>(nodes)?;
        let base = list.as_ptr() as u64;
        for (at, &node) in order.iter().enumerate() {
            let next = base + 16 * order[(at + 1) % nodes] as u64;
            list[node] = Link { next, value: node as u32, pad: 0 };
        }
        lists.push((list, heap.vec_from_slice(&vec![0u32; starts])?, idempotent(svm, "chase", spirv!("chase"))?));
    }
    let mut chase = |which: usize| {
        let (list, out, kernel) = &mut lists[which];
        let launch = kernel.launch([(starts as u32).div_ceil(WALK_GROUP), 1, 1]).read(&list[..]).write(&mut out[..]);
        launch.value(starts as u32).value(hops).run().map(drop)
    };
    in_all_modes(suite, "resident, chase", &mut chase)?;
    ensure!(lists.iter().all(|(_, out, _)| out[..] == lists[0].1[..]), "the modes computed different things");
    Ok(())
}

fn in_all_modes(
    suite: &mut Suite,
    case: &str,
    launch: &mut dyn FnMut(usize) -> Result<(), vksvm::LaunchError>,
) -> Result<()> {
    // All variants are made, and all pages are there.
    for which in (0..4).cycle().take(12) {
        launch(which)?;
    }
    let samples = suite.interleave(case, 2 * ROUNDS, 4, |which| {
        let (time, done) = seconds(|| (0..LAUNCHES).try_for_each(|_| launch(which)));
        done?;
        Ok(time / f64::from(LAUNCHES))
    })?;
    let row = suite.row(case, "launch, live", "s", &samples[0]);
    row.against("replay", &samples[0], &samples[1]).wanted(Wanted::RatioAtMost(1.05));
    let row = suite.row(case, "launch, live, checked", "s", &samples[2]);
    row.against("replay, checked", &samples[2], &samples[3]).wanted(Wanted::RatioAtMost(1.05));
    suite.row(case, "launch, live, checked", "s", &samples[2]).against("replay", &samples[2], &samples[1]);
    Ok(())
}
