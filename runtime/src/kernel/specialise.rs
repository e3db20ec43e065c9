//! Kernels cut down to one variant before a driver sees them.
//!
//! A module holds all variants of every translation; drivers would put them all in place and optimise them before they find out, from
//! the specialisation constant, that most of it is dead: for small kernels, hundreds of milliseconds. So the constant gets its value
//! here, branches that follow from it are taken, and what is then unreachable goes: on llvmpipe, pipelines are made five to fifty
//! times faster.
//!
//! Functions are cut once for each set of constants that their calls pass ([`instances`](super::instances)).
//!
//! Only what is certain is folded: 32-bit unsigned and boolean operations on constants, at module scope and in functions, calls of
//! functions that return such a constant, and two-way branches. A merge or continue block that cannot be reached but is still
//! named stays, empty, as SPIR-V's rules of structured control flow ask for.

use super::instances::Instances;
use super::read::read;
use crate::device::layout::variant;
use rspirv::binary::Assemble;
use rspirv::dr::{Block, Function, Instruction, Module, Operand};
use rspirv::spirv::{Decoration, Op, Word};
use std::collections::{HashMap, HashSet};

/// The module `words` with the variant's bits put in; `None` if it cannot be read, which is the driver's to say.
pub(crate) fn specialise(words: &[u32], variant_bits: u32) -> Option<Vec<u32>> {
    let (_, mut module) = read(bytemuck::cast_slice(words)).ok()?;
    set_variant(&mut module, variant_bits);
    let mut known = fold_globals(&mut module);
    let constants = constant_functions(&module, &known);
    let mut fresh = Fresh::new(&module);
    let mut instances = Instances::new(&mut module, &mut fresh);
    while let Some(mut function) = instances.next(&mut module, &mut known, &mut fresh) {
        cut(&mut function, &mut known, &constants, &mut fresh);
        instances.call(&mut function, &known, &mut fresh);
        module.functions.push(function);
    }
    fresh.declare(&mut module);
    drop_unused_functions(&mut module);
    Some(module.assemble())
}

/// Puts the variant's bits into the specialisation constant.
fn set_variant(module: &mut Module, bits: u32) {
    let is_variant = |annotation: &Instruction| {
        annotation.operands.get(1) == Some(&Operand::Decoration(Decoration::SpecId))
            && annotation.operands.get(2) == Some(&Operand::LiteralBit32(variant::CONSTANT_ID))
    };
    let decorated: HashSet<Word> = module
        .annotations
        .iter()
        .filter(|annotation| is_variant(annotation))
        .filter_map(|annotation| annotation.operands.first()?.id_ref_any())
        .collect();
    module.annotations.retain(|annotation| !is_variant(annotation));
    for global in &mut module.types_global_values {
        if global.class.opcode == Op::SpecConstant && global.result_id.is_some_and(|id| decorated.contains(&id)) {
            *global =
                Instruction::new(Op::Constant, global.result_type, global.result_id, vec![Operand::LiteralBit32(bits)]);
        }
    }
}

/// What is known of constants: 32-bit unsigned integers, and booleans as 0 and 1.
pub(super) type Known = HashMap<Word, u32>;

/// Works out operations on constants at module scope.
fn fold_globals(module: &mut Module) -> Known {
    let mut known = Known::new();
    let mut words = HashSet::new();
    let mut booleans = HashSet::new();
    for global in &mut module.types_global_values {
        let Some(id) = global.result_id else { continue };
        let is_word = global.result_type.is_some_and(|ty| words.contains(&ty));
        match (global.class.opcode, &global.operands[..]) {
            (Op::TypeInt, [Operand::LiteralBit32(32), Operand::LiteralBit32(0)]) => {
                words.insert(id);
            }
            (Op::TypeBool, _) => {
                booleans.insert(id);
            }
            (Op::Constant, [Operand::LiteralBit32(value)]) if is_word => {
                known.insert(id, *value);
            }
            (Op::ConstantTrue, _) => {
                known.insert(id, 1);
            }
            (Op::ConstantFalse, _) => {
                known.insert(id, 0);
            }
            (Op::SpecConstantOp, [Operand::LiteralSpecConstantOpInteger(opcode), operands @ ..]) => {
                let Some(value) = fold(*opcode, operands, &known) else { continue };
                if is_word {
                    *global = Instruction::new(
                        Op::Constant,
                        global.result_type,
                        Some(id),
                        vec![Operand::LiteralBit32(value)],
                    );
                } else if global.result_type.is_some_and(|ty| booleans.contains(&ty)) {
                    let opcode = if value != 0 { Op::ConstantTrue } else { Op::ConstantFalse };
                    *global = Instruction::new(opcode, global.result_type, Some(id), vec![]);
                } else {
                    continue;
                }
                known.insert(id, value);
            }
            _ => {}
        }
    }
    known
}

/// The result of an operation on constants.
fn fold(opcode: Op, operands: &[Operand], known: &Known) -> Option<u32> {
    let value = |index: usize| known.get(&operands.get(index)?.id_ref_any()?).copied();
    let truth = |one: bool| Some(u32::from(one));
    match opcode {
        Op::CopyObject => value(0),
        Op::BitwiseAnd => Some(value(0)? & value(1)?),
        Op::BitwiseOr => Some(value(0)? | value(1)?),
        Op::INotEqual | Op::LogicalNotEqual => truth(value(0)? != value(1)?),
        Op::IEqual | Op::LogicalEqual => truth(value(0)? == value(1)?),
        Op::LogicalNot => truth(value(0)? == 0),
        // One operand may decide.
        Op::LogicalAnd => match (value(0), value(1)) {
            (Some(0), _) | (_, Some(0)) => Some(0),
            (left, right) => truth(left? != 0 && right? != 0),
        },
        Op::LogicalOr => match (value(0), value(1)) {
            (Some(1), _) | (_, Some(1)) => Some(1),
            (left, right) => truth(left? != 0 || right? != 0),
        },
        Op::Select => match value(0)? {
            0 => value(2),
            _ => value(1),
        },
        _ => None,
    }
}

/// Functions that do nothing but return a constant; and which.
fn constant_functions(module: &Module, known: &Known) -> Known {
    let constant = |function: &Function| {
        let [block] = &function.blocks[..] else { return None };
        let returned = match &block.instructions[..] {
            [end] if end.class.opcode == Op::ReturnValue => end.operands.first()?.id_ref_any()?,
            _ => return None,
        };
        Some((function.def_id()?, *known.get(&returned)?))
    };
    module.functions.iter().filter_map(constant).collect()
}

/// New ids, and undefined values for what came along ways that are gone.
pub(super) struct Fresh {
    next: Word,
    undefined: HashMap<Word, Word>,
}

impl Fresh {
    fn new(module: &Module) -> Self {
        Self { next: module.header.as_ref().map_or(1, |header| header.bound), undefined: HashMap::new() }
    }

    /// An id that nothing has.
    pub(super) fn id(&mut self) -> Word {
        self.next += 1;
        self.next - 1
    }

    /// An undefined value of a type.
    fn undefined(&mut self, ty: Word) -> Word {
        let next = &mut self.next;
        *self.undefined.entry(ty).or_insert_with(|| {
            *next += 1;
            *next - 1
        })
    }

    fn declare(self, module: &mut Module) {
        let mut made: Vec<_> = self.undefined.into_iter().collect();
        made.sort_unstable();
        for (ty, id) in made {
            module.types_global_values.push(Instruction::new(Op::Undef, Some(ty), Some(id), vec![]));
        }
        if let Some(header) = &mut module.header {
            header.bound = self.next;
        }
    }
}

/// What remains of a function's blocks.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Gone,
    /// Only named by a merge instruction: ends at once.
    Empty,
    /// Only named as a loop's continue block: leads back to the loop's header, this block.
    Back(Word),
    Lives,
}

/// Takes the branches of a function that follow from constants, and what cannot be reached out of it.
fn cut(function: &mut Function, known: &mut Known, constants: &Known, fresh: &mut Fresh) {
    let place: HashMap<Word, usize> =
        function.blocks.iter().enumerate().filter_map(|(at, block)| Some((block.label_id()?, at))).collect();
    let mut fates = vec![Fate::Gone; function.blocks.len()];
    if let Some(first) = fates.first_mut() {
        *first = Fate::Lives;
    }
    let order = forward(function, &place);
    // When a block's turn comes, all that leads to it has had it, but for ways back, which lead to blocks that live.
    let mut turn = vec![usize::MAX; function.blocks.len()];
    order.iter().enumerate().for_each(|(index, &at)| turn[at] = index);
    let mut edges: HashSet<(Word, Word)> = HashSet::new();
    for &at in &order {
        if fates[at] != Fate::Lives {
            continue;
        }
        let block = &mut function.blocks[at];
        let label = block.label_id().unwrap_or_default();
        for instruction in &block.instructions {
            let Some(id) = instruction.result_id else { continue };
            let value = match instruction.class.opcode {
                Op::FunctionCall => {
                    let callee = instruction.operands.first().and_then(Operand::id_ref_any);
                    callee.and_then(|callee| constants.get(&callee)).copied()
                }
                Op::Phi => {
                    let before = |from: Word| place.get(&from).is_some_and(|&from| turn[from] < turn[at]);
                    phi(instruction, before, |from| edges.contains(&(from, label)), known)
                }
                opcode => fold(opcode, &instruction.operands, known),
            };
            known.extend(value.map(|value| (id, value)));
        }
        // A loop keeps its way back, which its merge instruction asks for.
        let is_back = |target: Word| place.get(&target).is_some_and(|&to| turn[to] <= turn[at]);
        take_branch(block, known, is_back);
        for target in targets(block) {
            edges.insert((label, target));
            if let Some(&to) = place.get(&target) {
                fates[to] = Fate::Lives;
            }
        }
    }
    keep_named(function, &mut fates, &place);
    for (block, fate) in function.blocks.iter_mut().zip(&fates) {
        match fate {
            Fate::Gone | Fate::Lives => continue,
            Fate::Empty => block.instructions = vec![Instruction::new(Op::Unreachable, None, None, vec![])],
            Fate::Back(header) => {
                edges.insert((block.label_id().unwrap_or_default(), *header));
                block.instructions = vec![Instruction::new(Op::Branch, None, None, vec![Operand::IdRef(*header)])];
            }
        }
    }
    let stubs: HashSet<Word> = function
        .blocks
        .iter()
        .zip(&fates)
        .filter(|(_, fate)| matches!(fate, Fate::Back(_)))
        .filter_map(|(block, _)| block.label_id())
        .collect();
    let mut left = fates.iter();
    function.blocks.retain(|_| left.next().is_some_and(|fate| *fate != Fate::Gone));
    for block in &mut function.blocks {
        let label = block.label_id().unwrap_or_default();
        for phi in block.instructions.iter_mut().filter(|instruction| instruction.class.opcode == Op::Phi) {
            let ty = phi.result_type.unwrap_or_default();
            let mut kept = Vec::with_capacity(phi.operands.len());
            for pair in phi.operands.chunks_exact(2) {
                let from = pair[1].id_ref_any().unwrap_or_default();
                if !edges.contains(&(from, label)) {
                    continue;
                }
                let value = if stubs.contains(&from) { Operand::IdRef(fresh.undefined(ty)) } else { pair[0].clone() };
                kept.extend([value, pair[1].clone()]);
            }
            phi.operands = kept;
        }
    }
}

/// A function's blocks, each after all that lead to it other than by a way back.
fn forward(function: &Function, place: &HashMap<Word, usize>) -> Vec<usize> {
    let next = |at: usize| -> Vec<usize> {
        targets(&function.blocks[at]).iter().filter_map(|target| place.get(target)).copied().collect()
    };
    let mut order = Vec::with_capacity(function.blocks.len());
    let mut seen = vec![false; function.blocks.len()];
    let mut path = Vec::new();
    if let Some(first) = seen.first_mut() {
        *first = true;
        path.push((0, next(0)));
    }
    while let Some((at, left)) = path.last_mut() {
        match left.pop() {
            Some(to) if !std::mem::replace(&mut seen[to], true) => path.push((to, next(to))),
            Some(_) => {}
            None => {
                order.push(*at);
                path.pop();
            }
        }
    }
    order.reverse();
    order
}

/// The value of a phi that has the same along every way that there is, if none of them is a way back.
fn phi(
    phi: &Instruction,
    before: impl Fn(Word) -> bool,
    leads_here: impl Fn(Word) -> bool,
    known: &Known,
) -> Option<u32> {
    let mut value = None;
    for pair in phi.operands.chunks_exact(2) {
        let from = pair[1].id_ref_any()?;
        if !before(from) {
            return None;
        }
        if !leads_here(from) {
            continue;
        }
        let one = *known.get(&pair[0].id_ref_any()?)?;
        if value.is_some_and(|value| value != one) {
            return None;
        }
        value = Some(one);
    }
    value
}

/// Turns a two-way branch on a constant into one that is always taken, unless it is what a way back is left by.
fn take_branch(block: &mut Block, known: &Known, is_back: impl Fn(Word) -> bool) {
    let Some(end) = block.instructions.last_mut().filter(|end| end.class.opcode == Op::BranchConditional) else {
        return;
    };
    let id = |index: usize| end.operands.get(index).and_then(Operand::id_ref_any);
    let (Some(condition), Some(then), Some(other)) = (id(0), id(1), id(2)) else { return };
    let Some(&condition) = known.get(&condition) else { return };
    let (target, left) = if condition != 0 { (then, other) } else { (other, then) };
    if is_back(left) && left != target {
        return;
    }
    *end = Instruction::new(Op::Branch, None, None, vec![Operand::IdRef(target)]);
    let before = block.instructions.len().checked_sub(2);
    if let Some(merge) = before.filter(|&merge| block.instructions[merge].class.opcode == Op::SelectionMerge) {
        block.instructions.remove(merge);
    }
}

/// Blocks that a block may lead to.
fn targets(block: &Block) -> Vec<Word> {
    let Some(end) = block.instructions.last() else { return Vec::new() };
    let ids = end.operands.iter().filter_map(Operand::id_ref_any);
    match end.class.opcode {
        Op::Branch => ids.collect(),
        // The condition or the selector comes first.
        Op::BranchConditional | Op::Switch => ids.skip(1).collect(),
        _ => Vec::new(),
    }
}

/// Blocks that cannot be reached but that merge instructions of living ones name.
fn keep_named(function: &Function, fates: &mut [Fate], place: &HashMap<Word, usize>) {
    for at in 0..function.blocks.len() {
        if fates[at] != Fate::Lives {
            continue;
        }
        let block = &function.blocks[at];
        let header = block.label_id().unwrap_or_default();
        for instruction in &block.instructions {
            let name = |index: usize| {
                instruction.operands.get(index).and_then(Operand::id_ref_any).and_then(|id| place.get(&id)).copied()
            };
            let (merge, back) = match instruction.class.opcode {
                Op::SelectionMerge => (name(0), None),
                Op::LoopMerge => (name(0), name(1)),
                _ => continue,
            };
            for (named, fate) in [(merge, Fate::Empty), (back, Fate::Back(header))] {
                if let Some(named) = named.filter(|&named| fates[named] == Fate::Gone) {
                    fates[named] = fate;
                }
            }
        }
    }
}

/// Takes out functions that nothing calls, and all that is said of what is no longer there.
pub(super) fn drop_unused_functions(module: &mut Module) {
    let calls: HashMap<Word, Vec<Word>> = module
        .functions
        .iter()
        .filter_map(|function| {
            let called = |instruction: &Instruction| match instruction.class.opcode {
                Op::FunctionCall => instruction.operands.first().and_then(Operand::id_ref_any),
                _ => None,
            };
            Some((function.def_id()?, function.all_inst_iter().filter_map(called).collect()))
        })
        .collect();
    let mut waiting: Vec<Word> =
        module.entry_points.iter().filter_map(|entry| entry.operands.get(1)?.id_ref_any()).collect();
    let mut used = HashSet::new();
    while let Some(function) = waiting.pop() {
        if used.insert(function) {
            waiting.extend(calls.get(&function).into_iter().flatten());
        }
    }
    module.functions.retain(|function| function.def_id().is_some_and(|id| used.contains(&id)));
    let defined: HashSet<Word> = module.all_inst_iter().filter_map(|instruction| instruction.result_id).collect();
    let stays = |instruction: &Instruction| {
        instruction.operands.first().and_then(Operand::id_ref_any).is_none_or(|id| defined.contains(&id))
    };
    module.debug_names.retain(stays);
    module.annotations.retain(stays);
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAXPY: &[u8] = include_bytes!("../../../tests/shaders/spv/saxpy.spv");

    fn words(spirv: &[u8]) -> Vec<u32> {
        spirv.chunks_exact(4).map(bytemuck::pod_read_unaligned).collect()
    }

    #[test]
    fn the_fast_variant_is_a_fraction_of_the_module() {
        let whole = words(SAXPY);
        let fast = specialise(&whole, variant::FAST | variant::IDEMPOTENT | variant::LINEAR).unwrap();
        assert!(fast.len() * 8 < whole.len(), "{} of {} words are left", fast.len(), whole.len());
        let full = specialise(&whole, variant::IDEMPOTENT).unwrap();
        assert!(fast.len() < full.len() && full.len() < whole.len());
    }

    #[test]
    fn what_is_specialised_says_no_more_of_the_constant() {
        let probe = specialise(&words(SAXPY), variant::PROBE).unwrap();
        let (_, module) = read(bytemuck::cast_slice(&probe)).unwrap();
        let id = Operand::LiteralBit32(variant::CONSTANT_ID);
        assert!(module.annotations.iter().all(|annotation| annotation.operands.get(2) != Some(&id)));
        assert_eq!(specialise(&probe, variant::FAST).unwrap(), probe, "nothing is left to specialise");
    }

    #[test]
    fn noise_is_left_to_the_driver() {
        assert_eq!(specialise(&[7; 100], 0), None);
    }
}
