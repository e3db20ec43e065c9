//! How many pages are write-protected together while kernels run.
//!
//! Where kernels compute on the CPU, a call that takes permissions from the program interrupts the threads that compute, which costs more than
//! the call, and random faults need one each. To protect a page that the program is not about to store to costs next to nothing, and if it does store, a
//! fault without a copy. So each call in a VMA covers twice as many pages as the last, while the program keeps off what was protected for
//! nothing; if it does not, far fewer.

use std::collections::BTreeMap;

/// Pages of the first call: a quarter of a MiB.
const LEAST: u32 = 64;
/// Pages of a call, at most: 16 MiB, a fraction of a millisecond.
const MOST: u32 = 4096;
/// One needless protection for this many pages is put up with.
const PER_NEEDLESS: u32 = 64;
/// VMAs that are remembered at a time.
const MAX_VMAS: usize = 64;

#[derive(Clone, Copy, Debug)]
struct Guard {
    width: u32,
    /// Needless protections at the last call.
    needless: u64,
}

/// The calls of a service, by VMA.
#[derive(Debug, Default)]
pub struct Guards {
    vmas: BTreeMap<u64, Guard>,
}

impl Guards {
    /// How many pages, aligned to their number, a call in the VMA called `id` covers. So far the program has stored to `needless` pages that
    /// were protected for nothing.
    pub fn width(&mut self, id: u64, needless: u64) -> u32 {
        if self.vmas.len() >= MAX_VMAS && !self.vmas.contains_key(&id) {
            self.vmas.pop_first();
        }
        let guard = self.vmas.entry(id).or_insert(Guard { width: LEAST / 2, needless });
        let lost = needless - guard.needless;
        guard.needless = needless;
        let liked = lost * u64::from(PER_NEEDLESS) <= u64::from(guard.width);
        guard.width = if liked { (guard.width * 2).min(MOST) } else { (guard.width / 8).max(LEAST) };
        guard.width
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_vma_is_protected_in_few_calls() {
        let mut guards = Guards::default();
        let (mut covered, mut calls) = (0, 0);
        while covered < 100_000 {
            covered += guards.width(1, 0);
            calls += 1;
        }
        assert!(calls < 40, "{calls} calls");
    }

    #[test]
    fn a_program_that_stores_to_what_was_protected_for_nothing_is_let_alone() {
        let mut guards = Guards::default();
        let mut needless = 0;
        for _ in 0..100 {
            let width = guards.width(1, needless);
            assert!(width <= 4 * LEAST, "{width}");
            needless += u64::from(width / 8);
        }
        // And again later, when it has stopped.
        let widths: Vec<_> = (0..12).map(|_| guards.width(1, needless)).collect();
        assert_eq!(widths.last(), Some(&MOST), "{widths:?}");
    }

    #[test]
    fn widths_are_powers_of_two_so_that_what_is_covered_is_aligned() {
        let mut guards = Guards::default();
        for needless in [0, 0, 0, 50, 50, 50, 99, 99, 700, 700] {
            assert!(guards.width(3, needless).is_power_of_two());
        }
    }

    #[test]
    fn memory_is_bounded() {
        let mut guards = Guards::default();
        for id in 0..1000 {
            guards.width(id, 0);
        }
        assert!(guards.vmas.len() <= MAX_VMAS);
    }
}
