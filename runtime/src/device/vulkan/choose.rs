//! Which physical device to use, what it lacks, and which features are switched on.

use super::context::{failed, text};
use crate::device::DeviceError;
use ash::vk;
use std::ffi::CStr;

/// The features that are switched on: those needed, and those that kernels may like, where supported.
#[derive(Clone)]
pub(super) struct Features {
    core: vk::PhysicalDeviceFeatures,
    v11: vk::PhysicalDeviceVulkan11Features<'static>,
    v12: vk::PhysicalDeviceVulkan12Features<'static>,
}

impl Features {
    /// The structures linked for `vkCreateDevice`.
    pub(super) fn chain(&mut self) -> vk::PhysicalDeviceFeatures2<'_> {
        vk::PhysicalDeviceFeatures2::default().features(self.core).push_next(&mut self.v11).push_next(&mut self.v12)
    }
}

/// Where copies can be submitted to go on beside a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CopyQueue {
    /// Nowhere.
    None,
    /// Queue `index` of `family`.
    Own { family: u32, index: u32 },
    /// The queue of a second logical device, which imports memory.
    SecondDevice,
}

/// A device that has what is needed.
pub(super) struct Chosen {
    pub(super) handle: vk::PhysicalDevice,
    pub(super) properties: vk::PhysicalDeviceProperties,
    pub(super) driver: String,
    pub(super) memory: vk::PhysicalDeviceMemoryProperties,
    pub(super) queue_family: u32,
    pub(super) copy_queue: CopyQueue,
    pub(super) features: Features,
    /// `VK_EXT_external_memory_host`, and the alignment of what it imports.
    pub(super) imports_at: Option<u64>,
    /// `VK_EXT_memory_budget`.
    pub(super) tells_budget: bool,
}

impl Chosen {
    pub(super) fn name(&self) -> String {
        text(&self.properties.device_name)
    }

    pub(super) fn is_cpu(&self) -> bool {
        self.properties.device_type == vk::PhysicalDeviceType::CPU
    }

    /// Whether the device's memory is the host's.
    pub(super) fn is_unified(&self) -> bool {
        matches!(self.properties.device_type, vk::PhysicalDeviceType::CPU | vk::PhysicalDeviceType::INTEGRATED_GPU)
    }

    /// The largest device-local heap.
    pub(super) fn local_heap(&self) -> Option<usize> {
        let heaps = self.memory.memory_heaps_as_slice().iter().enumerate();
        let local = heaps.filter(|(_, heap)| heap.flags.contains(vk::MemoryHeapFlags::DEVICE_LOCAL));
        local.max_by_key(|(_, heap)| heap.size).map(|(index, _)| index)
    }

    /// Its bytes.
    pub(super) fn local_bytes(&self) -> u64 {
        self.local_heap().map_or(0, |heap| self.memory.memory_heaps[heap].size)
    }
}

/// The best device, or the one that `wanted` names by index or by part of its name.
pub(super) fn choose(instance: &ash::Instance, wanted: Option<&str>) -> Result<Chosen, DeviceError> {
    // SAFETY: the instance is live.
    let devices = unsafe { instance.enumerate_physical_devices() }.map_err(failed("vkEnumeratePhysicalDevices"))?;
    let mut refused = Vec::new();
    let mut usable = Vec::new();
    for (index, &device) in devices.iter().enumerate() {
        // SAFETY: the handle was just enumerated from this instance.
        let properties = unsafe { instance.get_physical_device_properties(device) };
        let name = text(&properties.device_name);
        let asked_for = wanted
            .is_none_or(|wanted| wanted.parse() == Ok(index) || name.to_lowercase().contains(&wanted.to_lowercase()));
        if !asked_for {
            refused.push(format!("{index}: {name}: not what VKSVM_DEVICE asks for"));
            continue;
        }
        match examine(instance, device, properties) {
            Ok(chosen) => usable.push(chosen),
            Err(missing) => refused.push(format!("{index}: {name}: lacks {}", missing.join(", "))),
        }
    }
    usable.sort_by_key(|chosen| match chosen.properties.device_type {
        vk::PhysicalDeviceType::DISCRETE_GPU => 0,
        vk::PhysicalDeviceType::INTEGRATED_GPU => 1,
        vk::PhysicalDeviceType::VIRTUAL_GPU => 2,
        vk::PhysicalDeviceType::CPU => 4,
        _ => 3,
    });
    usable.into_iter().next().ok_or(DeviceError::NoDevice(refused))
}

/// Checks one device; the error lists what it lacks.
fn examine(
    instance: &ash::Instance,
    handle: vk::PhysicalDevice,
    properties: vk::PhysicalDeviceProperties,
) -> Result<Chosen, Vec<&'static str>> {
    if properties.api_version < vk::API_VERSION_1_2 {
        return Err(vec!["Vulkan 1.2"]);
    }
    let mut v11 = vk::PhysicalDeviceVulkan11Features::default();
    let mut v12 = vk::PhysicalDeviceVulkan12Features::default();
    let mut all = vk::PhysicalDeviceFeatures2::default().push_next(&mut v11).push_next(&mut v12);
    // SAFETY: the handle is live and the device knows both structures, being 1.2.
    unsafe { instance.get_physical_device_features2(handle, &mut all) };
    let has = all.features;

    let mut missing = Vec::new();
    for (present, name) in [
        (has.shader_int64, "shaderInt64"),
        (v12.buffer_device_address, "bufferDeviceAddress"),
        (v12.scalar_block_layout, "scalarBlockLayout"),
        (v12.timeline_semaphore, "timelineSemaphore"),
    ] {
        if present == vk::FALSE {
            missing.push(name);
        }
    }
    // SAFETY: the handle is live.
    let families = unsafe { instance.get_physical_device_queue_family_properties(handle) };
    let queue_family = families.iter().position(|family| family.queue_flags.contains(vk::QueueFlags::COMPUTE));
    if queue_family.is_none() {
        missing.push("a compute queue");
    }
    let (Some(queue_family), true) = (queue_family, missing.is_empty()) else { return Err(missing) };

    let core = vk::PhysicalDeviceFeatures {
        shader_int64: vk::TRUE,
        shader_int16: has.shader_int16,
        shader_float64: has.shader_float64,
        ..Default::default()
    };
    let v11_on = vk::PhysicalDeviceVulkan11Features::default()
        .storage_buffer16_bit_access(v11.storage_buffer16_bit_access == vk::TRUE)
        .variable_pointers(v11.variable_pointers == vk::TRUE)
        .variable_pointers_storage_buffer(v11.variable_pointers_storage_buffer == vk::TRUE);
    let v12_on = vk::PhysicalDeviceVulkan12Features::default()
        .buffer_device_address(true)
        .scalar_block_layout(true)
        .timeline_semaphore(true)
        .storage_buffer8_bit_access(v12.storage_buffer8_bit_access == vk::TRUE)
        .shader_int8(v12.shader_int8 == vk::TRUE)
        .shader_float16(v12.shader_float16 == vk::TRUE)
        .shader_buffer_int64_atomics(v12.shader_buffer_int64_atomics == vk::TRUE)
        .vulkan_memory_model(v12.vulkan_memory_model == vk::TRUE)
        .vulkan_memory_model_device_scope(v12.vulkan_memory_model_device_scope == vk::TRUE);
    // SAFETY: the handle is live.
    let extensions = unsafe { instance.enumerate_device_extension_properties(handle) }.unwrap_or_default();
    let has_extension =
        |name: &CStr| extensions.iter().any(|extension| extension.extension_name_as_c_str() == Ok(name));
    let imports = has_extension(ash::ext::external_memory_host::NAME);
    let exports = has_extension(ash::khr::external_memory_fd::NAME) && exports_frames(instance, handle);
    let mut driver = vk::PhysicalDeviceDriverProperties::default();
    let mut host = vk::PhysicalDeviceExternalMemoryHostPropertiesEXT::default();
    let mut more = vk::PhysicalDeviceProperties2::default().push_next(&mut driver);
    if imports {
        more = more.push_next(&mut host);
    }
    // SAFETY: as for the features; the extension's structure is there only where the device has it.
    unsafe { instance.get_physical_device_properties2(handle, &mut more) };
    Ok(Chosen {
        handle,
        properties,
        driver: format!("{} {}", text(&driver.driver_name), text(&driver.driver_info)),
        // SAFETY: the handle is live.
        memory: unsafe { instance.get_physical_device_memory_properties(handle) },
        queue_family: queue_family as u32,
        copy_queue: copy_queue(&families, queue_family, exports),
        features: Features { core, v11: v11_on, v12: v12_on },
        imports_at: imports.then_some(host.min_imported_host_pointer_alignment),
        tells_budget: has_extension(ash::ext::memory_budget::NAME),
    })
}

/// The queue that is the least in the way of kernels, other than the first of `compute`.
fn copy_queue(families: &[vk::QueueFamilyProperties], compute: usize, exports: bool) -> CopyQueue {
    let computes = |family: &vk::QueueFamilyProperties| {
        family.queue_flags.intersects(vk::QueueFlags::COMPUTE | vk::QueueFlags::GRAPHICS)
    };
    let transfers = |family: &vk::QueueFamilyProperties| family.queue_flags.contains(vk::QueueFlags::TRANSFER);
    let only_copies = families.iter().position(|family| transfers(family) && !computes(family));
    let other = || (0..families.len()).find(|&family| family != compute && computes(&families[family]));
    match only_copies.or_else(other) {
        Some(family) => CopyQueue::Own { family: family as u32, index: 0 },
        None if families[compute].queue_count > 1 => CopyQueue::Own { family: compute as u32, index: 1 },
        None if exports => CopyQueue::SecondDevice,
        None => CopyQueue::None,
    }
}

/// Whether buffers can be made whose memory another logical device imports.
fn exports_frames(instance: &ash::Instance, handle: vk::PhysicalDevice) -> bool {
    let info = vk::PhysicalDeviceExternalBufferInfo::default()
        .usage(
            vk::BufferUsageFlags::STORAGE_BUFFER
                | vk::BufferUsageFlags::SHADER_DEVICE_ADDRESS
                | vk::BufferUsageFlags::TRANSFER_SRC
                | vk::BufferUsageFlags::TRANSFER_DST,
        )
        .handle_type(vk::ExternalMemoryHandleTypeFlags::OPAQUE_FD);
    let mut properties = vk::ExternalBufferProperties::default();
    // SAFETY: the handle is live; the function is part of Vulkan 1.1.
    unsafe { instance.get_physical_device_external_buffer_properties(handle, &info, &mut properties) };
    let offered = properties.external_memory_properties.external_memory_features;
    offered.contains(vk::ExternalMemoryFeatureFlags::EXPORTABLE | vk::ExternalMemoryFeatureFlags::IMPORTABLE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn families(of: &[(vk::QueueFlags, u32)]) -> Vec<vk::QueueFamilyProperties> {
        let family =
            |&(queue_flags, queue_count)| vk::QueueFamilyProperties { queue_flags, queue_count, ..Default::default() };
        of.iter().map(family).collect()
    }

    #[test]
    fn copies_go_where_they_disturb_kernels_least() {
        const ALL: vk::QueueFlags = vk::QueueFlags::from_raw(
            vk::QueueFlags::GRAPHICS.as_raw() | vk::QueueFlags::COMPUTE.as_raw() | vk::QueueFlags::TRANSFER.as_raw(),
        );
        const COMPUTE: vk::QueueFlags = vk::QueueFlags::COMPUTE;
        const TRANSFER: vk::QueueFlags = vk::QueueFlags::TRANSFER;
        let own = |family, index| CopyQueue::Own { family, index };
        assert_eq!(copy_queue(&families(&[(ALL, 16), (COMPUTE, 8), (TRANSFER, 2)]), 0, true), own(2, 0));
        assert_eq!(copy_queue(&families(&[(ALL, 1), (COMPUTE, 4)]), 0, true), own(1, 0));
        assert_eq!(copy_queue(&families(&[(ALL, 2)]), 0, true), own(0, 1));
        assert_eq!(copy_queue(&families(&[(ALL, 1)]), 0, true), CopyQueue::SecondDevice);
        assert_eq!(copy_queue(&families(&[(ALL, 1)]), 0, false), CopyQueue::None);
    }
}
