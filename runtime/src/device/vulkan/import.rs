//! Home memory imported with `VK_EXT_external_memory_host`.
//!
//! On devices that compute on the CPU the import is the mapping itself: nothing is pinned, and pages that are given back and made anew
//! are seen at once. Elsewhere drivers pin the pages that the mapping has when it is imported.

use super::context::{Context, failed, out_of};
use crate::addr::{DeviceAddress, PAGE_SHIFT};
use crate::device::{DeviceError, HomeWindow, HostImport};
use crate::scarce::ask;
use ash::vk;
use rustix::io::Errno;
use std::ptr::NonNull;
use std::sync::Arc;

/// Bytes imported together where it costs nothing: 1 GiB.
const WIDE: u64 = 1 << 30;
/// Bytes imported together where their pages are pinned: 2 MiB, to which the heap's alias is aligned.
const NARROW: u64 = 2 << 20;

/// What the device imports, if anything.
pub(super) fn offer(context: &Context) -> Option<HostImport> {
    let physical = &context.physical;
    let align = physical.imports_at?;
    let follows = physical.is_cpu();
    let bytes = if follows { WIDE } else { NARROW };
    (align <= NARROW).then_some(HostImport { window_pages: (bytes >> PAGE_SHIFT) as u32, follows })
}

/// A buffer over imported memory.
pub(super) struct Window {
    context: Arc<Context>,
    buffer: vk::Buffer,
    memory: vk::DeviceMemory,
    address: DeviceAddress,
}

impl Window {
    /// # Safety
    /// As for `Device::import`.
    pub(super) unsafe fn new(context: &Arc<Context>, host: NonNull<u8>, bytes: usize) -> Result<Self, DeviceError> {
        let device = &context.device;
        const HOST: vk::ExternalMemoryHandleTypeFlags = vk::ExternalMemoryHandleTypeFlags::HOST_ALLOCATION_EXT;
        let mut window = Self {
            context: context.clone(),
            buffer: vk::Buffer::null(),
            memory: vk::DeviceMemory::null(),
            address: DeviceAddress(0),
        };
        let import = ash::ext::external_memory_host::Device::new(&context.instance, device);
        let mut properties = vk::MemoryHostPointerPropertiesEXT::default();
        // SAFETY: the extension is switched on; the memory is mapped, by the caller's promise.
        unsafe {
            (import.fp().get_memory_host_pointer_properties_ext)(
                device.handle(),
                HOST,
                host.as_ptr().cast(),
                &mut properties,
            )
        }
        .result()
        .map_err(failed("vkGetMemoryHostPointerPropertiesEXT"))?;
        let mut external = vk::ExternalMemoryBufferCreateInfo::default().handle_types(HOST);
        let info = vk::BufferCreateInfo::default()
            .size(bytes as u64)
            .usage(vk::BufferUsageFlags::STORAGE_BUFFER | vk::BufferUsageFlags::SHADER_DEVICE_ADDRESS)
            .sharing_mode(vk::SharingMode::EXCLUSIVE)
            .push_next(&mut external);
        out_of(ask("making a window's buffer", Errno::NOMEM)).map_err(failed("vkCreateBuffer"))?;
        // SAFETY: the create info is well formed; destroyed by Drop, on errors below too.
        window.buffer = unsafe { device.create_buffer(&info, None) }.map_err(failed("vkCreateBuffer"))?;
        // SAFETY: the buffer was just made.
        let requirements = unsafe { device.get_buffer_memory_requirements(window.buffer) };
        let allowed = requirements.memory_type_bits & properties.memory_type_bits;
        const COHERENT: vk::MemoryPropertyFlags = vk::MemoryPropertyFlags::from_raw(
            vk::MemoryPropertyFlags::HOST_VISIBLE.as_raw() | vk::MemoryPropertyFlags::HOST_COHERENT.as_raw(),
        );
        let fits = |&(index, kind): &(usize, &vk::MemoryType)| {
            allowed >> index & 1 != 0 && kind.property_flags.contains(COHERENT)
        };
        let kind = context.physical.memory.memory_types_as_slice().iter().enumerate().find(fits);
        let Some((kind, _)) = kind else {
            return Err(DeviceError::Call {
                call: "import",
                reason: "no coherent memory type takes host memory".into(),
            });
        };
        let mut imported =
            vk::ImportMemoryHostPointerInfoEXT::default().handle_type(HOST).host_pointer(host.as_ptr().cast());
        let mut flags = vk::MemoryAllocateFlagsInfo::default().flags(vk::MemoryAllocateFlags::DEVICE_ADDRESS);
        let allocate = vk::MemoryAllocateInfo::default()
            .allocation_size(bytes as u64)
            .memory_type_index(kind as u32)
            .push_next(&mut imported)
            .push_next(&mut flags);
        out_of(ask("importing home pages", Errno::NOMEM)).map_err(failed("vkAllocateMemory"))?;
        // SAFETY: pointer and size are multiples of the required alignment (see `offer`), and the memory stays mapped.
        window.memory = unsafe { device.allocate_memory(&allocate, None) }.map_err(failed("vkAllocateMemory"))?;
        // SAFETY: bound once, at its start, to memory of its size.
        unsafe { device.bind_buffer_memory(window.buffer, window.memory, 0) }.map_err(failed("vkBindBufferMemory"))?;
        // SAFETY: bound, and made with SHADER_DEVICE_ADDRESS.
        window.address = DeviceAddress(unsafe {
            device.get_buffer_device_address(&vk::BufferDeviceAddressInfo::default().buffer(window.buffer))
        });
        Ok(window)
    }
}

impl HomeWindow for Window {
    fn address(&self) -> DeviceAddress {
        self.address
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        // SAFETY: no entry leads here any more, and every submission was waited for. Null handles are ignored.
        unsafe {
            self.context.device.destroy_buffer(self.buffer, None);
            self.context.device.free_memory(self.memory, None);
        }
    }
}
