//! A device that does what it is told, page by page: the commands of Linux's `lib/test_hmm.c` (`dmirror`), for any [`Device`].
//!
//! No kernel runs here. A command faults its pages in through the same service as kernels' misses, and then uses what
//! the page table says. So it shows what a mirror does, one step at a time: to tests, to who learns, and to who ports the runtime to another
//! device, where the commands work as soon as memory and copies do (`examples/port_a_device.rs`).
//!
//! | command | Linux | what it does |
//! |---|---|---|
//! | [`read`](Commands::read) | `HMM_DMIRROR_READ` | the device loads |
//! | [`write`](Commands::write) | `HMM_DMIRROR_WRITE` | the device stores; the page is its own afterwards |
//! | [`migrate_to_device`](Commands::migrate_to_device) | `HMM_DMIRROR_MIGRATE_TO_DEV` | the page is the device's, unchanged |
//! | [`migrate_back`](Commands::migrate_back) | `HMM_DMIRROR_MIGRATE_TO_SYS` | the page is at home, and on no device |
//! | [`snapshot`](Commands::snapshot) | `HMM_DMIRROR_SNAPSHOT` | what is where, without faulting |
//! | [`make_exclusive`](Commands::make_exclusive) | `HMM_DMIRROR_EXCLUSIVE` | nobody else has the page until it is revoked |
//! | [`check_exclusive`](Commands::check_exclusive) | `HMM_DMIRROR_CHECK_EXCLUSIVE` | which pages still are |
//! | [`release`](Commands::release) | `HMM_DMIRROR_RELEASE` | the device gives everything back |
//!
//! ```
//! use vksvm::Svm;
//! use vksvm::addr::VirtAddr;
//! use vksvm::device::Commands;
//! use vksvm::device::soft::SoftOptions;
//!
//! let svm = Svm::builder().soft_device(SoftOptions::default()).heap_bytes(64 << 20).build()?;
//! let mut text = svm.heap().vec_from_slice(b"what the CPU wrote")?;
//! let device = Commands::soft(&svm, SoftOptions::default(), 64)?;
//! let at = VirtAddr::of(text.as_ptr());
//! let mut seen = [0; 4];
//! device.read(at, &mut seen)?;
//! assert_eq!(&seen, b"what");
//! device.write(at, b"This")?;
//! assert_eq!(&text[..8], b"This the");
//! # text[0] = 0;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Locks: the service's mutex first, then as everywhere. Data goes through pages of this file's own: while the gate is held nothing
//! touches what the caller passed, which may lie in the heap.

use super::soft::{SoftDevice, SoftOptions};
use super::{Device, DeviceError, PageCopy};
use crate::addr::{Access, PAGE_SIZE, PageIndex, PageRange, VirtAddr};
use crate::device::layout::pte;
use crate::hmm::{Event, HmmError, InvalidateInfo, Mirror, MirrorOps, WouldBlock};
use crate::mm::ops::{OpError, Span};
use crate::mm::pages::{DeviceNumber, PageState};
use crate::mm::space::AddressSpace;
use crate::mm::vma::Permission;
use crate::observe::Counters;
use crate::policy::Habit;
use crate::service::{DeviceMirror, Found, PageFault, Service, ServiceError};
use crate::svm::Svm;
use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Pages that a read or write uses at a time.
const CHUNK: usize = 16;
/// Rounds in which others took pages away again before CPU faults are held off.
const PATIENCE: u32 = 4;

/// A command failed. What was done before the page named stays done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CommandError {
    /// The span is not memory of this heap.
    #[error(transparent)]
    Span(#[from] OpError),
    /// A page that may not be used so. Linux: `-EFAULT` or `-EPERM`.
    #[error("{access} access to the page at {at} refused: {reason}")]
    Refused {
        /// Where.
        at: VirtAddr,
        /// What was tried.
        access: Access,
        /// Why not.
        reason: &'static str,
    },
    /// Linux: `-ENOMEM`.
    #[error("{pages} pages find no frame; give the device more of them, or name fewer pages")]
    NoFrames {
        /// Pages that are needed at once and found none.
        pages: usize,
    },
    /// The fault service failed.
    #[error(transparent)]
    Service(#[from] ServiceError),
    /// The device failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The mirror could not be registered.
    #[error(transparent)]
    Registration(#[from] HmmError),
    /// 256 devices use this heap.
    #[error("256 devices use this heap: close one of them")]
    TooManyDevices,
}

/// Where a page is, as one device sees it. Linux: the `HMM_DMIRROR_PROT_…` of a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// Nothing is mapped there (`ERROR`).
    Unmapped,
    /// Nobody ever wrote it, and the device has not asked for it (`NONE`).
    Nothing,
    /// The device reads it as zeros (`ZERO`).
    Zero,
    /// Home is the truth; whether the CPU may store without asking (`READ`, `WRITE`). The device has no copy.
    Home {
        /// Whether the CPU may write.
        write: bool,
    },
    /// The device has a copy (`DEV_PRIVATE_LOCAL`).
    Here {
        /// Whether the device may store: then nobody else has the page.
        write: bool,
        /// Whether it has.
        dirty: bool,
    },
    /// Another device owns it (`DEV_PRIVATE_REMOTE`).
    Elsewhere,
}

/// What pages are mapped for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Use {
    /// To be loaded from or stored to now.
    Access,
    /// To be the device's.
    Own,
    /// To be the device's alone.
    Exclusive,
}

/// The mirror, with the pages that are exclusive.
struct CommandMirror {
    mirror: Arc<DeviceMirror>,
    exclusive: Mutex<BTreeSet<PageIndex>>,
}

impl MirrorOps for CommandMirror {
    fn invalidate(&self, info: &InvalidateInfo) -> Result<(), WouldBlock> {
        self.mirror.invalidate(info)?;
        // After: pages are made exclusive only while they are mapped, which these are no more until this invalidation ends.
        self.exclusive.lock().retain(|&page| !info.pages.contains(page));
        Ok(())
    }

    fn release(&self) {
        self.mirror.release();
        self.exclusive.lock().clear();
    }
}

/// A device that obeys commands. See the module's page.
///
/// Commands may be given from several threads; they are carried out one after the other.
pub struct Commands {
    space: Arc<AddressSpace>,
    ops: Arc<CommandMirror>,
    number: DeviceNumber,
    // Taken apart in `drop`.
    service: Option<Mutex<Service>>,
    registration: Option<Arc<Mirror>>,
}

impl Commands {
    /// Gives commands to `device`, as one more device on the heap of `svm`, with at most `frames` frames. No kernel must run on it
    /// meanwhile.
    ///
    /// # Errors
    /// If the device has no memory, or too many devices use the heap.
    pub fn open(svm: &Svm, device: Arc<dyn Device>, frames: u32) -> Result<Self, CommandError> {
        let space = svm.address_space().clone();
        let number = space.new_device().ok_or(CommandError::TooManyDevices)?;
        let open = || -> Result<_, CommandError> {
            let name = format!("{} (commands)", device.info().name);
            let counters = Arc::new(Counters::default());
            let mirror = DeviceMirror::new(device, space.home().clone(), counters, number, frames)?;
            let ops = Arc::new(CommandMirror { mirror: Arc::new(mirror), exclusive: Mutex::default() });
            let registration = Mirror::register(space.notifiers(), ops.mirror.owner(), name, ops.clone())?;
            Ok((ops, Arc::new(registration)))
        };
        let (ops, registration) = open().inspect_err(|_| space.retire_device(number))?;
        let service = Service::new(space.clone(), ops.mirror.clone(), registration.clone(), false, Habit::default());
        Ok(Self { space, ops, number, service: Some(Mutex::new(service)), registration: Some(registration) })
    }

    /// Gives commands to a new reference device.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn soft(svm: &Svm, options: SoftOptions, frames: u32) -> Result<Self, CommandError> {
        Self::open(svm, Arc::new(SoftDevice::new(&options)?), frames)
    }

    /// The device loads `into.len()` bytes from `at` on.
    ///
    /// # Errors
    /// If a page is not mapped, or the device fails or has not enough frames.
    pub fn read(&self, at: VirtAddr, into: &mut [u8]) -> Result<(), CommandError> {
        self.each_chunk(at, into.len(), |pages, first, bytes| {
            let mut buffer = Buffer::new(pages.len());
            self.with_pages(pages, Access::Read, Use::Access, |page, found| {
                buffer.load(self.device(), (page.0 - pages.start.0) as usize, found)
            })?;
            let length = bytes.len();
            into[bytes].copy_from_slice(&buffer.bytes()[first..][..length]);
            Ok(())
        })
    }

    /// The device stores `from` from `at` on.
    ///
    /// # Errors
    /// If a page is not mapped or may not be written, or the device fails or has not enough frames.
    pub fn write(&self, at: VirtAddr, from: &[u8]) -> Result<(), CommandError> {
        self.each_chunk(at, from.len(), |pages, first, bytes| {
            // Copied first: `from` may lie in the heap, and is not to be touched while pages are used.
            let data = from[bytes].to_vec();
            let mut buffer = Buffer::new(pages.len());
            self.with_pages(pages, Access::Write, Use::Access, |page, found| {
                let index = (page.0 - pages.start.0) as usize;
                let here = index * PAGE_SIZE;
                let part = first.max(here)..(first + data.len()).min(here + PAGE_SIZE);
                let data = &data[part.start - first..part.end - first];
                if let Found::Home(home) = found {
                    // The CPU may be writing the rest of the page.
                    // SAFETY: the alias is always writable, and the part lies in the page.
                    unsafe { home.add(part.start - here).copy_from_nonoverlapping(data.as_ptr(), data.len()) };
                    return Ok(());
                }
                buffer.load(self.device(), index, found)?;
                buffer.bytes_mut()[part].copy_from_slice(data);
                buffer.store(self.device(), index, found)
            })
        })
    }

    /// Makes the pages of `span` the device's: nobody else has them, their contents are the same.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn migrate_to_device(&self, span: Span) -> Result<(), CommandError> {
        self.own(span, Use::Own)
    }

    /// Brings the pages of `span` home, from whichever device has them.
    ///
    /// # Errors
    /// If the span is not mapped throughout.
    pub fn migrate_back(&self, span: Span) -> Result<(), CommandError> {
        Ok(self.space.migrate_home(span)?)
    }

    /// Where each page of `span` is, without moving any.
    ///
    /// # Errors
    /// If the span is not whole pages of the heap.
    pub fn snapshot(&self, span: Span) -> Result<Vec<Seen>, CommandError> {
        let pages = self.space.pages_of(span)?;
        self.cover()?;
        let vmas = self.space.vmas().read();
        let home = self.space.home();
        let entries = self.mirror().entries(pages);
        let seen = pages.iter().zip(entries).map(|(page, entry)| {
            let Some(vma) = vmas.find(page) else { return Seen::Unmapped };
            let state = home.pages.state(page);
            let flag = |flag| entry & flag != 0;
            match state {
                _ if flag(pte::VALID) && flag(pte::ZERO) => Seen::Zero,
                _ if flag(pte::VALID) && !flag(pte::HOME) => {
                    Seen::Here { write: flag(pte::WRITABLE), dirty: flag(pte::DIRTY) }
                }
                PageState::Device(owner) if owner != self.number => Seen::Elsewhere,
                _ if home.views.has_data(PageRange::single(page)).next().is_none() => Seen::Nothing,
                PageState::Cpu | PageState::Remote => Seen::Home { write: vma.permission() == Permission::ReadWrite },
                _ => Seen::Home { write: false },
            }
        });
        Ok(seen.collect())
    }

    /// Makes the pages of `span` the device's alone, until somebody else touches or changes them, which revokes it page by page. Everybody
    /// else is told [`Event::Exclusive`]. Linux: `make_device_exclusive`, for atomic operations on devices that cannot take part in the
    /// CPU's; there the page stays at home, here it moves.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn make_exclusive(&self, span: Span) -> Result<(), CommandError> {
        self.own(span, Use::Exclusive)
    }

    /// Which pages of `span` are still exclusive.
    ///
    /// # Errors
    /// If the span is not whole pages of the heap.
    pub fn check_exclusive(&self, span: Span) -> Result<Vec<bool>, CommandError> {
        let pages = self.space.pages_of(span)?;
        self.cover()?;
        let entries = self.mirror().entries(pages);
        let exclusive = self.ops.exclusive.lock();
        // The device may have given a page up to make room for others. One that is being cleaned is dirty, and soon writable again.
        let owned = |entry: u64| entry & pte::VALID != 0 && entry & (pte::WRITABLE | pte::DIRTY) != 0;
        Ok(pages.iter().zip(entries).map(|(page, entry)| exclusive.contains(&page) && owned(entry)).collect())
    }

    /// The device gives up everything; what it wrote comes home.
    pub fn release(&self) {
        self.ops.exclusive.lock().clear();
        self.mirror().bring_all_home();
    }

    fn mirror(&self) -> &DeviceMirror {
        &self.ops.mirror
    }

    fn device(&self) -> &dyn Device {
        self.mirror().device().as_ref()
    }

    /// Has the page table cover all of the heap that is in use.
    fn cover(&self) -> Result<(), CommandError> {
        self.mirror().table(&self.mirror().close_gate())?;
        Ok(())
    }

    /// Calls `work` for one piece after the other: its pages, where its bytes begin in them, and which they are of the whole.
    fn each_chunk(
        &self,
        at: VirtAddr,
        bytes: usize,
        mut work: impl FnMut(PageRange, usize, std::ops::Range<usize>) -> Result<(), CommandError>,
    ) -> Result<(), CommandError> {
        let mut done = 0;
        while done < bytes {
            let start = VirtAddr(at.0.saturating_add(done as u64));
            let first = start.page_offset();
            let now = (bytes - done).min(CHUNK * PAGE_SIZE - first);
            let pages = (first + now).div_ceil(PAGE_SIZE);
            let span = Span { start: VirtAddr(start.0 - first as u64), bytes: (pages * PAGE_SIZE) as u64 };
            work(self.space.pages_of(span)?, first, done..done + now)?;
            done += now;
        }
        Ok(())
    }

    fn own(&self, span: Span, purpose: Use) -> Result<(), CommandError> {
        let pages = self.space.pages_of(span)?;
        self.with_pages(pages, Access::Write, purpose, |page, _| {
            if purpose == Use::Exclusive {
                self.ops.exclusive.lock().insert(page);
            }
            Ok(())
        })
    }

    /// Has `pages` mapped for `access`, all at once, and shows `each` where they are. Whoever takes one away meanwhile makes it start over.
    fn with_pages(
        &self,
        pages: PageRange,
        access: Access,
        purpose: Use,
        mut each: impl FnMut(PageIndex, Found) -> Result<(), DeviceError>,
    ) -> Result<(), CommandError> {
        self.cover()?;
        let Some(service) = &self.service else { return Err(CommandError::TooManyDevices) };
        let mut service = service.lock();
        let mut rounds = 0;
        loop {
            let _held = (rounds > PATIENCE).then(|| self.space.hold_cpu_faults());
            service.begin_launch();
            service.taking = if purpose == Use::Exclusive { Event::Exclusive } else { Event::Migrate };
            let mut faults: Vec<_> = pages.iter().map(|page| PageFault { page, access }).collect();
            let served = service.serve(&mut faults, false)?;
            if let Some(&page) = served.refused.iter().min() {
                return Err(self.refused(page, access));
            }
            if served.short > 0 {
                return Err(CommandError::NoFrames { pages: served.short });
            }
            let gate = self.mirror().close_gate();
            if self.mirror().visit(&gate, pages, access, &mut each)? {
                if purpose == Use::Access {
                    self.mirror().mark_used(&gate, pages, access);
                }
                return Ok(());
            }
            rounds += 1;
        }
    }

    fn refused(&self, page: PageIndex, access: Access) -> CommandError {
        let mapped = self.space.vmas().read().find(page).is_some();
        let reason = if mapped { "it is read-only" } else { "nothing is mapped there" };
        CommandError::Refused { at: self.space.home().views.addr_of(page), access, reason }
    }
}

impl Drop for Commands {
    fn drop(&mut self) {
        self.release();
        self.service = None;
        if let Some(registration) = self.registration.take().and_then(Arc::into_inner)
            && let Err(error) = registration.unregister()
        {
            tracing::error!("unregistering the mirror: {error}");
        }
        self.space.retire_device(self.number);
    }
}

/// Page-aligned memory that is in nobody's heap.
struct Buffer(Vec<Page>);

#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(4096))]
struct Page([u8; PAGE_SIZE]);

impl Buffer {
    fn new(pages: u32) -> Self {
        Self(vec![Page([0; PAGE_SIZE]); pages as usize])
    }

    fn bytes(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        bytemuck::cast_slice_mut(&mut self.0)
    }

    /// Copies a page from where the device finds it.
    fn load(&mut self, device: &dyn Device, index: usize, found: Found) -> Result<(), DeviceError> {
        let host: *mut u8 = (&raw mut self.0[index]).cast();
        match found {
            // SAFETY: the frame is the page's while gate and update lock are held, and no dispatch runs; the buffer is this function's.
            Found::Frame(frame) => unsafe { device.copy_out(&[PageCopy { host, device: frame, bytes: PAGE_SIZE }]) },
            Found::Zero => {
                self.0[index].0.fill(0);
                Ok(())
            }
            Found::Home(home) => {
                // SAFETY: the alias is always readable; whoever writes there at the same time races with the device, as said.
                unsafe { host.copy_from_nonoverlapping(home, PAGE_SIZE) };
                Ok(())
            }
        }
    }

    /// Copies a page to where the device finds it.
    fn store(&mut self, device: &dyn Device, index: usize, found: Found) -> Result<(), DeviceError> {
        let host: *mut u8 = (&raw mut self.0[index]).cast();
        match found {
            // SAFETY: as in `load`.
            Found::Frame(frame) => unsafe { device.copy_in(&[PageCopy { host, device: frame, bytes: PAGE_SIZE }]) },
            // The one is never mapped for writing, the other is written in place.
            Found::Zero | Found::Home(_) => Ok(()),
        }
    }
}
