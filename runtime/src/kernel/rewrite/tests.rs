//! Rewriting without a device.

use super::*;

const SAXPY: &[u8] = include_bytes!("../../../../tests/shaders/plain/spv/saxpy.spv");

#[test]
fn accesses_are_translated_and_counted() {
    let rewritten = rewrite(SAXPY).unwrap();

    assert_eq!((rewritten.stats.loads, rewritten.stats.stores, rewritten.stats.translations), (2, 1, 3));
}
