//! Kernels on data that is resident, each in three ways: launched by the runtime with pointers, with array arguments, and
//! on raw device addresses, over equal data.

use crate::kernels::{Push, Raw, STREAM_GROUP, WALK_GROUP, contents};
use anyhow::{Result, ensure};
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use vksvm::device::vulkan::{RawBuffer, RawKernel};
use vksvm::{Kernel, Svm, SvmVec};

/// How a kernel takes its arrays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arguments {
    Pointers,
    /// As `VksvmArray`.
    Arrays,
}

/// A kernel's data and launches.
pub(super) trait Workload {
    fn launch(&mut self, kernel: &Kernel, arguments: Arguments) -> Result<()>;
    fn peer(&mut self) -> &mut Peer;
    /// Compares the results with those of the peer, and with what they should be.
    fn check(&self) -> Result<()>;
}

/// The hand-written kernel.
pub(super) struct Peer {
    raw: Raw,
    kernel: RawKernel,
    push: Push,
    groups: u32,
}

impl Peer {
    pub(super) fn new(raw: Raw, name: &str, spirv: &[u8], push: Push, groups: u32) -> Result<Self> {
        let kernel = raw.kernel(name, spirv, push.bytes().len())?;
        Ok(Self { raw, kernel, push, groups })
    }

    pub(super) fn run(&mut self) -> Result<()> {
        // SAFETY: each workload's push constants name buffers that it keeps, of the size that its kernel goes over.
        unsafe { self.raw.run(&self.kernel, self.push.bytes(), self.groups) }
    }

    /// Makes a pipeline of `spirv` and runs it.
    pub(super) fn make_and_run(&mut self, spirv: &[u8]) -> Result<()> {
        let kernel = self.raw.kernel("first", spirv, self.push.bytes().len())?;
        // SAFETY: as in `run`.
        unsafe { self.raw.run(&kernel, self.push.bytes(), self.groups) }
    }
}

/// What the peer stored.
pub(super) fn results<T: bytemuck::AnyBitPattern>(buffer: &RawBuffer) -> &[T] {
    // SAFETY: peers are waited for.
    unsafe { contents(buffer) }
}

/// z = a x + y, over `n` floats; with a stride of the grid in between, or one element an invocation.
pub(super) struct Stream {
    x: SvmVec<f32>,
    y: SvmVec<f32>,
    z: SvmVec<f32>,
    raw_z: RawBuffer,
    _inputs: [RawBuffer; 2],
    peer: Peer,
    stride: Option<u32>,
}

impl Stream {
    pub(super) fn new(svm: &Svm, n: u32, strided: bool, name: &str, spirv: &[u8]) -> Result<Self> {
        let heap = svm.heap();
        let xs: Vec<f32> = (0..n).map(|i| (i % 1000) as f32).collect();
        let ys: Vec<f32> = (0..n).map(|i| (i % 77) as f32).collect();
        let raw = Raw::new(svm)?;
        let inputs = [raw.buffer_with(&xs)?, raw.buffer_with(&ys)?];
        let raw_z = raw.results(n as usize * 4)?;
        let stride = strided.then_some(n / 16);
        let push = Push::default().address(&inputs[0]).address(&inputs[1]).address(&raw_z).add(2f32).add(n);
        let push = if let Some(stride) = stride { push.add(stride).add(0u32) } else { push };
        let groups = stride.unwrap_or(n).div_ceil(STREAM_GROUP);
        Ok(Self {
            x: heap.vec_from_slice(&xs)?,
            y: heap.vec_from_slice(&ys)?,
            z: heap.vec_from_slice(&vec![0f32; n as usize])?,
            raw_z,
            _inputs: inputs,
            peer: Peer::new(raw, name, spirv, push, groups)?,
            stride,
        })
    }
}

impl Workload for Stream {
    fn launch(&mut self, kernel: &Kernel, arguments: Arguments) -> Result<()> {
        let launch = kernel.launch([self.peer.groups, 1, 1]);
        let n = self.x.len() as u32;
        let launch = match arguments {
            Arguments::Pointers => launch.read(&self.x[..]).read(&self.y[..]).write(&mut self.z[..]),
            Arguments::Arrays => launch.read_array(&self.x[..]).read_array(&self.y[..]).write_array(&mut self.z[..]),
        };
        let launch = launch.value(2f32).value(n);
        let launch = if let Some(stride) = self.stride { launch.value(stride).value(0u32) } else { launch };
        Ok(launch.run().map(drop)?)
    }

    fn peer(&mut self) -> &mut Peer {
        &mut self.peer
    }

    fn check(&self) -> Result<()> {
        let right = |z: &[f32]| z.iter().zip(&self.x).zip(&self.y).all(|((&z, &x), &y)| z == 2.0 * x + y);
        ensure!(right(&self.z) && right(results(&self.raw_z)), "saxpy computed something else");
        Ok(())
    }
}

/// `out[i] = data[index[i]]`, indices at random.
pub(super) struct Gather {
    data: SvmVec<u32>,
    index: SvmVec<u32>,
    out: SvmVec<u32>,
    raw_out: RawBuffer,
    _inputs: [RawBuffer; 2],
    peer: Peer,
}

impl Gather {
    pub(super) fn new(svm: &Svm, n: u32, spirv: &[u8]) -> Result<Self> {
        let heap = svm.heap();
        let mut rng = SmallRng::seed_from_u64(1);
        let data: Vec<u32> = (0..n).map(|i| i.wrapping_mul(0x9e37_79b9)).collect();
        let index: Vec<u32> = (0..n).map(|_| rng.random_range(0..n)).collect();
        let raw = Raw::new(svm)?;
        let inputs = [raw.buffer_with(&data)?, raw.buffer_with(&index)?];
        let raw_out = raw.results(n as usize * 4)?;
        let push = Push::default().address(&inputs[0]).address(&inputs[1]).address(&raw_out).add(n).add(0u32);
        Ok(Self {
            data: heap.vec_from_slice(&data)?,
            index: heap.vec_from_slice(&index)?,
            out: heap.vec_from_slice(&vec![0u32; n as usize])?,
            raw_out,
            _inputs: inputs,
            peer: Peer::new(raw, "raw_gather", spirv, push, n.div_ceil(STREAM_GROUP))?,
        })
    }
}

impl Workload for Gather {
    fn launch(&mut self, kernel: &Kernel, arguments: Arguments) -> Result<()> {
        let launch = kernel.launch([self.peer.groups, 1, 1]);
        let n = self.data.len() as u32;
        let launch = match arguments {
            Arguments::Pointers => launch.read(&self.data[..]).read(&self.index[..]).write(&mut self.out[..]),
            Arguments::Arrays => {
                launch.read_array(&self.data[..]).read_array(&self.index[..]).write_array(&mut self.out[..])
            }
        };
        Ok(launch.value(n).value(0u32).run().map(drop)?)
    }

    fn peer(&mut self) -> &mut Peer {
        &mut self.peer
    }

    fn check(&self) -> Result<()> {
        let right = |out: &[u32]| out.iter().zip(&self.index).all(|(&out, &from)| out == self.data[from as usize]);
        ensure!(right(&self.out) && right(results(&self.raw_out)), "gather computed something else");
        Ok(())
    }
}

/// A node of the linked lists, as in `chase.glsl`.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub(super) struct Link {
    pub(super) next: u64,
    pub(super) value: u32,
    pub(super) pad: u32,
}

/// Links followed through nodes in random order.
pub(super) struct Chase {
    list: SvmVec<Link>,
    out: SvmVec<u32>,
    raw_out: RawBuffer,
    _nodes: RawBuffer,
    peer: Peer,
    hops: u32,
}

impl Chase {
    pub(super) fn new(svm: &Svm, nodes: usize, n: u32, spirv: &[u8]) -> Result<Self> {
        let mut order: Vec<u32> = (0..nodes as u32).collect();
        order.shuffle(&mut SmallRng::seed_from_u64(2));
        let links = |base: u64| -> Vec<Link> {
            let mut links = vec![Link { next: 0, value: 0, pad: 0 }; nodes];
            for (at, &node) in order.iter().enumerate() {
                let next = u64::from(order[(at + 1) % nodes]);
                links[node as usize] = Link { next: base + 16 * next, value: node, pad: 0 };
            }
            links
        };
        let heap = svm.heap();
        let mut list = heap.vec_from_slice(&links(0))?;
        let base = list.as_ptr() as u64;
        list.copy_from_slice(&links(base));
        let raw = Raw::new(svm)?;
        let raw_list = raw.buffer_with(&links(0))?;
        let raw_links = links(raw_list.address().0);
        let host = raw_list.host().expect("device memory is mapped on a software device").cast::<Link>();
        // SAFETY: the buffer holds that many nodes and no kernel runs.
        unsafe { host.as_ptr().copy_from_nonoverlapping(raw_links.as_ptr(), nodes) };
        let raw_out = raw.results(n as usize * 4)?;
        let hops = 64u32;
        let push = Push::default().address(&raw_list).address(&raw_out).add(n).add(hops);
        Ok(Self {
            list,
            out: heap.vec_from_slice(&vec![0u32; n as usize])?,
            raw_out,
            _nodes: raw_list,
            peer: Peer::new(raw, "raw_chase", spirv, push, n.div_ceil(WALK_GROUP))?,
            hops,
        })
    }
}

impl Workload for Chase {
    fn launch(&mut self, kernel: &Kernel, arguments: Arguments) -> Result<()> {
        let launch = kernel.launch([self.peer.groups, 1, 1]);
        let n = self.out.len() as u32;
        let launch = match arguments {
            Arguments::Pointers => launch.read(&self.list[..]).write(&mut self.out[..]),
            Arguments::Arrays => launch.read_array(&self.list[..]).write_array(&mut self.out[..]),
        };
        Ok(launch.value(n).value(self.hops).run().map(drop)?)
    }

    fn peer(&mut self) -> &mut Peer {
        &mut self.peer
    }

    fn check(&self) -> Result<()> {
        let same = self.out[..] == *results::<u32>(&self.raw_out);
        ensure!(same && self.out.iter().any(|&sum| sum != 0), "the chase computed something else");
        Ok(())
    }
}

/// A node of the search tree, as in `tree.glsl`.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct Branch {
    left: u64,
    right: u64,
    key: u32,
    value: u32,
    pad: u64,
}

/// A balanced tree over keys 0, 2, 4 …, its nodes in random places; returns the root's address.
fn plant(nodes: &mut [Branch], base: u64) -> u64 {
    let mut places: Vec<usize> = (0..nodes.len()).collect();
    places.shuffle(&mut SmallRng::seed_from_u64(3));
    fn grow(nodes: &mut [Branch], places: &[usize], base: u64, keys: std::ops::Range<usize>) -> u64 {
        if keys.is_empty() {
            return 0;
        }
        let middle = (keys.start + keys.end) / 2;
        let left = grow(nodes, places, base, keys.start..middle);
        let right = grow(nodes, places, base, middle + 1..keys.end);
        let key = 2 * middle as u32;
        nodes[places[middle]] = Branch { left, right, key, value: key ^ 0x5555, pad: 0 };
        base + (size_of::<Branch>() * places[middle]) as u64
    }
    let keys = 0..nodes.len();
    grow(nodes, &places, base, keys)
}

/// Keys looked up in a binary search tree.
pub(super) struct Tree {
    nodes: SvmVec<Branch>,
    root: u64,
    keys: SvmVec<u32>,
    out: SvmVec<u32>,
    raw_out: RawBuffer,
    _inputs: [RawBuffer; 2],
    peer: Peer,
}

impl Tree {
    pub(super) fn new(svm: &Svm, count: usize, n: u32, spirv: &[u8]) -> Result<Self> {
        let mut rng = SmallRng::seed_from_u64(4);
        let keys: Vec<u32> = (0..n).map(|_| rng.random_range(0..2 * count as u32)).collect();
        let heap = svm.heap();
        let empty = vec![Branch { left: 0, right: 0, key: 0, value: 0, pad: 0 }; count];
        let mut nodes = heap.vec_from_slice(&empty)?;
        let base = nodes.as_ptr() as u64;
        let root = plant(&mut nodes, base);
        let raw = Raw::new(svm)?;
        let raw_nodes = raw.buffer_with(&empty)?;
        let mut planted = empty;
        let raw_root = plant(&mut planted, raw_nodes.address().0);
        let host = raw_nodes.host().expect("device memory is mapped on a software device").cast::<Branch>();
        // SAFETY: the buffer holds that many nodes and no kernel runs.
        unsafe { host.as_ptr().copy_from_nonoverlapping(planted.as_ptr(), count) };
        let (raw_keys, raw_out) = (raw.buffer_with(&keys)?, raw.results(n as usize * 4)?);
        let push = Push::default().add(raw_root).address(&raw_nodes).address(&raw_keys).address(&raw_out);
        Ok(Self {
            nodes,
            root,
            keys: heap.vec_from_slice(&keys)?,
            out: heap.vec_from_slice(&vec![0u32; n as usize])?,
            raw_out,
            peer: Peer::new(raw, "raw_tree", spirv, push.add(n).add(0u32), n.div_ceil(WALK_GROUP))?,
            _inputs: [raw_nodes, raw_keys],
        })
    }
}

impl Workload for Tree {
    fn launch(&mut self, kernel: &Kernel, arguments: Arguments) -> Result<()> {
        let launch = kernel.launch([self.peer.groups, 1, 1]);
        let n = self.keys.len() as u32;
        // SAFETY: the tree lives and nobody changes it while the launch runs.
        let launch = unsafe { launch.pointer(self.root as *const Branch) };
        let launch = match arguments {
            Arguments::Pointers => launch.read(&self.nodes[..]).read(&self.keys[..]).write(&mut self.out[..]),
            Arguments::Arrays => {
                launch.read_array(&self.nodes[..]).read_array(&self.keys[..]).write_array(&mut self.out[..])
            }
        };
        Ok(launch.value(n).value(0u32).run().map(drop)?)
    }

    fn peer(&mut self) -> &mut Peer {
        &mut self.peer
    }

    fn check(&self) -> Result<()> {
        let want = |key: u32| if key.is_multiple_of(2) { key ^ 0x5555 } else { 0 };
        let right = |out: &[u32]| out.iter().zip(&self.keys).all(|(&out, &key)| out == want(key));
        ensure!(right(&self.out) && right(results(&self.raw_out)), "the tree traversal computed something else");
        Ok(())
    }
}

/// Values counted in bins, with atomics. Its launches and the peer's must be equally many.
pub(super) struct Histogram {
    data: SvmVec<u32>,
    /// With pointers and with array arguments.
    counts: [SvmVec<u32>; 2],
    raw_counts: RawBuffer,
    _data: RawBuffer,
    peer: Peer,
}

impl Histogram {
    pub(super) fn new(svm: &Svm, n: u32, spirv: &[u8]) -> Result<Self> {
        let bins = 1usize << 16;
        let mut rng = SmallRng::seed_from_u64(5);
        let data: Vec<u32> = (0..n).map(|_| rng.random()).collect();
        let heap = svm.heap();
        let zeros = vec![0u32; bins];
        let raw = Raw::new(svm)?;
        let (raw_data, raw_counts) = (raw.buffer_with(&data)?, raw.results(bins * 4)?);
        let push = Push::default().address(&raw_data).address(&raw_counts).add(n).add(bins as u32 - 1);
        Ok(Self {
            data: heap.vec_from_slice(&data)?,
            counts: [heap.vec_from_slice(&zeros)?, heap.vec_from_slice(&zeros)?],
            raw_counts,
            _data: raw_data,
            peer: Peer::new(raw, "raw_histogram", spirv, push, n.div_ceil(STREAM_GROUP))?,
        })
    }
}

impl Workload for Histogram {
    fn launch(&mut self, kernel: &Kernel, arguments: Arguments) -> Result<()> {
        let launch = kernel.launch([self.peer.groups, 1, 1]);
        let (n, [counts, of_arrays]) = (self.data.len() as u32, &mut self.counts);
        let (launch, counts) = match arguments {
            Arguments::Pointers => (launch.read(&self.data[..]), counts),
            Arguments::Arrays => (launch.read_array(&self.data[..]), of_arrays),
        };
        let mask = counts.len() as u32 - 1;
        Ok(launch.write(&mut counts[..]).value(n).value(mask).run().map(drop)?)
    }

    fn peer(&mut self) -> &mut Peer {
        &mut self.peer
    }

    fn check(&self) -> Result<()> {
        let raw = results::<u32>(&self.raw_counts);
        let same = self.counts.iter().all(|counts| counts[..] == *raw || counts.iter().all(|&count| count == 0));
        ensure!(same && raw[0] != 0 && self.counts[0][0] != 0, "the histogram counted something else");
        Ok(())
    }
}
