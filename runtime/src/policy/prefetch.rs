//! Prefetch for device faults: streams recognised over rounds, with measured accuracy fed back.
//!
//! A round is what one drain of the fault queue brings for one VMA. If its pages follow each other at one distance (one for dense
//! access) and go on where the round before, or what was prefetched after it, ended, in either direction, they are
//! a stream: the pages to come are mapped before the kernel asks. How many starts with the length of a round and doubles while
//! at least three quarters of what was prefetched was used; a stream that does worse starts over, and one that did so repeatedly is
//! left alone. So an unrecognised pattern costs nothing, and a wrong guess is made a few times at most.
//!
//! Holes inside a round are another matter: coalescing fills them by density.

use crate::addr::{PageIndex, PageRange};
use std::collections::BTreeMap;

/// Share of the prefetched pages that must have been used for a stream to go on growing.
const GOOD: f64 = 0.75;
/// Pages prefetched at once, at most: 64 MiB.
const MAX_AHEAD: u32 = 16_384;
/// Wrong guesses after which a VMA is left alone.
const MAX_WRONG: u32 = 3;
/// VMAs that are followed at a time.
const MAX_STREAMS: usize = 64;
/// Fewer pages in a round say nothing about a pattern.
const MIN_ROUND: u32 = 4;

/// Pages to map ahead: `count` of them, `step` apart, from `first` on upwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ahead {
    /// The lowest page.
    pub first: PageIndex,
    /// Distance between pages.
    pub step: u32,
    /// How many.
    pub count: u32,
}

impl Ahead {
    /// One past the highest page.
    pub fn end(self) -> PageIndex {
        self.first.plus(self.count.saturating_sub(1) * self.step + u32::from(self.count > 0))
    }

    /// Which of the pages `page` is, if it is one of them.
    pub fn index_of(self, page: PageIndex) -> Option<u32> {
        let offset = page.0.checked_sub(self.first.0)?;
        (offset % self.step == 0 && offset / self.step < self.count).then(|| offset / self.step)
    }

    /// The pages as ranges: one if they are neighbours.
    pub fn ranges(self) -> impl Iterator<Item = PageRange> {
        let (ranges, length) = if self.step == 1 { (1, self.count) } else { (self.count, 1) };
        (0..ranges).map(move |n| PageRange::of_len(self.first.plus(n * self.step), length))
    }
}

/// What a round looked like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Round {
    low: u32,
    high: u32,
    step: u32,
    pages: u32,
}

#[derive(Clone, Copy, Debug)]
struct Stream {
    last: Round,
    /// Prefetched after the last round, and in which direction.
    ahead: Option<Ahead>,
    upwards: bool,
    /// Pages to prefetch next.
    window: u32,
    wrong: u32,
    used_at: u64,
}

/// Follows streams, a VMA each.
#[derive(Debug, Default)]
pub struct Prefetch {
    streams: BTreeMap<u64, Stream>,
    rounds: u64,
    prefetched: u64,
    used: u64,
}

impl Prefetch {
    /// Looks at a round: `asked` are the pages missed, ascending, in the VMA called `id` with extent `vma`. `used` says how many of some
    /// earlier prefetched pages kernels used. Returns what to map ahead.
    pub fn round(
        &mut self,
        id: u64,
        vma: PageRange,
        asked: impl ExactSizeIterator<Item = PageIndex> + Clone,
        used: impl Fn(Ahead) -> u32,
    ) -> Option<Ahead> {
        let round = describe(asked)?;
        self.rounds += 1;
        let Some(stream) = self.streams.get_mut(&id) else {
            self.follow(id, round);
            return None;
        };
        stream.used_at = self.rounds;
        if let Some(ahead) = stream.ahead.take() {
            let hits = used(ahead).min(ahead.count);
            self.prefetched += u64::from(ahead.count);
            self.used += u64::from(hits);
            if f64::from(hits) >= GOOD * f64::from(ahead.count) {
                stream.window = stream.window.saturating_mul(2).min(MAX_AHEAD);
                // The stream went through what was prefetched: that is where it has got to.
                if stream.upwards {
                    stream.last.high = ahead.first.0 + (ahead.count - 1) * ahead.step;
                } else {
                    stream.last.low = ahead.first.0;
                }
            } else {
                stream.wrong += 1;
                stream.window = 0;
            }
        }
        let before = std::mem::replace(&mut stream.last, round);
        let upwards = round.step == before.step && round.low == before.high.saturating_add(round.step);
        let downwards = round.step == before.step && before.low == round.high.saturating_add(round.step);
        if !(upwards || downwards) || stream.wrong >= MAX_WRONG {
            stream.window = 0;
            return None;
        }
        stream.upwards = upwards;
        stream.window = stream.window.max(round.pages.min(MAX_AHEAD));
        let step = round.step;
        let room = if upwards { vma.end.0 - 1 - round.high } else { round.low - vma.start.0 } / step;
        let count = stream.window.min(room);
        if count == 0 {
            return None;
        }
        let first = if upwards { round.high + step } else { round.low - count * step };
        let ahead = Ahead { first: PageIndex(first), step, count };
        stream.ahead = Some(ahead);
        Some(ahead)
    }

    /// Pages prefetched whose use is known, and how many of them were used.
    pub fn accuracy(&self) -> (u64, u64) {
        (self.prefetched, self.used)
    }

    fn follow(&mut self, id: u64, last: Round) {
        if self.streams.len() >= MAX_STREAMS
            && let Some(&oldest) = self.streams.iter().min_by_key(|(_, stream)| stream.used_at).map(|(id, _)| id)
        {
            self.streams.remove(&oldest);
        }
        let stream = Stream { last, ahead: None, upwards: true, window: 0, wrong: 0, used_at: self.rounds };
        self.streams.insert(id, stream);
    }
}

/// The round's extent and step; none if there is no one step. Dense rounds may lack an eighth of their pages.
fn describe(asked: impl ExactSizeIterator<Item = PageIndex> + Clone) -> Option<Round> {
    let pages = asked.len() as u32;
    if pages < MIN_ROUND {
        return None;
    }
    let low = asked.clone().next()?.0;
    let high = asked.clone().last()?.0;
    let length = high - low + 1;
    if pages >= length - length / 8 {
        return Some(Round { low, high, step: 1, pages: length });
    }
    let step = (high - low) / (pages - 1);
    let even = asked.enumerate().all(|(n, page)| page.0 == low + n as u32 * step);
    even.then_some(Round { low, high, step, pages })
}

#[cfg(test)]
mod tests {
    use super::*;

    const VMA: PageRange = PageRange { start: PageIndex(1000), end: PageIndex(101_000) };

    fn round(prefetch: &mut Prefetch, first: u32, step: u32, count: u32, used: f64) -> Option<Ahead> {
        let pages: Vec<_> = (0..count).map(|n| PageIndex(first + n * step)).collect();
        prefetch.round(1, VMA, pages.iter().copied(), |ahead| (f64::from(ahead.count) * used) as u32)
    }

    fn ahead(first: u32, step: u32, count: u32) -> Option<Ahead> {
        Some(Ahead { first: PageIndex(first), step, count })
    }

    #[test]
    fn two_rounds_in_a_row_make_a_stream_and_use_makes_it_grow() {
        let mut prefetch = Prefetch::default();
        assert_eq!(round(&mut prefetch, 1000, 1, 100, 1.0), None, "one round is no stream");
        assert_eq!(round(&mut prefetch, 1100, 1, 100, 1.0), ahead(1200, 1, 100));
        assert_eq!(round(&mut prefetch, 1300, 1, 100, 1.0), ahead(1400, 1, 200));
        assert_eq!(round(&mut prefetch, 1600, 1, 100, 1.0), ahead(1700, 1, 400));
        assert_eq!(prefetch.accuracy(), (300, 300));
    }

    #[test]
    fn streams_run_downwards_and_in_strides_too() {
        let mut prefetch = Prefetch::default();
        round(&mut prefetch, 5000, 1, 100, 1.0);
        assert_eq!(round(&mut prefetch, 4900, 1, 100, 1.0), ahead(4800, 1, 100));
        assert_eq!(round(&mut prefetch, 4700, 1, 100, 1.0), ahead(4500, 1, 200));
        let mut prefetch = Prefetch::default();
        round(&mut prefetch, 2000, 16, 10, 1.0);
        assert_eq!(round(&mut prefetch, 2160, 16, 10, 1.0), ahead(2320, 16, 10));
    }

    #[test]
    fn random_rounds_are_left_alone() {
        let mut prefetch = Prefetch::default();
        for n in 0..50u32 {
            let mut pages: Vec<_> = (0..64u32).map(|k| PageIndex(1000 + ((n * 64 + k) * 7919) % 90_000)).collect();
            pages.sort_unstable();
            assert_eq!(prefetch.round(1, VMA, pages.iter().copied(), |_| 0), None);
        }
        assert_eq!(prefetch.accuracy(), (0, 0));
    }

    #[test]
    fn a_vma_where_guesses_go_wrong_is_given_up() {
        let mut prefetch = Prefetch::default();
        let guesses = (0..100).filter(|n| round(&mut prefetch, 1000 + n * 10, 1, 10, 0.0).is_some()).count();
        assert!(guesses <= 4, "{guesses} guesses although none was any good");
    }

    #[test]
    fn nothing_is_prefetched_outside_the_vma() {
        let mut prefetch = Prefetch::default();
        round(&mut prefetch, 100_000, 1, 450, 1.0);
        assert_eq!(round(&mut prefetch, 100_450, 1, 450, 1.0), ahead(100_900, 1, 100));
        let mut prefetch = Prefetch::default();
        round(&mut prefetch, 100_800, 1, 100, 1.0);
        assert_eq!(round(&mut prefetch, 100_900, 1, 100, 1.0), None);
        let mut prefetch = Prefetch::default();
        round(&mut prefetch, 1100, 1, 100, 1.0);
        assert_eq!(round(&mut prefetch, 1000, 1, 100, 1.0), None);
    }

    #[test]
    fn the_number_of_streams_is_bounded() {
        let mut prefetch = Prefetch::default();
        for id in 0..1000 {
            prefetch.round(id, VMA, (2000..2010).map(PageIndex).collect::<Vec<_>>().iter().copied(), |_| 0);
        }
        assert!(prefetch.streams.len() <= MAX_STREAMS);
    }
}
