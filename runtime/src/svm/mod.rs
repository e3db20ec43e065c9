//! The runtime as a program sees it: open it, get its heap, load kernels, ask what it did.

mod builder;
mod choose;
mod environment;
mod info;

pub use builder::Builder;
pub use choose::FaultMode;
pub use info::Info;

use crate::addr::{PAGE_SIZE, PageIndex, PageRange};
use crate::device::soft::SoftContext;
use crate::device::vulkan::VulkanDevice;
use crate::device::{Device, DeviceError, FrameUse, layout};
use crate::hmm::{Mirror, PageEntry, read_pages};
use crate::kernel::execute::{Executor, ExecutorOptions};
use crate::kernel::requests::Work;
use crate::kernel::{Kernel, KernelError, KernelModule, Scope};
use crate::mm::copy::SnapshotError;
use crate::mm::heap::Heap;
use crate::mm::ops::{MapRequest, Mapping, OpError};
use crate::mm::space::AddressSpace;
use crate::mm::views::ViewsError;
use crate::mm::vma::Permission;
use crate::observe::{Counters, Stats};
use crate::scarce::ask;
use crate::service::{DeviceMirror, LostPages};
use crate::track::{self, TrackError};
use builder::SharedHeap;
use choose::{Chosen, frames_in};
use crossbeam_channel::Sender;
use parking_lot::Mutex;
use rustix::io::Errno;
use std::sync::Arc;
use std::thread::JoinHandle;

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
        let no_thread = |error: std::io::Error| {
            OpenError::Start(format!("no thread for the executor: {error}. Raise the limit of threads (ulimit -u)"))
        };
        ask("starting the executor", Errno::AGAIN).map_err(|errno| no_thread(errno.into()))?;
        let thread = std::thread::Builder::new()
            .name("vksvm-executor".into())
            .spawn(move || {
                // The executor services faults: it must not touch tracked memory (I1).
                let _fault_path = track::FaultPathGuard::enter();
                crate::prompt::make_prompt();
                executor.run();
            })
            .map_err(no_thread)?;
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

    /// Loads a kernel from SPIR-V; `name` is for messages, and says which it is of several compute entry points. The kernel is a plain compute shader that follows pointers
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
        let push_bytes = self.inner.device.info().push_constant_bytes;
        self.ready(KernelModule::kept(name, spirv, push_bytes, self.inner.chosen.kept.clone())?)
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
