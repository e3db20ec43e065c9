//! Poisoned loops end.
//!
//! A poisoned invocation computes with zeros, so a loop that waits for memory or follows pointers might never
//! end. Such a loop gets a way out: where a branch on every way round leaves the loop, its condition also asks
//! whether the invocation is poisoned; else the branch back to the loop's header does, and values that the code
//! after the loop uses are zero on that way. A loop around a barrier asks whether the workgroup was poisoned as of
//! the last barrier, so that its invocations stay together.
//!
//! Loops that count up to a bound that no memory decides are left as they are: they end, and meanwhile report what
//! other pages they will need.

use super::code::Code;
use super::error::RewriteError;
use super::graph::{Graph, Loop};
use super::link::Linked;
use super::stats::RewriteStats;
use rspirv::dr::{Function, Instruction, Operand};
use rspirv::spirv::{Op, StorageClass, Word};
use std::collections::{BTreeSet, HashMap, HashSet};

/// How far a loop's bound is followed back.
const MAX_STEPS: u32 = 32;

/// Most values times exits that one loop is left with.
const MAX_CLOSED: usize = 1 << 18;

/// What the loops of a function may rely on.
pub(super) struct Surroundings<'a> {
    pub(super) linked: &'a Linked,
    /// Functions that have barriers, or call some that do.
    pub(super) with_barriers: &'a HashSet<Word>,
    /// Global variables that no memory decides: built-in inputs, push constants, the launch's place.
    pub(super) fixed: &'a HashSet<Word>,
}

/// A value that took another's place in the code after a loop: what was known of `old` must be known of `new` too.
#[derive(Clone, Copy, Debug)]
pub(super) struct Renamed {
    pub(super) new: Word,
    pub(super) old: Word,
}

/// Gives a function's loops a way out. Values that got other names are returned, in the order in which they got them.
pub(super) fn guard(
    code: &mut Code,
    function: &mut Function,
    around: &Surroundings<'_>,
    stats: &mut RewriteStats,
) -> Result<Vec<Renamed>, RewriteError> {
    let has_loops = function.all_inst_iter().any(|instruction| instruction.class.opcode == Op::LoopMerge);
    if !has_loops {
        return Ok(Vec::new());
    }
    let graph = Graph::of(function);
    let loops = graph.loops(function);
    let counted = counted(code, function, &graph, &loops, around);
    let mut users = None;
    let mut zeros = Zeros::default();
    let mut renamed = Vec::new();
    for (each, counted) in loops.into_iter().zip(counted) {
        if counted {
            stats.counted_loops += 1;
            continue;
        }
        stats.guarded_loops += 1;
        let inside = graph.blocks(each);
        let barrier = inside.iter().any(|&block| {
            function.blocks[block].instructions.iter().any(|instruction| match instruction.class.opcode {
                Op::ControlBarrier => true,
                Op::FunctionCall => {
                    let callee = instruction.operands.first().and_then(Operand::id_ref_any);
                    callee.is_some_and(|callee| around.with_barriers.contains(&callee))
                }
                _ => false,
            })
        });
        let asks = around.linked.function(if barrier { "link_group_poisoned" } else { "link_poisoned" })?;
        match exit_on_every_way(function, &graph, each) {
            Some(block) => guard_exit(code, function, &graph, each, block, asks),
            None => {
                let way = BackEdge { graph: &graph, of: each, inside: &inside, asks };
                let users = users.get_or_insert_with(|| Users::of(function));
                guard_back_edge(code, function, &way, users, &mut zeros, &mut renamed)?;
            }
        }
    }
    Ok(renamed)
}

/// A block that every way round passes and whose branch can leave the loop.
fn exit_on_every_way(function: &Function, graph: &Graph, of: Loop) -> Option<usize> {
    graph.predecessors[of.merge].iter().copied().find(|&block| {
        let terminator = function.blocks[block].instructions.last();
        terminator.is_some_and(|terminator| {
            terminator.class.opcode == Op::BranchConditional && leaves_on(terminator, graph, of).is_some()
        }) && graph.contains(of, block)
            && graph.dominates(block, of.back)
    })
}

/// The value of the condition with which a conditional branch leaves the loop.
fn leaves_on(branch: &Instruction, graph: &Graph, of: Loop) -> Option<bool> {
    let target = |index: usize| {
        branch.operands.get(index).and_then(Operand::id_ref_any).and_then(|label| graph.index.get(&label)).copied()
    };
    match (target(1)? == of.merge, target(2)? == of.merge) {
        (true, false) => Some(true),
        (false, true) => Some(false),
        _ => None,
    }
}

/// Where instructions can be put at a block's end: before its merge instruction and its terminator.
pub(super) fn tail(instructions: &[Instruction]) -> usize {
    let end = instructions.len().saturating_sub(1);
    let merge =
        end.checked_sub(1).filter(|&at| matches!(instructions[at].class.opcode, Op::LoopMerge | Op::SelectionMerge));
    merge.unwrap_or(end)
}

fn ask(code: &mut Code, asks: Word) -> (Word, Instruction) {
    let bool = code.bool();
    let poisoned = code.fresh_value(bool);
    (poisoned, Instruction::new(Op::FunctionCall, Some(bool), Some(poisoned), vec![Operand::IdRef(asks)]))
}

fn guard_exit(code: &mut Code, function: &mut Function, graph: &Graph, of: Loop, block: usize, asks: Word) {
    let instructions = &mut function.blocks[block].instructions;
    let Some(branch) = instructions.last() else { return };
    let (Some(leaves), Some(condition)) =
        (leaves_on(branch, graph, of), branch.operands.first().and_then(Operand::id_ref_any))
    else {
        return;
    };
    let bool = code.bool();
    let (poisoned, call) = ask(code, asks);
    let mut added = vec![call];
    let (opcode, other) = if leaves {
        (Op::LogicalOr, poisoned)
    } else {
        let sound = code.fresh_value(bool);
        added.push(Instruction::new(Op::LogicalNot, Some(bool), Some(sound), vec![Operand::IdRef(poisoned)]));
        (Op::LogicalAnd, sound)
    };
    let both = code.fresh_value(bool);
    added.push(Instruction::new(
        opcode,
        Some(bool),
        Some(both),
        vec![Operand::IdRef(condition), Operand::IdRef(other)],
    ));
    if let Some(branch) = instructions.last_mut() {
        branch.operands[0] = Operand::IdRef(both);
    }
    let at = tail(instructions);
    instructions.splice(at..at, added);
}

/// A loop that gets its way out where it goes back.
struct BackEdge<'a> {
    graph: &'a Graph,
    of: Loop,
    inside: &'a [usize],
    /// The function of the library that says whether to leave.
    asks: Word,
}

fn guard_back_edge(
    code: &mut Code,
    function: &mut Function,
    way: &BackEdge<'_>,
    users: &mut Users,
    zeros: &mut Zeros,
    renamed: &mut Vec<Renamed>,
) -> Result<(), RewriteError> {
    let of = way.of;
    let label = |function: &Function, block: usize| function.blocks[block].label_id().unwrap_or_default();
    let (header, merge, back) = (label(function, of.header), label(function, of.merge), label(function, of.back));
    let Some(branch) = function.blocks[of.back].instructions.last() else { return Ok(()) };
    if branch.class.opcode != Op::Branch {
        return Err(code.unsupported(branch, "its loop has no exit that a poisoned invocation could take"));
    }
    renamed.extend(close_values(code, function, way, users)?);
    let return_type = function.def.as_ref().and_then(|def| def.result_type);
    let blocks = &mut function.blocks;
    // The new way out brings zeros along.
    let mut before_branch = Vec::new();
    for phi in &mut blocks[of.merge].instructions {
        if phi.class.opcode == Op::Phi && !phi.operands.contains(&Operand::IdRef(back)) {
            let ty = phi.result_type.unwrap_or_default();
            let zero = zeros.of(code, ty, &mut before_branch).ok_or_else(|| code.unsupported(phi, NO_ZERO))?;
            phi.operands.extend([Operand::IdRef(zero), Operand::IdRef(back)]);
        }
    }
    // A merge block that nothing led to may claim to be unreachable.
    if let (Some(end), Some(ty)) =
        (blocks[of.merge].instructions.pop_if(|end| end.class.opcode == Op::Unreachable), return_type)
    {
        if code.global(ty).is_some_and(|ty| ty.class.opcode == Op::TypeVoid) {
            blocks[of.merge].instructions.push(Instruction::new(Op::Return, None, None, vec![]));
        } else {
            let mut made = Vec::new();
            let zero = zeros.of(code, ty, &mut made).ok_or_else(|| code.unsupported(&end, NO_ZERO))?;
            blocks[of.merge].instructions.extend(made);
            let end = Instruction::new(Op::ReturnValue, None, None, vec![Operand::IdRef(zero)]);
            blocks[of.merge].instructions.push(end);
        }
    }
    let (poisoned, call) = ask(code, way.asks);
    let instructions = &mut blocks[of.back].instructions;
    instructions.pop();
    let at = tail_of_open(instructions);
    instructions.splice(at..at, before_branch.into_iter().chain([call]));
    let operands = [poisoned, merge, header].map(Operand::IdRef).to_vec();
    instructions.push(Instruction::new(Op::BranchConditional, None, None, operands));
    Ok(())
}

const NO_ZERO: &str =
    "a loop without an exit on every way round leaves with it, and a poisoned invocation has no value for it";

/// As `tail`, for a block whose terminator was taken off.
fn tail_of_open(instructions: &[Instruction]) -> usize {
    let merge = instructions.last().is_some_and(|last| matches!(last.class.opcode, Op::LoopMerge | Op::SelectionMerge));
    instructions.len() - usize::from(merge)
}

/// The zeros that are made for a function's poisoned invocations. Most types have a null constant; pointers to physical storage
/// have none (SPIR-V, `OpConstantNull`), and neither does what holds such pointers: there a zero is computed.
#[derive(Default)]
struct Zeros {
    /// Whether types have a null constant, as far as it was asked.
    has_null: HashMap<Word, bool>,
    /// Values that zeros were put together from, in all.
    parts: usize,
}

impl Zeros {
    /// Most values that a function's zeros are put together from.
    const PARTS: usize = 1 << 14;

    /// A zero of this type; what computes it is added to `made`.
    fn of(&mut self, code: &mut Code, ty: Word, made: &mut Vec<Instruction>) -> Option<Word> {
        self.part(code, ty, made, &mut HashMap::new())
    }

    /// As [`of`](Self::of); `same` are the zeros that were made for it already.
    fn part(
        &mut self,
        code: &mut Code,
        ty: Word,
        made: &mut Vec<Instruction>,
        same: &mut HashMap<Word, Word>,
    ) -> Option<Word> {
        if has_null(code, ty, &mut self.has_null) {
            return Some(code.null(ty));
        }
        if let Some(&zero) = same.get(&ty) {
            return Some(zero);
        }
        let declared = code.global(ty)?;
        let (opcode, operands) = match declared.class.opcode {
            Op::TypePointer if is_physical(declared) => (Op::ConvertUToPtr, vec![Operand::IdRef(code.long(0))]),
            Op::TypeStruct | Op::TypeArray => {
                let types: Vec<Word> = match declared.class.opcode {
                    Op::TypeStruct => declared.operands.iter().map(Operand::id_ref_any).collect::<Option<_>>()?,
                    _ => {
                        let length = code.constant_value(declared.operands.get(1)?.id_ref_any()?)? as usize;
                        vec![declared.operands[0].id_ref_any()?; length.min(Self::PARTS + 1)]
                    }
                };
                self.parts += types.len();
                if self.parts > Self::PARTS {
                    return None;
                }
                let parts = types.into_iter().map(|ty| self.part(code, ty, made, same).map(Operand::IdRef));
                (Op::CompositeConstruct, parts.collect::<Option<_>>()?)
            }
            _ => return None,
        };
        let value = code.fresh_value(ty);
        made.push(Instruction::new(opcode, Some(ty), Some(value), operands));
        same.insert(ty, value);
        Some(value)
    }
}

fn is_physical(pointer: &Instruction) -> bool {
    pointer.operands.first() == Some(&Operand::StorageClass(StorageClass::PhysicalStorageBuffer))
}

/// Whether a type has a null constant. Types are as deep as [`read`](crate::kernel::read) lets them be, and made of earlier ones.
fn has_null(code: &Code, ty: Word, known: &mut HashMap<Word, bool>) -> bool {
    if let Some(&known) = known.get(&ty) {
        return known;
    }
    let Some(declared) = code.global(ty) else { return false };
    let has = |operand: &Operand| operand.id_ref_any().is_some_and(|ty| has_null(code, ty, known));
    let found = match declared.class.opcode {
        Op::TypeBool | Op::TypeInt | Op::TypeFloat | Op::TypeVector | Op::TypeMatrix => true,
        Op::TypeArray => declared.operands.first().is_some_and(has),
        Op::TypeStruct => declared.operands.iter().all(has),
        _ => false,
    };
    known.insert(ty, found);
    found
}

/// Whether values of a type can be passed through a phi: not so pointers to variables, images and the like.
fn is_data(code: &Code, ty: Word, known: &mut HashMap<Word, bool>) -> bool {
    if let Some(&known) = known.get(&ty) {
        return known;
    }
    let Some(declared) = code.global(ty) else { return false };
    let is = |operand: &Operand| operand.id_ref_any().is_some_and(|ty| is_data(code, ty, known));
    let found = match declared.class.opcode {
        Op::TypeBool | Op::TypeInt | Op::TypeFloat | Op::TypeVector | Op::TypeMatrix => true,
        Op::TypePointer => is_physical(declared),
        Op::TypeArray => declared.operands.first().is_some_and(is),
        Op::TypeStruct => declared.operands.iter().all(is),
        _ => false,
    };
    known.insert(ty, found);
    found
}

/// Which blocks of a function name an id; more than do, once uses were replaced.
struct Users {
    blocks: HashMap<Word, Vec<usize>>,
    is_data: HashMap<Word, bool>,
}

impl Users {
    fn of(function: &Function) -> Self {
        let mut blocks: HashMap<Word, Vec<usize>> = HashMap::new();
        for (at, block) in function.blocks.iter().enumerate() {
            for id in block.instructions.iter().flat_map(|one| &one.operands).filter_map(Operand::id_ref_any) {
                let users = blocks.entry(id).or_default();
                if users.last() != Some(&at) {
                    users.push(at);
                }
            }
        }
        Self { blocks, is_data: HashMap::new() }
    }
}

/// Values of the loop that the code after it uses, and that need not have been computed at the branch back, are
/// passed out through phis in the merge block.
fn close_values(
    code: &mut Code,
    function: &mut Function,
    way: &BackEdge<'_>,
    users: &mut Users,
) -> Result<Vec<Renamed>, RewriteError> {
    let (graph, of) = (way.graph, way.of);
    let mut may_miss = HashSet::new();
    for &block in way.inside.iter().filter(|&&block| !graph.dominates(block, of.back)) {
        may_miss.extend(function.blocks[block].instructions.iter().filter_map(|instruction| instruction.result_id));
    }
    let outside = may_miss.iter().filter_map(|id| users.blocks.get(id)).flatten().copied();
    let outside: BTreeSet<usize> = outside.filter(|block| way.inside.binary_search(block).is_err()).collect();
    let mut exits: Vec<usize> = graph.predecessors[of.merge].clone();
    exits.sort_unstable();
    exits.dedup();
    let label = |block: usize| function.blocks[block].label_id().unwrap_or_default();
    let exits: Vec<Word> = exits.into_iter().map(label).collect();
    let labels: HashSet<Word> = way.inside.iter().map(|&block| label(block)).collect();
    let mut replaced: HashMap<Word, Word> = HashMap::new();
    let mut phis = Vec::new();
    for block in outside {
        for instruction in &mut function.blocks[block].instructions {
            let phi = instruction.class.opcode == Op::Phi;
            for at in 0..instruction.operands.len() {
                let Some(id) = instruction.operands[at].id_ref_any() else { continue };
                // A phi uses a value at the end of the block that it comes from.
                let comes_from = instruction.operands.get(at + 1).and_then(Operand::id_ref_any);
                if !may_miss.contains(&id) || (phi && comes_from.is_some_and(|from| labels.contains(&from))) {
                    continue;
                }
                let new = match replaced.get(&id) {
                    Some(&new) => new,
                    None => {
                        let ty = code.type_of(id).unwrap_or_default();
                        if !is_data(code, ty, &mut users.is_data) {
                            return Err(code.unsupported(instruction, NO_ZERO));
                        }
                        if (replaced.len() + 1).saturating_mul(exits.len()) > MAX_CLOSED {
                            return Err(
                                code.unsupported(instruction, "its loop has too many ways out for what it leaves")
                            );
                        }
                        let new = code.fresh_value(ty);
                        let operands = exits.iter().flat_map(|&exit| [Operand::IdRef(id), Operand::IdRef(exit)]);
                        phis.push(Instruction::new(Op::Phi, Some(ty), Some(new), operands.collect()));
                        replaced.insert(id, new);
                        new
                    }
                };
                if let Some(id) = instruction.operands[at].id_ref_any_mut() {
                    *id = new;
                }
                users.blocks.entry(new).or_default().push(block);
            }
        }
    }
    for &id in replaced.keys() {
        users.blocks.entry(id).or_default().push(of.merge);
    }
    function.blocks[of.merge].instructions.splice(0..0, phis);
    Ok(replaced.into_iter().map(|(old, new)| Renamed { new, old }).collect())
}

/// Of each loop, whether its exit compares a counter with a bound, and no memory decides bound and step.
fn counted(code: &Code, function: &Function, graph: &Graph, loops: &[Loop], around: &Surroundings<'_>) -> Vec<bool> {
    let definitions = function
        .blocks
        .iter()
        .flat_map(|block| &block.instructions)
        .filter_map(|instruction| Some((instruction.result_id?, instruction)))
        .collect();
    let mut fixed = Fixed { code, definitions, around, known: HashMap::new() };
    loops.iter().map(|&each| is_counted(function, graph, each, &mut fixed)).collect()
}

fn is_counted(function: &Function, graph: &Graph, of: Loop, fixed: &mut Fixed<'_>) -> bool {
    let Some(block) = exit_on_every_way(function, graph, of) else { return false };
    let branch = function.blocks[block].instructions.last();
    let Some(condition) = branch.and_then(|branch| branch.operands.first()).and_then(Operand::id_ref_any) else {
        return false;
    };
    let Some(&comparison) = fixed.definitions.get(&condition) else { return false };
    let ordered = matches!(
        comparison.class.opcode,
        Op::ULessThan
            | Op::SLessThan
            | Op::ULessThanEqual
            | Op::SLessThanEqual
            | Op::UGreaterThan
            | Op::SGreaterThan
            | Op::UGreaterThanEqual
            | Op::SGreaterThanEqual
    );
    let [Operand::IdRef(left), Operand::IdRef(right)] = comparison.operands[..] else { return false };
    let header = &function.blocks[of.header].instructions;
    let steps = |fixed: &mut Fixed<'_>, id: Word| {
        let phi = header.iter().find(|phi| phi.class.opcode == Op::Phi && phi.result_id == Some(id));
        phi.is_some_and(|phi| {
            phi.operands.chunks_exact(2).any(|pair| {
                let next = pair[0].id_ref_any().and_then(|next| fixed.definitions.get(&next)).copied();
                next.is_some_and(|next| {
                    matches!(next.class.opcode, Op::IAdd | Op::ISub)
                        && next.operands.iter().filter_map(Operand::id_ref_any).any(|operand| operand == id)
                        && next.operands.iter().filter_map(Operand::id_ref_any).any(|operand| {
                            let constant = fixed.code.constant_value(operand);
                            constant.map_or_else(|| fixed.is(operand, MAX_STEPS), |step| step != 0)
                        })
                })
            })
        })
    };
    ordered
        && ((steps(fixed, left) && fixed.is(right, MAX_STEPS)) || (steps(fixed, right) && fixed.is(left, MAX_STEPS)))
}

/// Which values follow from constants, push constants and built-ins alone.
struct Fixed<'a> {
    code: &'a Code,
    definitions: HashMap<Word, &'a Instruction>,
    around: &'a Surroundings<'a>,
    /// What was found out; false also of what was followed for too long.
    known: HashMap<Word, bool>,
}

impl Fixed<'_> {
    fn is(&mut self, id: Word, steps: u32) -> bool {
        if let Some(global) = self.code.global(id) {
            return global.class.opcode.is_constant() || self.around.fixed.contains(&id);
        }
        if let Some(&known) = self.known.get(&id) {
            return known;
        }
        let (Some(steps), Some(&definition)) = (steps.checked_sub(1), self.definitions.get(&id)) else { return false };
        // Also for what leads back to itself.
        self.known.insert(id, false);
        let mut operands = definition.operands.iter().filter_map(Operand::id_ref_any);
        let found = match definition.class.opcode {
            Op::Load => {
                operands.next().is_some_and(|pointer| self.code.physical(pointer).is_none() && self.is(pointer, steps))
            }
            Op::AccessChain
            | Op::InBoundsAccessChain
            | Op::CompositeExtract
            | Op::IAdd
            | Op::ISub
            | Op::IMul
            | Op::UDiv
            | Op::ShiftRightLogical
            | Op::ShiftLeftLogical
            | Op::BitwiseAnd
            | Op::UConvert
            | Op::SConvert
            | Op::Bitcast
            | Op::CopyObject
            | Op::CompositeConstruct => operands.all(|operand| self.is(operand, steps)),
            _ => false,
        };
        self.known.insert(id, found);
        found
    }
}
