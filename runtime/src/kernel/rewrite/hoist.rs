//! Loads at addresses that a loop does not change are looked up once, ahead of it.
//!
//! Whether the loop makes the load is not known there, so the look is a *peek* (`link_peek_read`): it finds a page that is there and marked as
//! accessed, or nothing, and reports nothing. The load in the loop takes what was found. If that was nothing, it translates like any other, and in
//! the fast variant, which has no code for that, it misses. So no page is asked for that the shader would not touch, and a wild
//! pointer that is not followed stays without consequence. Live, a page may go while the loop runs: there every load is translated.
//!
//! Ahead of a loop stands the only block that leads into it. What the address is computed from is computed there again, as
//! far as that follows from operands alone. Loads that look at the run of the argument they come from are left: that is cheaper.

use super::addresses::Addresses;
use super::code::Code;
use super::covers::{Covers, Does, Span};
use super::error::RewriteError;
use super::graph::{Graph, Loop};
use super::layout::Layouts;
use super::link::Linked;
use super::loops::tail;
use super::operands::MemoryOperands;
use super::runs::{Origin, Runs};
use rspirv::dr::{Function, Instruction, Operand};
use rspirv::spirv::{Op, Word};
use std::collections::{HashMap, HashSet};

/// Most peeks ahead of a function's loops.
const MAX_PEEKS: usize = 32;
/// Most loads that a place ahead of a loop is looked for.
const MAX_ATTEMPTS: usize = 4 * MAX_PEEKS;
/// Most instructions that an address is computed from.
const MAX_CLONES: usize = 32;

/// What was peeked at ahead of loops, by block and pointer of the load.
#[derive(Default)]
pub(super) struct Hoisted {
    peeked: HashMap<(usize, Word), Word>,
}

impl Hoisted {
    pub(super) fn get(&self, block: usize, pointer: Word) -> Option<Word> {
        self.peeked.get(&(block, pointer)).copied()
    }

    pub(super) fn peeks(&self) -> usize {
        self.peeked.len()
    }
}

/// What is known of the function.
#[derive(Clone, Copy)]
pub(super) struct Around<'a> {
    pub(super) layouts: &'a Layouts,
    pub(super) linked: &'a Linked,
    pub(super) runs: &'a Runs,
    pub(super) graph: &'a Graph,
    pub(super) addresses: &'a Addresses<'a>,
}

/// Puts peeks ahead of a function's loops.
pub(super) fn hoist(code: &mut Code, function: &mut Function, around: Around<'_>) -> Result<Hoisted, RewriteError> {
    let graph = around.graph;
    let mut hoisted = Hoisted::default();
    // Inner loops first.
    let loops = graph.loops(function);
    if loops.is_empty() {
        return Ok(hoisted);
    }
    let mut ahead: HashMap<usize, Vec<Instruction>> = HashMap::new();
    let places = definitions(function);
    let mut covers = Covers::new(graph);
    let mut attempts = 0;
    'blocks: for (at, block) in function.blocks.iter().enumerate() {
        covers.enter(at);
        for load in block.instructions.iter().filter(|instruction| instruction.class.opcode == Op::Load) {
            let Some((pointer, span)) = candidate(code, around, load) else { continue };
            if covers.find(&span, Does::Read).is_some() {
                continue;
            }
            covers.note(span, Does::Read, 0);
            attempts += 1;
            if hoisted.peeks() == MAX_PEEKS || attempts > MAX_ATTEMPTS {
                break 'blocks;
            }
            // What an inner loop decides, the loops around it decide too: of those that do not, the outermost.
            let around_it = loops.iter().filter(|each| graph.contains(**each, at));
            let ways_in = around_it.filter_map(|&each| Some((each, way_in(graph, each)?)));
            let found = ways_in.map_while(|(each, ahead)| {
                Some((ahead, follow(code, function, &places, around, each, ahead, pointer)?))
            });
            let Some((block, order)) = found.last() else { continue };
            let Some((address, instructions)) = repeat(code, function, &places, &order, pointer) else { continue };
            let out = ahead.entry(block).or_default();
            out.extend(instructions);
            let ulong = code.uint(64);
            let (integer, peeked) = (code.fresh_value(ulong), code.fresh_value(ulong));
            out.push(Instruction::new(Op::ConvertPtrToU, Some(ulong), Some(integer), vec![Operand::IdRef(address)]));
            let operands = [around.linked.function("link_peek_read")?, integer].map(Operand::IdRef).to_vec();
            out.push(Instruction::new(Op::FunctionCall, Some(ulong), Some(peeked), operands));
            hoisted.peeked.insert((at, pointer), peeked);
        }
    }
    for (block, instructions) in ahead {
        let block = &mut function.blocks[block].instructions;
        let at = tail(block);
        block.splice(at..at, instructions);
    }
    Ok(hoisted)
}

/// A load that cannot straddle a page and has no argument's run to look at.
fn candidate(code: &Code, around: Around<'_>, load: &Instruction) -> Option<(Word, Span)> {
    let pointer = load.operands.first()?.id_ref_any()?;
    let pointee = code.physical(pointer)?;
    let (memory, _) = MemoryOperands::parse(load.operands.get(1..)?)?;
    if around.addresses.is_matrix(pointer) {
        return None;
    }
    if around.runs.of_pointer(pointer).is_some_and(|guess| guess.origin != Origin::Somewhere) {
        return None;
    }
    let bytes = around.layouts.size(code, pointee)?;
    let align = memory.align.unwrap_or(1).max(around.layouts.scalar(code, pointee, 0)?);
    let (key, offset) = around.addresses.get(pointer);
    let span = Span { key, offset, bytes, align: u64::from(align) };
    (align.is_power_of_two() && bytes <= span.align).then_some((pointer, span))
}

/// Blocks that values are defined in, and their instructions.
fn definitions(function: &Function) -> HashMap<Word, (usize, usize)> {
    let all = function.blocks.iter().enumerate().flat_map(|(at, block)| {
        block.instructions.iter().enumerate().filter_map(move |(place, one)| Some((one.result_id?, (at, place))))
    });
    all.collect()
}

/// The only block that leads into a loop.
fn way_in(graph: &Graph, of: Loop) -> Option<usize> {
    let mut outside = graph.predecessors[of.header].iter().filter(|&&from| !graph.contains(of, from));
    match (outside.next(), outside.next()) {
        (Some(&only), None) => graph.reachable(only).then_some(only),
        _ => None,
    }
}

/// Whether a pointer to a variable leads to the same part of it always: loading that is harmless wherever it is done.
fn is_constant_place(
    code: &Code,
    function: &Function,
    places: &HashMap<Word, (usize, usize)>,
    mut pointer: Word,
) -> bool {
    while let Some(&(block, place)) = places.get(&pointer) {
        let made = &function.blocks[block].instructions[place];
        let [Operand::IdRef(base), indices @ ..] = &made.operands[..] else { return false };
        let constant = |index: &Operand| index.id_ref_any().is_some_and(|index| code.constant_value(index).is_some());
        let chain = matches!(made.class.opcode, Op::AccessChain | Op::InBoundsAccessChain | Op::CopyObject);
        if !(chain && indices.iter().all(constant)) {
            return false;
        }
        pointer = *base;
    }
    code.global(pointer).is_some()
}

/// The instructions to repeat at the end of the block `ahead` to compute `value` there, each after what it uses, if nothing in the loop decides it.
fn follow(
    code: &Code,
    function: &Function,
    places: &HashMap<Word, (usize, usize)>,
    around: Around<'_>,
    of: Loop,
    ahead: usize,
    value: Word,
) -> Option<Vec<Word>> {
    let mut seen = HashSet::new();
    let mut order: Vec<Word> = Vec::new();
    let mut waiting = vec![(value, false)];
    while let Some((id, done)) = waiting.pop() {
        if done {
            order.push(id);
            continue;
        }
        if !seen.insert(id) {
            continue;
        }
        // Globals and parameters have no place.
        let Some(&(block, place)) = places.get(&id) else { continue };
        if !around.graph.contains(of, block) {
            if around.graph.dominates(block, ahead) {
                continue;
            }
            return None;
        }
        if !around.addresses.is_pure(id) || order.len() + waiting.len() > MAX_CLONES {
            return None;
        }
        let instruction = &function.blocks[block].instructions[place];
        if instruction.class.opcode == Op::Load {
            let pointer = instruction.operands.first()?.id_ref_any()?;
            if !is_constant_place(code, function, places, pointer) {
                return None;
            }
        }
        waiting.push((id, true));
        waiting.extend(instruction.operands.iter().filter_map(Operand::id_ref_any).map(|operand| (operand, false)));
    }
    Some(order)
}

/// Copies of instructions, and what is `value` after them.
fn repeat(
    code: &mut Code,
    function: &Function,
    places: &HashMap<Word, (usize, usize)>,
    order: &[Word],
    value: Word,
) -> Option<(Word, Vec<Instruction>)> {
    let mut clones: HashMap<Word, Word> = HashMap::new();
    let mut instructions = Vec::with_capacity(order.len());
    for &id in order {
        let (block, place) = places[&id];
        let mut clone = function.blocks[block].instructions[place].clone();
        for operand in &mut clone.operands {
            if let Some(used) = operand.id_ref_any_mut()
                && let Some(&new) = clones.get(used)
            {
                *used = new;
            }
        }
        let new = code.fresh_value(clone.result_type?);
        clone.result_id = Some(new);
        clones.insert(id, new);
        instructions.push(clone);
    }
    Some((clones.get(&value).copied().unwrap_or(value), instructions))
}
