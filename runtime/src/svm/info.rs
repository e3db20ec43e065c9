//! What runs where and how, for people.

use crate::track::TrackerKind;
use std::fmt;

/// What runs where and how.
#[derive(Clone, Debug)]
pub struct Info {
    /// The device's name.
    pub device: String,
    /// Its driver, with version.
    pub driver: String,
    /// Whether the device computes on the CPU.
    pub is_cpu: bool,
    /// Whether pages are copied straight into frames, without staging.
    pub host_mapped_frames: bool,
    /// What catches CPU accesses.
    pub tracker: TrackerKind,
    /// How, and why this one.
    pub tracker_details: String,
    /// Bytes of the heap's reservation.
    pub heap_bytes: u64,
    /// The most frames of device memory in use.
    pub frames: u32,
    /// How device faults are serviced.
    pub fault_mode: String,
    /// Where pages are that kernels use, and why.
    pub placement: String,
}

impl fmt::Display for Info {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "device     {}", self.device)?;
        writeln!(f, "driver     {}", self.driver)?;
        let copies = if self.host_mapped_frames { "mapped frames" } else { "staging" };
        writeln!(f, "memory     {} frames of 4 KiB at most, copies through {copies}", self.frames)?;
        writeln!(f, "tracker    {}: {}", self.tracker, self.tracker_details)?;
        writeln!(f, "heap       {} GiB reserved", self.heap_bytes >> 30)?;
        writeln!(f, "pages      {}", self.placement)?;
        write!(f, "faults     {}", self.fault_mode)
    }
}
