//! The kernels, and small pieces of plain Vulkan that several benches use.

use anyhow::{Context, Result};
use std::sync::Arc;
use vksvm::device::vulkan::{RawBuffer, RawCommand, RawKernel, RawMemory, RawStream, VulkanDevice};
use vksvm::{Kernel, Svm};

/// A module of `bench/shaders`.
#[macro_export]
macro_rules! spirv {
    ($name:literal) => {
        include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/shaders/spv/", $name, ".spv")).as_slice()
    };
}

/// Invocations of a workgroup of the streaming kernels.
pub(crate) const STREAM_GROUP: u32 = 256;
/// Invocations of a workgroup of the kernels that follow pointers.
pub(crate) const WALK_GROUP: u32 = 64;

/// Loads a kernel that may be replayed as it is.
pub(crate) fn idempotent(svm: &Svm, name: &str, spirv: &[u8]) -> Result<Kernel> {
    // SAFETY: the benches' kernels are compiled from bench/shaders, access the heap through the include only and
    // read and write what their launches name.
    Ok(unsafe { svm.kernel(name, spirv) }?.idempotent())
}

/// Loads a kernel whose stores must not be repeated.
pub(crate) fn once(svm: &Svm, name: &str, spirv: &[u8]) -> Result<Kernel> {
    // SAFETY: as in `idempotent`.
    Ok(unsafe { svm.kernel(name, spirv) }?)
}

/// Plain Vulkan on the runtime's device.
pub(crate) struct Raw {
    pub(crate) device: Arc<VulkanDevice>,
    pub(crate) stream: RawStream,
}

impl Raw {
    pub(crate) fn new(svm: &Svm) -> Result<Self> {
        let device = svm.vulkan().expect("benches run on a Vulkan device").clone();
        Ok(Self { stream: device.raw_stream()?, device })
    }

    /// A kernel that takes `push` bytes of push constants.
    pub(crate) fn kernel(&self, name: &str, spirv: &[u8], push: usize) -> Result<RawKernel> {
        // SAFETY: compiled by glslc from bench/shaders.
        Ok(unsafe { self.device.raw_kernel(name, spirv, push) }?)
    }

    /// Memory of the device that the host sees, holding `contents`: what a program has that copied its data ahead of time.
    pub(crate) fn buffer_with<T: bytemuck::NoUninit>(&self, contents: &[T]) -> Result<RawBuffer> {
        let bytes: &[u8] = bytemuck::cast_slice(contents);
        let buffer = self.device.raw_buffer(bytes.len(), RawMemory::Device)?;
        let Some(host) = buffer.host() else { return self.uploaded(bytes, buffer) };
        // SAFETY: the buffer is new, mapped and of this size.
        unsafe { host.as_ptr().copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        Ok(buffer)
    }

    fn uploaded(&self, bytes: &[u8], buffer: RawBuffer) -> Result<RawBuffer> {
        let staging = self.device.raw_buffer(bytes.len(), RawMemory::Upload)?;
        let host = staging.host().context("upload memory is mapped")?;
        // SAFETY: as above.
        unsafe { host.as_ptr().copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        let mut stream = self.device.raw_stream()?;
        // SAFETY: both buffers have this size and live until the wait below.
        unsafe {
            stream.submit(&[RawCommand::Copy { from: (&staging, 0), to: (&buffer, 0), bytes: bytes.len() as u64 }])
        }?;
        stream.wait()?;
        Ok(buffer)
    }

    /// Zeroed memory that the device writes and the host reads.
    pub(crate) fn results(&self, bytes: usize) -> Result<RawBuffer> {
        let buffer = self.device.raw_buffer(bytes, RawMemory::Readback)?;
        let host = buffer.host().context("readback memory is mapped")?;
        // SAFETY: new, mapped, of this size.
        unsafe { host.as_ptr().write_bytes(0, bytes) };
        Ok(buffer)
    }

    /// Runs a kernel and waits for it.
    ///
    /// # Safety
    /// What the push constants point to must be the kernel's to access, and large enough.
    pub(crate) unsafe fn run(&mut self, kernel: &RawKernel, push: &[u8], groups: u32) -> Result<()> {
        // SAFETY: the caller's promise; waited for below.
        unsafe { self.stream.submit(&[RawCommand::Dispatch { kernel, push, groups: [groups, 1, 1] }]) }?;
        Ok(self.stream.wait()?)
    }
}

/// The contents of a mapped buffer.
///
/// # Safety
/// The device must not be writing it.
pub(crate) unsafe fn contents<T: bytemuck::AnyBitPattern>(buffer: &RawBuffer) -> &[T] {
    let host = buffer.host().expect("the buffer is mapped");
    // SAFETY: mapped memory of that size, aligned to a page; the caller's promise.
    unsafe { std::slice::from_raw_parts(host.as_ptr().cast(), buffer.bytes() / size_of::<T>()) }
}

/// Push constants, laid out as std430 does for members that are pushed in order of falling alignment.
#[derive(Default)]
pub(crate) struct Push(Vec<u8>);

impl Push {
    pub(crate) fn add<T: bytemuck::NoUninit>(mut self, value: T) -> Self {
        self.0.resize(self.0.len().next_multiple_of(align_of::<T>()), 0);
        self.0.extend_from_slice(bytemuck::bytes_of(&value));
        self
    }

    pub(crate) fn address(self, buffer: &RawBuffer) -> Self {
        self.add(buffer.address().0)
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }
}
