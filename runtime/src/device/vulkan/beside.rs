//! A queue for copies while a kernel runs, where frames are not mapped by the host.
//!
//! Copies that were submitted to the kernel's own queue would wait for its end, and it may be waiting for them. Devices with more
//! than one queue have one to spare. On others a second logical device is opened on the same physical one: it has a queue of its own, and frames are
//! made so that it can import their memory. Whether copies there do go on beside a kernel is not for the specification to say: the live probe
//! tries it (`probe_copies.rs`).
//!
//! Within one logical device, each queue's submissions wait for what the other has done so far, which makes it visible. Between two,
//! and for a kernel that is running already, the host is in between: it publishes an entry after it has waited for the copy. Vulkan would have the memory
//! released to and acquired from `VK_QUEUE_FAMILY_EXTERNAL`, which a running kernel cannot do: only the probe vouches for that path, which is why
//! nothing but live mode takes it, and not where the probe failed (`VulkanDevice::open`).

use super::choose::{Chosen, CopyQueue};
use super::context::{Context, create_device, failed};
use super::line::Line;
use crate::device::DeviceError;
use ash::vk;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;

const FD: vk::ExternalMemoryHandleTypeFlags = vk::ExternalMemoryHandleTypeFlags::OPAQUE_FD;

/// The queue for copies.
pub(super) struct Beside {
    pub(super) line: Line,
    /// Another logical device, to which the line belongs.
    second: Option<Second>,
}

/// A logical device, destroyed on drop.
struct Second(ash::Device);

impl Drop for Second {
    fn drop(&mut self) {
        // SAFETY: declared behind the line, so the line is gone; whoever made objects from it holds an Arc of the context.
        unsafe { self.0.destroy_device(None) };
    }
}

impl Beside {
    /// Opens the queue that was chosen; nothing if the device has none.
    pub(super) fn open(
        instance: &ash::Instance,
        physical: &Chosen,
        device: &ash::Device,
    ) -> Result<Option<Self>, DeviceError> {
        match physical.copy_queue {
            CopyQueue::None => Ok(None),
            CopyQueue::Own { family, index } => {
                Ok(Some(Self { line: Line::new(device, family, index)?, second: None }))
            }
            CopyQueue::SecondDevice => {
                let second = Second(create_device(instance, physical, false)?);
                let line = Line::new(&second.0, physical.queue_family, 0)?;
                Ok(Some(Self { line, second: Some(second) }))
            }
        }
    }

    /// Whether buffers of the first logical device can be used as they are.
    pub(super) fn shares_handles(&self) -> bool {
        self.second.is_none()
    }
}

/// Memory made without the allocator, and a buffer over all of it. Destroyed on drop.
pub(super) struct Plain {
    device: ash::Device,
    // The device must outlive what was made from it.
    _context: Arc<Context>,
    pub(super) buffer: vk::Buffer,
    memory: vk::DeviceMemory,
    pub(super) mapped: Option<NonNull<u8>>,
}

/// Where plain memory comes from.
enum From {
    /// New, to be exported.
    Exported,
    /// New, mapped.
    Mapped,
    Imported(OwnedFd),
}

impl Plain {
    /// Frames on the first logical device, and the same memory on the second.
    pub(super) fn frames(context: &Arc<Context>, bytes: usize) -> Result<(Self, Self), DeviceError> {
        let frames = Self::new(context, &context.device, bytes, From::Exported)?;
        let export = ash::khr::external_memory_fd::Device::new(&context.instance, &context.device);
        let info = vk::MemoryGetFdInfoKHR::default().memory(frames.memory).handle_type(FD);
        // SAFETY: the memory was allocated for export in this way.
        let fd = unsafe { export.get_memory_fd(&info) }.map_err(failed("vkGetMemoryFdKHR"))?;
        // SAFETY: the descriptor was just made, for us.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let twin = Self::new(context, &context.copies().device, bytes, From::Imported(fd))?;
        Ok((frames, twin))
    }

    /// Memory that the host maps, on the logical device of the copies.
    pub(super) fn staging(context: &Arc<Context>, bytes: usize) -> Result<Self, DeviceError> {
        Self::new(context, &context.copies().device, bytes, From::Mapped)
    }

    fn new(context: &Arc<Context>, device: &ash::Device, bytes: usize, from: From) -> Result<Self, DeviceError> {
        let shared = !matches!(from, From::Mapped);
        let mut external = vk::ExternalMemoryBufferCreateInfo::default().handle_types(FD);
        let mut info = vk::BufferCreateInfo::default()
            .size(bytes as u64)
            .usage(
                vk::BufferUsageFlags::STORAGE_BUFFER
                    | vk::BufferUsageFlags::SHADER_DEVICE_ADDRESS
                    | vk::BufferUsageFlags::TRANSFER_SRC
                    | vk::BufferUsageFlags::TRANSFER_DST,
            )
            .sharing_mode(vk::SharingMode::EXCLUSIVE);
        if shared {
            info = info.push_next(&mut external);
        }
        let mut plain = Self {
            device: device.clone(),
            _context: context.clone(),
            buffer: vk::Buffer::null(),
            memory: vk::DeviceMemory::null(),
            mapped: None,
        };
        // SAFETY: the create info is well formed; Drop destroys it, on errors below too.
        plain.buffer = unsafe { device.create_buffer(&info, None) }.map_err(failed("vkCreateBuffer"))?;
        // SAFETY: the buffer was just made.
        let requirements = unsafe { device.get_buffer_memory_requirements(plain.buffer) };
        let out_of_memory = || DeviceError::OutOfMemory { what: "copies beside kernels", bytes: bytes as u64 };
        let kind = kind(context.physical.memory.memory_types_as_slice(), requirements.memory_type_bits, !shared)
            .ok_or_else(out_of_memory)?;
        let mut flags = vk::MemoryAllocateFlagsInfo::default().flags(vk::MemoryAllocateFlags::DEVICE_ADDRESS);
        let mut dedicated = vk::MemoryDedicatedAllocateInfo::default().buffer(plain.buffer);
        let mut export = vk::ExportMemoryAllocateInfo::default().handle_types(FD);
        let mut import = vk::ImportMemoryFdInfoKHR::default().handle_type(FD);
        let mut allocate = vk::MemoryAllocateInfo::default()
            .allocation_size(requirements.size)
            .memory_type_index(kind)
            .push_next(&mut flags)
            .push_next(&mut dedicated);
        let mapped = matches!(from, From::Mapped);
        let mut given = None;
        match from {
            From::Exported => allocate = allocate.push_next(&mut export),
            From::Imported(fd) => {
                let fd = fd.into_raw_fd();
                import.fd = *given.insert(fd);
                allocate = allocate.push_next(&mut import);
            }
            From::Mapped => {}
        }
        // SAFETY: the chain is well formed; an imported descriptor is the driver's from here on, if this succeeds.
        let allocated = unsafe { device.allocate_memory(&allocate, None) };
        plain.memory = allocated.map_err(|error| {
            if let Some(fd) = given {
                // SAFETY: the driver did not take it.
                drop(unsafe { OwnedFd::from_raw_fd(fd) });
            }
            refused(error, out_of_memory())
        })?;
        // SAFETY: bound once, at its start, to memory of the size that it requires.
        unsafe { device.bind_buffer_memory(plain.buffer, plain.memory, 0) }.map_err(failed("vkBindBufferMemory"))?;
        if mapped {
            // SAFETY: the memory is host-visible and mapped once.
            let host = unsafe { device.map_memory(plain.memory, 0, vk::WHOLE_SIZE, vk::MemoryMapFlags::empty()) };
            plain.mapped = NonNull::new(host.map_err(failed("vkMapMemory"))?.cast());
        }
        Ok(plain)
    }
}

impl Drop for Plain {
    fn drop(&mut self) {
        // SAFETY: every submission that used it was waited for. Null handles are ignored.
        unsafe {
            self.device.destroy_buffer(self.buffer, None);
            self.device.free_memory(self.memory, None);
        }
    }
}

/// The index of a memory type among those allowed by `bits`: one that the host maps, better cached, or one of the device's own.
fn kind(kinds: &[vk::MemoryType], bits: u32, mapped: bool) -> Option<u32> {
    // The one that Vulkan promises; a cached one is not.
    let plain = vk::MemoryPropertyFlags::HOST_VISIBLE | vk::MemoryPropertyFlags::HOST_COHERENT;
    let wanted = match mapped {
        true => [plain | vk::MemoryPropertyFlags::HOST_CACHED, plain],
        false => [vk::MemoryPropertyFlags::DEVICE_LOCAL; 2],
    };
    let with = |wanted| {
        kinds.iter().zip(0u32..).find(|(kind, index)| bits >> index & 1 != 0 && kind.property_flags.contains(wanted))
    };
    wanted.into_iter().find_map(with).map(|(_, index)| index)
}

/// Why memory was not given: `none_left`, which less use of memory mends, or something that it does not.
fn refused(error: vk::Result, none_left: DeviceError) -> DeviceError {
    match error {
        vk::Result::ERROR_OUT_OF_DEVICE_MEMORY
        | vk::Result::ERROR_OUT_OF_HOST_MEMORY
        | vk::Result::ERROR_TOO_MANY_OBJECTS => none_left,
        other => failed("vkAllocateMemory")(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn staging_needs_no_more_than_vulkan_promises() {
        const LOCAL: vk::MemoryPropertyFlags = vk::MemoryPropertyFlags::DEVICE_LOCAL;
        let plain = vk::MemoryPropertyFlags::HOST_VISIBLE | vk::MemoryPropertyFlags::HOST_COHERENT;
        let kinds = |of: &[vk::MemoryPropertyFlags]| -> Vec<_> {
            of.iter().map(|&property_flags| vk::MemoryType { property_flags, heap_index: 0 }).collect()
        };
        let cached = plain | vk::MemoryPropertyFlags::HOST_CACHED;
        assert_eq!(kind(&kinds(&[LOCAL, plain, cached]), !0, true), Some(2));
        assert_eq!(kind(&kinds(&[LOCAL, plain]), !0, true), Some(1));
        assert_eq!(kind(&kinds(&[LOCAL, plain, cached]), 0b011, true), Some(1));
        assert_eq!(kind(&kinds(&[LOCAL]), !0, true), None);
        assert_eq!(kind(&kinds(&[plain, LOCAL]), !0, false), Some(1));
    }

    #[test]
    fn only_a_lack_of_memory_is_told_as_one() {
        let none_left = || DeviceError::OutOfMemory { what: "a test", bytes: 1 };
        let told = |error| refused(error, none_left());
        assert!(matches!(told(vk::Result::ERROR_TOO_MANY_OBJECTS), DeviceError::OutOfMemory { bytes: 1, .. }));
        assert!(matches!(told(vk::Result::ERROR_OUT_OF_DEVICE_MEMORY), DeviceError::OutOfMemory { bytes: 1, .. }));
        assert!(matches!(told(vk::Result::ERROR_DEVICE_LOST), DeviceError::Lost(_)));
        assert!(matches!(told(vk::Result::ERROR_INVALID_EXTERNAL_HANDLE), DeviceError::Call { .. }));
    }
}
