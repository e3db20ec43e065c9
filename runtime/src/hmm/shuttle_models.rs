//! Random schedules of larger mixes than loom can exhaust, under shuttle:
//! `RUSTFLAGS="--cfg shuttle" cargo test -p vksvm --release --lib shuttle_`.
//!
//! Two services of one mirror, two invalidations, a mirror that comes and goes, and the address space's release at the
//! end. A failing schedule is printed by shuttle and can be replayed with it.

use super::mutation::{Mutation, mutate};
use super::*;
use crate::addr::{PageIndex, PageRange};
use shuttle::sync::Mutex;
use shuttle::sync::atomic::{AtomicUsize, Ordering};
use shuttle::thread;
use std::panic::catch_unwind;
use std::sync::Arc;

const SCHEDULES: usize = 20_000;
/// Pages around a border between the two shards of a model.
const FIRST: u32 = 4095;
const PAGES: usize = 2;

struct Device {
    entries: Mutex<[Option<usize>; PAGES]>,
    releases: AtomicUsize,
    gone: AtomicUsize,
    called_when_gone: AtomicUsize,
}

impl Device {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            entries: Mutex::new([None; PAGES]),
            releases: AtomicUsize::new(0),
            gone: AtomicUsize::new(0),
            called_when_gone: AtomicUsize::new(0),
        })
    }
}

impl MirrorOps for Device {
    fn invalidate(&self, info: &InvalidateInfo) -> Result<(), WouldBlock> {
        self.called_when_gone.fetch_add(self.gone.load(Ordering::SeqCst), Ordering::SeqCst);
        let mut entries = match info.blocking {
            Blocking::Yes => self.entries.lock().unwrap(),
            Blocking::No => self.entries.try_lock().map_err(|_| WouldBlock)?,
        };
        slots(info.pages).for_each(|slot| entries[slot] = None);
        Ok(())
    }

    fn release(&self) {
        self.releases.fetch_add(1, Ordering::SeqCst);
        *self.entries.lock().unwrap() = [None; PAGES];
    }
}

fn span(start: u32, count: u32) -> PageRange {
    PageRange::of_len(PageIndex(FIRST + start), count)
}

/// The device's entries for `pages`.
fn slots(pages: PageRange) -> impl Iterator<Item = usize> {
    pages.intersect(span(0, PAGES as u32)).indices().map(|page| page - FIRST as usize)
}

fn service(mirror: &Mirror, device: &Device, versions: &[AtomicUsize; PAGES], pages: PageRange) {
    let range = mirror.range(pages).unwrap();
    for _ in 0..2 {
        let seq = range.begin();
        let seen: Vec<_> = slots(pages).map(|slot| (slot, versions[slot].load(Ordering::SeqCst))).collect();
        let mut entries = device.entries.lock().unwrap();
        if !range.retry(seq) {
            seen.into_iter().for_each(|(slot, version)| entries[slot] = Some(version));
            return;
        }
    }
}

fn invalidate(
    notifiers: &Notifiers,
    device: &Device,
    versions: &[AtomicUsize; PAGES],
    pages: PageRange,
    how: Blocking,
) {
    let Ok(bracket) = notifiers.invalidate(pages, Event::Clear, None, how) else { return };
    let entries = *device.entries.lock().unwrap();
    slots(pages).for_each(|slot| {
        assert_eq!(entries[slot], None, "an entry inside the bracket");
        versions[slot].fetch_add(1, Ordering::SeqCst);
    });
    drop(bracket);
}

fn mix() {
    let notifiers = Notifiers::new();
    let device = Device::new();
    let versions: Arc<[AtomicUsize; PAGES]> = Arc::new([AtomicUsize::new(0), AtomicUsize::new(0)]);
    let mirror = Mirror::register(&notifiers, OwnerId(1), "host", Arc::<Device>::clone(&device)).unwrap();
    let mirror = Arc::new(mirror);
    let mut threads = Vec::new();
    for pages in [span(0, 1), span(0, 2)] {
        let (mirror, device, versions) = (Arc::clone(&mirror), Arc::clone(&device), Arc::clone(&versions));
        threads.push(thread::spawn(move || service(&mirror, &device, &versions, pages)));
    }
    for (pages, how) in [(span(0, 2), Blocking::Yes), (span(1, 1), Blocking::No)] {
        let (notifiers, device, versions) = (Arc::clone(&notifiers), Arc::clone(&device), Arc::clone(&versions));
        threads.push(thread::spawn(move || invalidate(&notifiers, &device, &versions, pages, how)));
    }
    let guest = {
        let notifiers = Arc::clone(&notifiers);
        thread::spawn(move || {
            let guest = Device::new();
            let mirror = Mirror::register(&notifiers, OwnerId(2), "guest", Arc::<Device>::clone(&guest)).unwrap();
            mirror.unregister().unwrap();
            guest.gone.store(1, Ordering::SeqCst);
            guest
        })
    };
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    let guest = guest.join().unwrap();
    assert_eq!(guest.called_when_gone.load(Ordering::SeqCst), 0, "called after unregister");
    assert_eq!(guest.releases.load(Ordering::SeqCst), 1);
    for (entry, version) in device.entries.lock().unwrap().iter().zip(versions.iter()) {
        assert!(entry.is_none_or(|seen| seen == version.load(Ordering::SeqCst)), "stale");
    }
    assert!(notifiers.is_idle());

    let unregistering = thread::spawn(move || drop(mirror));
    notifiers.release().unwrap();
    unregistering.join().unwrap();
    assert_eq!(device.releases.load(Ordering::SeqCst), 1);
    assert!(!notifiers.is_subscribed());
}

#[test]
fn shuttle_a_mix_of_everything_keeps_the_promises_and_finds_every_broken_rule() {
    shuttle::check_pct(mix, SCHEDULES, 4);
    shuttle::check_random(mix, SCHEDULES);
    for mutation in [
        Mutation::CallbacksBeforeMarking,
        Mutation::InsertionIgnoresFlights,
        Mutation::NoGracePeriod,
        Mutation::ReleaseUnclaimed,
        Mutation::SleepWithoutLookingAgain,
        Mutation::RefusalLeftOpen,
    ] {
        mutate(Some(mutation));
        let found = catch_unwind(|| shuttle::check_pct(mix, SCHEDULES, 4)).is_err();
        mutate(None);
        assert!(found, "the mix does not notice {mutation:?}");
    }
}
