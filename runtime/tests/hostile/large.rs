//! Modules that are well formed, as far as their size lets them be, and have very much of one thing: what takes the square of it, or two to the power
//! of it, shows.

use crate::damage::bytes;
use rspirv::binary::Assemble;
use rspirv::dr::{Builder, Operand};
use rspirv::spirv::{
    AddressingModel, BuiltIn, Capability, Decoration, ExecutionMode, ExecutionModel, FunctionControl, LoopControl,
    MemoryAccess, MemoryModel, SelectionControl, StorageClass, Word,
};

/// Makes a module with so much of something.
type Make = fn(u32) -> Vec<u8>;

/// What there is much of, and how to make so much of it.
pub(crate) const KINDS: [(&str, Make); 25] = [
    ("loads of one address", |count| kernel(|k| (0..count).for_each(|_| _ = k.load_at(0)))),
    ("loads of neighbours", |count| kernel(|k| (0..count).for_each(|at| _ = k.load_at(at % 60)))),
    ("loads of other addresses", |count| kernel(|k| (0..count).for_each(|at| _ = k.load_at(at)))),
    ("stores", |count| kernel(|k| (0..count).for_each(|at| k.store_at(at)))),
    ("ways out of one selection", early_exits),
    ("loops after each other", |count| kernel(|k| (0..count).for_each(|_| k.endless_loop(|_| {})))),
    ("loops that memory ends", |count| kernel(|k| (0..count).for_each(|_| k.waiting_loop()))),
    ("loops in each other", |count| kernel(|k| nest(k, count.min(2000)))),
    ("ways out of one loop", loop_exits),
    ("cases of one switch", cases),
    ("functions that call the next", functions),
    ("a function that calls itself", |_| recursion()),
    ("stores to one variable", one_variable),
    ("arguments that are mixed", arguments),
    ("additions to itself", doubled_bound),
    ("types of the same twice", |count| types(count.min(250), 2)),
    ("types in each other", |count| types(count, 1)),
    ("types twice in a zero", |count| zeros(count.min(250))),
    ("members of one structure", members),
    ("large objects stored", large_objects),
    ("variables for one built-in", built_ins),
    ("entry points", entry_points),
    ("indices on indices", indices),
    ("names", |count| kernel(|k| (0..count).for_each(|at| k.b.name(k.main, format!("name {at}"))))),
    ("a type that holds itself", |_| holds_itself()),
];

/// A kernel being made: one function, with the address of an array of words at hand.
struct Kernel {
    b: Builder,
    void: Word,
    bool: Word,
    uint: Word,
    ulong: Word,
    words: Word,
    word: Word,
    push: Word,
    main: Word,
    /// The array of words.
    array: Word,
    interface: Vec<Word>,
}

/// A kernel with one argument, an address, and this body.
fn kernel(body: impl FnOnce(&mut Kernel)) -> Vec<u8> {
    with_arguments(1, body)
}

fn with_arguments(count: u32, body: impl FnOnce(&mut Kernel)) -> Vec<u8> {
    let mut b = Builder::new();
    b.set_version(1, 5);
    for capability in [Capability::Shader, Capability::Int64, Capability::PhysicalStorageBufferAddresses] {
        b.capability(capability);
    }
    b.memory_model(AddressingModel::PhysicalStorageBuffer64, MemoryModel::GLSL450);
    let (void, bool) = (b.type_void(), b.type_bool());
    let (uint, ulong) = (b.type_int(32, 0), b.type_int(64, 0));
    let array = b.type_runtime_array(uint);
    b.decorate(array, Decoration::ArrayStride, [Operand::LiteralBit32(4)]);
    let block = b.type_struct([array]);
    b.decorate(block, Decoration::Block, []);
    b.member_decorate(block, 0, Decoration::Offset, [Operand::LiteralBit32(0)]);
    let words = b.type_pointer(None, StorageClass::PhysicalStorageBuffer, block);
    let word = b.type_pointer(None, StorageClass::PhysicalStorageBuffer, uint);
    let arguments = b.type_struct((0..count).map(|_| ulong));
    b.decorate(arguments, Decoration::Block, []);
    for member in 0..count {
        b.member_decorate(arguments, member, Decoration::Offset, [Operand::LiteralBit32(8 * member)]);
    }
    let to_push = b.type_pointer(None, StorageClass::PushConstant, arguments);
    let push = b.variable(to_push, None, StorageClass::PushConstant, None);
    let signature = b.type_function(void, []);
    let main = b.begin_function(void, None, FunctionControl::NONE, signature).unwrap();
    b.begin_block(None).unwrap();
    let mut kernel = Kernel { b, void, bool, uint, ulong, words, word, push, main, array: 0, interface: vec![push] };
    let address = kernel.argument(0);
    kernel.array = kernel.b.convert_u_to_ptr(words, None, address).unwrap();
    body(&mut kernel);
    if kernel.b.selected_block().is_some() {
        kernel.b.ret().unwrap();
    }
    if kernel.b.selected_function().is_some() {
        kernel.b.end_function().unwrap();
    }
    let Kernel { mut b, main, interface, .. } = kernel;
    b.entry_point(ExecutionModel::GLCompute, main, "main", interface);
    b.execution_mode(main, ExecutionMode::LocalSize, [64, 1, 1]);
    bytes(&b.module().assemble())
}

impl Kernel {
    fn number(&mut self, value: u32) -> Word {
        self.b.constant_bit32(self.uint, value)
    }

    fn argument(&mut self, member: u32) -> Word {
        let pointer = self.b.type_pointer(None, StorageClass::PushConstant, self.ulong);
        let member = self.number(member);
        let at = self.b.access_chain(pointer, None, self.push, [member]).unwrap();
        self.b.load(self.ulong, None, at, None, []).unwrap()
    }

    fn place(&mut self, index: u32) -> Word {
        let (zero, index) = (self.number(0), self.number(index));
        self.b.access_chain(self.word, None, self.array, [zero, index]).unwrap()
    }

    fn load_at(&mut self, index: u32) -> Word {
        let at = self.place(index);
        self.b.load(self.uint, None, at, Some(MemoryAccess::ALIGNED), [Operand::LiteralBit32(4)]).unwrap()
    }

    fn store_at(&mut self, index: u32) {
        let (at, value) = (self.place(index), self.number(index));
        self.b.store(at, value, Some(MemoryAccess::ALIGNED), [Operand::LiteralBit32(4)]).unwrap();
    }

    fn is_zero(&mut self, value: Word) -> Word {
        let zero = self.number(0);
        self.b.i_equal(self.bool, None, value, zero).unwrap()
    }

    fn block(&mut self, label: Word) {
        self.b.begin_block(Some(label)).unwrap();
    }

    /// Goes into a block of its own if `condition`. Its label, and the one where those who do not go there go on.
    fn rarely(&mut self, condition: Word) -> [Word; 2] {
        let [rare, go_on] = std::array::from_fn(|_| self.b.id());
        self.b.selection_merge(go_on, SelectionControl::NONE).unwrap();
        self.b.branch_conditional(condition, rare, go_on, []).unwrap();
        self.block(rare);
        [rare, go_on]
    }

    /// A loop that is left in its middle, if it is.
    fn endless_loop(&mut self, body: impl FnOnce(&mut Self)) {
        let [header, inside, back, merge] = std::array::from_fn(|_| self.b.id());
        self.b.branch(header).unwrap();
        self.block(header);
        self.b.loop_merge(merge, back, LoopControl::NONE, []).unwrap();
        self.b.branch(inside).unwrap();
        self.block(inside);
        body(self);
        let value = self.load_at(1);
        let zero = self.is_zero(value);
        let [_, go_on] = self.rarely(zero);
        self.b.branch_conditional(zero, merge, go_on, []).unwrap();
        self.block(go_on);
        self.b.branch(back).unwrap();
        self.block(back);
        self.b.branch(header).unwrap();
        self.block(merge);
        // Only known where the loop was left, and used after it.
        let one = self.number(1);
        self.b.i_add(self.uint, None, value, one).unwrap();
    }

    /// A loop that ends when a word in memory is zero.
    fn waiting_loop(&mut self) {
        let [header, back, merge] = std::array::from_fn(|_| self.b.id());
        self.b.branch(header).unwrap();
        self.block(header);
        let value = self.load_at(0);
        let zero = self.is_zero(value);
        self.b.loop_merge(merge, back, LoopControl::NONE, []).unwrap();
        self.b.branch_conditional(zero, merge, back, []).unwrap();
        self.block(back);
        self.b.branch(header).unwrap();
        self.block(merge);
    }
}

fn nest(kernel: &mut Kernel, depth: u32) {
    // One after the other where deeper would need a deeper stack here.
    if depth > 0 {
        kernel.endless_loop(|kernel| nest(kernel, depth - 1));
    }
}

fn early_exits(count: u32) -> Vec<u8> {
    kernel(|k| {
        let value = k.load_at(0);
        let condition = k.is_zero(value);
        let end = k.b.id();
        for _ in 0..count {
            let next = k.b.id();
            k.b.selection_merge(next, SelectionControl::NONE).unwrap();
            k.b.branch_conditional(condition, end, next, []).unwrap();
            k.block(next);
        }
        k.b.branch(end).unwrap();
        k.block(end);
    })
}

fn loop_exits(count: u32) -> Vec<u8> {
    kernel(|k| {
        let [header, back, merge] = std::array::from_fn(|_| k.b.id());
        k.b.branch(header).unwrap();
        k.block(header);
        let first = k.b.id();
        k.b.loop_merge(merge, back, LoopControl::NONE, []).unwrap();
        k.b.branch(first).unwrap();
        k.block(first);
        let mut values = Vec::new();
        for at in 0..count {
            let value = k.load_at(at);
            let condition = k.is_zero(value);
            values.push(value);
            let [_, next] = k.rarely(condition);
            let inner = k.load_at(at);
            values.push(inner);
            k.b.branch(merge).unwrap();
            k.block(next);
        }
        k.b.branch(back).unwrap();
        k.block(back);
        k.b.branch(header).unwrap();
        k.block(merge);
        for value in values {
            k.b.not(k.uint, None, value).unwrap();
        }
    })
}

fn cases(count: u32) -> Vec<u8> {
    kernel(|k| {
        let value = k.load_at(0);
        let merge = k.b.id();
        let targets: Vec<(Operand, Word)> = (0..count).map(|case| (Operand::LiteralBit32(case), k.b.id())).collect();
        k.b.selection_merge(merge, SelectionControl::NONE).unwrap();
        k.b.switch(value, merge, targets.clone()).unwrap();
        let mut incoming = Vec::new();
        for (_, label) in targets {
            k.block(label);
            let found = k.load_at(1);
            incoming.push((found, label));
            k.b.branch(merge).unwrap();
        }
        k.block(merge);
        k.b.phi(k.uint, None, incoming).unwrap();
    })
}

fn functions(count: u32) -> Vec<u8> {
    kernel(|k| {
        let signature = k.b.type_function(k.void, []);
        let scope = k.number(2);
        let semantics = k.number(0x108);
        let ids: Vec<Word> = (0..count).map(|_| k.b.id()).collect();
        k.load_at(0);
        k.b.function_call(k.void, None, ids[0], []).unwrap();
        k.b.ret().unwrap();
        k.b.end_function().unwrap();
        for (at, &id) in ids.iter().enumerate() {
            k.b.begin_function(k.void, Some(id), FunctionControl::NONE, signature).unwrap();
            k.b.begin_block(None).unwrap();
            match ids.get(at + 1) {
                Some(&next) => _ = k.b.function_call(k.void, None, next, []).unwrap(),
                None => k.b.control_barrier(scope, scope, semantics).unwrap(),
            }
            k.b.ret().unwrap();
            k.b.end_function().unwrap();
        }
    })
}

fn recursion() -> Vec<u8> {
    kernel(|k| {
        k.load_at(0);
        k.store_at(0);
        k.b.function_call(k.void, None, k.main, []).unwrap();
    })
}

fn one_variable(count: u32) -> Vec<u8> {
    kernel(|k| {
        let pointer = k.b.type_pointer(None, StorageClass::Function, k.ulong);
        let variable = k.b.variable(pointer, None, StorageClass::Function, None);
        let clock = k.load_at(0);
        let unknown = k.b.u_convert(k.ulong, None, clock).unwrap();
        for _ in 0..count {
            k.b.store(variable, unknown, None, []).unwrap();
            let address = k.b.load(k.ulong, None, variable, None, []).unwrap();
            let array = k.b.convert_u_to_ptr(k.words, None, address).unwrap();
            let whole = std::mem::replace(&mut k.array, array);
            k.load_at(0);
            k.array = whole;
        }
    })
}

fn arguments(count: u32) -> Vec<u8> {
    with_arguments(count, |k| {
        let pointer = k.b.type_pointer(None, StorageClass::Function, k.ulong);
        let variable = k.b.variable(pointer, None, StorageClass::Function, None);
        for member in 0..count {
            let argument = k.argument(member);
            k.b.store(variable, argument, None, []).unwrap();
            k.array = k.b.convert_u_to_ptr(k.words, None, argument).unwrap();
            k.load_at(0);
        }
        let mut sum = k.b.load(k.ulong, None, variable, None, []).unwrap();
        for _ in 0..count {
            sum = k.b.i_add(k.ulong, None, sum, sum).unwrap();
        }
    })
}

/// A pointer to an element, taken for one to an array, of which an element is pointed to, over and over.
fn indices(count: u32) -> Vec<u8> {
    kernel(|k| {
        let index = k.load_at(0);
        let zero = k.number(0);
        for _ in 0..count {
            let at = k.b.access_chain(k.word, None, k.array, [zero, index]).unwrap();
            k.array = k.b.bitcast(k.words, None, at).unwrap();
        }
        k.load_at(0);
    })
}

/// A loop whose bound is an argument added to itself, over and over.
fn doubled_bound(count: u32) -> Vec<u8> {
    kernel(|k| {
        let mut bound = k.argument(0);
        for _ in 0..count {
            bound = k.b.i_add(k.ulong, None, bound, bound).unwrap();
        }
        let bound = k.b.u_convert(k.uint, None, bound).unwrap();
        let (zero, one) = (k.number(0), k.number(1));
        let [entry, header, body, back, merge, next] = std::array::from_fn(|_| k.b.id());
        k.b.branch(entry).unwrap();
        k.block(entry);
        k.b.branch(header).unwrap();
        k.block(header);
        let at = k.b.phi(k.uint, None, [(zero, entry), (next, back)]).unwrap();
        let inside = k.b.u_less_than(k.bool, None, at, bound).unwrap();
        k.b.loop_merge(merge, back, LoopControl::NONE, []).unwrap();
        k.b.branch_conditional(inside, body, merge, []).unwrap();
        k.block(body);
        k.load_at(0);
        k.b.branch(back).unwrap();
        k.block(back);
        k.b.i_add(k.uint, Some(next), at, one).unwrap();
        k.b.branch(header).unwrap();
        k.block(merge);
    })
}

/// A structure of structures of structures…, `width` of them each, of which the innermost's word is loaded, and the whole.
fn types(depth: u32, width: u32) -> Vec<u8> {
    kernel(|k| {
        let mut ty = k.uint;
        for level in 0..depth {
            let inner = ty;
            ty = k.b.type_struct((0..width).map(|_| inner));
            let bytes = 4u32.saturating_mul(width.saturating_pow(level)).min(1 << 30);
            for member in 0..width {
                k.b.member_decorate(
                    ty,
                    member,
                    Decoration::Offset,
                    [Operand::LiteralBit32(member.wrapping_mul(bytes))],
                );
            }
        }
        let pointer = k.b.type_pointer(None, StorageClass::PhysicalStorageBuffer, ty);
        let address = k.argument(0);
        let whole = k.b.convert_u_to_ptr(pointer, None, address).unwrap();
        let value = k.b.load(ty, None, whole, Some(MemoryAccess::ALIGNED), [Operand::LiteralBit32(4)]).unwrap();
        k.b.store(whole, value, Some(MemoryAccess::ALIGNED), [Operand::LiteralBit32(4)]).unwrap();
    })
}

/// A loop that is left with a structure of structures of… pointers, which have no null constant.
fn zeros(depth: u32) -> Vec<u8> {
    kernel(|k| {
        let mut value = k.array;
        let mut ty = k.words;
        let (zero, uint) = (k.number(0), k.uint);
        for _ in 0..depth {
            let inner = ty;
            ty = k.b.type_struct([inner, uint, inner]);
            value = k.b.composite_construct(ty, None, [value, zero, value]).unwrap();
        }
        let [header, body, back, merge] = std::array::from_fn(|_| k.b.id());
        k.b.branch(header).unwrap();
        k.block(header);
        k.b.loop_merge(merge, back, LoopControl::NONE, []).unwrap();
        k.b.branch(body).unwrap();
        k.block(body);
        let word = k.load_at(0);
        let copy = k.b.copy_object(ty, None, value).unwrap();
        let condition = k.is_zero(word);
        let [rare, go_on] = k.rarely(condition);
        k.b.branch(merge).unwrap();
        k.block(go_on);
        k.b.branch(back).unwrap();
        k.block(back);
        k.b.branch(header).unwrap();
        k.block(merge);
        k.b.phi(ty, None, [(copy, rare)]).unwrap();
    })
}

fn members(count: u32) -> Vec<u8> {
    kernel(|k| {
        let uint = k.uint;
        let ty = k.b.type_struct((0..count).map(|_| uint));
        for member in 0..count {
            k.b.member_decorate(ty, member, Decoration::Offset, [Operand::LiteralBit32(4 * member)]);
        }
        let pointer = k.b.type_pointer(None, StorageClass::PhysicalStorageBuffer, ty);
        let address = k.argument(0);
        let whole = k.b.convert_u_to_ptr(pointer, None, address).unwrap();
        for member in 0..count {
            let member = k.number(member);
            let at = k.b.access_chain(k.word, None, whole, [member]).unwrap();
            k.b.load(uint, None, at, Some(MemoryAccess::ALIGNED), [Operand::LiteralBit32(4)]).unwrap();
        }
        k.b.load(ty, None, whole, Some(MemoryAccess::ALIGNED), [Operand::LiteralBit32(4)]).unwrap();
    })
}

/// Objects of many small members, each of which is stored on its own.
fn large_objects(count: u32) -> Vec<u8> {
    kernel(|k| {
        k.b.capability(Capability::Int8);
        k.b.capability(Capability::StorageBuffer8BitAccess);
        let byte = k.b.type_int(8, 0);
        let length = k.number(1000);
        let ty = k.b.type_array(byte, length);
        k.b.decorate(ty, Decoration::ArrayStride, [Operand::LiteralBit32(1)]);
        let value = k.b.constant_null(ty);
        let pointer = k.b.type_pointer(None, StorageClass::PhysicalStorageBuffer, ty);
        let address = k.argument(0);
        let whole = k.b.convert_u_to_ptr(pointer, None, address).unwrap();
        for _ in 0..count {
            k.b.store(whole, value, Some(MemoryAccess::ALIGNED), [Operand::LiteralBit32(1)]).unwrap();
        }
    })
}

fn built_ins(count: u32) -> Vec<u8> {
    kernel(|k| {
        let vector = k.b.type_vector(k.uint, 3);
        let pointer = k.b.type_pointer(None, StorageClass::Input, vector);
        for _ in 0..count {
            let variable = k.b.variable(pointer, None, StorageClass::Input, None);
            k.b.decorate(variable, Decoration::BuiltIn, [Operand::BuiltIn(BuiltIn::WorkgroupId)]);
        }
        k.load_at(0);
    })
}

fn entry_points(count: u32) -> Vec<u8> {
    kernel(|k| {
        k.load_at(0);
        (0..count).for_each(|at| k.b.entry_point(ExecutionModel::GLCompute, k.main, format!("main{at}"), []));
    })
}

fn holds_itself() -> Vec<u8> {
    kernel(|k| {
        let ty = k.b.id();
        k.b.type_struct_id(Some(ty), [ty]);
        k.b.member_decorate(ty, 0, Decoration::Offset, [Operand::LiteralBit32(0)]);
        let pointer = k.b.type_pointer(None, StorageClass::PhysicalStorageBuffer, ty);
        let address = k.argument(0);
        let whole = k.b.convert_u_to_ptr(pointer, None, address).unwrap();
        k.b.load(ty, None, whole, Some(MemoryAccess::ALIGNED), [Operand::LiteralBit32(4)]).unwrap();
    })
}
