//! Many threads touch what another thread keeps protecting, unmapping and mapping. Nobody may hang, no store
//! may be lost, and none may slip past a protection.

use super::fixture::{Case, Tracked, map_as_needed, pages};
use crate::addr::PageRange;
use crate::track::Protection::{ReadOnly, ReadWrite};
use crate::track::TrackerOptions;
use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::hash::BuildHasher;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const PAGES: u32 = 192;
const TOUCHERS: usize = 8;
const TIME: Duration = Duration::from_millis(1500);

super::for_each_tracker! {
    no_store_is_lost_or_slips_past_a_protection,
    nor_with_several_handler_threads,
    nor_with_a_tiny_budget_of_mappings,
    nor_while_pages_are_given_back,
    stopping_while_threads_touch_frees_them_all,
}

fn no_store_is_lost_or_slips_past_a_protection(case: Case) {
    torment(case, TrackerOptions::default());
}

fn nor_with_several_handler_threads(case: Case) {
    torment(case, TrackerOptions { handler_threads: 3, ..TrackerOptions::default() });
}

fn nor_with_a_tiny_budget_of_mappings(case: Case) {
    torment(case, TrackerOptions { mapping_budget: Some(12), ..TrackerOptions::default() });
}

fn torment(case: Case, options: TrackerOptions) {
    let seed = seed();
    // Orders what handlers and the tormentor do, as page locks do in the runtime.
    let order = Arc::new(Mutex::new(()));
    let handlers = Arc::clone(&order);
    let t = Tracked::new(case.kind, PAGES, options, move |tracker, fault| {
        let _in_order = handlers.lock();
        map_as_needed(tracker, fault)
    });
    t.tracker.watch(t.memory.views.all()).unwrap();
    let deadline = Instant::now() + TIME;

    let mut counts: Vec<Vec<u64>> = vec![];
    std::thread::scope(|scope| {
        let touchers: Vec<_> = (0..TOUCHERS)
            .map(|word| {
                scope.spawn({
                    let t = &t;
                    move || touch(t, word, seed, deadline)
                })
            })
            .collect();
        let mut rng = SmallRng::seed_from_u64(seed);
        while Instant::now() < deadline {
            let start = rng.random_range(0..PAGES);
            let span = pages(start, (start + 1 + rng.random_range(0..24)).min(PAGES));
            let _in_order = order.lock();
            match rng.random_range(0..5) {
                0 => t.tracker.map(span, ReadWrite).unwrap(),
                1 => {
                    t.tracker.map(span, ReadOnly).unwrap();
                    assert_quiet(&t, span);
                }
                2 => {
                    t.tracker.write_protect(span).unwrap();
                    assert_quiet(&t, span);
                }
                _ => {
                    t.tracker.unmap(span).unwrap();
                    assert_quiet(&t, span);
                }
            }
            drop(_in_order);
            if rng.random_range(0..8) == 0 {
                std::thread::sleep(Duration::from_micros(50));
            }
        }
        counts.extend(touchers.into_iter().map(|toucher| toucher.join().unwrap()));
    });

    for (word, counts) in counts.iter().enumerate() {
        for (page, &count) in counts.iter().enumerate() {
            assert_eq!(word_of(t.memory.alias(page as u32), word), count, "page {page} word {word}");
        }
    }
    assert!(t.tracker.faults() > 100);
}

/// A new seed each time, printed; `VKSVM_TEST_SEED` repeats one.
fn seed() -> u64 {
    let given = std::env::var("VKSVM_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = given.unwrap_or_else(|| std::hash::RandomState::new().hash_one(0));
    println!("VKSVM_TEST_SEED={seed}");
    seed
}

/// Adds to the thread's own word of random pages, and checks each time that it is what it was left as.
fn touch(t: &Tracked, word: usize, seed: u64, deadline: Instant) -> Vec<u64> {
    let mut rng = SmallRng::seed_from_u64(seed ^ (1 + word as u64));
    let mut counts = vec![0; PAGES as usize];
    while Instant::now() < deadline {
        for _ in 0..64 {
            let page = rng.random_range(0..PAGES);
            let pointer = t.memory.app(page);
            let count = &mut counts[page as usize];
            assert_eq!(word_of(pointer, word), *count, "page {page} word {word}");
            if rng.random() {
                *count += 1;
                // SAFETY: inside the page; only this thread stores to this word.
                unsafe { pointer.add(word).write_volatile(*count) };
            }
        }
    }
    counts
}

fn word_of(page: *mut u64, word: usize) -> u64 {
    // SAFETY: inside the page; volatile, as another thread may store to it.
    unsafe { page.add(word).read_volatile() }
}

/// Nothing is stored to pages that forbid it: handlers cannot map, as the caller holds their lock.
fn assert_quiet(t: &Tracked, span: PageRange) {
    let contents = || -> Vec<u64> {
        let words = |page: u32| (0..TOUCHERS).map(move |word| word_of(t.memory.alias(page), word));
        span.iter().flat_map(|page| words(page.0)).collect()
    };
    let before = contents();
    std::thread::sleep(Duration::from_micros(20));
    assert_eq!(before, contents(), "{span:?} changed while stores to it were forbidden");
}

fn nor_while_pages_are_given_back(case: Case) {
    let t = Tracked::watching(case, PAGES);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for word in 0..4 {
            let (t, over) = (&t, &over);
            scope.spawn(move || {
                let mut rng = SmallRng::seed_from_u64(word as u64);
                while !over.load(Ordering::Relaxed) {
                    let pointer = t.memory.app(rng.random_range(0..PAGES));
                    // SAFETY: inside the page; only this thread stores to this word.
                    unsafe { pointer.add(word).write_volatile(1) };
                    assert!(word_of(pointer, word) <= 1);
                }
            });
        }
        let mut rng = SmallRng::seed_from_u64(99);
        let deadline = Instant::now() + TIME;
        while Instant::now() < deadline {
            let page = rng.random_range(0..PAGES);
            t.memory.punch(page);
            if rng.random() {
                t.tracker.map(pages(page, (page + 5).min(PAGES)), ReadOnly).unwrap();
            }
        }
        over.store(true, Ordering::Relaxed);
    });
}

fn stopping_while_threads_touch_frees_them_all(case: Case) {
    for seed in 0..100 {
        let t = Tracked::watching(case, PAGES);
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for word in 0..4 {
                let (t, over) = (&t, &over);
                scope.spawn(move || {
                    let mut rng = SmallRng::seed_from_u64(seed * 8 + word as u64);
                    while !over.load(Ordering::Relaxed) {
                        // SAFETY: inside the page; only this thread stores to this word.
                        unsafe { t.memory.app(rng.random_range(0..PAGES)).add(word).write_volatile(1) };
                    }
                });
            }
            for _ in 0..20 {
                t.tracker.unmap(t.memory.views.all()).unwrap();
            }
            t.tracker.stop();
            over.store(true, Ordering::Relaxed);
        });
    }
}
