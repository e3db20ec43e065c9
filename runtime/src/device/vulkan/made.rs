//! The driver's pipeline cache, kept between runs: what it made of kernels before, it need not make again.
//!
//! Its data means something to the same driver on the same device only. It is kept under their identity, and its own header is
//! compared as well before a driver gets it (Vulkan 1.2, section 10.6.3): drivers must reject foreign data, and are said to crash on it.

use crate::cache::Cache;
use ash::vk;

/// What entries are called.
const KIND: &str = "pipelines";
/// Bytes of the header that all drivers' data starts with.
const HEADER: usize = 32;
/// More than this is not kept.
const MAX_BYTES: usize = 64 << 20;

/// A pipeline cache, and where it is kept. Closed, not dropped: it needs its device for that.
pub(super) struct Made {
    cache: Cache,
    key: Vec<u8>,
    handle: vk::PipelineCache,
    /// What it had when it was opened.
    before: Vec<u8>,
}

impl Made {
    /// A pipeline cache with what earlier runs left.
    pub(super) fn open(device: &ash::Device, properties: &vk::PhysicalDeviceProperties, cache: &Cache) -> Self {
        let mut key = env!("CARGO_PKG_VERSION").as_bytes().to_vec();
        key.extend(
            [properties.vendor_id, properties.device_id, properties.driver_version]
                .map(u32::to_le_bytes)
                .as_flattened(),
        );
        key.extend(properties.pipeline_cache_uuid);
        let before = cache.get(KIND, &key).filter(|data| is_own(data, properties)).unwrap_or_default();
        let info = vk::PipelineCacheCreateInfo::default().initial_data(&before);
        // SAFETY: the data is what this driver gave out, as its header and the entry's checksum say. Without a cache all works too.
        let handle = unsafe { device.create_pipeline_cache(&info, None) }.unwrap_or_default();
        Self { cache: cache.clone(), key, handle, before }
    }

    /// For making pipelines; may be null.
    pub(super) fn handle(&self) -> vk::PipelineCache {
        self.handle
    }

    /// Keeps what was made since, and lets go of the cache.
    ///
    /// # Safety
    /// `device` is the one it was opened with, and nobody uses the handle any more.
    pub(super) unsafe fn close(&mut self, device: &ash::Device) {
        if self.handle == vk::PipelineCache::null() {
            return;
        }
        // SAFETY: the cache is the device's.
        let data = unsafe { device.get_pipeline_cache_data(self.handle) };
        if let Ok(data) = data
            && data.len() <= MAX_BYTES
            && data != self.before
        {
            self.cache.put(KIND, &self.key, &data);
        }
        // SAFETY: as above.
        unsafe { device.destroy_pipeline_cache(std::mem::take(&mut self.handle), None) };
    }
}

/// Whether the data's header names this driver and device.
fn is_own(data: &[u8], properties: &vk::PhysicalDeviceProperties) -> bool {
    let word = |at: usize| data.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map(u32::from_le_bytes);
    word(0).is_some_and(|length| length as usize >= HEADER && length as usize <= data.len())
        && word(4) == Some(vk::PipelineCacheHeaderVersion::ONE.as_raw() as u32)
        && word(8) == Some(properties.vendor_id)
        && word(12) == Some(properties.device_id)
        && data.get(16..HEADER) == Some(&properties.pipeline_cache_uuid[..])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn properties() -> vk::PhysicalDeviceProperties {
        vk::PhysicalDeviceProperties { vendor_id: 7, device_id: 9, pipeline_cache_uuid: [3; 16], ..Default::default() }
    }

    fn data() -> Vec<u8> {
        let words = [32u32, 1, 7, 9].map(u32::to_le_bytes);
        [words.as_flattened(), &[3; 16], b"the driver's own"].concat()
    }

    #[test]
    fn only_data_of_the_same_driver_and_device_is_taken() {
        assert!(is_own(&data(), &properties()));
        for at in 4..HEADER {
            let mut foreign = data();
            foreign[at] ^= 1;
            assert!(!is_own(&foreign, &properties()), "byte {at} differs");
        }
        for end in 0..HEADER {
            assert!(!is_own(&data()[..end], &properties()), "{end} bytes are no header");
        }
    }
}
