//! Functions by what their calls are known to pass.
//!
//! Most parameters that decide what the translation does (whether it is for storing, how many bytes) are constants where it is called. So each
//! function that is called gets an instance for each set of constants that its calls pass, in which the branches that follow from them can
//! be taken as well; drivers, which put every call's code in place before they look for dead code, then get a fraction of it.
//!
//! Instances are asked for from the entry points on, and each is made once, so this ends also where functions call each other in a circle. What
//! instances add is bounded; beyond it constants are passed like other values.

use super::specialise::{Fresh, Known};
use rspirv::dr::{Function, Instruction, Module, Operand};
use rspirv::spirv::{Op, Word};
use std::collections::{HashMap, HashSet, VecDeque};

/// Most instructions of instances, other than each function's first.
const MAX_ADDED: usize = 1 << 15;

/// A function, and those of its parameters that are constants.
type Instance = (Word, Vec<Option<u32>>);

/// A function that may be called.
struct Callee {
    function: Function,
    instructions: usize,
    /// Whether what it is passed may decide anything: it branches, or calls what may.
    decides: bool,
}

/// The instances of a module's functions.
pub(super) struct Instances {
    functions: HashMap<Word, Callee>,
    made: HashMap<Instance, Word>,
    /// Functions whose own ids the first instance has.
    taken: HashSet<Word>,
    waiting: VecDeque<(Word, Instance)>,
    /// What is said of what functions define.
    annotations: HashMap<Word, Vec<Instruction>>,
    added: usize,
}

impl Instances {
    /// Takes a module's functions; those of its entry points are the first instances.
    pub(super) fn new(module: &mut Module, fresh: &mut Fresh) -> Self {
        let sized = |function: Function| {
            let instructions = function.all_inst_iter().count();
            let calls = |instruction: &Instruction| instruction.class.opcode == Op::FunctionCall;
            let decides = function.blocks.len() > 1 || function.all_inst_iter().any(calls);
            Some((function.def_id()?, Callee { function, instructions, decides }))
        };
        let functions = module.functions.drain(..).filter_map(sized).collect();
        let mut annotations: HashMap<Word, Vec<Instruction>> = HashMap::new();
        for annotation in &module.annotations {
            if let Some(target) = annotation.operands.first().and_then(Operand::id_ref_any) {
                annotations.entry(target).or_default().push(annotation.clone());
            }
        }
        // What is said in other ways of several values at once is not repeated for instances.
        let plain = module
            .annotations
            .iter()
            .all(|annotation| matches!(annotation.class.opcode, Op::Decorate | Op::MemberDecorate | Op::DecorateId));
        let added = if plain { 0 } else { MAX_ADDED };
        let mut instances = Self {
            functions,
            made: HashMap::new(),
            taken: HashSet::new(),
            waiting: VecDeque::new(),
            annotations,
            added,
        };
        for entry in &module.entry_points {
            if let Some(function) = entry.operands.get(1).and_then(Operand::id_ref_any) {
                instances.instance(function, Vec::new(), fresh);
            }
        }
        instances
    }

    /// The next instance to be worked on, with what is known of its parameters.
    pub(super) fn next(&mut self, module: &mut Module, known: &mut Known, fresh: &mut Fresh) -> Option<Function> {
        let (id, (of, constants)) = self.waiting.pop_front()?;
        let mut function = self.functions.get(&of)?.function.clone();
        if id != of {
            self.rename(&mut function, id, module, fresh);
        }
        let parameters = function.parameters.iter().filter_map(|parameter| parameter.result_id);
        known.extend(parameters.zip(constants).filter_map(|(parameter, constant)| Some((parameter, constant?))));
        Some(function)
    }

    /// Has the calls of a function go to instances.
    pub(super) fn call(&mut self, function: &mut Function, known: &Known, fresh: &mut Fresh) {
        let instructions = function.blocks.iter_mut().flat_map(|block| &mut block.instructions);
        for call in instructions.filter(|instruction| instruction.class.opcode == Op::FunctionCall) {
            let [Operand::IdRef(callee), arguments @ ..] = &mut call.operands[..] else { continue };
            let constants =
                arguments.iter().map(|argument| known.get(&argument.id_ref_any()?).copied()).collect::<Vec<_>>();
            *callee = self.instance(*callee, constants, fresh);
        }
    }

    /// The id of an instance, which is made if there is none yet.
    fn instance(&mut self, of: Word, mut constants: Vec<Option<u32>>, fresh: &mut Fresh) -> Word {
        let Some(Callee { function, instructions, decides }) = self.functions.get(&of) else { return of };
        constants.resize(function.parameters.len(), None);
        let new = !self.made.contains_key(&(of, constants.clone()));
        if !decides || (new && self.added + instructions > MAX_ADDED) {
            constants.fill(None);
        }
        let instance = (of, constants);
        if let Some(&made) = self.made.get(&instance) {
            return made;
        }
        let id = if self.taken.insert(of) {
            of
        } else {
            self.added += instructions;
            fresh.id()
        };
        self.made.insert(instance.clone(), id);
        self.waiting.push_back((id, instance));
        id
    }

    /// Gives all that a function defines new ids, the function `id`, and says of them what is said of the old.
    fn rename(&self, function: &mut Function, id: Word, module: &mut Module, fresh: &mut Fresh) {
        let mut renamed = HashMap::new();
        renamed.extend(function.def_id().map(|old| (old, id)));
        for defined in function.all_inst_iter().filter_map(|instruction| instruction.result_id) {
            renamed.entry(defined).or_insert_with(|| fresh.id());
        }
        for instruction in function.all_inst_iter_mut() {
            let calls = instruction.class.opcode == Op::FunctionCall;
            for (index, operand) in instruction.operands.iter_mut().enumerate() {
                // What is called is not among what the function defines, but for itself, and that instance is asked for anew.
                if !(calls && index == 0)
                    && let Some(used) = operand.id_ref_any_mut()
                    && let Some(new) = renamed.get(used)
                {
                    *used = *new;
                }
            }
            if let Some(new) = instruction.result_id.and_then(|old| renamed.get(&old)) {
                instruction.result_id = Some(*new);
            }
        }
        // In order, so that the same module always becomes the same.
        let mut renamed: Vec<_> = renamed.into_iter().collect();
        renamed.sort_unstable();
        for (old, new) in renamed {
            for annotation in self.annotations.get(&old).into_iter().flatten() {
                let mut annotation = annotation.clone();
                annotation.operands[0] = Operand::IdRef(new);
                module.annotations.push(annotation);
            }
        }
    }
}
