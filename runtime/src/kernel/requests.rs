//! What the program asks a device's executor for beside launches: bringing pages, for prefetch and for advice.
//!
//! Requests come through the same channel as launches and are served in order, in steps, whenever the executor looks: between launches, between the
//! rounds of a replay, and between looks at the queue of a live launch. What is asked for while a launch runs takes free frames only; else
//! pages that nobody used lately make room.

use super::execute::{Executor, Job};
use crate::addr::{Access, PageRange};
use crate::advice::AdviceError;
use crate::hmm::PageWalk;
use crate::mm::vma::Permission;
use crate::observe::Counters;
use crate::service::{PageFault, ServiceError};
use crossbeam_channel::Sender;

/// Pages of a step between launches: 16 MiB.
const STEP: u32 = 4096;
/// Pages of a step while a launch runs, whose faults wait for it: 1 MiB.
const SHORT_STEP: u32 = 256;

/// What the executor is sent.
pub(crate) enum Work {
    Launch(Job),
    Bring(Request),
}

/// Pages to be brought to the device.
pub(crate) struct Request {
    /// What is left of them.
    pages: PageRange,
    /// Also where they would be mapped at home for being accessed by it.
    moving: bool,
    brought: u64,
    /// Brought pages are kept from making room for others; uses before the request are forgotten once.
    retried: bool,
    done: Sender<Result<u64, AdviceError>>,
}

impl Request {
    pub(crate) fn new(pages: PageRange, moving: bool, done: Sender<Result<u64, AdviceError>>) -> Self {
        Self { pages, moving, brought: 0, retried: false, done }
    }
}

/// What the executor is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Beside {
    /// Nothing.
    Nothing,
    /// A launch, but no dispatch is in flight.
    Launch,
    /// A live dispatch.
    Dispatch,
}

impl Executor {
    /// Sorts what was sent meanwhile. False if nobody can send any more.
    pub(super) fn sort_work(&mut self) -> bool {
        loop {
            match self.work.try_recv() {
                Ok(work) => self.sort(work),
                Err(error) => return error.is_empty(),
            }
        }
    }

    pub(super) fn sort(&mut self, work: Work) {
        match work {
            Work::Launch(job) => self.jobs.push_back(job),
            Work::Bring(request) => self.requests.push_back(request),
        }
    }

    /// A step of the first request. False if there is none that can be served now.
    pub(super) fn serve_request(&mut self, beside: Beside) -> bool {
        let Some(mut request) = self.requests.pop_front() else { return false };
        match self.step(&mut request, beside) {
            // Whoever does not wait for the result does not want it.
            Err(error) => drop(request.done.send(Err(error.into()))),
            Ok(Step::Done) => drop(request.done.send(Ok(request.brought))),
            Ok(Step::More) => {
                self.requests.push_front(request);
                return true;
            }
            Ok(Step::NotNow) => {
                self.requests.push_front(request);
                return false;
            }
        }
        if beside == Beside::Nothing {
            self.service.unprotect();
        }
        true
    }

    fn step(&mut self, request: &mut Request, beside: Beside) -> Result<Step, ServiceError> {
        let mirror = self.mirror.clone();
        let length = if beside == Beside::Nothing { STEP } else { SHORT_STEP };
        let part = PageRange::of_len(request.pages.start, request.pages.len().min(length));
        if part.is_empty() {
            return Ok(Step::Done);
        }
        if beside == Beside::Dispatch {
            // The table does not grow under a kernel that walks it.
            if part.end > mirror.extent().end {
                return Ok(Step::NotNow);
            }
        } else {
            mirror.table(&mirror.close_gate())?;
        }
        let mut faults = Vec::new();
        for vma in self.space.vmas().read().find_overlapping(part) {
            // Copies beside others' are enough where nobody is going to write.
            let reads = vma.permission() == Permission::ReadOnly || vma.advice().is_read_mostly() || !request.moving;
            let access = if reads { Access::Read } else { Access::Write };
            let missing = mirror.missing(vma.range.intersect(part), access);
            faults.extend(missing.map(|page| PageFault { page, access }));
        }
        let frames = mirror.frames();
        let room = match beside {
            Beside::Nothing => u64::from(frames.limit / 4 * 3).saturating_sub(request.brought),
            Beside::Launch | Beside::Dispatch => u64::from(frames.limit.saturating_sub(frames.used)),
        };
        let full = faults.len() as u64 > room;
        faults.truncate(usize::try_from(room).unwrap_or(usize::MAX));
        if beside == Beside::Nothing {
            // What was brought must not make room for the rest.
            self.service.protect(part);
        }
        let short = if faults.is_empty() {
            0
        } else {
            let asked = faults.len();
            let served = self.service.bring(&mut faults, request.moving)?;
            // A page can be both, refused to a kernel that would store and short as one that is read.
            let brought = asked.saturating_sub(served.refused.len() + served.short);
            request.brought += brought as u64;
            Counters::add(&self.counters.pages_brought, brought as u64);
            served.short
        };
        if short > 0 && beside == Beside::Nothing && !std::mem::replace(&mut request.retried, true) {
            // What earlier launches used still counts as in use.
            self.service.unprotect();
            return Ok(Step::More);
        }
        request.pages.start = part.end;
        Ok(if full || short > 0 || request.pages.is_empty() { Step::Done } else { Step::More })
    }
}

/// What came of a step.
enum Step {
    /// The request is done, as far as there was room.
    Done,
    /// There is more to do.
    More,
    /// It must wait until the dispatch has ended.
    NotNow,
}
