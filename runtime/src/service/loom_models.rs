//! Exhaustive models of shootdowns under loom: `RUSTFLAGS="--cfg loom" cargo test -p vksvm --release --lib loom_`.
//!
//! The host's half is the real code (`grace.rs`). The units' half follows `vksvm_join_`, `vksvm_leave_`, `vksvm_move_` and the fast path
//! of `shaders/vksvm.glsl` line by line. A page has an entry and a frame; the host takes it away, waits, collects the entry's late bits,
//! copies home what is dirty, and reuses the frame: loom reports a unit that accesses the frame at the same time, and the model asserts that
//! no store is lost. Each model is run as it is, and once for each rule that is broken ([`Rule`]), when it must fail.

use super::flying::Flying;
use super::grace::{EpochWords, GracePeriods};
use crate::addr::{PageIndex, PageRange};
use crate::sync::Mutex;
use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicU32, AtomicUsize, Ordering, fence};
use loom::thread;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// A rule of the protocol, to be broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rule {
    /// A unit that joins looks at the epoch again after it added itself.
    SecondLook,
    /// The host waits for the old epoch's count to come down.
    Wait,
    /// Bits that units set after the entry was taken are collected.
    LateBits,
    /// A unit joins the new epoch before it leaves the old one, and translates again after it moved.
    TranslateAgain,
    /// A unit's stores are available before it leaves.
    StoresBeforeLeaving,
    /// An invalidation waits for whoever has taken the same page and holds no lock while it waits for units.
    WaitForOthers,
    /// Eviction passes over pages that an invalidation has taken, or made read-only, and not brought home yet.
    PassOver,
}

const VALID: u32 = 1;
const DIRTY: u32 = 2;
const WRITABLE: u32 = 4;
const ALL: u32 = VALID | DIRTY | WRITABLE;

/// The control block and one page.
struct Machine {
    broken: Option<Rule>,
    epoch: AtomicU32,
    counts: [AtomicU32; 2],
    grace: GracePeriods,
    update: Mutex<()>,
    flying: Flying,
    pages: [Page; 2],
}

struct Page {
    entry: AtomicU32,
    frame: UnsafeCell<u32>,
    home: UnsafeCell<u32>,
    /// What units have stored in all.
    stored: AtomicUsize,
}

impl Machine {
    fn new(broken: Option<Rule>) -> Arc<Self> {
        let page = || Page {
            entry: AtomicU32::new(VALID | WRITABLE),
            frame: UnsafeCell::new(0),
            home: UnsafeCell::new(0),
            stored: AtomicUsize::new(0),
        };
        Arc::new(Self {
            broken,
            epoch: AtomicU32::new(1),
            counts: [AtomicU32::new(0), AtomicU32::new(0)],
            grace: GracePeriods::new(),
            update: Mutex::new(()),
            flying: Flying::new(),
            pages: [page(), page()],
        })
    }

    fn keeps(&self, rule: Rule) -> bool {
        self.broken != Some(rule)
    }

    fn count(&self, epoch: u32) -> &AtomicU32 {
        &self.counts[(epoch & 1) as usize]
    }

    /// `atomicOr(epoch, 0)`. GLSL's atomics are relaxed; the barriers are fences.
    fn look(&self) -> u32 {
        self.epoch.fetch_or(0, Ordering::Relaxed)
    }

    /// `vksvm_join_`.
    fn join(&self) -> u32 {
        let mut epoch = self.look();
        loop {
            self.count(epoch).fetch_add(1, Ordering::Relaxed);
            fence(Ordering::AcqRel);
            if !self.keeps(Rule::SecondLook) {
                break;
            }
            let now = self.look();
            if now == epoch {
                break;
            }
            self.count(epoch).fetch_sub(1, Ordering::Relaxed);
            epoch = now;
        }
        fence(Ordering::AcqRel);
        epoch
    }

    /// `vksvm_leave_`.
    fn leave(&self, epoch: u32) {
        if self.keeps(Rule::StoresBeforeLeaving) {
            fence(Ordering::AcqRel);
        }
        self.count(epoch).fetch_sub(1, Ordering::Relaxed);
    }

    /// A translation for storing; whether the page is there. Looser than the include, which does without the page if the entry was
    /// taken before it could set the bit: the host allows for units that go on, as long as they are counted where they were.
    fn translate(&self, page: &Page) -> bool {
        let there = page.entry.load(Ordering::Relaxed) & WRITABLE != 0;
        if there {
            page.entry.fetch_or(DIRTY, Ordering::Relaxed);
        }
        there
    }

    fn store(&self, page: &Page) {
        page.frame.with_mut(|frame| {
            // SAFETY: loom checks that nobody else accesses the frame meanwhile.
            unsafe { *frame += 1 }
        });
        page.stored.fetch_add(1, Ordering::Relaxed);
    }

    /// A workgroup: two stores with a safe point in between.
    fn unit(&self, page: usize) {
        let page = &self.pages[page];
        let mut epoch = self.join();
        let mut there = self.translate(page);
        if there {
            self.store(page);
        }
        if self.look() != epoch {
            let old = epoch;
            epoch = self.join();
            self.leave(old);
            if self.keeps(Rule::TranslateAgain) {
                there = self.translate(page);
            }
        } else {
            there = self.translate(page);
        }
        if there {
            self.store(page);
        }
        self.leave(epoch);
    }

    /// The host takes a page away and reuses its frame; what it brings home.
    fn take_away(&self, page: usize) -> u32 {
        let page = &self.pages[page];
        let mut taken = page.entry.fetch_and(!ALL, Ordering::AcqRel);
        if self.keeps(Rule::Wait) {
            self.grace.wait(self, || {
                thread::yield_now();
                true
            });
        }
        if self.keeps(Rule::LateBits) {
            taken |= page.entry.fetch_and(!DIRTY, Ordering::AcqRel) & DIRTY;
        }
        let home = if taken & DIRTY == 0 {
            0
        } else {
            // SAFETY: loom checks that no unit stores meanwhile.
            page.frame.with(|frame| unsafe { *frame })
        };
        // SAFETY: as above. The frame is somebody else's now.
        page.frame.with_mut(|frame| unsafe { *frame = 1000 });
        home
    }
}

impl Machine {
    /// An invalidation that takes a page away, as `DeviceMirror::invalidate` makes it while a unit runs; what is home once it returns.
    fn invalidate(&self, index: u32) -> u32 {
        let (range, page) = (PageRange::single(PageIndex(index)), &self.pages[index as usize]);
        let lock = self.lock_for(range);
        let taken = page.entry.fetch_and(!ALL, Ordering::AcqRel);
        if taken & VALID != 0 {
            let flight = self.flying.begin(std::iter::once(range));
            drop(lock);
            self.wait();
            let lock = self.update.lock();
            self.come_home(page, taken);
            drop(flight);
            drop(lock);
        } else {
            drop(lock);
        }
        self.at_home(page)
    }

    /// One that makes a page read-only.
    fn downgrade(&self, index: u32) -> u32 {
        let (range, page) = (PageRange::single(PageIndex(index)), &self.pages[index as usize]);
        let lock = self.lock_for(range);
        if page.entry.fetch_and(!WRITABLE, Ordering::AcqRel) & WRITABLE != 0 {
            let flight = self.flying.begin(std::iter::once(range));
            drop(lock);
            self.wait();
            let lock = self.update.lock();
            if page.entry.load(Ordering::Acquire) & VALID != 0 {
                self.come_home(page, 0);
            }
            drop(flight);
            drop(lock);
        } else {
            drop(lock);
        }
        self.at_home(page)
    }

    /// Eviction (`DeviceMirror::take_home`): both pages' locks are held, which invalidations from outside do not know of.
    fn evict(&self) {
        let lock = self.update.lock();
        let victims = [0, 1].map(|index| {
            let (range, page) = (PageRange::single(PageIndex(index)), &self.pages[index as usize]);
            let mapped = page.entry.load(Ordering::Acquire) & VALID != 0;
            let free = !self.keeps(Rule::PassOver) || !self.flying.overlaps(range);
            (mapped && free).then(|| (range, page, page.entry.fetch_and(!ALL, Ordering::AcqRel)))
        });
        let victims = victims.into_iter().flatten();
        let flight = self.flying.begin(victims.clone().map(|(range, ..)| range));
        drop(lock);
        self.wait();
        let lock = self.update.lock();
        for (_, page, taken) in victims {
            self.come_home(page, taken);
            // SAFETY: loom checks that no unit stores meanwhile. The frame is somebody else's now.
            page.frame.with_mut(|frame| unsafe { *frame = 1000 });
        }
        drop(flight);
        drop(lock);
    }

    fn lock_for(&self, range: PageRange) -> crate::sync::MutexGuard<'_, ()> {
        loop {
            let lock = self.update.lock();
            if !self.keeps(Rule::WaitForOthers) || !self.flying.overlaps(range) {
                return lock;
            }
            drop(lock);
            self.flying.wait_for(range);
        }
    }

    fn wait(&self) {
        self.grace.wait(self, || {
            thread::yield_now();
            true
        });
    }

    /// Collects late bits, and copies what is dirty home.
    fn come_home(&self, page: &Page, taken: u32) {
        let taken = taken | page.entry.fetch_and(!DIRTY, Ordering::AcqRel);
        if taken & DIRTY != 0 {
            // SAFETY: loom checks that no unit stores meanwhile, and that nobody reads what is home.
            page.home.with_mut(|home| page.frame.with(|frame| unsafe { *home = *frame }));
        }
    }

    fn at_home(&self, page: &Page) -> u32 {
        // SAFETY: loom checks that nobody writes it meanwhile.
        page.home.with(|home| unsafe { *home })
    }
}

impl EpochWords for Machine {
    fn advance(&self) -> u32 {
        self.epoch.fetch_add(1, Ordering::AcqRel)
    }

    fn counted(&self, epoch: u32) -> u32 {
        self.count(epoch).load(Ordering::Acquire)
    }
}

/// Runs a model as it is, then with each of the rules broken, when it must fail.
fn check(name: &str, preemptions: usize, rules: &[Rule], model: impl Fn(Option<Rule>) + Copy + Send + Sync + 'static) {
    let explore = move |broken| {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(preemptions);
        builder.check(move || model(broken));
    };
    explore(None);
    for &rule in rules {
        let found = catch_unwind(AssertUnwindSafe(|| explore(Some(rule)))).is_err();
        assert!(found, "{name} does not notice that {rule:?} is broken");
        println!("{name}: {rule:?} broken, found");
    }
}

/// Has `work` done by another thread.
fn beside<T: 'static>(machine: &Arc<Machine>, work: impl FnOnce(&Machine) -> T + 'static) -> thread::JoinHandle<T> {
    let machine = machine.clone();
    thread::spawn(move || work(&machine))
}

#[test]
fn loom_a_page_taken_from_a_running_unit_comes_home_whole() {
    let rules = [Rule::Wait, Rule::LateBits, Rule::TranslateAgain, Rule::StoresBeforeLeaving];
    check("one unit", 3, &rules, |broken| {
        let machine = Machine::new(broken);
        let unit = beside(&machine, |machine| machine.unit(0));
        let home = machine.take_away(0);
        unit.join().unwrap();
        let stored = machine.pages[0].stored.load(Ordering::Relaxed);
        assert_eq!(home as usize, stored, "stores were lost");
    });
}

#[test]
fn loom_two_shootdowns_at_once_share_a_grace_period_or_take_turns() {
    check("two hosts", 2, &[Rule::SecondLook, Rule::Wait, Rule::LateBits], |broken| {
        let machine = Machine::new(broken);
        let unit = beside(&machine, |machine| machine.unit(0));
        let other = beside(&machine, |machine| machine.take_away(1));
        let home = machine.take_away(0);
        assert_eq!(other.join().unwrap(), 0);
        unit.join().unwrap();
        assert_eq!(home as usize, machine.pages[0].stored.load(Ordering::Relaxed), "stores were lost");
    });
}

#[test]
fn loom_the_same_page_is_taken_twice_from_a_unit_that_goes_on() {
    check("one unit, two shootdowns", 3, &[Rule::SecondLook, Rule::Wait], |broken| {
        let machine = Machine::new(broken);
        let unit = beside(&machine, |machine| machine.unit(0));
        // A unit that read the epoch before the first and added itself after it is counted where the second does not look.
        let home = machine.take_away(1) + machine.take_away(0);
        unit.join().unwrap();
        assert_eq!(home as usize, machine.pages[0].stored.load(Ordering::Relaxed), "stores were lost");
    });
}

#[test]
fn loom_who_finds_a_page_taken_finds_it_home() {
    check("two invalidations", 2, &[Rule::WaitForOthers], |broken| {
        let machine = Machine::new(broken);
        let unit = beside(&machine, |machine| machine.unit(0));
        let other = beside(&machine, |machine| machine.invalidate(0));
        let home = machine.invalidate(0);
        assert_eq!(other.join().unwrap(), home, "what is home changes after the page was taken");
        unit.join().unwrap();
        assert_eq!(home as usize, machine.pages[0].stored.load(Ordering::Relaxed), "stores were lost");
    });
}

#[test]
fn loom_who_makes_a_page_read_only_finds_it_home_whoever_evicts_it() {
    check("eviction and an invalidation", 2, &[Rule::WaitForOthers, Rule::PassOver], |broken| {
        let machine = Machine::new(broken);
        let unit = {
            let machine = machine.clone();
            thread::spawn(move || machine.unit(0))
        };
        let evicting = {
            let machine = machine.clone();
            thread::spawn(move || machine.evict())
        };
        let home = machine.downgrade(0);
        evicting.join().unwrap();
        unit.join().unwrap();
        assert_eq!(home as usize, machine.pages[0].stored.load(Ordering::Relaxed), "stores were lost");
    });
}
