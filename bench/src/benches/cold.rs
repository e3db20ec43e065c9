//! `cold`: first touch, end to end: data that only the CPU has, saxpy over it on the device, the result read on the CPU.
//!
//! The peers are what an expert writes today. *Staging*: a mapped ring of buffers, the copies of one piece overlapped with
//! the device's work on the one before. *Mapped*: on devices whose memory the host sees, copies straight into device
//! buffers, without staging. Their buffers are made ahead of time; the runtime's frames are kept from the warm-up likewise.

use super::memory::Memcpy;
use crate::harness::{Samples, Suite, Wanted, seconds};
use crate::kernels::{Push, Raw, STREAM_GROUP, idempotent};
use crate::spirv;
use anyhow::{Context, Result, ensure};
use vksvm::Svm;
use vksvm::device::vulkan::{RawBuffer, RawCommand, RawKernel, RawMemory, RawStream};

const ROUNDS: u32 = 7;
/// Floats of one piece of the staging ring: 4 MiB.
const PIECE: usize = 1 << 20;
/// Pieces in flight.
const RING: usize = 3;

pub(super) fn run(suite: &mut Suite) -> Result<()> {
    suite.open_both(measure)
}

fn measure(suite: &mut Suite, svm: &Svm, placement: &str) -> Result<()> {
    // x and y are copied in, z comes out: 512 MiB are touched by reading, half as much by writing.
    let n = suite.size(64usize << 20, 8 << 20);
    let kernel = idempotent(svm, "saxpy", spirv!("saxpy"))?;
    let arrays = idempotent(svm, "array_saxpy", spirv!("array_saxpy"))?;
    let mut parts = Vec::new();
    let heap = svm.heap();
    let xs: Vec<f32> = (0..n).map(|i| (i % 1000) as f32).collect();
    let ys: Vec<f32> = (0..n).map(|i| (i % 77) as f32).collect();
    let expected: f64 = xs.iter().zip(&ys).map(|(&x, &y)| f64::from(2.0 * x + y)).sum();
    let sum = |z: &[f32]| z.iter().map(|&z| f64::from(z)).sum::<f64>();
    let mut staging = Staging::new(Raw::new(svm)?)?;
    let mut mapped = Mapped::new(Raw::new(svm)?, n)?;
    let mut memcpy = Memcpy::new(64 << 20);
    let mut result = vec![0f32; n];
    let case = format!("saxpy, {} MiB, {placement}", (n * 8) >> 20);
    let samples = suite.interleave(&case, ROUNDS, 5, |which| {
        let (time, total) = match which {
            0 | 4 => {
                let (x, y) = (heap.vec_from_slice(&xs)?, heap.vec_from_slice(&ys)?);
                let mut z = heap.vec_zeroed::<f32>(n)?;
                let (time, total) = seconds(|| -> Result<f64> {
                    let grid = [(n as u32).div_ceil(STREAM_GROUP), 1, 1];
                    let launch = if which == 0 {
                        arrays.launch(grid).read_array(&x[..]).read_array(&y[..]).write_array(&mut z[..])
                    } else {
                        kernel.launch(grid).read(&x[..]).read(&y[..]).write(&mut z[..])
                    };
                    let (launched, report) = seconds(|| launch.value(2f32).value(n as u32).run());
                    if which == 0 {
                        parts.push((launched, report?));
                    }
                    Ok(sum(&z))
                });
                (time, total?)
            }
            1 => {
                let (time, done) = seconds(|| staging.saxpy(&xs, &ys, &mut result).map(|()| sum(&result)));
                (time, done?)
            }
            2 => {
                let (time, done) = seconds(|| mapped.saxpy(&xs, &ys).map(&sum));
                (time, done?)
            }
            _ => (memcpy.seconds(n * 12), expected),
        };
        ensure!(total == expected, "contestant {which} computed {total}, not {expected}");
        Ok(time)
    })?;
    let own = &samples[0];
    let row = suite.row(&case, "end to end", "s", own);
    row.against("staging ring", own, &samples[1])
        .limited_by("memcpy", &samples[3], own)
        .wanted(Wanted::RatioAtMost(1.25));
    suite.row(&case, "end to end", "s", own).against("mapped buffers", own, &samples[2]);
    let part = |f: fn(&(f64, vksvm::LaunchReport)) -> f64| Samples(parts[1..].iter().map(f).collect());
    suite.row(&case, "of it the launch", "s", &part(|(time, _)| *time));
    suite.row(&case, "of it dispatches", "s", &part(|(_, report)| report.kernel_nanos as f64 / 1e9));
    suite.row(&case, "of it service", "s", &part(|(_, report)| report.service_nanos as f64 / 1e9));
    suite.row(&case, "of it copies in", "s", &part(|(_, report)| report.copy_nanos as f64 / 1e9));
    let pointers = &samples[4];
    suite.row(&format!("{case}, pointers"), "end to end", "s", pointers).against("staging ring", pointers, &samples[1]);
    Ok(())
}

/// A part of the ring: upload buffers, device buffers, a readback buffer, and a stream of its own.
struct Slot {
    upload: [RawBuffer; 2],
    device: [RawBuffer; 3],
    readback: RawBuffer,
    stream: RawStream,
    /// Where in the result its contents go, once done.
    pending: Option<usize>,
}

struct Staging {
    kernel: RawKernel,
    slots: Vec<Slot>,
}

impl Staging {
    fn new(raw: Raw) -> Result<Self> {
        let buffer = |memory| raw.device.raw_buffer(PIECE * 4, memory);
        let slots = (0..RING).map(|_| {
            Ok(Slot {
                upload: [buffer(RawMemory::Upload)?, buffer(RawMemory::Upload)?],
                device: [buffer(RawMemory::Device)?, buffer(RawMemory::Device)?, buffer(RawMemory::Device)?],
                readback: buffer(RawMemory::Readback)?,
                stream: raw.device.raw_stream()?,
                pending: None,
            })
        });
        Ok(Self { slots: slots.collect::<Result<_>>()?, kernel: raw.kernel("raw_saxpy", spirv!("raw_saxpy"), 32)? })
    }

    fn saxpy(&mut self, x: &[f32], y: &[f32], z: &mut [f32]) -> Result<()> {
        for (index, start) in (0..x.len()).step_by(PIECE).enumerate() {
            let slot = &mut self.slots[index % RING];
            collect(slot, z)?;
            let count = PIECE.min(x.len() - start);
            for (upload, from) in slot.upload.iter().zip([x, y]) {
                let host = upload.host().context("upload memory is mapped")?.cast::<f32>();
                // SAFETY: the buffer holds a piece and its last submission was waited for.
                unsafe { host.as_ptr().copy_from_nonoverlapping(from[start..].as_ptr(), count) };
            }
            let push = Push::default().address(&slot.device[0]).address(&slot.device[1]).address(&slot.device[2]);
            let push = push.add(2f32).add(count as u32);
            let bytes = count as u64 * 4;
            let copy = |from, to| RawCommand::Copy { from: (from, 0), to: (to, 0), bytes };
            let groups = [(count as u32).div_ceil(STREAM_GROUP), 1, 1];
            let commands = [
                copy(&slot.upload[0], &slot.device[0]),
                copy(&slot.upload[1], &slot.device[1]),
                RawCommand::Barrier,
                RawCommand::Dispatch { kernel: &self.kernel, push: push.bytes(), groups },
                RawCommand::Barrier,
                copy(&slot.device[2], &slot.readback),
            ];
            // SAFETY: copies and kernel stay inside the slot's buffers, which live as long as its stream.
            unsafe { slot.stream.submit(&commands) }?;
            slot.pending = Some(start);
        }
        self.slots.iter_mut().try_for_each(|slot| collect(slot, z))
    }
}

/// Waits for a slot and copies its result out.
fn collect(slot: &mut Slot, z: &mut [f32]) -> Result<()> {
    let Some(start) = slot.pending.take() else { return Ok(()) };
    slot.stream.wait()?;
    let count = PIECE.min(z.len() - start);
    let host = slot.readback.host().context("readback memory is mapped")?.cast::<f32>();
    // SAFETY: the device is done with the buffer, which holds a piece.
    unsafe { host.as_ptr().copy_to_nonoverlapping(z[start..].as_mut_ptr(), count) };
    Ok(())
}

/// Whole arrays in device memory that the host sees; pieces are dispatched while the next are copied in.
struct Mapped {
    kernel: RawKernel,
    streams: Vec<RawStream>,
    x: RawBuffer,
    y: RawBuffer,
    z: RawBuffer,
    n: usize,
}

impl Mapped {
    fn new(raw: Raw, n: usize) -> Result<Self> {
        let buffer = |memory| raw.device.raw_buffer(n * 4, memory);
        Ok(Self {
            kernel: raw.kernel("raw_saxpy", spirv!("raw_saxpy"), 32)?,
            streams: (0..RING).map(|_| raw.device.raw_stream()).collect::<Result<_, _>>()?,
            x: buffer(RawMemory::Device)?,
            y: buffer(RawMemory::Device)?,
            z: buffer(RawMemory::Readback)?,
            n,
        })
    }

    fn saxpy(&mut self, x: &[f32], y: &[f32]) -> Result<&[f32]> {
        for (index, start) in (0..self.n).step_by(PIECE).enumerate() {
            let count = PIECE.min(self.n - start);
            for (buffer, from) in [(&self.x, x), (&self.y, y)] {
                let host = buffer.host().context("the host does not see the device's memory")?.cast::<f32>();
                // SAFETY: the buffer holds n floats; no submission uses this part.
                unsafe { host.as_ptr().add(start).copy_from_nonoverlapping(from[start..].as_ptr(), count) };
            }
            let at = start as u64 * 4;
            let push = [&self.x, &self.y, &self.z].iter().fold(Push::default(), |push, b| push.add(b.address().0 + at));
            let push = push.add(2f32).add(count as u32);
            let groups = [(count as u32).div_ceil(STREAM_GROUP), 1, 1];
            let command = RawCommand::Dispatch { kernel: &self.kernel, push: push.bytes(), groups };
            // SAFETY: the kernel stays inside the three buffers, which are waited for below.
            unsafe { self.streams[index % RING].submit(&[command]) }?;
        }
        self.streams.iter_mut().try_for_each(RawStream::wait)?;
        // SAFETY: the device is done.
        Ok(unsafe { crate::kernels::contents(&self.z) })
    }
}
