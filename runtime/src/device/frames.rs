//! The frame pool: which frame of device memory holds which page.
//!
//! Frames come in large slabs from the device. The first page of a VMA that needs a frame reserves a
//! contiguous run for the whole VMA if there is room, so that neighbouring pages are neighbouring frames: copies
//! stay long and objects that straddle pages need no assembling. Where slabs are small beside the limit, they are made larger than what
//! they are needed for, and VMAs keep their distances inside: each page at its own place in the part of the heap that the slab mirrors. So CPU and
//! device addresses differ by the same number for many VMAs (`kernel/direct.rs`). When room gets short, the unused parts of reservations are
//! given up, and from then on single frames are handed out: to a page that comes after its neighbour the next one, if it is free, and to the first
//! of a large VMA's that which has most room behind it, since array arguments pay where their parts are contiguous (`kernel/arrays.rs`).
//!
//! The limit may change at any time. When it falls, slabs are *closed* until those that stay open fit: no frame of a closed slab is
//! handed out, its pages are to be evicted by whoever lowered the limit, and then it is given back. Their numbers are used again.
//!
//! Plain data without a lock; the mirror's update lock guards it.

use super::layout::pte;
use super::{Device, DeviceError, PageTable, Slab, frame_of};
use crate::addr::{DeviceAddress, FrameIndex, PAGE_SIZE, PageIndex, PageRange};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Smallest slab asked of the device, in frames: 16 MiB.
const SLAB_FRAMES: u32 = 4096;
/// The part of the limit that a slab may take which is larger than it need be: one in so many.
const ROOMY_PART: u32 = 8;
/// Frames of such a slab, at most: 256 MiB.
const ROOMY_FRAMES: u32 = 1 << 16;
/// Pages of a VMA from which on single frames are handed out with room behind them.
const LARGE: u32 = 32;
/// No page: the frame is free.
const NO_PAGE: u32 = u32::MAX;
/// No frame: its slab was given back.
const NO_FRAME: Frame = Frame { page: NO_PAGE, reservation: 0 };

/// How frames are used at the moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FrameUse {
    /// Frames holding pages.
    pub used: u32,
    /// Frames taken from the device.
    pub allocated: u32,
    /// Most frames that may be taken.
    pub limit: u32,
}

struct SlabEntry {
    first: u32,
    frames: u32,
    used: u32,
    closed: bool,
    /// The page whose place is the first frame, in slabs that VMAs keep their distances in.
    mirrors: Option<PageIndex>,
    slab: Arc<dyn Slab>,
}

struct Reservation {
    pages: PageRange,
    first: FrameIndex,
}

#[derive(Clone, Copy)]
struct Frame {
    page: u32,
    /// Index + 1 of the reservation it belongs to; 0 for none.
    reservation: u32,
}

/// The frames of one device.
pub struct FramePool {
    limit: u32,
    /// By first frame.
    slabs: Vec<SlabEntry>,
    /// First frame and number of frames by address on the device.
    by_address: BTreeMap<u64, (u32, u32)>,
    frames: Vec<Frame>,
    /// Numbers of frames whose slabs were given back, as runs.
    vacant: Vec<(u32, u32)>,
    /// Frames of slabs, closed ones included.
    allocated: u32,
    /// The device refused a slab; it is not asked again until something changes.
    refused: bool,
    /// Free and unreserved runs, by start and by length.
    free: BTreeMap<u32, u32>,
    free_by_length: BTreeSet<(u32, u32)>,
    reservations: Vec<Option<Reservation>>,
    /// Index of a reservation by its first page. VMAs do not overlap, and neither do these.
    reserved_for: BTreeMap<u32, u32>,
    /// The reservation that was used last: neighbours usually follow each other.
    recent: Option<(PageRange, FrameIndex)>,
    /// The page that got the last single frame, and that frame.
    last: Option<(PageIndex, FrameIndex)>,
    free_frames: u32,
    used: u32,
    /// Frames that somebody copies from, and whether each was given back meanwhile. Few.
    held: Vec<(FrameIndex, bool)>,
}

impl FramePool {
    /// An empty pool that may grow to `limit` frames.
    pub fn new(limit: u32) -> Self {
        Self {
            limit,
            slabs: Vec::new(),
            by_address: BTreeMap::new(),
            frames: Vec::new(),
            vacant: Vec::new(),
            allocated: 0,
            refused: false,
            free: BTreeMap::new(),
            free_by_length: BTreeSet::new(),
            reservations: Vec::new(),
            reserved_for: BTreeMap::new(),
            recent: None,
            last: None,
            free_frames: 0,
            used: 0,
            held: Vec::new(),
        }
    }

    /// Figures for reports.
    pub fn usage(&self) -> FrameUse {
        FrameUse { used: self.used, allocated: self.allocated, limit: self.limit }
    }

    /// The frame's address on the device.
    pub fn address(&self, frame: FrameIndex) -> DeviceAddress {
        let slab = &self.slabs[self.slab_of(frame)];
        slab.slab.address().plus(u64::from(frame.0 - slab.first) * PAGE_SIZE as u64)
    }

    /// The frame at a device address, if it lies in a slab.
    pub fn at(&self, address: DeviceAddress) -> Option<FrameIndex> {
        let (&start, &(first, frames)) = self.by_address.range(..=address.0).next_back()?;
        let offset = (address.0 - start) / PAGE_SIZE as u64;
        (offset < u64::from(frames)).then(|| FrameIndex(first + offset as u32))
    }

    /// Whether a slab starts at a device address. Slabs may be neighbours there; copies must not run from one into the other.
    pub fn starts_slab(&self, address: DeviceAddress) -> bool {
        self.by_address.contains_key(&address.0)
    }

    /// The page a frame holds.
    pub fn page(&self, frame: FrameIndex) -> Option<PageIndex> {
        let page = self.frames[frame.index()].page;
        (page != NO_PAGE).then_some(PageIndex(page))
    }

    /// Takes a frame for `page` of the VMA with extent `vma`; `None` if the pool is at its limit and nothing is
    /// free.
    pub fn place(
        &mut self,
        device: &dyn Device,
        vma: PageRange,
        page: PageIndex,
    ) -> Result<Option<FrameIndex>, DeviceError> {
        if self.recent.is_none_or(|(pages, _)| !pages.contains(page)) {
            if self.reservation_of(page).is_none() && !self.reserved_for.contains_key(&vma.start.0) {
                self.reserve(device, vma)?;
            }
            self.recent = self.reservation_of(page).map(|(_, reservation)| (reservation.pages, reservation.first));
        }
        if let Some(frame) = self.reserved_frame(page) {
            self.occupy(frame, page);
            return Ok(Some(frame));
        }
        if self.free.is_empty() && !self.grow(device, 1)? {
            self.give_up_reservations();
        }
        let Some(start) = self.single(vma, page) else { return Ok(None) };
        self.carve(start, 1);
        self.occupy(FrameIndex(start), page);
        self.last = Some((page, FrameIndex(start)));
        Ok(Some(FrameIndex(start)))
    }

    /// The free frame for a page that has no reservation: the first of a free run.
    fn single(&self, vma: PageRange, page: PageIndex) -> Option<u32> {
        let behind = self.last.filter(|(before, _)| before.plus(1) == page).map(|(_, frame)| frame.0 + 1);
        let behind = behind.filter(|next| self.free.contains_key(next) && !self.is_slab_start(*next));
        let roomy = || self.free_by_length.last().filter(|_| vma.len() >= LARGE).map(|&(_, start)| start);
        behind.or_else(roomy).or_else(|| self.free.keys().next().copied())
    }

    /// Keeps a frame that holds a page from being used for another, or given back to the device, until it is let go.
    pub fn hold(&mut self, frame: FrameIndex) {
        debug_assert!(self.page(frame).is_some() && self.held.iter().all(|&(held, _)| held != frame), "{frame:?}");
        self.held.push((frame, false));
    }

    /// Lets go of a frame. If it was given back meanwhile, it is free from now on.
    pub fn let_go(&mut self, frame: FrameIndex) {
        let at = self.held.iter().position(|&(held, _)| held == frame);
        if at.is_some_and(|at| self.held.swap_remove(at).1) {
            self.release(frame);
        }
    }

    /// Gives a frame back.
    pub fn release(&mut self, frame: FrameIndex) {
        if let Some((_, given_back)) = self.held.iter_mut().find(|(held, _)| *held == frame) {
            assert!(!*given_back, "{frame:?} was given back twice");
            *given_back = true;
            return;
        }
        let entry = &mut self.frames[frame.index()];
        assert_ne!(entry.page, NO_PAGE, "{frame:?} was given back twice");
        entry.page = NO_PAGE;
        self.used -= 1;
        let reserved = entry.reservation != 0;
        let slab = self.slab_of(frame);
        self.slabs[slab].used -= 1;
        if !reserved && !self.slabs[slab].closed {
            self.add_free(frame.0, 1);
        }
    }

    /// Changes the limit and closes slabs that do not fit any more; their pages are to be evicted ([`closed_pages`](Self::closed_pages)),
    /// and then the slabs given back ([`take_closed`](Self::take_closed)).
    pub fn set_limit(&mut self, limit: u32) {
        self.limit = limit;
        self.refused = false;
        loop {
            let open: u32 = self.slabs.iter().filter(|slab| !slab.closed).map(|slab| slab.frames).sum();
            if open <= limit {
                return;
            }
            // The smallest that is enough, or else the largest: few pages move.
            let excess = open - limit;
            let candidates = || self.slabs.iter().enumerate().filter(|(_, slab)| !slab.closed);
            let enough = candidates().filter(|(_, slab)| slab.frames >= excess).min_by_key(|(_, slab)| slab.frames);
            let Some((index, _)) = enough.or_else(|| candidates().max_by_key(|(_, slab)| slab.frames)) else { return };
            self.close(index);
        }
    }

    fn close(&mut self, index: usize) {
        let (first, frames) = (self.slabs[index].first, self.slabs[index].frames);
        let reservations: BTreeSet<u32> =
            self.frames[first as usize..(first + frames) as usize].iter().map(|frame| frame.reservation).collect();
        for reservation in reservations.into_iter().filter(|&reservation| reservation != 0) {
            self.dissolve(reservation - 1);
        }
        let free: Vec<(u32, u32)> =
            self.free.range(first..first + frames).map(|(&start, &count)| (start, count)).collect();
        for (start, count) in free {
            self.carve(start, count);
        }
        self.slabs[index].closed = true;
    }

    /// Whether slabs are being given back, after which there may be room for new ones.
    pub fn is_closing(&self) -> bool {
        self.slabs.iter().any(|slab| slab.closed)
    }

    /// Pages in closed slabs.
    pub fn closed_pages(&self) -> Vec<PageIndex> {
        let closed = self.slabs.iter().filter(|slab| slab.closed);
        let frames = closed.flat_map(|slab| &self.frames[slab.first as usize..(slab.first + slab.frames) as usize]);
        frames.filter(|frame| frame.page != NO_PAGE).map(|frame| PageIndex(frame.page)).collect()
    }

    /// Whether the entry of `page` leads to a frame of a closed slab.
    pub fn in_closed(&self, table: &PageTable, page: PageIndex) -> bool {
        let entry = table.load(page);
        let copy = entry & (pte::VALID | pte::ZERO | pte::HOME) == pte::VALID;
        copy && self.at(frame_of(entry)).is_some_and(|frame| self.slabs[self.slab_of(frame)].closed)
    }

    /// The closed slabs without pages, for the caller to drop.
    pub fn take_closed(&mut self) -> Vec<Arc<dyn Slab>> {
        let mut taken = Vec::new();
        let (vacant, allocated, by_address) = (&mut self.vacant, &mut self.allocated, &mut self.by_address);
        self.slabs.retain(|slab| {
            let gone = slab.closed && slab.used == 0;
            if gone {
                vacant.push((slab.first, slab.frames));
                by_address.remove(&slab.slab.address().0);
                *allocated -= slab.frames;
                taken.push(slab.slab.clone());
            }
            !gone
        });
        taken
    }

    /// Whether the device refused memory within the limit.
    pub fn is_refused(&self) -> bool {
        self.refused
    }

    /// The device may have memory again: it is asked when next there is need.
    pub fn ask_again(&mut self) {
        self.refused = false;
    }

    fn slab_of(&self, frame: FrameIndex) -> usize {
        self.slabs.partition_point(|slab| slab.first <= frame.0) - 1
    }

    /// Ends the reservations of VMAs that are gone. What their frames hold stays.
    pub fn forget(&mut self, pages: PageRange) {
        let first = self.reservation_of(pages.start).map_or(pages.start.0, |(start, _)| start);
        let gone: Vec<u32> = self.reserved_for.range(first..pages.end.0).map(|(_, &index)| index).collect();
        for index in gone {
            self.dissolve(index);
        }
    }

    /// All pages that hold a frame.
    pub fn pages(&self) -> impl Iterator<Item = PageIndex> {
        self.frames.iter().filter(|frame| frame.page != NO_PAGE).map(|frame| PageIndex(frame.page))
    }

    /// The reservation that covers `page`, with its first page.
    fn reservation_of(&self, page: PageIndex) -> Option<(u32, &Reservation)> {
        let (&start, &index) = self.reserved_for.range(..=page.0).next_back()?;
        let reservation = self.reservations[index as usize].as_ref()?;
        reservation.pages.contains(page).then_some((start, reservation))
    }

    fn reserved_frame(&self, page: PageIndex) -> Option<FrameIndex> {
        let (pages, first) = self.recent.filter(|(pages, _)| pages.contains(page))?;
        let frame = first.plus(page.0 - pages.start.0);
        (self.frames[frame.index()].page == NO_PAGE).then_some(frame)
    }

    fn occupy(&mut self, frame: FrameIndex, page: PageIndex) {
        self.frames[frame.index()].page = page.0;
        self.used += 1;
        let slab = self.slab_of(frame);
        self.slabs[slab].used += 1;
    }

    /// Reserves a run for a whole VMA, if that leaves at least half of the pool's headroom to others.
    fn reserve(&mut self, device: &dyn Device, vma: PageRange) -> Result<bool, DeviceError> {
        let wanted = vma.len();
        let headroom = self.limit.saturating_sub(self.allocated) + self.free_frames;
        if wanted < 2 || wanted > headroom / 2 {
            return Ok(false);
        }
        let start = match self.own_place(vma).or_else(|| self.any_place(wanted)) {
            Some(start) => start,
            None => {
                if !self.grow_around(device, vma)? && !self.grow(device, wanted)? {
                    return Ok(false);
                }
                match self.own_place(vma).or_else(|| self.any_place(wanted)) {
                    Some(start) => start,
                    None => return Ok(false),
                }
            }
        };
        self.carve_at(start, wanted);
        let index = self.reservations.iter().position(Option::is_none).unwrap_or_else(|| {
            self.reservations.push(None);
            self.reservations.len() - 1
        });
        self.reservations[index] = Some(Reservation { pages: vma, first: FrameIndex(start) });
        self.reserved_for.insert(vma.start.0, index as u32);
        for frame in &mut self.frames[start as usize..(start + wanted) as usize] {
            frame.reservation = index as u32 + 1;
        }
        Ok(true)
    }

    /// Where a run of this length is free.
    fn any_place(&self, wanted: u32) -> Option<u32> {
        self.free_by_length.range((wanted, 0)..).next().map(|&(_, start)| start)
    }

    /// The place of a VMA in the slab that mirrors its part of the heap, if it is free.
    fn own_place(&self, vma: PageRange) -> Option<u32> {
        self.slabs.iter().filter(|slab| !slab.closed).find_map(|slab| {
            let offset = vma.start.0.checked_sub(slab.mirrors?.0).filter(|offset| *offset < slab.frames)?;
            let start = slab.first + offset;
            let (&run, &length) = self.free.range(..=start).next_back()?;
            (start + vma.len() <= run + length).then_some(start)
        })
    }

    /// Adds a slab that mirrors the part of the heap around a VMA, where it is small beside the limit. False if not.
    fn grow_around(&mut self, device: &dyn Device, vma: PageRange) -> Result<bool, DeviceError> {
        let frames = ROOMY_FRAMES.min(self.limit / ROOMY_PART);
        let frames = if frames < 2 * SLAB_FRAMES { return Ok(false) } else { 1 << frames.ilog2() };
        // Halves, so that what lies in one has the other beside it.
        let start = vma.start.0 / (frames / 2) * (frames / 2);
        let fits = vma.end.0 <= start.saturating_add(frames);
        Ok(fits && self.add_slab(device, frames, Some(PageIndex(start)))?)
    }

    fn give_up_reservations(&mut self) {
        for index in 0..self.reservations.len() as u32 {
            if self.reservations[index as usize].is_some() {
                self.dissolve(index);
            }
        }
    }

    fn dissolve(&mut self, index: u32) {
        let Some(reservation) = self.reservations[index as usize].take() else { return };
        self.recent = None;
        self.reserved_for.remove(&reservation.pages.start.0);
        for frame in reservation.first.0..reservation.first.0 + reservation.pages.len() {
            self.frames[frame as usize].reservation = 0;
            let slab = self.slab_of(FrameIndex(frame));
            if self.frames[frame as usize].page == NO_PAGE && !self.slabs[slab].closed {
                self.add_free(frame, 1);
            }
        }
    }

    /// Adds a slab with room for `frames` contiguous frames. False if the limit or the device does not allow it.
    fn grow(&mut self, device: &dyn Device, frames: u32) -> Result<bool, DeviceError> {
        let size = frames.max(SLAB_FRAMES).min(self.limit.saturating_sub(self.allocated));
        if size < frames || size == 0 || self.refused {
            return Ok(false);
        }
        let added = self.add_slab(device, size, None)?;
        self.refused = !added;
        Ok(added)
    }

    /// Adds a slab of `size` frames. False if the device has no memory for it, or the limit does not allow it.
    fn add_slab(&mut self, device: &dyn Device, size: u32, mirrors: Option<PageIndex>) -> Result<bool, DeviceError> {
        if self.refused || size > self.limit.saturating_sub(self.allocated) {
            return Ok(false);
        }
        let slab = match device.slab(size as usize * PAGE_SIZE) {
            Ok(slab) => slab,
            Err(DeviceError::OutOfMemory { .. }) => return Ok(false),
            Err(error) => return Err(error),
        };
        let first = self.numbers(size);
        let at = self.slabs.partition_point(|slab| slab.first < first);
        self.by_address.insert(slab.address().0, (first, size));
        self.slabs.insert(at, SlabEntry { first, frames: size, used: 0, closed: false, mirrors, slab });
        self.allocated += size;
        // Slabs are not neighbours on the device, so their runs must not merge: see `add_free`.
        self.add_free(first, size);
        Ok(true)
    }

    /// Numbers for `count` frames: those of slabs that are gone, or new ones.
    fn numbers(&mut self, count: u32) -> u32 {
        if let Some(at) = self.vacant.iter().position(|&(_, length)| length >= count) {
            let (first, length) = self.vacant.swap_remove(at);
            if length > count {
                self.vacant.push((first + count, length - count));
            }
            return first;
        }
        let first = self.frames.len() as u32;
        self.frames.resize((first + count) as usize, NO_FRAME);
        first
    }

    fn carve(&mut self, start: u32, count: u32) {
        let length = self.free.remove(&start).expect("carved from a free run");
        self.free_by_length.remove(&(length, start));
        self.free_frames -= count;
        if length > count {
            self.free.insert(start + count, length - count);
            self.free_by_length.insert((length - count, start + count));
        }
    }

    /// Takes `count` frames from `start` on out of the free run that they lie in.
    fn carve_at(&mut self, start: u32, count: u32) {
        let run = self.free.range(..=start).next_back().map_or(start, |(&run, _)| run);
        if run < start {
            let length = self.free[&run];
            self.carve(run, length);
            // Apart, so that what is between is not merged again.
            self.insert_free(run, start - run);
            self.insert_free(start, run + length - start);
        }
        self.carve(start, count);
    }

    fn insert_free(&mut self, start: u32, count: u32) {
        self.free_frames += count;
        self.free.insert(start, count);
        self.free_by_length.insert((count, start));
    }

    fn is_slab_start(&self, frame: u32) -> bool {
        self.slabs.binary_search_by_key(&frame, |slab| slab.first).is_ok()
    }

    fn add_free(&mut self, mut start: u32, mut count: u32) {
        if let Some((&before, &length)) = self.free.range(..start).next_back()
            && before + length == start
            && !self.is_slab_start(start)
        {
            self.carve(before, length);
            start = before;
            count += length;
        }
        if let Some(&length) = self.free.get(&(start + count))
            && !self.is_slab_start(start + count)
        {
            self.carve(start + count, length);
            count += length;
        }
        self.insert_free(start, count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::soft::{SoftDevice, SoftOptions};

    /// How far a page is from the frame it gets.
    fn distance(pool: &mut FramePool, device: &SoftDevice, vma: PageRange, page: u32) -> u64 {
        let frame = pool.place(device, vma, PageIndex(page)).unwrap().expect("there is room");
        pool.address(frame).0.wrapping_sub(u64::from(page) * PAGE_SIZE as u64)
    }

    fn vma(start: u32, pages: u32) -> PageRange {
        PageRange::of_len(PageIndex(start), pages)
    }

    #[test]
    fn vmas_keep_their_distances_while_frames_are_plentiful() {
        let device = SoftDevice::new(&SoftOptions::default()).unwrap();
        let mut pool = FramePool::new(1 << 18);
        let first = distance(&mut pool, &device, vma(5000, 300), 5010);
        assert_eq!(distance(&mut pool, &device, vma(20_000, 4000), 23_999), first);
        assert_eq!(distance(&mut pool, &device, vma(4990, 10), 4990), first);
        assert_eq!(distance(&mut pool, &device, vma(5000, 300), 5299), first);
        // Too far away: another slab, and there the same again.
        let far = distance(&mut pool, &device, vma(200_000, 100), 200_000);
        assert_ne!(far, first);
        assert_eq!(distance(&mut pool, &device, vma(200_100, 100), 200_199), far);
        assert_eq!(pool.usage().used, 6);
    }

    #[test]
    fn a_place_that_is_taken_is_not_given_twice() {
        let device = SoftDevice::new(&SoftOptions::default()).unwrap();
        let mut pool = FramePool::new(1 << 16);
        let mut given = BTreeSet::new();
        // Of the first VMA, the frames stay when its reservation ends.
        for (start, pages) in [(100, 200), (100, 200), (150, 50), (90, 300), (0, 3000), (8000, 200)] {
            for page in start..start + pages {
                let frame = pool.place(&device, vma(start, pages), PageIndex(page)).unwrap().expect("there is room");
                assert!(given.insert(frame), "{frame:?} for page {page}");
            }
            pool.forget(vma(start, pages));
        }
        assert_eq!(pool.usage().used as usize, given.len());
        for frame in given {
            pool.release(frame);
        }
        assert_eq!((pool.usage().used, pool.free_frames), (0, pool.allocated));
    }

    #[test]
    fn parts_of_large_vmas_get_frames_that_follow_each_other_also_when_room_is_short() {
        let device = SoftDevice::new(&SoftOptions::default()).unwrap();
        let mut pool = FramePool::new(100);
        // Too large for reservations.
        let vmas = [vma(1000, 80), vma(3000, 80)];
        let place = |pool: &mut FramePool, which: usize, first: u32| {
            (first..first + 25)
                .map(|page| pool.place(&device, vmas[which], PageIndex(page)).unwrap().expect("there is room"))
                .collect::<Vec<_>>()
        };
        let follow = |frames: &[FrameIndex]| frames.windows(2).all(|pair| pair[1] == pair[0].plus(1));
        let mut held = [place(&mut pool, 0, 1000), place(&mut pool, 1, 3000), place(&mut pool, 0, 1025)];
        assert!(held.iter().all(|frames| follow(frames)));
        for turn in 0..20u32 {
            let which = (turn % 3) as usize;
            for frame in std::mem::take(&mut held[which]) {
                pool.release(frame);
            }
            held[which] = place(&mut pool, which % 2, [1050, 3050][which % 2]);
            assert!(follow(&held[which]), "turn {turn}: {:?}", held[which]);
        }
    }

    #[test]
    fn few_frames_are_taken_from_the_device_as_they_are_needed() {
        let device = SoftDevice::new(&SoftOptions::default()).unwrap();
        let mut pool = FramePool::new(2 * SLAB_FRAMES);
        distance(&mut pool, &device, vma(100, 50), 100);
        assert_eq!(pool.usage().allocated, SLAB_FRAMES);
    }
}
