//! Coherence while kernels run: CPU threads and a kernel look at the same words at the same time, while pages are taken back,
//! discarded, unmapped and evicted around them.
//!
//! The oracle is a version in each word. A word has one writer at a time, a CPU thread or an invocation, which only counts its version up,
//! or is only ever added to, atomically. So whoever reads it again finds no older version than before, a newer one than its
//! writer has brought out is impossible, and at the end every word holds exactly the last version, or the sum. A tag, made from its place, tells
//! a word from any other and from zeros. Flags tell how new their data is at least, in both directions.
//!
//! Live, a kernel runs all the while; replayed, launches follow each other, and the same must hold between the words that each of them sees.
//! `VKSVM_FUZZ_SECONDS` sets how long (default 5, CI sets 60), `VKSVM_FUZZ_SEED` repeats a run's choices.

use crate::coherence::setting;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};
use vksvm::{FaultMode, Mapping, Permission, Svm, ThrashOptions, ThrashPolicy};
use vksvm_tests::{moving, spirv};

const PAGE: usize = 4096;
const PAGES: usize = 24;
/// Words with versions on each page.
const PLACES: usize = 12;
/// Pages that are discarded now and then.
const LOOSE: usize = 8;
const INVOCATIONS: usize = 48;
const THREADS: usize = 3;
const COUNTERS: usize = 16;
const WATCHED: usize = 6;
/// Pairs of a flag and its data that each CPU thread brings out.
const PAIRS: usize = 8;
/// Added at a time by the kernel; the CPU adds one.
const ADD: u32 = 2;
const VERSION: u32 = 0xF_FFFF;
/// All versions begin anew from here on, between rounds.
const OLD: u32 = 400_000;
const MAY_BE_ZERO: u64 = 1 << 63;
/// Turns of a launch: while it can be waited for, and while it must end.
const LIVE_TURNS: u32 = 30_000;
const TURNS: u32 = 20;
/// Fewer frames than there are pages, but as many as a workgroup of FEWER needs at most.
const FEW: u32 = 32;
/// Invocations of a workgroup.
const GROUP: u32 = 16;
const FEWER: u32 = 4;
/// How long a round's threads go on.
const ROUND: Duration = Duration::from_millis(150);

/// As in `versions.comp`.
#[derive(Clone, Copy, Default, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct Job {
    watched: [u64; WATCHED],
    flag: u64,
    data: u64,
    own: [u64; 2],
    counter: u64,
    version: u32,
    newest: [u32; WATCHED],
    pad: u32,
}

/// As in `versions.comp`.
#[derive(Clone, Copy, Default, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct Report {
    version: u32,
    added: u32,
    wrong: u32,
    before: u32,
    seen: u32,
    newest: [u32; WATCHED],
    pad: u32,
}

/// A word with a version; which one, among all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Place(usize);

/// Where the words lie.
struct Words {
    base: u64,
    addresses: Vec<u64>,
}

impl Words {
    fn cell(&self, place: Place) -> &AtomicU32 {
        // SAFETY: a live, aligned word; while threads or kernels run, all access it atomically or as kernels do.
        unsafe { AtomicU32::from_ptr(self.addresses[place.0] as *mut u32) }
    }

    fn tag(&self, address: u64) -> u32 {
        ((address.wrapping_sub(self.base) >> 2) as u32).wrapping_mul(2_654_435_761) >> 20 << 20
    }

    fn value(&self, place: Place, version: u32) -> u32 {
        self.tag(self.addresses[place.0]) | version
    }

    /// The version in a word that was read, which must be at least `least`.
    fn check(&self, place: Place, seen: u32, least: u32, who: &str) -> Result<u32, String> {
        let version = seen & VERSION;
        let right = seen == self.value(place, version) && version >= least;
        let wanted = self.value(place, least);
        right
            .then_some(version)
            .ok_or_else(|| format!("{who} found {seen:#x} in {place:?}, at least {wanted:#x} wanted"))
    }
}

/// Who may change what in a round, and what stood there before.
struct Deal {
    own: Vec<[Place; 2]>,
    counters: Vec<Place>,
    /// Each thread's words; the first are its pairs, flag and data in turn.
    threads: Vec<Vec<Place>>,
    versions: Vec<u32>,
}

impl Deal {
    /// Deals the words out. Those of a pair begin with one version.
    fn new(rng: &mut SmallRng, words: &Words, versions: &[u32]) -> Self {
        let mut places: Vec<Place> = (0..versions.len()).map(Place).collect();
        places.shuffle(rng);
        let own = (0..INVOCATIONS).map(|_| [places.pop().unwrap(), places.pop().unwrap()]).collect();
        let counters = places.split_off(places.len() - COUNTERS);
        let share = places.len() / THREADS;
        let threads = places.chunks(share).take(THREADS).map(<[Place]>::to_vec).collect();
        let mut deal = Self { own, counters, threads, versions: versions.to_vec() };
        for [one, other] in deal.pairs() {
            let version = deal.versions[one.0].max(deal.versions[other.0]);
            for place in [one, other] {
                deal.versions[place.0] = version;
                words.cell(place).store(words.value(place, version), Ordering::Release);
            }
        }
        deal
    }

    /// All pairs, invocations' and threads'.
    fn pairs(&self) -> Vec<[Place; 2]> {
        let threads = self.threads.iter().flat_map(|places| places[..2 * PAIRS].chunks(2));
        self.own.iter().copied().chain(threads.map(|pair| [pair[0], pair[1]])).collect()
    }
}

/// What threads tell each other outside of tracked memory.
struct Told {
    /// The newest version of each word that a CPU thread has brought out, or is about to.
    newest: Vec<AtomicU32>,
    over: AtomicBool,
}

/// What a CPU thread leaves.
#[derive(Default)]
struct Left {
    versions: HashMap<Place, u32>,
    added: HashMap<Place, u32>,
    /// The newest version it saw of each word.
    seen: Vec<u32>,
    steps: u64,
}

/// A CPU thread of a round.
fn cpu_thread(thread: usize, seed: u64, words: &Words, deal: &Deal, told: &Told) -> Result<Left, String> {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mine = &deal.threads[thread];
    let who = format!("CPU thread {thread}");
    let mut left = Left { seen: deal.versions.clone(), ..Left::default() };
    left.versions.extend(mine.iter().map(|&place| (place, deal.versions[place.0])));
    let writer = |place: Place| deal.threads.iter().any(|places| places.contains(&place));
    while !told.over.load(Ordering::Relaxed) {
        left.steps += 1;
        match rng.random_range(0..12) {
            0..4 => {
                let place = Place(rng.random_range(0..words.addresses.len()));
                let seen = words.cell(place).load(Ordering::Acquire);
                let version = words.check(place, seen, left.seen[place.0], &who)?;
                left.seen[place.0] = version;
                if writer(place) && version > told.newest[place.0].load(Ordering::SeqCst) {
                    return Err(format!("{who} found version {version} of {place:?}, which nobody has brought out"));
                }
            }
            4..7 => {
                let place = mine[rng.random_range(2 * PAIRS..mine.len())];
                bring_out(words, told, place, &mut left, &who)?;
            }
            7 => {
                let pair = rng.random_range(0..PAIRS);
                // First the data, then the flag.
                bring_out(words, told, mine[2 * pair + 1], &mut left, &who)?;
                bring_out(words, told, mine[2 * pair], &mut left, &who)?;
            }
            8 => {
                let [data, flag] = deal.own[rng.random_range(0..INVOCATIONS)];
                let flagged = words.check(flag, words.cell(flag).load(Ordering::Acquire), left.seen[flag.0], &who)?;
                let found = words.cell(data).load(Ordering::Acquire);
                left.seen[data.0] = words.check(data, found, left.seen[data.0].max(flagged), &who)?;
                left.seen[flag.0] = flagged;
            }
            9 => {
                let place = deal.counters[rng.random_range(0..COUNTERS)];
                let added = left.added.entry(place).or_default();
                if *added < 10_000 {
                    *added += 1;
                    words.cell(place).fetch_add(1, Ordering::AcqRel);
                }
            }
            10 => std::thread::sleep(Duration::from_micros(rng.random_range(1..100))),
            _ => std::thread::yield_now(),
        }
    }
    Ok(left)
}

/// Stores the next version of a word that is the caller's; the last is still there.
fn bring_out(words: &Words, told: &Told, place: Place, left: &mut Left, who: &str) -> Result<(), String> {
    let version = left.versions[&place];
    let seen = words.cell(place).load(Ordering::Acquire);
    if seen != words.value(place, version) {
        return Err(format!("{who} finds {seen:#x} in {place:?}, its own, and not version {version}"));
    }
    told.newest[place.0].store(version + 1, Ordering::SeqCst);
    words.cell(place).store(words.value(place, version + 1), Ordering::Release);
    left.versions.insert(place, version + 1);
    Ok(())
}

/// Discards and rewrites pages which the kernel looks at, maps and unmaps others, and, if `pressed`, moves the budget, until it is over. Versions go on from `version`;
/// returns the last.
fn unsettle(
    seed: u64,
    svm: &Svm,
    words: &Words,
    loose: &mut Mapping,
    told: &Told,
    mut version: u32,
    pressed: bool,
) -> Result<u32, String> {
    let mut rng = SmallRng::seed_from_u64(seed);
    let start = loose.start().0;
    while !told.over.load(Ordering::Relaxed) {
        let at = rng.random_range(0..LOOSE) * PAGE;
        // SAFETY: a live, aligned word of the mapping.
        let cell = unsafe { AtomicU32::from_ptr((start as usize + at) as *mut u32) };
        let tag = words.tag(start + at as u64);
        match rng.random_range(0..4) {
            0 => {
                loose.discard(at..at + PAGE).map_err(|error| error.to_string())?;
                let seen = cell.load(Ordering::Acquire);
                if seen != 0 {
                    return Err(format!("a discarded page holds {seen:#x}"));
                }
            }
            1..3 => {
                version += 1;
                cell.store(tag | version, Ordering::Release);
                let seen = cell.load(Ordering::Acquire);
                if seen != tag | version {
                    return Err(format!("{seen:#x} where {:#x} has just been stored", tag | version));
                }
            }
            3 if pressed && rng.random_bool(0.5) => {
                svm.set_budget(u64::from(rng.random_range(FEW..2 * FEW)) * PAGE as u64);
            }
            _ => {
                let bytes = rng.random_range(1..40) * PAGE;
                let mut scratch = svm.map(bytes, Permission::ReadWrite).map_err(|error| error.to_string())?;
                scratch.as_mut_slice().map_err(|error| error.to_string())?[bytes / 2] = 1;
                scratch.unmap().map_err(|error| error.to_string())?;
            }
        }
        std::thread::sleep(Duration::from_micros(rng.random_range(10..300)));
    }
    Ok(version)
}

fn run(seed: u64, mode: FaultMode, frames: u32, policy: ThrashPolicy, until: Instant) {
    let mut rng = SmallRng::seed_from_u64(seed);
    let thrash = ThrashOptions { policy, ..ThrashOptions::default() };
    let svm =
        moving(|builder| builder.fault_mode(mode).frames(frames).thrash(thrash).time_limit(Duration::from_secs(100)));
    let group = if frames == FEW { FEWER } else { GROUP };
    let heap = svm.heap();
    let mut data = heap.vec_zeroed::<[u32; PAGE / 4]>(PAGES).unwrap();
    let base = data.as_mut_ptr() as u64;
    let mut addresses = Vec::new();
    for page in 0..PAGES {
        let chosen = rand::seq::index::sample(&mut rng, PAGE / 4, PLACES);
        addresses.extend(chosen.iter().map(|word| base + (page * PAGE + 4 * word) as u64));
    }
    let words = Words { base, addresses };
    let mut loose = svm.map(LOOSE * PAGE, Permission::ReadWrite).unwrap();
    let loose_start = loose.start().0;
    let mut jobs = heap.vec_from_slice(&[Job::default(); INVOCATIONS]).unwrap();
    let mut reports = heap.vec_from_slice(&[Report::default(); INVOCATIONS]).unwrap();
    let mut stop = heap.vec_from_slice(&[0u32]).unwrap();
    // SAFETY: the kernel changes words that are its own in a deal, adds to counters and leaves reports; stores are not repeated.
    let kernel = unsafe { svm.kernel("versions", spirv!("versions")) }.unwrap();
    let mut watched = [[Place(0); WATCHED]; INVOCATIONS];
    let (mut versions, mut loose_version) = (vec![OLD; words.addresses.len()], OLD);
    let (mut rounds, mut launches, mut steps) = (0u32, 0u32, 0u64);
    while Instant::now() < until || rounds < 3 {
        rounds += 1;
        let context = format!("seed {seed}, {mode:?}, round {rounds}");
        if versions.iter().any(|&version| version >= OLD) || loose_version >= OLD {
            versions.fill(0);
            loose_version = 0;
            for place in (0..versions.len()).map(Place) {
                words.cell(place).store(words.value(place, 0), Ordering::Release);
            }
            loose.discard(0..LOOSE * PAGE).unwrap();
        }
        let deal = Deal::new(&mut rng, &words, &versions);
        versions.copy_from_slice(&deal.versions);
        for (i, job) in jobs.iter_mut().enumerate() {
            watched[i] = std::array::from_fn(|_| Place(rng.random_range(0..words.addresses.len())));
            job.watched = watched[i].map(|place| words.addresses[place.0]);
            job.newest = watched[i].map(|place| versions[place.0]);
            job.watched[WATCHED - 1] = MAY_BE_ZERO | (loose_start + (i % LOOSE * PAGE) as u64);
            job.newest[WATCHED - 1] = 0;
            let pair = i / THREADS % PAIRS;
            [job.flag, job.data] = [2 * pair, 2 * pair + 1].map(|k| words.addresses[deal.threads[i % THREADS][k].0]);
            job.own = deal.own[i].map(|place| words.addresses[place.0]);
            job.version = versions[deal.own[i][0].0];
            job.counter = words.addresses[deal.counters[i % COUNTERS].0];
        }
        // The first only makes the pipelines.
        stop[0] = u32::from(rounds == 1);
        let told = Told {
            newest: versions.iter().map(|&version| AtomicU32::new(version)).collect(),
            over: AtomicBool::new(false),
        };
        let seeds: Vec<u64> = (0..=THREADS).map(|_| rng.random()).collect();
        let outcome = std::thread::scope(|scope| {
            let (words, deal, told, svm, loose) = (&words, &deal, &told, &svm, &mut loose);
            let threads: Vec<_> = (0..THREADS)
                .map(|i| (i, seeds[i]))
                .map(|(i, seed)| scope.spawn(move || cpu_thread(i, seed, words, deal, told)))
                .collect();
            let unsettled =
                scope.spawn(move || unsettle(seeds[THREADS], svm, words, loose, told, loose_version, frames == FEW));
            let begun = Instant::now();
            let mut launched = Ok(());
            while launched.is_ok() && begun.elapsed() < ROUND {
                launches += 1;
                let launch = kernel
                    .launch([INVOCATIONS as u32 / group, 1, 1])
                    .read(&jobs[..])
                    .write(&mut reports[..])
                    .read(&stop[..]);
                let launch =
                    launch.value(base).value([if mode == FaultMode::Live { LIVE_TURNS } else { TURNS }, ADD, group]);
                let flag = stop.as_ptr() as usize;
                let done = AtomicBool::new(false);
                launched = std::thread::scope(|scope| {
                    if mode == FaultMode::Live {
                        let done = &done;
                        scope.spawn(move || {
                            while begun.elapsed() < ROUND && !done.load(Ordering::Relaxed) {
                                std::thread::sleep(Duration::from_millis(5));
                            }
                            // SAFETY: a live word that the kernel only reads meanwhile.
                            unsafe { AtomicU32::from_ptr(flag as *mut u32) }.store(1, Ordering::Release);
                        });
                    }
                    let result = launch.run();
                    done.store(true, Ordering::Relaxed);
                    result.map_err(|error| error.to_string())
                })
                .and_then(|_| take_reports(words, deal, &mut jobs, &reports, &mut versions, &watched));
            }
            told.over.store(true, Ordering::Relaxed);
            let left: Result<Vec<Left>, String> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
            loose_version = unsettled.join().unwrap()?;
            launched.and(left)
        });
        let left = outcome.unwrap_or_else(|error| panic!("{context}: {error}"));
        for left in &left {
            steps += left.steps;
            left.versions.iter().for_each(|(place, &version)| versions[place.0] = version);
            left.added.iter().for_each(|(place, added)| versions[place.0] += added);
        }
        for (place, &version) in versions.iter().enumerate().map(|(i, version)| (Place(i), version)) {
            let found = words.cell(place).load(Ordering::Acquire);
            assert_eq!(found, words.value(place, version), "{context}: {place:?} at the end");
            let seen = left.iter().map(|left| left.seen[place.0]).max().unwrap_or(0);
            assert!(seen <= version, "{context}: version {seen} of {place:?} was seen, of {version}");
        }
        for (job, places) in jobs.iter().zip(&watched) {
            for (&newest, place) in job.newest.iter().zip(&places[..WATCHED - 1]) {
                assert!(newest <= versions[place.0], "{context}: the kernel saw version {newest} of {place:?}");
            }
        }
    }
    let stats = svm.stats();
    assert_eq!(stats.driver_cpu_faults, 0);
    assert!(stats.pages_out > 0 && (mode == FaultMode::Replay || stats.shootdowns > 0), "nothing was shared: {stats}");
    println!(
        "seed {seed}, {mode:?}, {frames} frames, {policy:?}: {rounds} rounds, {launches} launches, {steps} steps\n{stats}"
    );
}

/// Looks at what a launch left and puts it into the jobs for the next.
fn take_reports(
    words: &Words,
    deal: &Deal,
    jobs: &mut [Job],
    reports: &[Report],
    versions: &mut [u32],
    watched: &[[Place; WATCHED]],
) -> Result<(), String> {
    for (i, (job, report)) in jobs.iter_mut().zip(reports).enumerate() {
        if report.wrong != 0 {
            let place = report.wrong.checked_sub(16).map(|w| watched[i][w as usize]);
            return Err(format!("invocation {i} found at {place:?} what it should not: {report:x?}, {job:x?}"));
        }
        for place in deal.own[i] {
            words.check(place, words.cell(place).load(Ordering::Acquire), report.version, "the launcher")?;
            versions[place.0] = report.version;
        }
        versions[deal.counters[i % COUNTERS].0] += ADD * report.added;
        (job.version, job.newest) = (report.version, report.newest);
    }
    Ok(())
}

fn fuzz(mode: FaultMode) {
    let seed = setting("VKSVM_FUZZ_SEED").unwrap_or_else(|| SmallRng::from_os_rng().random());
    println!("VKSVM_FUZZ_SEED={seed}");
    let seconds = Duration::from_secs(setting("VKSVM_FUZZ_SECONDS").unwrap_or(5)) / 3;
    for (frames, policy) in [(100_000, ThrashPolicy::Off), (FEW, ThrashPolicy::Off), (100_000, ThrashPolicy::Full)] {
        run(seed, mode, frames, policy, Instant::now() + seconds);
    }
}

#[test]
fn versions_only_go_up_while_kernels_run_and_wait() {
    fuzz(FaultMode::Live);
}

#[test]
fn versions_only_go_up_while_launches_are_replayed() {
    fuzz(FaultMode::Replay);
}
