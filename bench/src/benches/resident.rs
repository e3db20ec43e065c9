//! `resident`: what translation costs when no page is missing.
//!
//! The same kernel source is compiled for the runtime and for raw device addresses; both run on the same device, over
//! equal data. Times are whole launches as a program sees them.

use crate::harness::{Samples, Suite, Wanted, seconds};
use crate::kernels::{Push, Raw, STREAM_GROUP, WALK_GROUP, contents, idempotent, once};
use crate::spirv;
use anyhow::{Result, ensure};
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use vksvm::Svm;

const ROUNDS: u32 = 15;

pub(super) fn run(suite: &mut Suite) -> Result<()> {
    let svm = suite.open(|builder| builder)?;
    streams(suite, &svm)?;
    gather(suite, &svm)?;
    chase(suite, &svm)?;
    tree(suite, &svm)?;
    histogram(suite, &svm)
}

/// Contestant 0 passes pointers, 1 is the peer, 2, if there, passes arrays; the figure asked for is for the best way to write it.
fn report(suite: &mut Suite, case: &str, samples: &[Samples], wanted: Option<f64>) {
    let ways: &[(usize, &str)] =
        if samples.len() > 2 { &[(2, "array arguments"), (0, "pointers")] } else { &[(0, "pointers")] };
    for &(which, way) in ways {
        let row = suite.row(&format!("{case}, {way}"), "launch", "s", &samples[which]);
        row.against("raw addresses", &samples[which], &samples[1]);
        if let Some(wanted) = wanted.filter(|_| which == ways[0].0) {
            row.wanted(Wanted::RatioAtMost(wanted));
        }
    }
}

fn streams(suite: &mut Suite, svm: &Svm) -> Result<()> {
    let n = suite.size(1u32 << 23, 1 << 22);
    let heap = svm.heap();
    let xs: Vec<f32> = (0..n).map(|i| (i % 1000) as f32).collect();
    let ys: Vec<f32> = (0..n).map(|i| (i % 77) as f32).collect();
    let (x, y) = (heap.vec_from_slice(&xs)?, heap.vec_from_slice(&ys)?);
    let mut z = heap.vec_from_slice(&vec![0f32; n as usize])?;
    let mut raw = Raw::new(svm)?;
    let (raw_x, raw_y) = (raw.buffer_with(&xs)?, raw.buffer_with(&ys)?);
    let raw_z = raw.results(n as usize * 4)?;
    let right = |z: &[f32]| z.iter().zip(&xs).zip(&ys).all(|((&z, &x), &y)| z == 2.0 * x + y);

    let kernel = idempotent(svm, "saxpy", spirv!("saxpy"))?;
    let arrays = idempotent(svm, "array_saxpy", spirv!("array_saxpy"))?;
    let groups = n.div_ceil(STREAM_GROUP);
    let push = Push::default().address(&raw_x).address(&raw_y).address(&raw_z).add(2f32).add(n);
    let raw_kernel = raw.kernel("raw_saxpy", spirv!("raw_saxpy"), push.bytes().len())?;
    let samples = suite.interleave("saxpy", ROUNDS, 3, |which| {
        let (time, done) = seconds(|| -> Result<()> {
            if which == 0 {
                let launch = kernel.launch([groups, 1, 1]).read(&x[..]).read(&y[..]).write(&mut z[..]);
                launch.value(2f32).value(n).run().map(drop)?;
                return Ok(());
            }
            if which == 2 {
                let launch = arrays.launch([groups, 1, 1]).read_array(&x[..]).read_array(&y[..]);
                launch.write_array(&mut z[..]).value(2f32).value(n).run().map(drop)?;
                return Ok(());
            }
            // SAFETY: three buffers of n floats; the third is the kernel's to write.
            unsafe { raw.run(&raw_kernel, push.bytes(), groups) }
        });
        done.map(|()| time)
    })?;
    report(suite, "saxpy", &samples, Some(1.15));
    // SAFETY: nothing runs.
    ensure!(right(&z) && right(unsafe { contents(&raw_z) }), "saxpy computed something else");
    z.fill(0.0);

    let kernel = idempotent(svm, "grid", spirv!("grid"))?;
    let arrays = idempotent(svm, "array_grid", spirv!("array_grid"))?;
    let stride = n / 16;
    let groups = stride.div_ceil(STREAM_GROUP);
    let push = Push::default().address(&raw_x).address(&raw_y).address(&raw_z).add(2f32).add(n).add(stride).add(0u32);
    let raw_kernel = raw.kernel("raw_grid", spirv!("raw_grid"), push.bytes().len())?;
    let samples = suite.interleave("saxpy, grid stride", ROUNDS, 3, |which| {
        let (time, done) = seconds(|| -> Result<()> {
            if which == 0 {
                let launch = kernel.launch([groups, 1, 1]).read(&x[..]).read(&y[..]).write(&mut z[..]);
                launch.value(2f32).value(n).value(stride).value(0u32).run().map(drop)?;
                return Ok(());
            }
            if which == 2 {
                let launch = arrays.launch([groups, 1, 1]).read_array(&x[..]).read_array(&y[..]);
                launch.write_array(&mut z[..]).value(2f32).value(n).value(stride).value(0u32).run().map(drop)?;
                return Ok(());
            }
            // SAFETY: as above.
            unsafe { raw.run(&raw_kernel, push.bytes(), groups) }
        });
        done.map(|()| time)
    })?;
    report(suite, "saxpy, grid stride", &samples, Some(1.15));
    // SAFETY: nothing runs.
    ensure!(right(&z) && right(unsafe { contents(&raw_z) }), "grid-stride saxpy computed something else");
    Ok(())
}

fn gather(suite: &mut Suite, svm: &Svm) -> Result<()> {
    let n = suite.size(1u32 << 22, 1 << 21);
    let heap = svm.heap();
    let mut rng = SmallRng::seed_from_u64(1);
    let data: Vec<u32> = (0..n).map(|i| i.wrapping_mul(0x9e37_79b9)).collect();
    let index: Vec<u32> = (0..n).map(|_| rng.random_range(0..n)).collect();
    let (d, i) = (heap.vec_from_slice(&data)?, heap.vec_from_slice(&index)?);
    let mut out = heap.vec_from_slice(&vec![0u32; n as usize])?;
    let mut raw = Raw::new(svm)?;
    let (raw_d, raw_i) = (raw.buffer_with(&data)?, raw.buffer_with(&index)?);
    let raw_out = raw.results(n as usize * 4)?;
    let kernel = idempotent(svm, "gather", spirv!("gather"))?;
    let arrays = idempotent(svm, "array_gather", spirv!("array_gather"))?;
    let push = Push::default().address(&raw_d).address(&raw_i).address(&raw_out).add(n).add(0u32);
    let raw_kernel = raw.kernel("raw_gather", spirv!("raw_gather"), push.bytes().len())?;
    let groups = n.div_ceil(STREAM_GROUP);
    let samples = suite.interleave("random gather", ROUNDS, 3, |which| {
        let (time, done) = seconds(|| -> Result<()> {
            if which == 0 {
                let launch = kernel.launch([groups, 1, 1]).read(&d[..]).read(&i[..]).write(&mut out[..]);
                launch.value(n).value(0u32).run().map(drop)?;
                return Ok(());
            }
            if which == 2 {
                let launch = arrays.launch([groups, 1, 1]).read_array(&d[..]).read_array(&i[..]);
                launch.write_array(&mut out[..]).value(n).value(0u32).run().map(drop)?;
                return Ok(());
            }
            // SAFETY: three buffers of n words, indices below n.
            unsafe { raw.run(&raw_kernel, push.bytes(), groups) }
        });
        done.map(|()| time)
    })?;
    report(suite, "random gather", &samples, Some(1.10));
    let right = |out: &[u32]| out.iter().zip(&index).all(|(&out, &from)| out == data[from as usize]);
    // SAFETY: nothing runs.
    ensure!(right(&out) && right(unsafe { contents(&raw_out) }), "gather computed something else");
    Ok(())
}

/// A node of the linked lists, as in `chase.glsl`.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct Link {
    next: u64,
    value: u32,
    pad: u32,
}

fn chase(suite: &mut Suite, svm: &Svm) -> Result<()> {
    let nodes = suite.size(1usize << 20, 1 << 19);
    let (n, hops) = (suite.size(1u32 << 16, 1 << 15), 64u32);
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
    let mut out = heap.vec_from_slice(&vec![0u32; n as usize])?;
    let mut raw = Raw::new(svm)?;
    let raw_list = raw.buffer_with(&links(0))?;
    let raw_links = links(raw_list.address().0);
    let host = raw_list.host().expect("device memory is mapped on a software device").cast::<Link>();
    // SAFETY: the buffer holds that many nodes and no kernel runs.
    unsafe { host.as_ptr().copy_from_nonoverlapping(raw_links.as_ptr(), nodes) };
    let raw_out = raw.results(n as usize * 4)?;
    let kernel = idempotent(svm, "chase", spirv!("chase"))?;
    let push = Push::default().address(&raw_list).address(&raw_out).add(n).add(hops);
    let raw_kernel = raw.kernel("raw_chase", spirv!("raw_chase"), push.bytes().len())?;
    let groups = n.div_ceil(WALK_GROUP);
    let samples = suite.interleave("pointer chase", ROUNDS, 2, |which| {
        let (time, done) = seconds(|| -> Result<()> {
            if which == 0 {
                let launch = kernel.launch([groups, 1, 1]).read(&list[..]).write(&mut out[..]);
                launch.value(n).value(hops).run().map(drop)?;
                return Ok(());
            }
            // SAFETY: the links stay inside the buffer.
            unsafe { raw.run(&raw_kernel, push.bytes(), groups) }
        });
        done.map(|()| time)
    })?;
    report(suite, "pointer chase", &samples, Some(1.35));
    // SAFETY: nothing runs.
    let same = out[..] == *unsafe { contents::<u32>(&raw_out) };
    ensure!(same && out.iter().any(|&sum| sum != 0), "the chase computed something else");
    Ok(())
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

fn tree(suite: &mut Suite, svm: &Svm) -> Result<()> {
    let count = suite.size(1usize << 18, 1 << 17);
    let n = suite.size(1u32 << 18, 1 << 17);
    let mut rng = SmallRng::seed_from_u64(4);
    let keys: Vec<u32> = (0..n).map(|_| rng.random_range(0..2 * count as u32)).collect();
    let heap = svm.heap();
    let empty = vec![Branch { left: 0, right: 0, key: 0, value: 0, pad: 0 }; count];
    let mut nodes = heap.vec_from_slice(&empty)?;
    let base = nodes.as_ptr() as u64;
    let root = plant(&mut nodes, base);
    let k = heap.vec_from_slice(&keys)?;
    let mut out = heap.vec_from_slice(&vec![0u32; n as usize])?;
    let mut raw = Raw::new(svm)?;
    let raw_nodes = raw.buffer_with(&empty)?;
    let mut planted = empty;
    let raw_root = plant(&mut planted, raw_nodes.address().0);
    let host = raw_nodes.host().expect("device memory is mapped on a software device").cast::<Branch>();
    // SAFETY: the buffer holds that many nodes and no kernel runs.
    unsafe { host.as_ptr().copy_from_nonoverlapping(planted.as_ptr(), count) };
    let (raw_keys, raw_out) = (raw.buffer_with(&keys)?, raw.results(n as usize * 4)?);
    let kernel = idempotent(svm, "tree", spirv!("tree"))?;
    let push = Push::default().add(raw_root).address(&raw_keys).address(&raw_out).add(n).add(0u32);
    let raw_kernel = raw.kernel("raw_tree", spirv!("raw_tree"), push.bytes().len())?;
    let groups = n.div_ceil(WALK_GROUP);
    let samples = suite.interleave("tree traversal", ROUNDS, 2, |which| {
        let (time, done) = seconds(|| -> Result<()> {
            if which == 0 {
                // SAFETY: the tree lives and nobody changes it while the launch runs.
                let launch = unsafe { kernel.launch([groups, 1, 1]).pointer(root as *const Branch) };
                launch.read(&k[..]).write(&mut out[..]).value(n).value(0u32).run().map(drop)?;
                return Ok(());
            }
            // SAFETY: the links stay inside the buffer.
            unsafe { raw.run(&raw_kernel, push.bytes(), groups) }
        });
        done.map(|()| time)
    })?;
    report(suite, "tree traversal", &samples, Some(1.35));
    let want = |key: u32| if key.is_multiple_of(2) { key ^ 0x5555 } else { 0 };
    let right = |out: &[u32]| out.iter().zip(&keys).all(|(&out, &key)| out == want(key));
    // SAFETY: nothing runs.
    ensure!(right(&out) && right(unsafe { contents(&raw_out) }), "the tree traversal computed something else");
    Ok(())
}

fn histogram(suite: &mut Suite, svm: &Svm) -> Result<()> {
    let n = suite.size(1u32 << 22, 1 << 20);
    let bins = 1usize << 16;
    let mut rng = SmallRng::seed_from_u64(5);
    let data: Vec<u32> = (0..n).map(|_| rng.random()).collect();
    let heap = svm.heap();
    let d = heap.vec_from_slice(&data)?;
    let mut counts = heap.vec_from_slice(&vec![0u32; bins])?;
    let mut twice = heap.vec_from_slice(&vec![0u32; bins])?;
    let mut raw = Raw::new(svm)?;
    let (raw_data, raw_bins) = (raw.buffer_with(&data)?, raw.results(bins * 4)?);
    // Its atomics must not be repeated: the runtime runs a probe before the real pass, and that is part of the price.
    let kernel = once(svm, "histogram", spirv!("histogram"))?;
    let arrays = once(svm, "array_histogram", spirv!("array_histogram"))?;
    let mask = bins as u32 - 1;
    let push = Push::default().address(&raw_data).address(&raw_bins).add(n).add(mask);
    let raw_kernel = raw.kernel("raw_histogram", spirv!("raw_histogram"), push.bytes().len())?;
    let groups = n.div_ceil(STREAM_GROUP);
    let samples = suite.interleave("atomics histogram", ROUNDS, 3, |which| {
        let (time, done) = seconds(|| -> Result<()> {
            if which == 0 {
                let launch = kernel.launch([groups, 1, 1]).read(&d[..]).write(&mut counts[..]);
                launch.value(n).value(mask).run().map(drop)?;
                return Ok(());
            }
            if which == 2 {
                let launch = arrays.launch([groups, 1, 1]).read_array(&d[..]).write(&mut twice[..]);
                launch.value(n).value(mask).run().map(drop)?;
                return Ok(());
            }
            // SAFETY: n words of data; bins below the mask.
            unsafe { raw.run(&raw_kernel, push.bytes(), groups) }
        });
        done.map(|()| time)
    })?;
    report(suite, "atomics histogram", &samples, None);
    // SAFETY: nothing runs.
    let same = counts[..] == *unsafe { contents::<u32>(&raw_bins) };
    ensure!(same && counts[..] == twice[..] && counts[0] != 0, "the histogram counted something else");
    Ok(())
}
