//! Replacement: which pages to evict when frames are short.
//!
//! The best choice is the page whose next use is farthest away (Belady, 1966). It is not known, so it is forecast: what was used
//! again after some time before will be used again after that time. For loops over more data than fits, the case in which
//! least-recently-used misses every time, the forecast is exact; for a working set that changes slowly it agrees with least-recently-used.
//!
//! - Time counts the granules used; it passes in periods, whose uses are simultaneous.
//! - A *burst* is a series of uses with less than [`window`](Replacement::window) between them: neighbouring iterations of one sweep.
//!   An interval is from the start of a burst to the start of the next. While a burst lasts the granule is needed at once.
//! - A granule without an interval may never be used again, and goes first, the youngest first: so a first sweep leaves in place what
//!   it loaded at first, instead of pushing out what comes next.
//! - A granule that is late by its own forecast is taken to be ever later: twice as far away as it is late.
//!
//! Histories outlive residency, or no refault would be recognised; their number is bounded.
//!
//! Plain data: no locks, no clock but its own.

use crate::addr::{PageIndex, PageRange};
use hashbrown::HashMap;

/// Pages of a granule: 64 KiB.
pub const GRANULE_PAGES: u32 = 16;
/// Histories kept for each granule that fits.
const HISTORIES: usize = 16;
/// The part of capacity that is the window.
const WINDOW: u64 = 8;

/// A group of pages that history is kept for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Granule(pub u32);

impl Granule {
    /// The granule of a page.
    pub fn of(page: PageIndex) -> Self {
        Self(page.0 / GRANULE_PAGES)
    }

    /// Its pages.
    pub fn pages(self) -> PageRange {
        PageRange::of_len(PageIndex(self.0 * GRANULE_PAGES), GRANULE_PAGES)
    }
}

#[derive(Clone, Copy, Debug)]
struct History {
    /// Start of the last burst.
    began: u64,
    /// Last use.
    last: u64,
    /// From the start of the burst before to that of the last; 0 if there was none.
    interval: u64,
}

/// How far away a granule's next use is, for comparing: larger goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Distance {
    /// Used a moment ago; the higher, the longer ago.
    Now(u64),
    /// Forecast.
    Known(u64),
    /// Nothing is known; the higher, the later it came.
    Unknown(u64),
}

/// Forecasts uses.
#[derive(Debug, Default)]
pub struct Replacement {
    histories: HashMap<Granule, History>,
    now: u64,
    /// Granules used in this period.
    used: u64,
    capacity: u64,
}

impl Replacement {
    /// Says how many granules fit.
    pub fn set_capacity(&mut self, granules: u32) {
        self.capacity = u64::from(granules.max(1));
    }

    /// Time within which uses belong together.
    pub fn window(&self) -> u64 {
        self.capacity / WINDOW
    }

    /// A granule is used in this period.
    pub fn record(&mut self, granule: Granule) {
        let (now, window) = (self.now, self.window());
        let history = self.histories.entry(granule).or_insert_with(|| {
            self.used += 1;
            History { began: now, last: now, interval: 0 }
        });
        if history.last == now {
            return;
        }
        self.used += 1;
        if now - history.last > window {
            history.interval = now - history.began;
            history.began = now;
        }
        history.last = now;
    }

    /// The period ends. What is used from here on is used later.
    pub fn end_period(&mut self) {
        self.now += std::mem::take(&mut self.used).max(1);
        let most = HISTORIES * self.capacity as usize + 1024;
        if self.histories.len() > most {
            // The half that was used last stays.
            let mut ages: Vec<u64> = self.histories.values().map(|history| history.last).collect();
            let (_, &mut middle, _) = ages.select_nth_unstable(most / 2);
            self.histories.retain(|_, history| history.last >= middle);
        }
    }

    /// How far away the next use of a granule is.
    pub fn distance(&self, granule: Granule) -> Distance {
        let Some(history) = self.histories.get(&granule) else { return Distance::Unknown(0) };
        let age = self.now - history.last;
        if age <= self.window() {
            return Distance::Now(age);
        }
        let since = self.now - history.began;
        match history.interval {
            0 => Distance::Unknown(history.began),
            interval if since <= interval => Distance::Known(interval - since),
            interval => Distance::Known(2 * (since - interval)),
        }
    }

    /// Orders `resident`, whose second member says whether evicting costs a copy, so that what should go first comes first. Among the first `about`
    /// the clean come before the dirty, and neighbours stand together.
    pub fn order(&self, resident: &mut Vec<(Granule, bool)>, about: usize) {
        let about = about.min(resident.len());
        if about > 0 && about < resident.len() {
            resident.select_nth_unstable_by_key(about - 1, |&(granule, _)| std::cmp::Reverse(self.distance(granule)));
        }
        resident.truncate(about);
        // What is needed at once is no part of that: it goes last.
        let urgent = |granule: Granule| match self.distance(granule) {
            Distance::Now(age) => Some(std::cmp::Reverse(age)),
            Distance::Known(_) | Distance::Unknown(_) => None,
        };
        resident.sort_unstable_by_key(|&(granule, dirty)| (urgent(granule), dirty, granule));
    }
}

#[cfg(test)]
mod tests {
    use super::super::optimal;
    use super::*;
    use hashbrown::HashSet;
    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};

    /// Misses of the policy on a trace, in periods of `period` uses; what a period has used so far stays.
    fn misses(trace: &[u32], capacity: usize, period: usize) -> u64 {
        let mut policy = Replacement::default();
        policy.set_capacity(capacity as u32);
        let mut resident: HashSet<Granule> = HashSet::new();
        let mut missed = 0;
        for uses in trace.chunks(period) {
            let mut using: HashSet<Granule> = HashSet::new();
            for granule in uses.iter().map(|&granule| Granule(granule)) {
                using.insert(granule);
                if !resident.contains(&granule) {
                    missed += 1;
                    if resident.len() == capacity {
                        let mut may_go: Vec<_> = resident.difference(&using).map(|&granule| (granule, false)).collect();
                        policy.order(&mut may_go, 1);
                        resident.remove(&may_go[0].0);
                    }
                    resident.insert(granule);
                }
                policy.record(granule);
            }
            policy.end_period();
        }
        missed
    }

    fn least_recently_used(trace: &[u32], capacity: usize) -> u64 {
        let mut used: HashMap<u32, usize> = HashMap::new();
        let mut missed = 0;
        for (at, &granule) in trace.iter().enumerate() {
            if used.insert(granule, at).is_none() {
                missed += 1;
                if used.len() > capacity {
                    let oldest = used.iter().min_by_key(|&(_, &last)| last).map(|(&granule, _)| granule);
                    used.remove(&oldest.unwrap());
                }
            }
        }
        missed
    }

    fn compare(name: &str, trace: &[u32], capacity: usize, period: usize) -> (f64, f64) {
        let (own, best) = (misses(trace, capacity, period), optimal(trace, capacity).all);
        let recent = least_recently_used(trace, capacity);
        println!("{name}: {own} misses, optimal {best}, least recently used {recent}");
        (own as f64 / best as f64, own as f64 / recent as f64)
    }

    const CAPACITY: usize = 200;

    #[test]
    fn a_loop_over_more_than_fits_is_near_the_optimum() {
        for percent in [110, 125, 150, 200, 400] {
            let granules = (CAPACITY * percent / 100) as u32;
            let trace: Vec<u32> = (0..20).flat_map(|_| 0..granules).collect();
            let (ratio, _) = compare(&format!("loop of {percent} %"), &trace, CAPACITY, 8);
            assert!(ratio <= 1.5, "{ratio}");
        }
    }

    #[test]
    fn a_stencil_that_alternates_between_two_arrays_is_near_the_optimum() {
        let rows = CAPACITY as u32 * 3 / 4;
        // Reads a row and its neighbours, writes the row of the other array.
        let sweep = |from: u32, to: u32| {
            (0..rows).flat_map(move |row| {
                let near = [row.saturating_sub(1), row, (row + 1).min(rows - 1)];
                near.into_iter().map(move |row| from + row).chain([to + row])
            })
        };
        let trace: Vec<u32> = (0..10).flat_map(|_| sweep(0, rows).chain(sweep(rows, 0))).collect();
        let (ratio, _) = compare("stencil", &trace, CAPACITY, 16);
        assert!(ratio <= 1.5, "{ratio}");
    }

    #[test]
    fn a_hot_set_survives_a_stream_through_it() {
        let mut trace = Vec::new();
        let mut cold = 1000;
        for round in 0..100 {
            trace.extend((0..100).map(|at| (at * 7 + round) % 150));
            trace.extend(cold..cold + 100);
            cold += 100;
        }
        let (ratio, recent) = compare("hot set and stream", &trace, CAPACITY, 8);
        assert!(ratio <= 1.25 && recent <= 1.0, "{ratio}, {recent}");
    }

    #[test]
    fn random_uses_cost_no_more_than_with_least_recently_used() {
        let mut random = SmallRng::seed_from_u64(5);
        let uniform: Vec<u32> = (0..20_000).map(|_| random.random_range(0..300)).collect();
        let (_, recent) = compare("uniform", &uniform, CAPACITY, 8);
        assert!(recent <= 1.1, "{recent}");
        let skewed: Vec<u32> = (0..20_000).map(|_| (random.random::<f64>().powi(3) * 600.0) as u32).collect();
        let (_, recent) = compare("skewed", &skewed, CAPACITY, 8);
        assert!(recent <= 1.1, "{recent}");
    }

    #[test]
    fn what_a_phase_used_that_is_over_makes_room_for_the_next() {
        let phase = |start: u32| (0..10).flat_map(move |_| start..start + 180);
        let trace: Vec<u32> = (0..5).flat_map(|number| phase(number * 180)).collect();
        let (ratio, _) = compare("phases", &trace, CAPACITY, 8);
        assert!(ratio <= 2.0, "{ratio}");
    }

    #[test]
    fn histories_are_bounded() {
        let mut policy = Replacement::default();
        policy.set_capacity(4);
        for granule in 0..100_000 {
            policy.record(Granule(granule));
            policy.end_period();
        }
        assert!(policy.histories.len() <= HISTORIES * 4 + 1025, "{}", policy.histories.len());
    }

    #[test]
    fn clean_granules_go_before_dirty_ones_and_neighbours_together() {
        let policy = Replacement::default();
        let mut resident = vec![(Granule(5), true), (Granule(3), false), (Granule(4), true), (Granule(9), false)];
        policy.order(&mut resident, 10);
        assert_eq!(resident.iter().map(|&(granule, _)| granule.0).collect::<Vec<_>>(), [3, 9, 4, 5]);
    }
}
