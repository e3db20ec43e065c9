//! The graph as a program would keep it: every node an allocation of its own, with pointers to its neighbours.
//!
//! `shaders/bfs.comp` and `shaders/pagerank.comp` follow these pointers; they know a node's fields by offset.

use super::cpu::UNSEEN;
use super::edges::EdgeList;
use allocator_api2::{alloc::Allocator, boxed::Box, vec::Vec as HeapVec};
use std::mem::{offset_of, size_of};
use std::ptr::null;

/// A node.
#[repr(C)]
#[derive(Debug)]
pub struct Node {
    /// The nodes that its edges lead to, `out_degree` of them; null if there are none.
    pub outgoing: *const *const Node,
    /// The nodes whose edges lead here, `in_degree` of them; null if there are none.
    pub incoming: *const *const Node,
    /// Edges from here.
    pub out_degree: u32,
    /// Edges to here.
    pub in_degree: u32,
    /// Edges on the shortest way from the root; [`UNSEEN`] while none is known.
    pub level: u32,
    /// The rank after the last even and odd iterations.
    pub rank: [f32; 2],
}

// What the shaders' constants say.
const _: () = {
    assert!(offset_of!(Node, outgoing) == 0 && offset_of!(Node, incoming) == 8 && offset_of!(Node, out_degree) == 16);
    assert!(offset_of!(Node, in_degree) == 20 && offset_of!(Node, level) == 24 && offset_of!(Node, rank) == 28);
    assert!(size_of::<Node>() == 40);
};

/// The allocator had no room for the graph.
#[derive(Debug, thiserror::Error)]
#[error("no room for the graph of {nodes} nodes and {edges} edges: give the heap more address space")]
pub struct OutOfMemory {
    /// Nodes of the graph.
    pub nodes: usize,
    /// Its edges.
    pub edges: usize,
}

/// A graph of linked nodes in memory from `A`.
#[derive(Debug)]
pub struct Graph<A: Allocator + Clone> {
    /// All nodes, in the order of the list they came from. Each came out of a `Box` in `allocator`.
    nodes: HeapVec<*mut Node, A>,
    allocator: A,
}

impl<A: Allocator + Clone> Graph<A> {
    /// Links the nodes of `list`.
    ///
    /// # Errors
    /// If the allocator has no room.
    pub fn build(list: &EdgeList, allocator: A) -> Result<Self, OutOfMemory> {
        let error = OutOfMemory { nodes: list.names.len(), edges: list.edges.len() };
        Self::try_build(list, allocator).ok_or(error)
    }

    fn try_build(list: &EdgeList, allocator: A) -> Option<Self> {
        let mut nodes = HeapVec::new_in(allocator.clone());
        nodes.try_reserve_exact(list.names.len()).ok()?;
        let mut graph = Self { nodes, allocator };
        for _ in &list.names {
            let node =
                Node { outgoing: null(), incoming: null(), out_degree: 0, in_degree: 0, level: UNSEEN, rank: [0.0; 2] };
            graph.nodes.push(Box::into_raw(Box::try_new_in(node, graph.allocator.clone()).ok()?));
        }
        for backwards in [false, true] {
            for (index, neighbours) in list.neighbours(backwards).iter().enumerate() {
                let (first, degree) = graph.pointers(neighbours)?;
                // SAFETY: a live node, which nobody refers to.
                let node = unsafe { &mut *graph.nodes[index] };
                if backwards {
                    (node.incoming, node.in_degree) = (first, degree);
                } else {
                    (node.outgoing, node.out_degree) = (first, degree);
                }
            }
        }
        Some(graph)
    }

    /// An array of pointers to the nodes at `indices`; null if there are none.
    fn pointers(&self, indices: &[u32]) -> Option<(*const *const Node, u32)> {
        if indices.is_empty() {
            return Some((null(), 0));
        }
        let mut pointers = HeapVec::new_in(self.allocator.clone());
        pointers.try_reserve_exact(indices.len()).ok()?;
        pointers.extend(indices.iter().map(|&index| self.nodes[index as usize].cast_const()));
        let degree = u32::try_from(indices.len()).ok()?;
        Some((Box::into_raw(pointers.into_boxed_slice()).cast_const().cast(), degree))
    }

    /// Pointers to all nodes.
    pub fn nodes(&self) -> &[*mut Node] {
        &self.nodes
    }

    /// A value of each node.
    pub fn values<T>(&self, value: impl Fn(&Node) -> T) -> Vec<T> {
        // SAFETY: live nodes, and nobody changes them while `self` is borrowed.
        self.nodes.iter().map(|&node| value(unsafe { &*node })).collect()
    }

    /// Changes each node.
    pub fn update(&mut self, mut change: impl FnMut(usize, &mut Node)) {
        for (index, &node) in self.nodes.iter().enumerate() {
            // SAFETY: live nodes, each in the list once, and `self` is borrowed exclusively.
            change(index, unsafe { &mut *node });
        }
    }
}

impl<A: Allocator + Clone> Drop for Graph<A> {
    fn drop(&mut self) {
        for &node in &self.nodes {
            // SAFETY: from `Box::into_raw` of a box in `allocator`, in the list once, freed only here; likewise each
            // array, whose length is the degree beside it. Neighbours are not looked at.
            unsafe {
                let node = Box::from_raw_in(node, self.allocator.clone());
                for (first, degree) in [(node.outgoing, node.out_degree), (node.incoming, node.in_degree)] {
                    if !first.is_null() {
                        let array = std::ptr::slice_from_raw_parts_mut(first.cast_mut(), degree as usize);
                        drop(Box::from_raw_in(array, self.allocator.clone()));
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use allocator_api2::alloc::Global;

    #[test]
    fn nodes_point_to_their_neighbours_in_both_directions() {
        let names = ["a", "b", "c"].map(str::to_owned).to_vec();
        let list = EdgeList { names, edges: vec![(0, 1), (0, 2), (2, 0)] };
        let graph = Graph::build(&list, Global).unwrap();
        let degrees = graph.values(|node| (node.out_degree, node.in_degree));
        assert_eq!(degrees, [(2, 1), (0, 1), (1, 1)]);
        let [a, b, c] = [0, 1, 2].map(|index| graph.nodes()[index].cast_const());
        // SAFETY: the graph is alive, and the arrays are as long as the degrees say.
        unsafe {
            assert_eq!(std::slice::from_raw_parts((*a).outgoing, 2), [b, c]);
            assert_eq!(*(*c).outgoing, a);
            assert_eq!(*(*b).incoming, a);
            assert!((*b).outgoing.is_null());
        }
    }
}
