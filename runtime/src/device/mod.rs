//! The device side: what a device must offer, and what the runtime keeps for it.
//!
//! [`Device`] is the whole of what a port has to write: memory that both sides see, slabs of frames, copies
//! and dispatches. The page table, the fault queue and the frame pool are plain data structures over that
//! memory and are the same for every device.

mod commands;
mod frames;
pub mod layout;
mod queue;
pub mod soft;
mod stream;
mod table;
pub mod vulkan;

pub use commands::{CommandError, Commands, Seen};
pub use frames::{FramePool, FrameUse};
pub use queue::{Drained, FaultQueue};
pub use table::{PageTable, frame_of};

use crate::addr::DeviceAddress;
use crate::kernel::KernelModule;
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::Duration;

/// What a device is and can do.
#[derive(Clone, Debug)]
pub struct DeviceInfo {
    /// The device's name as its driver gives it.
    pub name: String,
    /// Driver name and version.
    pub driver: String,
    /// Whether it runs on the CPU.
    pub is_cpu: bool,
    /// Whether frames are mapped by the host, so that pages are copied straight in.
    pub host_mapped_frames: bool,
    /// Whether home memory can be imported, so that kernels reach home pages themselves.
    pub import: Option<HostImport>,
    /// Bytes of memory that frames may take.
    pub memory_bytes: u64,
    /// Bytes of push constants.
    pub push_constant_bytes: usize,
    /// Largest number of invocations of a workgroup.
    pub workgroup_invocations: u32,
    /// Largest workgroup, by dimension.
    pub workgroup_size: [u32; 3],
    /// Largest dispatch in x and y, in workgroups.
    pub dispatch: [u32; 2],
}

/// What a device says about its memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryBudget {
    /// Bytes that this process may use.
    pub bytes: u64,
    /// Bytes that it uses.
    pub used: u64,
}

/// What was measured of a device that shares memory with the CPU: nanoseconds for each page of 4 KiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryTimes {
    /// A kernel reads and writes all of it in a frame.
    pub frames: u64,
    /// The same at home.
    pub home: u64,
    /// A kernel changes one word of it at home, as of many pages.
    pub sparse: u64,
    /// It is copied.
    pub copy: u64,
}

impl MemoryTimes {
    /// Trials as bytes, to be kept.
    pub(crate) fn encode(trials: &[Self]) -> Vec<u8> {
        trials.iter().flat_map(|it| [it.frames, it.home, it.sparse, it.copy]).flat_map(u64::to_le_bytes).collect()
    }

    /// What was kept, if it is that.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Vec<Self>> {
        let (trials, []) = bytes.as_chunks::<32>() else { return None };
        let trials = trials.iter().map(|trial| {
            let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|byte| trial[8 * at + byte]));
            let [frames, home, sparse, copy] = std::array::from_fn(word);
            (frames > 0 && home > 0).then_some(Self { frames, home, sparse, copy })
        });
        trials.collect::<Option<Vec<_>>>().filter(|trials| !trials.is_empty())
    }
}

/// How a device imports memory of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostImport {
    /// Pages that are imported together, a power of two.
    pub window_pages: u32,
    /// Whether imported memory follows the host's mapping, page by page. Where it does not, the pages of the moment are pinned,
    /// and an import over pages that were given back since is stale.
    pub follows: bool,
}

/// A device operation failed.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// No Vulkan loader, or it does not start.
    #[error(
        "no usable Vulkan loader: {0}. Install one (Debian: libvulkan1 and mesa-vulkan-drivers) or run through `cargo xtask`"
    )]
    NoLoader(String),
    /// No device that can be used; says why for each.
    #[error("no suitable Vulkan device{}vksvm needs Vulkan 1.2 with bufferDeviceAddress, shaderInt64, scalarBlockLayout and timelineSemaphore", list(.0))]
    NoDevice(Vec<String>),
    /// The driver is known, or was found, to compute wrong results.
    #[error(
        "{device} cannot be trusted: {reason}. Use another driver (VKSVM_DEVICE selects one, `cargo xtask driver` sets one up)"
    )]
    BrokenDriver {
        /// The device's name.
        device: String,
        /// What was found.
        reason: String,
    },
    /// The device has no memory left for what was asked.
    #[error(
        "out of device memory: {what} needs {bytes} bytes. Free heap memory, lower the frame limit, or use a device with more memory"
    )]
    OutOfMemory {
        /// What the memory was for.
        what: &'static str,
        /// How much was asked for.
        bytes: u64,
    },
    /// The device is lost; nothing more can be run on it.
    #[error("the device is lost ({0}); the heap stays readable, create a new Svm to go on")]
    Lost(String),
    /// A kernel could not be made into a pipeline.
    #[error("the driver refused kernel `{kernel}`: {reason}")]
    Pipeline {
        /// The kernel's name.
        kernel: String,
        /// What the driver said.
        reason: String,
    },
    /// Any other failed call.
    #[error("{call} failed: {reason}")]
    Call {
        /// The call.
        call: &'static str,
        /// What it returned.
        reason: String,
    },
}

fn list(reasons: &[String]) -> String {
    if reasons.is_empty() {
        return ": none is present; ".into();
    }
    format!(":\n{}", reasons.iter().map(|reason| format!("  {reason}\n")).collect::<String>())
}

/// Memory that host and device both read and write, coherently. Freed on drop.
pub trait SharedMemory: Send + Sync {
    /// Start of the memory on the host; aligned to at least 64 bytes.
    fn host(&self) -> NonNull<u8>;
    /// Start of the memory on the device; aligned to at least 64 bytes.
    fn address(&self) -> DeviceAddress;
    /// Size in bytes.
    fn bytes(&self) -> usize;
}

/// A slab of frames. Freed on drop.
pub trait Slab: Send + Sync {
    /// Start on the device, aligned to a page.
    fn address(&self) -> DeviceAddress;
    /// Size in bytes, a multiple of a page.
    fn bytes(&self) -> usize;
}

/// Home memory that was imported. Given back on drop.
pub trait HomeWindow: Send + Sync {
    /// Where kernels find its first byte.
    fn address(&self) -> DeviceAddress;
}

/// A copy between home pages and frames. Both sides are contiguous.
#[derive(Clone, Copy, Debug)]
pub struct PageCopy {
    /// The home side, in the alias.
    pub host: *mut u8,
    /// The frame side; wholly inside one slab.
    pub device: DeviceAddress,
    /// Bytes, a multiple of a page.
    pub bytes: usize,
}

// SAFETY: a description of a copy; the pointer is only followed by `Device::copy_in` and `copy_out`, whose
// callers promise that the memory is theirs for the time of the call.
unsafe impl Send for PageCopy {}
// SAFETY: as above.
unsafe impl Sync for PageCopy {}

/// One dispatch of a kernel over part of a launch's work list.
#[derive(Debug)]
pub struct Dispatch<'a> {
    /// The kernel.
    pub kernel: &'a KernelModule,
    /// [`layout::variant`] bits.
    pub variant: u32,
    /// Launch block and arguments.
    pub push: &'a [u8],
    /// Workgroups to start in x and y.
    pub groups: [u32; 2],
}

/// Which invocations move over together in live mode: whoever cannot run while another waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LiveUnit {
    /// A workgroup: its subgroups run one after the other on one thread, their invocations in lockstep.
    Workgroup,
    /// Each invocation on its own: all of them are scheduled independently.
    Invocation,
}

/// Access to shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SharedUse {
    /// Mostly written by the host and read by kernels: page table, work lists.
    HostWrites,
    /// Mostly written by kernels and read by the host: fault queue, replay map.
    HostReads,
}

/// What a port to a new device has to offer. Calls may come from several threads.
pub trait Device: Send + Sync {
    /// What it is.
    fn info(&self) -> &DeviceInfo;

    /// Takes zeroed memory that both sides see.
    fn shared_memory(&self, bytes: usize, usage: SharedUse) -> Result<Box<dyn SharedMemory>, DeviceError>;

    /// Takes a slab of frames; contents are undefined.
    fn slab(&self, bytes: usize) -> Result<Arc<dyn Slab>, DeviceError>;

    /// How much memory there is for this process at the moment, if the device tells.
    fn memory_budget(&self) -> Option<MemoryBudget> {
        None
    }

    /// How long kernels take for memory in frames and at home, where both are the same memory; nothing where they are not, or home memory cannot be
    /// imported. Trials one after the other, measured in some twenty milliseconds or kept from an earlier run.
    fn measure_memory(&self) -> Option<Result<Vec<MemoryTimes>, DeviceError>> {
        None
    }

    /// Lets kernels reach `bytes` of the host's memory from `host` on, coherently; both are multiples of the window that
    /// [`DeviceInfo::import`] names, but for the last.
    ///
    /// # Safety
    /// The memory must stay mapped for reading and writing while the window lives.
    unsafe fn import(&self, host: NonNull<u8>, bytes: usize) -> Result<Arc<dyn HomeWindow>, DeviceError> {
        let _ = (host, bytes);
        Err(DeviceError::Call { call: "import", reason: "not supported by this device".into() })
    }

    /// Copies home pages to frames; when it returns, later dispatches see the data.
    ///
    /// # Safety
    /// Every `host` must be readable and every `device` range inside a live slab that no dispatch in flight
    /// and no other copy uses, for the time of the call.
    unsafe fn copy_in(&self, copies: &[PageCopy]) -> Result<(), DeviceError>;

    /// Copies frames to home pages, as all dispatches that have been waited for left them.
    ///
    /// # Safety
    /// As for [`Device::copy_in`], with `host` writable.
    unsafe fn copy_out(&self, copies: &[PageCopy]) -> Result<(), DeviceError>;

    /// Fills frames with zeros, as [`Device::copy_in`] does; `host` is not used.
    ///
    /// # Safety
    /// As for [`Device::copy_in`].
    unsafe fn fill_zero(&self, fills: &[PageCopy]) -> Result<(), DeviceError>;

    /// Where the host finds `bytes` bytes of frames that start at `device`, if it can reach them. What it reads there is what
    /// all dispatches that have been waited for left.
    fn host_frames(&self, device: DeviceAddress, bytes: usize) -> Option<NonNull<u8>> {
        let _ = (device, bytes);
        None
    }

    /// Runs a dispatch and waits for its end. Host writes to shared memory made before are visible to it, and
    /// its writes to shared memory are visible to the host after. Returns the time it took.
    fn run(&self, dispatch: &Dispatch<'_>) -> Result<Duration, DeviceError>;

    /// Whether the device can take part in live mode, and in which units its invocations move over; otherwise why not. Found by
    /// running bounded probes, so it may take milliseconds.
    fn probe_live(&self) -> Result<LiveUnit, String> {
        Err("the device cannot start a dispatch without waiting for it".into())
    }

    /// Has `give_up` called if a copy hangs behind a kernel that runs: it tells kernels to give up. The last call counts: each runtime that uses the
    /// device makes one. For devices whose copies do not go through the host alone.
    fn on_stall(&self, give_up: Box<dyn Fn() + Send + Sync>) {
        let _ = give_up;
    }

    /// Starts a dispatch without waiting for its end; one at a time. Only on devices whose `probe_live` succeeds.
    fn start(&self, dispatch: &Dispatch<'_>) -> Result<(), DeviceError> {
        let _ = dispatch;
        Err(DeviceError::Call { call: "start", reason: "not supported by this device".into() })
    }

    /// Waits up to `patience` for the dispatch that was started; true once it has ended.
    fn ended(&self, patience: Duration) -> Result<bool, DeviceError> {
        let _ = patience;
        Ok(true)
    }

    /// Makes the kernel's variant ready to run, so that a bad module fails early.
    fn prepare(&self, kernel: &KernelModule, variant: u32) -> Result<(), DeviceError>;

    /// Lets go of what was kept for a kernel that will not run again.
    fn forget(&self, kernel: &KernelModule);

    /// What validation layers said so far; empty without them.
    fn validation_messages(&self) -> Vec<String> {
        Vec::new()
    }

    /// Kernel thread ids of the driver's own threads, for a device that computes on the CPU.
    fn driver_threads(&self) -> Vec<u32> {
        Vec::new()
    }
}
