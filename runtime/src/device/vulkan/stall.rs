//! Waiting for copies that may hang behind a kernel.
//!
//! Who waits has the running kernels told to give up, and goes on waiting: the copy ends when they do. Without anyone to tell, as before a runtime uses the device,
//! no kernel is to be waited for, and a copy that does not end never will: it is given up, and with it all copies after it.

use crate::device::DeviceError;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How long a copy may take before it is taken to hang behind a kernel, unless something else is asked for: far more than it needs.
const STALL: Duration = Duration::from_secs(10);
/// How long it gets beyond that. A process that was stopped, or a machine that was, finds the first wait over when it goes on, whatever the copy does.
const AGAIN: Duration = Duration::from_secs(1);
/// Stalls after which a copy is given up where nobody can be told.
const STALLS: u32 = 3;

type Hook = Arc<dyn Fn() + Send + Sync>;

/// What to do about copies that hang.
pub(super) struct Stalls {
    limit: Duration,
    hook: Mutex<Option<Hook>>,
    gave_up: AtomicBool,
}

impl Stalls {
    /// A copy is taken to hang once it took as long as `limit`, or ten seconds.
    pub(super) fn after(limit: Option<Duration>) -> Self {
        Self { limit: limit.unwrap_or(STALL), hook: Mutex::default(), gave_up: AtomicBool::new(false) }
    }

    /// Has `hook` called when a copy hangs, in place of what was said before: a device may serve one runtime after the other.
    pub(super) fn tell(&self, hook: Box<dyn Fn() + Send + Sync>) {
        *self.hook.lock() = Some(hook.into());
    }

    /// Whether a copy was given up. It may still be in flight: what it uses must stay, for ever.
    pub(super) fn gave_up(&self) -> bool {
        self.gave_up.load(Ordering::Acquire)
    }

    /// Waits for a copy by `wait_for`, which waits as long as it is told and says whether the copy has ended.
    pub(super) fn wait(
        &self,
        mut wait_for: impl FnMut(Duration) -> Result<bool, DeviceError>,
    ) -> Result<(), DeviceError> {
        let given_up = || DeviceError::Lost("a copy that does not end".into());
        if self.gave_up() {
            return Err(given_up());
        }
        let mut stalls = 0;
        while !wait_for(self.limit)? && !wait_for(AGAIN.min(self.limit))? {
            // Called without the lock: what it does is not this module's business.
            let hook = self.hook.lock().clone();
            match hook {
                Some(hook) => {
                    tracing::error!(
                        "a copy has not ended after {:?}; kernels that run are told to give up",
                        self.limit
                    );
                    hook();
                }
                None => {
                    stalls += 1;
                    if stalls == STALLS {
                        self.gave_up.store(true, Ordering::Release);
                        return Err(given_up());
                    }
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU32;

    fn counting(stalls: &Stalls) -> Arc<AtomicU32> {
        let count = Arc::new(AtomicU32::new(0));
        let counter = count.clone();
        stalls.tell(Box::new(move || {
            counter.fetch_add(1, Ordering::Relaxed);
        }));
        count
    }

    /// A copy that ends with the wait of this number, counted from 1.
    fn ends_with(number: u32) -> impl FnMut(Duration) -> Result<bool, DeviceError> {
        let mut waits = 0;
        move |_| {
            waits += 1;
            Ok(waits == number)
        }
    }

    #[test]
    fn one_wait_that_is_over_is_no_stall_two_are() {
        let stalls = Stalls::after(None);
        let told = counting(&stalls);
        stalls.wait(ends_with(2)).unwrap();
        assert_eq!(told.load(Ordering::Relaxed), 0);
        stalls.wait(ends_with(3)).unwrap();
        assert_eq!(told.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn the_last_one_who_asked_is_told_as_often_as_it_takes() {
        let stalls = Stalls::after(None);
        let (first, last) = (counting(&stalls), counting(&stalls));
        stalls.wait(ends_with(21)).unwrap();
        assert_eq!((first.load(Ordering::Relaxed), last.load(Ordering::Relaxed)), (0, 10));
    }

    #[test]
    fn without_anyone_to_tell_a_copy_is_given_up_and_those_after_it() {
        let stalls = Stalls::after(None);
        stalls.wait(ends_with(6)).unwrap();
        assert!(!stalls.gave_up());
        assert!(matches!(stalls.wait(|_| Ok(false)), Err(DeviceError::Lost(_))));
        assert!(stalls.gave_up());
        assert!(matches!(stalls.wait(|_| panic!("not waited for")), Err(DeviceError::Lost(_))));
    }
}
