//! Following a ray through the tree. `shaders/raytrace.comp` does the same, step by step.

use super::build::{DEEPEST, Scene};
use super::math::{Vec3, add, cross, dot, reciprocal, scale, sub};
use super::node::{Node, Triangle};
use allocator_api2::alloc::Allocator;
use std::ptr::null;

/// A half-line.
#[derive(Debug, Clone, Copy)]
pub struct Ray {
    /// Where it begins.
    pub origin: Vec3,
    /// Where it goes; of any length.
    pub direction: Vec3,
}

/// Where a ray meets a triangle.
#[derive(Debug, Clone, Copy)]
pub struct Hit {
    /// Distance, in lengths of the ray's direction.
    pub t: f32,
    /// Weight of the triangle's second corner.
    pub u: f32,
    /// Weight of its third.
    pub v: f32,
    /// Whether the ray came from the side from which the corners run clockwise.
    pub back: bool,
    /// The triangle.
    pub triangle: *const Triangle,
}

/// Hits nearer than this are the surface that the ray comes from.
const NEAREST: f32 = 1e-4;
/// Further than any hit.
pub(super) const FAR: f32 = 1e6;
/// Components of a direction count as at least this large.
const STEEPEST: f32 = 1e-12;
/// Boxes count as this much larger than they are, in parts and absolutely: no triangle in them may be missed.
const SLACK: f32 = 1e-5;

/// The nearest hit.
pub fn closest_hit<A: Allocator + Clone>(scene: &Scene<A>, ray: &Ray) -> Option<Hit> {
    // SAFETY: the scene is alive and, while it is borrowed, nobody changes it.
    let hit = unsafe { trace(scene.root(), ray, false) };
    (!hit.triangle.is_null()).then_some(hit)
}

/// Whether anything is in the ray's way.
pub(super) fn any_hit<A: Allocator + Clone>(scene: &Scene<A>, ray: &Ray) -> bool {
    // SAFETY: as in `closest_hit`.
    !unsafe { trace(scene.root(), ray, true) }.triangle.is_null()
}

/// The nearest hit below `root`, or any; its triangle is null if there is none.
///
/// # Safety
/// `root` must be the root of a live scene that nobody changes meanwhile.
unsafe fn trace(root: *const Node, ray: &Ray, any: bool) -> Hit {
    let inverse = ray.direction.map(|d| {
        let d = if d.abs() < STEEPEST { if d < 0.0 { -STEEPEST } else { STEEPEST } } else { d };
        reciprocal(d)
    });
    let mut best = Hit { t: FAR, u: 0.0, v: 0.0, back: false, triangle: null() };
    let mut stack = [null(); DEEPEST + 4];
    let mut top = 0;
    let mut at = root;
    loop {
        // SAFETY: the root, and later children of inner nodes: live, and nobody writes to them.
        let node = unsafe { &*at };
        if may_hit(node, ray, inverse, best.t) {
            if node.count == 0 {
                // The nearer child first, the other one later.
                let second = usize::from(ray.direction[node.axis as usize] >= 0.0);
                stack[top] = node.children[second];
                top += 1;
                at = node.children[1 - second];
                continue;
            }
            for index in 0..node.count as usize {
                // SAFETY: a leaf has `count` triangles in a row.
                let triangle = unsafe { node.triangles.add(index) };
                // SAFETY: part of a live scene.
                unsafe { meet(triangle, ray, &mut best) };
                if any && !best.triangle.is_null() {
                    return best;
                }
            }
        }
        if top == 0 {
            return best;
        }
        top -= 1;
        at = stack[top];
    }
}

/// Whether the ray passes through the node's box (or close by) before `limit`.
fn may_hit(node: &Node, ray: &Ray, inverse: Vec3, limit: f32) -> bool {
    let mut near = 0.0f32;
    let mut far = limit;
    for (axis, inverse) in inverse.into_iter().enumerate() {
        let a = (node.lo[axis] - ray.origin[axis]) * inverse;
        let b = (node.hi[axis] - ray.origin[axis]) * inverse;
        near = near.max(a.min(b));
        far = far.min(a.max(b));
    }
    near - SLACK * near <= far + SLACK * far + SLACK
}

/// Möller and Trumbore's test: takes the hit with `triangle` if it is nearer than `best`.
///
/// # Safety
/// `triangle` must be part of a live scene that nobody changes meanwhile.
unsafe fn meet(triangle: *const Triangle, ray: &Ray, best: &mut Hit) {
    // SAFETY: the caller vouches for the triangle and with it for its corners.
    let [a, b, c] = unsafe { (*triangle).corners.map(|corner| (*corner).position) };
    let edge1 = sub(b, a);
    let edge2 = sub(c, a);
    let p = cross(ray.direction, edge2);
    let determinant = dot(edge1, p);
    if determinant.abs() < 1e-18 {
        return;
    }
    let inverse = reciprocal(determinant);
    let from = sub(ray.origin, a);
    let u = dot(from, p) * inverse;
    if !(0.0..=1.0).contains(&u) {
        return;
    }
    let q = cross(from, edge1);
    let v = dot(ray.direction, q) * inverse;
    if v < 0.0 || u + v > 1.0 {
        return;
    }
    let t = dot(edge2, q) * inverse;
    if t > NEAREST && t < best.t {
        *best = Hit { t, u, v, back: determinant < 0.0, triangle };
    }
}

impl Ray {
    /// The point at `t`.
    pub fn at(&self, t: f32) -> Vec3 {
        add(self.origin, scale(self.direction, t))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::mesh::Mesh;
    use allocator_api2::alloc::Global;

    /// A wavy square of `n` times `n` cells, standing upright.
    pub(in crate::scene) fn patch(n: u32) -> Mesh {
        let mut mesh = Mesh { positions: Vec::new(), triangles: Vec::new() };
        for index in 0..(n + 1) * (n + 1) {
            let [x, y] = [index % (n + 1), index / (n + 1)].map(|k| k as f32 / n as f32);
            mesh.positions.push([x, y, 0.2 * (7.0 * x).sin() * (5.0 * y).cos()]);
        }
        for cell in 0..n * n {
            let a = cell % n + cell / n * (n + 1);
            mesh.triangles.extend([[a, a + 1, a + n + 1], [a + 1, a + n + 2, a + n + 1]]);
        }
        mesh
    }

    /// Rays from around the scene towards points in it, always the same.
    pub(in crate::scene) fn rays(count: usize) -> impl Iterator<Item = Ray> {
        let mut state = 1u32;
        let mut random = move || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / 8_388_608.0 - 1.0
        };
        (0..count).map(move |_| {
            let origin = [3.0 * random(), 3.0 * random(), 3.0];
            Ray { origin, direction: sub([random(), random(), 0.3 * random()], origin) }
        })
    }

    pub(in crate::scene) fn closest_by_force<A: Allocator + Clone>(scene: &Scene<A>, ray: &Ray) -> Option<Hit> {
        let mut best = Hit { t: FAR, u: 0.0, v: 0.0, back: false, triangle: null() };
        for triangle in &scene.triangles {
            // SAFETY: the scene is alive and borrowed.
            unsafe { meet(triangle, ray, &mut best) };
        }
        (!best.triangle.is_null()).then_some(best)
    }

    #[test]
    fn the_tree_finds_what_brute_force_finds() {
        let scene = Scene::build(&patch(20), Global, |_| {}).unwrap();
        let mut hits = 0;
        for ray in rays(2000) {
            let (tree, force) = (closest_hit(&scene, &ray), closest_by_force(&scene, &ray));
            assert_eq!(tree.map(|hit| hit.t), force.map(|hit| hit.t));
            assert_eq!(any_hit(&scene, &ray), force.is_some());
            hits += usize::from(force.is_some());
        }
        assert!(hits > 500, "only {hits} rays hit");
    }

    #[test]
    fn rays_along_an_axis_are_found_too() {
        let scene = Scene::build(&patch(20), Global, |_| {}).unwrap();
        for index in 0..100u8 {
            let [x, y] = [index % 10, index / 10].map(|k| f32::from(k) / 5.0 - 0.9);
            let ray = Ray { origin: [x, y, 5.0], direction: [0.0, 0.0, -1.0] };
            let (tree, force) = (closest_hit(&scene, &ray), closest_by_force(&scene, &ray));
            // On an edge, rounding decides which of two triangles is met.
            let (Some(tree), Some(force)) = (tree, force) else { panic!("{ray:?} met {tree:?}, by force {force:?}") };
            assert!((tree.t - force.t).abs() < 1e-5);
        }
    }

    #[test]
    fn triangles_that_lie_on_each_other_make_one_leaf() {
        let mut mesh = patch(1);
        mesh.triangles = vec![mesh.triangles[0]; 1000];
        let scene = Scene::build(&mesh, Global, |_| {}).unwrap();
        assert_eq!((scene.node_count(), scene.triangle_count()), (1, 1000));
    }

    #[test]
    fn a_point_of_a_mesh_can_be_built_and_traced() {
        let mesh = Mesh { positions: vec![[5.0; 3]], triangles: vec![[0, 0, 0]; 9] };
        let mut scene = Scene::build(&mesh, Global, |_| {}).unwrap();
        scene.bend();
        assert!(rays(50).all(|ray| closest_hit(&scene, &ray).is_none()));
    }

    #[test]
    fn every_triangle_is_in_exactly_one_leaf() {
        let scene = Scene::build(&patch(30), Global, |_| {}).unwrap();
        // SAFETY: the scene is alive.
        let counts = scene.nodes.iter().map(|&node| unsafe { (*node).count as usize });
        assert_eq!(counts.sum::<usize>(), scene.triangle_count());
    }
}
