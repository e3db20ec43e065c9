//! The control flow of a function: predecessors, dominators, loops.

use rspirv::dr::{Function, Instruction, Operand};
use rspirv::spirv::{Op, Word};
use std::collections::HashMap;

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
    /// Immediate dominator of each reachable block; the entry's is itself.
    dominator: Vec<Option<usize>>,
    /// Place of each block in reverse postorder.
    order: Vec<usize>,
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
        let postorder = postorder(&successors);
        let mut order = vec![usize::MAX; count];
        for (place, &block) in postorder.iter().rev().enumerate() {
            order[block] = place;
        }
        let mut graph = Self { index, predecessors, dominator: vec![None; count], order };
        graph.find_dominators(&postorder);
        graph
    }

    /// Cooper, Harvey and Kennedy, "A simple, fast dominance algorithm".
    fn find_dominators(&mut self, postorder: &[usize]) {
        let Some(&entry) = postorder.last() else { return };
        self.dominator[entry] = Some(entry);
        let mut changed = true;
        while changed {
            changed = false;
            for &block in postorder.iter().rev().skip(1) {
                let mut new = None;
                for &predecessor in &self.predecessors[block] {
                    if self.dominator[predecessor].is_some() {
                        new = Some(new.map_or(predecessor, |other| self.meet(other, predecessor)));
                    }
                }
                if self.dominator[block] != new {
                    self.dominator[block] = new;
                    changed = true;
                }
            }
        }
    }

    fn meet(&self, mut a: usize, mut b: usize) -> usize {
        while a != b {
            let later = if self.order[a] > self.order[b] { &mut a } else { &mut b };
            match self.dominator[*later] {
                Some(dominator) if dominator != *later => *later = dominator,
                _ => return *later,
            }
        }
        a
    }

    pub(super) fn reachable(&self, block: usize) -> bool {
        self.dominator[block].is_some()
    }

    /// Whether every way to `block` leads through `by`.
    pub(super) fn dominates(&self, by: usize, mut block: usize) -> bool {
        loop {
            if block == by {
                return true;
            }
            match self.dominator[block] {
                Some(dominator) if dominator != block => block = dominator,
                _ => return false,
            }
        }
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
}

/// Blocks that can be reached from the first, each after those it leads to.
fn postorder(successors: &[Vec<usize>]) -> Vec<usize> {
    let mut postorder = Vec::with_capacity(successors.len());
    if successors.is_empty() {
        return postorder;
    }
    let mut seen = vec![false; successors.len()];
    let mut stack = vec![(0, 0)];
    seen[0] = true;
    while let Some((block, next)) = stack.pop() {
        match successors[block].get(next) {
            Some(&successor) => {
                stack.push((block, next + 1));
                if !std::mem::replace(&mut seen[successor], true) {
                    stack.push((successor, 0));
                }
            }
            None => postorder.push(block),
        }
    }
    postorder
}
