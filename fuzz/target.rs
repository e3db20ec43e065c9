//! The target of all fuzzing of modules: any bytes become a kernel or a clear error, never a panic.

use vksvm::kernel::KernelModule;

/// Variants that differ most: replayed, fast, probing, live, direct.
const VARIANTS: [u32; 5] = {
    use vksvm::device::layout::variant::{DIRECT, FAST, IDEMPOTENT, LIVE, LOCKSTEP, PROBE};
    [IDEMPOTENT, FAST | IDEMPOTENT, PROBE, LIVE | LOCKSTEP, DIRECT | IDEMPOTENT]
};

/// Bytes of push constants of the device at hand; few devices have more.
const PUSH_BYTES: usize = 256;
/// An error that is longer explains nothing.
const LONGEST_ERROR: usize = 2000;

/// Has a kernel made of these bytes, in all variants; says whether they were taken.
///
/// # Panics
/// If something is wrong with the runtime.
pub(crate) fn hostile(data: &[u8]) -> bool {
    match KernelModule::new("hostile", data, PUSH_BYTES) {
        Ok(kernel) => {
            for bits in VARIANTS {
                assert!(kernel.variant(bits).is_some(), "what was made cannot be read again, variant {bits}");
            }
            true
        }
        Err(error) => {
            let text = error.to_string();
            assert!(text.starts_with("kernel `hostile`"), "{text}");
            assert!(text.len() <= LONGEST_ERROR, "{} bytes: {text}", text.len());
            assert!(!text.contains("mistake in vksvm"), "{text}");
            false
        }
    }
}
