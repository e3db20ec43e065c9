//! Placement: whether a page that a device asks for is copied to it or mapped at home. A pure function.

use crate::addr::Access;
use crate::device::MemoryTimes;
use crate::mm::advice::{Advice, Location};
use crate::mm::pages::{DeviceNumber, PageState};
use crate::mm::state::Placement;

/// A page that a device wants, which can map home pages.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// The device.
    pub device: DeviceNumber,
    /// For what; nothing if nobody asked for it.
    pub access: Option<Access>,
    /// The page's state.
    pub state: PageState,
    /// Whether it is pinned at home.
    pub pinned: bool,
    /// The hints for it.
    pub advice: Advice,
    /// Whether it is being moved to the device because the program said so.
    pub moving: bool,
}

/// Where the page is to be; `otherwise` is for pages of which nothing is said.
pub fn placement(wanted: Wanted, otherwise: Placement) -> Placement {
    let Wanted { device, access, state, pinned, advice, moving } = wanted;
    let here = PageState::Device(device);
    if advice.is_read_mostly() && access != Some(Access::Write) {
        return Placement::Copy;
    }
    match advice.preferred() {
        // Whoever fought over its granule meant a neighbour.
        Some(Location::Device(preferred)) if preferred == device => return Placement::Copy,
        Some(Location::Cpu) => return Placement::Remote,
        Some(Location::Device(_)) | None if pinned => return Placement::Remote,
        Some(Location::Device(_)) | None => {}
    }
    // What moved to the device stays there.
    if advice.is_accessed_by(device) && state != here && !moving {
        return Placement::Remote;
    }
    otherwise
}

/// What is done with pages of which nothing is said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Habit {
    /// Where they are to be.
    pub placement: Placement,
    /// Whether those that are read here and there are to be at home all the same; see [`is_sparse`].
    pub sparse_at_home: bool,
    /// Whether the CPU loses its mapping of a page that is placed at home, until it touches it again: so accesses of kernels that do not translate
    /// are seen on devices that compute on the CPU.
    pub traps: bool,
}

/// How much slower than in frames, in percent, working at home may be measured and count as just as fast.
const NOISE: u64 = 10;

/// What is fastest on a device that shares memory with the CPU, by trials that were measured one after the other. At home nothing is copied ever, so that is
/// the choice if kernels are as fast there; else pages are read at home of which little is read. Pages are copied and nothing else unless all trials say
/// otherwise: one that something disturbed decides nothing.
pub fn fastest(trials: &[MemoryTimes]) -> Habit {
    let all = |says: fn(&MemoryTimes) -> bool| !trials.is_empty() && trials.iter().all(says);
    if all(is_home_as_fast) {
        return Habit { placement: Placement::Remote, ..Habit::default() };
    }
    Habit { sparse_at_home: all(|times| times.sparse < times.copy), ..Habit::default() }
}

/// Whether the trials say the same, so that they need not be measured again.
pub fn agree(trials: &[MemoryTimes]) -> bool {
    let same = |says: fn(&MemoryTimes) -> bool| trials.windows(2).all(|two| says(&two[0]) == says(&two[1]));
    same(is_home_as_fast) && same(|times| times.sparse < times.copy)
}

fn is_home_as_fast(times: &MemoryTimes) -> bool {
    times.home <= times.frames + times.frames * NOISE / 100
}

/// Whether a page looks like one of which little is read, once: `alone` in its neighbourhood, never asked for before, with nothing said of it.
pub fn is_sparse(wanted: Wanted, alone: bool, faults: u32) -> bool {
    let Wanted { access, state, advice, moving, .. } = wanted;
    alone && faults == 0 && !moving && access == Some(Access::Read) && state == PageState::Cpu && advice == Advice::NONE
}

/// Whether a granule that is fought over may be pinned at home.
pub fn may_pin(advice: Advice) -> bool {
    !matches!(advice.preferred(), Some(Location::Device(_)))
}

/// When pages go that may go: low first.
pub fn eviction_rank(preferred: Option<Location>, device: DeviceNumber) -> u8 {
    match preferred {
        Some(Location::Cpu) => 0,
        Some(Location::Device(preferred)) if preferred == device => 2,
        Some(Location::Device(_)) | None => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mm::advice::Hint;

    const HERE: DeviceNumber = DeviceNumber(0);
    const THERE: DeviceNumber = DeviceNumber(1);

    fn placed(hints: &[Hint], access: Access, state: PageState, pinned: bool) -> Placement {
        let advice = hints.iter().fold(Advice::NONE, |advice, &hint| advice.with(hint));
        let wanted = Wanted { device: HERE, access: Some(access), state, pinned, advice, moving: false };
        let [copy, remote] = [Placement::Copy, Placement::Remote].map(|otherwise| placement(wanted, otherwise));
        // Nothing is said: what is otherwise done is done. Told apart from an answer that happens to be the same.
        if copy == remote { copy } else { panic!("undecided: {wanted:?}") }
    }

    #[test]
    fn readers_of_what_is_mostly_read_have_copies_even_of_pinned_pages() {
        let state = PageState::Remote;
        assert_eq!(placed(&[Hint::ReadMostly(true)], Access::Read, state, true), Placement::Copy);
        assert_eq!(placed(&[Hint::ReadMostly(true)], Access::Write, state, true), Placement::Remote);
    }

    #[test]
    fn pages_are_where_they_should_be() {
        let prefer = |location| [Hint::PreferredLocation(Some(location))];
        let cpu = PageState::Cpu;
        assert_eq!(placed(&prefer(Location::Cpu), Access::Write, cpu, false), Placement::Remote);
        assert_eq!(placed(&prefer(Location::Device(HERE)), Access::Write, cpu, false), Placement::Copy);
        assert_eq!(placed(&prefer(Location::Device(HERE)), Access::Write, cpu, true), Placement::Copy);
        assert_eq!(placed(&prefer(Location::Device(THERE)), Access::Write, cpu, true), Placement::Remote);
    }

    #[test]
    fn a_device_that_accesses_pages_maps_them_at_home_unless_they_came_to_it() {
        let here = [Hint::AccessedBy(HERE, true)];
        for state in [PageState::Cpu, PageState::Shared, PageState::Device(THERE)] {
            assert_eq!(placed(&here, Access::Read, state, false), Placement::Remote);
        }
        let preferred = [here[0], Hint::PreferredLocation(Some(Location::Device(HERE)))];
        assert_eq!(placed(&preferred, Access::Read, PageState::Cpu, false), Placement::Copy);
    }

    #[test]
    #[should_panic = "undecided"]
    fn of_pages_that_moved_to_the_device_nothing_is_said() {
        placed(&[Hint::AccessedBy(HERE, true)], Access::Read, PageState::Device(HERE), false);
    }

    #[test]
    fn home_is_the_place_where_kernels_are_as_fast_there_and_else_for_what_is_read_here_and_there() {
        let times = |home, sparse| fastest(&[MemoryTimes { frames: 1000, home, sparse, copy: 400 }; 3]);
        let habit = |placement, sparse_at_home| Habit { placement, sparse_at_home, traps: false };
        assert_eq!(times(1100, 9000), habit(Placement::Remote, false));
        assert_eq!(times(1101, 399), habit(Placement::Copy, true));
        assert_eq!(times(1101, 400), habit(Placement::Copy, false));
    }

    #[test]
    fn trials_that_differ_choose_copies_and_are_measured_again() {
        let times = |home, sparse| MemoryTimes { frames: 1000, home, sparse, copy: 400 };
        let (slow, fast) = (times(3000, 500), times(1000, 100));
        for mixed in [[slow, fast, fast], [fast, fast, slow], [slow, fast, slow]] {
            assert_eq!(fastest(&mixed), Habit::default());
            assert!(!agree(&mixed));
        }
        assert!(agree(&[slow; 3]) && agree(&[fast; 3]));
        assert_eq!(fastest(&[]), Habit::default(), "of what was not measured nothing is known");
    }

    #[test]
    fn only_the_first_read_of_a_lone_page_of_the_cpus_looks_sparse() {
        let (access, state, advice) = (Some(Access::Read), PageState::Cpu, Advice::NONE);
        let wanted = Wanted { device: HERE, access, state, pinned: false, advice, moving: false };
        assert!(is_sparse(wanted, true, 0));
        assert!(!is_sparse(wanted, false, 0) && !is_sparse(wanted, true, 1));
        let others = [
            Wanted { access: None, ..wanted },
            Wanted { access: Some(Access::Write), ..wanted },
            Wanted { state: PageState::Shared, ..wanted },
            Wanted { advice: advice.with(Hint::Random(true)), ..wanted },
            Wanted { moving: true, ..wanted },
        ];
        assert!(others.into_iter().all(|wanted| !is_sparse(wanted, true, 0)));
    }

    #[test]
    fn those_that_prefer_the_cpu_go_first_and_those_that_prefer_the_device_last() {
        let rank = |preferred| eviction_rank(preferred, HERE);
        assert!(rank(Some(Location::Cpu)) < rank(None));
        assert!(rank(None) < rank(Some(Location::Device(HERE))));
        assert_eq!(rank(Some(Location::Device(THERE))), rank(None));
    }
}
