//! `oversub`: working sets larger than the budget of device memory.
//!
//! Each pattern runs with budgets from twice its working set to a quarter of it. A time is compared with a lower bound: the time in
//! core, or that for moving what any policy must move at the speed of memcpy, whichever is larger. What must be moved comes from a
//! trace of the uses, recorded in core with launches cut into 64 slices: the misses of the optimal replacement in hindsight,
//! and what was written and does not fit. Misses are those of the rounds after the first.

use super::memory::Memcpy;
use crate::harness::{Samples, Suite, Wanted, seconds};
use crate::kernels::{STREAM_GROUP, WALK_GROUP, idempotent};
use crate::spirv;
use anyhow::{Result, ensure};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use vksvm::policy::optimal;
use vksvm::{Kernel, Placement, Stats, Svm, SvmVec};

const PAGE: usize = 4096;
const ROUNDS: u32 = 3;
/// Working set over budget.
const RATIOS: [f64; 6] = [0.5, 1.0, 1.25, 1.5, 2.0, 4.0];

pub(super) fn run(suite: &mut Suite) -> Result<()> {
    let pages = suite.size(32_768, 6_144);
    pattern(suite, "streaming", pages, Streaming::new)?;
    pattern(suite, "random", pages, Random::new)?;
    pattern(suite, "stencil", pages, Stencil::new)?;
    pattern(suite, "graph search", pages, Search::new)
}

/// Work on a fixed amount of memory, done again and again.
trait Pattern {
    /// Does it once; returns the seconds that launches took.
    fn round(&mut self, svm: &Svm) -> Result<f64>;
    /// Pages that a round writes.
    fn written(&self) -> usize;
    /// Whether each round starts with all data at home.
    fn starts_at_home(&self) -> bool {
        false
    }
    /// Checks the results of all rounds so far.
    fn check(&mut self) -> Result<()>;
}

fn open(suite: &mut Suite, frames: usize, trace: bool) -> Result<Svm> {
    suite.open_moving(|builder| {
        // Some frames more, for the words that are no part of the data.
        builder.frames(frames as u32 + 16).placement(Placement::Copy).trace_uses(trace)
    })
}

fn pattern<P: Pattern>(
    suite: &mut Suite,
    name: &str,
    pages: usize,
    new: impl Fn(&Svm, usize) -> Result<P>,
) -> Result<()> {
    if !suite.wants(name) {
        return Ok(());
    }
    let frames = |ratio: f64| (pages as f64 / ratio) as usize;
    let rounds = 4;
    let trace = {
        let svm = open(suite, 2 * pages, true)?;
        let mut work = new(&svm, pages)?;
        for _ in 0..rounds {
            work.round(&svm)?;
        }
        svm.take_trace().concat()
    };
    // What the first round costs is taken off: it loads everything.
    let first = trace.len() / rounds;
    let must_miss = |frames: usize| {
        let all = optimal(&trace, frames).all - optimal(&trace[..first], frames).all;
        all as f64 / (rounds - 1) as f64
    };
    let mut runs = Vec::new();
    for ratio in RATIOS {
        let svm = open(suite, frames(ratio), false)?;
        let work = new(&svm, pages)?;
        runs.push((svm, work));
    }
    let mut memcpy = Memcpy::new(64 << 20);
    let mut reports: Vec<Vec<Stats>> = vec![Vec::new(); RATIOS.len()];
    let samples = suite.interleave(name, ROUNDS, RATIOS.len() + 1, |which| {
        let Some((svm, work)) = runs.get_mut(which) else { return Ok(memcpy.seconds(pages * PAGE)) };
        let before = svm.stats();
        let time = work.round(svm)?;
        reports[which].push(svm.stats().since(&before));
        Ok(time)
    })?;
    for (_, work) in &mut runs {
        work.check()?;
    }
    let in_core = &samples[0];
    let copying = &samples[RATIOS.len()];
    let at_home = runs[0].1.starts_at_home();
    let written = runs[0].1.written();
    let mut beyond = Vec::new();
    for (which, ratio) in RATIOS.into_iter().enumerate() {
        let case = format!("{name} {ratio} x");
        let room = frames(ratio);
        let misses = if at_home { pages as f64 } else { must_miss(room) };
        let moved = misses + written.saturating_sub(room) as f64;
        let bound = Samples(
            in_core.0.iter().zip(&copying.0).map(|(&core, &all)| core.max(all * moved / pages as f64)).collect(),
        );
        let own = &samples[which];
        let row = suite.row(&case, "launches", "s", own);
        row.against("lower bound", own, &bound).at(ratio);
        if name == "streaming" && ratio == 2.0 {
            row.wanted(Wanted::RatioAtMost(1.5));
        }
        beyond.push(own.ratio_to(&bound));
        let figure =
            |f: &dyn Fn(&Stats) -> u64| Samples(reports[which][1..].iter().map(|stats| f(stats) as f64).collect());
        let missed = figure(&|stats| stats.pages_faulted + stats.pages_filled);
        let best = Samples(vec![misses; missed.0.len()]);
        let row = suite.row(&case, "misses", "", &missed);
        if misses > 0.0 {
            row.against("optimal", &missed, &best);
            if name == "stencil" && ratio == 1.5 {
                row.wanted(Wanted::RatioAtMost(1.5));
            }
        }
        let kernel = figure(&|stats| stats.kernel_nanos).map(|nanos| nanos * 1e-9);
        suite.row(&case, "of it dispatches", "s", &kernel);
        let service = figure(&|stats| stats.service_nanos).map(|nanos| nanos * 1e-9);
        suite.row(&case, "of it service", "s", &service);
        let dispatches = figure(&|stats| stats.dispatches);
        suite.row(&case, "dispatches", "", &dispatches);
        let out = figure(&|stats| stats.pages_out);
        suite.row(&case, "pages copied home", "", &out);
    }
    // 1.25 against 1, each beyond its own bound.
    let cliff = Samples(vec![beyond[2] / beyond[1]]);
    suite.row(&format!("{name}, no cliff"), "1.25 x / 1 x, beyond bounds", "", &cliff).wanted(Wanted::ValueAtMost(2.0));
    Ok(())
}

/// z = a * x + y, over data that the CPU has just written.
struct Streaming {
    kernel: Kernel,
    arrays: [SvmVec<f32>; 3],
    times: f32,
}

impl Streaming {
    fn new(svm: &Svm, pages: usize) -> Result<Self> {
        let n = pages / 3 * PAGE / 4;
        let array = || svm.heap().vec_from_slice(&vec![1f32; n]);
        Ok(Self {
            kernel: idempotent(svm, "array_saxpy", spirv!("array_saxpy"))?,
            arrays: [array()?, array()?, array()?],
            times: 0.0,
        })
    }
}

impl Pattern for Streaming {
    fn round(&mut self, _: &Svm) -> Result<f64> {
        self.times += 1.0;
        let [x, y, z] = &mut self.arrays;
        for array in [&mut *x, &mut *y, &mut *z] {
            array.iter_mut().step_by(PAGE / 4).for_each(|value| *value = 1.0);
        }
        let n = x.len() as u32;
        let launch = self.kernel.launch([n.div_ceil(STREAM_GROUP), 1, 1]).read_array(&x[..]).read_array(&y[..]);
        let (time, done) = seconds(|| launch.write_array(&mut z[..]).value(self.times).value(n).run());
        done?;
        Ok(time)
    }

    fn written(&self) -> usize {
        self.arrays[2].len() * 4 / PAGE
    }

    fn starts_at_home(&self) -> bool {
        true
    }

    fn check(&mut self) -> Result<()> {
        ensure!(self.arrays[2].iter().all(|&z| z == self.times + 1.0), "saxpy computed something else");
        Ok(())
    }
}

/// One word of random pages.
struct Random {
    kernel: Kernel,
    data: SvmVec<u32>,
    lists: Vec<SvmVec<u32>>,
    out: SvmVec<u32>,
    random: SmallRng,
}

impl Random {
    fn new(svm: &Svm, pages: usize) -> Result<Self> {
        let heap = svm.heap();
        let mut data = heap.vec_zeroed::<u32>(pages * PAGE / 4)?;
        (0..pages).for_each(|page| data[page * PAGE / 4] = page as u32);
        let lists = (0..8).map(|_| heap.vec_zeroed::<u32>(pages / 16)).collect::<Result<_, _>>()?;
        let out = heap.vec_zeroed(pages / 16)?;
        let kernel = idempotent(svm, "touch", spirv!("touch"))?;
        Ok(Self { kernel, data, lists, out, random: SmallRng::seed_from_u64(3) })
    }
}

impl Pattern for Random {
    fn round(&mut self, _: &Svm) -> Result<f64> {
        let pages = (self.data.len() * 4 / PAGE) as u32;
        let mut all = 0.0;
        for list in &mut self.lists {
            list.iter_mut().for_each(|page| *page = self.random.random_range(0..pages));
            let count = list.len() as u32;
            let launch = self.kernel.launch([count.div_ceil(WALK_GROUP), 1, 1]).read(&self.data[..]).read(&list[..]);
            let (time, done) = seconds(|| launch.write(&mut self.out[..]).value(count).value(0u32).run());
            done?;
            ensure!(self.out.iter().zip(&list[..]).all(|(out, page)| out == page), "the kernel read something else");
            all += time;
        }
        Ok(all)
    }

    fn written(&self) -> usize {
        0
    }

    fn check(&mut self) -> Result<()> {
        Ok(())
    }
}

/// Eight steps of a five-point stencil between two arrays.
struct Stencil {
    kernel: Kernel,
    arrays: [SvmVec<f32>; 2],
    width: u32,
}

impl Stencil {
    fn new(svm: &Svm, pages: usize) -> Result<Self> {
        let (width, height) = (1024, pages / 2);
        let array = || svm.heap().vec_from_slice(&vec![1f32; width * height]);
        let kernel = idempotent(svm, "stencil", spirv!("stencil"))?;
        Ok(Self { kernel, arrays: [array()?, array()?], width: width as u32 })
    }
}

impl Pattern for Stencil {
    fn round(&mut self, _: &Svm) -> Result<f64> {
        let n = self.arrays[0].len() as u32;
        let (time, done) = seconds(|| -> Result<()> {
            for _ in 0..4 {
                let [from, to] = &mut self.arrays;
                let launch = self.kernel.launch([n.div_ceil(STREAM_GROUP), 1, 1]).read(&from[..]).write(&mut to[..]);
                launch.value(self.width).value(n / self.width).run()?;
                self.arrays.swap(0, 1);
            }
            Ok(())
        });
        done.map(|()| time)
    }

    fn written(&self) -> usize {
        2 * self.arrays[0].len() * 4 / PAGE
    }

    fn check(&mut self) -> Result<()> {
        ensure!(self.arrays[0].iter().all(|value| (value - 1.0).abs() < 1e-3), "the stencil computed something else");
        Ok(())
    }
}

/// Breadth-first search over nodes with random edges.
struct Search {
    kernel: Kernel,
    nodes: SvmVec<Node>,
    changed: SvmVec<u32>,
    reached: usize,
}

#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct Node {
    level: u32,
    degree: u32,
    neighbours: [u64; 15],
}

impl Search {
    fn new(svm: &Svm, pages: usize) -> Result<Self> {
        let count = pages * PAGE / size_of::<Node>();
        let mut nodes = svm.heap().vec_zeroed::<Node>(count)?;
        let mut random = SmallRng::seed_from_u64(9);
        let start = nodes.as_ptr().expose_provenance() as u64;
        for (index, node) in nodes.iter_mut().enumerate() {
            node.degree = 4;
            for neighbour in &mut node.neighbours[..4] {
                // Most edges are short, as in meshes and maps.
                let to = if random.random_bool(0.9) {
                    (index + random.random_range(1..2000)) % count
                } else {
                    random.random_range(0..count)
                };
                *neighbour = start + (to * size_of::<Node>()) as u64;
            }
        }
        let kernel = idempotent(svm, "search", spirv!("search"))?;
        Ok(Self { kernel, nodes, changed: svm.heap().vec_zeroed(1)?, reached: 0 })
    }
}

impl Pattern for Search {
    fn round(&mut self, _: &Svm) -> Result<f64> {
        for (index, node) in self.nodes.iter_mut().enumerate() {
            node.level = if index == 0 { 0 } else { u32::MAX };
        }
        let count = self.nodes.len() as u32;
        let (mut level, mut all) = (0u32, 0.0);
        loop {
            self.changed[0] = 0;
            let launch = self.kernel.launch([count.div_ceil(WALK_GROUP), 1, 1]).write(&mut self.nodes[..]);
            let (time, done) = seconds(|| launch.write(&mut self.changed[..]).value(count).value(level).run());
            done?;
            all += time;
            level += 1;
            if self.changed[0] == 0 {
                break;
            }
        }
        self.reached = self.nodes.iter().filter(|node| node.level != u32::MAX).count();
        Ok(all)
    }

    fn written(&self) -> usize {
        self.nodes.len() * size_of::<Node>() / PAGE
    }

    fn check(&mut self) -> Result<()> {
        let share = self.reached as f64 / self.nodes.len() as f64;
        ensure!(share > 0.9, "the search reached {share} of the nodes");
        Ok(())
    }
}
