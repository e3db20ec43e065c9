//! Plain Vulkan on the runtime's own device: buffers, kernels and submissions without translation or paging.
//!
//! For comparisons (the benchmarks' hand-written alternatives run on the very same `VkDevice`) and for programs that want a few
//! buffers of their own beside the shared heap. Nothing here knows of page tables.

use super::VulkanDevice;
use super::commands::Recorder;
use super::context::Context;
use super::memory::Buffer;
use super::pipeline::Pipeline;
use crate::addr::DeviceAddress;
use crate::device::DeviceError;
use ash::vk;
use gpu_allocator::MemoryLocation;
use std::ptr::NonNull;
use std::sync::Arc;

/// What a raw buffer's memory is best at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RawMemory {
    /// The device's own memory. The host may or may not see it.
    Device,
    /// Written by the host, read by the device.
    Upload,
    /// Written by the device, read by the host.
    Readback,
}

/// A buffer with a device address. Freed on drop; no submission may use it then.
pub struct RawBuffer(Buffer);

// SAFETY: the handle and the mapping may be used from any thread; who accesses the contents is the users' business.
unsafe impl Send for RawBuffer {}
// SAFETY: as above.
unsafe impl Sync for RawBuffer {}

impl RawBuffer {
    /// Start of the buffer on the device.
    pub fn address(&self) -> DeviceAddress {
        self.0.device_address()
    }

    /// Start of the buffer on the host, if the host sees it.
    pub fn host(&self) -> Option<NonNull<u8>> {
        self.0.mapped()
    }

    /// Size in bytes.
    pub fn bytes(&self) -> usize {
        self.0.len()
    }
}

/// A compute pipeline that takes push constants and nothing else.
pub struct RawKernel(Pipeline);

/// One command of a submission.
#[derive(Clone, Copy)]
pub enum RawCommand<'a> {
    /// Copies between buffers.
    Copy {
        /// Source and offset in bytes.
        from: (&'a RawBuffer, u64),
        /// Target and offset in bytes.
        to: (&'a RawBuffer, u64),
        /// How much.
        bytes: u64,
    },
    /// Runs a kernel.
    Dispatch {
        /// The kernel.
        kernel: &'a RawKernel,
        /// Its push constants, all of them.
        push: &'a [u8],
        /// Workgroups in x, y and z.
        groups: [u32; 3],
    },
    /// Orders what comes after behind what came before, and makes its stores visible.
    Barrier,
}

/// A command buffer that is submitted again and again; several overlap.
pub struct RawStream {
    context: Arc<Context>,
    recorder: Recorder,
    in_flight: Option<u64>,
}

impl RawStream {
    /// Waits for the previous submission of this stream, then submits `commands`, ordered behind all earlier submissions.
    ///
    /// # Safety
    /// Buffers and kernels must live until [`wait`](Self::wait) returned, copies must lie inside their buffers, and what kernels
    /// access must be theirs to access.
    ///
    /// # Errors
    /// If a Vulkan call fails.
    pub unsafe fn submit(&mut self, commands: &[RawCommand<'_>]) -> Result<(), DeviceError> {
        self.wait()?;
        let value = self.recorder.submit(|device, buffer| {
            for command in commands {
                // SAFETY: the caller's promise.
                unsafe { record(device, buffer, command) };
            }
        })?;
        self.in_flight = Some(value);
        Ok(())
    }

    /// Waits until the last submission is done; the host then sees what it stored.
    ///
    /// # Errors
    /// If the device is lost.
    pub fn wait(&mut self) -> Result<(), DeviceError> {
        self.in_flight.take().map_or(Ok(()), |value| self.context.wait(value))
    }
}

impl Drop for RawStream {
    fn drop(&mut self) {
        // A lost device runs nothing any more.
        let _ = self.wait();
    }
}

/// # Safety
/// As [`RawStream::submit`].
unsafe fn record(device: &ash::Device, buffer: vk::CommandBuffer, command: &RawCommand<'_>) {
    match *command {
        RawCommand::Copy { from, to, bytes } => {
            let region = vk::BufferCopy { src_offset: from.1, dst_offset: to.1, size: bytes };
            // SAFETY: the caller's promise.
            unsafe { device.cmd_copy_buffer(buffer, from.0.0.handle, to.0.0.handle, &[region]) };
        }
        RawCommand::Dispatch { kernel, push, groups } => {
            // SAFETY: the caller's promise.
            unsafe {
                device.cmd_bind_pipeline(buffer, vk::PipelineBindPoint::COMPUTE, kernel.0.handle);
                device.cmd_push_constants(buffer, kernel.0.layout, vk::ShaderStageFlags::COMPUTE, 0, push);
                device.cmd_dispatch(buffer, groups[0], groups[1], groups[2]);
            }
        }
        RawCommand::Barrier => {
            let barrier = [vk::MemoryBarrier::default()
                .src_access_mask(vk::AccessFlags::MEMORY_WRITE)
                .dst_access_mask(vk::AccessFlags::MEMORY_READ | vk::AccessFlags::MEMORY_WRITE)];
            let all = vk::PipelineStageFlags::ALL_COMMANDS;
            // SAFETY: the barrier carries no pointers beyond the call.
            unsafe { device.cmd_pipeline_barrier(buffer, all, all, vk::DependencyFlags::empty(), &barrier, &[], &[]) };
        }
    }
}

impl VulkanDevice {
    /// A buffer.
    ///
    /// # Errors
    /// If there is not enough memory.
    pub fn raw_buffer(&self, bytes: usize, memory: RawMemory) -> Result<RawBuffer, DeviceError> {
        let location = match memory {
            RawMemory::Device => MemoryLocation::GpuOnly,
            RawMemory::Upload => MemoryLocation::CpuToGpu,
            RawMemory::Readback => MemoryLocation::GpuToCpu,
        };
        Buffer::new(&self.context, "raw buffer", bytes, location).map(RawBuffer)
    }

    /// A kernel with entry point `main` and `push_bytes` of push constants.
    ///
    /// # Safety
    /// `spirv` must be a valid module for Vulkan 1.2.
    ///
    /// # Errors
    /// If the driver refuses it.
    pub unsafe fn raw_kernel(&self, name: &str, spirv: &[u8], push_bytes: usize) -> Result<RawKernel, DeviceError> {
        let words: Vec<u32> =
            spirv.chunks_exact(4).map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]])).collect();
        Pipeline::new(&self.context, name, &words, c"main", push_bytes, None).map(RawKernel)
    }

    /// A stream of submissions.
    ///
    /// # Errors
    /// If a Vulkan call fails.
    pub fn raw_stream(&self) -> Result<RawStream, DeviceError> {
        Ok(RawStream { context: self.context.clone(), recorder: Recorder::new(&self.context)?, in_flight: None })
    }
}
