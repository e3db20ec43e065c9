//! Buffers: slabs of frames and memory that host and device share, through gpu-allocator.

use super::context::{Context, failed};
use crate::addr::{DeviceAddress, PAGE_SIZE};
use crate::device::{DeviceError, SharedMemory, Slab};
use ash::vk;
use gpu_allocator::MemoryLocation;
use gpu_allocator::vulkan::{Allocation, AllocationCreateDesc, AllocationScheme};
use std::ptr::NonNull;
use std::sync::Arc;

/// A buffer with a device address, and its memory. Destroyed on drop.
pub(super) struct Buffer {
    context: Arc<Context>,
    pub(super) handle: vk::Buffer,
    allocation: Option<Allocation>,
    address: DeviceAddress,
    bytes: usize,
}

impl Buffer {
    pub(super) fn new(
        context: &Arc<Context>,
        name: &'static str,
        bytes: usize,
        location: MemoryLocation,
    ) -> Result<Self, DeviceError> {
        let usage = vk::BufferUsageFlags::STORAGE_BUFFER
            | vk::BufferUsageFlags::SHADER_DEVICE_ADDRESS
            | vk::BufferUsageFlags::TRANSFER_SRC
            | vk::BufferUsageFlags::TRANSFER_DST;
        let info =
            vk::BufferCreateInfo::default().size(bytes as u64).usage(usage).sharing_mode(vk::SharingMode::EXCLUSIVE);
        let out_of_memory = || DeviceError::OutOfMemory { what: name, bytes: bytes as u64 };
        // SAFETY: the create info is well formed; the handle is destroyed on every path below or by Drop.
        let handle = unsafe { context.device.create_buffer(&info, None) }.map_err(failed("vkCreateBuffer"))?;
        // SAFETY: the buffer was just made.
        let mut requirements = unsafe { context.device.get_buffer_memory_requirements(handle) };
        requirements.alignment = requirements.alignment.max(PAGE_SIZE as u64);
        let allocated = context.allocator.lock().allocate(&AllocationCreateDesc {
            name,
            requirements,
            location,
            linear: true,
            allocation_scheme: if bytes >= 4 << 20 {
                AllocationScheme::DedicatedBuffer(handle)
            } else {
                AllocationScheme::GpuAllocatorManaged
            },
        });
        let allocation = match allocated {
            Ok(allocation) => allocation,
            Err(_) => {
                // SAFETY: made above, used by nobody.
                unsafe { context.device.destroy_buffer(handle, None) };
                return Err(out_of_memory());
            }
        };
        let mut buffer =
            Self { context: context.clone(), handle, allocation: Some(allocation), address: DeviceAddress(0), bytes };
        if let Some(allocation) = &buffer.allocation {
            // SAFETY: memory and offset come from the allocator for exactly these requirements; bound once.
            unsafe { context.device.bind_buffer_memory(handle, allocation.memory(), allocation.offset()) }
                .map_err(failed("vkBindBufferMemory"))?;
        }
        // SAFETY: the buffer is bound and was made with SHADER_DEVICE_ADDRESS.
        buffer.address = DeviceAddress(unsafe {
            context.device.get_buffer_device_address(&vk::BufferDeviceAddressInfo::default().buffer(handle))
        });
        Ok(buffer)
    }

    /// The mapping, where the memory is visible to the host.
    pub(super) fn mapped(&self) -> Option<NonNull<u8>> {
        self.allocation.as_ref()?.mapped_ptr().map(NonNull::cast)
    }

    pub(super) fn device_address(&self) -> DeviceAddress {
        self.address
    }

    pub(super) fn len(&self) -> usize {
        self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: no submission uses the buffer any more: every submission is waited for by who made it.
        unsafe { self.context.device.destroy_buffer(self.handle, None) };
        if let Some(allocation) = self.allocation.take() {
            // A failure would mean that the allocator does not know its own allocation.
            let _ = self.context.allocator.lock().free(allocation);
        }
    }
}

/// Shared memory: a mapped, coherent buffer.
pub(super) struct MappedBuffer {
    buffer: Buffer,
    host: NonNull<u8>,
}

// SAFETY: the mapping is valid from any thread; access discipline is the users' (see `SharedMemory`).
unsafe impl Send for MappedBuffer {}
// SAFETY: as above.
unsafe impl Sync for MappedBuffer {}

impl MappedBuffer {
    pub(super) fn new(
        context: &Arc<Context>,
        name: &'static str,
        bytes: usize,
        location: MemoryLocation,
    ) -> Result<Self, DeviceError> {
        let buffer = Buffer::new(context, name, bytes, location)?;
        let host = buffer.mapped().ok_or(DeviceError::OutOfMemory { what: name, bytes: bytes as u64 })?;
        // SAFETY: the mapping covers `bytes` and nobody else knows it yet.
        unsafe { host.write_bytes(0, bytes) };
        Ok(Self { buffer, host })
    }
}

impl SharedMemory for MappedBuffer {
    fn host(&self) -> NonNull<u8> {
        self.host
    }
    fn address(&self) -> DeviceAddress {
        self.buffer.device_address()
    }
    fn bytes(&self) -> usize {
        self.buffer.len()
    }
}

/// A slab of frames, in device-local memory.
pub(super) struct FrameSlab {
    pub(super) buffer: Arc<Buffer>,
    pub(super) forget: Box<dyn Fn(DeviceAddress) + Send + Sync>,
}

impl Slab for FrameSlab {
    fn address(&self) -> DeviceAddress {
        self.buffer.device_address()
    }
    fn bytes(&self) -> usize {
        self.buffer.len()
    }
}

impl Drop for FrameSlab {
    fn drop(&mut self) {
        (self.forget)(self.buffer.device_address());
    }
}
