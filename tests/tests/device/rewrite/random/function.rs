//! Writes a program's functions down as SPIR-V, with variables in memory of the function, or in values and phis.

use super::emit::{Module, put};
use super::program::{
    Atomic, Binary, Cond, Expr, Form, Function, Input, Load, Place, Reach, SLOTS, Step, Stmt, Ty, Var, Whose,
};
use super::types::{Role, Scalar, Type, TypeId};
use rspirv::spirv::{BuiltIn, Decoration, Op, StorageClass};

const VOLATILE: u32 = 1;
const ALIGNED: u32 = 2;
const NON_PRIVATE: u32 = 0x20;
const PHYSICAL: StorageClass = StorageClass::PhysicalStorageBuffer;

/// A block to come, and from where it is reached with which variables.
struct Join {
    label: u32,
    edges: Vec<(u32, Vec<u32>)>,
}

/// What lies at a place.
#[derive(Clone, Copy)]
enum What {
    Object(TypeId),
    Integer(Scalar),
    Float,
}

struct Writer<'m, 'p> {
    module: &'m mut Module<'p>,
    function: &'p Function,
    /// Instructions, each with its opcode's word.
    code: Vec<Vec<u32>>,
    /// Variables' values, or the memory that they are in.
    values: Vec<u32>,
    slots: u32,
    label: u32,
    /// Whether the current block is open.
    open: bool,
    /// Merge and continue blocks of the loops around.
    loops: Vec<(Join, Join)>,
}

/// The words of a function.
pub(super) fn emit(module: &mut Module<'_>, index: usize) -> Vec<u32> {
    let program = module.program;
    let function = &program.functions[index];
    let id = module.functions[index];
    let is_entry = index + 1 == program.functions.len();
    let result = if is_entry { module.void() } else { module.uint() };
    let types: Vec<u32> = function.variables.iter().map(|&ty| module.value_type(ty)).collect();
    let parameter_types = &types[..function.parameters];
    let signature = module.signature(result, parameter_types);
    let mut words = Vec::new();
    put(&mut words, Op::Function, &[result, id, 0, signature]);
    let mut parameters = Vec::new();
    for (&ty, kind) in parameter_types.iter().zip(&function.variables) {
        let parameter = module.fresh();
        put(&mut words, Op::FunctionParameter, &[ty, parameter]);
        if let Ty::Pointer(_) = kind {
            module.decorate(&[parameter, Decoration::Aliased as u32]);
        }
        parameters.push(parameter);
    }
    let label = module.fresh();
    put(&mut words, Op::Label, &[label]);
    let array = module.words(SLOTS);
    let array_pointer = module.pointer(StorageClass::Function, array);
    let nothing = module.null(array);
    let slots = module.fresh();
    put(&mut words, Op::Variable, &[array_pointer, slots, StorageClass::Function as u32, nothing]);
    let mut values = Vec::new();
    if !program.dialect.phis {
        for (&ty, kind) in types.iter().zip(&function.variables) {
            let pointer = module.pointer(StorageClass::Function, ty);
            let variable = module.fresh();
            put(&mut words, Op::Variable, &[pointer, variable, StorageClass::Function as u32]);
            if let Ty::Pointer(_) = kind {
                module.decorate(&[variable, Decoration::AliasedPointer as u32]);
            }
            values.push(variable);
        }
    }
    let mut writer = Writer { module, function, code: Vec::new(), values, slots, label, open: true, loops: Vec::new() };
    writer.initialise(&parameters);
    writer.block(&function.body);
    if writer.open {
        writer.put(Op::Return, &[]);
    }
    words.extend(writer.code.into_iter().flatten());
    put(&mut words, Op::FunctionEnd, &[]);
    words
}

impl<'p> Writer<'_, 'p> {
    fn put(&mut self, opcode: Op, operands: &[u32]) {
        let mut words = Vec::new();
        put(&mut words, opcode, operands);
        self.code.push(words);
    }

    /// An instruction with a result.
    fn op(&mut self, opcode: Op, ty: u32, operands: &[u32]) -> u32 {
        let id = self.module.fresh();
        let operands: Vec<u32> = [ty, id].into_iter().chain(operands.iter().copied()).collect();
        self.put(opcode, &operands);
        id
    }

    fn phis(&self) -> bool {
        self.module.program.dialect.phis
    }

    fn initialise(&mut self, parameters: &[u32]) {
        for var in 0..self.function.variables.len() {
            let value = match (parameters.get(var), self.function.variables[var]) {
                (Some(&parameter), _) => parameter,
                (None, Ty::Word) => self.module.word(0),
                (None, Ty::Long) => self.module.long(0),
                (None, Ty::Pointer(node)) => self.expr(&Expr::Element(node, Box::new(Expr::Word(0)), Reach::Long)),
            };
            if self.phis() {
                self.values.push(value);
            } else {
                self.set(var, value);
            }
        }
    }

    fn get(&mut self, var: Var) -> u32 {
        if self.phis() {
            return self.values[var];
        }
        let ty = self.module.value_type(self.function.variables[var]);
        self.op(Op::Load, ty, &[self.values[var]])
    }

    fn set(&mut self, var: Var, value: u32) {
        if self.phis() {
            self.values[var] = value;
        } else {
            self.put(Op::Store, &[self.values[var], value]);
        }
    }

    fn join(&mut self) -> Join {
        Join { label: self.module.fresh(), edges: Vec::new() }
    }

    fn edge(&self, to: &mut Join) {
        to.edges.push((self.label, self.values.clone()));
    }

    fn branch(&mut self, to: &mut Join) {
        if self.open {
            self.edge(to);
            self.put(Op::Branch, &[to.label]);
            self.open = false;
        }
    }

    fn branch_on(&mut self, cond: u32, yes: &mut Join, no: &mut Join) {
        self.edge(yes);
        self.edge(no);
        self.put(Op::BranchConditional, &[cond, yes.label, no.label]);
        self.open = false;
    }

    /// Goes on in a block; false if nothing leads there.
    fn start(&mut self, block: Join) -> bool {
        self.label = block.label;
        self.put(Op::Label, &[block.label]);
        let Some((_, first)) = block.edges.first() else {
            self.open = false;
            return false;
        };
        self.open = true;
        let mut values = first.clone();
        if self.phis() {
            for (var, value) in values.iter_mut().enumerate() {
                if block.edges.iter().any(|(_, values)| values[var] != *value) {
                    let ty = self.module.value_type(self.function.variables[var]);
                    let pairs: Vec<u32> = block.edges.iter().flat_map(|(from, values)| [values[var], *from]).collect();
                    *value = self.op(Op::Phi, ty, &pairs);
                }
            }
        }
        self.values = values;
        true
    }

    /// As `start`, for a merge block.
    fn merge(&mut self, block: Join) {
        if !self.start(block) {
            self.put(Op::Unreachable, &[]);
        }
    }

    fn block(&mut self, body: &[Stmt]) {
        for stmt in body {
            if !self.open {
                return;
            }
            self.stmt(stmt);
        }
    }

    fn stmt(&mut self, stmt: &Stmt) {
        match stmt {
            Stmt::Set(var, value) => {
                let value = self.expr(value);
                self.set(*var, value);
            }
            Stmt::Store(place, value) => {
                let value = self.expr(value);
                let (pointer, what, align) = self.place(place);
                let value = match what {
                    What::Float => {
                        let float = self.module.float();
                        self.op(Op::Bitcast, float, &[value])
                    }
                    _ => match self.integer(what) {
                        Scalar::Word | Scalar::Long => value,
                        small => {
                            let ty = self.module.scalar(small);
                            self.op(Op::UConvert, ty, &[value])
                        }
                    },
                };
                self.put(Op::Store, &[pointer, value, ALIGNED, align]);
            }
            Stmt::Copy { to, from, at_once } => {
                let (from_pointer, what, from_align) = self.place(from);
                let (to_pointer, _, to_align) = self.place(to);
                if *at_once {
                    let align = from_align.min(to_align);
                    self.put(Op::CopyMemory, &[to_pointer, from_pointer, ALIGNED, align]);
                } else {
                    let ty = self.type_of(what);
                    let value = self.op(Op::Load, ty, &[from_pointer, ALIGNED, from_align]);
                    self.put(Op::Store, &[to_pointer, value, ALIGNED, to_align]);
                }
            }
            Stmt::Atomic { kind, index, value } => self.atomic(*kind, index, value),
            Stmt::SetSlot(index, value) => {
                let value = self.expr(value);
                let slot = self.slot(index);
                self.put(Op::Store, &[slot, value]);
            }
            Stmt::If(cond, yes, no) => {
                let cond = self.cond(cond);
                let (mut merge, mut then, mut other) = (self.join(), self.join(), self.join());
                self.put(Op::SelectionMerge, &[merge.label, 0]);
                if no.is_empty() {
                    self.branch_on(cond, &mut then, &mut merge);
                } else {
                    self.branch_on(cond, &mut then, &mut other);
                }
                self.start(then);
                self.block(yes);
                self.branch(&mut merge);
                if !no.is_empty() {
                    self.start(other);
                    self.block(no);
                    self.branch(&mut merge);
                }
                self.merge(merge);
            }
            Stmt::Switch(selector, cases) => self.switch(selector, cases),
            Stmt::For { var, bound, form, body } => {
                let bound = self.expr(bound);
                let zero = self.module.word(0);
                self.set(*var, zero);
                let more = |writer: &mut Self| {
                    let bool = writer.module.bool();
                    let at = writer.get(*var);
                    writer.op(Op::ULessThan, bool, &[at, bound])
                };
                let step = |writer: &mut Self| {
                    let (uint, one) = (writer.module.uint(), writer.module.word(1));
                    let at = writer.get(*var);
                    let next = writer.op(Op::IAdd, uint, &[at, one]);
                    writer.set(*var, next);
                };
                self.go_round(*form, body, more, step);
            }
            Stmt::Walk { var, node, start, form, body } => {
                let start = self.expr(start);
                self.set(*var, start);
                let more = |writer: &mut Self| {
                    let (bool, ulong, zero) = (writer.module.bool(), writer.module.ulong(), writer.module.long(0));
                    let at = writer.get(*var);
                    let at = writer.op(Op::ConvertPtrToU, ulong, &[at]);
                    writer.op(Op::INotEqual, bool, &[at, zero])
                };
                let types = &self.module.program.types;
                let next = match &types.all[types.nodes[*node].ty] {
                    Type::Struct(members) => members.iter().position(|member| member.role == Role::Next),
                    _ => None,
                };
                let next = next.unwrap_or(0) as u32;
                let step = |writer: &mut Self| {
                    let pointer = writer.module.node_pointer(*node);
                    let member = writer.module.word(next);
                    let to_member = writer.module.pointer(PHYSICAL, pointer);
                    let at = writer.get(*var);
                    let at = writer.op(Op::AccessChain, to_member, &[at, member]);
                    let next = writer.op(Op::Load, pointer, &[at, ALIGNED, 8]);
                    writer.set(*var, next);
                };
                self.go_round(*form, body, more, step);
            }
            Stmt::Break => self.leave(true),
            Stmt::Continue => self.leave(false),
            Stmt::Return(value) => {
                match value {
                    Some(value) => {
                        let value = self.expr(value);
                        self.put(Op::ReturnValue, &[value]);
                    }
                    None => self.put(Op::Return, &[]),
                }
                self.open = false;
            }
            Stmt::Exchange { to, value, whose } => {
                let value = self.expr(value);
                let count = self.module.program.per_group();
                let uint = self.module.uint();
                let index = match whose {
                    Whose::At(index) => self.expr(index),
                    Whose::Rotate(by) => {
                        let (by, count) = (self.module.word(*by), self.module.word(count));
                        let at = self.expr(&Expr::Input(Input::Local));
                        let at = self.op(Op::IAdd, uint, &[at, by]);
                        self.op(Op::UMod, uint, &[at, count])
                    }
                };
                let own = self.expr(&Expr::Input(Input::Local));
                let vulkan = self.module.program.dialect.vulkan_memory_model;
                let operands: &[u32] = if vulkan { &[NON_PRIVATE] } else { &[] };
                let slot = self.shared(own);
                self.put(Op::Store, &[&[slot, value], operands].concat());
                self.barrier();
                let slot = self.shared(index);
                let seen = self.op(Op::Load, uint, &[&[slot], operands].concat());
                self.barrier();
                self.set(*to, seen);
            }
            Stmt::Call { function, arguments, to } => {
                let mut operands = vec![self.module.functions[*function]];
                for argument in arguments {
                    let value = self.expr(argument);
                    operands.push(value);
                }
                let uint = self.module.uint();
                let result = self.op(Op::FunctionCall, uint, &operands);
                if let Some(to) = to {
                    self.set(*to, result);
                }
            }
        }
    }

    fn barrier(&mut self) {
        // Workgroup; acquire, release and workgroup memory, with availability and visibility.
        let vulkan = self.module.program.dialect.vulkan_memory_model;
        let (scope, semantics) = (self.module.word(2), self.module.word(if vulkan { 0x6108 } else { 0x108 }));
        self.put(Op::ControlBarrier, &[scope, scope, semantics]);
    }

    fn shared(&mut self, index: u32) -> u32 {
        let uint = self.module.uint();
        let pointer = self.module.pointer(StorageClass::Workgroup, uint);
        self.op(Op::AccessChain, pointer, &[self.module.shared, index])
    }

    fn slot(&mut self, index: &Expr) -> u32 {
        let index = self.expr(index);
        let uint = self.module.uint();
        let pointer = self.module.pointer(StorageClass::Function, uint);
        self.op(Op::AccessChain, pointer, &[self.slots, index])
    }

    fn leave(&mut self, breaks: bool) {
        let Some((mut merge, mut next)) = self.loops.pop() else { return };
        self.branch(if breaks { &mut merge } else { &mut next });
        self.loops.push((merge, next));
    }

    fn switch(&mut self, selector: &Expr, cases: &[(Vec<Stmt>, bool)]) {
        let uint = self.module.uint();
        let value = self.expr(selector);
        let count = self.module.word(cases.len() as u32);
        let value = self.op(Op::UMod, uint, &[value, count]);
        let mut merge = self.join();
        let mut joins: Vec<Join> = cases.iter().map(|_| self.join()).collect();
        self.put(Op::SelectionMerge, &[merge.label, 0]);
        let mut operands = vec![value, merge.label];
        for (literal, join) in joins.iter_mut().enumerate() {
            self.edge(join);
            operands.extend([literal as u32, join.label]);
        }
        self.edge(&mut merge);
        self.put(Op::Switch, &operands);
        self.open = false;
        let mut falling: Option<(u32, Vec<u32>)> = None;
        for (at, (mut join, (case, falls))) in joins.into_iter().zip(cases).enumerate() {
            join.edges.extend(falling.take());
            self.start(join);
            self.block(case);
            if *falls && self.open {
                falling = Some((self.label, self.values.clone()));
                // The next case's label, after the selector, the default and one literal for each before it.
                let next = operands[2 + 2 * (at + 1) + 1];
                self.put(Op::Branch, &[next]);
                self.open = false;
            } else {
                self.branch(&mut merge);
            }
        }
        self.merge(merge);
    }

    fn go_round(&mut self, form: Form, body: &[Stmt], more: impl Fn(&mut Self) -> u32, step: impl Fn(&mut Self)) {
        let (header, merge, next) = (self.module.fresh(), self.join(), self.join());
        let before = (self.label, self.values.clone());
        self.put(Op::Branch, &[header]);
        self.put(Op::Label, &[header]);
        self.label = header;
        // Every variable gets a phi; its value from the end of the body is put in when that is known.
        let first_phi = self.code.len();
        if self.phis() {
            for var in 0..self.values.len() {
                let ty = self.module.value_type(self.function.variables[var]);
                let phi = self.module.fresh();
                self.put(Op::Phi, &[ty, phi, before.1[var], before.0, phi, next.label]);
                self.values[var] = phi;
            }
        }
        let (merge_label, next_label) = (merge.label, next.label);
        let mut inside = self.join();
        let mut merge = merge;
        match form {
            Form::Header => {
                let cond = more(self);
                self.put(Op::LoopMerge, &[merge_label, next_label, 0]);
                self.branch_on(cond, &mut inside, &mut merge);
                self.start(inside);
            }
            Form::Top => {
                let mut test = self.join();
                self.put(Op::LoopMerge, &[merge_label, next_label, 0]);
                self.branch(&mut test);
                self.start(test);
                let cond = more(self);
                self.branch_on(cond, &mut inside, &mut merge);
                self.start(inside);
            }
            Form::Middle => {
                let (mut out, mut test) = (self.join(), self.join());
                self.put(Op::LoopMerge, &[merge_label, next_label, 0]);
                self.branch(&mut test);
                self.start(test);
                let cond = more(self);
                self.put(Op::SelectionMerge, &[inside.label, 0]);
                self.branch_on(cond, &mut inside, &mut out);
                self.start(out);
                self.branch(&mut merge);
                self.start(inside);
            }
            Form::Bottom => {
                self.put(Op::LoopMerge, &[merge_label, next_label, 0]);
                self.branch(&mut inside);
                self.start(inside);
            }
        }
        self.loops.push((merge, next));
        self.block(body);
        let Some((mut merge, mut next)) = self.loops.pop() else { return };
        self.branch(&mut next);
        if self.start(next) {
            step(self);
            if form == Form::Bottom {
                let cond = more(self);
                self.edge(&mut merge);
                self.put(Op::BranchConditional, &[cond, header, merge_label]);
            } else {
                self.put(Op::Branch, &[header]);
            }
            if self.phis() {
                for var in 0..self.values.len() {
                    self.code[first_phi + var][5] = self.values[var];
                }
            }
        } else {
            self.put(Op::Branch, &[header]);
        }
        self.open = false;
        self.merge(merge);
    }

    fn atomic(&mut self, kind: Atomic, index: &Expr, value: &Expr) {
        let long = kind == Atomic::LongAdd;
        let (uint, ulong, bool) = (self.module.uint(), self.module.ulong(), self.module.bool());
        let ty = if long { ulong } else { uint };
        let index = self.expr(index);
        let mut value = self.expr(value);
        if long {
            value = self.op(Op::UConvert, ulong, &[value]);
        }
        let (stride, first) = (self.module.word(super::program::COUNTER_STRIDE), self.module.word(kind.offset(0)));
        let offset = self.op(Op::IMul, uint, &[index, stride]);
        let offset = self.op(Op::IAdd, uint, &[offset, first]);
        let offset = self.op(Op::UConvert, ulong, &[offset]);
        let counters = self.module.push_counters();
        let counters = self.push(counters, ulong);
        let address = self.op(Op::IAdd, ulong, &[counters, offset]);
        let pointer_type = self.module.pointer(PHYSICAL, ty);
        let pointer = self.op(Op::ConvertUToPtr, pointer_type, &[address]);
        // Of the queue family: what the Vulkan memory model offers without asking for more.
        let scope = if self.module.program.dialect.vulkan_memory_model { 5 } else { 1 };
        let (scope, relaxed) = (self.module.word(scope), self.module.word(0));
        let opcode = match kind {
            Atomic::Add | Atomic::LongAdd => Op::AtomicIAdd,
            Atomic::Or => Op::AtomicOr,
            Atomic::And => Op::AtomicAnd,
            Atomic::Xor => Op::AtomicXor,
            Atomic::Min => Op::AtomicUMin,
            Atomic::Max => Op::AtomicUMax,
            Atomic::SwapSeen | Atomic::SwapLoaded => {
                // Variables do not change in this loop.
                let [header, merge, next] = [(); 3].map(|()| self.module.fresh());
                let swap = |writer: &mut Self, seen: u32| {
                    let sum = writer.op(Op::IAdd, uint, &[seen, value]);
                    let operands = [pointer, scope, relaxed, relaxed, sum, seen];
                    let found = writer.op(Op::AtomicCompareExchange, uint, &operands);
                    (found, writer.op(Op::IEqual, bool, &[found, seen]))
                };
                let from = self.label;
                let first =
                    (kind == Atomic::SwapSeen).then(|| self.op(Op::Load, uint, &[pointer, VOLATILE | ALIGNED, 4]));
                self.put(Op::Branch, &[header]);
                self.put(Op::Label, &[header]);
                let (body, found) = (self.module.fresh(), self.module.fresh());
                let phi = first.map(|first| self.op(Op::Phi, uint, &[first, from, found, next]));
                self.put(Op::LoopMerge, &[merge, next, 0]);
                self.put(Op::Branch, &[body]);
                self.put(Op::Label, &[body]);
                let seen = phi.unwrap_or_else(|| self.op(Op::AtomicLoad, uint, &[pointer, scope, relaxed]));
                let (swapped, done) = swap(self, seen);
                self.put(Op::CopyObject, &[uint, found, swapped]);
                self.put(Op::BranchConditional, &[done, merge, next]);
                self.put(Op::Label, &[next]);
                self.put(Op::Branch, &[header]);
                self.put(Op::Label, &[merge]);
                self.label = merge;
                return;
            }
        };
        self.op(opcode, ty, &[pointer, scope, relaxed, value]);
    }

    /// A member of the push constants.
    fn push(&mut self, member: u32, ty: u32) -> u32 {
        let pointer = self.module.pointer(StorageClass::PushConstant, ty);
        let member = self.module.word(member);
        let at = self.op(Op::AccessChain, pointer, &[self.module.push, member]);
        self.op(Op::Load, ty, &[at])
    }

    fn cond(&mut self, cond: &Cond) -> u32 {
        let bool = self.module.bool();
        match cond {
            Cond::Less(a, b) | Cond::Equal(a, b) => {
                let (a, b) = (self.expr(a), self.expr(b));
                self.op(if matches!(cond, Cond::Less(..)) { Op::ULessThan } else { Op::IEqual }, bool, &[a, b])
            }
            Cond::Not(cond) => {
                let cond = self.cond(cond);
                self.op(Op::LogicalNot, bool, &[cond])
            }
            Cond::Both(a, b) => {
                let (a, b) = (self.cond(a), self.cond(b));
                self.op(Op::LogicalAnd, bool, &[a, b])
            }
        }
    }

    fn expr(&mut self, expr: &Expr) -> u32 {
        let (uint, ulong) = (self.module.uint(), self.module.ulong());
        match expr {
            Expr::Word(value) => self.module.word(*value),
            Expr::Long(value) => self.module.long(*value),
            Expr::Var(var) => self.get(*var),
            Expr::Input(input) => self.input(*input),
            Expr::Binary(operation, ty, a, b) => {
                let (a, b) = (self.expr(a), self.expr(b));
                let opcode = match operation {
                    Binary::Add => Op::IAdd,
                    Binary::Sub => Op::ISub,
                    Binary::Mul => Op::IMul,
                    Binary::And => Op::BitwiseAnd,
                    Binary::Or => Op::BitwiseOr,
                    Binary::Xor => Op::BitwiseXor,
                    Binary::Rem => Op::UMod,
                };
                let ty = self.module.value_type(*ty);
                self.op(opcode, ty, &[a, b])
            }
            Expr::Wide(value) => {
                let value = self.expr(value);
                self.op(Op::UConvert, ulong, &[value])
            }
            Expr::Low(value) => {
                let value = self.expr(value);
                self.op(Op::UConvert, uint, &[value])
            }
            Expr::Select(cond, a, b) => {
                let ty = self.type_of_expr(a);
                let ty = self.module.value_type(ty);
                let (a, b) = (self.expr(a), self.expr(b));
                let cond = self.cond(cond);
                self.op(Op::Select, ty, &[cond, a, b])
            }
            Expr::Load(load) => self.load(load),
            Expr::Element(node, index, reach) => self.element(*node, index, *reach),
            Expr::Address(pointer) => {
                let pointer = self.expr(pointer);
                self.op(Op::ConvertPtrToU, ulong, &[pointer])
            }
            Expr::Pointer(node, address) => {
                let address = self.expr(address);
                let ty = self.module.node_pointer(*node);
                self.op(Op::ConvertUToPtr, ty, &[address])
            }
            Expr::Slot(index) => {
                let slot = self.slot(index);
                self.op(Op::Load, uint, &[slot])
            }
        }
    }

    /// The type of a value of which another could be chosen: a word, or a pointer.
    fn type_of_expr(&self, expr: &Expr) -> Ty {
        match expr {
            Expr::Var(var) => self.function.variables[*var],
            Expr::Element(node, ..) | Expr::Pointer(node, _) => Ty::Pointer(*node),
            Expr::Select(_, a, _) => self.type_of_expr(a),
            Expr::Load(load) => self.loaded(load),
            Expr::Binary(_, ty, ..) => *ty,
            Expr::Long(_) | Expr::Wide(_) | Expr::Address(_) => Ty::Long,
            Expr::Word(_) | Expr::Input(_) | Expr::Low(_) | Expr::Slot(_) => Ty::Word,
        }
    }

    /// The type of the scalar that a load takes.
    fn loaded(&self, load: &Load) -> Ty {
        let types = &self.module.program.types;
        let steps = load.from.path.iter().map(|step| match step {
            Step::Member(at) | Step::At(at) => *at,
            Step::Index(_) => 0,
        });
        let mut ty = types.nodes[load.from.node].ty;
        for at in steps.chain(load.take.iter().copied()) {
            ty = match &types.all[ty] {
                Type::Struct(members) => members[at as usize].ty,
                Type::Array { element, .. } => *element,
                Type::Vector(Scalar::Long, _) => return Ty::Long,
                _ => return Ty::Word,
            };
        }
        match &types.all[ty] {
            Type::Scalar(Scalar::Long) => Ty::Long,
            Type::Pointer(node) => Ty::Pointer(*node),
            _ => Ty::Word,
        }
    }

    fn input(&mut self, input: Input) -> u32 {
        let uint = self.module.uint();
        let (built_in, component) = match input {
            Input::Local => (BuiltIn::LocalInvocationIndex, None),
            Input::Group => (BuiltIn::WorkgroupId, Some(0)),
            Input::Groups => (BuiltIn::NumWorkgroups, Some(0)),
            Input::Count => {
                let member = self.module.push_count();
                return self.push(member, uint);
            }
            Input::Linear => {
                let width = self.module.word(self.module.program.local[0]);
                let groups = self.input(Input::Groups);
                let row = self.op(Op::IMul, uint, &[groups, width]);
                let y = self.component(BuiltIn::GlobalInvocationId, 1);
                let before = self.op(Op::IMul, uint, &[y, row]);
                let x = self.component(BuiltIn::GlobalInvocationId, 0);
                return self.op(Op::IAdd, uint, &[before, x]);
            }
        };
        match component {
            Some(component) => self.component(built_in, component),
            None => {
                let variable = self.module.input(built_in);
                self.op(Op::Load, uint, &[variable])
            }
        }
    }

    fn component(&mut self, built_in: BuiltIn, component: u32) -> u32 {
        let uint = self.module.uint();
        let variable = self.module.input(built_in);
        // Both ways occur.
        if component == 0 {
            let uvec3 = self.module.vector(uint, 3);
            let whole = self.op(Op::Load, uvec3, &[variable]);
            return self.op(Op::CompositeExtract, uint, &[whole, component]);
        }
        let pointer = self.module.pointer(StorageClass::Input, uint);
        let index = self.module.word(component);
        let at = self.op(Op::AccessChain, pointer, &[variable, index]);
        self.op(Op::Load, uint, &[at])
    }

    fn element(&mut self, node: usize, index: &Expr, reach: Reach) -> u32 {
        let (uint, ulong) = (self.module.uint(), self.module.ulong());
        let pointer = self.module.node_pointer(node);
        let member = self.module.push_member(node);
        let pointers = self.module.program.dialect.pointer_arguments;
        let first = self.push(member, if pointers { pointer } else { ulong });
        let index = self.expr(index);
        if reach == Reach::Chain {
            let first = if pointers { first } else { self.op(Op::ConvertUToPtr, pointer, &[first]) };
            return self.op(Op::PtrAccessChain, pointer, &[first, index]);
        }
        let first = if pointers { self.op(Op::ConvertPtrToU, ulong, &[first]) } else { first };
        let stride = self.module.long(u64::from(self.module.program.types.nodes[node].stride));
        let index = self.op(Op::UConvert, ulong, &[index]);
        let offset = self.op(Op::IMul, ulong, &[index, stride]);
        let address = self.op(Op::IAdd, ulong, &[first, offset]);
        if reach == Reach::Halves {
            let halves = self.module.vector(uint, 2);
            let address = self.op(Op::Bitcast, halves, &[address]);
            return self.op(Op::Bitcast, pointer, &[address]);
        }
        self.op(Op::ConvertUToPtr, pointer, &[address])
    }

    /// A pointer to a place, what is there, and the alignment to promise.
    fn place(&mut self, place: &Place) -> (u32, What, u32) {
        let types = &self.module.program.types;
        let node = types.nodes[place.node];
        let mut pointer = self.expr(&place.pointer);
        let mut what = What::Object(node.ty);
        let mut known = node.align;
        let mut indices = Vec::new();
        let mut column = None;
        for (step_at, step) in place.path.iter().enumerate() {
            if step_at == place.style.cut && !indices.is_empty() {
                pointer = self.chain(pointer, &indices, what, column, place.style.in_bounds);
                indices.clear();
            }
            let (index, at) = match step {
                Step::Member(at) | Step::At(at) => (self.module.word(*at), Some(*at)),
                Step::Index(index) => (self.expr(index), None),
            };
            indices.push(index);
            let What::Object(ty) = what else { continue };
            let mut apart = |stride: u32| {
                let offset = at.map_or(stride, |at| at * stride);
                if offset != 0 {
                    known = known.min(1 << offset.trailing_zeros());
                }
            };
            match &types.all[ty] {
                Type::Struct(members) => {
                    let member = members[at.unwrap_or(0) as usize];
                    if member.offset != 0 {
                        known = known.min(1 << member.offset.trailing_zeros());
                    }
                    what = What::Object(member.ty);
                }
                Type::Array { element, stride, .. } => {
                    apart(*stride);
                    what = What::Object(*element);
                }
                Type::Vector(scalar, _) => {
                    apart(scalar.bytes());
                    what = What::Integer(*scalar);
                }
                // The column, then the component.
                Type::Matrix { rows, .. } if column.is_none() => {
                    known = 4;
                    column = Some(*rows);
                    continue;
                }
                _ => what = What::Float,
            }
            column = column.filter(|_| !matches!(what, What::Float));
        }
        if !indices.is_empty() {
            pointer = self.chain(pointer, &indices, what, column, place.style.in_bounds);
        }
        let least = match what {
            What::Object(ty) => types.align(ty),
            What::Integer(scalar) => scalar.bytes(),
            What::Float => 4,
        };
        (pointer, what, if place.style.aligned { known.max(least) } else { least })
    }

    fn chain(&mut self, base: u32, indices: &[u32], what: What, column: Option<u32>, in_bounds: bool) -> u32 {
        let ty = match column {
            Some(rows) => {
                let float = self.module.float();
                self.module.vector(float, rows)
            }
            None => self.type_of(what),
        };
        let pointer = self.module.pointer(PHYSICAL, ty);
        let operands: Vec<u32> = std::iter::once(base).chain(indices.iter().copied()).collect();
        self.op(if in_bounds { Op::InBoundsAccessChain } else { Op::AccessChain }, pointer, &operands)
    }

    fn type_of(&mut self, what: What) -> u32 {
        match what {
            What::Object(ty) => self.module.memory_type(ty),
            What::Integer(scalar) => self.module.scalar(scalar),
            What::Float => self.module.float(),
        }
    }

    fn integer(&self, what: What) -> Scalar {
        match what {
            What::Integer(scalar) => scalar,
            What::Object(ty) => match self.module.program.types.all[ty] {
                Type::Scalar(scalar) => scalar,
                _ => Scalar::Long,
            },
            What::Float => Scalar::Word,
        }
    }

    fn load(&mut self, load: &Load) -> u32 {
        let (pointer, what, align) = self.place(&load.from);
        let ty = self.type_of(what);
        let volatile = if load.from.style.volatile { VOLATILE } else { 0 };
        let value = self.op(Op::Load, ty, &[pointer, volatile | ALIGNED, align]);
        let what = self.taken(what, &load.take);
        let ty = self.type_of(what);
        let value = if load.take.is_empty() {
            value
        } else {
            self.op(Op::CompositeExtract, ty, &[&[value], &load.take[..]].concat())
        };
        let uint = self.module.uint();
        if let What::Float = what {
            return self.op(Op::Bitcast, uint, &[value]);
        }
        match self.integer(what) {
            Scalar::Word | Scalar::Long => value,
            _ => self.op(Op::UConvert, uint, &[value]),
        }
    }

    /// What is taken out of a loaded object.
    fn taken(&self, what: What, take: &[u32]) -> What {
        let (What::Object(ty), [at, rest @ ..]) = (what, take) else { return what };
        match &self.module.program.types.all[ty] {
            Type::Struct(members) => self.taken(What::Object(members[*at as usize].ty), rest),
            Type::Array { element, .. } => self.taken(What::Object(*element), rest),
            Type::Vector(scalar, _) => What::Integer(*scalar),
            _ => What::Float,
        }
    }
}
