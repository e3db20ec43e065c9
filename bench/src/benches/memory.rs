//! The limit: how fast one thread copies memory here.

use crate::harness::seconds;
use std::hint::black_box;

/// Two blocks of memory, touched.
pub(super) struct Memcpy {
    from: Vec<u8>,
    to: Vec<u8>,
}

impl Memcpy {
    /// Blocks of `bytes`.
    pub(super) fn new(bytes: usize) -> Self {
        Self { from: vec![1; bytes], to: vec![2; bytes] }
    }

    /// Seconds that one thread needs to copy `bytes`, piece after piece where the blocks are smaller.
    pub(super) fn seconds(&mut self, bytes: usize) -> f64 {
        seconds(|| {
            let mut left = bytes;
            while left > 0 {
                let piece = left.min(self.from.len());
                self.to[..piece].copy_from_slice(black_box(&self.from[..piece]));
                black_box(&mut self.to);
                left -= piece;
            }
        })
        .0
    }
}
