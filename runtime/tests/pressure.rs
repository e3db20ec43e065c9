//! Few frames: a launch makes progress with those of one workgroup, policies change no result, and what is dirty survives whatever takes
//! pages away, in any order.

mod common;

use common::device::WatchedDevice;
use common::{seed, soft, trackers, with_each_tracker};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::collections::HashSet;
use std::sync::atomic::Ordering;
use vksvm::device::soft::SoftContext;
use vksvm::{Builder, Kernel, LaunchError, Mapping, Permission, Svm, ThrashOptions, ThrashPolicy};

const PAGE: u64 = 4096;
const WORDS: usize = 1024;

/// Steps of the chain that `follow` goes.
const STEPS: u64 = 6;

/// Follows a chain through the pages: each page's first word, and how far it came, name the next. The last is stored. An invocation that is
/// poisoned reads zero, and goes on through pages that it does not need.
fn follow(svm: &Svm, local: u32) -> Kernel {
    let body = |invocation: &mut SoftContext<'_>| {
        let [base, out, pages, stride] = invocation.arguments::<[u64; 4]>();
        let index = u64::from(invocation.global_id()[0]);
        let mut at = index * stride % pages;
        for step in 1..=STEPS {
            at = (u64::from(invocation.load::<u32>(base + at * PAGE)) + 11 * step) % pages;
        }
        invocation.store(out + 4 * index, at as u32);
    };
    // SAFETY: it reads the pages and writes the results that it is launched with.
    unsafe { svm.soft_kernel("follow", [local, 1, 1], 32, body) }.unwrap()
}

/// Where a chain ends, and the pages that it goes through.
fn chain(words: &[[u32; WORDS]], index: u64, stride: u64, pages: &mut HashSet<u64>) -> u32 {
    let count = words.len() as u64;
    let mut at = index * stride % count;
    for step in 1..=STEPS {
        pages.insert(at);
        at = (u64::from(words[at as usize][0]) + 11 * step) % count;
    }
    at as u32
}

#[test]
fn what_poisoned_invocations_guess_takes_no_frame_that_their_workgroup_needs() {
    let mut random = SmallRng::seed_from_u64(seed());
    for tracker in trackers() {
        for (local, idempotent) in [(1u32, true), (1, false), (5, true), (5, false)] {
            let (pages, groups, stride) = (97u64, 12u32, 7u64);
            let svm = soft(tracker, |builder| builder).unwrap();
            let mut data = svm.heap().vec_zeroed::<[u32; WORDS]>(pages as usize).unwrap();
            data.iter_mut().for_each(|page| page[0] = random.random_range(1..1000));
            let mut out = svm.heap().vec_zeroed::<[u32; WORDS]>(1).unwrap();
            let mut needs = Vec::new();
            let mut expected = Vec::new();
            for group in 0..groups {
                let mut used = HashSet::new();
                let invocations = u64::from(group * local)..u64::from((group + 1) * local);
                expected.extend(invocations.map(|index| chain(&data, index, stride, &mut used)));
                // And the page of the results.
                needs.push(used.len() as u64 + 1);
            }
            let most = needs.into_iter().max().unwrap();
            let kernel = follow(&svm, local);
            let kernel = if idempotent { kernel.idempotent() } else { kernel };
            let mut run = |frames: u64| {
                svm.set_budget(frames * PAGE);
                out[0].fill(0);
                let launch = kernel.launch([groups, 1, 1]).read(&data[..]).write(&mut out[..]).value([pages, stride]);
                launch.run().map(|report| (report, out[0][..expected.len()].to_vec()))
            };
            let (report, found) = run(most).unwrap();
            assert_eq!(found, expected, "{tracker}, {local}, {idempotent}");
            assert!(report.evictions > 0, "{report}");
            let error = run(most - 1).map(|_| ()).unwrap_err();
            assert!(matches!(error, LaunchError::OutOfFrames { .. }), "{error}");
            assert_eq!(run(most).unwrap().1, expected, "after a launch that was refused");
        }
    }
}

/// Changes words all over an array, and reads others that tell where.
fn scramble(svm: &Svm) -> Kernel {
    let body = |invocation: &mut SoftContext<'_>| {
        let [base, pages, seed] = invocation.arguments::<[u64; 3]>();
        let mut at = seed.wrapping_add(u64::from(invocation.global_id()[0]));
        for _ in 0..3 {
            let next = base + place(&mut at, pages);
            invocation.atomic_add(next, at as u32 >> 8);
        }
    };
    // SAFETY: it changes the array it is launched with, with atomics only.
    unsafe { svm.soft_kernel("scramble", [4, 1, 1], 24, body) }.unwrap()
}

/// The next place of a walk, in bytes.
fn place(at: &mut u64, pages: u64) -> u64 {
    *at = at.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*at >> 33) % pages * PAGE + (*at >> 20) % 4 * 64
}

/// What `scramble` does.
fn scrambled(words: &mut [[u32; WORDS]], groups: u32, seed: u64) {
    for index in 0..groups * 4 {
        let mut at = seed.wrapping_add(u64::from(index));
        for _ in 0..3 {
            let to = place(&mut at, words.len() as u64) as usize;
            let word = &mut words[to / PAGE as usize][to % PAGE as usize / 4];
            *word = word.wrapping_add(at as u32 >> 8);
        }
    }
}

#[test]
fn the_same_program_leaves_the_same_memory_whatever_the_policies() {
    let seed = seed();
    let thrash = |policy| ThrashOptions { policy, ..ThrashOptions::default() };
    type Options = Box<dyn Fn(Builder) -> Builder>;
    let settings: [(&str, Options); 5] = [
        ("all on", Box::new(|builder| builder)),
        ("no eviction policy", Box::new(|builder| builder.eviction_policy(false))),
        ("no thrash policy", Box::new(move |builder| builder.thrash(thrash(ThrashPolicy::Off)))),
        ("no prefetch", Box::new(|builder| builder.prefetch(false))),
        (
            "all off",
            Box::new(move |builder| builder.prefetch(false).eviction_policy(false).thrash(thrash(ThrashPolicy::Off))),
        ),
    ];
    for tracker in trackers() {
        for (name, options) in &settings {
            let mut random = SmallRng::seed_from_u64(seed);
            let (device, watch) = WatchedDevice::new();
            let svm = soft(tracker, |builder| options(builder.with_device(device).budget(40 * PAGE))).unwrap();
            watch.allowed.store(40 * PAGE, Ordering::SeqCst);
            let kernel = scramble(&svm);
            let mut data = svm.heap().vec_zeroed::<[u32; WORDS]>(150).unwrap();
            let mut expected = vec![[0u32; WORDS]; data.len()];
            for _ in 0..40 {
                let (groups, pick) = (random.random_range(1..30), random.random());
                kernel.launch([groups, 1, 1]).write(&mut data[..]).value([150u64, pick]).run().unwrap();
                scrambled(&mut expected, groups, pick);
                for _ in 0..random.random_range(0..20) {
                    let (page, word) = (random.random_range(0..150), random.random_range(0..64));
                    assert_eq!(data[page][word], expected[page][word], "{name}, {tracker}: page {page}, word {word}");
                    data[page][word] ^= 5;
                    expected[page][word] ^= 5;
                }
            }
            assert!(data.iter().zip(&expected).all(|(found, wanted)| found == wanted), "{name}, {tracker}");
            assert!(svm.stats().evictions > 100, "{name}: {}", svm.stats());
        }
    }
}

/// A mapping and what should be in it, page by page: the first words.
struct Part {
    mapping: Mapping,
    expected: Vec<u32>,
}

impl Part {
    fn new(svm: &Svm, pages: usize) -> Self {
        let mapping = svm.map(pages * PAGE as usize, Permission::ReadWrite).unwrap();
        Self { mapping, expected: vec![0; pages] }
    }

    fn check(&self, page: usize, what: &str) {
        let at = page * PAGE as usize;
        let word = u32::from_ne_bytes(self.mapping.as_slice()[at..at + 4].try_into().unwrap());
        assert_eq!(word, self.expected[page], "page {page} of {}, {what}", self.expected.len());
    }
}

/// Adds a value to the first word of each of `count` pages, `stride` pages apart.
fn add(svm: &Svm) -> Kernel {
    let body = |invocation: &mut SoftContext<'_>| {
        let [base, stride, value] = invocation.arguments::<[u64; 3]>();
        invocation.atomic_add(base + u64::from(invocation.global_id()[0]) * stride * PAGE, value as u32);
    };
    // SAFETY: it changes the pages it is launched with, with atomics only.
    unsafe { svm.soft_kernel("add", [1, 1, 1], 24, body) }.unwrap()
}

/// Kernels dirty pages; launches that need frames evict them, the CPU's loads and stores invalidate them, budgets shrink under them,
/// mappings are cut, moved, discarded in part and unmapped around them.
#[test]
fn dirty_data_survives_any_order_of_eviction_invalidation_and_unmap() {
    let seed = seed();
    with_each_tracker(
        |builder| builder.budget(24 * PAGE),
        |svm| {
            let mut random = SmallRng::seed_from_u64(seed);
            let kernel = add(svm);
            let mut parts: Vec<Part> = (0..4).map(|_| Part::new(svm, 20)).collect();
            for turn in 0..600 {
                let which = random.random_range(0..parts.len());
                let count = parts[which].expected.len();
                let page = random.random_range(0..count);
                match random.random_range(0..12) {
                    0..=4 => {
                        let stride = random.random_range(1..4);
                        let (groups, value) = ((count - page).div_ceil(stride), random.random::<u32>());
                        let part = &mut parts[which];
                        // SAFETY: in bounds of the mapping.
                        let from = unsafe { part.mapping.as_ptr().add(page * PAGE as usize) };
                        // SAFETY: the mapping outlives the launch.
                        let launch = unsafe { kernel.launch([groups as u32, 1, 1]).pointer(from) };
                        launch.value([stride as u64, u64::from(value)]).run().unwrap();
                        for expected in part.expected[page..].iter_mut().step_by(stride) {
                            *expected = expected.wrapping_add(value);
                        }
                    }
                    5 => parts[which].check(page, "read"),
                    6 => {
                        let part = &mut parts[which];
                        part.check(page, "before a store");
                        part.expected[page] ^= 1;
                        part.mapping.as_mut_slice().unwrap()[page * PAGE as usize] ^= 1;
                    }
                    7 => svm.set_budget(random.random_range(4..40) * PAGE),
                    8 if page > 0 => {
                        let mapping = parts[which].mapping.split_off(page * PAGE as usize).unwrap();
                        let expected = parts[which].expected.split_off(page);
                        parts.push(Part { mapping, expected });
                    }
                    9 => parts[which].mapping.move_to(None).unwrap(),
                    10 => {
                        let end = random.random_range(page..count) + 1;
                        let part = &mut parts[which];
                        part.mapping.discard(page * PAGE as usize..end * PAGE as usize).unwrap();
                        part.expected[page..end].fill(0);
                    }
                    11 if parts.len() > 3 => {
                        let gone = parts.swap_remove(which);
                        (0..count).for_each(|page| gone.check(page, "before it is unmapped"));
                        gone.mapping.unmap().unwrap();
                        parts.push(Part::new(svm, random.random_range(5..25)));
                    }
                    _ => {}
                }
                if turn % 50 == 49 {
                    let all = parts.iter().flat_map(|part| (0..part.expected.len()).map(move |page| (part, page)));
                    all.for_each(|(part, page)| part.check(page, "looked through"));
                }
            }
            assert!(svm.stats().evictions > 200, "{}", svm.stats());
        },
    );
}

#[test]
fn a_guessed_store_to_a_page_that_may_only_be_read_is_no_error() {
    with_each_tracker(
        |builder| builder,
        |svm| {
            let body = |invocation: &mut SoftContext<'_>| {
                let [shut, index, out] = invocation.arguments::<[u64; 3]>();
                if invocation.local_id()[0] == 0 {
                    let seen = invocation.load::<u32>(shut);
                    invocation.store(out, seen);
                } else {
                    // Poisoned, it reads zero and takes the wrong way.
                    let to = if invocation.load::<u32>(index) == 0 { shut } else { out + 4 };
                    invocation.store(to, 9u32);
                }
            };
            // SAFETY: it reads two pages and writes the third.
            let kernel = unsafe { svm.soft_kernel("guess", [2, 1, 1], 24, body) }.unwrap();
            let mut parts: Vec<Mapping> =
                (0..3).map(|_| svm.map(PAGE as usize, Permission::ReadWrite).unwrap()).collect();
            parts[0].as_mut_slice().unwrap()[0] = 7;
            parts[1].as_mut_slice().unwrap()[0] = 1;
            parts[0].protect(0..PAGE as usize, Permission::ReadOnly).unwrap();
            // SAFETY: the mappings outlive the launch.
            let launch = unsafe {
                let launch = kernel.launch([1, 1, 1]).pointer(parts[0].as_ptr()).pointer(parts[1].as_ptr());
                launch.pointer(parts[2].as_ptr())
            };
            launch.run().unwrap();
            assert_eq!((parts[2].as_slice()[0], parts[2].as_slice()[4], parts[0].as_slice()[0]), (7, 9, 7));
        },
    );
}
