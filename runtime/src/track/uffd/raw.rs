//! A typed layer over the userfaultfd system calls: what this runtime needs and nothing more.
//! Semantics: `Documentation/admin-guide/mm/userfaultfd.rst`, ioctl_userfaultfd(2).
//!
//! A userfaultfd acts on the memory of the process that made it, by address. The calls here are
//! safe to *make*, whatever the address: they reach only ranges that were registered through
//! [`Uffd::register`], which is therefore the one `unsafe` door.

use crate::addr::{Access, PAGE_SIZE};
use crate::scarce::ask;
use linux_raw_sys::general::{
    self as sys, uffdio_api, uffdio_continue, uffdio_range, uffdio_register, uffdio_writeprotect, uffdio_zeropage,
};
use rustix::io::Errno;
use rustix::ioctl::{Opcode, Updater, ioctl, opcode};
use rustix::mm::UserfaultfdFlags;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};

// Modes that linux-raw-sys 0.12 lacks; from include/uapi/linux/userfaultfd.h.
const WRITEPROTECT_MODE_WP: u64 = 1 << 0;
const WRITEPROTECT_MODE_DONTWAKE: u64 = 1 << 1;
const ZEROPAGE_MODE_DONTWAKE: u64 = 1 << 0;
const CONTINUE_MODE_DONTWAKE: u64 = 1 << 0;
const CONTINUE_MODE_WP: u64 = 1 << 1;
/// `USERFAULTFD_IOC_NEW`, `_IO(0xAA, 0)`, on `/dev/userfaultfd`.
const USERFAULTFD_IOC_NEW: libc::Ioctl = 0xAA00;

const fn update<T>(number: u32) -> Opcode {
    opcode::read_write::<T>(sys::UFFDIO as u8, number as u8)
}

const fn pass<T>(number: u32) -> Opcode {
    opcode::read::<T>(sys::UFFDIO as u8, number as u8)
}

/// A span of bytes of the address space; start and length are multiples of the page size.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    pub(super) start: usize,
    pub(super) bytes: usize,
}

impl From<Span> for uffdio_range {
    fn from(span: Span) -> Self {
        Self { start: span.start as u64, len: span.bytes as u64 }
    }
}

/// Features by name, for negotiation and for messages.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Features(u64);

impl Features {
    const NAMES: [(u64, &'static str); 7] = [
        (sys::UFFD_FEATURE_PAGEFAULT_FLAG_WP as u64, "write protection"),
        (sys::UFFD_FEATURE_MISSING_SHMEM as u64, "missing faults on shared memory (Linux 4.11)"),
        (sys::UFFD_FEATURE_MINOR_SHMEM as u64, "minor faults on shared memory (Linux 5.14)"),
        (sys::UFFD_FEATURE_WP_HUGETLBFS_SHMEM as u64, "write protection of shared memory (Linux 5.19)"),
        (sys::UFFD_FEATURE_THREAD_ID as u64, "thread ids"),
        (sys::UFFD_FEATURE_EVENT_UNMAP as u64, "unmap events"),
        (sys::UFFD_FEATURE_EVENT_REMAP as u64, "remap events"),
    ];
    /// Nothing: asks for what there is.
    pub(super) const NONE: Self = Self(0);
    /// Says who faulted; nice to have.
    pub(super) const THREAD_ID: Self = Self(sys::UFFD_FEATURE_THREAD_ID as u64);
    /// Says what the program does to its mappings; the safety net of `foreign.rs`.
    pub(super) const EVENTS: Self = Self((sys::UFFD_FEATURE_EVENT_UNMAP | sys::UFFD_FEATURE_EVENT_REMAP) as u64);
    /// What the page states cannot do without.
    pub(super) const REQUIRED: Self = Self(
        (sys::UFFD_FEATURE_PAGEFAULT_FLAG_WP
            | sys::UFFD_FEATURE_MISSING_SHMEM
            | sys::UFFD_FEATURE_MINOR_SHMEM
            | sys::UFFD_FEATURE_WP_HUGETLBFS_SHMEM) as u64,
    );

    pub(super) fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    pub(super) fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub(super) fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    pub(super) fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl fmt::Display for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for (bit, name) in Self::NAMES {
            if self.0 & bit != 0 {
                write!(f, "{separator}{name}")?;
                separator = ", ";
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Features({self})")
    }
}

/// How the descriptor was obtained, and so what it may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Privilege {
    /// The system call, with privilege: the kernel's own accesses fault properly.
    Full,
    /// `/dev/userfaultfd`: the same, granted by the device file's permissions.
    Device,
    /// User-mode faults only: a system call on a page that is not there returns EFAULT.
    UserModeOnly,
}

/// What the kernel reports (`struct uffd_msg`); the words mean something else for each event.
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub(super) struct Message {
    event: u8,
    reserved: [u8; 7],
    words: [u64; 3],
}

const _: () = assert!(size_of::<Message>() == size_of::<sys::uffd_msg>());

/// A [`Message`], understood.
#[derive(Clone, Copy, Debug)]
pub(super) enum Report {
    /// A thread waits for a page.
    Fault(Fault),
    /// The span was unmapped: whatever is there now is not ours.
    Unmapped(Span),
    /// The span was moved: its first byte is now at `to`.
    Moved { from: Span, to: usize },
    /// Something that was not asked for.
    Other,
}

/// A page fault.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fault {
    /// The address touched, rounded down to its page.
    pub(super) address: usize,
    /// What the access wanted.
    pub(super) access: Access,
    /// The toucher's kernel thread id; 0 without [`Features::THREAD_ID`].
    pub(super) thread: u32,
}

impl Message {
    /// What it says.
    pub(super) fn report(&self) -> Report {
        let [a, b, c] = self.words;
        match u32::from(self.event) {
            sys::UFFD_EVENT_PAGEFAULT => {
                let write = u64::from(sys::UFFD_PAGEFAULT_FLAG_WRITE | sys::UFFD_PAGEFAULT_FLAG_WP);
                let access = if a & write != 0 { Access::Write } else { Access::Read };
                // The thread's id is the lower half of the third word: x86-64 is little-endian.
                Report::Fault(Fault { address: b as usize & !(PAGE_SIZE - 1), access, thread: c as u32 })
            }
            sys::UFFD_EVENT_UNMAP => Report::Unmapped(Span { start: a as usize, bytes: (b - a) as usize }),
            sys::UFFD_EVENT_REMAP => {
                Report::Moved { from: Span { start: a as usize, bytes: c as usize }, to: b as usize }
            }
            _ => Report::Other,
        }
    }
}

/// An open userfaultfd, close-on-exec and non-blocking.
pub(super) struct Uffd {
    fd: OwnedFd,
}

impl Uffd {
    /// Opens a descriptor with the most privilege that can be had.
    pub(super) fn open() -> Result<(Self, Privilege), Errno> {
        let flags = UserfaultfdFlags::CLOEXEC | UserfaultfdFlags::NONBLOCK;
        // SAFETY: creating the descriptor affects no memory; what it does later is argued at each call.
        let full = unsafe { rustix::mm::userfaultfd(flags) };
        let refused = match full {
            Ok(fd) => return Ok((Self { fd }, Privilege::Full)),
            Err(error) => error,
        };
        if let Some(fd) = Self::open_device(flags) {
            return Ok((Self { fd }, Privilege::Device));
        }
        // SAFETY: as above. Kernels before 5.11 do not know the flag and say EINVAL; then the first error counts.
        unsafe {
            rustix::mm::userfaultfd(flags | UserfaultfdFlags::from_bits_retain(sys::UFFD_USER_MODE_ONLY))
                .map(|fd| (Self { fd }, Privilege::UserModeOnly))
                .map_err(|_| refused)
        }
    }

    fn open_device(flags: UserfaultfdFlags) -> Option<OwnedFd> {
        use std::os::fd::AsRawFd;
        let device = std::fs::File::open("/dev/userfaultfd").ok()?;
        // SAFETY: this ioctl takes its flags by value and returns a new descriptor, which nobody else owns.
        unsafe {
            let fd = libc::ioctl(device.as_raw_fd(), USERFAULTFD_IOC_NEW, flags.bits());
            (fd >= 0).then(|| OwnedFd::from_raw_fd(fd))
        }
    }

    /// The handshake. Returns what the kernel offers. Possible once per descriptor.
    pub(super) fn api(&self, wanted: Features) -> Result<Features, Errno> {
        let mut api = uffdio_api { api: sys::UFFD_API.into(), features: wanted.0, ioctls: 0 };
        // SAFETY: the opcode's operand is `uffdio_api`.
        unsafe { ioctl(&self.fd, Updater::<{ update::<uffdio_api>(sys::_UFFDIO_API) }, _>::new(&mut api)) }?;
        Ok(Features(api.features))
    }

    /// Registers `span` for missing, minor and write-protect faults. Registering again changes nothing.
    ///
    /// # Safety
    /// From here on the other calls change which accesses to `span` succeed, and `zeropage` fills
    /// holes in it: `span` must be a mapping of a shared memfd that the caller manages and that no
    /// reference assumes to stay accessible without a handler.
    pub(super) unsafe fn register(&self, span: Span) -> Result<(), Errno> {
        let mode = sys::UFFDIO_REGISTER_MODE_MISSING | sys::UFFDIO_REGISTER_MODE_MINOR | sys::UFFDIO_REGISTER_MODE_WP;
        let mut register = uffdio_register { range: span.into(), mode: mode.into(), ioctls: 0 };
        ask("UFFDIO_REGISTER", Errno::NOMEM)?;
        // SAFETY: the opcode's operand is `uffdio_register`; the range is the caller's to give.
        unsafe {
            ioctl(&self.fd, Updater::<{ update::<uffdio_register>(sys::_UFFDIO_REGISTER) }, _>::new(&mut register))
        }
    }

    /// Ends the registration of `span`: protection is lifted and whoever waits there is woken.
    pub(super) fn unregister(&self, span: Span) -> Result<(), Errno> {
        let mut range = uffdio_range::from(span);
        // SAFETY: the opcode's operand is `uffdio_range`. Accesses to the range only become freer.
        unsafe { ioctl(&self.fd, Updater::<{ pass::<uffdio_range>(sys::_UFFDIO_UNREGISTER) }, _>::new(&mut range)) }
    }

    /// Wakes every thread that waits for a fault in `span`; each retries its access.
    pub(super) fn wake(&self, span: Span) -> Result<(), Errno> {
        let mut range = uffdio_range::from(span);
        // SAFETY: the opcode's operand is `uffdio_range`. Waking changes no memory.
        unsafe { ioctl(&self.fd, Updater::<{ pass::<uffdio_range>(sys::_UFFDIO_WAKE) }, _>::new(&mut range)) }
    }

    /// Fills holes from the start of `span` on with zeros and maps them read-write, waking nobody.
    /// Returns the bytes done, which are fewer than asked when a page is in the way.
    ///
    /// # Errors
    /// `EXIST` when the first page has contents, `AGAIN` to try again.
    pub(super) fn zeropage(&self, span: Span) -> Result<usize, Errno> {
        let mut zeropage = uffdio_zeropage { range: span.into(), mode: ZEROPAGE_MODE_DONTWAKE, zeropage: 0 };
        ask("UFFDIO_ZEROPAGE", Errno::NOMEM)?;
        ask("UFFDIO_ZEROPAGE beside an event", Errno::AGAIN)?;
        // SAFETY: the opcode's operand is `uffdio_zeropage`. Only pages without contents in
        // registered memory are filled, with what a hole reads as anyway.
        let done = unsafe {
            ioctl(&self.fd, Updater::<{ update::<uffdio_zeropage>(sys::_UFFDIO_ZEROPAGE) }, _>::new(&mut zeropage))
        };
        partial(done, zeropage.zeropage)
    }

    /// Maps the contents that pages from the start of `span` on have, read-only if `protect`,
    /// waking nobody. Returns the bytes done, which are fewer than asked when a page is in the way.
    ///
    /// # Errors
    /// `EXIST` when the first page is mapped, `FAULT` when it has no contents, `AGAIN` to try again.
    pub(super) fn continue_(&self, span: Span, protect: bool) -> Result<usize, Errno> {
        let mode = CONTINUE_MODE_DONTWAKE | if protect { CONTINUE_MODE_WP } else { 0 };
        let mut continue_ = uffdio_continue { range: span.into(), mode, mapped: 0 };
        ask("UFFDIO_CONTINUE", Errno::NOMEM)?;
        ask("UFFDIO_CONTINUE beside an event", Errno::AGAIN)?;
        // SAFETY: the opcode's operand is `uffdio_continue`. Registered memory shows the contents
        // that its file has, nothing is overwritten.
        let done = unsafe {
            ioctl(&self.fd, Updater::<{ update::<uffdio_continue>(sys::_UFFDIO_CONTINUE) }, _>::new(&mut continue_))
        };
        partial(done, continue_.mapped)
    }

    /// Sets or lifts the write protection of all of `span`, waking nobody.
    pub(super) fn write_protect(&self, span: Span, protect: bool) -> Result<(), Errno> {
        // DONTWAKE is refused together with WP, which never wakes.
        let mode = if protect { WRITEPROTECT_MODE_WP } else { WRITEPROTECT_MODE_DONTWAKE };
        let mut writeprotect = uffdio_writeprotect { range: span.into(), mode };
        ask("UFFDIO_WRITEPROTECT", Errno::NOMEM)?;
        ask("UFFDIO_WRITEPROTECT beside an event", Errno::AGAIN)?;
        // SAFETY: the opcode's operand is `uffdio_writeprotect`. Only registered memory is affected.
        unsafe {
            ioctl(
                &self.fd,
                Updater::<{ update::<uffdio_writeprotect>(sys::_UFFDIO_WRITEPROTECT) }, _>::new(&mut writeprotect),
            )
        }
    }

    /// Reads what waits to be read, as much as fits; `AGAIN` if there is nothing. Faults come before events.
    pub(super) fn read<'a>(&self, messages: &'a mut [Message]) -> Result<&'a [Message], Errno> {
        let bytes = rustix::io::read(&self.fd, bytemuck::cast_slice_mut::<_, u8>(messages))?;
        Ok(&messages[..bytes / size_of::<Message>()])
    }
}

impl AsFd for Uffd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The kernel reports partial progress as EAGAIN with a positive count of bytes, and on an error
/// the count is a negative error number, or untouched on older kernels.
fn partial(done: Result<(), Errno>, bytes: i64) -> Result<usize, Errno> {
    match (done, usize::try_from(bytes)) {
        (_, Ok(bytes)) if bytes > 0 => Ok(bytes),
        (Err(error), _) => Err(error),
        (Ok(()), _) => Err(Errno::AGAIN),
    }
}
