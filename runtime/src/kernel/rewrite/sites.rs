//! Where accesses stand in the source, so that fault reports can name it.
//!
//! Each translation is given a number, which the library keeps in a variable of the invocation and puts into fault entries. Nothing is stored
//! for it on the way: once drivers have put the calls in place, the number is a constant of the slow path.

use super::code::Code;
use rspirv::dr::{Instruction, Operand};
use rspirv::spirv::{Op, Word};
use std::collections::HashMap;

/// The largest number that fits a fault entry.
const MAX_SITES: usize = (1 << 24) - 1;

/// Places in the source, by number from 1 on.
pub(super) struct Sites {
    /// Names of files and functions.
    names: HashMap<Word, String>,
    found: Vec<String>,
    function: String,
    line: Option<(Word, u32, u32)>,
}

impl Sites {
    pub(super) fn of(code: &Code) -> Self {
        let strings = code.module.debug_string_source.iter().filter(|debug| debug.class.opcode == Op::String);
        let files = strings.filter_map(|string| match (string.result_id, string.operands.first()) {
            (Some(id), Some(Operand::LiteralString(text))) => Some((id, text.clone())),
            _ => None,
        });
        let functions = code.module.debug_names.iter().filter_map(|name| match &name.operands[..] {
            // GLSL's mangled names: the parameters' types follow the parenthesis.
            [Operand::IdRef(id), Operand::LiteralString(text)] => Some((*id, text.split('(').next()?.to_owned())),
            _ => None,
        });
        let entries = code.module.entry_points.iter().filter_map(|entry| match &entry.operands[..] {
            [_, Operand::IdRef(id), Operand::LiteralString(text), ..] => Some((*id, text.clone())),
            _ => None,
        });
        Self {
            names: functions.chain(entries).chain(files).collect(),
            found: Vec::new(),
            function: String::new(),
            line: None,
        }
    }

    /// The instructions to come are this function's.
    pub(super) fn enter(&mut self, function: Option<Word>) {
        let id = function.unwrap_or_default();
        self.function = self.names.get(&id).cloned().unwrap_or_else(|| format!("%{id}"));
        self.line = None;
    }

    /// The instructions to come are another block's, whose lines are given anew.
    pub(super) fn enter_block(&mut self) {
        self.line = None;
    }

    /// Takes note of what line the instructions to come are of.
    pub(super) fn note(&mut self, instruction: &Instruction) {
        match (instruction.class.opcode, &instruction.operands[..]) {
            (Op::Line, &[Operand::IdRef(file), Operand::LiteralBit32(line), Operand::LiteralBit32(column)]) => {
                self.line = Some((file, line, column));
            }
            (Op::NoLine, _) => self.line = None,
            _ => {}
        }
    }

    /// The number of an access; 0 if there are too many.
    pub(super) fn number(&mut self, access: &Instruction) -> u32 {
        let place = match self.line {
            Some((file, line, column)) => {
                let file = self.names.get(&file).map_or("", String::as_str);
                // Some compilers know no columns.
                if column == 0 { format!("{file}:{line}") } else { format!("{file}:{line}:{column}") }
            }
            None => {
                let opcode = access.class.opname;
                let of = access.result_id.or_else(|| access.operands.first().and_then(Operand::id_ref_any));
                format!("Op{opcode} %{} in {}", of.unwrap_or_default(), self.function)
            }
        };
        if self.found.last() != Some(&place) {
            if self.found.len() >= MAX_SITES {
                return 0;
            }
            self.found.push(place);
        }
        self.found.len() as u32
    }

    pub(super) fn into_places(self) -> Vec<String> {
        self.found
    }
}
