//! Exhaustive search of the page-state machine: every world that can be reached, each checked. (Of the largest casts
//! the nearest worlds only, unless all are asked for.)
//!
//! Breadth first, so that what is found is a shortest way. Worlds that differ only in the numbering of pages, devices or CPU
//! threads count as one. Checked in every world: I2 (single writer or many readers), I3 (whoever reads sees the newest
//! version, and somebody always has it), I4 (an accessed or dirty bit is in an entry or in the page's record), the outsider's promise
//! (what it was told is gone stays gone until its invalidation ends), and that requests under way are always answered.

use super::model::{
    Ask, CPUS, Cpu, DEVICES, Device, Mutation, Outsider, PAGES, Page, REMOTE, Request, Telling, World, Writer,
};
use crate::device::layout::pte;
use crate::mm::state::Placement;
use hashbrown::hash_table::{Entry, HashTable};
use std::hash::{BuildHasher, BuildHasherDefault, Hasher};

/// A fast hash for small plain data (the multiplicative hash of the Rust compiler).
#[derive(Default)]
struct Quick(u64);

impl Hasher for Quick {
    fn finish(&self) -> u64 {
        self.0 ^ (self.0 >> 29)
    }
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.write_u8(byte));
    }
    fn write_u8(&mut self, byte: u8) {
        self.write_u64(u64::from(byte));
    }
    fn write_isize(&mut self, number: isize) {
        self.write_u64(number as u64);
    }
    fn write_u64(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95);
    }
}

/// A broken promise and the shortest way to it.
struct Counterexample {
    promise: &'static str,
    way: Vec<World>,
}

/// What a search that found nothing wrong has seen.
#[derive(Debug)]
struct Visited {
    worlds: usize,
    /// No other world can be reached.
    all: bool,
}

/// What may take part, so that a search can be made smaller.
#[derive(Clone, Copy, Debug)]
struct Cast {
    /// CPU threads.
    cpus: usize,
    /// Devices.
    devices: usize,
    outsider: bool,
    /// A thread cleans dirty pages of the first device.
    writer: bool,
    discard: bool,
    /// Devices may map home pages.
    remote: bool,
    /// Accessed and dirty bits are followed (I4).
    bits: bool,
}

impl Cast {
    /// Whether only who may takes part.
    fn plays(self, world: &World) -> bool {
        let remote = |device: &Device| matches!(device, Device::Locked(_, Ask { placement: Placement::Remote, .. }));
        let discards = world.cpus.iter().any(|cpu| matches!(cpu, Cpu::Locked(_, Request::Discard)));
        (self.outsider || world.outsider == Outsider::Idle)
            && (self.writer || world.writer == Writer::Idle)
            && (self.discard || !discards)
            && (self.remote || !world.devices.iter().any(remote))
            && world.cpus.iter().filter(|&&cpu| cpu != Cpu::Idle).count() <= self.cpus
            && world.devices.iter().filter(|&&device| device != Device::Idle).count() <= self.devices
    }
}

/// Looks at up to `most` worlds, those that take the fewest steps first.
fn search(mutation: Option<Mutation>, cast: Cast, most: usize) -> Result<Visited, Counterexample> {
    let hasher = BuildHasherDefault::<Quick>::default();
    let mut worlds: Vec<(World, u32)> = vec![(World::start(), 0)];
    let mut known: HashTable<u32> = HashTable::new();
    let fail = |worlds: &[(World, u32)], mut at: usize, promise| {
        let mut way = Vec::new();
        loop {
            way.push(worlds[at].0);
            if at == 0 {
                break;
            }
            at = worlds[at].1 as usize;
        }
        way.reverse();
        Counterexample { promise, way }
    };
    let mut next = Vec::new();
    let mut at = 0;
    while at < worlds.len() {
        if at == most {
            return Ok(Visited { worlds: at, all: false });
        }
        let world = worlds[at].0;
        if let Err(promise) = check(&world) {
            return Err(fail(&worlds, at, promise));
        }
        next.clear();
        world.successors(mutation, true, &mut next);
        if next.is_empty() && !world.is_idle() {
            return Err(fail(&worlds, at, "requests under way wait for each other"));
        }
        next.clear();
        world.successors(mutation, false, &mut next);
        for outcome in &next {
            let world = match outcome {
                Ok(world) => canonical(if cast.bits { *world } else { without_bits(*world) }),
                Err(promise) => return Err(fail(&worlds, at, promise)),
            };
            if !cast.plays(&world) {
                continue;
            }
            let entry = known.entry(
                hasher.hash_one(world),
                |&i| worlds[i as usize].0 == world,
                |&i| hasher.hash_one(worlds[i as usize].0),
            );
            if let Entry::Vacant(place) = entry {
                place.insert(worlds.len() as u32);
                worlds.push((world, at as u32));
            }
        }
        at += 1;
    }
    Ok(Visited { worlds: at, all: true })
}

/// The dirty bit of an entry decides copying home and stays.
fn without_bits(mut world: World) -> World {
    for page in &mut world.pages {
        (page.accessed, page.dirty, page.was_accessed, page.was_dirty) = (false, false, false, false);
        page.entries.iter_mut().for_each(|entry| entry.flags &= !(pte::ACCESSED as u16));
    }
    world
}

/// The promises that hold in every world.
fn check(world: &World) -> Result<(), &'static str> {
    let at_rest = |page: &Page| !page.locked && page.flights == 0;
    if world.is_idle() && !(world.pages.iter().all(at_rest) && world.gates == [false; DEVICES]) {
        return Err("everybody is done, and a page stays locked or an invalidation open");
    }
    const WRITABLE: u16 = (pte::VALID | pte::WRITABLE) as u16;
    for (number, page) in world.pages.iter().enumerate() {
        let copies = || page.entries.iter().filter(|entry| !entry.at_home());
        let at_home = page.entries.iter().filter(|entry| entry.at_home()).count();
        let valid = copies().filter(|entry| entry.valid()).count();
        let writable = copies().filter(|entry| entry.has(WRITABLE)).count();
        if at_home > 0 && valid > 0 {
            return Err("I2: a device has a copy of what another maps at home");
        }
        if at_home > 0 && page.state != REMOTE {
            return Err("I2: a device maps a home page that is not `Remote`");
        }
        if page.mapping == 2 && valid > 0 {
            return Err("I2: the CPU may write what a device has a copy of");
        }
        if page.mapping == 1 && writable > 0 {
            return Err("I2: the CPU may read what a device may write");
        }
        if writable > 1 || (writable == 1 && valid > 1) {
            return Err("I2: a device may write what another may use");
        }
        let moving = in_flight(world, number);
        if !page.home_newest && !copies().any(|entry| entry.valid() && entry.newest) && !moving {
            return Err("I3: nobody has the newest version any more");
        }
        let in_entries = |flag: u64| page.entries.iter().any(|entry| entry.valid() && entry.has(flag as u16));
        if page.was_dirty && !page.dirty && !in_entries(pte::DIRTY) {
            return Err("I4: a dirty bit was lost");
        }
        if page.was_accessed && !page.accessed && !in_entries(pte::ACCESSED) {
            return Err("I4: an accessed bit was lost");
        }
        if let Outsider::Told(told, event) = world.outsider
            && usize::from(told) == number
            && page.entries.iter().any(|entry| if event == 0 { entry.valid() } else { entry.has(WRITABLE) })
        {
            return Err("a device uses a page during somebody's invalidation of it");
        }
    }
    Ok(())
}

/// Whether the newest version of a page is about to be copied home.
fn in_flight(world: &World, page: usize) -> bool {
    let here = |number: u8, at: Telling| usize::from(number) == page && matches!(at, Telling::CopyHome(_, true));
    world.cpus.iter().any(|cpu| matches!(*cpu, Cpu::Telling(number, _, at, ..) if here(number, at)))
        || world.devices.iter().any(|device| match *device {
            Device::Telling(number, _, at) => here(number, at),
            Device::Shed(number, _, newest) => usize::from(number) == page && newest,
            Device::WriteBack(number, _, _, newest) => 1 - usize::from(number) == page && newest,
            _ => false,
        })
        || matches!(world.outsider, Outsider::Telling(number, _, at) if here(number, at))
        || matches!(world.writer, Writer::Protected(number, true) if usize::from(number) == page)
        // What is discarded need not be anywhere.
        || world.cpus.iter().any(|cpu| {
            matches!(*cpu, Cpu::Telling(number, Request::Discard, ..) | Cpu::Map(number, Request::Discard, ..)
                if usize::from(number) == page)
        })
}

/// The smallest of the worlds that differ only in numbering.
fn canonical(world: World) -> World {
    let pages = swap_pages(world);
    [world, pages, swap_devices(world), swap_devices(pages)].into_iter().map(sort_cpus).min().unwrap_or(world)
}

fn sort_cpus(mut world: World) -> World {
    const { assert!(CPUS == 2) };
    world.cpus.sort_unstable();
    world
}

fn swap_pages(mut world: World) -> World {
    const { assert!(PAGES == 2) };
    world.pages.swap(0, 1);
    for cpu in &mut world.cpus {
        match cpu {
            Cpu::Idle => {}
            Cpu::Locked(page, _) | Cpu::Telling(page, ..) | Cpu::Map(page, ..) | Cpu::End(page, ..) => {
                *page = 1 - *page
            }
        }
    }
    for device in &mut world.devices {
        match device {
            Device::Idle | Device::Run => {}
            Device::Use(page, _)
            | Device::Locked(page, _)
            | Device::Begun(page, _)
            | Device::Shed(page, ..)
            | Device::Telling(page, ..)
            | Device::Plan(page, ..)
            | Device::WriteBack(page, ..)
            | Device::CopyIn(page, ..)
            | Device::Commit(page, ..) => *page = 1 - *page,
        }
    }
    match &mut world.outsider {
        Outsider::Idle => {}
        Outsider::Telling(page, ..) | Outsider::Told(page, _) => *page = 1 - *page,
    }
    match &mut world.writer {
        Writer::Idle => {}
        Writer::Protected(page, _) | Writer::Copied(page) => *page = 1 - *page,
    }
    world
}

/// Devices are told in the order of their numbers, so worlds in which somebody is being told are left as they are.
fn swap_devices(mut world: World) -> World {
    let telling = world.cpus.iter().any(|cpu| matches!(cpu, Cpu::Telling(..)))
        || world.devices.iter().any(|device| matches!(device, Device::Telling(..)))
        || matches!(world.outsider, Outsider::Telling(..));
    // And the writer is of the first.
    if telling || world.writer != Writer::Idle {
        return world;
    }
    world.devices.swap(0, 1);
    world.stale.swap(0, 1);
    world.gates.swap(0, 1);
    for page in &mut world.pages {
        page.entries.swap(0, 1);
        page.state = match page.state {
            2 => 3,
            3 => 2,
            other => other,
        };
    }
    for cpu in &mut world.cpus {
        if let Cpu::Map(_, _, becomes, ..) = cpu {
            debug_assert!(*becomes < 2 || *becomes == REMOTE);
        }
    }
    world
}

fn assert_found(mutation: Mutation, cast: Cast) {
    match search(Some(mutation), cast, usize::MAX) {
        Ok(visited) => panic!("{mutation:?} is not noticed: {visited:?}"),
        Err(found) => println!("{mutation:?}: {} after {} steps", found.promise, found.way.len() - 1),
    }
}

/// Every promise is kept in every world.
fn assert_holds(cast: Cast) {
    assert!(assert_holds_in(cast, usize::MAX).all);
}

/// Every promise is kept in the first `most` worlds.
fn assert_holds_in(cast: Cast, most: usize) -> Visited {
    let start = std::time::Instant::now();
    let visited = search(None, cast, most).unwrap_or_else(|found| {
        found.way.iter().for_each(|world| println!("{world:?}\n"));
        panic!("{} after {} steps", found.promise, found.way.len() - 1);
    });
    println!("{cast:?}: {visited:?} in {:.1?}", start.elapsed());
    visited
}

/// For casts whose worlds take minutes and gigabytes: the nearest worlds, or with `VKSVM_SEARCH=full` (which
/// `cargo xtask test --models=full` sets) every one.
fn assert_holds_as_far_as_asked(cast: Cast) {
    const NEAREST: usize = 1_000_000;
    if std::env::var("VKSVM_SEARCH").is_ok_and(|extent| extent == "full") {
        assert_holds(cast);
    } else {
        assert_eq!(assert_holds_in(cast, NEAREST).worlds, NEAREST, "a cast as small as this can be searched wholly");
    }
}

const PLAIN: Cast =
    Cast { cpus: CPUS, devices: DEVICES, outsider: false, writer: false, discard: false, remote: false, bits: false };
/// With pages mapped at home, one CPU thread.
const REMOTELY: Cast = Cast { cpus: 1, discard: true, remote: true, ..PLAIN };
/// With accessed and dirty bits, one CPU thread.
const BITS: Cast = Cast { cpus: 1, bits: true, ..PLAIN };
/// With an outsider, and one service or dispatch at a time (on either device).
const OUTSIDER: Cast = Cast { cpus: 1, devices: 1, outsider: true, ..PLAIN };

/// With a thread that cleans pages while all others do what they do.
const WRITER: Cast = Cast { cpus: 1, writer: true, ..PLAIN };
/// With an outsider besides.
const WRITER_OUTSIDE: Cast = Cast { writer: true, ..OUTSIDER };

#[test]
fn no_store_is_lost_when_pages_are_cleaned_while_kernels_run() {
    assert_holds(WRITER);
    assert_holds_as_far_as_asked(Cast { bits: true, discard: true, ..WRITER });
}

#[test]
fn nor_when_somebody_takes_pages_away_that_are_being_cleaned() {
    assert_holds_as_far_as_asked(WRITER_OUTSIDE);
}

#[test]
fn two_cpu_threads_and_two_devices_keep_every_promise_in_every_world() {
    assert_holds(PLAIN);
}

#[test]
fn so_they_do_when_contents_are_discarded() {
    assert_holds(Cast { discard: true, ..PLAIN });
}

#[test]
fn so_they_do_when_devices_map_home_pages() {
    assert_holds(REMOTELY);
}

#[test]
fn invalidations_from_outside_are_kept_when_a_device_maps_home_pages() {
    assert_holds_as_far_as_asked(Cast { remote: true, ..OUTSIDER });
}

#[test]
fn no_bit_is_lost_when_a_device_maps_home_pages() {
    assert_holds_as_far_as_asked(Cast { devices: 1, remote: true, ..BITS });
}

#[test]
fn no_accessed_or_dirty_bit_is_lost_in_any_world() {
    assert_holds(BITS);
}

#[test]
fn invalidations_from_outside_are_kept_in_every_world() {
    assert_holds(OUTSIDER);
}

#[test]
fn invalidations_from_outside_are_kept_with_two_busy_devices() {
    assert_holds_as_far_as_asked(Cast { devices: DEVICES, ..OUTSIDER });
}

#[test]
fn every_mutation_is_found() {
    for mutation in [
        Mutation::CopyBeforeProtect,
        Mutation::NoCopyHome,
        Mutation::EvictWithoutWriteBack,
        Mutation::DowngradeKeepsWritable,
        Mutation::DowngradeForgetsDirty,
        Mutation::NoPageLock,
        Mutation::NoShootdown,
        Mutation::MapBeforeBracket,
        Mutation::NoWriteProtect,
        Mutation::OthersNotTold,
        Mutation::VictimStaysLocked,
        Mutation::BracketLeftOpen,
    ] {
        assert_found(mutation, PLAIN);
    }
    for mutation in [
        Mutation::RemoteBesideCopies,
        Mutation::RemoteShedsNothing,
        Mutation::CopyBesideRemote,
        Mutation::RemoteSurvivesDiscard,
        Mutation::RemoteCopiedHome,
    ] {
        assert_found(mutation, REMOTELY);
    }
    assert_found(Mutation::RemoteKeepsWritable, Cast { remote: true, ..OUTSIDER });
    for mutation in [Mutation::BitsDropped, Mutation::BitsOverwritten] {
        assert_found(mutation, BITS);
    }
    assert_found(Mutation::RetryIgnored, OUTSIDER);
    for mutation in [Mutation::CleanWithoutProtect, Mutation::CleanWithoutShootdown, Mutation::CleanUnlocked] {
        assert_found(mutation, WRITER);
    }
    for mutation in [Mutation::CleanBeforeCopy, Mutation::CleanRestoresAlways, Mutation::CleanFrameNotHeld] {
        assert_found(mutation, WRITER_OUTSIDE);
    }
}
