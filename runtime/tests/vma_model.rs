//! Random sequences of operations on mappings against a plain model: a permission and two words for each page.
//!
//! `VKSVM_SEED` repeats a run, `VKSVM_SEQUENCES` sets how many sequences there are (10,000).

mod common;

use common::{seed, soft, trackers};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::ops::Range;
use vksvm::device::soft::SoftContext;
use vksvm::kernel::FaultReason;
use vksvm::{Kernel, LaunchError, MapRequest, Mapping, OpError, Permission, Svm, SvmVec};

const PAGE: usize = 4096;
/// Where the words that are compared stand in a page: its first and its last.
const PLACES: [usize; 2] = [0, PAGE - 4];
/// Pages that a sequence maps at most.
const MOST_PAGES: usize = 40;
/// Accesses of one launch.
const ACCESSES: usize = 128;

#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct PageModel {
    read_only: bool,
    words: [u32; 2],
}

#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct DeviceAccess {
    address: u64,
    store: u32,
    value: u32,
}

/// A mapping, and what it should hold.
struct Pair {
    real: Mapping,
    model: Vec<PageModel>,
}

struct World<'a> {
    svm: &'a Svm,
    kernel: &'a Kernel,
    accesses: SvmVec<DeviceAccess>,
    results: SvmVec<u32>,
    pairs: Vec<Pair>,
    rng: SmallRng,
    what: String,
}

/// Loads or stores words, one an invocation.
fn kernel(svm: &Svm) -> Kernel {
    let body = |invocation: &mut SoftContext<'_>| {
        let [accesses, results] = invocation.arguments::<[u64; 2]>();
        let index = u64::from(invocation.global_id()[0]);
        let access: DeviceAccess = invocation.load(accesses + 16 * index);
        if access.store == 1 {
            invocation.store(access.address, access.value);
        } else {
            let value: u32 = invocation.load(access.address);
            invocation.store(results + 4 * index, value);
        }
    };
    // SAFETY: the tests' accesses lie in their mappings, each word in one of them.
    unsafe { svm.soft_kernel("access", [1, 1, 1], 16, body) }.unwrap()
}

impl World<'_> {
    fn pages(&self) -> usize {
        self.pairs.iter().map(|pair| pair.model.len()).sum()
    }

    fn pick(&mut self) -> Option<usize> {
        (!self.pairs.is_empty()).then(|| self.rng.random_range(0..self.pairs.len()))
    }

    /// A part of a mapping in pages.
    fn part(&mut self, at: usize) -> Range<usize> {
        let pages = self.pairs[at].model.len();
        let start = self.rng.random_range(0..pages);
        start..self.rng.random_range(start + 1..=pages)
    }

    fn step(&mut self) {
        let kind = self.rng.random_range(0..100);
        let Some(at) = self.pick().filter(|_| kind >= 12) else { return self.map() };
        match kind {
            12..30 => self.cpu(at),
            30..48 => self.device(at),
            48..54 => self.forbidden_store(at),
            54..68 => self.protect(at),
            68..76 => self.discard(at),
            76..84 => self.unmap_part(at),
            84..94 => self.move_part(at),
            _ => drop(self.pairs.swap_remove(at)),
        }
    }

    fn map(&mut self) {
        let pages = self.rng.random_range(1..=12usize);
        if self.pages() + pages > MOST_PAGES {
            return;
        }
        let read_only = self.rng.random_bool(0.15);
        let permission = if read_only { Permission::ReadOnly } else { Permission::ReadWrite };
        let align = if self.rng.random_bool(0.2) { 64 << 10 } else { PAGE as u64 };
        let real = self.svm.map_as(&MapRequest::new((pages * PAGE) as u64, permission).align(align)).unwrap();
        self.pairs.push(Pair { real, model: vec![PageModel { read_only, ..PageModel::default() }; pages] });
    }

    fn cpu(&mut self, at: usize) {
        for _ in 0..self.rng.random_range(1..6) {
            let pair = &mut self.pairs[at];
            let page = self.rng.random_range(0..pair.model.len());
            let place = self.rng.random_range(0..2);
            // SAFETY: in bounds and aligned; no launch runs; stores go to writable pages only.
            let word = unsafe { pair.real.as_ptr().add(page * PAGE + PLACES[place]).cast::<u32>() };
            if self.rng.random_bool(0.5) && !pair.model[page].read_only {
                pair.model[page].words[place] = self.rng.random();
                // SAFETY: as above.
                unsafe { word.write_volatile(pair.model[page].words[place]) };
            } else {
                // SAFETY: as above.
                assert_eq!(unsafe { word.read_volatile() }, pair.model[page].words[place], "{}", self.what);
            }
        }
    }

    fn device(&mut self, at: usize) {
        let mut expected = Vec::new();
        let mut list = Vec::new();
        for _ in 0..self.rng.random_range(1..10) {
            let pair = &mut self.pairs[at];
            let page = self.rng.random_range(0..pair.model.len());
            let place = self.rng.random_range(0..2);
            let address = pair.real.start().0 + (page * PAGE + PLACES[place]) as u64;
            if list.iter().any(|access: &DeviceAccess| access.address == address) {
                continue;
            }
            let model = &mut pair.model[page];
            let store = self.rng.random_bool(0.5) && !model.read_only;
            if store {
                model.words[place] = self.rng.random();
            }
            list.push(DeviceAccess { address, store: u32::from(store), value: model.words[place] });
            expected.push((!store).then_some(model.words[place]));
        }
        self.launch(&list).unwrap_or_else(|error| panic!("{}: {error}", self.what));
        self.compare(&expected);
    }

    fn launch(&mut self, list: &[DeviceAccess]) -> Result<(), LaunchError> {
        self.accesses[..list.len()].copy_from_slice(list);
        let launch = self.kernel.launch([list.len() as u32, 1, 1]);
        launch.read(&self.accesses[..]).write(&mut self.results[..]).run().map(drop)
    }

    fn compare(&self, expected: &[Option<u32>]) {
        for (index, want) in expected.iter().enumerate() {
            assert!(want.is_none_or(|want| want == self.results[index]), "{}: the device read a stale word", self.what);
        }
    }

    fn forbidden_store(&mut self, at: usize) {
        let pair = &self.pairs[at];
        let Some(page) = pair.model.iter().position(|page| page.read_only) else { return };
        let address = pair.real.start().0 + (page * PAGE) as u64;
        match self.launch(&[DeviceAccess { address, store: 1, value: 1 }]) {
            Err(LaunchError::Fault(fault)) => assert_eq!(fault.reason, FaultReason::ReadOnly, "{}", self.what),
            other => panic!("{}: a store to read-only memory: {other:?}", self.what),
        }
    }

    fn protect(&mut self, at: usize) {
        let part = self.part(at);
        let read_only = self.rng.random_bool(0.5);
        let permission = if read_only { Permission::ReadOnly } else { Permission::ReadWrite };
        let pair = &mut self.pairs[at];
        pair.real.protect(part.start * PAGE..part.end * PAGE, permission).unwrap();
        pair.model[part].iter_mut().for_each(|page| page.read_only = read_only);
    }

    fn discard(&mut self, at: usize) {
        let part = self.part(at);
        let pair = &mut self.pairs[at];
        let forbidden = pair.model[part.clone()].iter().any(|page| page.read_only);
        match pair.real.discard(part.start * PAGE..part.end * PAGE) {
            Ok(()) if !forbidden => pair.model[part].iter_mut().for_each(|page| page.words = [0; 2]),
            Err(OpError::ReadOnly { .. }) if forbidden => {}
            other => panic!("{}: {other:?}", self.what),
        }
    }

    /// Cuts a part out: what is below it, it, and what is above it.
    fn cut(&mut self, at: usize) -> Pair {
        let part = self.part(at);
        let mut below = self.pairs.swap_remove(at);
        let cut_at = |pair: &mut Pair, at: usize| -> Option<Pair> {
            (at < pair.model.len())
                .then(|| Pair { real: pair.real.split_off(at * PAGE).unwrap(), model: pair.model.split_off(at) })
        };
        self.pairs.extend(cut_at(&mut below, part.end));
        if part.start == 0 {
            return below;
        }
        let middle = cut_at(&mut below, part.start).unwrap();
        self.pairs.push(below);
        middle
    }

    fn unmap_part(&mut self, at: usize) {
        self.cut(at).real.unmap().unwrap();
    }

    fn move_part(&mut self, at: usize) {
        let mut pair = self.cut(at);
        pair.real.move_to(None).unwrap();
        self.pairs.push(pair);
    }

    /// Compares everything, from one side.
    fn check(&mut self) {
        let all = self.pairs.iter().flat_map(|pair| {
            let start = pair.real.start().0;
            pair.model.iter().enumerate().flat_map(move |(page, model)| {
                (0..2).map(move |place| (start + (page * PAGE + PLACES[place]) as u64, model.words[place]))
            })
        });
        let all: Vec<(u64, u32)> = all.collect();
        if self.rng.random_bool(0.5) {
            for (address, want) in all {
                // SAFETY: in bounds and aligned; no launch runs.
                let word = unsafe { vksvm::addr::VirtAddr(address).as_ptr().cast::<u32>().read_volatile() };
                assert_eq!(word, want, "{}: the CPU read a stale word", self.what);
            }
        } else if !all.is_empty() {
            let list: Vec<_> = all.iter().map(|&(address, value)| DeviceAccess { address, store: 0, value }).collect();
            self.launch(&list).unwrap_or_else(|error| panic!("{}: {error}", self.what));
            self.compare(&all.iter().map(|&(_, want)| Some(want)).collect::<Vec<_>>());
        }
    }
}

#[test]
fn random_sequences_agree_with_a_plain_model_page_by_page() {
    let seed = seed();
    let sequences: u64 = std::env::var("VKSVM_SEQUENCES").ok().and_then(|text| text.parse().ok()).unwrap_or(10_000);
    let trackers = trackers();
    for (number, &tracker) in trackers.iter().enumerate() {
        // Few frames, so that eviction takes part.
        let svm = soft(tracker, |builder| builder.frames(12)).unwrap();
        let kernel = kernel(&svm);
        let heap = svm.heap();
        let mut world = World {
            svm: &svm,
            kernel: &kernel,
            accesses: heap.vec_from_slice(&[bytemuck::Zeroable::zeroed(); ACCESSES]).unwrap(),
            results: heap.vec_zeroed(ACCESSES).unwrap(),
            pairs: Vec::new(),
            rng: SmallRng::seed_from_u64(seed),
            what: String::new(),
        };
        let count = trackers.len() as u64;
        let mine = sequences / count + u64::from((number as u64) < sequences % count);
        let started = std::time::Instant::now();
        for sequence in 0..mine {
            world.rng = SmallRng::seed_from_u64(seed ^ (sequence * count + number as u64));
            for step in 0..world.rng.random_range(4..20) {
                world.what = format!("VKSVM_SEED={seed}, {tracker}, sequence {sequence}, step {step}");
                world.step();
            }
            world.check();
            world.pairs.clear();
        }
        let (took, stats) = (started.elapsed(), svm.stats());
        println!(
            "{tracker}: {mine} sequences in {took:.1?}, {} launches, {} evictions",
            stats.launches, stats.evictions
        );
        assert_eq!(svm.address_space().vmas().read().iter().filter(|vma| vma.kind().is_mapping()).count(), 0);
    }
}
