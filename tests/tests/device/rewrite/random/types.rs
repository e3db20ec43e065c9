//! Types of objects in memory, how they lie there, and memory filled with such objects.
//!
//! Pointers lead to *nodes*: structures of a few kinds, each kind an array somewhere in the source. The last kind is that of the
//! destination, of which each invocation owns one.

use rand::Rng;
use rand::rngs::SmallRng;

/// Values in a member that the program subtracts one from and indexes with: from 1 to this.
pub(super) const SMALL: u32 = 8;

/// An integer type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Scalar {
    Byte,
    Short,
    Word,
    Long,
}

impl Scalar {
    pub(super) fn bytes(self) -> u32 {
        match self {
            Self::Byte => 1,
            Self::Short => 2,
            Self::Word => 4,
            Self::Long => 8,
        }
    }
}

/// Index of a type in [`Types::all`].
pub(super) type TypeId = usize;
/// Index of a kind of node in [`Types::nodes`].
pub(super) type NodeId = usize;

/// What lies in memory.
#[derive(Clone, Debug)]
pub(super) enum Type {
    Scalar(Scalar),
    Vector(Scalar, u32),
    /// Of 32-bit floating-point numbers.
    Matrix {
        columns: u32,
        rows: u32,
        row_major: bool,
        stride: u32,
    },
    Array {
        element: TypeId,
        count: u32,
        stride: u32,
    },
    Struct(Vec<Member>),
    Pointer(NodeId),
}

/// A member of a structure.
#[derive(Clone, Copy, Debug)]
pub(super) struct Member {
    pub(super) ty: TypeId,
    pub(super) offset: u32,
    pub(super) role: Role,
}

/// What may stand in a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// Any value, and no null pointer.
    Any,
    /// A word from 1 to [`SMALL`].
    Small,
    /// A pointer to a later node of the same kind, or null.
    Next,
}

/// A kind of node.
#[derive(Clone, Copy, Debug)]
pub(super) struct Node {
    pub(super) ty: TypeId,
    /// Bytes from one to the next.
    pub(super) stride: u32,
    pub(super) count: u32,
    /// Where the first lies, in bytes from the start of its buffer.
    pub(super) start: u32,
    /// What all are aligned to.
    pub(super) align: u32,
}

/// The types of a program. What a type is made of stands before it.
#[derive(Clone, Debug, Default)]
pub(super) struct Types {
    pub(super) all: Vec<Type>,
    /// The last is the destination's.
    pub(super) nodes: Vec<Node>,
}

/// Memory from `base` on.
#[derive(Clone, Debug)]
pub(super) struct Memory {
    pub(super) base: u64,
    pub(super) bytes: Vec<u8>,
}

impl Memory {
    /// Little-endian value of up to eight bytes; none where the memory does not reach.
    pub(super) fn get(&self, address: u64, bytes: u32) -> Option<u64> {
        let at = usize::try_from(address.checked_sub(self.base)?).ok()?;
        let bytes = self.bytes.get(at..at.checked_add(bytes as usize)?)?;
        Some(bytes.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte)))
    }

    /// Stores such a value; none where the memory does not reach.
    pub(super) fn set(&mut self, address: u64, bytes: u32, value: u64) -> Option<()> {
        let at = usize::try_from(address.checked_sub(self.base)?).ok()?;
        let place = self.bytes.get_mut(at..at.checked_add(bytes as usize)?)?;
        place.copy_from_slice(&value.to_le_bytes()[..bytes as usize]);
        Some(())
    }
}

impl Types {
    /// Random types: a few structures that others share, and a few kinds of nodes over them.
    pub(super) fn random(random: &mut SmallRng, invocations: u32) -> Self {
        let mut types = Self::default();
        let kinds = random.random_range(1..=3);
        let shared: Vec<TypeId> =
            (0..random.random_range(1..3)).map(|_| types.structure(random, &[], kinds, 0)).collect();
        for _ in 0..kinds {
            let ty = types.structure(random, &shared, kinds, 2);
            let count = random.random_range(20..400);
            types.add_node(random, ty, count);
        }
        let ty = types.structure(random, &shared, kinds, 1);
        types.add_node(random, ty, invocations);
        types
    }

    fn add_node(&mut self, random: &mut SmallRng, ty: TypeId, count: u32) {
        let own = self.align(ty);
        let align = if random.random_bool(0.3) { 16.max(own) } else { own };
        let gap = if random.random_bool(0.3) { align * random.random_range(0..6) } else { 0 };
        let stride = (self.size(ty) + gap).next_multiple_of(align);
        let end = self.nodes.last().map_or(0, |before| before.start + before.stride * before.count);
        let start = (end + align * random.random_range(0..600)).next_multiple_of(align.max(16));
        let start = if align < 16 { start + align * random.random_range(0..4) } else { start };
        self.nodes.push(Node { ty, stride, count, start: start.max(end), align });
    }

    /// The kind of the destination's nodes.
    pub(super) fn destination(&self) -> NodeId {
        self.nodes.len() - 1
    }

    fn add(&mut self, ty: Type) -> TypeId {
        self.all.push(ty);
        self.all.len() - 1
    }

    /// A structure; of `level` 2 for nodes to follow, 1 for the destination, 0 for parts of such.
    fn structure(&mut self, random: &mut SmallRng, shared: &[TypeId], kinds: usize, level: u32) -> TypeId {
        let mut members = Vec::new();
        if level == 2 {
            let own = self.nodes.len();
            members.push((self.add(Type::Pointer(own)), Role::Next));
            members.push((self.add(Type::Pointer(random.random_range(0..kinds))), Role::Any));
            members.push((self.add(Type::Scalar(Scalar::Word)), Role::Small));
        }
        members.push((self.add(Type::Scalar(Scalar::Word)), Role::Any));
        for _ in 0..random.random_range(1..6) {
            members.push((self.part(random, shared, kinds), Role::Any));
        }
        for at in (1..members.len()).rev() {
            members.swap(at, random.random_range(0..=at));
        }
        let mut end = 0;
        let members = members
            .into_iter()
            .map(|(ty, role)| {
                let gap = if random.random_bool(0.1) { random.random_range(0..20) } else { 0 };
                let offset = (end + gap as u32).next_multiple_of(self.align(ty));
                end = offset + self.size(ty);
                Member { ty, offset, role }
            })
            .collect();
        self.add(Type::Struct(members))
    }

    fn part(&mut self, random: &mut SmallRng, shared: &[TypeId], kinds: usize) -> TypeId {
        let scalar = [Scalar::Byte, Scalar::Short, Scalar::Word, Scalar::Word, Scalar::Long][random.random_range(0..5)];
        match random.random_range(0..10) {
            0..3 => self.add(Type::Scalar(scalar)),
            3..5 => self.add(Type::Vector(scalar, random.random_range(2..=4))),
            5 => {
                let (columns, rows, row_major) =
                    (random.random_range(2..=4), random.random_range(2..=4), random.random());
                let least = 4 * if row_major { columns } else { rows };
                let stride = least + 4 * random.random_range(0..2);
                self.add(Type::Matrix { columns, rows, row_major, stride })
            }
            6 => {
                let to = random.random_range(0..kinds);
                self.add(Type::Pointer(to))
            }
            7 if !shared.is_empty() => shared[random.random_range(0..shared.len())],
            _ => {
                let element = match random.random_range(0..4) {
                    0 if !shared.is_empty() => shared[random.random_range(0..shared.len())],
                    1 => self.add(Type::Vector(scalar, random.random_range(2..=4))),
                    _ => self.add(Type::Scalar(scalar)),
                };
                let align = self.align(element);
                let gap = if random.random_bool(0.2) { align } else { 0 };
                let stride = self.size(element).next_multiple_of(align) + gap;
                self.add(Type::Array { element, count: 1 << random.random_range(0..4), stride })
            }
        }
    }

    pub(super) fn align(&self, ty: TypeId) -> u32 {
        match &self.all[ty] {
            Type::Scalar(scalar) | Type::Vector(scalar, _) => scalar.bytes(),
            Type::Matrix { .. } => 4,
            Type::Array { element, .. } => self.align(*element),
            Type::Struct(members) => members.iter().map(|member| self.align(member.ty)).max().unwrap_or(1),
            Type::Pointer(_) => 8,
        }
    }

    /// Bytes from the start to the end of the last member.
    pub(super) fn size(&self, ty: TypeId) -> u32 {
        match &self.all[ty] {
            Type::Scalar(scalar) => scalar.bytes(),
            Type::Vector(scalar, count) => scalar.bytes() * count,
            Type::Matrix { columns, rows, row_major, stride } => stride * if *row_major { rows } else { columns },
            Type::Array { count, stride, .. } => count * stride,
            Type::Struct(members) => {
                members.iter().map(|member| member.offset + self.size(member.ty)).max().unwrap_or(0)
            }
            Type::Pointer(_) => 8,
        }
    }

    /// The source and the destination, filled.
    pub(super) fn fill(&self, random: &mut SmallRng, source: &mut Memory, destination: &mut Memory) {
        let targets = source.base;
        for node in 0..self.nodes.len() {
            let Node { ty, count, .. } = self.nodes[node];
            for index in 0..count {
                let at = self.address(node, index, source.base, destination.base);
                let memory = if node == self.destination() { &mut *destination } else { &mut *source };
                self.fill_object(random, memory, ty, at, Role::Any, (node, index), targets);
            }
        }
    }

    /// Bytes that a buffer with these kinds of nodes has.
    pub(super) fn buffer_bytes(&self, kinds: std::ops::Range<NodeId>) -> usize {
        let ends = self.nodes[kinds].iter().map(|node| node.start + node.stride * node.count + 64);
        ends.max().unwrap_or(64) as usize
    }

    pub(super) fn address(&self, node: NodeId, index: u32, source: u64, destination: u64) -> u64 {
        let base = if node == self.destination() { destination } else { source };
        let Node { start, stride, .. } = self.nodes[node];
        base + u64::from(start) + u64::from(stride) * u64::from(index)
    }

    #[allow(clippy::too_many_arguments)]
    fn fill_object(
        &self,
        random: &mut SmallRng,
        memory: &mut Memory,
        ty: TypeId,
        at: u64,
        role: Role,
        (node, index): (NodeId, u32),
        source: u64,
    ) {
        let put = |memory: &mut Memory, at: u64, bytes: u32, value: u64| {
            memory.set(at, bytes, value).expect("nodes lie within their buffer");
        };
        match &self.all[ty] {
            Type::Scalar(Scalar::Word) if role == Role::Small => {
                put(memory, at, 4, random.random_range(1..=u64::from(SMALL)))
            }
            Type::Scalar(scalar) => put(memory, at, scalar.bytes(), random.random()),
            Type::Vector(scalar, count) => (0..*count).for_each(|component| {
                put(memory, at + u64::from(component * scalar.bytes()), scalar.bytes(), random.random());
            }),
            Type::Matrix { columns, rows, .. } => {
                for (column, row) in (0..*columns).flat_map(|column| (0..*rows).map(move |row| (column, row))) {
                    // No numbers that arithmetic units would change on the way.
                    let value = random.random_range(-1000.0f32..1000.0).to_bits();
                    put(memory, at + self.component(ty, column, row), 4, u64::from(value));
                }
            }
            Type::Array { element, count, stride } => (0..*count).for_each(|each| {
                self.fill_object(
                    random,
                    memory,
                    *element,
                    at + u64::from(each * stride),
                    Role::Any,
                    (node, index),
                    source,
                );
            }),
            Type::Struct(members) => members.iter().for_each(|member| {
                let at = at + u64::from(member.offset);
                self.fill_object(random, memory, member.ty, at, member.role, (node, index), source);
            }),
            Type::Pointer(to) => {
                let count = self.nodes[*to].count;
                let target = match role {
                    Role::Next => Some(index + random.random_range(1..=count / 6)).filter(|&next| next < count),
                    _ => Some(random.random_range(0..count)),
                };
                put(memory, at, 8, target.map_or(0, |target| self.address(*to, target, source, 0)));
            }
        }
    }

    /// Where a matrix's component lies in it.
    pub(super) fn component(&self, matrix: TypeId, column: u32, row: u32) -> u64 {
        match self.all[matrix] {
            Type::Matrix { row_major: true, stride, .. } => u64::from(row * stride + 4 * column),
            Type::Matrix { stride, .. } => u64::from(column * stride + 4 * row),
            _ => 0,
        }
    }
}
