//! How a runtime is opened: its options, and what is made of them.

use super::choose::{
    AUTO_LIVE_PROCESSORS, Chosen, FaultMode, PlacementChoice, choose_fault_mode, choose_placement, default_frames,
    frames_in,
};
use super::environment::{
    budget_from_environment, copy_path_from_environment, fault_mode_from_environment, frames_from_environment,
    placement_from_environment, thrash_from_environment, tracker_from_environment, variable,
};
use super::{OpenError, Svm};
use crate::cache::Cache;
use crate::device::Device;
use crate::device::soft::{SoftDevice, SoftOptions};
use crate::device::vulkan::{CopiesBeside, CopyPath, VulkanDevice, VulkanOptions};
use crate::hmm::{Clock, RealClock};
use crate::kernel::execute::ExecutorOptions;
use crate::kernel::kept::Kept;
use crate::mm::heap::Heap;
use crate::mm::space::AddressSpace;
use crate::mm::state::Placement;
use crate::mm::views::{DEFAULT_RESERVATION, OwnedViews};
use crate::observe::Counters;
use crate::policy::{Habit, ThrashOptions};
use crate::track::{self, TrackerKind};
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
/// How to open the runtime. Options not set here come from the environment, then from defaults.
#[derive(Clone, Debug, Default)]
pub struct Builder {
    device: Option<String>,
    tracker: Option<TrackerKind>,
    heap_bytes: Option<u64>,
    frames: Option<u32>,
    budget: Option<u64>,
    queue_capacity: Option<u32>,
    validation: Option<bool>,
    copy_path: Option<CopyPath>,
    prefetch: Option<bool>,
    placement: Option<PlacementChoice>,
    eviction_policy: Option<bool>,
    direct_arrays: Option<bool>,
    only_checked: bool,
    fault_mode: Option<FaultMode>,
    poll_limit: Option<u32>,
    time_limit: Option<Duration>,
    thrash: Option<ThrashOptions>,
    thrash_clock: Option<GivenClock>,
    cache: Option<Option<PathBuf>>,
    count_translations: bool,
    trap_untranslated: Option<bool>,
    trace_uses: bool,
    other: Option<OtherDevice>,
    shared: Option<SharedHeap>,
}

/// A clock that is not the system's.
#[derive(Clone)]
struct GivenClock(Arc<dyn Clock>);

impl fmt::Debug for GivenClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a clock that shows {:?}", self.0.now())
    }
}

/// A device that is not chosen among Vulkan's.
#[derive(Clone)]
enum OtherDevice {
    Soft(SoftOptions),
    Given(Arc<dyn Device>),
}

impl fmt::Debug for OtherDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Soft(options) => options.fmt(f),
            Self::Given(device) => f.write_str(&device.info().name),
        }
    }
}

/// The heap of another runtime.
#[derive(Clone)]
pub(super) struct SharedHeap {
    pub(super) space: Arc<AddressSpace>,
    pub(super) heap: Heap,
}

impl fmt::Debug for SharedHeap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.heap.fmt(f)
    }
}

impl Builder {
    /// The device to use: its index, or part of its name. Environment: `VKSVM_DEVICE`. Default: the best there is.
    #[must_use]
    pub fn device(mut self, device: impl Into<String>) -> Self {
        self.device = Some(device.into());
        self
    }

    /// Runs Rust functions on the reference device instead of shaders on a Vulkan device; see [`Svm::soft_kernel`].
    #[must_use]
    pub fn soft_device(mut self, options: SoftOptions) -> Self {
        self.other = Some(OtherDevice::Soft(options));
        self
    }

    /// Uses this device, which may be anything that implements [`Device`]. It must not be in use by another runtime.
    #[must_use]
    pub fn with_device(mut self, device: Arc<dyn Device>) -> Self {
        self.other = Some(OtherDevice::Given(device));
        self
    }

    /// Shares the heap of a runtime that is open, so that several devices work on the same pointers. Each page is then
    /// writable on one of them, or on the CPU, at a time, or readable on all. Options that concern heap and tracker
    /// have no effect. The heap lives as long as any of the runtimes, or a handle to it.
    #[must_use]
    pub fn share_heap_with(mut self, svm: &Svm) -> Self {
        self.shared = Some(SharedHeap { space: svm.inner.space.clone(), heap: svm.inner.heap.clone() });
        self
    }

    /// How CPU accesses are caught. Environment: `VKSVM_TRACKER` (`userfaultfd`, `sigsegv` or `auto`). Default: what works best.
    #[must_use]
    pub fn tracker(mut self, tracker: TrackerKind) -> Self {
        self.tracker = Some(tracker);
        self
    }

    /// Bytes of address space to reserve for the heap, a multiple of 2 MiB. Default: 1 TiB; costs nothing until used.
    #[must_use]
    pub fn heap_bytes(mut self, bytes: u64) -> Self {
        self.heap_bytes = Some(bytes);
        self
    }

    /// The most 4 KiB frames of device memory to use. Environment: `VKSVM_FRAMES`. Default: 80 % of the device's memory, half
    /// of it where that is the host's.
    #[must_use]
    pub fn frames(mut self, frames: u32) -> Self {
        self.frames = Some(frames);
        self
    }

    /// The most bytes of device memory that frames may take; see [`Svm::set_budget`]. Environment: `VKSVM_BUDGET`, in bytes, or
    /// with `K`, `M` or `G` behind. With [`frames`](Self::frames), the smaller of the two holds.
    #[must_use]
    pub fn budget(mut self, bytes: u64) -> Self {
        self.budget = Some(bytes);
        self
    }

    /// Entries of the fault queue. Default: 65,536. A full queue costs replays, never work.
    #[must_use]
    pub fn queue_capacity(mut self, entries: u32) -> Self {
        self.queue_capacity = Some(entries);
        self
    }

    /// Runs under the Khronos validation layer. Environment: `VKSVM_VALIDATION=1`. Default: off.
    #[must_use]
    pub fn validation(mut self, on: bool) -> Self {
        self.validation = Some(on);
        self
    }

    /// How pages get into frames. Environment: `VKSVM_COPY` (`auto` or `staging`). Default: `auto`.
    #[must_use]
    pub fn copy_path(mut self, path: CopyPath) -> Self {
        self.copy_path = Some(path);
        self
    }

    /// Maps pages on the device before a kernel asks for them, where recent misses suggest it. Environment:
    /// `VKSVM_PREFETCH=0` switches it off. Default: on.
    #[must_use]
    pub fn prefetch(mut self, on: bool) -> Self {
        self.prefetch = Some(on);
        self
    }

    /// Where pages are that kernels use and for which nothing else says it: copied to the device, or mapped at home where they are.
    /// Where the device cannot map home pages, they are copied. Environment: `VKSVM_PLACEMENT` (`copy`, `remote` or `auto`). Default: measured, see
    /// [`placement_by_measurement`](Self::placement_by_measurement).
    #[must_use]
    pub fn placement(mut self, placement: Placement) -> Self {
        self.placement = Some(PlacementChoice::Fixed(placement));
        self
    }

    /// Has the place where pages are found by measuring, on devices that share memory with the CPU: at home, where kernels are as fast there as
    /// in frames; else they are copied, and those that are read here and there, once, are used at home if that costs less than copying.
    /// Some twenty milliseconds the first time, then kept with kernels ([`cache`](Self::cache)). [`Info::placement`](crate::Info::placement) says what was chosen and why, with the
    /// times. On other devices pages are copied. Environment: `VKSVM_PLACEMENT=auto`. This is the default.
    #[must_use]
    pub fn placement_by_measurement(mut self) -> Self {
        self.placement = Some(PlacementChoice::Measured);
        self
    }

    /// Evicts by forecast, runs launches that are larger than the budget part by part, and writes dirty pages home ahead of need. Without,
    /// victims are taken going round. Environment: `VKSVM_EVICTION=0` switches it off. Default: on.
    #[must_use]
    pub fn eviction_policy(mut self, on: bool) -> Self {
        self.eviction_policy = Some(on);
        self
    }

    /// Passes array arguments by device address where their frames are contiguous and resident. Without, every access is translated
    /// and checked, which finds kernels that leave their arrays. Environment: `VKSVM_ARRAYS=0` switches it off. Default: on.
    #[must_use]
    pub fn direct_arrays(mut self, on: bool) -> Self {
        self.direct_arrays = Some(on);
        self
    }

    /// Runs kernels in variants without the slow path while all that they use is resident. Default: on; without, one sees what that saves.
    #[must_use]
    pub fn fast_passes(mut self, on: bool) -> Self {
        self.only_checked = !on;
        self
    }

    /// Has kernels count their translations ([`Stats::translations`](crate::observe::Stats::translations)). Default: off; it costs an atomic each.
    #[must_use]
    pub fn count_translations(mut self, on: bool) -> Self {
        self.count_translations = on;
        self
    }

    /// Takes the whole heap out of the program's view at every launch, so that a kernel that dereferences host addresses without
    /// translating them is found even on devices that compute on the CPU, wherever pages are placed. For tests of kernels that translate for
    /// themselves; the CPU faults on everything that it touches after a launch. Environment: `VKSVM_TRAP=1`. Default: off.
    ///
    /// Without, such an access is found on those devices only if the CPU has no mapping of the page: the device owns it, or, under
    /// [`validation`](Self::validation), maps it at home and the CPU has not touched it since.
    #[must_use]
    pub fn trap_untranslated(mut self, on: bool) -> Self {
        self.trap_untranslated = Some(on);
        self
    }

    /// Notes which pages each dispatch uses, for [`Svm::take_trace`]; launches are cut into at least 64 dispatches, as far as they have
    /// workgroups. For studying replacement, with frames for everything; costs a look at every frame after each dispatch. Default: off.
    #[must_use]
    pub fn trace_uses(mut self, on: bool) -> Self {
        self.trace_uses = on;
        self
    }

    /// How device faults are serviced. Environment: `VKSVM_FAULT_MODE` (`live`, `replay` or `auto`). Default: `auto`.
    #[must_use]
    pub fn fault_mode(mut self, mode: FaultMode) -> Self {
        self.fault_mode = Some(mode);
        self
    }

    /// In live mode, how often an invocation looks for its page before it gives up and is replayed. Default: 2^26, seconds.
    #[must_use]
    pub fn poll_limit(mut self, polls: u32) -> Self {
        self.poll_limit = Some(polls);
        self
    }

    /// In live mode, how long a launch may take before it is cancelled: waiting invocations give up, those that call into
    /// `vksvm.glsl` are poisoned, and the launch ends with an error. A kernel that loops without such calls, or does not look at
    /// `vksvm_poisoned()`, cannot be stopped. Default: no limit.
    #[must_use]
    pub fn time_limit(mut self, limit: Duration) -> Self {
        self.time_limit = Some(limit);
        self
    }

    /// What to do when CPU and kernels fight over the same 64 KiB; see [`policy::thrash`](crate::policy::thrash). Holds for the heap.
    /// Environment: `VKSVM_THRASH` (`off`, `throttle` or `full`) chooses the policy. Default: [`ThrashOptions::default`].
    #[must_use]
    pub fn thrash(mut self, options: ThrashOptions) -> Self {
        self.thrash = Some(options);
        self
    }

    /// The clock that the thrash policy goes by, so that tests and simulations need not depend on how fast a machine is. Default: the
    /// system's monotonic clock. Holds for the heap.
    #[must_use]
    pub fn thrash_clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.thrash_clock = Some(GivenClock(clock));
        self
    }

    /// Keeps what was made of kernels, by rewriting and by the driver, in this folder between runs; `None` keeps nothing. Environment:
    /// `VKSVM_CACHE`, a folder or `0`. Default: `vksvm/kernels` in the user's cache folder. At most 256 MiB; damaged files count as absent.
    /// A folder that is another user's, or that others may write to, is not used: what is in it runs on the device.
    #[must_use]
    pub fn cache(mut self, folder: Option<PathBuf>) -> Self {
        self.cache = Some(folder);
        self
    }

    /// Opens the runtime.
    ///
    /// # Errors
    /// Says what is missing and what to do about it.
    pub fn build(self) -> Result<Svm, OpenError> {
        let counters = Arc::new(Counters::default());
        let mode = self.fault_mode.map_or_else(fault_mode_from_environment, Ok)?;
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let try_live = match mode {
            FaultMode::Live => true,
            FaultMode::Replay => false,
            FaultMode::Auto => processors >= AUTO_LIVE_PROCESSORS,
        };
        let cache = match self.cache {
            Some(ref folder) => folder.clone().map_or_else(Cache::off, Cache::at),
            None => Cache::from_environment(),
        };
        let validation =
            self.validation.unwrap_or_else(|| variable("VKSVM_VALIDATION").is_some_and(|value| value != "0"));
        let mut vulkan = None;
        let device: Arc<dyn Device> = match self.other {
            Some(OtherDevice::Given(ref device)) => device.clone(),
            Some(OtherDevice::Soft(ref options)) => Arc::new(SoftDevice::new(options)?),
            None => vulkan
                .insert(Arc::new(VulkanDevice::open(&VulkanOptions {
                    device: self.device.clone().or_else(|| variable("VKSVM_DEVICE")),
                    validation,
                    copy_path: self.copy_path.map_or_else(copy_path_from_environment, Ok)?,
                    leave_processor: try_live,
                    copies_beside: match mode {
                        FaultMode::Live => CopiesBeside::AllDevices,
                        // Elsewhere it chooses replay, which needs none.
                        FaultMode::Auto if try_live => CopiesBeside::CpuDevices,
                        FaultMode::Auto | FaultMode::Replay => CopiesBeside::Never,
                    },
                    copy_patience: None,
                    cache: cache.clone(),
                })?))
                .clone(),
        };
        let SharedHeap { space, heap } = match self.shared {
            Some(ref shared) => shared.clone(),
            None => self.new_heap(&counters)?,
        };
        if device.info().is_cpu {
            space.add_driver_threads(&device.driver_threads());
        }
        let frames = match self.frames {
            Some(frames) => frames,
            None => frames_from_environment()?.unwrap_or_else(|| default_frames(device.as_ref())),
        };
        let budget = self.budget.map_or_else(budget_from_environment, |bytes| Ok(Some(bytes)))?;
        let frames = budget.map_or(frames, |bytes| frames.min(frames_in(bytes)));
        let (live, fault_mode) = choose_fault_mode(mode, device.as_ref(), processors)?;
        let (habit, placement) =
            choose_placement(self.placement.map_or_else(placement_from_environment, Ok)?, device.as_ref());
        let habit = Habit { traps: validation && vulkan.is_some() && device.info().is_cpu, ..habit };
        let options = ExecutorOptions {
            queue_capacity: self.queue_capacity.unwrap_or(1 << 16),
            count_translations: self.count_translations,
            trap_untranslated: self
                .trap_untranslated
                .unwrap_or_else(|| variable("VKSVM_TRAP").is_some_and(|value| value != "0")),
            trace_uses: self.trace_uses,
            live,
            spin: processors >= AUTO_LIVE_PROCESSORS,
            poll_limit: self.poll_limit.unwrap_or(1 << 26),
            time_limit: self.time_limit,
            eviction_policy: self
                .eviction_policy
                .unwrap_or_else(|| variable("VKSVM_EVICTION").is_none_or(|value| value != "0")),
            habit,
            prefetch: self.prefetch.unwrap_or_else(|| variable("VKSVM_PREFETCH").is_none_or(|value| value != "0")),
            fast_passes: !self.only_checked,
            direct_arrays: self
                .direct_arrays
                .unwrap_or_else(|| variable("VKSVM_ARRAYS").is_none_or(|value| value != "0")),
        };
        let chosen = Chosen { fault_mode, placement, kept: Kept::new(cache, counters.clone()) };
        Svm::assemble(device, vulkan, SharedHeap { space, heap }, counters, frames, chosen, options)
    }

    fn new_heap(&self, counters: &Arc<Counters>) -> Result<SharedHeap, OpenError> {
        let views = OwnedViews::reserve(self.heap_bytes.unwrap_or(DEFAULT_RESERVATION))?;
        let kind = self.tracker.map_or_else(tracker_from_environment, |kind| Ok(Some(kind)))?;
        // SAFETY: the address space owns the views and stops the tracker before it lets go of them; references into the app
        // view are the heap's to give out, and their holders' accesses are resolved by the address space.
        let tracker = unsafe { track::choose(kind, views.views(), &track::TrackerOptions::default()) }?;
        let thrash = self.thrash.map_or_else(thrash_from_environment, Ok)?;
        let clock = self
            .thrash_clock
            .as_ref()
            .map_or_else(|| Arc::new(RealClock::new()) as Arc<dyn Clock>, |given| given.0.clone());
        let space = AddressSpace::new(views, tracker, counters.clone(), thrash, clock)?;
        Ok(SharedHeap { heap: Heap::new(space.clone()), space })
    }
}
