//! `sparse`: a share of the pages of a large array touched by a kernel, in random order.
//!
//! Peers: copying the whole array to the device first, and a kernel that reads host memory where it lies, imported with
//! `VK_EXT_external_memory_host` (where that is not to be had, a buffer that the host sees).

use crate::harness::{Samples, Suite, Wanted, seconds};
use crate::kernels::{Push, Raw, WALK_GROUP, contents, idempotent};
use crate::spirv;
use anyhow::{Result, ensure};
use rand::rngs::SmallRng;
use rand::{SeedableRng, seq::index};
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;
use std::sync::Arc;
use vksvm::Svm;
use vksvm::device::vulkan::{RawBuffer, RawMemory, VulkanDevice};
use vksvm::device::{Device, HomeWindow};

const ROUNDS: u32 = 7;
const WORDS: usize = 1024;

pub(super) fn run(suite: &mut Suite) -> Result<()> {
    suite.open_both(measure)
}

fn measure(suite: &mut Suite, svm: &Svm, placement: &str) -> Result<()> {
    let bytes = suite.size(2usize << 30, 256 << 20);
    let pages = bytes / 4096;
    let heap = svm.heap();
    let kernel = idempotent(svm, "touch", spirv!("touch"))?;
    // The peers' array: the host writes it and the device can read it in place.
    let mut raw = Raw::new(svm)?;
    let visible = HostMemory::new(&raw.device, bytes)?;
    let peer = visible.name();
    let device = raw.device.raw_buffer(bytes, RawMemory::Device)?;
    let host = visible.host.cast::<u32>().as_ptr();
    let mut data = heap.vec_zeroed::<u32>(pages * WORDS)?;
    for page in 0..pages {
        // SAFETY: in bounds; no kernel runs.
        unsafe { host.add(page * WORDS).write(page as u32 ^ 0xa5a5) };
        data[page * WORDS] = page as u32 ^ 0xa5a5;
    }
    let raw_kernel = raw.kernel("raw_touch", spirv!("raw_touch"), 32)?;
    // Every round has pages of its own, as long as there are any, which no launch has asked for.
    let order = index::sample(&mut SmallRng::seed_from_u64(7), pages, pages).into_vec();
    let mut fresh = order.iter().map(|&page| page as u32).cycle();
    for share in [0.001, 0.01, 0.1, 0.5] {
        let n = (pages as f64 * share) as usize;
        let mut list = heap.vec_zeroed::<u32>(n)?;
        let mut out = heap.vec_from_slice(&vec![0u32; n])?;
        let (mut raw_list, raw_out) = (raw.buffer_with(&list)?, raw.results(n * 4)?);
        let groups = (n as u32).div_ceil(WALK_GROUP);
        let right = |list: &[u32], out: &[u32]| out.iter().zip(list).all(|(&out, &page)| out == page ^ 0xa5a5);
        let case = format!("{} % of {} MiB, {placement}", share * 100.0, bytes >> 20);
        let mut moved = Vec::new();
        let mut again = Samples::default();
        let mut stats = Vec::new();
        let samples = suite.interleave(&case, ROUNDS, 3, |which| {
            let time = match which {
                0 => {
                    list.iter_mut().zip(&mut fresh).for_each(|(to, page)| *to = page);
                    // Written again, so that the device has nothing of it.
                    for page in 0..pages {
                        data[page * WORDS] = page as u32 ^ 0xa5a5;
                    }
                    let mut launch = || {
                        seconds(|| {
                            let launch = kernel.launch([groups, 1, 1]).read(&data[..]).read(&list[..]);
                            launch.write(&mut out[..]).value(n as u32).value(0u32).run()
                        })
                    };
                    let (time, report) = launch();
                    let report = report?;
                    moved.push(report.pages_in as f64 / n as f64);
                    stats.push(report);
                    let (once_more, report) = launch();
                    report?;
                    again.0.push(once_more);
                    ensure!(right(&list[..], &out), "the kernel read something else");
                    raw_list = raw.buffer_with(&list)?;
                    time
                }
                _ => {
                    let array = if which == 1 { device.address() } else { visible.address };
                    let push =
                        Push::default().add(array.0).address(&raw_list).address(&raw_out).add(n as u32).add(0u32);
                    let (time, done) = seconds(|| -> Result<()> {
                        if which == 1 {
                            let to = device.host().expect("device memory is mapped on a software device");
                            // SAFETY: both hold the array, and no kernel runs.
                            unsafe { to.cast::<u32>().as_ptr().copy_from_nonoverlapping(host, pages * WORDS) };
                        }
                        // SAFETY: the list names pages of the array.
                        unsafe { raw.run(&raw_kernel, push.bytes(), groups) }
                    });
                    done?;
                    // SAFETY: the device is done.
                    ensure!(right(&list[..], unsafe { contents(&raw_out) }), "the peer read something else");
                    time
                }
            };
            Ok(time)
        })?;
        let row = suite.row(&case, "launch", "s", &samples[0]);
        row.against("copying it all", &samples[0], &samples[1]).at(share);
        if share == 0.01 {
            row.wanted(Wanted::RatioAtMost(1.0 / 20.0));
        }
        suite.row(&case, "launch", "s", &samples[0]).against(peer, &samples[0], &samples[2]);
        let again = Samples(again.0.split_off(1));
        suite.row(&case, "launched again", "s", &again).against(peer, &again, &samples[2]);
        let part =
            |f: fn(&vksvm::Stats) -> u64| Samples(stats[1..].iter().map(|stats| f(stats) as f64 / 1e9).collect());
        suite.row(&case, "of it dispatches", "s", &part(|stats| stats.kernel_nanos));
        suite.row(&case, "of it service", "s", &part(|stats| stats.service_nanos));
        suite.row(&case, "pages moved / needed", "", &Samples(moved.split_off(1)));
    }
    Ok(())
}

/// Memory of the host that kernels read where it is.
struct HostMemory {
    host: NonNull<u8>,
    address: vksvm::addr::DeviceAddress,
    kind: Kind,
}

enum Kind {
    /// Given back to the device before the memory is freed.
    Imported(Option<Arc<dyn HomeWindow>>, Layout),
    #[allow(dead_code, reason = "held for its drop")]
    Buffer(RawBuffer),
}

impl HostMemory {
    fn new(device: &VulkanDevice, bytes: usize) -> Result<Self> {
        if device.info().import.is_some() {
            let layout = Layout::from_size_align(bytes, 2 << 20)?;
            // SAFETY: the size is not zero.
            let Some(host) = NonNull::new(unsafe { alloc_zeroed(layout) }) else { handle_alloc_error(layout) };
            // SAFETY: freed in `drop`, after the window.
            match unsafe { device.import(host, bytes) } {
                Ok(window) => {
                    return Ok(Self { host, address: window.address(), kind: Kind::Imported(Some(window), layout) });
                }
                // SAFETY: allocated above with this layout; nobody else knows it.
                Err(_) => unsafe { dealloc(host.as_ptr(), layout) },
            }
        }
        let buffer = device.raw_buffer(bytes, RawMemory::Upload)?;
        let host = buffer.host().expect("upload memory is mapped");
        Ok(Self { host, address: buffer.address(), kind: Kind::Buffer(buffer) })
    }

    fn name(&self) -> &'static str {
        match self.kind {
            Kind::Imported(..) => "imported host memory",
            Kind::Buffer(_) => "host-visible memory",
        }
    }
}

impl Drop for HostMemory {
    fn drop(&mut self) {
        if let Kind::Imported(window, layout) = &mut self.kind {
            drop(window.take());
            // SAFETY: allocated in `new` with this layout; no kernel runs, and the device has let go of it.
            unsafe { dealloc(self.host.as_ptr(), *layout) };
        }
    }
}
