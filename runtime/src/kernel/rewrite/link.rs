//! Linking the translation library, compiled from `shaders/rewrite_library.comp`, into a module.
//!
//! The library's ids get new numbers; types that may be declared only once, instruction sets and the inputs that
//! both modules use become the module's own. The library's entry point is left behind.

use super::code::{Code, is_unique_type};
use super::error::RewriteError;
use crate::device::layout::variant;
use crate::kernel::read::read;
use rspirv::dr::{Function, Instruction, Module, Operand};
use rspirv::spirv::{BuiltIn, Capability, Decoration, MemoryAccess, Op, StorageClass, Word};
use std::collections::{HashMap, HashSet};
use std::sync::OnceLock;

const LIBRARY: &[u8] = include_bytes!("../../../../shaders/spv/rewrite_library.spv");

/// The library's functions, in the module.
#[derive(Clone, Debug)]
pub(super) struct Linked {
    functions: HashMap<String, Word>,
    /// The push constant block's variable and structure.
    pub(super) push_variable: Word,
    pub(super) push_structure: Word,
    /// The first of the library's functions in the module.
    pub(super) first: usize,
}

impl Linked {
    /// A function of the library by its name in GLSL. The name is this crate's own: absent only if the library
    /// is not the one that this crate was written for.
    pub(super) fn function(&self, name: &str) -> Result<Word, RewriteError> {
        self.functions
            .get(name)
            .copied()
            .ok_or_else(|| RewriteError::Module(format!("the translation library has no function {name}")))
    }
}

fn library() -> Result<&'static Module, RewriteError> {
    static PARSED: OnceLock<Result<Module, String>> = OnceLock::new();
    let parsed = PARSED.get_or_init(|| read(LIBRARY).map(|(_, module)| module));
    parsed.as_ref().map_err(|reason| RewriteError::Module(format!("the translation library: {reason}")))
}

/// Built-ins whose variables in the kernel become the library's business.
pub(super) const REPLACED: [BuiltIn; 3] = [BuiltIn::WorkgroupId, BuiltIn::GlobalInvocationId, BuiltIn::NumWorkgroups];

/// Adds the library to the module, for workgroups of the size that the constant `size` has.
pub(super) fn link(code: &mut Code, size: Word) -> Result<Linked, RewriteError> {
    let library = library()?;
    for capability in &library.capabilities {
        if !code.module.capabilities.contains(capability) {
            code.module.capabilities.push(capability.clone());
        }
    }
    // What the library does at device scope needs saying so under the Vulkan memory model.
    let has = |code: &Code, wanted| {
        code.module.capabilities.iter().any(|capability| capability.operands[..] == [Operand::Capability(wanted)])
    };
    let vulkan_memory_model = has(code, Capability::VulkanMemoryModel);
    if vulkan_memory_model && !has(code, Capability::VulkanMemoryModelDeviceScope) {
        let operands = vec![Operand::Capability(Capability::VulkanMemoryModelDeviceScope)];
        code.module.capabilities.push(Instruction::new(Op::Capability, None, None, operands));
    }
    for extension in &library.extensions {
        if !code.module.extensions.contains(extension) {
            code.module.extensions.push(extension.clone());
        }
    }
    if let (Some(header), Some(of_library)) = (&mut code.module.header, &library.header) {
        header.version = header.version.max(of_library.version);
    }

    let entry = library.entry_points.first().and_then(|entry| entry.operands.get(1)).and_then(Operand::id_ref_any);
    let mut linker = Linker { ids: HashMap::new(), theirs: HashSet::new() };
    linker.share_inputs(code, library, size);
    linker.instruction_sets(code, library);
    for global in &library.types_global_values {
        linker.global(code, global);
    }
    let kept = || library.functions.iter().filter(|function| function.def_id() != entry);
    linker.annotations(code, library);
    let first = code.module.functions.len();
    for function in kept() {
        let mut function = function.clone();
        for instruction in function.all_inst_iter_mut() {
            *instruction = linker.instruction(code, instruction);
        }
        if vulkan_memory_model {
            make_volatile(code, &mut function);
        }
        code.module.functions.push(function);
    }
    if vulkan_memory_model {
        code.module.annotations.retain(|annotation| !QUALIFIERS.iter().any(|one| annotation.operands.contains(one)));
    }
    let mut functions = HashMap::new();
    for name in &library.debug_names {
        if let [Operand::IdRef(target), Operand::LiteralString(text)] = &name.operands[..]
            && kept().any(|function| function.def_id() == Some(*target))
        {
            // GLSL's mangled names: the parameters' types follow the parenthesis.
            let plain = text.split('(').next().unwrap_or_default().to_owned();
            functions.insert(plain, linker.id(code, *target));
            let renamed = linker.instruction(code, name);
            code.module.debug_names.push(renamed);
        }
    }
    let variable = library.types_global_values.iter().find(|global| {
        global.class.opcode == Op::Variable
            && global.operands.first() == Some(&Operand::StorageClass(StorageClass::PushConstant))
    });
    let push_variable = variable.and_then(|variable| variable.result_id).map_or(0, |id| linker.id(code, id));
    let push_structure = code.type_of(push_variable).and_then(|ty| code.pointee(ty)).map_or(0, |(_, pointee)| pointee);
    if push_structure == 0 {
        return Err(RewriteError::Module("the translation library has no push constants".into()));
    }
    Ok(Linked { functions, push_variable, push_structure, first })
}

const QUALIFIERS: [Operand; 2] = [Operand::Decoration(Decoration::Volatile), Operand::Decoration(Decoration::Coherent)];

/// The Vulkan memory model knows no volatile members: what the library does with memory is volatile where it is done.
fn make_volatile(code: &Code, function: &mut Function) {
    for instruction in function.blocks.iter_mut().flat_map(|block| &mut block.instructions) {
        let at = match instruction.class.opcode {
            Op::Load => 1,
            Op::Store => 2,
            _ => continue,
        };
        let pointer = instruction.operands.first().and_then(Operand::id_ref_any);
        if pointer.is_some_and(|pointer| code.physical(pointer).is_some())
            && let Some(Operand::MemoryAccess(bits)) = instruction.operands.get_mut(at)
        {
            *bits |= MemoryAccess::VOLATILE | MemoryAccess::NON_PRIVATE_POINTER;
        }
    }
}

struct Linker {
    /// From the library's ids to the module's.
    ids: HashMap<Word, Word>,
    /// The library's ids that became ids the module already had.
    theirs: HashSet<Word>,
}

impl Linker {
    fn id(&mut self, code: &mut Code, id: Word) -> Word {
        *self.ids.entry(id).or_insert_with(|| code.fresh())
    }

    fn becomes(&mut self, id: Word, theirs: Word) {
        self.ids.insert(id, theirs);
        self.theirs.insert(id);
    }

    fn instruction(&mut self, code: &mut Code, instruction: &Instruction) -> Instruction {
        let mut instruction = instruction.clone();
        for operand in &mut instruction.operands {
            if let Some(id) = operand.id_ref_any_mut() {
                *id = self.id(code, *id);
            }
        }
        instruction.result_type = instruction.result_type.map(|id| self.id(code, id));
        instruction.result_id = instruction.result_id.map(|id| self.id(code, id));
        if let (Some(id), Some(ty)) = (instruction.result_id, instruction.result_type)
            && instruction.class.opcode != Op::Function
        {
            code.set_type(id, ty);
        }
        instruction
    }

    /// One variable for each built-in: two with the same decoration are not allowed in an entry point.
    fn share_inputs(&mut self, code: &Code, library: &Module, size: Word) {
        for annotation in &library.annotations {
            if let [Operand::IdRef(target), Operand::Decoration(Decoration::BuiltIn), Operand::BuiltIn(built_in)] =
                annotation.operands[..]
            {
                if built_in == BuiltIn::WorkgroupSize {
                    self.becomes(target, size);
                } else if !REPLACED.contains(&built_in)
                    && let Some(theirs) = code.built_in(built_in)
                {
                    self.becomes(target, theirs);
                }
            }
        }
    }

    fn instruction_sets(&mut self, code: &mut Code, library: &Module) {
        for import in &library.ext_inst_imports {
            let Some(id) = import.result_id else { continue };
            match code.module.ext_inst_imports.iter().find(|theirs| theirs.operands == import.operands) {
                Some(Instruction { result_id: Some(theirs), .. }) => self.becomes(id, *theirs),
                _ => {
                    let import = self.instruction(code, import);
                    code.module.ext_inst_imports.push(import);
                }
            }
        }
    }

    fn global(&mut self, code: &mut Code, global: &Instruction) {
        let Some(id) = global.result_id else {
            let global = self.instruction(code, global);
            code.add_global(global);
            return;
        };
        if self.theirs.contains(&id) {
            return;
        }
        let opcode = global.class.opcode;
        if is_unique_type(opcode) {
            let mut operands = global.operands.clone();
            for operand in &mut operands {
                if let Some(id) = operand.id_ref_any_mut() {
                    *id = self.id(code, *id);
                }
            }
            let theirs = code.intern(opcode, None, operands);
            self.becomes(id, theirs);
            return;
        }
        let global = self.instruction(code, global);
        code.add_global(global);
    }

    fn annotations(&mut self, code: &mut Code, library: &Module) {
        for annotation in &library.annotations {
            let target = annotation.operands.first().and_then(Operand::id_ref_any);
            // The library's own workgroup size is nobody's.
            let sizes = annotation.operands.get(1) == Some(&Operand::Decoration(Decoration::SpecId))
                && annotation.operands.get(2) != Some(&Operand::LiteralBit32(variant::CONSTANT_ID));
            if sizes || target.is_some_and(|target| self.theirs.contains(&target)) {
                continue;
            }
            let annotation = self.instruction(code, annotation);
            code.module.annotations.push(annotation);
        }
    }
}
