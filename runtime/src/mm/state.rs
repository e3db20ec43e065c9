//! The page-state machine: every decision about a page as a pure function.
//!
//! The address space, the fault service, mirrors and eviction do what these functions say; they decide nothing about states
//! themselves. So does the model in `state/model.rs`, whose interleavings with two CPU threads, two devices and two pages
//! are searched exhaustively (`state/search.rs`): what is proved is what runs. What the model adds is the order of steps, and
//! that is the order in `mm/space.rs`, `service/fault.rs`, `service/mirror.rs` and `service/evict.rs`.
//!
//! | in state | home page | CPU mapping at most | device entries at most |
//! |---|---|---|---|
//! | `Cpu` | newest | read-write | none |
//! | `Shared` | newest | read-only | read-only |
//! | `Device(d)` | older, once d's entry is dirty | none | read-write on d, none elsewhere |
//! | `Remote` | newest | read-write | to the home page itself, on any devices, and to no copy |
//!
//! "At most": a mapping or entry that is missing is found out by a fault, and costs time only.

use super::pages::PageState;
use crate::addr::Access;
use crate::device::layout::pte;
use crate::hmm::Event;
use crate::track::Protection;

#[cfg(test)]
mod model;
#[cfg(test)]
mod search;

/// Where a page that a device asks for is to be.
/// Linux: migrating to device-private memory, or mapping system memory over the bus.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Placement {
    /// In a frame: the page is copied.
    #[default]
    Copy,
    /// At home: the device maps the home page itself, and nothing is copied.
    Remote,
}

/// What a CPU touch brings about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Touch {
    /// What devices are told before the mapping changes; nothing if none is concerned.
    pub(crate) event: Option<Event>,
    /// The new state of pages of which devices have copies; see [`touched`].
    pub(crate) becomes: PageState,
    /// What the CPU may do afterwards.
    pub(crate) protection: Protection,
}

/// A CPU touch of pages that are mapped together. `allowed` is what their VMA permits.
pub(crate) fn touch(states: impl Iterator<Item = PageState>, access: Access, allowed: Protection) -> Touch {
    let (mut shared, mut on_device) = (false, false);
    for state in states {
        shared |= state == PageState::Shared;
        on_device |= matches!(state, PageState::Device(_));
    }
    let (event, becomes, protection) = match access {
        _ if !shared && !on_device => (None, PageState::Cpu, allowed),
        Access::Write => (Some(Event::Migrate), PageState::Cpu, allowed),
        Access::Read if on_device => (Some(Event::ProtectionPage), PageState::Shared, Protection::ReadOnly),
        Access::Read => (None, PageState::Shared, Protection::ReadOnly),
    };
    Touch { event, becomes, protection }
}

/// The state of a page after the touch: a page without copies keeps its own.
pub(crate) fn touched(state: PageState, touch: &Touch) -> PageState {
    match state {
        PageState::Cpu | PageState::Remote => state,
        PageState::Shared | PageState::Device(_) => touch.becomes,
    }
}

/// Whether a CPU touch of a page in `state` takes something from devices.
pub(crate) fn takes_away(state: PageState, access: Access) -> bool {
    match state {
        PageState::Cpu | PageState::Remote => false,
        PageState::Shared => access == Access::Write,
        PageState::Device(_) => true,
    }
}

/// What the app view must lose before a page is copied to a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lose {
    /// Nothing: it has too little to do harm.
    Nothing,
    /// Stores.
    Stores,
    /// Everything.
    All,
}

/// Who must let go of a page before device `own` may use it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Quiet {
    /// What the app view loses.
    pub(crate) lose: Lose,
    /// What other devices are told, if they must give something up: their copies, or only the permission to store.
    pub(crate) others: Option<Event>,
}

/// A page in `state` is wanted by the device whose state is `own`, whose entry was shed if it had to be ([`sheds`]).
pub(crate) fn quiet(state: PageState, own: PageState, write: bool, placement: Placement) -> Quiet {
    let elsewhere = matches!(state, PageState::Device(_)) && state != own;
    if placement == Placement::Remote {
        // Nobody may keep a copy; the CPU keeps what it has.
        let others = (elsewhere || state == PageState::Shared).then_some(Event::Migrate);
        return Quiet { lose: Lose::Nothing, others };
    }
    let lose = match state {
        PageState::Device(_) => Lose::Nothing,
        _ if write => Lose::All,
        PageState::Shared => Lose::Nothing,
        PageState::Cpu | PageState::Remote => Lose::Stores,
    };
    let others = match state {
        // Who maps the home page itself would not see what is stored to a copy.
        PageState::Remote => Some(Event::Migrate),
        PageState::Shared if write => Some(Event::Migrate),
        // Readers share: the owner becomes one.
        PageState::Device(_) if elsewhere => Some(if write { Event::Migrate } else { Event::ProtectionPage }),
        PageState::Cpu | PageState::Shared | PageState::Device(_) => None,
    };
    Quiet { lose, others }
}

/// Whether the device's own entry must be taken, and what is dirty in it brought home, before it can be placed as asked.
pub(crate) fn sheds(entry: u64, placement: Placement) -> bool {
    let wrong = if placement == Placement::Remote { 0 } else { pte::HOME };
    entry & pte::VALID != 0 && entry & pte::HOME == wrong
}

/// How a device's entry comes to translate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fill {
    /// It does already.
    Nothing,
    /// The entry becomes writable where it stands.
    Upgrade,
    /// The shared zero frame.
    ZeroFrame,
    /// A frame of its own, filled from the home page.
    Frame,
    /// The home page itself.
    Home,
}

/// What `entry`, shed if it had to be, needs. `owned`: the page's state names this device; `has_data`: the home page was ever
/// written.
pub(crate) fn fill(entry: u64, owned: bool, write: bool, has_data: bool, placement: Placement) -> Fill {
    let mapped = entry & pte::VALID != 0;
    if mapped && (!write || entry & pte::WRITABLE != 0) {
        Fill::Nothing
    } else if placement == Placement::Remote {
        if mapped { Fill::Upgrade } else { Fill::Home }
    } else if mapped && entry & pte::ZERO == 0 {
        Fill::Upgrade
    } else if !write && !owned && !has_data {
        Fill::ZeroFrame
    } else {
        Fill::Frame
    }
}

/// The state after device `own` got its entry, and whether a new entry is writable, as far as its VMA permits.
pub(crate) fn commit(state: PageState, own: PageState, write: bool, placement: Placement) -> (PageState, bool) {
    if placement == Placement::Remote {
        return (PageState::Remote, true);
    }
    let owned = write || state == own;
    (if owned { own } else { PageState::Shared }, owned)
}

/// How a mirror lets go of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LetGo {
    /// Entries become read-only, dirty pages come home, frames stay.
    Downgrade,
    /// Entries and frames go; dirty pages come home.
    BringHome,
    /// Entries and frames go; contents do not matter any more.
    Drop,
}

/// Whether an entry's dirty bit means that its page is to be copied home: an entry for the home page itself has no copy.
pub(crate) fn comes_home(entry: u64) -> bool {
    entry & pte::DIRTY != 0 && entry & pte::HOME == 0
}

/// What a mirror does about an event.
pub(crate) fn let_go(event: Event) -> LetGo {
    match event {
        Event::ProtectionVma | Event::ProtectionPage | Event::SoftDirty => LetGo::Downgrade,
        Event::Migrate | Event::Exclusive => LetGo::BringHome,
        Event::Unmap | Event::Clear | Event::Release => LetGo::Drop,
    }
}

/// The state after device `own` gave up its frame to make room, with everything brought home.
pub(crate) fn evicted(state: PageState, own: PageState) -> PageState {
    if state == own { PageState::Cpu } else { state }
}
