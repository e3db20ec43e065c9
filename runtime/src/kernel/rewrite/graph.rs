//! The control flow of a function: predecessors, dominators, loops.

use rspirv::dr::{Function, Instruction, Operand};
use rspirv::spirv::{Op, Word};
use std::collections::HashMap;
use std::ops::Range;

/// A loop, by indices of blocks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Loop {
    pub(super) header: usize,
    pub(super) merge: usize,
    /// The block that goes back to the header.
    pub(super) back: usize,
}

/// Which block leads where.
pub(super) struct Graph {
    pub(super) index: HashMap<Word, usize>,
    pub(super) predecessors: Vec<Vec<usize>>,
    /// Of each block that can be reached, where those that it dominates stand in `tree`, itself first.
    within: Vec<Option<Range<usize>>>,
    /// The dominator tree, from the entry on, each block followed by all that it dominates.
    tree: Vec<usize>,
}

/// The blocks that a terminator leads to.
pub(super) fn targets(terminator: &Instruction) -> Vec<Word> {
    let from = match terminator.class.opcode {
        Op::Branch => 0,
        // The condition or selector comes first.
        Op::BranchConditional | Op::Switch => 1,
        _ => return Vec::new(),
    };
    terminator.operands[from.min(terminator.operands.len())..].iter().filter_map(Operand::id_ref_any).collect()
}

impl Graph {
    pub(super) fn of(function: &Function) -> Self {
        let count = function.blocks.len();
        let index: HashMap<_, _> =
            function.blocks.iter().enumerate().filter_map(|(index, block)| Some((block.label_id()?, index))).collect();
        let successors: Vec<Vec<usize>> = function
            .blocks
            .iter()
            .map(|block| {
                let labels = block.instructions.last().map(targets).unwrap_or_default();
                labels.iter().filter_map(|label| index.get(label).copied()).collect()
            })
            .collect();
        let mut predecessors = vec![Vec::new(); count];
        for (block, successors) in successors.iter().enumerate() {
            for &successor in successors {
                predecessors[successor].push(block);
            }
        }
        let dominators = dominators(&successors, &predecessors);
        let (tree, within) = tree_of(&dominators, count);
        Self { index, predecessors, within, tree }
    }

    pub(super) fn reachable(&self, block: usize) -> bool {
        self.within[block].is_some()
    }

    /// Whether every way to `block` leads through `by`.
    pub(super) fn dominates(&self, by: usize, block: usize) -> bool {
        let inside = |(by, block): (&Range<usize>, &Range<usize>)| by.contains(&block.start);
        by == block || self.within[by].as_ref().zip(self.within[block].as_ref()).is_some_and(inside)
    }

    /// The loops, inner ones before those they are in.
    pub(super) fn loops(&self, function: &Function) -> Vec<Loop> {
        let mut loops = Vec::new();
        for (header, block) in function.blocks.iter().enumerate().rev() {
            let merge = block.instructions.iter().find(|instruction| instruction.class.opcode == Op::LoopMerge);
            let Some(merge) = merge.and_then(|merge| merge.operands.first()).and_then(Operand::id_ref_any) else {
                continue;
            };
            let Some(&merge) = self.index.get(&merge) else { continue };
            let back =
                self.predecessors[header].iter().find(|&&from| self.reachable(from) && self.dominates(header, from));
            // A loop that never goes back runs once.
            if let Some(&back) = back {
                loops.push(Loop { header, merge, back });
            }
        }
        loops
    }

    /// Whether a block is part of a loop.
    pub(super) fn contains(&self, of: Loop, block: usize) -> bool {
        self.reachable(block)
            && self.dominates(of.header, block)
            && !(self.reachable(of.merge) && self.dominates(of.merge, block))
            && block != of.merge
    }

    /// The blocks of a loop, by index, in time that follows from how many they are.
    pub(super) fn blocks(&self, of: Loop) -> Vec<usize> {
        let Some(all) = self.within[of.header].clone() else { return Vec::new() };
        let after = self.within[of.merge].clone().filter(|after| all.contains(&after.start));
        let parts = match after {
            Some(after) => [all.start..after.start, after.end..all.end],
            None => [all, 0..0],
        };
        let mut blocks: Vec<usize> = parts.into_iter().flat_map(|part| &self.tree[part]).copied().collect();
        // Where the merge block leads to the header there is no loop.
        blocks.retain(|&block| self.contains(of, block));
        blocks.sort_unstable();
        blocks
    }
}

/// The blocks that can be reached from the first, each after one that leads to it, with that one's place in this order.
fn depth_first(successors: &[Vec<usize>]) -> (Vec<usize>, Vec<usize>) {
    let (mut order, mut parents) = (Vec::new(), Vec::new());
    if successors.is_empty() {
        return (order, parents);
    }
    let mut seen = vec![false; successors.len()];
    let mut stack = vec![(0, 0, 0)];
    seen[0] = true;
    order.push(0);
    parents.push(0);
    while let Some((block, place, next)) = stack.pop() {
        let Some(&successor) = successors[block].get(next) else { continue };
        stack.push((block, place, next + 1));
        if !std::mem::replace(&mut seen[successor], true) {
            stack.push((successor, order.len(), 0));
            order.push(successor);
            parents.push(place);
        }
    }
    (order, parents)
}

/// Immediate dominators of the blocks that can be reached, in an order in which they come first; the entry's is itself.
///
/// Georgiadis, "Linear-time algorithms for dominators and related problems", section 2.3 (semi-NCA): nearly linear in what
/// compilers emit, and in what they would not.
fn dominators(successors: &[Vec<usize>], predecessors: &[Vec<usize>]) -> Vec<(usize, usize)> {
    let (order, parents) = depth_first(successors);
    let mut place = vec![usize::MAX; successors.len()];
    order.iter().enumerate().for_each(|(at, &block)| place[block] = at);
    let mut semi: Vec<usize> = parents.clone();
    let mut forest = Forest { ancestor: parents.clone(), label: (0..order.len()).collect() };
    for at in (1..order.len()).rev() {
        let mut least = parents[at];
        for &predecessor in &predecessors[order[at]] {
            let from = place[predecessor];
            if from != usize::MAX {
                let label = forest.least(from, at, &semi);
                // What has no ancestor yet is itself.
                least = least.min(if label > at { semi[label] } else { label });
            }
        }
        semi[at] = least;
    }
    let mut immediate = parents;
    for at in 1..order.len() {
        let mut dominator = immediate[at];
        while dominator > semi[at] {
            dominator = immediate[dominator];
        }
        immediate[at] = dominator;
    }
    order.iter().zip(immediate).map(|(&block, dominator)| (block, order[dominator])).collect()
}

/// The part of the depth-first tree that was gone through: from the last place back to the one at hand.
struct Forest {
    ancestor: Vec<usize>,
    /// The place with the least semidominator between a place and its ancestor.
    label: Vec<usize>,
}

impl Forest {
    /// The place with the least semidominator on the way from `at` up to, and without, what was not gone through: places up to `last`.
    fn least(&mut self, at: usize, last: usize, semi: &[usize]) -> usize {
        if at <= last {
            return at;
        }
        // Paths are shortened for those that come later.
        let mut path = vec![at];
        let mut up = self.ancestor[at];
        while up > last {
            path.push(up);
            up = self.ancestor[up];
        }
        let mut least = *path.last().unwrap_or(&at);
        for &place in path.iter().rev() {
            if semi[self.label[place]] < semi[self.label[least]] {
                least = place;
            }
            let label = self.label[least];
            self.label[place] = label;
            self.ancestor[place] = up;
            least = place;
        }
        self.label[at]
    }
}

/// The dominator tree as a list in which what a block dominates follows it, and of each block its part of the list.
fn tree_of(dominators: &[(usize, usize)], blocks: usize) -> (Vec<usize>, Vec<Option<Range<usize>>>) {
    let mut children = vec![Vec::new(); blocks];
    dominators.iter().skip(1).for_each(|&(block, dominator)| children[dominator].push(block));
    let mut tree = Vec::with_capacity(dominators.len());
    let mut within = vec![None; blocks];
    let mut stack: Vec<(usize, usize)> = dominators.first().map(|&(entry, _)| (entry, 0)).into_iter().collect();
    while let Some((block, next)) = stack.pop() {
        if next == 0 {
            within[block] = Some(tree.len()..tree.len());
            tree.push(block);
        }
        match children[block].get(next) {
            Some(&child) => stack.extend([(block, next + 1), (child, 0)]),
            None => {
                if let Some(range) = &mut within[block] {
                    range.end = tree.len();
                }
            }
        }
    }
    (tree, within)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng, rngs::SmallRng};

    /// Whether `to` can be reached from the entry without passing `without`.
    fn reaches(successors: &[Vec<usize>], to: usize, without: Option<usize>) -> bool {
        let mut seen = vec![false; successors.len()];
        let mut waiting = vec![0];
        while let Some(block) = waiting.pop() {
            if Some(block) != without && !std::mem::replace(&mut seen[block], true) {
                waiting.extend(&successors[block]);
            }
        }
        seen[to]
    }

    #[test]
    fn a_block_dominates_another_if_and_only_if_no_way_leads_around_it() {
        let mut random = SmallRng::seed_from_u64(1);
        for _ in 0..300 {
            let count = random.random_range(1..14);
            let successors: Vec<Vec<usize>> = (0..count)
                .map(|_| (0..random.random_range(0..4)).map(|_| random.random_range(0..count)).collect())
                .collect();
            let mut predecessors = vec![Vec::new(); count];
            for (block, successors) in successors.iter().enumerate() {
                successors.iter().for_each(|&successor| predecessors[successor].push(block));
            }
            let (tree, within) = tree_of(&dominators(&successors, &predecessors), count);
            let graph = Graph { index: HashMap::new(), predecessors, within, tree };
            for block in 0..count {
                assert_eq!(graph.reachable(block), reaches(&successors, block, None), "{successors:?}");
                for by in 0..count {
                    let expected = by == block
                        || graph.reachable(by) && graph.reachable(block) && !reaches(&successors, block, Some(by));
                    assert_eq!(graph.dominates(by, block), expected, "{by} over {block} in {successors:?}");
                }
            }
        }
    }
}
