//! Building the tree: top down, splitting where the surface area heuristic over a few bins says so.
//!
//! Every node is an allocation of its own and knows its children by pointer, as in any textbook. The builder
//! takes an allocator and does not ask what it allocates.

use super::math::{Vec3, cross, sub, unit};
use super::node::{Bounds, Node, Triangle, Vertex};
use super::pages::PageSet;
use crate::mesh::Mesh;
use allocator_api2::{alloc::Allocator, boxed::Box, vec::Vec as HeapVec};
use std::ptr::null;

/// The allocator had no room for the scene.
#[derive(Debug, thiserror::Error)]
#[error("no room for the scene of {triangles} triangles: give the heap more address space, or take a smaller mesh")]
pub struct OutOfMemory {
    /// Triangles of the mesh.
    pub triangles: usize,
}

/// A mesh and the tree over it, in memory from `A`.
///
/// The mesh is moved and scaled to fill the cube from -1 to 1 and stand on its floor.
#[derive(Debug)]
pub struct Scene<A: Allocator + Clone> {
    /// All nodes, parents before children, the root first. Each came out of a `Box` in `allocator`.
    pub(super) nodes: Vec<*mut Node>,
    pub(super) triangles: HeapVec<Triangle, A>,
    /// Never moved or resized: triangles point into it.
    pub(super) vertices: HeapVec<Vertex, A>,
    allocator: A,
}

// SAFETY: the pointers lead to memory that the scene owns; nothing in it is bound to a thread or changes
// through a shared reference, so it may be moved to and read from other threads like the structures it is made of.
unsafe impl<A: Allocator + Clone + Send> Send for Scene<A> {}
// SAFETY: as above.
unsafe impl<A: Allocator + Clone + Sync> Sync for Scene<A> {}

/// Leaves hold at most this many triangles, unless the tree would get too deep.
const LEAF: usize = 4;
/// Bins per split.
const BINS: usize = 16;
/// From this depth on, nodes are split in the middle, whatever it costs.
const BALANCED_FROM: usize = 32;
/// Deepest level: the tracers' stacks have room for it.
pub(super) const DEEPEST: usize = 60;

impl<A: Allocator + Clone> Scene<A> {
    /// Builds the tree. `tick` is told how many triangles have found their leaf.
    ///
    /// # Errors
    /// If the allocator has no room.
    pub fn build(mesh: &Mesh, allocator: A, tick: impl FnMut(usize)) -> Result<Self, OutOfMemory> {
        Self::try_build(mesh, allocator, tick).ok_or(OutOfMemory { triangles: mesh.triangles.len() })
    }

    fn try_build(mesh: &Mesh, allocator: A, tick: impl FnMut(usize)) -> Option<Self> {
        let mut vertices = HeapVec::new_in(allocator.clone());
        vertices.try_reserve_exact(mesh.positions.len()).ok()?;
        vertices.extend(fitted(mesh).into_iter().map(|position| Vertex { position, normal: [0.0; 3] }));
        let mut triangles = HeapVec::new_in(allocator.clone());
        triangles.try_reserve_exact(mesh.triangles.len()).ok()?;

        let items = Item::all(mesh, &vertices);
        let order = (0..mesh.triangles.len()).collect();
        let mut scene = Self { nodes: Vec::new(), triangles, vertices, allocator };
        let first = scene.triangles.as_ptr();
        let mut builder = Builder { scene: &mut scene, items, order, first, tick };
        let all = 0..mesh.triangles.len();
        builder.node(all, 0)?;

        let order = builder.order;
        let first = scene.vertices.as_ptr();
        // Indices were checked when the mesh was read.
        let corner = |index: u32| first.wrapping_add(index as usize);
        scene.triangles.extend(order.iter().map(|&index| Triangle { corners: mesh.triangles[index].map(corner) }));
        scene.update_normals(&mut PageSet::default());
        Some(scene)
    }

    /// The root of the tree.
    pub fn root(&self) -> *const Node {
        self.nodes[0]
    }

    /// Number of nodes.
    pub fn node_count(&self) -> usize {
        self.nodes.len()
    }

    /// Number of triangles.
    pub fn triangle_count(&self) -> usize {
        self.triangles.len()
    }

    /// All pages that any part of the scene lies in.
    pub fn pages(&self) -> PageSet {
        let mut pages = PageSet::default();
        for &node in &self.nodes {
            pages.insert(node, 1);
        }
        pages.insert(self.triangles.as_ptr(), self.triangles.len());
        pages.insert(self.vertices.as_ptr(), self.vertices.len());
        pages
    }

    /// Gives each vertex the mean normal of the triangles around it, larger ones counting more; notes the pages it
    /// wrote.
    pub(super) fn update_normals(&mut self, written: &mut PageSet) {
        let first = self.vertices.as_mut_ptr();
        let mut sums = vec![[0.0; 3]; self.vertices.len()];
        for triangle in &self.triangles {
            // SAFETY: corners point into `vertices`, which nothing else refers to while `self` is borrowed.
            let [a, b, c] = triangle.corners.map(|corner| unsafe { (*corner).position });
            let normal = cross(sub(b, a), sub(c, a));
            for corner in triangle.corners {
                let sum: &mut Vec3 = &mut sums[(corner.addr() - first.addr()) / size_of::<Vertex>()];
                *sum = super::math::add(*sum, normal);
            }
        }
        for (index, sum) in sums.into_iter().enumerate() {
            let normal = unit(sum);
            // SAFETY: `sums` is as long as `vertices`, and `self` is borrowed exclusively.
            let vertex = unsafe { &mut *first.add(index) };
            if vertex.normal != normal {
                vertex.normal = normal;
                written.insert(&raw const vertex.normal, 1);
            }
        }
    }
}

impl<A: Allocator + Clone> Drop for Scene<A> {
    fn drop(&mut self) {
        for &node in &self.nodes {
            // SAFETY: each came from `Box::into_raw` of a box in `allocator`, is in the list once, and goes only here.
            drop(unsafe { Box::from_raw_in(node, self.allocator.clone()) });
        }
    }
}

/// The mesh's positions, moved and scaled to fit into the cube from -1 to 1.
fn fitted(mesh: &Mesh) -> Vec<Vec3> {
    let (lo, hi) = mesh.bounds();
    let extent = (0..3).map(|axis| hi[axis] - lo[axis]).fold(0.0, f32::max);
    let factor = if extent > 0.0 { 2.0 / f64::from(extent) } else { 1.0 };
    let place = |position: Vec3| {
        std::array::from_fn(|axis| {
            // Centred, but standing on the floor.
            let origin =
                if axis == 1 { f64::from(lo[1]) } else { f64::midpoint(f64::from(lo[axis]), f64::from(hi[axis])) };
            let value = (f64::from(position[axis]) - origin) * factor;
            (if axis == 1 { value - 1.0 } else { value }) as f32
        })
    };
    mesh.positions.iter().map(|&position| place(position)).collect()
}

/// What the builder knows of a triangle.
struct Item {
    bounds: Bounds,
    /// Middle of the bounds.
    centre: Vec3,
}

impl Item {
    fn all(mesh: &Mesh, vertices: &[Vertex]) -> Vec<Self> {
        let item = |corners: &[u32; 3]| {
            let bounds =
                corners.iter().fold(Bounds::EMPTY, |all, &corner| all.with(vertices[corner as usize].position));
            let centre = std::array::from_fn(|axis| f32::midpoint(bounds.lo[axis], bounds.hi[axis]));
            Self { bounds, centre }
        };
        mesh.triangles.iter().map(item).collect()
    }
}

struct Builder<'a, A: Allocator + Clone, F> {
    scene: &'a mut Scene<A>,
    items: Vec<Item>,
    /// Triangles of the mesh in the order of the leaves.
    order: Vec<usize>,
    /// Where the first triangle of that order will be.
    first: *const Triangle,
    tick: F,
}

impl<A: Allocator + Clone, F: FnMut(usize)> Builder<'_, A, F> {
    /// Makes the node over `order[span]`, and all below it.
    fn node(&mut self, span: std::ops::Range<usize>, depth: usize) -> Option<*mut Node> {
        let bounds =
            self.order[span.clone()].iter().fold(Bounds::EMPTY, |all, &item| all.union(self.items[item].bounds));
        let node = Node { lo: bounds.lo, count: 0, hi: bounds.hi, axis: 0, children: [null(); 2], triangles: null() };
        let node = Box::into_raw(Box::try_new_in(node, self.scene.allocator.clone()).ok()?);
        self.scene.nodes.push(node);
        let split = if span.len() <= LEAF || depth == DEEPEST { None } else { self.split(span.clone(), depth) };
        match split {
            None => {
                // SAFETY: `node` is a live allocation that only this function knows yet.
                unsafe {
                    (*node).count = u32::try_from(span.len()).ok()?;
                    (*node).triangles = self.first.wrapping_add(span.start);
                }
                (self.tick)(span.len());
            }
            Some((axis, middle)) => {
                let children = [self.node(span.start..middle, depth + 1)?, self.node(middle..span.end, depth + 1)?];
                // SAFETY: as above; the children only know their own children.
                unsafe {
                    (*node).axis = axis as u32;
                    (*node).children = children.map(<*mut Node>::cast_const);
                }
            }
        }
        Some(node)
    }

    /// Orders `order[span]` in two parts and says along which axis and where the second begins; `None` if all
    /// triangles have the same centre.
    fn split(&mut self, span: std::ops::Range<usize>, depth: usize) -> Option<(usize, usize)> {
        let centres =
            self.order[span.clone()].iter().fold(Bounds::EMPTY, |all, &item| all.with(self.items[item].centre));
        let extent = sub(centres.hi, centres.lo);
        let widest = (0..3).max_by(|&a, &b| extent[a].total_cmp(&extent[b]))?;
        if extent[widest] <= 0.0 {
            return None;
        }
        let (items, order) = (&self.items, &mut self.order[span.clone()]);
        if depth < BALANCED_FROM {
            let best =
                (0..3).filter(|&axis| extent[axis] > 0.0).filter_map(|axis| cheapest(items, order, &centres, axis));
            if let Some((_, axis, bin)) = best.min_by(|a, b| a.0.total_cmp(&b.0)) {
                let side = |&item: &usize| bin_of(&items[item], &centres, axis) >= bin;
                order.sort_by_key(side);
                return Some((axis, span.start + order.partition_point(|item| !side(item))));
            }
        }
        let half = order.len() / 2;
        order.select_nth_unstable_by(half, |&a, &b| {
            items[a].centre[widest].total_cmp(&items[b].centre[widest]).then(a.cmp(&b))
        });
        Some((widest, span.start + half))
    }
}

fn bin_of(item: &Item, centres: &Bounds, axis: usize) -> usize {
    let place = (item.centre[axis] - centres.lo[axis]) / (centres.hi[axis] - centres.lo[axis]);
    ((place * BINS as f32) as usize).min(BINS - 1)
}

/// The cheapest split along `axis`: its cost, the axis, and the first bin of the second part.
fn cheapest(items: &[Item], order: &[usize], centres: &Bounds, axis: usize) -> Option<(f32, usize, usize)> {
    let mut bins = [(Bounds::EMPTY, 0usize); BINS];
    for &item in order {
        let bin = &mut bins[bin_of(&items[item], centres, axis)];
        *bin = (bin.0.union(items[item].bounds), bin.1 + 1);
    }
    let join = |all: (Bounds, usize), bin: &(Bounds, usize)| (all.0.union(bin.0), all.1 + bin.1);
    let cost = |(bounds, count): (Bounds, usize)| bounds.half_area() * count as f32;
    let split = |at: usize| {
        let before = bins[..at].iter().fold((Bounds::EMPTY, 0), join);
        let after = bins[at..].iter().fold((Bounds::EMPTY, 0), join);
        (before.1 > 0 && after.1 > 0).then(|| (cost(before) + cost(after), axis, at))
    };
    (1..BINS).filter_map(split).min_by(|a, b| a.0.total_cmp(&b.0))
}
