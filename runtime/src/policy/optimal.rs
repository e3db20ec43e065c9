//! The fewest misses that any policy can have, in hindsight: what replacement is measured against.

use hashbrown::HashMap;
use std::collections::BTreeSet;
use std::hash::Hash;

/// What serving a trace costs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Misses {
    /// Uses of what was not resident.
    pub all: u64,
    /// Of these, first uses, which no policy saves.
    pub first: u64,
}

/// Misses of a trace with `capacity` places, if always that goes whose next use is farthest away (Belady's MIN).
pub fn optimal<T: Copy + Eq + Hash + Ord>(trace: &[T], capacity: usize) -> Misses {
    // next[i]: when trace[i] is used again.
    let mut next = vec![usize::MAX; trace.len()];
    let mut seen: HashMap<T, usize> = HashMap::new();
    for (at, &item) in trace.iter().enumerate().rev() {
        next[at] = seen.insert(item, at).unwrap_or(usize::MAX);
    }
    let mut misses = Misses { all: 0, first: seen.len() as u64 };
    let mut resident: HashMap<T, usize> = HashMap::new();
    let mut by_next: BTreeSet<(usize, T)> = BTreeSet::new();
    for (at, &item) in trace.iter().enumerate() {
        if let Some(due) = resident.insert(item, next[at]) {
            by_next.remove(&(due, item));
        } else {
            misses.all += 1;
            if resident.len() > capacity
                && let Some((_, victim)) = by_next.pop_last()
            {
                resident.remove(&victim);
            }
        }
        by_next.insert((next[at], item));
    }
    misses
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_textbook_example_misses_nine_times_in_three_places() {
        let trace = [7, 0, 1, 2, 0, 3, 0, 4, 2, 3, 0, 3, 2, 1, 2, 0, 1, 7, 0, 1];
        assert_eq!(optimal(&trace, 3), Misses { all: 9, first: 6 });
    }

    #[test]
    fn a_loop_over_one_more_than_fits_misses_once_in_a_while() {
        let trace: Vec<u32> = (0..10).flat_map(|_| 0..5).collect();
        assert_eq!(optimal(&trace, 5).all, 5);
        // Each further round but the first misses about one in four.
        let all = optimal(&trace, 4).all;
        assert!((14..=18).contains(&all), "{all}");
    }
}
