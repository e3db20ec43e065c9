//! Rewriting: a plain compute shader, which dereferences 64-bit pointers and knows nothing of vksvm, becomes a kernel.
//!
//! SPIR-V goes in and comes out. The translation code is the same as that of `vksvm.glsl`, compiled once and linked into
//! the module (`link`); a new entry point runs the launch protocol around the shader's own (`entry`), the launch block
//! comes to lie before its push constants (`push`), every access through a pointer to physical memory is translated
//! right before it happens (`access`), and loops and barriers keep working when a page is missing (`loops`,
//! `barriers`). What cannot be rewritten is refused (`check`), and a proof over the result shows that nothing was forgotten
//! and that each access is covered by its translation (`proof`).
//!
//! Pointers stay virtual wherever they are kept, passed and computed with; only accesses see device addresses, and none
//! outlives the access it was made for. So a pointer must point into the heap: the device address of another buffer faults.
//!
//! **Gotchas.** Objects of more than their alignment are translated as such and may be copied (`access`); atomics must be
//! naturally aligned, as everywhere in Vulkan. Subgroup operations see poisoned invocations, whose values are zeros.

mod access;
mod addresses;
mod barriers;
mod check;
mod code;
mod covers;
mod entry;
mod error;
mod flow;
mod graph;
mod group;
mod hoist;
mod layout;
mod link;
mod loops;
mod operands;
mod order;
mod proof;
mod push;
mod replay;
mod runs;
mod sites;
mod stats;
#[cfg(test)]
mod tests;

pub(super) use code::short;
pub use error::RewriteError;
pub use replay::Replay;
pub use runs::{Run, Runs};
pub use stats::RewriteStats;

use super::read::read;
use super::specialise::drop_unused_functions;
use access::Translator;
use addresses::{Addresses, Known};
use code::Code;
use covers::Covers;
use graph::Graph;
use layout::{Layouts, MatrixLayout};
use rspirv::binary::Assemble;
use rspirv::dr::{Function, Module, Operand};
use rspirv::spirv::{Op, StorageClass, Word};
use std::collections::{HashMap, HashSet};

/// Bytes of push constants that every device has.
const LEAST_PUSH_BYTES: usize = 128;

/// A module that was rewritten.
#[derive(Clone, Debug)]
pub struct Rewritten {
    /// The SPIR-V module.
    pub words: Vec<u32>,
    /// What it wants to know of its arguments, behind its push constants.
    pub runs: Runs,
    /// What was found and done.
    pub stats: RewriteStats,
    /// Where accesses stand in the source, by their number in fault entries, from 1 on.
    pub sites: Vec<String>,
}

/// Rewrites a plain compute shader so that it can be launched as a kernel; see the module's documentation.
///
/// # Errors
/// Names the instruction that cannot be rewritten and why, or what is wrong with the module.
pub fn rewrite(spirv: &[u8]) -> Result<Rewritten, RewriteError> {
    rewrite_within(spirv, LEAST_PUSH_BYTES)
}

/// As [`rewrite`], for a device with `push_bytes` of push constants: what is left of them serves to make the kernel faster.
///
/// # Errors
/// As [`rewrite`].
pub fn rewrite_within(spirv: &[u8], push_bytes: usize) -> Result<Rewritten, RewriteError> {
    let (words, module) = read(spirv).map_err(RewriteError::Malformed)?;
    order::check(&module).map_err(RewriteError::Malformed)?;
    let mut transformed = transform(module, push_bytes)?;
    transformed.prove()?;
    let Transformed { mut code, runs, mut stats, sites, .. } = transformed;
    drop_unused_functions(&mut code.module);
    let bound = code.bound();
    if let Some(header) = &mut code.module.header {
        header.bound = bound;
    }
    stats.words_in = words.len();
    let words = code.module.assemble();
    stats.words_out = words.len();
    Ok(Rewritten { words, runs, stats, sites: sites.into_places() })
}

/// A module whose accesses were translated, and what is known of it.
struct Transformed {
    code: Code,
    linked: link::Linked,
    /// The first function that is the library's.
    own: usize,
    layouts: Layouts,
    matrices: HashMap<Word, MatrixLayout>,
    fixed: HashSet<Word>,
    runs: Runs,
    stats: RewriteStats,
    sites: sites::Sites,
}

impl Transformed {
    /// Proves that nothing was left untranslated.
    fn prove(&mut self) -> Result<(), RewriteError> {
        self.matrices.extend(matrices(&self.code, &self.layouts));
        let known = Known { layouts: &self.layouts, matrices: &self.matrices, fixed: &self.fixed };
        proof::verify(&self.code, self.own, &self.linked, known)
    }
}

fn transform(module: Module, push_bytes: usize) -> Result<Transformed, RewriteError> {
    let mut stats = RewriteStats::default();
    let mut code = Code::new(module);
    let function = check::entry_function(&code)?;
    let layouts = Layouts::of(&code);
    let mut matrices = matrices(&code, &layouts);
    let scattered = matrices
        .iter()
        .filter(|(pointer, matrix)| matrix.row_major && points_to(&code, **pointer, Op::TypeVector))
        .map(|(&pointer, _)| pointer)
        .collect();
    if !check::check(&code, &scattered)? {
        return Err(RewriteError::NoPointers("nothing is accessed through PhysicalStorageBuffer pointers"));
    }
    let with_barriers = barriers::functions_with_barriers(&code);
    let mut runs = Runs::find(&code, &layouts, push_bytes);

    let replaced = entry::find_built_ins(&code)?;
    let size = entry::workgroup_size(&mut code, function)?;
    stats.replay = replay::classify(&code, function, size);
    let linked = link::link(&mut code, size)?;
    push::merge(&mut code, &linked)?;
    runs.declare(&mut code, &linked);
    entry::replace_built_ins(&mut code, &replaced)?;
    let own = linked.first;
    let mut functions: Vec<Function> = code.module.functions.drain(..own).collect();
    let fixed = fixed_variables(&code, &replaced);
    let around = loops::Surroundings { linked: &linked, with_barriers: &with_barriers, fixed: &fixed };
    let mut sites = sites::Sites::of(&code);
    let result = functions.iter_mut().try_for_each(|function| {
        sites.enter(function.def_id());
        for renamed in loops::guard(&mut code, function, &around, &mut stats)? {
            runs.rename(renamed);
            rename_matrix(&code, &mut matrices, renamed)?;
        }
        stats.barriers += barriers::spread_poison(&mut code, function, &linked)?;
        let known = Known { layouts: &layouts, matrices: &matrices, fixed: &fixed };
        translate(&mut code, function, known, &linked, &runs, &mut sites, &mut stats)
    });
    code.module.functions.splice(0..0, functions);
    result?;
    let entry = entry::Entry { function, size, barriers: with_barriers.contains(&function) };
    entry::wrap(&mut code, &linked, &entry, &replaced)?;

    Ok(Transformed { code, linked, own, layouts, matrices, fixed, runs, stats, sites })
}

fn translate(
    code: &mut Code,
    function: &mut Function,
    known: Known<'_>,
    linked: &link::Linked,
    runs: &Runs,
    sites: &mut sites::Sites,
    stats: &mut RewriteStats,
) -> Result<(), RewriteError> {
    let Known { layouts, matrices, .. } = known;
    let graph = &Graph::of(function);
    let addresses = &Addresses::of(code, known, function);
    let around = hoist::Around { layouts, linked, runs, graph, addresses };
    let hoisted = &hoist::hoist(code, function, around)?;
    stats.translations += hoisted.peeks() as u32;
    let covers = Covers::new(graph);
    let (site, parts, block) = (0, 0, 0);
    let mut translator = Translator {
        code,
        layouts,
        linked,
        stats,
        addresses,
        covers,
        hoisted,
        matrices,
        runs,
        sites,
        site,
        parts,
        block,
    };
    for (at, block) in function.blocks.iter_mut().enumerate() {
        block.instructions = translator.translate_block(at, std::mem::take(&mut block.instructions))?;
    }
    Ok(())
}

fn points_to(code: &Code, pointer: Word, opcode: Op) -> bool {
    let pointee = code.physical(pointer).and_then(|pointee| code.global(pointee));
    pointee.is_some_and(|pointee| pointee.class.opcode == opcode)
}

/// How matrices lie that pointers into structures lead to: said by the structure's member, not by the pointer's type.
fn matrices(code: &Code, layouts: &Layouts) -> HashMap<Word, MatrixLayout> {
    let mut found = HashMap::new();
    for instruction in code.module.functions.iter().flat_map(|function| function.all_inst_iter()) {
        let elements = match instruction.class.opcode {
            Op::AccessChain | Op::InBoundsAccessChain => 1,
            // The first index steps over whole objects.
            Op::PtrAccessChain | Op::InBoundsPtrAccessChain => 2,
            _ => continue,
        };
        let (Some(result), Some(base)) =
            (instruction.result_id, instruction.operands.first().and_then(Operand::id_ref_any))
        else {
            continue;
        };
        if let Some(layout) =
            follow(code, layouts, &found, base, instruction.operands.get(elements..).unwrap_or_default())
        {
            found.insert(result, layout);
        }
    }
    found
}

/// Takes it that a pointer to a part of a matrix leads where another does. What is said of a matrix by its structure is lost to the
/// device where a pointer comes from several ways: only columns whose components follow each other need nothing of it.
fn rename_matrix(
    code: &Code,
    matrices: &mut HashMap<Word, MatrixLayout>,
    renamed: loops::Renamed,
) -> Result<(), RewriteError> {
    let Some(&matrix) = matrices.get(&renamed.old) else { return Ok(()) };
    if matrix.row_major || !points_to(code, renamed.old, Op::TypeVector) {
        return Err(RewriteError::Module(
            "a pointer to a matrix, or to a column of a row-major one, is made in a loop without an exit on every way \
             round and used after it; keep a pointer to the structure instead"
                .into(),
        ));
    }
    matrices.insert(renamed.new, matrix);
    Ok(())
}

fn follow(
    code: &Code,
    layouts: &Layouts,
    found: &HashMap<Word, MatrixLayout>,
    base: Word,
    indices: &[Operand],
) -> Option<MatrixLayout> {
    let mut ty = code.physical(base)?;
    let mut layout = found.get(&base).copied();
    for index in indices {
        let declared = code.global(ty)?;
        let member = match declared.class.opcode {
            Op::TypeStruct => {
                let member = code.constant_value(index.id_ref_any()?)?;
                layout = layouts.matrix(ty, member);
                member as usize
            }
            // A component is a scalar.
            Op::TypeVector => return None,
            _ => 0,
        };
        ty = declared.operands.get(member)?.id_ref_any()?;
    }
    layout
}

/// Variables that no memory decides.
fn fixed_variables(code: &Code, replaced: &entry::Replaced) -> HashSet<Word> {
    let inputs = code.module.types_global_values.iter().filter(|global| {
        global.class.opcode == Op::Variable
            && matches!(
                global.operands.first(),
                Some(Operand::StorageClass(StorageClass::Input | StorageClass::PushConstant))
            )
    });
    inputs.filter_map(|variable| variable.result_id).chain(replaced.variables()).collect()
}
