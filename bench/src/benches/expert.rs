//! The peer of CPU faults: userfaultfd as somebody would write it who wants nothing but the fault. One thread polls, reads, and answers
//! with a single call that also wakes; nothing is looked up, nobody else is told.

use anyhow::{Context, Result, ensure};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::io::Errno;
use rustix::ioctl::{Opcode, Updater, ioctl, opcode};
use rustix::mm::{Advice, MapFlags, ProtFlags, UserfaultfdFlags, madvise, mmap, munmap, userfaultfd};
use std::os::fd::OwnedFd;
use std::ptr::{NonNull, null_mut};
use std::sync::Arc;
use std::thread::JoinHandle;
use vksvm::addr::Access;

use crate::harness::seconds;

const PAGE: usize = 4096;

// `include/uapi/linux/userfaultfd.h`.
const API: u64 = 0xaa;
const MINOR_SHMEM: u64 = 1 << 10;
const WP_HUGETLBFS_SHMEM: u64 = 1 << 12;
const REGISTER_MINOR_AND_WP: u64 = 1 << 1 | 1 << 2;
const PROTECT: u64 = 1;
const FAULT: u64 = 0x12;
const FAULT_IS_WP: u64 = 1 << 1;

/// `uffdio_api`, `uffdio_register`, `uffdio_continue`: where a call's arguments are three words or more, in their order.
type Words<const N: usize> = [u64; N];
const CALL_API: Opcode = opcode::read_write::<Words<3>>(0xaa, 0x3f);
const CALL_REGISTER: Opcode = opcode::read_write::<Words<4>>(0xaa, 0x00);
const CALL_WRITEPROTECT: Opcode = opcode::read_write::<Words<3>>(0xaa, 0x06);
const CALL_CONTINUE: Opcode = opcode::read_write::<Words<4>>(0xaa, 0x07);

/// Memory whose faults one thread answers.
pub(super) struct Expert {
    base: NonNull<u8>,
    bytes: usize,
    uffd: Arc<OwnedFd>,
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Expert {
    /// `pages` pages with contents.
    pub(super) fn new(pages: usize) -> Result<Self> {
        let bytes = pages * PAGE;
        let memory = memfd_create("vksvm-bench", MemfdFlags::CLOEXEC)?;
        ftruncate(&memory, bytes as u64)?;
        // SAFETY: a new mapping of its own, unmapped in `drop`.
        let base =
            unsafe { mmap(null_mut(), bytes, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, &memory, 0)? };
        let base = NonNull::new(base.cast::<u8>()).context("mapped at zero")?;
        // SAFETY: the mapping was just made.
        unsafe { base.write_bytes(1, bytes) };
        // SAFETY: the descriptor affects no memory until something is registered.
        let uffd = unsafe { userfaultfd(UserfaultfdFlags::CLOEXEC | UserfaultfdFlags::NONBLOCK) }?;
        let uffd = Arc::new(uffd);
        call::<CALL_API, 3>(&uffd, &mut [API, MINOR_SHMEM | WP_HUGETLBFS_SHMEM, 0])?;
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
        let mut expert = Self { base, bytes, uffd, stop, thread: None };
        call::<CALL_REGISTER, 4>(&expert.uffd, &mut [expert.at(0), bytes as u64, REGISTER_MINOR_AND_WP, 0])?;
        let (uffd, stop) = (expert.uffd.clone(), expert.stop.clone());
        expert.thread = Some(std::thread::spawn(move || answer(&uffd, &stop)));
        Ok(expert)
    }

    fn at(&self, page: usize) -> u64 {
        (self.base.as_ptr().expose_provenance() + page * PAGE) as u64
    }

    /// Seconds for each of the faults that touching the pages of `order` raises.
    pub(super) fn faults(&mut self, order: &[usize], access: Access) -> Result<f64> {
        let bytes = self.bytes;
        match access {
            Access::Write => call::<CALL_WRITEPROTECT, 3>(&self.uffd, &mut [self.at(0), bytes as u64, PROTECT])?,
            // SAFETY: a shared mapping: its contents stay in the file.
            Access::Read => unsafe { madvise(self.base.as_ptr().cast(), bytes, Advice::LinuxDontNeed) }?,
        }
        let (time, sum) = seconds(|| {
            order.iter().fold(0u64, |sum, &page| {
                // SAFETY: a page of the mapping; volatile, so that it happens.
                unsafe {
                    let word = self.base.add(page * PAGE);
                    match access {
                        Access::Write => word.write_volatile(2),
                        Access::Read => return sum + u64::from(word.read_volatile()),
                    }
                }
                sum
            })
        });
        ensure!(access == Access::Write || sum >= order.len() as u64, "contents are lost");
        Ok(time / order.len() as f64)
    }
}

impl Drop for Expert {
    fn drop(&mut self) {
        let _ = rustix::io::write(&self.stop, &1u64.to_ne_bytes());
        let _ = self.thread.take().map(JoinHandle::join);
        // SAFETY: made in `new`; nobody touches it any more.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}

fn call<const CALL: Opcode, const N: usize>(uffd: &OwnedFd, words: &mut Words<N>) -> Result<(), Errno> {
    // SAFETY: each call's operand consists of that many words; the ranges named are the mapping's, whose contents none of them changes.
    unsafe { ioctl(uffd, Updater::<CALL, _>::new(words)) }
}

/// Answers faults until told to stop.
fn answer(uffd: &OwnedFd, stop: &OwnedFd) {
    // `struct uffd_msg`: the event, flags, the address, the thread.
    let mut messages = [[0u64; 4]; 16];
    loop {
        let mut ready = [PollFd::new(uffd, PollFlags::IN), PollFd::new(stop, PollFlags::IN)];
        if poll(&mut ready, None).is_err() || !ready[1].revents().is_empty() {
            return;
        }
        let Ok(read) = rustix::io::read(uffd, bytemuck::cast_slice_mut::<_, u8>(&mut messages)) else { continue };
        for [event, flags, address, _] in &messages[..read / size_of::<[u64; 4]>()] {
            let page = address & !(PAGE as u64 - 1);
            let answered = match (event & 0xff, flags & FAULT_IS_WP) {
                (FAULT, 0) => call::<CALL_CONTINUE, 4>(uffd, &mut [page, PAGE as u64, 0, 0]),
                (FAULT, _) => call::<CALL_WRITEPROTECT, 3>(uffd, &mut [page, PAGE as u64, 0]),
                _ => continue,
            };
            // Without an answer the thread would wait for ever; the range is registered and present.
            answered.expect("a fault on registered memory can be answered");
        }
    }
}
