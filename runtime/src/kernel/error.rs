//! What can go wrong with a launch.

use crate::addr::{Access, VirtAddr};
use crate::service::{LostPages, ServiceError};
use std::fmt;

/// Why a kernel's access cannot be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultReason {
    /// A null pointer, or one with a small offset.
    Null,
    /// The address is not in the heap.
    OutsideHeap,
    /// The address is in the heap, where nothing is mapped: freed, or never allocated.
    Unmapped,
    /// A store to read-only memory.
    ReadOnly,
    /// The object runs past the end of its VMA.
    PastEnd,
    /// A miss after the workgroup had stored, in a kernel that may not be run twice.
    Late,
}

/// An access that ended a launch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelFault {
    /// The kernel's name.
    pub kernel: String,
    /// The workgroup, in the launch's grid.
    pub workgroup: [u32; 3],
    /// Index of the invocation in its workgroup.
    pub invocation: u32,
    /// The address.
    pub address: VirtAddr,
    /// What the access wanted.
    pub access: Access,
    /// Bytes of the object; 0 for a scalar or vector.
    pub bytes: u32,
    /// Why it cannot be served.
    pub reason: FaultReason,
    /// Where the access stands in the kernel's source, as `file:line:column`; or which instruction it is, for kernels without debug
    /// information. None for kernels that were compiled with the include.
    pub site: Option<String>,
    /// The nearest live allocation: start and bytes.
    pub nearest: Option<(VirtAddr, u64)>,
}

impl fmt::Display for KernelFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [x, y, z] = self.workgroup;
        write!(
            f,
            "kernel `{}`, workgroup ({x}, {y}, {z}), invocation {}: {}",
            self.kernel, self.invocation, self.access
        )?;
        if self.bytes > 0 {
            write!(f, " of {} bytes", self.bytes)?;
        }
        write!(f, " at {}", self.address)?;
        if let Some(site) = &self.site {
            write!(f, ", in {site}")?;
        }
        f.write_str(": ")?;
        f.write_str(match self.reason {
            FaultReason::Null => "null pointer",
            FaultReason::OutsideHeap => "the address is not in the shared heap",
            FaultReason::Unmapped => "nothing is mapped there (freed, or never allocated)",
            FaultReason::ReadOnly => "the memory is read-only",
            FaultReason::PastEnd => "the object runs past the end of its mapping",
            FaultReason::Late => {
                "a page was missing after the workgroup had stored, and the kernel may not be run twice; declare it idempotent \
                 if it is, or make its addresses independent of what it stores"
            }
        })?;
        match self.nearest {
            Some((start, bytes)) => {
                let end = start.0 + bytes;
                if self.address >= start && self.address.0 < end {
                    write!(
                        f,
                        "; it lies {} bytes into the allocation of {bytes} bytes at {start}",
                        self.address.0 - start.0
                    )
                } else if self.address < start {
                    write!(
                        f,
                        "; {} bytes before the nearest allocation, {bytes} bytes at {start}",
                        start.0 - self.address.0
                    )
                } else {
                    write!(
                        f,
                        "; {} bytes past the end of the nearest allocation, {bytes} bytes at {start}",
                        self.address.0 - end
                    )
                }
            }
            None => write!(f, "; the heap has no allocation"),
        }
    }
}

/// A launch failed. The runtime stays usable unless the device is lost.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The grid has no workgroup.
    #[error("kernel `{kernel}`: the grid {grid:?} has no workgroup; every dimension must be at least 1")]
    EmptyGrid {
        /// The kernel's name.
        kernel: String,
        /// The grid asked for.
        grid: [u32; 3],
    },
    /// The grid has too many workgroups.
    #[error("kernel `{kernel}`: the grid {grid:?} has more than {limit} workgroups; split the launch")]
    GridTooLarge {
        /// The kernel's name.
        kernel: String,
        /// The grid asked for.
        grid: [u32; 3],
        /// The most workgroups a launch may have.
        limit: u64,
    },
    /// The arguments do not fit the kernel's.
    #[error(
        "kernel `{kernel}` takes {expected} bytes of arguments (its push constants, or VKSVM_ARGS) and was given {given}; push them in order, with their exact types"
    )]
    Arguments {
        /// The kernel's name.
        kernel: String,
        /// Bytes that it takes.
        expected: usize,
        /// Bytes pushed.
        given: usize,
    },
    /// A pointer argument does not point into the heap.
    #[error(
        "kernel `{kernel}`, argument {index}: {address} is not in the shared heap; allocate the object with the heap's allocator"
    )]
    NotInHeap {
        /// The kernel's name.
        kernel: String,
        /// Position of the argument.
        index: usize,
        /// Where it points.
        address: VirtAddr,
    },
    /// A pointer argument points at nothing that is allocated.
    #[error("kernel `{kernel}`, argument {index}: nothing is allocated at {address}: it was freed, or never allocated")]
    NotAllocated {
        /// The kernel's name.
        kernel: String,
        /// Position of the argument.
        index: usize,
        /// Where it points.
        address: VirtAddr,
    },
    /// An access that cannot be served.
    #[error("{0}")]
    Fault(Box<KernelFault>),
    /// A page was missing after stores that may not be repeated. What the kernel wrote so far stays written.
    #[error("late fault: {0}")]
    LateFault(Box<KernelFault>),
    /// One workgroup needs more frames than there are.
    #[error(
        "kernel `{kernel}`, workgroup {workgroup:?}: this workgroup alone needs more than the {frames} frames of 4 KiB that the device may use; raise the frame limit or let a workgroup touch fewer pages"
    )]
    OutOfFrames {
        /// The kernel's name.
        kernel: String,
        /// The workgroup, in the launch's grid.
        workgroup: [u32; 3],
        /// The frame limit.
        frames: u32,
    },
    /// One workgroup reads more straddling objects than can be copied.
    #[error(
        "kernel `{kernel}`, workgroup {workgroup:?}: its objects that straddle pages need more than the {bytes} bytes set aside for their copies; align the objects so that they do not straddle, or read fewer of them"
    )]
    OutOfBounce {
        /// The kernel's name.
        kernel: String,
        /// The workgroup, in the launch's grid.
        workgroup: [u32; 3],
        /// Bytes set aside.
        bytes: u32,
    },
    /// The launch took too long and was cancelled. What the kernel wrote so far stays written.
    #[error(
        "kernel `{kernel}` was cancelled after {limit:?}: its invocations waited, or ran, for too long; raise the time limit if it needs more"
    )]
    TimedOut {
        /// The kernel's name.
        kernel: String,
        /// The time limit.
        limit: std::time::Duration,
    },
    /// The kernel followed a pointer without translating it: driver threads touched the heap.
    #[error(
        "kernel `{kernel}` dereferences heap addresses without translating them: the driver's threads touched the heap. Pass every pointer through vksvm_read, vksvm_write or vksvm_atomic"
    )]
    Untranslated {
        /// The kernel's name.
        kernel: String,
    },
    /// Fault service, or the device, failed.
    #[error("kernel `{kernel}`: {source}{}", lost_text(.lost))]
    Service {
        /// The kernel's name.
        kernel: String,
        /// What failed.
        source: ServiceError,
        /// Pages whose newest contents are gone.
        lost: LostPages,
    },
    /// The runtime is shutting down.
    #[error("kernel `{kernel}` was not run: the runtime has stopped")]
    Stopped {
        /// The kernel's name.
        kernel: String,
    },
}

fn lost_text(lost: &LostPages) -> String {
    if lost.0.is_empty() { String::new() } else { format!("; the newest contents of {:?} are lost", lost.0) }
}
