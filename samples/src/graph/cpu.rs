//! Breadth-first search and PageRank on the list of edges, in the plainest way: what the device's results are
//! held against.

use super::edges::EdgeList;

/// The level of a node that cannot be reached.
pub const UNSEEN: u32 = u32::MAX;

/// For each node the number of edges on the shortest way from `root`, or [`UNSEEN`].
pub fn breadth_first(list: &EdgeList, root: u32) -> Vec<u32> {
    let neighbours = list.neighbours(false);
    let mut levels = vec![UNSEEN; list.names.len()];
    levels[root as usize] = 0;
    let mut queue = std::collections::VecDeque::from([root]);
    while let Some(node) = queue.pop_front() {
        for &next in &neighbours[node as usize] {
            if levels[next as usize] == UNSEEN {
                levels[next as usize] = levels[node as usize] + 1;
                queue.push_back(next);
            }
        }
    }
    levels
}

/// Each node's rank after `iterations` rounds: `1 - damping` comes from anywhere, the rest along the edges.
///
/// What nodes without edges would hand on is lost on the way, so the ranks do not add up to 1; brought to that
/// sum they converge to the same values as if it had been spread over all nodes.
pub fn page_rank(list: &EdgeList, damping: f64, iterations: u32) -> Vec<f64> {
    let count = list.names.len() as f64;
    let degrees: Vec<_> = list.neighbours(false).iter().map(|neighbours| neighbours.len() as f64).collect();
    let mut ranks = vec![1.0 / count; list.names.len()];
    for _ in 0..iterations {
        let mut next = vec![(1.0 - damping) / count; ranks.len()];
        for &(from, to) in &list.edges {
            next[to as usize] += damping * ranks[from as usize] / degrees[from as usize];
        }
        ranks = next;
    }
    ranks
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graph(nodes: usize, edges: &[(u32, u32)]) -> EdgeList {
        EdgeList { names: (0..nodes).map(|index| index.to_string()).collect(), edges: edges.to_vec() }
    }

    #[test]
    fn levels_are_shortest_ways() {
        let list = graph(6, &[(0, 1), (1, 2), (0, 2), (2, 3), (3, 0), (5, 0)]);
        assert_eq!(breadth_first(&list, 0), [0, 1, 1, 2, UNSEEN, UNSEEN]);
    }

    #[test]
    fn a_ring_ranks_all_alike() {
        let ranks = page_rank(&graph(4, &[(0, 1), (1, 2), (2, 3), (3, 0)]), 0.85, 20);
        assert!(ranks.iter().all(|rank| (rank - 0.25).abs() < 1e-12));
    }

    #[test]
    fn ranks_satisfy_their_equation() {
        let list = graph(4, &[(0, 1), (0, 2), (1, 2), (3, 2), (2, 0)]);
        let ranks = page_rank(&list, 0.85, 200);
        let expected = 0.15 / 4.0 + 0.85 * (ranks[0] / 2.0 + ranks[1] + ranks[3]);
        assert!((ranks[2] - expected).abs() < 1e-12);
    }
}
