//! Many threads, everything at once, checked against what the protocol promises.
//!
//! Pages have a version that changes only inside an invalidation; a device's entry is the version it was made from. Inside a
//! bracket no device may have an entry over its pages; at the end every entry must be of the current version. `VKSVM_SEED` repeats a
//! seed, as far as the scheduler plays along.

use super::tests::pages;
use super::*;
use crate::addr::{PageIndex, PageRange};
use crate::rank::{Rank, RankedMutex};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, UNIX_EPOCH};

/// Enough for several chunks, so that ranges cross shards; accesses crowd around the chunk borders.
const PAGES: u32 = 3 * 4096;

struct Device {
    entries: RankedMutex<Vec<Option<u64>>>,
    owner: OwnerId,
    releases: AtomicUsize,
    gone: AtomicBool,
}

impl Device {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            entries: RankedMutex::new(Rank::MirrorUpdate, vec![None; PAGES as usize]),
            owner: OwnerId::unique(),
            releases: AtomicUsize::new(0),
            gone: AtomicBool::new(false),
        })
    }
}

impl MirrorOps for Device {
    fn invalidate(&self, info: &InvalidateInfo) -> Result<(), WouldBlock> {
        if self.gone.load(Ordering::SeqCst) {
            std::process::abort(); // A panic would be contained.
        }
        let mut entries = match info.blocking {
            Blocking::Yes => self.entries.lock(),
            Blocking::No => self.entries.try_lock().ok_or(WouldBlock)?,
        };
        for page in info.pages.intersect(pages(0, PAGES)).indices() {
            entries[page] = None;
        }
        Ok(())
    }

    fn release(&self) {
        self.releases.fetch_add(1, Ordering::SeqCst);
        self.entries.lock().fill(None);
    }
}

/// What one thread does over and over.
type Role<'w> = dyn Fn(&mut SmallRng) + Send + 'w;

struct World {
    notifiers: Arc<Notifiers>,
    versions: Vec<AtomicU64>,
    devices: Vec<Arc<Device>>,
    stop: AtomicBool,
    commits: AtomicU64,
    collisions: AtomicU64,
    refusals: AtomicU64,
}

fn random_span(rng: &mut SmallRng) -> PageRange {
    let border = rng.random_range(1..3u32) * 4096;
    let start = border - rng.random_range(0..12u32);
    PageRange::of_len(PageIndex(start), if rng.random_ratio(1, 50) { 3000 } else { rng.random_range(1..12) })
}

fn service(world: &World, mirror: &Mirror, device: &Device, rng: &mut SmallRng) {
    let span = random_span(rng);
    let range = mirror.range(span).unwrap();
    let clock = RealClock::new();
    let outcome: Result<(), OutOfTime> = with_retry(Deadline::after(&clock, Duration::from_millis(50)), |_| {
        let seq = range.begin();
        let seen: Vec<_> = span.indices().map(|page| world.versions[page].load(Ordering::SeqCst)).collect();
        if !range.check(seq) {
            return Ok(Outcome::Collided);
        }
        let mut entries = device.entries.lock();
        if range.retry(seq) {
            world.collisions.fetch_add(1, Ordering::Relaxed);
            return Ok(Outcome::Collided);
        }
        span.indices().zip(seen).for_each(|(page, version)| entries[page] = Some(version));
        world.commits.fetch_add(1, Ordering::Relaxed);
        Ok(Outcome::Done(()))
    });
    // Out of time is no error here: there is no slow path against this adversary.
    let _ = outcome;
}

fn invalidate(world: &World, rng: &mut SmallRng) {
    let span = random_span(rng);
    let blocking = if rng.random_ratio(1, 3) { Blocking::No } else { Blocking::Yes };
    let Ok(bracket) = world.notifiers.invalidate(span, Event::Clear, None, blocking) else {
        world.refusals.fetch_add(1, Ordering::Relaxed);
        return;
    };
    for device in &world.devices {
        let entries = device.entries.lock();
        assert!(span.indices().all(|page| entries[page].is_none()), "an entry inside a bracket over {span:?}");
    }
    for page in span.indices() {
        world.versions[page].fetch_add(1, Ordering::SeqCst);
    }
    drop(bracket);
}

/// Comes and goes, and checks that it is left alone once it has gone.
fn come_and_go(world: &World, rng: &mut SmallRng) {
    let guest = Device::new();
    let mirror = Mirror::register(&world.notifiers, guest.owner, "guest", Arc::<Device>::clone(&guest)).unwrap();
    for _ in 0..rng.random_range(0..4) {
        service(world, &mirror, &guest, rng);
    }
    mirror.unregister().unwrap();
    guest.gone.store(true, Ordering::SeqCst);
    assert_eq!(guest.releases.load(Ordering::SeqCst), 1);
    assert!(guest.entries.lock().iter().all(Option::is_none));
}

#[test]
fn random_services_invalidations_and_registrations_never_leave_a_stale_entry() {
    let seed = std::env::var("VKSVM_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed: u64 = seed.unwrap_or_else(|| UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64);
    println!("seed {seed}");
    let world = World {
        notifiers: Notifiers::new(),
        versions: (0..PAGES).map(|_| AtomicU64::new(0)).collect(),
        devices: vec![Device::new(), Device::new()],
        stop: AtomicBool::new(false),
        commits: AtomicU64::new(0),
        collisions: AtomicU64::new(0),
        refusals: AtomicU64::new(0),
    };
    let register = |device: &Arc<Device>| {
        Mirror::register(&world.notifiers, device.owner, "device", Arc::<Device>::clone(device)).unwrap()
    };
    let mirrors: Vec<_> = world.devices.iter().map(register).collect();
    let world = &world;
    let mut roles: Vec<Box<Role<'_>>> = vec![
        Box::new(|rng| invalidate(world, rng)),
        Box::new(|rng| invalidate(world, rng)),
        Box::new(|rng| come_and_go(world, rng)),
    ];
    for (mirror, device) in mirrors.iter().zip(&world.devices) {
        roles.push(Box::new(|rng| service(world, mirror, device, rng)));
        roles.push(Box::new(|rng| service(world, mirror, device, rng)));
    }
    thread::scope(|scope| {
        for (number, role) in (0..).zip(roles) {
            let mut rng = SmallRng::seed_from_u64(seed.wrapping_add(number));
            scope.spawn(move || {
                while !world.stop.load(Ordering::Relaxed) {
                    role(&mut rng);
                }
            });
        }
        thread::sleep(Duration::from_millis(800));
        world.stop.store(true, Ordering::Relaxed);
    });
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let (commits, collisions, refusals) = (count(&world.commits), count(&world.collisions), count(&world.refusals));
    println!("{commits} commits, {collisions} late collisions, {refusals} refusals");
    assert!(commits > 0 && collisions > 0);
    for device in &world.devices {
        let entries = device.entries.lock();
        for (page, entry) in entries.iter().enumerate() {
            let current = world.versions[page].load(Ordering::SeqCst);
            assert!(entry.is_none_or(|version| version == current), "page {page}: stale entry");
        }
    }
    assert!(world.notifiers.is_idle(), "something is still in flight");
    world.notifiers.release().unwrap();
    drop(mirrors);
    assert!(world.devices.iter().all(|device| device.releases.load(Ordering::SeqCst) == 1));
    assert!(!world.notifiers.is_subscribed());
}
