//! What the tree consists of. `shaders/raytrace.comp` declares the same three structures in the same order.

use super::math::Vec3;
use std::mem::{offset_of, size_of};

/// A corner of the mesh.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Vertex {
    /// Where it is.
    pub position: Vec3,
    /// The surface's direction there, of length 1 (or 0 if all triangles around it are degenerate).
    pub normal: Vec3,
}

/// A triangle.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Triangle {
    /// Its corners, shared with its neighbours.
    pub corners: [*const Vertex; 3],
}

/// A node of the hierarchy. A leaf has `count` triangles, an inner node two children. It fills a cache line.
#[repr(C, align(64))]
#[derive(Debug)]
pub struct Node {
    /// Smallest coordinates of what is below.
    pub lo: Vec3,
    /// Triangles of a leaf; 0 in an inner node.
    pub count: u32,
    /// Largest coordinates of what is below.
    pub hi: Vec3,
    /// The axis along which an inner node's first child comes before its second.
    pub axis: u32,
    /// An inner node's children; null in a leaf.
    pub children: [*const Node; 2],
    /// A leaf's triangles; null in an inner node.
    pub triangles: *const Triangle,
}

// What the shader's `scalar` layout makes of the same declarations.
const _: () = {
    assert!(size_of::<Vertex>() == 24 && offset_of!(Vertex, normal) == 12);
    assert!(size_of::<Triangle>() == 24);
    assert!(size_of::<Node>() == 64 && offset_of!(Node, count) == 12 && offset_of!(Node, hi) == 16);
    assert!(offset_of!(Node, axis) == 28 && offset_of!(Node, children) == 32 && offset_of!(Node, triangles) == 48);
};

/// A box around things.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Bounds {
    pub(super) lo: Vec3,
    pub(super) hi: Vec3,
}

impl Bounds {
    /// Around nothing.
    pub(super) const EMPTY: Self = Self { lo: [f32::INFINITY; 3], hi: [f32::NEG_INFINITY; 3] };

    /// Around both.
    pub(super) fn union(self, other: Self) -> Self {
        let mut both = self;
        for axis in 0..3 {
            both.lo[axis] = both.lo[axis].min(other.lo[axis]);
            both.hi[axis] = both.hi[axis].max(other.hi[axis]);
        }
        both
    }

    /// Around `self` and `point`.
    pub(super) fn with(self, point: Vec3) -> Self {
        self.union(Self { lo: point, hi: point })
    }

    /// Half the surface; 0 around nothing.
    pub(super) fn half_area(self) -> f32 {
        let [x, y, z] = super::math::sub(self.hi, self.lo);
        if x < 0.0 { 0.0 } else { x * y + y * z + z * x }
    }
}
