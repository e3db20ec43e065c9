//! Hints about how memory is going to be used. They change where pages are and what is fetched ahead, never a result.
//!
//! They stand in VMAs and go with them when these are split and moved. Who follows which is told in ARCHITECTURE.md, "Advice".

use super::pages::DeviceNumber;
use std::fmt;

/// Where a page can be.
/// CUDA: `cudaMemLocation`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Location {
    /// At home, in the CPU's memory.
    Cpu,
    /// In a device's frames; [`Svm::location`](crate::Svm::location) names that of a runtime.
    Device(DeviceNumber),
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("the CPU"),
            Self::Device(DeviceNumber(number)) => write!(f, "device {number}"),
        }
    }
}

/// A hint about a range, given with [`Svm::advise`](crate::Svm::advise). Each replaces what was said of its kind before.
/// CUDA: `cudaMemAdvise`; Linux: `madvise`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Hint {
    /// The data is mostly read: devices that read it get copies of their own, also where pages are otherwise mapped at home, and what one side
    /// reads ahead or prefetches does not take it from another. A store takes the copies away.
    /// CUDA: `cudaMemAdviseSetReadMostly`.
    ReadMostly(bool),
    /// Where the pages should be. The CPU: devices that can map them at home, nothing is copied; where that cannot be, they are the first to be
    /// evicted. A device: they are copied to it, stay there longest, and are not pinned at home when they are fought over. Moves nothing by
    /// itself; entries that the hint makes unwanted go when it is taken back.
    /// CUDA: `cudaMemAdviseSetPreferredLocation`.
    PreferredLocation(Option<Location>),
    /// This device is going to access the pages: it maps them at home now, before a kernel misses them, without moving them; pages that
    /// nobody wrote get memory for that. If they move to it, by prefetch or since it is preferred, so be it. Nothing on devices that
    /// cannot map home pages.
    ///
    /// The mapping is made once, when the hint is given. What takes it away later (another device's copy, a move, a discard) is not followed by a
    /// new one at once: the device's next miss makes it, at home again, as the hint stands until it is taken back. CUDA's
    /// `cudaMemAdviseSetAccessedBy` keeps the mapping up to date by itself; here that miss is the price.
    AccessedBy(DeviceNumber, bool),
    /// Accesses follow no pattern: nothing is fetched that was not asked for, on either side.
    /// Linux: `MADV_RANDOM`.
    Random(bool),
}

/// All that was said of a range: never needed for correctness.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Advice {
    read_mostly: bool,
    random: bool,
    preferred: Option<Location>,
    /// A bit for each of the first 64 devices.
    accessed_by: u64,
}

impl Advice {
    /// No hint.
    pub const NONE: Self = Self { read_mostly: false, random: false, preferred: None, accessed_by: 0 };

    /// What holds after another hint.
    #[must_use]
    pub fn with(mut self, hint: Hint) -> Self {
        match hint {
            Hint::ReadMostly(on) => self.read_mostly = on,
            Hint::PreferredLocation(preferred) => self.preferred = preferred,
            Hint::Random(on) => self.random = on,
            Hint::AccessedBy(device, on) => {
                let bit = bit(device);
                self.accessed_by = if on { self.accessed_by | bit } else { self.accessed_by & !bit };
            }
        }
        self
    }

    /// Whether it is mostly read.
    pub fn is_read_mostly(self) -> bool {
        self.read_mostly
    }

    /// Whether nothing is to be fetched ahead.
    pub fn is_random(self) -> bool {
        self.random
    }

    /// Where it should be.
    pub fn preferred(self) -> Option<Location> {
        self.preferred
    }

    /// Whether this device is going to access it. Devices from the 65th on are not remembered.
    pub fn is_accessed_by(self, device: DeviceNumber) -> bool {
        self.accessed_by & bit(device) != 0
    }
}

fn bit(DeviceNumber(number): DeviceNumber) -> u64 {
    1u64.checked_shl(number.into()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hints_of_one_kind_replace_each_other_and_leave_the_others() {
        let device = DeviceNumber(3);
        let all = [
            Hint::ReadMostly(true),
            Hint::PreferredLocation(Some(Location::Device(device))),
            Hint::AccessedBy(device, true),
            Hint::AccessedBy(DeviceNumber(200), true),
            Hint::Random(true),
        ];
        let advice = all.into_iter().fold(Advice::NONE, Advice::with);
        assert!(advice.is_read_mostly() && advice.is_random() && advice.is_accessed_by(device));
        assert!(!advice.is_accessed_by(DeviceNumber(4)) && !advice.is_accessed_by(DeviceNumber(200)));
        let moved = advice.with(Hint::PreferredLocation(Some(Location::Cpu)));
        assert_eq!((moved.preferred(), moved.is_read_mostly()), (Some(Location::Cpu), true));
        let none = [
            Hint::ReadMostly(false),
            Hint::PreferredLocation(None),
            Hint::AccessedBy(device, false),
            Hint::Random(false),
        ];
        assert_eq!(none.into_iter().fold(moved, Advice::with), Advice::NONE);
    }
}
