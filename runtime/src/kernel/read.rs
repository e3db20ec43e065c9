//! Reading SPIR-V: bytes in, rspirv's module out, never a panic.
//!
//! rspirv trusts the word counts of instructions and a few operands, and its loader has no place for some
//! instructions. So the stream's structure is checked before it is handed over, and what the loader has no place
//! for is put where it belongs: `OpExecutionModeId` with the execution modes. Non-semantic instructions, which
//! mean nothing to a device, are left out; the lines that `NonSemantic.Shader.DebugInfo.100` gives become `OpLine`.

use rspirv::binary::{Consumer, ParseAction, Parser};
use rspirv::dr::{Instruction, Loader, Module, ModuleHeader, Operand};
use rspirv::spirv::{MAGIC_NUMBER, Op, Word};
use std::collections::{HashMap, HashSet};

/// Words before the first instruction.
const HEADER_WORDS: usize = 5;
/// The universal limit on ids of the SPIR-V specification, section 2.17.
const MAX_BOUND: u32 = 0x3F_FFFF;
/// The universal limit on how deep structures are nested, from the same section.
const MAX_NESTING: u32 = 255;

/// The words of a module and what they say; or what is wrong with them.
pub(super) fn read(spirv: &[u8]) -> Result<(Vec<u32>, Module), String> {
    if !spirv.len().is_multiple_of(4) || spirv.len() < 4 * HEADER_WORDS {
        return Err(format!("{} bytes is no whole number of words with a header", spirv.len()));
    }
    let words: Vec<u32> =
        spirv.chunks_exact(4).map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]])).collect();
    check_structure(&words)?;
    let mut consumer = Reader::new();
    Parser::new(bytemuck::cast_slice(&words), &mut consumer).parse().map_err(|state| state.to_string())?;
    let mut module = consumer.loader.module();
    module.execution_modes.append(&mut consumer.execution_mode_ids);
    module.debug_names.retain(|name| {
        name.operands.first().and_then(Operand::id_ref_any).is_none_or(|id| !consumer.left_out.contains(&id))
    });
    check_ids(&module)?;
    check_types(&module)?;
    Ok((words, module))
}

/// Instructions fill the stream exactly, and none makes rspirv panic.
fn check_structure(words: &[u32]) -> Result<(), String> {
    if words[0] != MAGIC_NUMBER {
        return Err("it does not start with SPIR-V's magic number".into());
    }
    if words[3] > MAX_BOUND {
        return Err(format!("its bound of ids, {}, is over SPIR-V's limit", words[3]));
    }
    let mut at = HEADER_WORDS;
    while at < words.len() {
        let count = (words[at] >> 16) as usize;
        if count == 0 || count > words.len() - at {
            return Err(format!("the instruction at word {at} does not end within the module"));
        }
        let opcode = words[at] & 0xFFFF;
        // rspirv cannot parse the literals of these inside a specialisation constant's operation.
        let unparsable = [Op::Constant, Op::SpecConstant, Op::SpecConstantOp, Op::Switch];
        if opcode == Op::SpecConstantOp as u32
            && count > 3
            && unparsable.iter().any(|&operation| operation as u32 == words[at + 3])
        {
            return Err(format!("the OpSpecConstantOp at word {at} has an operation that is not allowed there"));
        }
        at += count;
    }
    Ok(())
}

/// All ids lie below the bound and are defined once.
fn check_ids(module: &Module) -> Result<(), String> {
    let bound = module.header.as_ref().map_or(0, |header| header.bound);
    let mut defined = vec![false; bound as usize];
    for instruction in module.all_inst_iter() {
        let operands = instruction.operands.iter().filter_map(Operand::id_ref_any);
        let mut ids = operands.chain(instruction.result_type).chain(instruction.result_id);
        if let Some(id) = ids.find(|&id| id == 0 || id >= bound) {
            return Err(format!("Op{} names id {id}, and the bound of ids is {bound}", instruction.class.opname));
        }
        if let Some(id) = instruction.result_id
            && std::mem::replace(&mut defined[id as usize], true)
        {
            return Err(format!("id {id} is defined twice"));
        }
    }
    for instruction in module.all_inst_iter() {
        let operands = instruction.operands.iter().filter_map(Operand::id_ref_any);
        if let Some(id) = operands.chain(instruction.result_type).find(|&id| !defined[id as usize]) {
            return Err(format!("Op{} names id {id}, which is not defined", instruction.class.opname));
        }
    }
    Ok(())
}

/// Types are made of earlier ones and no deeper than they may be, so that who walks them comes to an end.
fn check_types(module: &Module) -> Result<(), String> {
    let mut depths: HashMap<Word, u32> = HashMap::new();
    for global in module.types_global_values.iter().filter(|global| global.class.opcode.is_type()) {
        let Some(id) = global.result_id else { continue };
        let mut depth = 0;
        // Pointers may lead to what comes later.
        let made_of = match global.class.opcode {
            Op::TypePointer => &[],
            _ => &global.operands[..],
        };
        for part in made_of.iter().filter_map(Operand::id_ref_any) {
            depth = depth.max(depths.get(&part).map_or(0, |depth| depth + 1));
        }
        if depth > MAX_NESTING {
            return Err(format!("type {id} is nested deeper than {MAX_NESTING}"));
        }
        depths.insert(id, depth);
    }
    // What is named before it is declared was no part of the depth above.
    let mut declared: HashSet<Word> = HashSet::new();
    for global in &module.types_global_values {
        let aggregate = matches!(
            global.class.opcode,
            Op::TypeStruct | Op::TypeArray | Op::TypeRuntimeArray | Op::TypeVector | Op::TypeMatrix
        );
        let forward = |id: &Word| aggregate && !declared.contains(id);
        if let Some(part) = global.operands.iter().filter_map(Operand::id_ref_any).find(forward) {
            return Err(format!("Op{} is made of id {part}, which comes later", global.class.opname));
        }
        match (global.class.opcode, global.result_id) {
            (Op::TypeForwardPointer, _) => {
                declared.extend(global.operands.first().and_then(Operand::id_ref_any));
            }
            (_, id) => declared.extend(id),
        }
    }
    Ok(())
}

/// Passes instructions on to rspirv's loader, but for those that it has no place for.
struct Reader {
    loader: Loader,
    execution_mode_ids: Vec<Instruction>,
    /// Imports of non-semantic instruction sets.
    nonsemantic: HashSet<Word>,
    /// Of these, the one for debugging shaders.
    debug: Option<Word>,
    /// Its sources' file names, and the values of constants.
    files: HashMap<Word, Word>,
    constants: HashMap<Word, u32>,
    /// Ids of instructions that are left out; they may have names.
    left_out: HashSet<Word>,
}

impl Reader {
    fn new() -> Self {
        Self {
            loader: Loader::new(),
            execution_mode_ids: Vec::new(),
            nonsemantic: HashSet::new(),
            left_out: HashSet::new(),
            debug: None,
            files: HashMap::new(),
            constants: HashMap::new(),
        }
    }

    /// `OpLine` or `OpNoLine` for what `NonSemantic.Shader.DebugInfo.100` says, if that is about lines.
    fn line(&mut self, instruction: &Instruction) -> Option<Instruction> {
        let [Operand::IdRef(set), Operand::LiteralExtInstInteger(number), operands @ ..] = &instruction.operands[..]
        else {
            return None;
        };
        if Some(*set) != self.debug {
            return None;
        }
        let id = |index: usize| operands.get(index).and_then(Operand::id_ref_any);
        let value = |index: usize| self.constants.get(&id(index)?).copied();
        match *number {
            DEBUG_SOURCE => {
                self.files.insert(instruction.result_id?, id(0)?);
                None
            }
            // Source, first and last line, first and last column.
            DEBUG_LINE => {
                let (file, line, column) = (*self.files.get(&id(0)?)?, value(1)?, value(3)?);
                let operands = vec![Operand::IdRef(file), Operand::LiteralBit32(line), Operand::LiteralBit32(column)];
                Some(Instruction::new(Op::Line, None, None, operands))
            }
            DEBUG_NO_LINE => Some(Instruction::new(Op::NoLine, None, None, Vec::new())),
            _ => None,
        }
    }
}

/// The instruction set that says where shaders' instructions come from, and its instructions.
const DEBUG_SET: &str = "NonSemantic.Shader.DebugInfo.100";
/// What such instructions, and no others, need: that there are any, and that they name what comes later.
const DEBUG_EXTENSIONS: [&str; 2] = ["SPV_KHR_non_semantic_info", "SPV_KHR_relaxed_extended_instruction"];
const DEBUG_SOURCE: u32 = 35;
const DEBUG_LINE: u32 = 103;
const DEBUG_NO_LINE: u32 = 104;

impl Consumer for Reader {
    fn initialize(&mut self) -> ParseAction {
        self.loader.initialize()
    }
    fn finalize(&mut self) -> ParseAction {
        self.loader.finalize()
    }
    fn consume_header(&mut self, header: ModuleHeader) -> ParseAction {
        self.loader.consume_header(header)
    }
    fn consume_instruction(&mut self, instruction: Instruction) -> ParseAction {
        match (instruction.class.opcode, instruction.operands.first()) {
            (Op::ExecutionModeId, _) => {
                self.execution_mode_ids.push(instruction);
                ParseAction::Continue
            }
            (Op::ExtInstImport, Some(Operand::LiteralString(name))) if name.starts_with("NonSemantic.") => {
                self.nonsemantic.extend(instruction.result_id);
                self.left_out.extend(instruction.result_id);
                if name == DEBUG_SET {
                    self.debug = instruction.result_id;
                }
                ParseAction::Continue
            }
            (Op::ExtInst | Op::ExtInstWithForwardRefsKHR, Some(Operand::IdRef(set)))
                if self.nonsemantic.contains(set) =>
            {
                self.left_out.extend(instruction.result_id);
                match self.line(&instruction) {
                    Some(line) => self.loader.consume_instruction(line),
                    None => ParseAction::Continue,
                }
            }
            (Op::Constant, Some(&Operand::LiteralBit32(value))) if self.debug.is_some() => {
                self.constants.extend(instruction.result_id.map(|id| (id, value)));
                self.loader.consume_instruction(instruction)
            }
            (Op::Extension, Some(Operand::LiteralString(name))) if DEBUG_EXTENSIONS.contains(&&**name) => {
                ParseAction::Continue
            }
            _ => self.loader.consume_instruction(instruction),
        }
    }
}
