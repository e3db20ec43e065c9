//! Copies that bypass the caches: for data that is larger than they are and is not looked at soon.
//!
//! An ordinary store reads the cache line that it is about to overwrite; a non-temporal one does not, which saves a third of the
//! memory traffic. What is read again at once is better copied the ordinary way.

/// From this many bytes on a list of copies is better streamed: about a core's second-level cache.
pub(super) const STREAM_BYTES: usize = 1 << 20;

/// Copies `bytes` from `from` to `to` past the caches. When it returns, other threads see the data as after any other store
/// that is followed by a release.
///
/// # Safety
/// As for [`std::ptr::copy_nonoverlapping`].
#[cfg(target_arch = "x86_64")]
pub(super) unsafe fn copy_streaming(from: *const u8, to: *mut u8, bytes: usize) {
    use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_sfence, _mm_stream_si128};
    const LINE: usize = 64;
    if !to.addr().is_multiple_of(16) {
        // SAFETY: the caller's contract.
        return unsafe { from.copy_to_nonoverlapping(to, bytes) };
    }
    let lines = bytes / LINE;
    for line in 0..lines {
        // SAFETY: whole lines inside both areas; loads may be unaligned, and stores are aligned because `to` is.
        unsafe {
            let from = from.add(line * LINE).cast::<__m128i>();
            let to = to.add(line * LINE).cast::<__m128i>();
            let parts = [
                _mm_loadu_si128(from),
                _mm_loadu_si128(from.add(1)),
                _mm_loadu_si128(from.add(2)),
                _mm_loadu_si128(from.add(3)),
            ];
            for (index, part) in parts.into_iter().enumerate() {
                _mm_stream_si128(to.add(index), part);
            }
        }
    }
    // SAFETY: the rest of both areas. The fence orders the streamed stores before whatever this thread does next (SSE2 is part of
    // x86-64).
    unsafe {
        from.add(lines * LINE).copy_to_nonoverlapping(to.add(lines * LINE), bytes % LINE);
        _mm_sfence();
    }
}

/// As on x86-64, by the ordinary way.
///
/// # Safety
/// As for [`std::ptr::copy_nonoverlapping`].
#[cfg(not(target_arch = "x86_64"))]
pub(super) unsafe fn copy_streaming(from: *const u8, to: *mut u8, bytes: usize) {
    // SAFETY: the caller's contract.
    unsafe { from.copy_to_nonoverlapping(to, bytes) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_arrives_whatever_the_length_and_alignment() {
        let from: Vec<u8> = (0..5000u32).map(|n| (n % 251) as u8).collect();
        for (skip, bytes) in [(0, 4096), (0, 4999), (1, 1), (3, 0), (5, 63), (7, 64), (16, 4097)] {
            let mut to = vec![255u8; 5000];
            for offset in [0, 1, 16] {
                to.fill(255);
                let bytes = bytes.min(5000 - skip - offset);
                // SAFETY: both inside their vectors.
                unsafe { copy_streaming(from.as_ptr().add(skip), to.as_mut_ptr().add(offset), bytes) };
                assert_eq!(to[offset..offset + bytes], from[skip..skip + bytes]);
                assert!(to[offset + bytes..].iter().all(|&byte| byte == 255) && to[..offset].iter().all(|&b| b == 255));
            }
        }
    }
}
