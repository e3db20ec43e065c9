//! The page-state machine in small steps: two CPU threads, two devices, an outsider and two pages.
//!
//! Every actor goes through the steps of the code that it stands for, one at a time; [`World::successors`] gives every next world.
//! Decisions are those of `mm/state.rs`. What is abstracted: contents are reduced to "newest or not", which is all
//! that coherence is about and keeps the search finite; any fault may be served at any time, whether or not a dispatch reported
//! it; a device has one frame, so that each second page evicts the first.
//!
//! | actor | stands for | steps |
//! |---|---|---|
//! | CPU thread | `AddressSpace::cpu_fault`, `drop_contents` | lock · decide, bracket start · per device: gate, take entry · copy home · … · map · bracket end, unlock |
//! | device | executor and `Service::serve_one` | gate · translate · use · … · gate open · lock · begin · quiet, bracket start · other device: as above · plan, evict · copy in · retry or commit |
//! | outsider | a user of the `hmm` API, or a kernel event | bracket start · per device: as above · bracket end; takes no page lock |
//! | writer | the thread that cleans pages of the first device, `DeviceMirror::clean` | lock, gate: entry read-only · copy home · entry clean, unlock |
//!
//! [`Mutation`] breaks one rule each, to show that the search would notice.

use super::{
    Fill, LetGo, Lose, Placement, Touch, comes_home, commit, evicted, fill, let_go, quiet, sheds, touch, touched,
};
use crate::addr::Access;
use crate::device::layout::pte;
use crate::hmm::Event;
use crate::mm::pages::{DeviceNumber, PageState};
use crate::track::Protection;

pub(super) const PAGES: usize = 2;
pub(super) const CPUS: usize = 2;
pub(super) const DEVICES: usize = 2;

/// A rule of the machine, broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mutation {
    /// A page is copied to the device before the CPU side is quiet.
    CopyBeforeProtect,
    /// Other devices' entries are taken without bringing dirty pages home.
    NoCopyHome,
    /// Eviction drops dirty frames.
    EvictWithoutWriteBack,
    /// A downgrade brings the page home and leaves the entry writable.
    DowngradeKeepsWritable,
    /// A downgrade clears the dirty bit without looking at it.
    DowngradeForgetsDirty,
    /// A CPU fault does not take the page lock.
    NoPageLock,
    /// Entries are taken, and frames freed, while a dispatch is in flight.
    NoShootdown,
    /// The CPU's mapping changes before devices have let go.
    MapBeforeBracket,
    /// The accessed and dirty bits of an entry that is taken are dropped.
    BitsDropped,
    /// An entry that is replaced, zero frame by frame of its own, is overwritten with its bits.
    BitsOverwritten,
    /// The service commits although its range was invalidated.
    RetryIgnored,
    /// A page that is to be read by a device stays writable for the CPU.
    NoWriteProtect,
    /// A device that upgrades a shared page does not tell the others.
    OthersNotTold,
    /// The lock of an evicted page is not given back.
    VictimStaysLocked,
    /// The bracket of a CPU fault is never ended.
    BracketLeftOpen,
    /// A device maps the home page while others keep their copies.
    RemoteBesideCopies,
    /// A device's own copy is not brought home before it maps the home page.
    RemoteShedsNothing,
    /// A page is copied to a device although others map the home page.
    CopyBesideRemote,
    /// Discarding does not tell devices that map the home page.
    RemoteSurvivesDiscard,
    /// A downgrade passes over entries for home pages.
    RemoteKeepsWritable,
    /// The dirty bit of an entry for a home page is taken for one of a copy.
    RemoteCopiedHome,
    /// A page that is cleaned stays writable while it is copied.
    CleanWithoutProtect,
    /// A page that is cleaned loses its dirty bit before it is copied.
    CleanBeforeCopy,
    /// A page is cleaned without its lock.
    CleanUnlocked,
    /// A page becomes read-only for being cleaned while a dispatch is in flight.
    CleanWithoutShootdown,
    /// A page that was cleaned gets its permission back although somebody took it away meanwhile.
    CleanRestoresAlways,
    /// The frame of a page that is being cleaned is not held.
    CleanFrameNotHeld,
}

/// The thread that cleans pages of device 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Writer {
    Idle,
    /// The page's lock is held, its entry read-only, its frame held; the flag: what is in the frame is newest.
    Protected(u8, bool),
    /// Its frame was copied home.
    Copied(u8),
}

/// What a CPU thread wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Request {
    Read,
    Write,
    /// The contents no longer matter.
    Discard,
}

/// Where an actor that tells devices to let go is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Telling {
    /// About to take the gate of device n, and its entry.
    Take(u8),
    /// The entry is taken, the gate still held; its page is to be copied home, and newest if the flag says so.
    CopyHome(u8, bool),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Cpu {
    Idle,
    /// Holds the page's lock.
    Locked(u8, Request),
    /// Devices are being told; then the state and mapping given here.
    Telling(u8, Request, Telling, u8, u8),
    /// Every device has let go.
    Map(u8, Request, u8, u8, bool),
    /// The mapping is made; the bracket, if there is one, is still open.
    End(u8, Request, bool),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Device {
    Idle,
    /// A dispatch is in flight.
    Run,
    /// An invocation holds a translation.
    Use(u8, bool),
    /// Holds the page's lock.
    Locked(u8, Ask),
    /// The range has begun.
    Begun(u8, Ask),
    /// Its own entry of the wrong kind is taken, to be written home, newest if the flag says so.
    Shed(u8, Ask, bool),
    /// The CPU side is quiet; other devices are being told.
    Telling(u8, Ask, Telling),
    /// Everybody else is quiet. The flag: a bracket is open.
    Plan(u8, Ask, bool),
    /// The other page's entry is taken, its lock held, its frame to be written back, newest if the last flag says so.
    WriteBack(u8, Ask, bool, bool),
    /// A frame is free.
    CopyIn(u8, Ask, bool),
    /// The frame is filled, with the newest contents if the last flag says so; nothing if no frame is needed.
    Commit(u8, Ask, bool, Option<bool>),
}

/// What a device asks for, and where it is to have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Ask {
    pub(super) write: bool,
    pub(super) placement: Placement,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Outsider {
    Idle,
    Telling(u8, u8, Telling),
    /// Every device has let go: until the end no entry may be there that the event forbids.
    Told(u8, u8),
}

/// A device's entry for a page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Entry {
    /// Page table flags.
    pub(super) flags: u16,
    /// The frame holds the newest contents.
    pub(super) newest: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Page {
    /// 0: `Cpu`, 1: `Shared`, 2 + d: `Device(d)`, [`REMOTE`].
    pub(super) state: u8,
    pub(super) locked: bool,
    /// What the app view allows: 0 nothing, 1 loads, 2 everything.
    pub(super) mapping: u8,
    pub(super) home_newest: bool,
    pub(super) has_data: bool,
    /// Invalidations in flight.
    pub(super) flights: u8,
    /// The page's record, and what really happened.
    pub(super) accessed: bool,
    pub(super) dirty: bool,
    pub(super) was_accessed: bool,
    pub(super) was_dirty: bool,
    pub(super) entries: [Entry; DEVICES],
}

/// Everything there is at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct World {
    pub(super) pages: [Page; PAGES],
    pub(super) cpus: [Cpu; CPUS],
    pub(super) devices: [Device; DEVICES],
    /// A range of the device was invalidated since it began.
    pub(super) stale: [bool; DEVICES],
    pub(super) gates: [bool; DEVICES],
    pub(super) outsider: Outsider,
    pub(super) writer: Writer,
}

const VALID: u16 = pte::VALID as u16;
const WRITABLE: u16 = pte::WRITABLE as u16;
const ACCESSED: u16 = pte::ACCESSED as u16;
const DIRTY: u16 = pte::DIRTY as u16;
const ZERO: u16 = pte::ZERO as u16;
const HOME: u16 = pte::HOME as u16;
/// The state `Remote`.
pub(super) const REMOTE: u8 = 2 + DEVICES as u8;

impl Entry {
    pub(super) fn valid(self) -> bool {
        self.flags & VALID != 0
    }
    pub(super) fn has(self, flags: u16) -> bool {
        self.flags & flags == flags
    }
    /// Leads to the home page.
    pub(super) fn at_home(self) -> bool {
        self.has(VALID | HOME)
    }
}

fn decode(state: u8) -> PageState {
    match state {
        0 => PageState::Cpu,
        1 => PageState::Shared,
        REMOTE => PageState::Remote,
        device => PageState::Device(DeviceNumber(device - 2)),
    }
}

fn encode(state: PageState) -> u8 {
    match state {
        PageState::Cpu => 0,
        PageState::Shared => 1,
        PageState::Device(device) => 2 + device.0,
        PageState::Remote => REMOTE,
    }
}

fn own(device: usize) -> PageState {
    PageState::Device(DeviceNumber(device as u8))
}

fn level(protection: Protection) -> u8 {
    match protection {
        Protection::ReadOnly => 1,
        Protection::ReadWrite => 2,
    }
}

const EVENTS: [Event; 3] = [Event::Migrate, Event::ProtectionPage, Event::Clear];

/// What happens next: a world, or a broken promise.
pub(super) type Next = Result<World, &'static str>;

impl World {
    /// Untouched memory, everybody idle.
    pub(super) fn start() -> Self {
        let page = Page {
            state: 0,
            locked: false,
            mapping: 0,
            home_newest: true,
            has_data: false,
            flights: 0,
            accessed: false,
            dirty: false,
            was_accessed: false,
            was_dirty: false,
            entries: [Entry { flags: 0, newest: false }; DEVICES],
        };
        Self {
            pages: [page; PAGES],
            cpus: [Cpu::Idle; CPUS],
            devices: [Device::Idle; DEVICES],
            stale: [false; DEVICES],
            gates: [false; DEVICES],
            outsider: Outsider::Idle,
            writer: Writer::Idle,
        }
    }

    /// All next worlds. With `answers_only`, only steps that bring a request under way further.
    pub(super) fn successors(&self, mutation: Option<Mutation>, answers_only: bool, into: &mut Vec<Next>) {
        let step = Step { world: *self, mutation };
        for cpu in 0..CPUS {
            step.cpu(cpu, answers_only, into);
        }
        for device in 0..DEVICES {
            step.device(device, answers_only, into);
        }
        step.outsider(answers_only, into);
        step.writer(answers_only, into);
    }

    pub(super) fn is_idle(&self) -> bool {
        self.cpus == [Cpu::Idle; CPUS]
            && self.devices == [Device::Idle; DEVICES]
            && self.outsider == Outsider::Idle
            && self.writer == Writer::Idle
    }
}

#[derive(Clone, Copy)]
struct Step {
    world: World,
    mutation: Option<Mutation>,
}

impl Step {
    fn mutated(&self, mutation: Mutation) -> bool {
        self.mutation == Some(mutation)
    }

    fn cpu(mut self, who: usize, answers_only: bool, into: &mut Vec<Next>) {
        let unlocked = self.mutated(Mutation::NoPageLock);
        match self.world.cpus[who] {
            Cpu::Idle if answers_only => {}
            Cpu::Idle => {
                for page in 0..PAGES {
                    for request in [Request::Read, Request::Write, Request::Discard] {
                        let mut next = self;
                        let needs = match request {
                            Request::Read => 1,
                            Request::Write => 2,
                            Request::Discard => 3,
                        };
                        if self.world.pages[page].mapping >= needs {
                            into.push(next.cpu_access(page, request));
                        } else if !self.world.pages[page].locked || unlocked {
                            next.world.pages[page].locked |= !unlocked;
                            next.world.cpus[who] = Cpu::Locked(page as u8, request);
                            into.push(Ok(next.world));
                        }
                    }
                }
            }
            Cpu::Locked(page, request) => {
                let state = decode(self.world.pages[page as usize].state);
                let access = if request == Request::Write { Access::Write } else { Access::Read };
                let mut decided = touch([state].into_iter(), access, Protection::ReadWrite);
                if request == Request::Discard {
                    decided = Touch { event: Some(Event::Clear), becomes: PageState::Cpu, ..decided };
                }
                let (becomes, mapping) = (encode(decided.becomes), level(decided.protection));
                if self.mutated(Mutation::MapBeforeBracket) && request != Request::Discard {
                    self.world.pages[page as usize].mapping = mapping;
                }
                self.world.cpus[who] = match decided.event {
                    None => Cpu::Map(page, request, becomes, mapping, false),
                    Some(event) => {
                        self.start_bracket(page as usize, None);
                        debug_assert_eq!(event_of(request, becomes), event);
                        Cpu::Telling(page, request, Telling::Take(0), becomes, mapping)
                    }
                };
                into.push(Ok(self.world));
            }
            Cpu::Telling(page, request, at, becomes, mapping) => {
                let event = event_of(request, becomes);
                let Some(at) = self.tell(page as usize, at, event, None) else { return };
                self.world.cpus[who] = match at {
                    Telling::Take(device) if usize::from(device) == DEVICES => {
                        Cpu::Map(page, request, becomes, mapping, true)
                    }
                    at => Cpu::Telling(page, request, at, becomes, mapping),
                };
                into.push(Ok(self.world));
            }
            Cpu::Map(page, request, becomes, mapping, bracket) => {
                let here = &mut self.world.pages[page as usize];
                let touch = Touch { event: None, becomes: decode(becomes), protection: Protection::ReadWrite };
                here.state = encode(touched(decode(here.state), &touch));
                if request == Request::Discard {
                    if here.entries.iter().any(|entry| entry.at_home()) {
                        into.push(Err("memory is given back that a device maps"));
                        return;
                    }
                    // The hole that is punched takes the mapping along; what is there now is zeros.
                    (here.mapping, here.home_newest, here.has_data, here.state) = (0, true, false, 0);
                    (here.accessed, here.dirty, here.was_accessed, here.was_dirty) = (false, false, false, false);
                    here.entries.iter_mut().for_each(|entry| entry.newest = false);
                } else {
                    here.mapping = mapping;
                }
                self.world.cpus[who] = Cpu::End(page, request, bracket);
                into.push(Ok(self.world));
            }
            Cpu::End(page, request, bracket) => {
                let here = &mut self.world.pages[page as usize];
                if bracket && self.mutation != Some(Mutation::BracketLeftOpen) {
                    here.flights -= 1;
                }
                here.locked &= unlocked;
                let answered = match request {
                    Request::Read => here.mapping >= 1,
                    Request::Write => here.mapping >= 2,
                    Request::Discard => true,
                };
                self.world.cpus[who] = Cpu::Idle;
                into.push(if answered {
                    Ok(self.world)
                } else {
                    Err("a CPU fault was resolved and the access is still not allowed")
                });
            }
        }
    }

    fn cpu_access(&mut self, page: usize, request: Request) -> Next {
        let here = &mut self.world.pages[page];
        if request == Request::Read {
            return if here.home_newest { Ok(self.world) } else { Err("I3: the CPU read an old version") };
        }
        (here.home_newest, here.has_data) = (true, true);
        here.entries.iter_mut().for_each(|entry| entry.newest = false);
        self.age_copies(page);
        Ok(self.world)
    }

    /// The page was written: what is being copied at the moment is an old version.
    fn age_copies(&mut self, page: usize) {
        let here = |number: u8| usize::from(number) == page;
        for cpu in &mut self.world.cpus {
            if let Cpu::Telling(number, _, Telling::CopyHome(_, newest), ..) = cpu
                && here(*number)
            {
                *newest = false;
            }
        }
        for device in &mut self.world.devices {
            match device {
                Device::Telling(number, _, Telling::CopyHome(_, newest)) if here(*number) => *newest = false,
                Device::Shed(number, _, newest) if here(*number) => *newest = false,
                Device::WriteBack(number, _, _, newest) if !here(*number) => *newest = false,
                Device::Commit(number, _, _, Some(newest)) if here(*number) => *newest = false,
                _ => {}
            }
        }
        if let Outsider::Telling(number, _, Telling::CopyHome(_, newest)) = &mut self.world.outsider
            && here(*number)
        {
            *newest = false;
        }
        if let Writer::Protected(number, newest) = &mut self.world.writer
            && here(*number)
        {
            *newest = false;
        }
    }

    /// An invalidation starts: ranges over the page become stale, except that of `service`.
    fn start_bracket(&mut self, page: usize, service: Option<usize>) {
        self.world.pages[page].flights += 1;
        for device in 0..DEVICES {
            let begun = match self.world.devices[device] {
                Device::Begun(number, _)
                | Device::Shed(number, ..)
                | Device::Telling(number, ..)
                | Device::Plan(number, ..)
                | Device::WriteBack(number, ..)
                | Device::CopyIn(number, ..)
                | Device::Commit(number, ..) => usize::from(number) == page,
                Device::Idle | Device::Run | Device::Use(..) | Device::Locked(..) => false,
            };
            self.world.stale[device] |= begun && Some(device) != service;
        }
    }

    /// One step of telling devices; nothing if the gate is closed.
    fn tell(&mut self, page: usize, at: Telling, event: Event, skip: Option<usize>) -> Option<Telling> {
        match at {
            Telling::Take(device) if Some(usize::from(device)) == skip => Some(Telling::Take(device + 1)),
            Telling::Take(number) => {
                let device = usize::from(number);
                let updating = matches!(self.world.devices[device], Device::WriteBack(..) | Device::Shed(..));
                if updating || (self.world.gates[device] && !self.mutated(Mutation::NoShootdown)) {
                    return None;
                }
                let taken = self.let_go(page, device, let_go(event));
                let comes = taken.valid()
                    && (comes_home(u64::from(taken.flags))
                        || (self.mutated(Mutation::RemoteCopiedHome) && taken.has(DIRTY)));
                if comes && let_go(event) != LetGo::Drop && !self.mutated(Mutation::NoCopyHome) {
                    self.world.gates[device] = true;
                    return Some(Telling::CopyHome(number, taken.newest));
                }
                Some(Telling::Take(number + 1))
            }
            Telling::CopyHome(number, newest) => {
                self.copy_home(page, newest);
                self.world.gates[usize::from(number)] = matches!(
                    self.world.devices[usize::from(number)],
                    // Only without shootdown: the dispatch goes on.
                    Device::Run | Device::Use(..)
                );
                Some(Telling::Take(number + 1))
            }
        }
    }

    fn copy_home(&mut self, page: usize, newest: bool) {
        (self.world.pages[page].home_newest, self.world.pages[page].has_data) = (newest, true);
    }

    /// Takes or downgrades an entry and collects its bits; returns it as it was.
    fn let_go(&mut self, page: usize, device: usize, how: LetGo) -> Entry {
        let here = &mut self.world.pages[page];
        let entry = &mut here.entries[device];
        let mut was = *entry;
        let overlooked = match how {
            LetGo::Downgrade => Mutation::RemoteKeepsWritable,
            LetGo::BringHome => Mutation::CopyBesideRemote,
            LetGo::Drop => Mutation::RemoteSurvivesDiscard,
        };
        if entry.at_home() && self.mutation == Some(overlooked) {
            return Entry::default();
        }
        if how == LetGo::Downgrade {
            if !entry.valid() || entry.flags & (WRITABLE | DIRTY) == 0 {
                return Entry::default();
            }
            entry.flags &= !(WRITABLE | ACCESSED | DIRTY);
            match self.mutation {
                Some(Mutation::DowngradeKeepsWritable) => entry.flags |= WRITABLE,
                Some(Mutation::DowngradeForgetsDirty) => was.flags &= !DIRTY,
                _ => {}
            }
        } else {
            *entry = Entry::default();
        }
        if self.mutation != Some(Mutation::BitsDropped) {
            here.accessed |= was.has(VALID | ACCESSED);
            here.dirty |= was.has(VALID | DIRTY);
        }
        was
    }

    fn device(mut self, who: usize, answers_only: bool, into: &mut Vec<Next>) {
        let go = |mut step: Self, to: Device, into: &mut Vec<Next>| {
            step.world.devices[who] = to;
            into.push(Ok(step.world));
        };
        match self.world.devices[who] {
            Device::Idle if answers_only => {}
            Device::Idle => {
                if !self.world.gates[who] {
                    let mut next = self;
                    next.world.gates[who] = true;
                    go(next, Device::Run, into);
                }
                // A fault reported earlier, by now perhaps spurious, whose turn it is when the page's lock is free.
                for page in (0..PAGES).filter(|&page| !self.world.pages[page].locked) {
                    for (write, placement) in [
                        (false, Placement::Copy),
                        (true, Placement::Copy),
                        (false, Placement::Remote),
                        (true, Placement::Remote),
                    ] {
                        let mut next = self;
                        next.world.pages[page].locked = true;
                        go(next, Device::Locked(page as u8, Ask { write, placement }), into);
                    }
                }
            }
            Device::Run => {
                for page in 0..PAGES {
                    for write in [false, true] {
                        let mut next = self;
                        let entry = &mut next.world.pages[page].entries[who];
                        if !answers_only && entry.has(if write { VALID | WRITABLE } else { VALID }) {
                            entry.flags |= if write { ACCESSED | DIRTY } else { ACCESSED };
                            next.world.pages[page].was_accessed = true;
                            next.world.pages[page].was_dirty |= write;
                            go(next, Device::Use(page as u8, write), into);
                        }
                    }
                }
                self.world.gates[who] = false;
                go(self, Device::Idle, into);
            }
            Device::Use(page, write) => {
                let here = &mut self.world.pages[usize::from(page)];
                let entry = here.entries[who];
                if !entry.has(if write { VALID | WRITABLE } else { VALID }) {
                    into.push(Err("I8: an invocation used a translation that was taken away"));
                    return;
                }
                if write {
                    here.home_newest = entry.at_home();
                    here.has_data |= entry.at_home();
                    here.entries.iter_mut().for_each(|entry| entry.newest = false);
                    here.entries[who].newest = !entry.at_home();
                    self.age_copies(usize::from(page));
                } else if !(if entry.at_home() { here.home_newest } else { entry.newest }) {
                    into.push(Err("I3: a device read an old version"));
                    return;
                }
                go(self, Device::Run, into);
            }
            Device::Locked(page, ask) => {
                // Range::begin waits out invalidations in flight.
                if self.world.pages[usize::from(page)].flights == 0 {
                    self.world.stale[who] = false;
                    go(self, Device::Begun(page, ask), into);
                }
            }
            // Shedding takes the update lock.
            Device::Begun(page, ask) => {
                let here = usize::from(page);
                let wrong = sheds(u64::from(self.world.pages[here].entries[who].flags), ask.placement);
                if !wrong || self.mutated(Mutation::RemoteShedsNothing) {
                    self.quiet(who, page, ask, into);
                } else if !self.world.gates[who] {
                    let taken = self.let_go(here, who, LetGo::BringHome);
                    if comes_home(u64::from(taken.flags)) {
                        go(self, Device::Shed(page, ask, taken.newest), into);
                    } else {
                        self.evicted(who, here);
                        self.world.pages[here].locked = true;
                        go(self, Device::Begun(page, ask), into);
                    }
                }
            }
            Device::Shed(page, ask, newest) => {
                let here = usize::from(page);
                self.copy_home(here, newest);
                self.evicted(who, here);
                self.world.pages[here].locked = true;
                go(self, Device::Begun(page, ask), into);
            }
            Device::Telling(page, ask, at) => {
                // The page is locked: its state is what it was when the bracket was started.
                let state = decode(self.world.pages[usize::from(page)].state);
                let told = quiet(state, own(who), ask.write, ask.placement).others;
                let event = told.unwrap_or(Event::Migrate);
                let Some(at) = self.tell(usize::from(page), at, event, Some(who)) else { return };
                match at {
                    Telling::Take(device) if usize::from(device) == DEVICES => {
                        go(self, Device::Plan(page, ask, true), into);
                    }
                    at => go(self, Device::Telling(page, ask, at), into),
                }
            }
            // Both take the update lock, which whoever brings a page home holds with the gate.
            Device::Plan(..) | Device::Commit(..) if self.world.gates[who] => {}
            Device::Plan(page, ask, bracket) => self.plan(who, page, ask, bracket, into),
            Device::WriteBack(page, ask, bracket, newest) => {
                let other = 1 - usize::from(page);
                if !self.mutated(Mutation::EvictWithoutWriteBack) {
                    self.copy_home(other, newest);
                }
                self.evicted(who, other);
                go(self, Device::CopyIn(page, ask, bracket), into);
            }
            Device::CopyIn(page, ask, bracket) => {
                let newest = self.world.pages[usize::from(page)].home_newest;
                go(self, Device::Commit(page, ask, bracket, Some(newest)), into);
            }
            Device::Commit(page, ask, bracket, filled) => self.commit(who, page, ask, bracket, filled, into),
        }
    }

    fn quiet(mut self, who: usize, page: u8, ask: Ask, into: &mut Vec<Next>) {
        let here = usize::from(page);
        let early = self.world.pages[here].home_newest;
        let mut needed = quiet(decode(self.world.pages[here].state), own(who), ask.write, ask.placement);
        if self.mutated(Mutation::RemoteBesideCopies) && ask.placement == Placement::Remote {
            needed.others = None;
        }
        if self.mutated(Mutation::NoWriteProtect) && needed.lose == Lose::Stores {
            needed.lose = Lose::Nothing;
        }
        if self.mutated(Mutation::OthersNotTold) && self.world.pages[here].state == 1 {
            needed.others = None;
        }
        let copy = ask.placement == Placement::Copy;
        if self.mutated(Mutation::CopyBeforeProtect) && copy && !self.world.pages[here].entries[who].valid() {
            // Copied in one step, protected in the next.
            let free = !self.world.pages[1 - here].entries[who].valid();
            if free && needed.others.is_none() {
                self.world.devices[who] = Device::Commit(page, ask, false, Some(early));
                into.push(Ok(self.world));
                return;
            }
        }
        self.lose(here, needed.lose);
        self.world.devices[who] = if needed.others.is_some() {
            self.start_bracket(here, Some(who));
            Device::Telling(page, ask, Telling::Take(0))
        } else {
            Device::Plan(page, ask, false)
        };
        into.push(Ok(self.world));
    }

    fn lose(&mut self, page: usize, lose: Lose) {
        let mapping = &mut self.world.pages[page].mapping;
        *mapping = match lose {
            Lose::Nothing => *mapping,
            Lose::Stores => (*mapping).min(1),
            Lose::All => 0,
        };
    }

    fn plan(mut self, who: usize, page: u8, ask: Ask, bracket: bool, into: &mut Vec<Next>) {
        let (here, other) = (usize::from(page), 1 - usize::from(page));
        let (page_here, page_other) = (self.world.pages[here], self.world.pages[other]);
        let owned = decode(page_here.state) == own(who);
        let entry = u64::from(page_here.entries[who].flags);
        let fill = fill(entry, owned, ask.write, page_here.has_data, ask.placement);
        let in_other = page_other.entries[who];
        self.world.devices[who] = if fill != Fill::Frame {
            // The zero frame is newest as long as nobody writes; nobody can now.
            Device::Commit(
                page,
                ask,
                bracket,
                matches!(fill, Fill::ZeroFrame | Fill::Home).then_some(page_here.home_newest),
            )
        } else if !in_other.valid() || in_other.has(ZERO) || in_other.at_home() {
            if self.holds_frame(who, other) {
                self.end_service(who, here, bracket);
                into.push(Ok(self.world));
                return;
            }
            Device::CopyIn(page, ask, bracket)
        } else if page_other.locked {
            // Busy: the page is left to the next round.
            self.end_service(who, here, bracket);
            into.push(Ok(self.world));
            return;
        } else {
            self.world.pages[other].locked = true;
            let taken = self.let_go(other, who, LetGo::BringHome);
            if comes_home(u64::from(taken.flags)) {
                Device::WriteBack(page, ask, bracket, taken.newest)
            } else {
                self.evicted(who, other);
                Device::CopyIn(page, ask, bracket)
            }
        };
        into.push(Ok(self.world));
    }

    /// Whether the writer holds the frame that `page` had on `device`.
    fn holds_frame(&self, device: usize, page: usize) -> bool {
        let held = matches!(self.world.writer, Writer::Protected(number, _) if usize::from(number) == page);
        device == 0 && held && !self.mutated(Mutation::CleanFrameNotHeld)
    }

    fn writer(mut self, answers_only: bool, into: &mut Vec<Next>) {
        match self.world.writer {
            Writer::Idle if answers_only => {}
            Writer::Idle => {
                let unlocked = self.mutated(Mutation::CleanUnlocked);
                // The gate, and the update lock, which whoever writes a page home holds.
                let updating = matches!(self.world.devices[0], Device::WriteBack(..) | Device::Shed(..));
                let open = self.mutated(Mutation::NoShootdown) || self.mutated(Mutation::CleanWithoutShootdown);
                let shut = updating || (self.world.gates[0] && !open);
                for page in (0..PAGES).filter(|_| !shut) {
                    let mut next = self;
                    let here = &mut next.world.pages[page];
                    let entry = &mut here.entries[0];
                    let fits = entry.has(VALID | WRITABLE | DIRTY) && !entry.at_home();
                    if !fits || (here.locked && !unlocked) {
                        continue;
                    }
                    if self.mutation != Some(Mutation::CleanWithoutProtect) {
                        entry.flags &= !WRITABLE;
                    }
                    if self.mutation == Some(Mutation::CleanBeforeCopy) {
                        entry.flags &= !DIRTY;
                        here.dirty = true;
                    }
                    let newest = entry.newest;
                    here.locked |= !unlocked;
                    next.world.writer = Writer::Protected(page as u8, newest);
                    into.push(Ok(next.world));
                }
            }
            Writer::Protected(page, newest) => {
                let (here, other) = (usize::from(page), 1 - usize::from(page));
                // Not held, the frame may have become that of the other page.
                let own = self.world.pages[here].entries[0].valid();
                let others = self.world.pages[other].entries[0];
                let reused = !own && others.valid() && !others.has(ZERO) && !others.at_home();
                if reused && !self.mutated(Mutation::CleanFrameNotHeld) {
                    into.push(Err("a frame that was held was used for another page"));
                    return;
                }
                self.copy_home(here, newest && !reused);
                self.world.writer = Writer::Copied(page);
                into.push(Ok(self.world));
            }
            Writer::Copied(page) => {
                // The update lock.
                let updating = matches!(self.world.devices[0], Device::WriteBack(..) | Device::Shed(..));
                if updating || self.world.gates[0] && !matches!(self.world.devices[0], Device::Run | Device::Use(..)) {
                    return;
                }
                let always = self.mutated(Mutation::CleanRestoresAlways);
                let unprotected = self.mutated(Mutation::CleanWithoutProtect);
                let early = self.mutated(Mutation::CleanBeforeCopy);
                let unlocked = self.mutated(Mutation::CleanUnlocked);
                let here = &mut self.world.pages[usize::from(page)];
                let entry = &mut here.entries[0];
                let untouched = entry.has(VALID | DIRTY) && !entry.has(WRITABLE) && !entry.at_home();
                if untouched || unprotected || (entry.valid() && (always || early)) {
                    entry.flags = (entry.flags & !DIRTY) | WRITABLE;
                    here.dirty = true;
                }
                here.locked &= unlocked;
                self.world.writer = Writer::Idle;
                into.push(Ok(self.world));
            }
        }
    }

    /// The frame of the other page is free.
    fn evicted(&mut self, who: usize, other: usize) {
        let page = &mut self.world.pages[other];
        page.state = encode(evicted(decode(page.state), own(who)));
        page.locked = self.mutation == Some(Mutation::VictimStaysLocked);
    }

    fn commit(mut self, who: usize, page: u8, ask: Ask, bracket: bool, filled: Option<bool>, into: &mut Vec<Next>) {
        let here = usize::from(page);
        let Ask { write, placement } = ask;
        if self.mutated(Mutation::CopyBeforeProtect) {
            let needed = quiet(decode(self.world.pages[here].state), own(who), write, placement);
            self.lose(here, needed.lose);
        }
        if self.world.stale[who] && !self.mutated(Mutation::RetryIgnored) {
            self.end_service(who, here, bracket);
            into.push(Ok(self.world));
            return;
        }
        let there = &mut self.world.pages[here];
        let (becomes, writable) = commit(decode(there.state), own(who), write, placement);
        let entry = &mut there.entries[who];
        let home = placement == Placement::Remote;
        let zero = filled.is_some() && !there.has_data && !writable && !home;
        match filled {
            Some(newest) => {
                if self.mutation != Some(Mutation::BitsOverwritten) {
                    // It may have been mapped to the zero frame, and read there.
                    there.accessed |= entry.has(VALID | ACCESSED);
                }
                let flags = VALID | if writable { WRITABLE } else { 0 } | if zero { ZERO } else { 0 };
                *entry = Entry { flags: flags | if home { HOME } else { 0 }, newest: newest && !home };
            }
            None if write => entry.flags |= WRITABLE,
            None => {}
        }
        let answered = entry.has(if write { VALID | WRITABLE } else { VALID });
        there.state = encode(becomes);
        self.end_service(who, here, bracket);
        into.push(if answered { Ok(self.world) } else { Err("a fault was served and its page is still missing") });
    }

    fn end_service(&mut self, who: usize, page: usize, bracket: bool) {
        self.world.pages[page].flights -= u8::from(bracket);
        self.world.pages[page].locked = false;
        self.world.stale[who] = false;
        self.world.devices[who] = Device::Idle;
    }

    fn outsider(mut self, answers_only: bool, into: &mut Vec<Next>) {
        match self.world.outsider {
            Outsider::Idle if answers_only => {}
            Outsider::Idle => {
                for page in 0..PAGES {
                    for event in 0..2 {
                        let mut next = self;
                        next.start_bracket(page, None);
                        next.world.outsider = Outsider::Telling(page as u8, event, Telling::Take(0));
                        into.push(Ok(next.world));
                    }
                }
            }
            Outsider::Telling(page, event, at) => {
                let Some(at) = self.tell(usize::from(page), at, EVENTS[usize::from(event)], None) else { return };
                self.world.outsider = match at {
                    Telling::Take(device) if usize::from(device) == DEVICES => Outsider::Told(page, event),
                    at => Outsider::Telling(page, event, at),
                };
                into.push(Ok(self.world));
            }
            Outsider::Told(page, _) => {
                self.world.pages[usize::from(page)].flights -= 1;
                self.world.outsider = Outsider::Idle;
                into.push(Ok(self.world));
            }
        }
    }
}

/// The event of a CPU thread's bracket.
fn event_of(request: Request, becomes: u8) -> Event {
    match request {
        Request::Discard => Event::Clear,
        _ if becomes == 1 => Event::ProtectionPage,
        _ => Event::Migrate,
    }
}
