//! `hmm`: the range protocol alone, without a device.

use crate::harness::{Samples, Suite, Wanted, seconds};
use anyhow::{Result, ensure};
use std::hint::black_box;
use std::sync::Arc;
use vksvm::addr::{PageIndex, PageRange};
use vksvm::hmm::{Blocking, Event, InvalidateInfo, Mirror, MirrorOps, Notifiers, OwnerId, Range, WouldBlock};

const ROUNDS: u32 = 15;
const CALLS: u32 = 20_000;

/// A mirror with nothing to do.
struct Idle;

impl MirrorOps for Idle {
    fn invalidate(&self, _info: &InvalidateInfo) -> Result<(), WouldBlock> {
        Ok(())
    }
    fn release(&self) {}
}

fn mirror() -> Result<(Arc<Notifiers>, Mirror)> {
    let notifiers = Notifiers::new();
    let mirror = Mirror::register(&notifiers, OwnerId::unique(), "bench", Arc::new(Idle))?;
    Ok((notifiers, mirror))
}

pub(super) fn run(suite: &mut Suite) -> Result<()> {
    nobody(suite)?;
    intervals(suite)?;
    ranges(suite)
}

/// First touches of heap memory that no device ever saw, against the same on memory of the kernel's.
fn nobody(suite: &mut Suite) -> Result<()> {
    let svm = suite.open(|builder| builder)?;
    let pages = 4096usize;
    // Many rounds: what is to be told apart is two per cent, and single rounds differ by more.
    let samples = suite.interleave("CPU write, no mirror over it", 4 * ROUNDS, 2, |which| {
        let touch = |base: *mut u8| {
            for page in 0..pages {
                // SAFETY: both blocks have that many pages.
                unsafe { base.add(page * 4096).write_volatile(1) };
            }
        };
        let time = if which == 0 {
            let mut data = svm.heap().vec_zeroed::<u8>(pages * 4096)?;
            seconds(|| touch(data.as_mut_ptr())).0
        } else {
            // Foreign memory of the same kind: a shared mapping of a memfd.
            let views = vksvm::mm::views::OwnedViews::reserve((pages * 4096) as u64)?;
            views.grow_to(pages as u32)?;
            seconds(|| touch(views.addr_of(PageIndex(0)).as_ptr())).0
        };
        Ok(time / pages as f64)
    })?;
    let row = suite.row("CPU write, no mirror over it", "per page", "s", &samples[0]);
    row.against("foreign memory", &samples[0], &samples[1]).wanted(Wanted::RatioAtMost(1.02));
    Ok(())
}

fn intervals(suite: &mut Suite) -> Result<()> {
    let held: Vec<(Arc<Notifiers>, Mirror, u32)> =
        [100u32, 100_000].into_iter().map(|count| mirror().map(|(n, m)| (n, m, count))).collect::<Result<_>>()?;
    let ranges: Vec<Vec<Range<'_>>> = held
        .iter()
        .map(|(_, mirror, count)| {
            (0..*count).map(|n| mirror.range(PageRange::of_len(PageIndex(n * 300), 64))).collect::<Result<_, _>>()
        })
        .collect::<Result<_, _>>()?;
    // The same page each time; and pages all over, where each call also pays for what is not in the nearest cache.
    let samples = suite.interleave("invalidate one page", ROUNDS, 4, |which| {
        let (notifiers, _, count) = &held[which % 2];
        let page = |n: u32| if which < 2 { 50 * 300 } else { n.wrapping_mul(0x9e37_79b9) % (count * 300) };
        let (time, done) = seconds(|| -> Result<()> {
            for n in 0..CALLS {
                let page = PageRange::single(PageIndex(page(n)));
                drop(black_box(notifiers.invalidate(page, Event::Clear, None, Blocking::Yes)?));
            }
            Ok(())
        });
        done.map(|()| time / f64::from(CALLS))
    })?;
    drop(ranges);
    let row = suite.row("invalidate, 100,000 intervals", "start + end", "s", &samples[1]);
    row.against("100 intervals", &samples[1], &samples[0]).wanted(Wanted::RatioAtMost(2.0));
    let row = suite.row("the same, pages all over", "start + end", "s", &samples[3]);
    row.against("100 intervals", &samples[3], &samples[2]).wanted(Wanted::RatioAtMost(2.0));
    Ok(())
}

fn ranges(suite: &mut Suite) -> Result<()> {
    let (_notifiers, mirror) = mirror()?;
    let life = |page: u32| {
        let range = mirror.range(PageRange::of_len(PageIndex(page), 16));
        range.is_ok_and(|range| !black_box(range.retry(range.begin())))
    };
    let total = 40 * CALLS;
    let samples = suite.interleave("range", ROUNDS, 2, |which| {
        let threads = [1, 8][which];
        let each = total / threads;
        let (time, right) = seconds(|| {
            std::thread::scope(|scope| {
                let all: Vec<_> = (0..threads)
                    .map(|thread| scope.spawn(move || (0..each).all(|n| life((thread << 18) + n % 4000))))
                    .collect();
                all.into_iter().all(|thread| thread.join().unwrap_or(false))
            })
        });
        ensure!(right, "a range that nobody invalidates became stale");
        Ok(time / f64::from(total))
    })?;
    suite.row("range", "register, begin, retry, unregister", "s", &samples[0]);
    let rates: Vec<Samples> = samples.iter().map(|samples| samples.map(|time| 1e-6 / time)).collect();
    let row = suite.row("ranges, 8 threads", "rate", "M/s", &rates[1]);
    row.against("1 thread", &rates[1], &rates[0]).wanted(Wanted::RatioAtLeast(1.0));
    Ok(())
}
