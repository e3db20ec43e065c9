//! The new entry point: it starts the launch protocol, works out the workgroup's place in the launch's grid, calls
//! the kernel's own entry function and ends the protocol.
//!
//! A dispatch runs a list of workgroups, so `WorkgroupId` as the device counts is not the kernel's. The kernel's
//! variables for it and for what follows from it become private variables that the entry point fills.

use super::code::Code;
use super::error::RewriteError;
use super::link::{Linked, REPLACED};
use rspirv::dr::{Block, Function, Instruction, Operand};
use rspirv::spirv::{BuiltIn, Decoration, ExecutionMode, FunctionControl, Op, SelectionControl, StorageClass, Word};

/// The built-ins that the kernel uses and the private variables that stand for them.
pub(super) struct Replaced(Vec<(BuiltIn, Word)>);

impl Replaced {
    pub(super) fn variables(&self) -> impl Iterator<Item = Word> {
        self.0.iter().map(|&(_, variable)| variable)
    }
}

/// Finds the kernel's variables for the workgroup's place; to be asked before the library brings its own.
///
/// # Errors
/// If two are the same built-in, which an entry point cannot have.
pub(super) fn find_built_ins(code: &Code) -> Result<Replaced, RewriteError> {
    let found = code.module.annotations.iter().filter_map(|annotation| match annotation.operands[..] {
        [Operand::IdRef(variable), Operand::Decoration(Decoration::BuiltIn), Operand::BuiltIn(built_in)]
            if annotation.class.opcode == Op::Decorate && REPLACED.contains(&built_in) =>
        {
            Some((built_in, variable))
        }
        _ => None,
    });
    let mut replaced: Vec<(BuiltIn, Word)> = Vec::new();
    for (built_in, variable) in found {
        if replaced.iter().any(|&(other, _)| other == built_in) {
            return Err(RewriteError::Module(format!("%{variable} is not the only variable for {built_in:?}")));
        }
        replaced.push((built_in, variable));
    }
    Ok(Replaced(replaced))
}

/// Turns the kernel's variables for the workgroup's place into private ones.
pub(super) fn replace_built_ins(code: &mut Code, replaced: &Replaced) -> Result<(), RewriteError> {
    replaced.variables().try_for_each(|variable| make_private(code, variable))
}

fn make_private(code: &mut Code, variable: Word) -> Result<(), RewriteError> {
    let Some(declared) = code.global(variable).filter(|global| global.class.opcode == Op::Variable).cloned() else {
        return Err(RewriteError::Module(format!("%{variable} is decorated as a built-in and is no variable")));
    };
    let Some((StorageClass::Input, pointee)) = code.type_of(variable).and_then(|ty| code.pointee(ty)) else {
        return Err(code.unsupported(&declared, "a built-in must be an input"));
    };
    code.module.annotations.retain(|annotation| annotation.operands.first() != Some(&Operand::IdRef(variable)));
    code.remove_globals(&[variable]);
    let pointer = code.pointer(StorageClass::Private, pointee);
    code.add_global(Instruction::new(
        Op::Variable,
        Some(pointer),
        Some(variable),
        vec![Operand::StorageClass(StorageClass::Private)],
    ));
    let mut functions = std::mem::take(&mut code.module.functions);
    let result = functions
        .iter_mut()
        .flat_map(|function| &mut function.blocks)
        .flat_map(|block| &mut block.instructions)
        .try_for_each(|instruction| private_use(code, instruction, variable));
    code.module.functions = functions;
    result
}

fn private_use(code: &mut Code, instruction: &mut Instruction, variable: Word) -> Result<(), RewriteError> {
    if !instruction.operands.contains(&Operand::IdRef(variable)) {
        return Ok(());
    }
    match instruction.class.opcode {
        Op::Load => Ok(()),
        Op::AccessChain | Op::InBoundsAccessChain => {
            let ty = instruction.result_type.and_then(|ty| code.pointee(ty));
            let (Some((_, component)), Some(id)) = (ty, instruction.result_id) else {
                return Err(code.unsupported(instruction, "its type is not a pointer"));
            };
            let pointer = code.pointer(StorageClass::Private, component);
            instruction.result_type = Some(pointer);
            code.set_type(id, pointer);
            Ok(())
        }
        _ => Err(code.unsupported(instruction, "a built-in can only be loaded; copy it to a variable first")),
    }
}

/// What the new entry point needs to know.
pub(super) struct Entry {
    /// The kernel's own entry function.
    pub(super) function: Word,
    /// The constant that is its workgroup's size.
    pub(super) size: Word,
    /// Whether the kernel has barriers.
    pub(super) barriers: bool,
}

/// Adds the new entry point and makes the module start there.
pub(super) fn wrap(code: &mut Code, linked: &Linked, entry: &Entry, replaced: &Replaced) -> Result<(), RewriteError> {
    let (void, bool, uint) = (code.void(), code.bool(), code.uint(32));
    let uvec3 = code.vector(uint, 3);
    let signature = code.intern(Op::TypeFunction, None, vec![Operand::IdRef(void)]);

    let mut run = vec![];
    let call = |code: &mut Code, ty: Word, function: Word, arguments: &[Word]| {
        let id = code.fresh_value(ty);
        let operands = std::iter::once(function).chain(arguments.iter().copied()).map(Operand::IdRef).collect();
        (id, Instruction::new(Op::FunctionCall, Some(ty), Some(id), operands))
    };
    if entry.barriers {
        run.push(call(code, void, linked.function("link_begin_barriers")?, &[]).1);
    }
    for &(built_in, variable) in &replaced.0 {
        let (mut value, instruction) = match built_in {
            BuiltIn::WorkgroupId => call(code, uvec3, linked.function("link_workgroup")?, &[]),
            BuiltIn::NumWorkgroups => call(code, uvec3, linked.function("link_grid")?, &[]),
            _ => call(code, uvec3, linked.function("link_global")?, &[entry.size]),
        };
        run.push(instruction);
        let declared = code.type_of(variable).and_then(|ty| code.pointee(ty)).map_or(uvec3, |(_, pointee)| pointee);
        if declared != uvec3 {
            let cast = code.fresh_value(declared);
            run.push(Instruction::new(Op::Bitcast, Some(declared), Some(cast), vec![Operand::IdRef(value)]));
            value = cast;
        }
        run.push(Instruction::new(Op::Store, None, None, vec![Operand::IdRef(variable), Operand::IdRef(value)]));
    }
    run.push(call(code, void, entry.function, &[]).1);
    run.push(call(code, void, linked.function("link_end")?, &[]).1);

    let (function, start, body, end) = (code.fresh(), code.fresh(), code.fresh(), code.fresh());
    run.push(Instruction::new(Op::Branch, None, None, vec![Operand::IdRef(end)]));
    let (begun, begin) = call(code, bool, linked.function("link_begin")?, &[]);
    let branch = [begun, body, end].map(Operand::IdRef).to_vec();
    let merge = vec![Operand::IdRef(end), Operand::SelectionControl(SelectionControl::NONE)];
    let label = |id| Some(Instruction::new(Op::Label, None, Some(id), vec![]));
    code.module.functions.push(Function {
        def: Some(Instruction::new(
            Op::Function,
            Some(void),
            Some(function),
            vec![Operand::FunctionControl(FunctionControl::NONE), Operand::IdRef(signature)],
        )),
        end: Some(Instruction::new(Op::FunctionEnd, None, None, vec![])),
        parameters: vec![],
        blocks: vec![
            Block {
                label: label(start),
                instructions: vec![
                    begin,
                    Instruction::new(Op::SelectionMerge, None, None, merge),
                    Instruction::new(Op::BranchConditional, None, None, branch),
                ],
            },
            Block { label: label(body), instructions: run },
            Block { label: label(end), instructions: vec![Instruction::new(Op::Return, None, None, vec![])] },
        ],
    });
    start_at(code, entry.function, function);
    Ok(())
}

fn start_at(code: &mut Code, old: Word, new: Word) {
    for mode in &mut code.module.execution_modes {
        if mode.operands.first() == Some(&Operand::IdRef(old)) {
            mode.operands[0] = Operand::IdRef(new);
        }
    }
    // Since SPIR-V 1.4 all variables are part of the interface.
    let variables = code.module.types_global_values.iter().filter(|global| global.class.opcode == Op::Variable);
    let interface: Vec<_> = variables.filter_map(|variable| variable.result_id).map(Operand::IdRef).collect();
    for entry in &mut code.module.entry_points {
        entry.operands[1] = Operand::IdRef(new);
        entry.operands.truncate(3);
        entry.operands.extend(interface.iter().cloned());
    }
}

/// A constant that is the workgroup's size: the one that the module decorates as such counts before `LocalSizeId` and
/// `LocalSize`, for which one is made.
pub(super) fn workgroup_size(code: &mut Code, entry: Word) -> Result<Word, RewriteError> {
    let uint = code.uint(32);
    let uvec3 = code.vector(uint, 3);
    if let Some(id) = code.built_in(BuiltIn::WorkgroupSize) {
        if code.type_of(id) == Some(uvec3) && code.global(id).is_some() {
            return Ok(id);
        }
        return Err(RewriteError::Module("the workgroup size must be a vector of three unsigned integers".into()));
    }
    let modes = code.module.execution_modes.iter().filter(|mode| mode.operands.first() == Some(&Operand::IdRef(entry)));
    let mut sizes = modes.filter_map(|mode| match mode.operands[1..] {
        [
            Operand::ExecutionMode(ExecutionMode::LocalSize),
            Operand::LiteralBit32(x),
            Operand::LiteralBit32(y),
            Operand::LiteralBit32(z),
        ] => Some(([x, y, z], false)),
        [
            Operand::ExecutionMode(ExecutionMode::LocalSizeId),
            Operand::IdRef(x),
            Operand::IdRef(y),
            Operand::IdRef(z),
        ] => Some(([x, y, z], true)),
        _ => None,
    });
    let Some((size, by_id)) = sizes.next() else {
        return Err(RewriteError::Module("it does not say its workgroup size".into()));
    };
    let components = if by_id { size } else { size.map(|size| code.constant(size)) };
    if !components.iter().all(|&id| code.type_of(id) == Some(uint) && code.global(id).is_some()) {
        return Err(RewriteError::Module("the workgroup size must be three unsigned integer constants".into()));
    }
    let id = code.fresh();
    let operands = components.map(Operand::IdRef).to_vec();
    // Also right for components that are not specialised.
    code.add_global(Instruction::new(Op::SpecConstantComposite, Some(uvec3), Some(id), operands));
    Ok(id)
}

/// Whether an annotation makes its target a built-in through a group, which is not looked through.
pub(super) fn groups_decorations(annotation: &Instruction) -> bool {
    matches!(annotation.class.opcode, Op::GroupDecorate | Op::GroupMemberDecorate)
        || annotation.operands.get(1) == Some(&Operand::Decoration(Decoration::LinkageAttributes))
}
