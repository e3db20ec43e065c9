//! What the core costs. Ignored by default, because figures need a quiet machine and a release build:
//! `cargo test --release -p vksvm --lib hmm::figures -- --ignored --nocapture --test-threads 1`.

use super::tests::{Probe, clear, mirror_with, pages};
use super::*;
use crate::addr::{PageIndex, PageRange};
use std::hint::black_box;
use std::thread;
use std::time::{Duration, Instant};

/// Nanoseconds per call: the best of several runs, which is the one that was disturbed least.
fn best(calls: u32, mut run: impl FnMut(u32)) -> f64 {
    let once = |run: &mut dyn FnMut(u32)| {
        let start = Instant::now();
        (0..calls).for_each(run);
        start.elapsed().as_nanos() as f64 / f64::from(calls)
    };
    (0..7).map(|_| once(&mut run)).fold(f64::INFINITY, f64::min)
}

#[test]
#[ignore = "a figure"]
fn invalidating_one_page_among_many_intervals() {
    for (what, apart, length) in [("dense", 1, 1), ("spread", 300, 64), ("overlapping", 4, 64)] {
        let cost = |count: u32, everywhere: bool| {
            let (notifiers, probe) = (Notifiers::new(), Probe::new());
            let mirror = mirror_with(&notifiers, &probe);
            let ranges: Vec<_> =
                (0..count).map(|n| mirror.range(PageRange::of_len(PageIndex(n * apart), length)).unwrap()).collect();
            let nanoseconds = best(20_000, |n| {
                // Everywhere in turn adds what it costs that 100,000 ranges do not fit into the nearest cache.
                let page = if everywhere { n.wrapping_mul(0x9e37_79b9) % (count * apart) } else { 50 * apart };
                drop(black_box(clear(&notifiers, PageRange::single(PageIndex(page)))));
                probe.heard.lock().unwrap().clear();
            });
            drop(ranges);
            nanoseconds
        };
        for (place, everywhere) in [("one page", false), ("pages all over", true)] {
            let (few, many) = (cost(100, everywhere), cost(100_000, everywhere));
            println!("invalidate {place}, {what}: {few:.0} ns in 100, {many:.0} ns in 100,000: {:.2}", many / few);
        }
    }
    let notifiers = Notifiers::new();
    let nobody = best(100_000, |n| drop(black_box(clear(&notifiers, PageRange::single(PageIndex(n))))));
    let asked = best(100_000, |_| assert!(!black_box(&notifiers).is_subscribed()));
    println!("nobody subscribed: invalidate {nobody:.1} ns, is_subscribed {asked:.2} ns");
}

#[test]
#[ignore = "a figure"]
fn the_life_of_a_range() {
    let (notifiers, probe) = (Notifiers::new(), Probe::new());
    let mirror = mirror_with(&notifiers, &probe);
    let life = |page: u32, length: u32| {
        let range = mirror.range(PageRange::of_len(PageIndex(page), length)).unwrap();
        assert!(!black_box(range.retry(range.begin())));
    };
    for length in [1, 512, 4096, 1 << 18] {
        println!("range of {length} pages: {:.0} ns", best(50_000, |n| life((n % 64) * 4096 + 8, length)));
    }
    let range = mirror.range(pages(0, 1)).unwrap();
    let seq = range.begin();
    println!("retry: {:.2} ns", best(1_000_000, |_| assert!(!black_box(&range).retry(black_box(seq)))));

    let rate = |threads: u32| {
        let started = Instant::now();
        let each = 800_000 / threads;
        thread::scope(|scope| {
            for thread in 0..threads {
                let life = &life;
                scope.spawn(move || (0..each).for_each(|n| life((thread << 18) + n % 4000, 16)));
            }
        });
        f64::from(each * threads) / started.elapsed().as_secs_f64() / 1e6
    };
    let best_rate = |threads| (0..5).map(|_| rate(threads)).fold(0.0, f64::max);
    let (one, eight) = (best_rate(1), best_rate(8));
    println!("ranges on disjoint spans: {one:.2} M/s with 1 thread, {eight:.2} M/s with 8: {:.2}", eight / one);
    thread::sleep(Duration::from_millis(1));
}
