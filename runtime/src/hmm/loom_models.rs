//! Exhaustive models of the protocol's small parts, under loom:
//! `RUSTFLAGS="--cfg loom" cargo test -p vksvm --release --lib loom_`.
//!
//! They run the real code, with two shards instead of 64. Each model is run as it is, and once for each rule that it is
//! about with that rule broken ([`Mutation`]), when it must fail: by an assertion, or by the deadlock that loom reports.
//! Callbacks contain panics, so callbacks record and the models' own threads assert.
//!
//! Bounds: threads are preempted at most as often in one execution as each model says (loom's documentation: two or three
//! find most bugs); loom has no time, so waits have no deadline here.

use super::mutation::{Mutation, mutate, mutated};
use super::*;
use crate::addr::{PageIndex, PageRange};
use loom::sync::Mutex;
use loom::sync::atomic::AtomicUsize;
use loom::thread;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Runs a model as it is, then broken in each of the ways, when it must fail.
fn check(name: &str, preemptions: usize, broken: &[Mutation], model: impl Fn() + Copy + Send + Sync + 'static) {
    let explore = move || {
        let executions = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let counted = Arc::clone(&executions);
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(preemptions);
        builder.check(move || {
            counted.fetch_add(1, Ordering::Relaxed);
            model();
        });
        executions.load(Ordering::Relaxed)
    };
    mutate(None);
    println!("{name}: {} executions", explore());
    for &mutation in broken {
        mutate(Some(mutation));
        let found = catch_unwind(AssertUnwindSafe(explore)).is_err();
        mutate(None);
        assert!(found, "{name} does not notice {mutation:?}");
        println!("{name}: {mutation:?} found");
    }
}

fn page() -> PageRange {
    PageRange::single(PageIndex(0))
}

fn clear(notifiers: &Notifiers, span: PageRange) -> Invalidation<'_> {
    notifiers.invalidate(span, Event::Clear, None, Blocking::Yes).unwrap()
}

/// A device with one entry, which holds the version of the page that it was made from.
struct Device {
    entry: Mutex<Option<usize>>,
    calls: AtomicUsize,
    running: AtomicUsize,
    releases: AtomicUsize,
    refuses: bool,
}

impl Device {
    fn new() -> Arc<Self> {
        Self::that(false)
    }

    fn that(refuses: bool) -> Arc<Self> {
        Arc::new(Self {
            entry: Mutex::new(None),
            calls: AtomicUsize::new(0),
            running: AtomicUsize::new(0),
            releases: AtomicUsize::new(0),
            refuses,
        })
    }

    fn register(self: &Arc<Self>, notifiers: &Arc<Notifiers>) -> Mirror {
        Mirror::register(notifiers, OwnerId(Arc::as_ptr(self) as u64), "model", Arc::<Self>::clone(self)).unwrap()
    }
}

impl MirrorOps for Device {
    fn invalidate(&self, info: &InvalidateInfo) -> Result<(), WouldBlock> {
        if self.refuses && info.blocking == Blocking::No {
            return Err(WouldBlock);
        }
        self.running.fetch_add(1, Ordering::SeqCst);
        self.calls.fetch_add(1, Ordering::SeqCst);
        *self.entry.lock().unwrap() = None;
        self.running.fetch_sub(1, Ordering::SeqCst);
        Ok(())
    }

    fn release(&self) {
        self.releases.fetch_add(1, Ordering::SeqCst);
        *self.entry.lock().unwrap() = None;
    }
}

/// One attempt of a service over `span`: begin, read, check under the lock, commit.
fn attempt(mirror: &Mirror, device: &Device, version: &AtomicUsize, span: PageRange) {
    let range = mirror.range(span).unwrap();
    let seq = range.begin();
    let seen = version.load(Ordering::Acquire);
    let careless = mutated(Mutation::RetryOutsideTheLock) && !range.retry(seq);
    let mut entry = device.entry.lock().unwrap();
    if careless || !range.retry(seq) {
        *entry = Some(seen);
    }
}

/// Two pages, one in each shard of a model.
fn two_shards() -> PageRange {
    PageRange::of_len(PageIndex(4095), 2)
}

#[test]
fn loom_sequence_protocol_never_leaves_a_stale_entry() {
    use Mutation::{CallbacksBeforeMarking, InsertionIgnoresFlights, RetryOutsideTheLock};
    check("sequence protocol", 6, &[CallbacksBeforeMarking, InsertionIgnoresFlights, RetryOutsideTheLock], || {
        let notifiers = Notifiers::new();
        let (device, version) = (Device::new(), Arc::new(AtomicUsize::new(0)));
        let mirror = device.register(&notifiers);
        let service = {
            let (device, version) = (Arc::clone(&device), Arc::clone(&version));
            thread::spawn(move || {
                attempt(&mirror, &device, &version, page());
                mirror
            })
        };
        let bracket = clear(&notifiers, page());
        assert_eq!(*device.entry.lock().unwrap(), None, "an entry inside the bracket");
        version.fetch_add(1, Ordering::Relaxed);
        drop(bracket);
        let mirror = service.join().unwrap();
        let entry = *device.entry.lock().unwrap();
        assert!(entry.is_none_or(|seen| seen == version.load(Ordering::Relaxed)), "stale");
        assert!(notifiers.is_idle());
        drop(mirror);
    });
}

#[test]
fn loom_two_invalidations_over_one_range_that_spans_two_shards_stay_balanced() {
    check("two invalidations", 4, &[], || {
        let notifiers = Notifiers::new();
        let device = Device::new();
        let mirror = device.register(&notifiers);
        let other = {
            let notifiers = Arc::clone(&notifiers);
            thread::spawn(move || drop(clear(&notifiers, two_shards())))
        };
        {
            let range = mirror.range(two_shards()).unwrap();
            let bracket = clear(&notifiers, PageRange::single(PageIndex(4096)));
            drop(bracket);
            let seq = range.begin();
            let _ = range.check(seq);
        }
        other.join().unwrap();
        assert_eq!(device.calls.load(Ordering::SeqCst), 2, "each told once");
        assert!(notifiers.is_idle());
    });
}

#[test]
fn loom_a_waiter_is_woken_by_the_last_end() {
    check("wait", 3, &[Mutation::SleepWithoutLookingAgain], || {
        let flights = Arc::new(in_flight::InFlight::new());
        flights.start();
        let waiters: Vec<_> = (0..2)
            .map(|_| {
                let flights = Arc::clone(&flights);
                thread::spawn(move || flights.begin())
            })
            .collect();
        flights.start();
        flights.end();
        flights.end();
        for waiter in waiters {
            assert!(!flights.is_stale(waiter.join().unwrap()));
        }
    });
}

#[test]
fn loom_a_begin_after_the_end_sees_what_changed_in_the_bracket() {
    check("begin", 6, &[Mutation::InsertionIgnoresFlights], || {
        let notifiers = Notifiers::new();
        let (device, version) = (Device::new(), Arc::new(AtomicUsize::new(0)));
        let mirror = device.register(&notifiers);
        let bracket = clear(&notifiers, page());
        let reader = {
            let version = Arc::clone(&version);
            thread::spawn(move || {
                let range = mirror.range(page()).unwrap();
                let seq = range.begin();
                assert_eq!(version.load(Ordering::Relaxed), 1);
                assert!(!range.retry(seq));
            })
        };
        version.store(1, Ordering::Relaxed);
        drop(bracket);
        reader.join().unwrap();
    });
}

#[test]
fn loom_no_callback_runs_after_unregister_returned() {
    check("unregister", 6, &[Mutation::NoGracePeriod], || {
        let notifiers = Notifiers::new();
        let device = Device::new();
        let mirror = device.register(&notifiers);
        let invalidating = {
            let notifiers = Arc::clone(&notifiers);
            thread::spawn(move || drop(clear(&notifiers, page())))
        };
        mirror.unregister().unwrap();
        assert_eq!(device.running.load(Ordering::SeqCst), 0, "still running");
        let calls = device.calls.load(Ordering::SeqCst);
        invalidating.join().unwrap();
        assert_eq!(device.calls.load(Ordering::SeqCst), calls, "called afterwards");
        assert_eq!(device.releases.load(Ordering::SeqCst), 1);
    });
}

#[test]
fn loom_release_and_unregister_release_once_and_both_wait_for_it() {
    check("release", 4, &[Mutation::ReleaseUnclaimed], || {
        let notifiers = Notifiers::new();
        let device = Device::new();
        let mirror = device.register(&notifiers);
        let releasing = {
            let (notifiers, device) = (Arc::clone(&notifiers), Arc::clone(&device));
            thread::spawn(move || {
                notifiers.release().unwrap();
                assert_eq!(device.releases.load(Ordering::SeqCst), 1);
            })
        };
        mirror.unregister().unwrap();
        assert_eq!(device.releases.load(Ordering::SeqCst), 1);
        releasing.join().unwrap();
        assert!(!notifiers.is_subscribed());
    });
}

#[test]
fn loom_registering_against_release_is_released_or_refused() {
    check("register against release", 4, &[], || {
        let notifiers = Notifiers::new();
        let device = Device::new();
        let releasing = {
            let notifiers = Arc::clone(&notifiers);
            thread::spawn(move || notifiers.release().unwrap())
        };
        let registered = Mirror::register(&notifiers, OwnerId(1), "late", Arc::<Device>::clone(&device));
        releasing.join().unwrap();
        assert_eq!(device.releases.load(Ordering::SeqCst), usize::from(registered.is_ok()));
        assert!(!notifiers.is_subscribed());
        drop(registered);
    });
}

#[test]
fn loom_subscribing_and_unsubscribing_against_an_invalidation_stays_balanced() {
    check("subscribe", 4, &[Mutation::NoGracePeriod], || {
        struct Interval {
            running: AtomicUsize,
        }
        impl IntervalNotifier for Interval {
            fn invalidate(&self, _: &InvalidateInfo) -> Result<(), WouldBlock> {
                self.running.fetch_add(1, Ordering::SeqCst);
                self.running.fetch_sub(1, Ordering::SeqCst);
                Ok(())
            }
        }
        let notifiers = Notifiers::new();
        let interval = Arc::new(Interval { running: AtomicUsize::new(0) });
        let invalidating = {
            let notifiers = Arc::clone(&notifiers);
            thread::spawn(move || drop(clear(&notifiers, page())))
        };
        let subscription = notifiers.subscribe(page(), Arc::<Interval>::clone(&interval)).unwrap();
        let seq = subscription.begin();
        let _ = subscription.check(seq);
        drop(subscription);
        assert_eq!(interval.running.load(Ordering::SeqCst), 0);
        invalidating.join().unwrap();
        assert!(notifiers.is_idle() && !notifiers.is_subscribed());
    });
}

#[test]
fn loom_a_refused_invalidation_leaves_nobody_waiting() {
    check("refusal", 4, &[Mutation::RefusalLeftOpen], || {
        let notifiers = Notifiers::new();
        let mirror = Device::that(true).register(&notifiers);
        let refused = {
            let notifiers = Arc::clone(&notifiers);
            thread::spawn(move || notifiers.invalidate(page(), Event::Clear, None, Blocking::No).is_err())
        };
        {
            let range = mirror.range(page()).unwrap();
            let seq = range.begin(); // Must not wait for ever.
            let _ = range.check(seq);
        }
        assert!(refused.join().unwrap());
        assert!(notifiers.is_idle());
    });
}

#[test]
fn loom_two_services_of_one_mirror_over_one_page_exclude_each_other_by_their_brackets() {
    // Each keeps its bracket until it has committed: see Range::invalidate_others. Each frame is an owner's number;
    // whoever commits must find no entry that it did not know of when it began.
    check("two services", 4, &[], || {
        let notifiers = Notifiers::new();
        let device = Device::new();
        let mirror = Arc::new(device.register(&notifiers));
        let service = |mirror: &Mirror, device: &Device, frame: usize| {
            let range = mirror.range(page()).unwrap();
            let seq = range.begin();
            let before = *device.entry.lock().unwrap();
            let bracket = range.invalidate_others(page(), Event::Migrate, Blocking::Yes).unwrap();
            {
                let mut entry = device.entry.lock().unwrap();
                if !range.retry(seq) {
                    assert_eq!(*entry, before, "overwrote an entry it had not seen");
                    *entry = Some(frame);
                }
            }
            drop(bracket);
        };
        let other = {
            let (mirror, device) = (Arc::clone(&mirror), Arc::clone(&device));
            thread::spawn(move || service(&mirror, &device, 2))
        };
        service(&mirror, &device, 1);
        other.join().unwrap();
        assert!(notifiers.is_idle());
    });
}
