//! Changing the mesh in place, and making the tree fit again without building it anew.

use super::build::Scene;
use super::node::{Bounds, Node};
use super::pages::PageSet;
use allocator_api2::alloc::Allocator;

/// Height above which the mesh bends: the upper third of the cube that the scene fills.
const BEND_ABOVE: f32 = 1.0 / 3.0;

impl<A: Allocator + Clone> Scene<A> {
    /// Bends the upper third of the mesh sideways, more the higher it is, and refits the tree. Returns the pages
    /// that it wrote to: of vertices that moved or whose normals turned, and of nodes whose bounds changed.
    pub fn bend(&mut self) -> PageSet {
        let mut written = PageSet::default();
        let highest = self.vertices.iter().map(|vertex| vertex.position[1]).fold(BEND_ABOVE, f32::max);
        // A flat mesh has no upper third; then the part right of the middle counts as high.
        let (axis, from) = if highest > BEND_ABOVE { (1, BEND_ABOVE) } else { (0, 0.0) };
        for vertex in &mut self.vertices {
            let above = vertex.position[axis] - from;
            if above > 0.0 {
                vertex.position[2] += 0.9 * above * above;
                vertex.position[1] -= 0.25 * above * above;
                written.insert(&raw const vertex.position, 1);
            }
        }
        self.update_normals(&mut written);
        self.refit(&mut written);
        written
    }

    /// Makes the bounds of all nodes right again; notes the pages it wrote.
    fn refit(&mut self, written: &mut PageSet) {
        // Children come after their parents in the list.
        for &node in self.nodes.iter().rev() {
            // SAFETY: nodes, triangles and vertices belong to `self`, which is borrowed exclusively.
            let bounds = unsafe { bounds(node) };
            // SAFETY: as above; no other reference into the scene is alive from here on.
            let node = unsafe { &mut *node };
            if (node.lo, node.hi) != (bounds.lo, bounds.hi) {
                (node.lo, node.hi) = (bounds.lo, bounds.hi);
                written.insert(&raw const *node, 1);
            }
        }
    }
}

/// The box around what is directly below a node.
///
/// # Safety
/// `node` and what it points to must be part of a live scene.
unsafe fn bounds(node: *const Node) -> Bounds {
    // SAFETY: the caller vouches for the node; a leaf has `count` triangles in a row, each with three corners,
    // and an inner node has two children.
    unsafe {
        if (*node).count == 0 {
            let [a, b] = (*node).children.map(|child| Bounds { lo: (*child).lo, hi: (*child).hi });
            a.union(b)
        } else {
            let triangles = std::slice::from_raw_parts((*node).triangles, (*node).count as usize);
            let corners = triangles.iter().flat_map(|triangle| triangle.corners);
            corners.fold(Bounds::EMPTY, |all, corner| all.with((*corner).position))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::trace::tests::{closest_by_force, patch, rays};
    use super::super::{closest_hit, node::Bounds};
    use super::*;
    use allocator_api2::alloc::Global;

    #[test]
    fn a_refitted_tree_finds_what_brute_force_finds() {
        let mut scene = Scene::build(&patch(12), Global, |_| {}).unwrap();
        scene.bend();
        for ray in rays(500) {
            let (tree, force) = (closest_hit(&scene, &ray), closest_by_force(&scene, &ray));
            assert_eq!(tree.map(|hit| hit.t), force.map(|hit| hit.t));
        }
    }

    #[test]
    fn refit_leaves_every_node_exactly_as_large_as_its_contents() {
        let mut scene = Scene::build(&patch(12), Global, |_| {}).unwrap();
        scene.bend();
        for &node in &scene.nodes {
            // SAFETY: the scene is alive.
            let (node, bounds) = unsafe { (&*node, bounds(node)) };
            assert_eq!(Bounds { lo: node.lo, hi: node.hi }, bounds);
        }
    }

    #[test]
    fn only_part_of_a_large_scene_is_written() {
        let mut scene = Scene::build(&patch(100), Global, |_| {}).unwrap();
        let written = scene.bend();
        assert!(!written.is_empty());
        assert!(written.len() < scene.pages().len() / 2, "{} of {}", written.len(), scene.pages().len());
    }

    #[test]
    fn refitting_what_did_not_change_writes_nothing() {
        let mut scene = Scene::build(&patch(12), Global, |_| {}).unwrap();
        let mut written = PageSet::default();
        scene.refit(&mut written);
        scene.update_normals(&mut written);
        assert!(written.is_empty());
    }
}
