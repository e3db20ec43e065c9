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
use std::cmp::Reverse;

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

/// What of a granule is in frames and may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Resident {
    /// The granule.
    pub granule: Granule,
    /// Whether evicting it costs a copy.
    pub dirty: bool,
    /// Its pages that may go.
    pub pages: u32,
}

impl Resident {
    /// Adds `other`, if it is of the same granule.
    pub fn joined(&mut self, other: Self) -> bool {
        let same = self.granule == other.granule;
        if same {
            self.dirty |= other.dirty;
            self.pages += other.pages;
        }
        same
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
    /// Pages used in the last burst, in each period anew.
    pages: u32,
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

    /// A page of a granule is used in this period, in which it was not recorded yet.
    pub fn record(&mut self, granule: Granule) {
        let (now, window) = (self.now, self.window());
        let history = self.histories.entry(granule).or_insert_with(|| {
            self.used += 1;
            History { began: now, last: now, interval: 0, pages: 0 }
        });
        if history.last != now {
            self.used += 1;
            if now - history.last > window {
                history.interval = now - history.began;
                history.began = now;
                history.pages = 0;
            }
            history.last = now;
        }
        history.pages = (history.pages + 1).min(GRANULE_PAGES);
    }

    /// How many pages of a granule were used in its last burst of uses, about: pages used in several periods of it count several times.
    pub fn used_together(&self, granule: Granule) -> u32 {
        self.histories.get(&granule).map_or(0, |history| history.pages)
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

    /// Orders `resident` so that what should go first comes first, and keeps of it what `pages` pages and one batch need. In each batch of `batch`
    /// granules the clean come before the dirty, and neighbours stand together: a longer list follows the forecast as closely as a short one.
    pub fn order(&self, resident: &mut Vec<Resident>, pages: usize, batch: usize) {
        let mut ranked: Vec<_> = resident.iter().map(|&one| (Reverse(self.distance(one.granule)), one)).collect();
        let mut about = batch.min(ranked.len());
        while about < ranked.len() {
            ranked.select_nth_unstable_by_key(about - 1, |&(distance, _)| distance);
            if ranked[..about].iter().map(|(_, one)| one.pages as usize).sum::<usize>() >= pages {
                ranked.truncate(about);
            }
            about *= 2;
        }
        ranked.sort_unstable();
        for batch in ranked.chunks_mut(batch) {
            // What is needed at once is no part of that: it goes last.
            batch.sort_unstable_by_key(|&(distance, one)| {
                let urgent = matches!(distance.0, Distance::Now(_)).then_some(distance);
                (urgent, one.dirty, one.granule)
            });
        }
        resident.clear();
        resident.extend(ranked.into_iter().map(|(_, one)| one));
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
                        let mut may_go: Vec<_> =
                            resident.difference(&using).map(|&granule| whole(granule.0, false)).collect();
                        policy.order(&mut may_go, 1, 1);
                        resident.remove(&may_go[0].granule);
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

    fn whole(granule: u32, dirty: bool) -> Resident {
        Resident { granule: Granule(granule), dirty, pages: GRANULE_PAGES }
    }

    fn numbers(resident: &[Resident]) -> Vec<u32> {
        resident.iter().map(|one| one.granule.0).collect()
    }

    #[test]
    fn clean_granules_go_before_dirty_ones_and_neighbours_together() {
        let policy = Replacement::default();
        let mut resident = vec![whole(5, true), whole(3, false), whole(4, true), whole(9, false)];
        policy.order(&mut resident, 10, 10);
        assert_eq!(numbers(&resident), [3, 9, 4, 5]);
    }

    #[test]
    fn a_list_is_as_long_as_its_pages_need_and_follows_the_forecast_batch_by_batch() {
        let mut policy = Replacement::default();
        policy.set_capacity(16);
        for granule in 0..12 {
            policy.record(Granule(granule));
            policy.end_period();
        }
        // The youngest goes first; the last two were used a moment ago. Every third is clean.
        let order = |pages: u32, wanted: usize, batch: usize| {
            let mut resident: Vec<_> =
                (0..12).map(|granule| Resident { pages, ..whole(granule, granule % 3 != 0) }).collect();
            policy.order(&mut resident, wanted, batch);
            numbers(&resident)
        };
        assert_eq!(order(16, 1, 4), [6, 9, 7, 8]);
        assert_eq!(order(16, 65, 4), [6, 9, 7, 8, 3, 2, 4, 5]);
        assert_eq!(order(1, 8, 4), [6, 9, 7, 8, 3, 2, 4, 5]);
        assert_eq!(order(1, 9, 4), [6, 9, 7, 8, 3, 2, 4, 5, 0, 1, 10, 11]);
    }
}
