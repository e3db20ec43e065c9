//! The races that have bitten others, by their numbers in the project's list, as far as this core can have them. (Race 3,
//! a range used after its mirror is gone, does not compile: see the examples in `mirror.rs`.)
//!
//! Where the naive code can be had by breaking one rule, the test runs twice: right, and broken, when it must see the
//! damage.

use super::mutation::{Mutation, mutate};
use super::tests::{Probe, clear, is_valid, mirror_with, pages};
use super::*;
use crate::rank::{Rank, RankedMutex, RankedRwLock};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

const A_MOMENT: Duration = Duration::from_millis(20);

/// A mirror whose invalidate callback stays inside until it is let go.
struct Slow {
    entered: Mutex<Sender<()>>,
    go: Mutex<Receiver<()>>,
    finished: AtomicBool,
    calls: AtomicUsize,
}

impl Slow {
    /// The mirror's operations, what says that the callback was entered, and what lets it go.
    fn new() -> (Arc<Self>, Receiver<()>, Sender<()>) {
        let ((entered, has_entered), (let_go, go)) = (channel(), channel());
        let slow = Self {
            entered: Mutex::new(entered),
            go: Mutex::new(go),
            finished: AtomicBool::new(false),
            calls: AtomicUsize::new(0),
        };
        (Arc::new(slow), has_entered, let_go)
    }
}

impl MirrorOps for Slow {
    fn invalidate(&self, _: &InvalidateInfo) -> Result<(), WouldBlock> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        self.entered.lock().unwrap().send(()).unwrap();
        self.go.lock().unwrap().recv().unwrap();
        self.finished.store(true, Ordering::SeqCst);
        Ok(())
    }
    fn release(&self) {}
}

/// Whether the callback had finished when unregister returned.
fn unregister_while_a_callback_runs(mutation: Option<Mutation>) -> bool {
    let notifiers = Notifiers::new();
    let (slow, has_entered, let_go) = Slow::new();
    let mirror = Mirror::register(&notifiers, OwnerId::unique(), "slow", Arc::<Slow>::clone(&slow)).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| drop(clear(&notifiers, pages(0, 1))));
        has_entered.recv().unwrap();
        let unregistering = scope.spawn(|| {
            mutate(mutation);
            mirror.unregister().unwrap();
            slow.finished.load(Ordering::SeqCst)
        });
        thread::sleep(A_MOMENT);
        let waited = !unregistering.is_finished();
        let_go.send(()).unwrap();
        let finished = unregistering.join().unwrap();
        drop(clear(&notifiers, pages(0, 1)));
        assert_eq!(slow.calls.load(Ordering::SeqCst), 1, "no call after unregister");
        waited && finished
    })
}

#[test]
fn race_01_callback_running_while_its_mirror_is_unregistered() {
    assert!(unregister_while_a_callback_runs(None));
    assert!(!unregister_while_a_callback_runs(Some(Mutation::NoGracePeriod)));
}

/// The release callbacks that ran, and whether one was still running when release or unregister returned.
fn release_against_unregister(mutation: Option<Mutation>) -> (usize, bool) {
    struct Counting {
        started: AtomicUsize,
        finished: AtomicUsize,
    }
    impl MirrorOps for Counting {
        fn invalidate(&self, _: &InvalidateInfo) -> Result<(), WouldBlock> {
            Ok(())
        }
        fn release(&self) {
            self.started.fetch_add(1, Ordering::SeqCst);
            thread::sleep(A_MOMENT);
            self.finished.fetch_add(1, Ordering::SeqCst);
        }
    }
    let notifiers = Notifiers::new();
    let counting = Arc::new(Counting { started: AtomicUsize::new(0), finished: AtomicUsize::new(0) });
    let mirror =
        Mirror::register(&notifiers, OwnerId::unique(), "counting", Arc::<Counting>::clone(&counting)).unwrap();
    let early = AtomicBool::new(false);
    let look = || {
        if counting.finished.load(Ordering::SeqCst) != counting.started.load(Ordering::SeqCst) {
            early.store(true, Ordering::SeqCst);
        }
    };
    thread::scope(|scope| {
        scope.spawn(|| {
            mutate(mutation);
            notifiers.release().unwrap();
            look();
        });
        scope.spawn(|| {
            mutate(mutation);
            mirror.unregister().unwrap();
            look();
        });
    });
    (counting.started.load(Ordering::SeqCst), early.load(Ordering::SeqCst))
}

#[test]
fn race_02_release_running_against_unregister() {
    for _ in 0..10 {
        assert_eq!(release_against_unregister(None), (1, false));
    }
    let broken = (0..20).any(|_| release_against_unregister(Some(Mutation::ReleaseUnclaimed)).0 == 2);
    assert!(broken, "without the claim it runs twice");
}

/// Whether a range is valid after a non-blocking invalidation over it was refused.
fn valid_after_a_refusal(mutation: Option<Mutation>) -> bool {
    let notifiers = Notifiers::new();
    let (willing, busy) = (Probe::new(), Probe::answering(|_| Err(WouldBlock)));
    let (mirror, _busy) = (mirror_with(&notifiers, &willing), mirror_with(&notifiers, &busy));
    let range = mirror.range(pages(0, 4)).unwrap();
    let seq = range.begin();
    mutate(mutation);
    let error = notifiers.invalidate(pages(1, 2), Event::Clear, None, Blocking::No).unwrap_err();
    mutate(None);
    assert!(error.is_would_block());
    assert!(range.retry(seq), "the willing mirror may have cleared its entries");
    is_valid(&range)
}

#[test]
fn race_04_a_refused_nonblocking_invalidation_leaves_nothing_in_flight() {
    assert!(valid_after_a_refusal(None));
    assert!(!valid_after_a_refusal(Some(Mutation::RefusalLeftOpen)));
}

#[test]
fn race_04_a_refusal_wakes_whoever_waited_meanwhile() {
    let notifiers = Notifiers::new();
    let ((entered, has_entered), (let_go, go)) = (channel(), channel());
    let channels = Mutex::new((entered, go));
    let busy = Probe::answering(move |_| {
        let channels = channels.lock().unwrap();
        channels.0.send(()).unwrap();
        channels.1.recv().unwrap();
        Err(WouldBlock)
    });
    let mirror = mirror_with(&notifiers, &busy);
    let range = mirror.range(pages(0, 4)).unwrap();
    thread::scope(|scope| {
        let refused = scope.spawn(|| notifiers.invalidate(pages(1, 2), Event::Clear, None, Blocking::No).is_err());
        has_entered.recv().unwrap();
        let waiter = scope.spawn(|| range.check(range.begin()));
        thread::sleep(A_MOMENT);
        assert!(!waiter.is_finished());
        let_go.send(()).unwrap();
        assert!(refused.join().unwrap());
        assert!(waiter.join().unwrap());
    });
}

#[test]
fn race_05_an_error_or_a_panic_between_start_and_end_cannot_skip_the_end() {
    fn fails(notifiers: &Notifiers) -> Result<(), &'static str> {
        let _bracket = clear(notifiers, pages(0, 9));
        Err("mprotect failed")
    }
    let (notifiers, probe) = (Notifiers::new(), Probe::new());
    let mirror = mirror_with(&notifiers, &probe);
    let range = mirror.range(pages(0, 4)).unwrap();
    fails(&notifiers).unwrap_err();
    assert!(is_valid(&range));
    catch_unwind(AssertUnwindSafe(|| {
        let _bracket = clear(&notifiers, pages(0, 9));
        panic!("in the middle");
    }))
    .unwrap_err();
    assert!(is_valid(&range));
}

/// Whether a range registered in the middle of an invalidation waits for its end.
fn starts_invalid(mutation: Option<Mutation>) -> bool {
    let (notifiers, probe) = (Notifiers::new(), Probe::new());
    // In flight before there is any subscriber at all.
    let bracket = clear(&notifiers, pages(4000, 5000));
    mutate(mutation);
    let mirror = mirror_with(&notifiers, &probe);
    let range = mirror.range(pages(4095, 4097)).unwrap();
    let subscription = notifiers.subscribe(pages(0, 1 << 20), Probe::new()).unwrap();
    let clear_of_it = mirror.range(pages(0, 4000)).unwrap();
    mutate(None);
    let clock = ManualClock::new();
    let now = Deadline::after(&clock, Duration::ZERO);
    let invalid = !is_valid(&range) && subscription.wait_until_valid(now).is_err();
    assert!(is_valid(&clear_of_it));
    if mutation.is_none() {
        drop(bracket);
        assert!(is_valid(&range) && subscription.wait_until_valid(now).is_ok());
    } else {
        std::mem::forget(bracket); // Its end would find what it never started.
    }
    assert_eq!(probe.calls(), 0, "told of nothing that began before it was there");
    invalid
}

#[test]
fn race_06_what_is_registered_during_an_invalidation_starts_out_invalid() {
    assert!(starts_invalid(None));
    assert!(!starts_invalid(Some(Mutation::InsertionIgnoresFlights)));
}

#[test]
fn race_06_registering_inside_a_callback_works_and_starts_out_invalid() {
    let notifiers = Notifiers::new();
    let made = Arc::new(Mutex::new(None));
    let (inner, slot) = (Arc::downgrade(&notifiers), Arc::clone(&made));
    let probe = Probe::answering(move |_| {
        let notifiers = inner.upgrade().unwrap();
        *slot.lock().unwrap() = Some(notifiers.subscribe(pages(0, 3), Probe::new()).unwrap());
        Ok(())
    });
    let _mirror = mirror_with(&notifiers, &probe);
    let bracket = clear(&notifiers, pages(2, 9));
    let subscription = made.lock().unwrap().take().unwrap();
    let clock = ManualClock::new();
    let now = Deadline::after(&clock, Duration::ZERO);
    subscription.wait_until_valid(now).unwrap_err();
    drop(bracket);
    subscription.wait_until_valid(now).unwrap();
}

#[test]
fn race_09_invalidation_unregister_and_a_migration_that_holds_the_device_do_not_deadlock() {
    /// Needs the device to itself to let go of anything.
    struct Gated {
        gate: RankedMutex<()>,
        update: RankedMutex<()>,
    }
    impl MirrorOps for Gated {
        fn invalidate(&self, _: &InvalidateInfo) -> Result<(), WouldBlock> {
            let _gate = self.gate.lock();
            let _update = self.update.lock();
            Ok(())
        }
        fn release(&self) {
            let _gate = self.gate.lock();
        }
    }
    let notifiers = Notifiers::new();
    let device = Arc::new(Gated {
        gate: RankedMutex::new(Rank::DeviceGate, ()),
        update: RankedMutex::new(Rank::MirrorUpdate, ()),
    });
    let mirror = Mirror::register(&notifiers, OwnerId::unique(), "device", Arc::<Gated>::clone(&device)).unwrap();
    let (done, all_done) = channel();
    let until = Instant::now() + Duration::from_millis(300);
    let invalidating = {
        let (notifiers, done) = (Arc::clone(&notifiers), done.clone());
        thread::spawn(move || {
            while Instant::now() < until {
                drop(clear(&notifiers, pages(0, 64)));
            }
            done.send(()).unwrap();
        })
    };
    let unregistering = {
        let (notifiers, done) = (Arc::clone(&notifiers), done.clone());
        thread::spawn(move || {
            while Instant::now() < until {
                mirror_with(&notifiers, &Probe::new()).unregister().unwrap();
            }
            done.send(()).unwrap();
        })
    };
    let migrating = {
        let device = Arc::clone(&device);
        thread::spawn(move || {
            while Instant::now() < until {
                let range = mirror.range(pages(3, 9)).unwrap();
                let seq = range.begin();
                // The invalidation around the device, not the other way round: that does not pass the rank check.
                let bracket = range.invalidate_others(range.pages(), Event::Migrate, Blocking::Yes).unwrap();
                {
                    let _gate = device.gate.lock();
                    let _update = device.update.lock();
                    let _ = range.retry(seq);
                }
                drop(bracket);
            }
            done.send(()).unwrap();
        })
    };
    for _ in 0..3 {
        all_done.recv_timeout(Duration::from_secs(30)).expect("deadlock");
    }
    for thread in [invalidating, unregistering, migrating] {
        thread.join().unwrap();
    }
}

#[test]
#[cfg(debug_assertions)]
fn race_09_holding_the_device_while_invalidating_waiting_or_unregistering_is_caught() {
    let (notifiers, probe) = (Notifiers::new(), Probe::new());
    let mirror = mirror_with(&notifiers, &probe);
    let gate = RankedMutex::new(Rank::DeviceGate, ());
    let caught = |what: &dyn Fn()| {
        let _gate = gate.lock();
        let payload = catch_unwind(AssertUnwindSafe(what)).expect_err("must be caught");
        let message = payload.downcast_ref::<String>().cloned().unwrap_or_default();
        assert!(message.contains("device gate"), "{message}");
    };
    let range = mirror.range(pages(0, 1)).unwrap();
    caught(&|| drop(clear(&notifiers, pages(0, 1))));
    caught(&|| _ = range.begin());
    caught(&|| drop(notifiers.release()));
    assert!(is_valid(&range), "nothing half done");
}

#[test]
fn race_12_a_service_that_loses_every_race_still_finishes() {
    // The adversary invalidates in every fast attempt, at the worst moment; it needs the read side of the address
    // space, as CPU faults do.
    let (notifiers, probe) = (Notifiers::new(), Probe::new());
    let mirror = mirror_with(&notifiers, &probe);
    let range = mirror.range(pages(0, 8)).unwrap();
    let mm = RankedRwLock::new(Rank::Mm, ());
    let update = RankedMutex::new(Rank::MirrorUpdate, ());
    let (rounds, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let clock = RealClock::new();
    let attempt = |how: Attempt| {
        let _write = (how == Attempt::Slow).then(|| mm.write());
        let seq = range.begin();
        if how == Attempt::Fast {
            let before = rounds.load(Ordering::SeqCst);
            while rounds.load(Ordering::SeqCst) < before + 2 {
                thread::yield_now();
            }
        }
        let _update = update.lock();
        if range.retry(seq) { Outcome::Collided } else { Outcome::Done(how) }
    };
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::SeqCst) {
                let _read = mm.read();
                drop(clear(&notifiers, pages(4, 5)));
                rounds.fetch_add(1, Ordering::SeqCst);
            }
        });
        let naive_ever_finishes = (0..100).any(|_| attempt(Attempt::Fast) != Outcome::Collided);
        let patience = Deadline::after(&clock, Duration::from_secs(20));
        let taken: Result<Attempt, OutOfTime> = with_retry(patience, |how| Ok(attempt(how)));
        stop.store(true, Ordering::SeqCst);
        assert!(!naive_ever_finishes);
        assert_eq!(taken, Ok(Attempt::Slow));
    });
}

#[test]
fn unregistering_inside_a_callback_is_refused_and_dropping_there_is_put_off() {
    let notifiers = Notifiers::new();
    let victim_ops = Probe::new();
    let victim = Arc::new(Mutex::new(Some(mirror_with(&notifiers, &victim_ops))));
    let refused = Arc::new(AtomicBool::new(false));
    let (slot, saw, weak) = (Arc::clone(&victim), Arc::clone(&refused), Arc::downgrade(&notifiers));
    let probe = Probe::answering(move |_| {
        if let Some(mirror) = slot.lock().unwrap().take() {
            let Err(UnregisterError::InsideCallback { mirror }) = mirror.unregister() else { return Ok(()) };
            let released = weak.upgrade().unwrap().release();
            saw.store(matches!(released, Err(HmmError::InsideCallback { .. })), Ordering::SeqCst);
            drop(mirror);
        }
        Ok(())
    });
    let _mirror = mirror_with(&notifiers, &probe);
    drop(clear(&notifiers, pages(0, 1)));
    assert!(refused.load(Ordering::SeqCst));
    assert_eq!(victim_ops.releases(), 1, "unregistered once the callback was over");
    let calls = victim_ops.calls();
    drop(clear(&notifiers, pages(0, 1)));
    assert_eq!(victim_ops.calls(), calls);
}

#[test]
fn a_notifier_may_drop_its_own_subscription_in_its_callback() {
    let notifiers = Notifiers::new();
    let own: Arc<Mutex<Option<Subscription>>> = Arc::default();
    let slot = Arc::clone(&own);
    let probe = Probe::answering(move |_| {
        drop(slot.lock().unwrap().take());
        Ok(())
    });
    *own.lock().unwrap() = Some(notifiers.subscribe(pages(0, 5), Arc::<Probe>::clone(&probe)).unwrap());
    drop(clear(&notifiers, pages(0, 1)));
    drop(clear(&notifiers, pages(0, 1)));
    assert_eq!(probe.calls(), 1);
    assert!(!notifiers.is_subscribed());
}
