//! Arithmetic that comes out the same, bit by bit, on every device that rounds `+`, `-` and `*` correctly.
//!
//! Vulkan promises that for these three and no more: division may be off by 2.5 units in the last place, and
//! `sqrt`, `normalize` or `dot` by more. `shaders/raytrace.comp` holds the same functions in the same order.

/// A point, direction or colour.
pub type Vec3 = [f32; 3];

/// `a + b`
pub fn add(a: Vec3, b: Vec3) -> Vec3 {
    [a[0] + b[0], a[1] + b[1], a[2] + b[2]]
}

/// `a - b`
pub fn sub(a: Vec3, b: Vec3) -> Vec3 {
    [a[0] - b[0], a[1] - b[1], a[2] - b[2]]
}

/// `a` times the number `k`
pub fn scale(a: Vec3, k: f32) -> Vec3 {
    [a[0] * k, a[1] * k, a[2] * k]
}

/// Component by component
pub fn mul(a: Vec3, b: Vec3) -> Vec3 {
    [a[0] * b[0], a[1] * b[1], a[2] * b[2]]
}

/// The dot product
pub fn dot(a: Vec3, b: Vec3) -> f32 {
    a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
}

/// The cross product
pub fn cross(a: Vec3, b: Vec3) -> Vec3 {
    [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]]
}

/// `1 / x` to about 1e-7, for `x` well inside the range of `f32`: a guess from the bits, then Newton's method.
pub fn reciprocal(x: f32) -> f32 {
    let a = x.abs();
    let mut r = f32::from_bits(0x7ef3_11c7_u32.wrapping_sub(a.to_bits()));
    r = r * (2.0 - a * r);
    r = r * (2.0 - a * r);
    r = r * (2.0 - a * r);
    if x < 0.0 { -r } else { r }
}

/// `1 / sqrt(x)` to about 1e-6, for positive `x`, likewise.
pub fn inverse_sqrt(x: f32) -> f32 {
    let half = 0.5 * x;
    let mut r = f32::from_bits(0x5f37_59df_u32.wrapping_sub(x.to_bits() >> 1));
    r = r * (1.5 - half * r * r);
    r = r * (1.5 - half * r * r);
    r = r * (1.5 - half * r * r);
    r
}

/// `a` with length 1, or zero where it has none.
pub fn unit(a: Vec3) -> Vec3 {
    let square = dot(a, a);
    if square > 1e-24 { scale(a, inverse_sqrt(square)) } else { [0.0; 3] }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    /// Without the decoration a driver may fuse `a * b + c`, which rounds once instead of twice.
    #[test]
    fn the_kernel_forbids_contraction_and_uses_no_operation_that_devices_round_differently() {
        const DECORATE: u32 = 71;
        const NO_CONTRACTION: u32 = 42;
        // OpFAdd, OpFSub, OpFMul and OpVectorTimesScalar; then OpFDiv to OpFMod, the matrix operations and OpDot.
        const EXACT: [u32; 4] = [129, 131, 133, 142];
        const INEXACT: [u32; 9] = [136, 140, 141, 143, 144, 145, 146, 147, 148];
        // OpExtInst, and of GLSL's FAbs, FMin, FMax and FClamp.
        const EXTENDED: u32 = 12;
        const COMPARING: [u32; 4] = [4, 37, 40, 43];
        let bytes = include_bytes!("../../shaders/spv/raytrace.spv");
        let words: Vec<_> = bytes.chunks_exact(4).map(|word| u32::from_le_bytes(word.try_into().unwrap())).collect();
        let mut exempt = HashSet::new();
        let mut arithmetic = 0;
        let mut at = 5;
        while at < words.len() {
            let (length, operation) = ((words[at] >> 16) as usize, words[at] & 0xffff);
            assert!(!INEXACT.contains(&operation), "operation {operation} at word {at}");
            if operation == DECORATE && words[at + 2] == NO_CONTRACTION {
                exempt.insert(words[at + 1]);
            }
            if operation == EXTENDED {
                assert!(COMPARING.contains(&words[at + 4]), "extended instruction {} at word {at}", words[at + 4]);
            }
            if EXACT.contains(&operation) {
                arithmetic += 1;
                assert!(exempt.contains(&words[at + 2]), "result {} of operation {operation}", words[at + 2]);
            }
            at += length;
        }
        assert!(arithmetic > 100);
    }

    proptest::proptest! {
        #[test]
        fn reciprocals_and_roots_are_close(x in 1e-12f32..1e12) {
            assert!((f64::from(reciprocal(x)) * f64::from(x) - 1.0).abs() < 3e-7);
            assert!((f64::from(reciprocal(-x)) * f64::from(x) + 1.0).abs() < 3e-7);
            assert!((f64::from(inverse_sqrt(x)) * f64::from(x).sqrt() - 1.0).abs() < 2e-6);
        }
    }
}
