//! Which kernels can be replayed without a probe.
//!
//! A workgroup that missed a page runs again from its start. That is safe if the first run, as far as it came, changed nothing that the
//! second one sees. Three kinds of kernels are proven to be so:
//!
//! - Those that store nothing.
//! - Those that load nothing: what they store follows from their arguments and place. Atomics count as such stores if repeating them
//!   changes nothing (minimum, maximum, and, or) and nobody looks at what they return.
//! - Those with one invocation in a workgroup, in which nothing is translated after a store on any path: what misses has not stored.
//!
//! In the last two, nothing may differ from run to run but memory: no group operations, no clocks, no tickets drawn with atomics.
//!
//! Two things that look safe are not. That in each invocation loads come before stores: another invocation of the workgroup may
//! have stored before this one missed, and what it loaded may be what it stored (`y[i] = a * x[i] + y[i]`). That source and destination
//! are different arguments: they may overlap, and no decoration that compilers emit says that they do not.

use super::code::Code;
use super::graph::Graph;
use super::operands::is_atomic;
use rspirv::dr::{Function, Instruction, Operand};
use rspirv::spirv::{Op, Word};
use std::collections::{HashMap, HashSet};
use std::fmt;

/// Whether a kernel's workgroups can run again over their own stores, and why.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Replay {
    /// It could not be proven: a probe comes first.
    #[default]
    AfterProbe,
    /// It stores nothing.
    NoStores,
    /// It loads nothing, and its atomics can be repeated.
    NoLoads,
    /// Its workgroups have one invocation, and nothing can be missed after a store.
    StoresLast,
}

impl Replay {
    /// All of them, in an order that stays.
    pub(in crate::kernel) const ALL: [Self; 4] = [Self::AfterProbe, Self::NoStores, Self::NoLoads, Self::StoresLast];
}

impl fmt::Display for Replay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AfterProbe => "after a probe",
            Self::NoStores => "without a probe: it stores nothing",
            Self::NoLoads => "without a probe: it loads nothing, and its atomics can be repeated",
            Self::StoresLast => "without a probe: one invocation a workgroup, and nothing can be missed after a store",
        })
    }
}

/// What an instruction does to physical memory.
#[derive(Clone, Copy, Default)]
struct Does {
    loads: bool,
    /// Stores, or does something else that must not be repeated.
    stores: bool,
    /// An atomic that must not be repeated.
    once: bool,
}

/// Classifies a kernel before it is rewritten; `entry` is its entry function and `size` the constant that is its workgroup's size.
pub(super) fn classify(code: &Code, entry: Word, size: Word) -> Replay {
    let used = operands_in_use(code);
    let all = || code.module.functions.iter().flat_map(|function| function.all_inst_iter());
    let does: Vec<Does> = all().map(|instruction| effect(code, &used, instruction)).collect();
    if !does.iter().any(|does| does.stores) {
        return Replay::NoStores;
    }
    if all().any(|instruction| varies(&used, instruction)) {
        return Replay::AfterProbe;
    }
    if !does.iter().any(|does| does.loads || does.once) {
        return Replay::NoLoads;
    }
    if has_one_invocation(code, size) && stores_come_last(code, &used, entry) {
        return Replay::StoresLast;
    }
    Replay::AfterProbe
}

/// Ids that some instruction of a function takes.
fn operands_in_use(code: &Code) -> HashSet<Word> {
    let all = code.module.functions.iter().flat_map(|function| function.all_inst_iter());
    all.flat_map(|instruction| instruction.operands.iter().filter_map(Operand::id_ref_any)).collect()
}

fn effect(code: &Code, used: &HashSet<Word>, instruction: &Instruction) -> Does {
    let physical = |index: usize| {
        let id = instruction.operands.get(index).and_then(Operand::id_ref_any);
        id.is_some_and(|id| code.physical(id).is_some())
    };
    match instruction.class.opcode {
        Op::Load => Does { loads: physical(0), ..Does::default() },
        Op::Store => Does { stores: physical(0), ..Does::default() },
        Op::CopyMemory => Does { loads: physical(1), stores: physical(0), once: false },
        Op::AtomicLoad => Does { loads: physical(0), ..Does::default() },
        Op::AtomicStore => Does { stores: physical(0), ..Does::default() },
        opcode if is_atomic(opcode) && physical(0) => {
            let repeatable = matches!(
                opcode,
                Op::AtomicSMin | Op::AtomicUMin | Op::AtomicSMax | Op::AtomicUMax | Op::AtomicAnd | Op::AtomicOr
            );
            let unseen = instruction.result_id.is_none_or(|id| !used.contains(&id));
            Does { loads: !unseen, stores: true, once: !repeatable }
        }
        _ => Does::default(),
    }
}

/// Whether an instruction's result may be another one when the workgroup runs again, or when a neighbour is poisoned.
fn varies(used: &HashSet<Word>, instruction: &Instruction) -> bool {
    let name = instruction.class.opname;
    let seen = instruction.result_id.is_some_and(|id| used.contains(&id));
    name.starts_with("Group")
        || name.starts_with("Subgroup")
        || name.starts_with("ReadClock")
        || (name.starts_with("Atomic") && seen)
}

/// Whether the constant says that the workgroup's size is one, whatever is specialised.
fn has_one_invocation(code: &Code, size: Word) -> bool {
    let components = code.global(size).map(|size| &size.operands);
    components.is_some_and(|components| {
        !components.is_empty()
            && components
                .iter()
                .all(|component| component.id_ref_any().and_then(|id| code.constant_value(id)) == Some(1))
    })
}

/// Whether a function, with what it calls, translates or stores.
#[derive(Clone, Copy, Default)]
struct Summary {
    translates: bool,
    stores: bool,
    /// Something is translated after a store.
    mixes: bool,
}

fn stores_come_last(code: &Code, used: &HashSet<Word>, entry: Word) -> bool {
    let functions: HashMap<Word, &Function> =
        code.module.functions.iter().filter_map(|function| Some((function.def_id()?, function))).collect();
    let mut summaries = HashMap::new();
    // Recursion is not allowed in shaders; where it is found, nothing is proven.
    summarise(code, used, &functions, entry, &mut summaries, &mut HashSet::new()).is_some_and(|entry| !entry.mixes)
}

fn summarise(
    code: &Code,
    used: &HashSet<Word>,
    functions: &HashMap<Word, &Function>,
    id: Word,
    done: &mut HashMap<Word, Summary>,
    open: &mut HashSet<Word>,
) -> Option<Summary> {
    /// Calls nested deeper than this are not looked into.
    const MAX_DEPTH: usize = 64;
    if let Some(&summary) = done.get(&id) {
        return Some(summary);
    }
    if open.len() >= MAX_DEPTH || !open.insert(id) {
        return None;
    }
    let function = functions.get(&id)?;
    let graph = Graph::of(function);
    // Of each block, alone: in order.
    let mut blocks = Vec::new();
    for block in &function.blocks {
        let mut all = Summary::default();
        for instruction in &block.instructions {
            let does = match (instruction.class.opcode, instruction.operands.first()) {
                (Op::FunctionCall, Some(Operand::IdRef(callee))) => {
                    summarise(code, used, functions, *callee, done, open)?
                }
                _ => {
                    let does = effect(code, used, instruction);
                    // An object's store is in parts, or a page's end is in it: another miss after the first part.
                    let single = !matches!(instruction.class.opcode, Op::Store | Op::CopyMemory)
                        || stores_a_scalar(code, instruction);
                    Summary {
                        translates: does.loads || does.stores,
                        stores: does.stores,
                        mixes: does.stores && !single,
                    }
                }
            };
            all.mixes |= does.mixes || (all.stores && does.translates);
            all.translates |= does.translates;
            all.stores |= does.stores;
        }
        blocks.push(all);
    }
    let mut whole = Summary {
        translates: blocks.iter().any(|block| block.translates),
        stores: blocks.iter().any(|block| block.stores),
        mixes: blocks.iter().any(|block| block.mixes),
    };
    // What can be reached from a block that stores must translate nothing; itself too, if it is in a loop.
    let mut successors = vec![Vec::new(); blocks.len()];
    for (block, predecessors) in graph.predecessors.iter().enumerate() {
        predecessors.iter().for_each(|&predecessor| successors[predecessor].push(block));
    }
    let mut waiting: Vec<usize> =
        (0..blocks.len()).filter(|&block| blocks[block].stores).flat_map(|block| successors[block].clone()).collect();
    let mut reached = vec![false; blocks.len()];
    while let Some(block) = waiting.pop() {
        if !std::mem::replace(&mut reached[block], true) {
            whole.mixes |= blocks[block].translates;
            waiting.extend(&successors[block]);
        }
    }
    open.remove(&id);
    done.insert(id, whole);
    Some(whole)
}

fn stores_a_scalar(code: &Code, store: &Instruction) -> bool {
    let pointee = store.operands.first().and_then(Operand::id_ref_any).and_then(|pointer| code.physical(pointer));
    let ty = pointee.and_then(|pointee| code.global(pointee)).map(|ty| ty.class.opcode);
    matches!(ty, Some(Op::TypeInt | Op::TypeFloat | Op::TypePointer))
}
