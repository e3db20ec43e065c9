//! Buffers: slabs of frames and memory that host and device share, through gpu-allocator where copies do not go through another
//! logical device.

use super::beside::Plain;
use super::context::{Context, failed, out_of};
use crate::addr::{DeviceAddress, PAGE_SIZE};
use crate::device::{DeviceError, SharedMemory, Slab};
use crate::scarce::ask;
use ash::vk;
use gpu_allocator::MemoryLocation;
use gpu_allocator::vulkan::{Allocation, AllocationCreateDesc, AllocationScheme};
use rustix::io::Errno;
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
        let families = context.families();
        let info = vk::BufferCreateInfo::default().size(bytes as u64).usage(usage);
        let info = match &families {
            Some(families) => info.sharing_mode(vk::SharingMode::CONCURRENT).queue_family_indices(families),
            None => info.sharing_mode(vk::SharingMode::EXCLUSIVE),
        };
        let out_of_memory = || DeviceError::OutOfMemory { what: name, bytes: bytes as u64 };
        out_of(ask("vkCreateBuffer", Errno::NOMEM)).map_err(failed("vkCreateBuffer"))?;
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
        let allocation = match (allocated, ask("allocating device memory", Errno::NOMEM)) {
            (Ok(allocation), Ok(())) => allocation,
            (allocated, _) => {
                if let Ok(allocation) = allocated {
                    let _ = context.allocator.lock().free(allocation);
                }
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

/// Memory of frames, on the device's side.
pub(super) struct Frames {
    kind: FramesKind,
    address: DeviceAddress,
    bytes: usize,
}

enum FramesKind {
    Allocated(Buffer),
    Exported(Box<Exported>),
}

struct Exported {
    // Keeps the memory alive, where the kernels' logical device knows it.
    _frames: Plain,
    /// The same memory, as the logical device for copies knows it.
    twin: Plain,
}

// SAFETY: handles may be used from any thread; who uses the memory is decided by who holds the frames.
unsafe impl Send for Frames {}
// SAFETY: as above.
unsafe impl Sync for Frames {}

impl Frames {
    pub(super) fn new(context: &Arc<Context>, bytes: usize) -> Result<Self, DeviceError> {
        if !context.copies_elsewhere() {
            let buffer = Buffer::new(context, "frames", bytes, MemoryLocation::GpuOnly)?;
            return Ok(Self { address: buffer.address, kind: FramesKind::Allocated(buffer), bytes });
        }
        let (frames, twin) = Plain::frames(context, bytes)?;
        let info = vk::BufferDeviceAddressInfo::default().buffer(frames.buffer);
        // SAFETY: the buffer is bound and was made with SHADER_DEVICE_ADDRESS.
        let address = DeviceAddress(unsafe { context.device.get_buffer_device_address(&info) });
        if !address.0.is_multiple_of(PAGE_SIZE as u64) {
            return Err(DeviceError::Call { call: "frames", reason: format!("{address:?} is not aligned to a page") });
        }
        Ok(Self { kind: FramesKind::Exported(Box::new(Exported { _frames: frames, twin })), address, bytes })
    }

    /// What copies know the memory by.
    pub(super) fn copied(&self) -> vk::Buffer {
        match &self.kind {
            FramesKind::Allocated(buffer) => buffer.handle,
            FramesKind::Exported(exported) => exported.twin.buffer,
        }
    }

    /// The mapping, where the memory is visible to the host.
    pub(super) fn mapped(&self) -> Option<NonNull<u8>> {
        match &self.kind {
            FramesKind::Allocated(buffer) => buffer.mapped(),
            FramesKind::Exported(..) => None,
        }
    }

    pub(super) fn device_address(&self) -> DeviceAddress {
        self.address
    }

    pub(super) fn len(&self) -> usize {
        self.bytes
    }
}

/// Memory that the host maps, for the queue of the copies.
pub(super) enum Staging {
    Allocated(Buffer),
    Plain(Box<Plain>),
}

impl Staging {
    pub(super) fn new(context: &Arc<Context>, bytes: usize) -> Result<Self, DeviceError> {
        Ok(match context.copies_elsewhere() {
            true => Self::Plain(Box::new(Plain::staging(context, bytes)?)),
            false => Self::Allocated(Buffer::new(context, "staging", bytes, MemoryLocation::GpuToCpu)?),
        })
    }

    pub(super) fn handle(&self) -> vk::Buffer {
        match self {
            Self::Allocated(buffer) => buffer.handle,
            Self::Plain(plain) => plain.buffer,
        }
    }

    pub(super) fn mapped(&self) -> Option<NonNull<u8>> {
        match self {
            Self::Allocated(buffer) => buffer.mapped(),
            Self::Plain(plain) => plain.mapped,
        }
    }
}

/// A slab of frames, in device-local memory.
pub(super) struct FrameSlab {
    pub(super) buffer: Arc<Frames>,
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
