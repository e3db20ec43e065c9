//! Writes a program down as SPIR-V: types, constants and variables here, functions in [`function`](super::function).

use super::function;
use super::program::{Program, Ty};
use super::types::{NodeId, Scalar, Type, TypeId};
use rspirv::spirv::{BuiltIn, Capability, Decoration, Op, StorageClass};
use std::collections::HashMap;

/// The ids of what all functions use.
pub(super) struct Module<'a> {
    pub(super) program: &'a Program,
    next: u32,
    interned: HashMap<Vec<u32>, u32>,
    annotations: Vec<u32>,
    globals: Vec<u32>,
    interface: Vec<u32>,
    /// Types that lie in memory, and pointers to them.
    types: Vec<u32>,
    pointers: Vec<u32>,
    inputs: HashMap<BuiltIn, u32>,
    pub(super) push: u32,
    pub(super) shared: u32,
    /// The functions and their types' ids.
    pub(super) functions: Vec<u32>,
}

/// Appends an instruction.
pub(super) fn put(to: &mut Vec<u32>, opcode: Op, operands: &[u32]) {
    to.push((operands.len() as u32 + 1) << 16 | opcode as u32);
    to.extend_from_slice(operands);
}

/// The words of a module.
pub(super) fn emit(program: &Program) -> Vec<u32> {
    let mut module = Module {
        program,
        next: 1,
        interned: HashMap::new(),
        annotations: Vec::new(),
        globals: Vec::new(),
        interface: Vec::new(),
        types: Vec::new(),
        pointers: Vec::new(),
        inputs: HashMap::new(),
        push: 0,
        shared: 0,
        functions: Vec::new(),
    };
    module.declare();
    let mut code = Vec::new();
    for index in 0..program.functions.len() {
        let id = module.fresh();
        module.functions.push(id);
        code.extend(function::emit(&mut module, index));
    }
    module.assemble(&code)
}

impl<'a> Module<'a> {
    pub(super) fn fresh(&mut self) -> u32 {
        self.next += 1;
        self.next - 1
    }

    pub(super) fn decorate(&mut self, operands: &[u32]) {
        put(&mut self.annotations, Op::Decorate, operands);
    }

    fn decorate_member(&mut self, operands: &[u32]) {
        put(&mut self.annotations, Op::MemberDecorate, operands);
    }

    /// A type, declared once.
    fn ty(&mut self, opcode: Op, operands: &[u32]) -> u32 {
        let key: Vec<u32> = std::iter::once(opcode as u32).chain(operands.iter().copied()).collect();
        if let Some(&id) = self.interned.get(&key) {
            return id;
        }
        let id = self.new_type(opcode, operands);
        self.interned.insert(key, id);
        id
    }

    fn new_type(&mut self, opcode: Op, operands: &[u32]) -> u32 {
        let id = self.fresh();
        let operands: Vec<u32> = std::iter::once(id).chain(operands.iter().copied()).collect();
        put(&mut self.globals, opcode, &operands);
        id
    }

    /// A constant, declared once.
    fn constant_of(&mut self, opcode: Op, ty: u32, operands: &[u32]) -> u32 {
        let key: Vec<u32> = [opcode as u32, ty].into_iter().chain(operands.iter().copied()).collect();
        if let Some(&id) = self.interned.get(&key) {
            return id;
        }
        let id = self.fresh();
        let operands: Vec<u32> = [ty, id].into_iter().chain(operands.iter().copied()).collect();
        put(&mut self.globals, opcode, &operands);
        self.interned.insert(key, id);
        id
    }

    pub(super) fn void(&mut self) -> u32 {
        self.ty(Op::TypeVoid, &[])
    }

    pub(super) fn bool(&mut self) -> u32 {
        self.ty(Op::TypeBool, &[])
    }

    pub(super) fn float(&mut self) -> u32 {
        self.ty(Op::TypeFloat, &[32])
    }

    pub(super) fn scalar(&mut self, scalar: Scalar) -> u32 {
        self.ty(Op::TypeInt, &[8 * scalar.bytes(), 0])
    }

    pub(super) fn uint(&mut self) -> u32 {
        self.scalar(Scalar::Word)
    }

    pub(super) fn ulong(&mut self) -> u32 {
        self.scalar(Scalar::Long)
    }

    pub(super) fn vector(&mut self, component: u32, count: u32) -> u32 {
        self.ty(Op::TypeVector, &[component, count])
    }

    pub(super) fn pointer(&mut self, class: StorageClass, pointee: u32) -> u32 {
        self.ty(Op::TypePointer, &[class as u32, pointee])
    }

    pub(super) fn signature(&mut self, result: u32, parameters: &[u32]) -> u32 {
        let operands: Vec<u32> = std::iter::once(result).chain(parameters.iter().copied()).collect();
        self.ty(Op::TypeFunction, &operands)
    }

    pub(super) fn word(&mut self, value: u32) -> u32 {
        let uint = self.uint();
        self.constant_of(Op::Constant, uint, &[value])
    }

    pub(super) fn long(&mut self, value: u64) -> u32 {
        let ulong = self.ulong();
        self.constant_of(Op::Constant, ulong, &[value as u32, (value >> 32) as u32])
    }

    pub(super) fn null(&mut self, ty: u32) -> u32 {
        self.constant_of(Op::ConstantNull, ty, &[])
    }

    /// An array type of words without a layout.
    pub(super) fn words(&mut self, count: u32) -> u32 {
        let (uint, count) = (self.uint(), self.word(count));
        self.ty(Op::TypeArray, &[uint, count])
    }

    pub(super) fn value_type(&mut self, ty: Ty) -> u32 {
        match ty {
            Ty::Word => self.uint(),
            Ty::Long => self.ulong(),
            Ty::Pointer(node) => self.node_pointer(node),
        }
    }

    pub(super) fn memory_type(&self, ty: TypeId) -> u32 {
        self.types[ty]
    }

    pub(super) fn node_pointer(&self, node: NodeId) -> u32 {
        self.pointers[node]
    }

    fn variable(&mut self, class: StorageClass, pointee: u32) -> u32 {
        let ty = self.pointer(class, pointee);
        let id = self.fresh();
        put(&mut self.globals, Op::Variable, &[ty, id, class as u32]);
        self.interface.push(id);
        id
    }

    /// The variable of a built-in input, a vector of three but for the index in the workgroup.
    pub(super) fn input(&mut self, built_in: BuiltIn) -> u32 {
        if let Some(&id) = self.inputs.get(&built_in) {
            return id;
        }
        let uint = self.uint();
        let ty = if built_in == BuiltIn::LocalInvocationIndex { uint } else { self.vector(uint, 3) };
        let id = self.variable(StorageClass::Input, ty);
        self.decorate(&[id, Decoration::BuiltIn as u32, built_in as u32]);
        self.inputs.insert(built_in, id);
        id
    }

    fn declare(&mut self) {
        let class = StorageClass::PhysicalStorageBuffer as u32;
        for _ in 0..self.program.types.nodes.len() {
            let id = self.fresh();
            self.pointers.push(id);
        }
        for id in self.pointers.clone() {
            put(&mut self.globals, Op::TypeForwardPointer, &[id, class]);
        }
        let types = &self.program.types;
        for ty in 0..types.all.len() {
            let id = self.declare_type(ty);
            self.types.push(id);
        }
        for (node, &id) in types.nodes.iter().zip(&self.pointers.clone()) {
            let structure = self.types[node.ty];
            put(&mut self.globals, Op::TypePointer, &[id, class, structure]);
            self.decorate(&[id, Decoration::ArrayStride as u32, node.stride]);
            self.decorate(&[structure, Decoration::Block as u32]);
        }
        let shared = self.words(self.program.per_group());
        self.shared = self.variable(StorageClass::Workgroup, shared);
        self.declare_push_constants();
    }

    /// First nodes of each kind, counters, count.
    fn declare_push_constants(&mut self) {
        let (ulong, uint) = (self.ulong(), self.uint());
        let nodes =
            self.pointers.iter().map(|&pointer| if self.program.dialect.pointer_arguments { pointer } else { ulong });
        let members: Vec<u32> = nodes.chain([ulong, uint]).collect();
        let block = self.new_type(Op::TypeStruct, &members);
        self.decorate(&[block, Decoration::Block as u32]);
        for member in 0..members.len() as u32 {
            self.decorate_member(&[block, member, Decoration::Offset as u32, 8 * member]);
        }
        self.push = self.variable(StorageClass::PushConstant, block);
    }

    /// The member of the push constants with a node's first, the counters and the count.
    pub(super) fn push_member(&self, node: NodeId) -> u32 {
        node as u32
    }

    pub(super) fn push_counters(&self) -> u32 {
        self.pointers.len() as u32
    }

    pub(super) fn push_count(&self) -> u32 {
        self.pointers.len() as u32 + 1
    }

    fn declare_type(&mut self, ty: TypeId) -> u32 {
        match self.program.types.all[ty].clone() {
            Type::Scalar(scalar) => self.scalar(scalar),
            Type::Vector(scalar, count) => {
                let scalar = self.scalar(scalar);
                self.vector(scalar, count)
            }
            Type::Matrix { columns, rows, .. } => {
                let float = self.float();
                let column = self.vector(float, rows);
                self.ty(Op::TypeMatrix, &[column, columns])
            }
            Type::Array { element, count, stride } => {
                let count = self.word(count);
                let id = self.new_type(Op::TypeArray, &[self.types[element], count]);
                self.decorate(&[id, Decoration::ArrayStride as u32, stride]);
                id
            }
            Type::Struct(members) => {
                let ids: Vec<u32> = members.iter().map(|member| self.types[member.ty]).collect();
                let id = self.new_type(Op::TypeStruct, &ids);
                for (at, member) in members.iter().enumerate() {
                    self.decorate_member(&[id, at as u32, Decoration::Offset as u32, member.offset]);
                    if let Type::Matrix { row_major, stride, .. } = self.program.types.all[member.ty] {
                        let major = if row_major { Decoration::RowMajor } else { Decoration::ColMajor };
                        self.decorate_member(&[id, at as u32, major as u32]);
                        self.decorate_member(&[id, at as u32, Decoration::MatrixStride as u32, stride]);
                    }
                }
                id
            }
            Type::Pointer(node) => self.pointers[node],
        }
    }

    fn assemble(self, code: &[u32]) -> Vec<u32> {
        let mut words = vec![rspirv::spirv::MAGIC_NUMBER, 0x0001_0500, 0, self.next, 0];
        let dialect = self.program.dialect;
        let capabilities = [
            Capability::Shader,
            Capability::Int64,
            Capability::Int16,
            Capability::Int8,
            Capability::Int64Atomics,
            Capability::StorageBuffer8BitAccess,
            Capability::StorageBuffer16BitAccess,
            Capability::PhysicalStorageBufferAddresses,
        ];
        for capability in
            capabilities.into_iter().chain(dialect.vulkan_memory_model.then_some(Capability::VulkanMemoryModel))
        {
            put(&mut words, Op::Capability, &[capability as u32]);
        }
        // PhysicalStorageBuffer64, and Vulkan or GLSL450.
        put(&mut words, Op::MemoryModel, &[5348, if dialect.vulkan_memory_model { 3 } else { 1 }]);
        let entry = self.functions.last().copied().unwrap_or_default();
        let name = u32::from_le_bytes(*b"main");
        // GLCompute.
        let operands: Vec<u32> = [5, entry, name, 0].into_iter().chain(self.interface).collect();
        put(&mut words, Op::EntryPoint, &operands);
        let [x, y] = self.program.local;
        // LocalSize.
        put(&mut words, Op::ExecutionMode, &[entry, 17, x, y, 1]);
        words.extend(self.annotations);
        words.extend(self.globals);
        words.extend_from_slice(code);
        words
    }
}
