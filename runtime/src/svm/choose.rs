//! What is chosen for the device at hand where the program leaves it open: fault mode, placement, frames; each with the reason in words.

use super::OpenError;
use crate::addr::PAGE_SIZE;
use crate::device::{Device, LiveUnit, MemoryTimes};
use crate::kernel::kept::Kept;
use crate::mm::state::Placement;
use crate::policy::{Habit, agree, fastest};

/// Processors from which on `auto` takes live mode on a device that computes on the CPU: one is the service thread's alone.
pub(super) const AUTO_LIVE_PROCESSORS: usize = 4;

/// How device faults are serviced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FaultMode {
    /// Live where a start-up probe shows that it works and it is known to pay, replay elsewhere. As with [`Live`](Self::Live), this may set
    /// `LP_NUM_THREADS`: on devices that compute on the CPU, where there are four processors or more.
    #[default]
    Auto,
    /// A missing page restarts its workgroup once it is there. Works on every device.
    Replay,
    /// A missing page is waited for inside the kernel, if a start-up probe shows that this works; else replay, and
    /// [`Info::fault_mode`](crate::Info::fault_mode) says why. On llvmpipe this sets `LP_NUM_THREADS`, unless it is set, to leave a
    /// processor to the service thread: open the runtime before starting threads whose C code reads the environment.
    ///
    /// **CPU threads and the running kernel may work on the same data.** A page that is copied belongs to the CPU or to one device for
    /// writing, never to both, and a change of owner orders everything on *that page*: what was stored before it is there after it. Beyond that:
    ///
    /// - *Same word.* An atomic operation of a CPU thread (any ordering) and one of the kernel (device scope: what GLSL's `atomicAdd()` and its like are,
    ///   and `gl_ScopeDevice` of `GL_KHR_memory_scope_semantics`) on the same naturally aligned 32- or 64-bit word are atomic against each other, and
    ///   agree on one order of the word's values. `gl_ScopeWorkgroup` and narrower is not enough.
    /// - *CPU to kernel.* Data stored, then a flag with `Ordering::Release`; the kernel reads the flag with a device-scope atomic, or a
    ///   `volatile` load, and then executes `memoryBarrierBuffer()` (or reads it with `gl_SemanticsAcquire`, `gl_StorageSemanticsBuffer` at device scope): what it loads after
    ///   that, by translating again, is that data, on whatever pages it lies.
    /// - *Kernel to CPU.* Data stored, `memoryBarrierBuffer()`, then the flag with an atomic or `volatile` store (or `gl_SemanticsRelease`); a CPU thread that
    ///   reads the flag with `Ordering::Acquire` reads that data. Between invocations the rules of SPIR-V hold as in any kernel.
    ///
    /// *Not* promised: anything about accesses that are not atomic to the same word from both sides at once; an order between plain stores to different pages
    /// without the barrier; fairness; that a word is seen by who does not ask for it again; and, where pages stay at home ([`Placement::Remote`](crate::Placement::Remote)) on a
    /// device behind a bus, that the device's atomics are atomic against the CPU's (on devices that compute on the CPU they are). A kernel that
    /// waits must call something of `vksvm.glsl`, or access the heap, in its loop, and end the loop when it is poisoned (plain shaders: when rewritten, they do).
    /// In replay mode a kernel sees nothing that the CPU stores during its dispatch.
    ///
    /// *Why that holds:* Vulkan's memory model has no scope that includes the host while a kernel runs (a device-scope operation reaches the
    /// device's invocations; the host's domain is reached by waiting for the queue). So the order comes from the change of owner. The kernel's unit makes its
    /// stores available (release at device scope) before it counts itself out of the epoch; the host, having read that count (acquire), copies the page; the CPU's mapping
    /// comes after. The other way round the entry is published after the copy, and the kernel executes a barrier after it waited for it. What is left to trust is that
    /// device atomics on host-coherent memory are seen by the host and the other way round while a kernel runs: that is what the start-up probe tries. On the CPU's side the
    /// orders are those of Rust and C++20.
    Live,
}

/// The units of live mode, or none for replay; and a line that says why.
pub(super) fn choose_fault_mode(
    mode: FaultMode,
    device: &dyn Device,
    processors: usize,
) -> Result<(Option<LiveUnit>, String), OpenError> {
    let replay = |why: &str| Ok((None, format!("replay: {why}")));
    match mode {
        FaultMode::Replay => return replay("asked for"),
        FaultMode::Auto if !device.info().is_cpu => {
            return replay("live mode has not been measured on such devices; VKSVM_FAULT_MODE=live tries it");
        }
        FaultMode::Auto if processors < AUTO_LIVE_PROCESSORS => {
            return replay("live mode would keep one of few processors for the service thread");
        }
        FaultMode::Auto | FaultMode::Live => {}
    }
    match (device.probe_live(), mode) {
        (Ok(unit), _) => Ok((
            Some(unit),
            format!(
                "live, by {}{}",
                match unit {
                    LiveUnit::Workgroup => "workgroup",
                    LiveUnit::Invocation => "invocation",
                },
                if device.info().host_mapped_frames { "" } else { ", copies on a queue of their own" }
            ),
        )),
        (Err(why), FaultMode::Live) => {
            tracing::warn!("live mode was asked for and does not work here: {why}");
            replay(&format!("live mode does not work here: {why}"))
        }
        (Err(why), _) => replay(&why),
    }
}

/// How the place of pages is chosen.
#[derive(Clone, Copy, Debug)]
pub(super) enum PlacementChoice {
    Fixed(Placement),
    Measured,
}

/// Where pages are to be, and a line that says why.
pub(super) fn choose_placement(choice: PlacementChoice, device: &dyn Device) -> (Habit, String) {
    let fixed = |placement| Habit { placement, ..Habit::default() };
    let copied = |why: &str| (fixed(Placement::Copy), format!("copied: {why}"));
    match choice {
        PlacementChoice::Fixed(Placement::Remote) if device.info().import.is_none() => {
            copied("the device cannot map home pages")
        }
        PlacementChoice::Fixed(Placement::Remote) => (fixed(Placement::Remote), "at home: asked for".into()),
        PlacementChoice::Fixed(Placement::Copy) => copied("asked for"),
        PlacementChoice::Measured => match device.measure_memory() {
            None => copied("the device has memory of its own, or cannot map home pages"),
            Some(Err(error)) => copied(&format!("measuring failed: {error}")),
            Some(Ok(trials)) => {
                let habit = fastest(&trials);
                let what = match habit {
                    Habit { placement: Placement::Remote, .. } => "at home",
                    Habit { sparse_at_home: true, .. } => "copied, but at home what is read here and there",
                    Habit { .. } => "copied",
                };
                (habit, format!("{what}: {}", figures(&trials)))
            }
        },
    }
}

/// What was measured, in words.
fn figures(trials: &[MemoryTimes]) -> String {
    let doubt = if agree(trials) { "" } else { ", though not in every trial" };
    let of = |part: fn(&MemoryTimes) -> u64| {
        let (least, most) = (trials.iter().map(part).min(), trials.iter().map(part).max());
        match (least.unwrap_or(0), most.unwrap_or(0)) {
            (least, most) if least == most => format!("{least} ns"),
            (least, most) => format!("{least} to {most} ns"),
        }
    };
    format!(
        "measured{doubt}, a page: {} at home and {} in frames for all of it, {} for a word at home, {} to copy",
        of(|times| times.home),
        of(|times| times.frames),
        of(|times| times.sparse),
        of(|times| times.copy),
    )
}

/// Whole frames in so many bytes, at least one.
pub(super) fn frames_in(bytes: u64) -> u32 {
    u32::try_from(bytes / PAGE_SIZE as u64).unwrap_or(u32::MAX).max(1)
}

pub(super) fn default_frames(device: &dyn Device) -> u32 {
    let info = device.info();
    let bytes = if info.host_mapped_frames { info.memory_bytes / 2 } else { info.memory_bytes / 5 * 4 };
    u32::try_from(bytes / PAGE_SIZE as u64).unwrap_or(u32::MAX).max(1)
}

/// What was chosen at start, in words, and where modules are kept.
pub(super) struct Chosen {
    pub(super) fault_mode: String,
    pub(super) placement: String,
    pub(super) kept: Kept,
}
