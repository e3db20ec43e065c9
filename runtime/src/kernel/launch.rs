//! Launching kernels: arguments, borrows, waiting.

use super::KernelModule;
use super::arrays::{ArrayArgument, ArrayBlock};
use super::error::LaunchError;
use super::execute::{Job, LaunchReport};
use super::fast::PointerArgument;
use super::requests::Work;
use crate::addr::{Access, PageRange, VirtAddr};
use crate::svm::Inner;
use crossbeam_channel::Receiver;
use parking_lot::Mutex;
use std::marker::PhantomData;
use std::sync::Arc;

/// Most workgroups of a launch.
const MAX_WORKGROUPS: u64 = u32::MAX as u64;

/// A kernel, ready to launch. Made by [`Svm::kernel`](crate::Svm::kernel).
pub struct Kernel {
    inner: Arc<Inner>,
    module: Arc<KernelModule>,
    idempotent: bool,
    confined: bool,
}

impl Kernel {
    pub(crate) fn new(inner: Arc<Inner>, module: KernelModule) -> Self {
        // Rewriting may have proven it.
        let idempotent = module.rewritten.is_some_and(|stats| stats.replayable());
        Self { inner, module: Arc::new(module), idempotent, confined: false }
    }

    /// Declares that running a workgroup again, over what it already stored and whatever other workgroups stored meanwhile, gives
    /// the same result. That holds for a kernel that reads nothing the launch writes, and for atomics that may be repeated (minimum,
    /// maximum, or); it does not for additions. The runtime then need not probe before it runs the kernel.
    #[must_use]
    pub fn idempotent(mut self) -> Self {
        self.idempotent = true;
        self
    }

    /// Declares that the kernel stays inside what its launches are given by reference. While all of that is on the device, in
    /// contiguous frames, launches check nothing any more and cost what raw device addresses cost; and they count all of it as
    /// accessed, and what they are given for writing as written. Without effect in live mode, and for launches that are given raw
    /// pointers to anything else. To look for mistakes, open the runtime with `direct_arrays(false)` (`VKSVM_ARRAYS=0`): then every access is checked.
    ///
    /// # Safety
    /// The kernel must access nothing but the objects that its launches are given with [`Launch::read`] and [`Launch::write`] (and their
    /// kin for arrays), and store to the latter only; also where it finds pointers in memory. An address that it computes by adding to one of its
    /// pointer arguments must lie in that argument's object, as with pointers in C. It must not dereference null or dangling pointers: what
    /// is an error without this declaration reads or destroys memory with it.
    #[must_use]
    pub unsafe fn confined(mut self) -> Self {
        self.confined = true;
        self
    }

    /// What the kernel's module says about itself.
    pub fn module(&self) -> &KernelModule {
        &self.module
    }

    /// Starts describing a launch over `grid` workgroups in x, y and z.
    pub fn launch(&self, grid: [u32; 3]) -> Launch<'_> {
        Launch {
            kernel: self,
            grid,
            arguments: Vec::new(),
            pointers: Vec::new(),
            arrays: Vec::new(),
            spans: Vec::new(),
            places: Vec::new(),
            count: 0,
        }
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        self.inner.forget(&self.module);
    }
}

/// Bytes of an object, and how it may be accessed.
type Object = (usize, Access);

/// A launch being described. Arguments are pushed in the order of the kernel's push constants (with the include: its `VKSVM_ARGS`), each at the
/// alignment of its type, as std430 lays them out.
#[must_use = "a launch does nothing until it is run or submitted"]
pub struct Launch<'a> {
    kernel: &'a Kernel,
    grid: [u32; 3],
    arguments: Vec<u8>,
    pointers: Vec<(usize, VirtAddr)>,
    /// Offset among the arguments, start, bytes, access.
    arrays: Vec<(usize, VirtAddr, usize, Access)>,
    /// What the launch was given by reference: start, bytes, access.
    spans: Vec<(VirtAddr, usize, Access)>,
    /// Of pointers: offset among the arguments, start, and what is known of the object there.
    places: Vec<(usize, VirtAddr, Option<Object>)>,
    count: usize,
}

impl<'a> Launch<'a> {
    /// Pushes a pointer to an object that the kernel reads. A slice of no elements is passed as a null pointer.
    pub fn read<T: ?Sized>(self, object: &'a T) -> Self {
        self.push_object(VirtAddr::of(object), size_of_val(object), Access::Read)
    }

    /// Pushes a pointer to an object that the kernel reads and writes. A slice of no elements is passed as a null pointer.
    pub fn write<T: ?Sized>(self, object: &'a mut T) -> Self {
        let bytes = size_of_val(object);
        self.push_object(VirtAddr::of(object), bytes, Access::Write)
    }

    /// Pushes an array that the kernel reads, as a `VksvmArray`. It is brought to the device whole before the kernel starts, and where its
    /// frames are contiguous the kernel's accesses cost what raw addresses cost; if only a part of it is there, or is contiguous, those to that part
    /// cost a comparison more. The kernel must stay inside the array.
    pub fn read_array<T>(self, array: &'a [T]) -> Self {
        self.push_array(VirtAddr::of(array), size_of_val(array), Access::Read)
    }

    /// Pushes an array that the kernel reads and writes, as a `VksvmArray`; see [`read_array`](Self::read_array). All of it counts as written.
    pub fn write_array<T>(self, array: &'a mut [T]) -> Self {
        self.push_array(VirtAddr::of(array), size_of_val(array), Access::Write)
    }

    /// Pushes a raw pointer, which may be null.
    ///
    /// # Safety
    /// What the kernel reaches through it must stay allocated until the launch has ended, and until then no thread may
    /// access it in a way that races with the kernel.
    pub unsafe fn pointer<T: ?Sized>(self, pointer: *const T) -> Self {
        self.push_pointer(VirtAddr::of(pointer), pointer.is_null())
    }

    /// Pushes a plain value.
    pub fn value<T: bytemuck::Pod>(mut self, value: T) -> Self {
        self.push(bytemuck::bytes_of(&value), align_of::<T>());
        self
    }

    fn push_object(mut self, address: VirtAddr, bytes: usize, access: Access) -> Self {
        self.spans.push((address, bytes, access));
        let mut launch = self.push_pointer(address, bytes == 0);
        if let Some(place) = launch.places.last_mut().filter(|_| bytes > 0) {
            place.2 = Some((bytes, access));
        }
        launch
    }

    fn push_pointer(mut self, address: VirtAddr, null: bool) -> Self {
        if null {
            self.push(&0u64.to_ne_bytes(), 8);
        } else {
            self.pointers.push((self.count, address));
            self.push(&address.0.to_ne_bytes(), 8);
            self.places.push((self.arguments.len() - size_of::<u64>(), address, None));
        }
        self
    }

    fn push_array(mut self, start: VirtAddr, bytes: usize, access: Access) -> Self {
        let mut value = ArrayBlock { va: 0, device: 0, extent: bytes as u64 };
        if bytes > 0 {
            value.va = start.0;
            self.pointers.push((self.count, start));
        }
        self.push(bytemuck::bytes_of(&value), 8);
        if bytes > 0 {
            self.spans.push((start, bytes, access));
            self.arrays.push((self.arguments.len() - size_of_val(&value), start, bytes, access));
        }
        self
    }

    fn push(&mut self, bytes: &[u8], align: usize) {
        self.arguments.resize(self.arguments.len().next_multiple_of(align), 0);
        self.arguments.extend_from_slice(bytes);
        self.count += 1;
    }

    /// Runs the launch and waits for its end.
    ///
    /// # Errors
    /// If the launch is badly formed, nothing is run. If the kernel faults fatally it ends early, and what it wrote stays written.
    pub fn run(self) -> Result<LaunchReport, LaunchError> {
        let kernel = self.kernel;
        wait(&self.start()?, &kernel.module.name)
    }

    /// Hands the launch to the executor and returns at once. Launches run in the order of submission.
    ///
    /// # Errors
    /// If the launch is badly formed.
    pub fn submit<'scope>(self, scope: &'scope Scope<'_>) -> Result<Pending<'scope>, LaunchError>
    where
        'a: 'scope,
    {
        let name = self.kernel.module.name.clone();
        let done = self.start()?;
        scope.running.lock().push(done.clone());
        Ok(Pending { done, kernel: name, _scope: PhantomData })
    }

    /// Hands the launch to the executor outside of a scope.
    ///
    /// # Safety
    /// Everything the kernel reaches must stay allocated and unaliased until the launch has ended, also if the returned value is
    /// dropped or forgotten.
    ///
    /// # Errors
    /// If the launch is badly formed.
    pub unsafe fn submit_unscoped(self) -> Result<Pending<'static>, LaunchError> {
        let name = self.kernel.module.name.clone();
        Ok(Pending { done: self.start()?, kernel: name, _scope: PhantomData })
    }

    fn start(self) -> Result<Receiver<Result<LaunchReport, LaunchError>>, LaunchError> {
        let name = || self.kernel.module.name.clone();
        if self.grid.contains(&0) {
            return Err(LaunchError::EmptyGrid { kernel: name(), grid: self.grid });
        }
        let workgroups = self.grid.iter().try_fold(1u64, |product, &n| product.checked_mul(u64::from(n)));
        if workgroups.is_none_or(|workgroups| workgroups > MAX_WORKGROUPS) {
            return Err(LaunchError::GridTooLarge { kernel: name(), grid: self.grid, limit: MAX_WORKGROUPS });
        }
        // A block may end in padding that the last argument does not fill.
        let expected = self.kernel.module.argument_bytes;
        if self.arguments.len() != expected {
            return Err(LaunchError::Arguments { kernel: name(), expected, given: self.arguments.len() });
        }
        let heap = &self.kernel.inner.heap;
        for &(index, address) in &self.pointers {
            if self.kernel.inner.space.home().views.page_of(address).is_none() {
                return Err(LaunchError::NotInHeap { kernel: name(), index, address });
            }
            if heap.allocation_at(address).is_none() && self.kernel.inner.space.mapping_at(address).is_none() {
                return Err(LaunchError::NotAllocated { kernel: name(), index, address });
            }
        }
        let views = &self.kernel.inner.space.home().views;
        // Inside the heap, as was just checked of the start; a slice does not end elsewhere.
        let arrays = self.arrays.iter().filter_map(|&(at, start, bytes, access)| {
            let last = views.page_of(VirtAddr(start.0 + bytes as u64 - 1))?;
            let pages = PageRange::new(views.page_of(start)?, last.plus(1));
            Some(ArrayArgument { at, skew: start.page_offset() as u64, pages, access })
        });
        let arrays = arrays.collect();
        let spans = self.spans.iter().filter(|&&(_, bytes, _)| bytes > 0).filter_map(|&(start, bytes, access)| {
            let last = views.page_of(VirtAddr(start.0 + bytes as u64 - 1))?;
            Some((PageRange::new(views.page_of(start)?, last.plus(1)), access))
        });
        let spans = spans.collect();
        let vmas = self.kernel.inner.space.vmas().read();
        let places = self.places.iter().filter_map(|&(at, address, object)| {
            let page = views.page_of(address)?;
            // What a bare pointer leads to most likely lies around it.
            let pages = match object {
                Some((bytes, _)) => {
                    PageRange::new(page, views.page_of(VirtAddr(address.0 + bytes as u64 - 1))?.plus(1))
                }
                None => vmas.find(page)?.range,
            };
            Some(PointerArgument { at, address, page, pages, access: object.map(|(_, access)| access) })
        });
        let places = places.collect();
        drop(vmas);
        let (sender, done) = crossbeam_channel::bounded(1);
        let job = Job {
            kernel: self.kernel.module.clone(),
            idempotent: self.kernel.idempotent,
            confined: self.kernel.confined,
            grid: self.grid,
            arguments: self.arguments,
            arrays,
            spans,
            places,
            done: sender,
        };
        self.kernel
            .inner
            .send(Work::Launch(job))
            .map_err(|()| LaunchError::Stopped { kernel: self.kernel.module.name.clone() })?;
        Ok(done)
    }
}

fn wait(done: &Receiver<Result<LaunchReport, LaunchError>>, kernel: &str) -> Result<LaunchReport, LaunchError> {
    done.recv().unwrap_or_else(|_| Err(LaunchError::Stopped { kernel: kernel.into() }))
}

/// A launch that was submitted.
#[must_use = "errors of the launch are lost unless it is waited for"]
pub struct Pending<'scope> {
    done: Receiver<Result<LaunchReport, LaunchError>>,
    kernel: String,
    _scope: PhantomData<&'scope ()>,
}

impl Pending<'_> {
    /// Waits for the launch's end.
    ///
    /// # Errors
    /// If the launch failed.
    pub fn wait(self) -> Result<LaunchReport, LaunchError> {
        wait(&self.done, &self.kernel)
    }

    /// Whether [`wait`](Self::wait) would return at once.
    pub fn is_done(&self) -> bool {
        !self.done.is_empty()
    }
}

/// Launches submitted inside a scope have ended when it returns; see [`Svm::scope`](crate::Svm::scope).
pub struct Scope<'env> {
    running: Mutex<Vec<Receiver<Result<LaunchReport, LaunchError>>>>,
    _env: PhantomData<&'env mut &'env ()>,
}

impl Scope<'_> {
    pub(crate) fn run<'env, T>(body: impl for<'scope> FnOnce(&'scope Scope<'env>) -> T) -> T {
        let scope = Scope { running: Mutex::new(Vec::new()), _env: PhantomData };
        // Waits also if the body panics: borrows of running launches end with the scope.
        struct WaitForAll<'a, 'env>(&'a Scope<'env>);
        impl Drop for WaitForAll<'_, '_> {
            fn drop(&mut self) {
                for done in self.0.running.lock().drain(..) {
                    // The result, if nobody took it; or nothing, when the job and its sender are gone.
                    let _ = done.recv();
                }
            }
        }
        let _wait = WaitForAll(&scope);
        body(&scope)
    }
}
