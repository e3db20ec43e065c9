//! Copies between home pages and frames.
//!
//! Where frames are mapped by the host, a copy is a memcpy. Elsewhere it goes through a staging buffer whose two
//! halves take turns: while the device copies one, the host fills, or empties, the other. If copies have a queue of their own (`beside.rs`)
//! they go there, and go on while a kernel runs. Should one hang behind a kernel all the same, the kernel is told to give up.

use super::commands::Recorder;
use super::context::{Context, Lane};
use super::memory::{self, Frames};
use super::stall::Stalls;
use crate::addr::DeviceAddress;
use crate::device::stream::{STREAM_BYTES, copy_streaming};
use crate::device::{DeviceError, PageCopy};
use ash::vk;
use parking_lot::{Mutex, RwLock};
use std::collections::BTreeMap;
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::Duration;

/// Bytes of one half of the staging buffer.
const HALF: usize = 8 << 20;

/// Slabs by device address, to find the buffer behind a frame.
pub(super) type SlabMap = BTreeMap<DeviceAddress, Arc<Frames>>;

/// Performs copies.
pub(super) struct Copier {
    context: Arc<Context>,
    /// Whether frames are written and read through their mapping.
    mapped: bool,
    /// Read throughout a copy, which others are made beside.
    slabs: RwLock<SlabMap>,
    staging: Mutex<Option<Staging>>,
    /// What to do about a copy that hangs.
    stalls: Stalls,
}

struct Half {
    buffer: memory::Staging,
    host: NonNull<u8>,
    recorder: Recorder,
    in_flight: Option<u64>,
}

// SAFETY: the mapping is valid from any thread; a half is used under the staging lock.
unsafe impl Send for Half {}

struct Staging {
    halves: [Half; 2],
    fill: Recorder,
}

/// A part of a copy that fits into what is left of a half.
struct Piece {
    host: *mut u8,
    offset: usize,
    bytes: usize,
}

impl Copier {
    pub(super) fn new(context: &Arc<Context>, mapped: bool, patience: Option<Duration>) -> Self {
        Self {
            context: context.clone(),
            mapped,
            slabs: RwLock::default(),
            staging: Mutex::new(None),
            stalls: Stalls::after(patience),
        }
    }

    /// Has `stalled` called when a copy hangs; the last call counts.
    pub(super) fn on_stall(&self, stalled: Box<dyn Fn() + Send + Sync>) {
        self.stalls.tell(stalled);
    }

    /// Waits for a copy. If it was given up, what it uses may still be in use.
    fn wait(&self, value: u64) -> Result<(), DeviceError> {
        self.stalls.wait(|patience| self.context.copies().wait_for(value, patience))
    }

    pub(super) fn add_slab(&self, buffer: Arc<Frames>) {
        self.slabs.write().insert(buffer.device_address(), buffer);
    }

    pub(super) fn remove_slab(&self, address: DeviceAddress) {
        self.slabs.write().remove(&address);
    }

    fn find<'s>(slabs: &'s SlabMap, copy: &PageCopy) -> (&'s Arc<Frames>, usize) {
        let (start, buffer) = slabs.range(..=copy.device).next_back().expect("a frame lies in a slab");
        let offset = (copy.device.0 - start.0) as usize;
        assert!(offset + copy.bytes <= buffer.len(), "a copy runs past its slab");
        (buffer, offset)
    }

    /// Where the host finds frames, if they are mapped.
    pub(super) fn host_frames(&self, device: DeviceAddress, bytes: usize) -> Option<NonNull<u8>> {
        let frames = PageCopy { host: std::ptr::null_mut(), device, bytes };
        self.mapped.then(|| NonNull::new(Self::frame_pointer(&self.slabs.read(), &frames)))?
    }

    /// The host's pointer to a mapped frame.
    fn frame_pointer(slabs: &SlabMap, copy: &PageCopy) -> *mut u8 {
        let (buffer, offset) = Self::find(slabs, copy);
        let start = buffer.mapped().expect("frames are mapped");
        // SAFETY: inside the buffer, as `find` asserted.
        unsafe { start.as_ptr().add(offset) }
    }

    /// # Safety
    /// As `Device::copy_in`.
    pub(super) unsafe fn copy_in(&self, copies: &[PageCopy]) -> Result<(), DeviceError> {
        if self.mapped {
            let slabs = self.slabs.read();
            // Short lists are likely to be used at once, long ones would drive everything else from the caches.
            let streams = copies.iter().map(|copy| copy.bytes).sum::<usize>() >= STREAM_BYTES;
            for copy in copies {
                let frame = Self::frame_pointer(&slabs, copy);
                // SAFETY: the caller's contract; source and frame are different memory.
                unsafe {
                    match streams {
                        true => copy_streaming(copy.host, frame, copy.bytes),
                        false => copy.host.copy_to_nonoverlapping(frame, copy.bytes),
                    }
                }
            }
            return Ok(());
        }
        self.staged(copies, |half, pieces, regions| {
            for piece in pieces {
                // SAFETY: the caller's contract; the piece lies in the half, which is not in flight.
                unsafe { piece.host.copy_to_nonoverlapping(half.host.as_ptr().add(piece.offset), piece.bytes) };
            }
            let source = half.buffer.handle();
            half.in_flight = Some(half.recorder.submit(|device, commands| {
                for (buffer, region) in regions {
                    // SAFETY: both buffers live until the submission was waited for; regions are in bounds.
                    unsafe { device.cmd_copy_buffer(commands, source, buffer.copied(), &[*region]) };
                }
            })?);
            Ok(())
        })
    }

    /// # Safety
    /// As `Device::copy_out`.
    pub(super) unsafe fn copy_out(&self, copies: &[PageCopy]) -> Result<(), DeviceError> {
        if self.mapped {
            let slabs = self.slabs.read();
            // As for copying in. A program that reads what came home finds it sooner, although not in the caches: a copy past them costs half.
            let streams = copies.iter().map(|copy| copy.bytes).sum::<usize>() >= STREAM_BYTES;
            for copy in copies {
                let frame = Self::frame_pointer(&slabs, copy);
                // SAFETY: as in `copy_in`.
                unsafe {
                    match streams {
                        true => copy_streaming(frame, copy.host, copy.bytes),
                        false => copy.host.copy_from_nonoverlapping(frame, copy.bytes),
                    }
                }
            }
            return Ok(());
        }
        self.staged(copies, |half, pieces, regions| {
            let target = half.buffer.handle();
            let value = half.recorder.submit(|device, commands| {
                for (buffer, region) in regions {
                    let back = vk::BufferCopy {
                        src_offset: region.dst_offset,
                        dst_offset: region.src_offset,
                        size: region.size,
                    };
                    // SAFETY: as in `copy_in`.
                    unsafe { device.cmd_copy_buffer(commands, buffer.copied(), target, &[back]) };
                }
            })?;
            self.wait(value)?;
            for piece in pieces {
                // SAFETY: the device is done with the half; the caller promises that the home side is writable.
                unsafe { piece.host.copy_from_nonoverlapping(half.host.as_ptr().add(piece.offset), piece.bytes) };
            }
            Ok(())
        })
    }

    /// # Safety
    /// As `Device::fill_zero`.
    pub(super) unsafe fn fill_zero(&self, fills: &[PageCopy]) -> Result<(), DeviceError> {
        if self.mapped {
            let slabs = self.slabs.read();
            for fill in fills {
                // SAFETY: the caller's contract.
                unsafe { Self::frame_pointer(&slabs, fill).write_bytes(0, fill.bytes) };
            }
            return Ok(());
        }
        let targets: Vec<_> = {
            let slabs = self.slabs.read();
            fills
                .iter()
                .map(|fill| (Self::find(&slabs, fill), fill.bytes))
                .map(|((b, at), n)| ((b.clone(), at), n))
                .collect()
        };
        let mut staging = self.staging.lock();
        let value = self.ensure(&mut staging)?.fill.submit(|device, commands| {
            for ((buffer, offset), bytes) in &targets {
                // SAFETY: `targets` keeps the buffers alive until it was waited for, below; ranges are in bounds.
                unsafe { device.cmd_fill_buffer(commands, buffer.copied(), *offset as u64, *bytes as u64, 0) };
            }
        })?;
        let waited = self.wait(value);
        if self.stalls.gave_up() {
            std::mem::forget((targets, staging.take()));
        }
        waited
    }

    fn ensure<'s>(&self, staging: &'s mut Option<Staging>) -> Result<&'s mut Staging, DeviceError> {
        if staging.is_none() {
            let half = || -> Result<Half, DeviceError> {
                let buffer = memory::Staging::new(&self.context, HALF)?;
                let host = buffer.mapped().ok_or(DeviceError::OutOfMemory { what: "staging", bytes: HALF as u64 })?;
                Ok(Half { buffer, host, recorder: Recorder::on(&self.context, Lane::Copies)?, in_flight: None })
            };
            *staging = Some(Staging { halves: [half()?, half()?], fill: Recorder::on(&self.context, Lane::Copies)? });
        }
        Ok(staging.as_mut().expect("made above"))
    }

    /// Cuts copies into pieces that fit into half a staging buffer and hands each batch to `transfer`, waiting for
    /// the half's previous batch first. Everything is done when this returns.
    fn staged(
        &self,
        copies: &[PageCopy],
        mut transfer: impl FnMut(&mut Half, &[Piece], &[(Arc<Frames>, vk::BufferCopy)]) -> Result<(), DeviceError>,
    ) -> Result<(), DeviceError> {
        let mut held = self.staging.lock();
        let staging = self.ensure(&mut held)?;
        let mut copies = copies.iter().copied();
        let mut current = copies.next();
        let mut result = Ok(());
        let mut turn = 0;
        // Buffers of batches in flight are kept alive here until the end.
        let mut kept = Vec::new();
        while current.is_some() && result.is_ok() {
            let (mut pieces, mut regions, mut used) = (Vec::new(), Vec::new(), 0);
            while let Some(copy) = current.as_mut()
                && used < HALF
            {
                let bytes = copy.bytes.min(HALF - used);
                let slabs = self.slabs.read();
                let (buffer, offset) = Self::find(&slabs, copy);
                regions.push((
                    buffer.clone(),
                    vk::BufferCopy { src_offset: used as u64, dst_offset: offset as u64, size: bytes as u64 },
                ));
                pieces.push(Piece { host: copy.host, offset: used, bytes });
                used += bytes;
                copy.host = copy.host.wrapping_add(bytes);
                copy.device = copy.device.plus(bytes as u64);
                copy.bytes -= bytes;
                if copy.bytes == 0 {
                    current = copies.next();
                }
            }
            let half = &mut staging.halves[turn];
            turn = 1 - turn;
            result = match half.in_flight.take() {
                Some(value) => self.wait(value),
                None => Ok(()),
            }
            .and_then(|()| transfer(half, &pieces, &regions));
            kept.push(regions);
        }
        for half in &mut staging.halves {
            if let Some(value) = half.in_flight.take() {
                let waited = self.wait(value);
                result = result.and(waited);
            }
        }
        if self.stalls.gave_up() {
            // The device may still be at it. With them stays their logical device, which would wait for it otherwise.
            std::mem::forget((kept, held.take()));
        }
        result
    }
}
