//! The runtime as a program sees it: open it, get its heap, load kernels, ask what it did.

use crate::addr::{PAGE_SIZE, PageIndex, PageRange};
use crate::cache::Cache;
use crate::device::soft::{SoftContext, SoftDevice, SoftOptions};
use crate::device::vulkan::{CopyPath, VulkanDevice, VulkanOptions};
use crate::device::{Device, DeviceError, FrameUse, LiveUnit, MemoryTimes, layout};
use crate::hmm::{Clock, Mirror, PageEntry, RealClock, read_pages};
use crate::kernel::execute::{Executor, ExecutorOptions};
use crate::kernel::requests::Work;
use crate::kernel::{Kernel, KernelError, KernelModule, Scope};
use crate::mm::copy::SnapshotError;
use crate::mm::heap::Heap;
use crate::mm::ops::{MapRequest, Mapping, OpError};
use crate::mm::space::AddressSpace;
use crate::mm::state::Placement;
use crate::mm::views::{DEFAULT_RESERVATION, OwnedViews, ViewsError};
use crate::mm::vma::Permission;
use crate::observe::{Counters, Stats};
use crate::policy::{Habit, ThrashOptions, ThrashPolicy, fastest};
use crate::service::{DeviceMirror, LostPages};
use crate::track::{self, TrackError, TrackerKind};
use crossbeam_channel::Sender;
use parking_lot::Mutex;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

/// The runtime could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// No Vulkan, no suitable device, or one that cannot be trusted.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The heap could not be reserved.
    #[error(transparent)]
    Heap(#[from] ViewsError),
    /// CPU accesses cannot be caught.
    #[error(transparent)]
    Tracker(#[from] track::TrackerUnavailable),
    /// The tracker did not start.
    #[error(transparent)]
    Track(#[from] TrackError),
    /// An environment variable or option says what cannot be.
    #[error("{name}={value}: {reason}")]
    Option {
        /// The option.
        name: &'static str,
        /// Its value.
        value: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Threads or registrations failed.
    #[error("starting the runtime failed: {0}")]
    Start(String),
}

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
    fault_mode: Option<FaultMode>,
    poll_limit: Option<u32>,
    time_limit: Option<Duration>,
    thrash: Option<ThrashOptions>,
    thrash_clock: Option<GivenClock>,
    cache: Option<Option<PathBuf>>,
    count_translations: bool,
    trap_untranslated: bool,
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
struct SharedHeap {
    space: Arc<AddressSpace>,
    heap: Heap,
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
    /// Where the device cannot map home pages, they are copied. Environment: `VKSVM_PLACEMENT` (`copy`, `remote` or `auto`). Default: copied.
    #[must_use]
    pub fn placement(mut self, placement: Placement) -> Self {
        self.placement = Some(PlacementChoice::Fixed(placement));
        self
    }

    /// Has the place where pages are found by measuring, on devices that share memory with the CPU: at home, where kernels are as fast there as
    /// in frames; else they are copied, and those that are read here and there, once, are used at home if that costs less than copying.
    /// A few milliseconds the first time, then kept with kernels ([`cache`](Self::cache)). [`Info::placement`] says what was chosen and why. Environment: `VKSVM_PLACEMENT=auto`.
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

    /// Has kernels count their translations ([`Stats::translations`]). Default: off; it costs an atomic each.
    #[must_use]
    pub fn count_translations(mut self, on: bool) -> Self {
        self.count_translations = on;
        self
    }

    /// Takes the whole heap out of the program's view at every launch, so that a kernel that dereferences host addresses without
    /// translating them is found even on devices that compute on the CPU. For tests. Default: off.
    #[must_use]
    pub fn trap_untranslated(mut self, on: bool) -> Self {
        self.trap_untranslated = on;
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

    /// Keeps what the driver made of kernels in this folder between runs; `None` keeps nothing. Environment:
    /// `VKSVM_CACHE`, a folder or `0`. Default: `vksvm/kernels` in the user's cache folder. At most 256 MiB; damaged files count as absent.
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
        let mut vulkan = None;
        let device: Arc<dyn Device> = match self.other {
            Some(OtherDevice::Given(ref device)) => device.clone(),
            Some(OtherDevice::Soft(ref options)) => Arc::new(SoftDevice::new(options)?),
            None => vulkan
                .insert(Arc::new(VulkanDevice::open(&VulkanOptions {
                    device: self.device.clone().or_else(|| variable("VKSVM_DEVICE")),
                    validation: self
                        .validation
                        .unwrap_or_else(|| variable("VKSVM_VALIDATION").is_some_and(|value| value != "0")),
                    copy_path: self.copy_path.map_or_else(copy_path_from_environment, Ok)?,
                    leave_processor: try_live,
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
        let options = ExecutorOptions {
            queue_capacity: self.queue_capacity.unwrap_or(1 << 16),
            count_translations: self.count_translations,
            trap_untranslated: self.trap_untranslated,
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
            direct_arrays: self
                .direct_arrays
                .unwrap_or_else(|| variable("VKSVM_ARRAYS").is_none_or(|value| value != "0")),
        };
        let chosen = Chosen { fault_mode, placement };
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

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

fn tracker_from_environment() -> Result<Option<TrackerKind>, OpenError> {
    match variable("VKSVM_TRACKER").as_deref() {
        None | Some("auto") => Ok(None),
        Some(value) => value.parse().map(Some).map_err(|_| OpenError::Option {
            name: "VKSVM_TRACKER",
            value: value.into(),
            reason: "expected userfaultfd, sigsegv or auto".into(),
        }),
    }
}

/// Processors from which on `auto` takes live mode on a device that computes on the CPU: one is the service thread's alone.
const AUTO_LIVE_PROCESSORS: usize = 4;

/// How device faults are serviced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FaultMode {
    /// Live where a start-up probe shows that it works and it is known to pay, replay elsewhere.
    #[default]
    Auto,
    /// A missing page restarts its workgroup once it is there. Works on every device.
    Replay,
    /// A missing page is waited for inside the kernel, if a start-up probe shows that this works; else replay, and
    /// [`Info::fault_mode`] says why. On llvmpipe this sets `LP_NUM_THREADS`, unless it is set, to leave a
    /// processor to the service thread: open the runtime before starting threads whose C code reads the environment.
    Live,
}

fn fault_mode_from_environment() -> Result<FaultMode, OpenError> {
    match variable("VKSVM_FAULT_MODE").as_deref() {
        None | Some("auto") => Ok(FaultMode::Auto),
        Some("replay") => Ok(FaultMode::Replay),
        Some("live") => Ok(FaultMode::Live),
        Some(value) => Err(OpenError::Option {
            name: "VKSVM_FAULT_MODE",
            value: value.into(),
            reason: "expected live, replay or auto".into(),
        }),
    }
}

/// The units of live mode, or none for replay; and a line that says why.
fn choose_fault_mode(
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
                "live, by {}",
                match unit {
                    LiveUnit::Workgroup => "workgroup",
                    LiveUnit::Invocation => "invocation",
                }
            ),
        )),
        (Err(why), FaultMode::Live) => {
            tracing::warn!("live mode was asked for and does not work here: {why}");
            replay(&format!("live mode does not work here: {why}"))
        }
        (Err(why), _) => replay(&why),
    }
}

fn thrash_from_environment() -> Result<ThrashOptions, OpenError> {
    let policy = match variable("VKSVM_THRASH").as_deref() {
        None | Some("full") => ThrashPolicy::Full,
        Some("throttle") => ThrashPolicy::Throttle,
        Some("off") => ThrashPolicy::Off,
        Some(value) => {
            return Err(OpenError::Option {
                name: "VKSVM_THRASH",
                value: value.into(),
                reason: "expected off, throttle or full".into(),
            });
        }
    };
    Ok(ThrashOptions { policy, ..ThrashOptions::default() })
}

fn copy_path_from_environment() -> Result<CopyPath, OpenError> {
    match variable("VKSVM_COPY").as_deref() {
        None | Some("auto") => Ok(CopyPath::Auto),
        Some("staging") => Ok(CopyPath::Staging),
        Some(value) => Err(OpenError::Option {
            name: "VKSVM_COPY",
            value: value.into(),
            reason: "expected auto or staging".into(),
        }),
    }
}

/// How the place of pages is chosen.
#[derive(Clone, Copy, Debug)]
enum PlacementChoice {
    Fixed(Placement),
    Measured,
}

/// Where pages are to be, and a line that says why.
fn choose_placement(choice: PlacementChoice, device: &dyn Device) -> (Habit, String) {
    let fixed = |placement| Habit { placement, sparse_at_home: false };
    let copied = |why: &str| (fixed(Placement::Copy), format!("copied: {why}"));
    match choice {
        PlacementChoice::Fixed(Placement::Remote) if device.info().import.is_none() => {
            copied("the device cannot map home pages")
        }
        PlacementChoice::Fixed(Placement::Remote) => (fixed(Placement::Remote), "at home: asked for".into()),
        PlacementChoice::Fixed(Placement::Copy) => copied("by default; VKSVM_PLACEMENT=auto measures"),
        PlacementChoice::Measured => match device.measure_memory() {
            None => copied("the device has memory of its own, or cannot map home pages"),
            Some(Err(error)) => copied(&format!("measuring failed: {error}")),
            Some(Ok(times)) => {
                let habit = fastest(times);
                let MemoryTimes { frames, home, sparse, copy } = times;
                let what = match habit {
                    Habit { placement: Placement::Remote, .. } => "at home",
                    Habit { sparse_at_home: true, .. } => "copied, but at home what is read here and there",
                    Habit { .. } => "copied",
                };
                let why = format!(
                    "measured, a page: {home} ns at home and {frames} ns in frames for all of it, {sparse} ns for a word at home, {copy} ns to copy"
                );
                (habit, format!("{what}: {why}"))
            }
        },
    }
}

fn placement_from_environment() -> Result<PlacementChoice, OpenError> {
    match variable("VKSVM_PLACEMENT").as_deref() {
        None | Some("copy") => Ok(PlacementChoice::Fixed(Placement::Copy)),
        Some("remote") => Ok(PlacementChoice::Fixed(Placement::Remote)),
        Some("auto") => Ok(PlacementChoice::Measured),
        Some(value) => Err(OpenError::Option {
            name: "VKSVM_PLACEMENT",
            value: value.into(),
            reason: "expected copy, remote or auto".into(),
        }),
    }
}

fn frames_from_environment() -> Result<Option<u32>, OpenError> {
    let Some(value) = variable("VKSVM_FRAMES") else { return Ok(None) };
    match value.parse() {
        Ok(frames) if frames > 0 => Ok(Some(frames)),
        _ => Err(OpenError::Option { name: "VKSVM_FRAMES", value, reason: "expected a number of 4 KiB frames".into() }),
    }
}

/// Whole frames in so many bytes, at least one.
fn frames_in(bytes: u64) -> u32 {
    u32::try_from(bytes / PAGE_SIZE as u64).unwrap_or(u32::MAX).max(1)
}

fn budget_from_environment() -> Result<Option<u64>, OpenError> {
    let Some(value) = variable("VKSVM_BUDGET") else { return Ok(None) };
    let (digits, unit) = match value.char_indices().last() {
        Some((at, 'K' | 'k')) => (&value[..at], 1 << 10),
        Some((at, 'M' | 'm')) => (&value[..at], 1 << 20),
        Some((at, 'G' | 'g')) => (&value[..at], 1 << 30),
        _ => (&value[..], 1),
    };
    match digits.parse::<u64>().ok().and_then(|number| number.checked_mul(unit)).filter(|&bytes| bytes > 0) {
        Some(bytes) => Ok(Some(bytes)),
        None => Err(OpenError::Option {
            name: "VKSVM_BUDGET",
            value,
            reason: "expected a number of bytes, or one with K, M or G behind".into(),
        }),
    }
}

fn default_frames(device: &dyn Device) -> u32 {
    let info = device.info();
    let bytes = if info.host_mapped_frames { info.memory_bytes / 2 } else { info.memory_bytes / 5 * 4 };
    u32::try_from(bytes / PAGE_SIZE as u64).unwrap_or(u32::MAX).max(1)
}

/// What was chosen at start, in words.
struct Chosen {
    fault_mode: String,
    placement: String,
}

/// Everything that lives as long as the runtime is in use.
pub(crate) struct Inner {
    pub(crate) space: Arc<AddressSpace>,
    pub(crate) heap: Heap,
    pub(crate) device: Arc<dyn Device>,
    vulkan: Option<Arc<VulkanDevice>>,
    chosen: Chosen,
    pub(crate) mirror: Arc<DeviceMirror>,
    counters: Arc<Counters>,
    registration: Mutex<Option<Arc<Mirror>>>,
    work: Mutex<Option<Sender<Work>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Inner {
    pub(crate) fn send(&self, work: Work) -> Result<(), ()> {
        self.work.lock().as_ref().ok_or(())?.send(work).map_err(drop)
    }

    pub(crate) fn forget(&self, kernel: &KernelModule) {
        self.device.forget(kernel);
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // No more jobs: the executor finishes what it has, brings all pages home and ends.
        self.work.lock().take();
        if let Some(thread) = self.thread.lock().take()
            && thread.join().is_err()
        {
            tracing::error!("the executor panicked");
        }
        if let Some(registration) = self.registration.lock().take().and_then(Arc::into_inner)
            && let Err(error) = registration.unregister()
        {
            tracing::error!("unregistering the mirror: {error}");
        }
        self.space.remove_driver_threads(&self.device.driver_threads());
        self.space.retire_device(self.mirror.number());
        self.space.thrash().remove_device(self.device.info().import.is_some());
    }
}

/// Shared virtual memory on one device.
///
/// Closing it (dropping the value and its kernels) brings all pages home; memory of its [`Heap`] stays usable by the CPU for as
/// long as the heap's handles live.
pub struct Svm {
    pub(crate) inner: Arc<Inner>,
}

impl Svm {
    /// Opens the runtime with options from the environment.
    ///
    /// # Errors
    /// Says what is missing and what to do about it.
    #[allow(clippy::new_ret_no_self)]
    pub fn new() -> Result<Self, OpenError> {
        Self::builder().build()
    }

    /// Starts choosing options.
    pub fn builder() -> Builder {
        Builder::default()
    }

    fn assemble(
        device: Arc<dyn Device>,
        vulkan: Option<Arc<VulkanDevice>>,
        SharedHeap { space, heap }: SharedHeap,
        counters: Arc<Counters>,
        frames: u32,
        chosen: Chosen,
        options: ExecutorOptions,
    ) -> Result<Self, OpenError> {
        let number = space
            .new_device()
            .ok_or_else(|| OpenError::Start("256 devices have used this heap; open a new one".into()))?;
        let name = device.info().name.clone();
        let mirror =
            Arc::new(DeviceMirror::new(device.clone(), space.home().clone(), counters.clone(), number, frames)?);
        let registration = Mirror::register(space.notifiers(), mirror.owner(), name, mirror.clone())
            .map_err(|error| OpenError::Start(error.to_string()))?;
        let registration = Arc::new(registration);
        let (work, receiver) = crossbeam_channel::unbounded();
        let executor = Executor::new(
            space.clone(),
            heap.clone(),
            mirror.clone(),
            registration.clone(),
            counters.clone(),
            options,
            receiver,
        )?;
        let thread = std::thread::Builder::new()
            .name("vksvm-executor".into())
            .spawn(move || {
                // The executor services faults: it must not touch tracked memory (I1).
                let _fault_path = track::FaultPathGuard::enter();
                crate::prompt::make_prompt();
                executor.run();
            })
            .map_err(|error| OpenError::Start(error.to_string()))?;
        space.thrash().add_device(device.info().import.is_some());
        Ok(Self {
            inner: Arc::new(Inner {
                space,
                heap,
                device,
                vulkan,
                chosen,
                mirror,
                counters,
                registration: Mutex::new(Some(registration)),
                work: Mutex::new(Some(work)),
                thread: Mutex::new(Some(thread)),
            }),
        })
    }

    /// The shared heap. The handle is cheap to clone and is an allocator.
    pub fn heap(&self) -> Heap {
        self.inner.heap.clone()
    }

    /// Maps `bytes` (a multiple of 4096) of fresh pages, which read as zeros, for the program to own: whole pages whose
    /// permissions can be changed and which can be cut, moved and discarded.
    ///
    /// # Errors
    /// If `bytes` is zero or not whole pages, or the heap has no room.
    pub fn map(&self, bytes: usize, permission: Permission) -> Result<Mapping, OpError> {
        self.map_as(&MapRequest::new(bytes as u64, permission))
    }

    /// As [`map`](Self::map), with alignment, place, hints or name.
    ///
    /// # Errors
    /// As [`map`](Self::map).
    pub fn map_as(&self, request: &MapRequest) -> Result<Mapping, OpError> {
        Mapping::new(&self.inner.space, request)
    }

    /// A copy of `values` as they were at one moment during the call, whoever writes them meanwhile: CPU threads, or kernels in
    /// flight. No store that came before another, on one thread, is missing if the other is there. What devices wrote comes
    /// home first.
    ///
    /// Slices passed to launches are the other meaning of a pointer, the coherent view; see [`mm::copy`](crate::mm::copy).
    /// A reference may be passed where a pointer is asked for; while others write, take a raw pointer, which is not followed.
    /// Stores to those pages fault once afterwards.
    ///
    /// # Errors
    /// If `values` do not lie in this heap, where something is mapped.
    pub fn snapshot_of<T: bytemuck::AnyBitPattern>(&self, values: *const [T]) -> Result<Vec<T>, SnapshotError> {
        self.inner.space.snapshot_of(values)
    }

    /// What the device has mapped of `pages`, one entry each, and in how large leaves; home's side of it is
    /// [`HomeWalk`](crate::mm::walk::HomeWalk).
    pub fn device_mappings(&self, pages: PageRange, entries: &mut Vec<PageEntry>) {
        read_pages(self.inner.mirror.as_ref(), pages, entries);
    }

    /// The address space below the heap: VMAs, notifiers, page states.
    pub fn address_space(&self) -> &Arc<AddressSpace> {
        &self.inner.space
    }

    /// Loads a kernel from SPIR-V; `name` is for messages. The kernel is a plain compute shader that follows pointers
    /// (`buffer_reference` in GLSL), which is [rewritten](crate::kernel::rewrite), or was compiled with `vksvm.glsl`.
    ///
    /// # Safety
    /// The module must be valid SPIR-V for Vulkan 1.2. With `vksvm.glsl`, it must access the heap only through what that returns.
    /// It must write only to objects that its launches are given for writing or that are reachable from these, read only likewise, and not race with
    /// itself in ways that Vulkan leaves undefined.
    ///
    /// # Errors
    /// If the module cannot be read, cannot be rewritten, needs more than the device offers, or is refused by the
    /// driver.
    pub unsafe fn kernel(&self, name: &str, spirv: &[u8]) -> Result<Kernel, KernelError> {
        self.ready(KernelModule::new(name, spirv, self.inner.device.info().push_constant_bytes)?)
    }

    /// A kernel that is a Rust function, for a runtime opened with [`Builder::soft_device`]. It is called once for every
    /// invocation; `local_size` is the workgroup's size and `argument_bytes` that of the structure it reads its arguments from.
    ///
    /// # Safety
    /// As for [`kernel`](Self::kernel): it writes only, through [`SoftContext`], to objects that its launches are given for writing
    /// or that are reachable from these, and reads only likewise. It does not touch the heap in any other way.
    ///
    /// # Errors
    /// If it needs more than the device offers, or the device runs shaders.
    pub unsafe fn soft_kernel(
        &self,
        name: &str,
        local_size: [u32; 3],
        argument_bytes: usize,
        function: impl Fn(&mut SoftContext<'_>) + Send + Sync + 'static,
    ) -> Result<Kernel, KernelError> {
        self.ready(KernelModule::soft(name, local_size, argument_bytes, Arc::new(function)))
    }

    /// Checks a module against the device's limits and has the device prepare it.
    fn ready(&self, module: KernelModule) -> Result<Kernel, KernelError> {
        let name = &module.name;
        let info = self.inner.device.info();
        let fits = module.local_size.iter().zip(info.workgroup_size).all(|(&size, limit)| size <= limit);
        let invocations = module.local_size.iter().map(|&size| u64::from(size)).product::<u64>();
        let empty = module.local_size.contains(&0);
        if !fits || empty || invocations > u64::from(info.workgroup_invocations) {
            return Err(KernelError::WorkgroupTooLarge {
                kernel: name.clone(),
                size: module.local_size,
                limit: info.workgroup_size,
                invocations: info.workgroup_invocations,
            });
        }
        let room = info.push_constant_bytes - layout::LAUNCH_BYTES;
        if module.argument_bytes > room {
            return Err(KernelError::TooManyArguments {
                kernel: name.clone(),
                bytes: module.argument_bytes,
                limit: room,
            });
        }
        self.inner.device.prepare(&module, layout::variant::IDEMPOTENT | layout::variant::LINEAR)?;
        Ok(Kernel::new(self.inner.clone(), module))
    }

    /// Runs `body` with a scope in which launches can be submitted; returns when all of them have ended.
    pub fn scope<'env, T>(&'env self, body: impl for<'scope> FnOnce(&'scope Scope<'env>) -> T) -> T {
        Scope::run(body)
    }

    /// Totals since the runtime was opened.
    pub fn stats(&self) -> Stats {
        self.inner.counters.snapshot()
    }

    /// Changes the budget: the most bytes of device memory that frames may take from now on, at least one page. Where it shrinks, pages
    /// are evicted and their memory is given back before this returns; it waits for dispatches in flight. What the
    /// device itself says is there for this process bounds it too. Not counted are page table, staging buffers and the like.
    pub fn set_budget(&self, bytes: u64) {
        self.inner.mirror.set_frame_limit(frames_in(bytes));
    }

    /// Frames of device memory: in use, taken, allowed.
    pub fn frames(&self) -> FrameUse {
        self.inner.mirror.frames()
    }

    /// The pages that dispatches used since this was called last, a list for each; see [`Builder::trace_uses`].
    pub fn take_trace(&self) -> Vec<Vec<PageIndex>> {
        std::mem::take(&mut *self.inner.mirror.trace.lock())
    }

    /// Pages whose newest contents were lost with the device; empty while all is well.
    pub fn lost(&self) -> LostPages {
        self.inner.mirror.lost()
    }

    /// The device itself, for plain Vulkan work beside the shared heap; `None` on other devices.
    pub fn vulkan(&self) -> Option<&Arc<VulkanDevice>> {
        self.inner.vulkan.as_ref()
    }

    /// Bytes of page table that the device holds for the heap, for reports on what mirroring costs.
    pub fn table_bytes(&self) -> usize {
        self.inner.mirror.table_bytes()
    }

    /// What the validation layers said so far; empty without them.
    pub fn validation_messages(&self) -> Vec<String> {
        self.inner.device.validation_messages()
    }

    /// What runs where and how.
    pub fn info(&self) -> Info {
        let device = self.inner.device.info().clone();
        Info {
            device: device.name,
            driver: device.driver,
            is_cpu: device.is_cpu,
            host_mapped_frames: device.host_mapped_frames,
            tracker: self.inner.space.tracker().kind(),
            tracker_details: self.inner.space.tracker().describe(),
            heap_bytes: u64::from(self.inner.space.home().views.pages()) * PAGE_SIZE as u64,
            frames: self.inner.mirror.frames().limit,
            fault_mode: self.inner.chosen.fault_mode.clone(),
            placement: self.inner.chosen.placement.clone(),
        }
    }
}

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
