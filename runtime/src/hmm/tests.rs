//! What notifiers, mirrors and ranges do, case by case; and bad input. Also the fixture of the other tests.

use super::*;
use crate::addr::{PageIndex, PageRange};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// `[start, end)`.
pub(super) fn pages(start: u32, end: u32) -> PageRange {
    PageRange::new(PageIndex(start), PageIndex(end))
}

type Answer = dyn Fn(&InvalidateInfo) -> Result<(), WouldBlock> + Send + Sync;

/// A notifier and a mirror's operations that write down what they hear, and answer as told.
pub(super) struct Probe {
    pub(super) heard: Mutex<Vec<InvalidateInfo>>,
    pub(super) releases: AtomicUsize,
    answer: Box<Answer>,
}

impl Probe {
    pub(super) fn new() -> Arc<Self> {
        Self::answering(|_| Ok(()))
    }

    pub(super) fn answering(
        answer: impl Fn(&InvalidateInfo) -> Result<(), WouldBlock> + Send + Sync + 'static,
    ) -> Arc<Self> {
        Arc::new(Self { heard: Mutex::default(), releases: AtomicUsize::new(0), answer: Box::new(answer) })
    }

    pub(super) fn calls(&self) -> usize {
        self.heard.lock().unwrap().len()
    }

    pub(super) fn releases(&self) -> usize {
        self.releases.load(Ordering::SeqCst)
    }
}

impl MirrorOps for Probe {
    fn invalidate(&self, info: &InvalidateInfo) -> Result<(), WouldBlock> {
        self.heard.lock().unwrap().push(*info);
        (self.answer)(info)
    }

    fn release(&self) {
        self.releases.fetch_add(1, Ordering::SeqCst);
    }
}

impl IntervalNotifier for Probe {
    fn invalidate(&self, info: &InvalidateInfo) -> Result<(), WouldBlock> {
        MirrorOps::invalidate(self, info)
    }

    fn name(&self) -> &str {
        "probe"
    }
}

/// Whether nothing is in flight over the range.
pub(super) fn is_valid(range: &Range<'_>) -> bool {
    let clock = ManualClock::new();
    range.wait_until_valid(Deadline::after(&clock, Duration::ZERO)).is_ok()
}

pub(super) fn mirror_with(notifiers: &Arc<Notifiers>, ops: &Arc<Probe>) -> Mirror {
    Mirror::register(notifiers, OwnerId::unique(), "probe", Arc::<Probe>::clone(ops)).unwrap()
}

pub(super) fn clear(notifiers: &Notifiers, span: PageRange) -> Invalidation<'_> {
    notifiers.invalidate(span, Event::Clear, None, Blocking::Yes).unwrap()
}

#[test]
fn an_interval_notifier_hears_only_of_its_interval_and_only_the_part_inside() {
    let (notifiers, probe) = (Notifiers::new(), Probe::new());
    let subscription = notifiers.subscribe(pages(10, 20), Arc::<Probe>::clone(&probe)).unwrap();
    drop(clear(&notifiers, pages(0, 10)));
    drop(clear(&notifiers, pages(15, 40)));
    let heard = probe.heard.lock().unwrap().clone();
    assert_eq!(heard.len(), 1);
    assert_eq!(heard[0].pages, pages(15, 20));
    assert_eq!(heard[0].event, Event::Clear);
    assert_eq!(subscription.pages(), pages(10, 20));
}

#[test]
fn a_subscription_spread_over_many_shards_hears_once() {
    let (notifiers, probe) = (Notifiers::new(), Probe::new());
    let _subscription = notifiers.subscribe(pages(100, 1 << 20), Arc::<Probe>::clone(&probe)).unwrap();
    drop(clear(&notifiers, pages(0, 1 << 21)));
    drop(clear(&notifiers, pages(4000, 9000)));
    assert_eq!(probe.calls(), 2);
}

#[test]
fn a_range_is_invalid_while_any_of_several_invalidations_over_it_is_in_flight() {
    let (notifiers, probe) = (Notifiers::new(), Probe::new());
    let mirror = mirror_with(&notifiers, &probe);
    let range = mirror.range(pages(4090, 8200)).unwrap();
    let elsewhere = mirror.range(pages(100, 200)).unwrap();
    let (seq, other_seq) = (range.begin(), elsewhere.begin());

    let first = clear(&notifiers, pages(4095, 4096));
    let second = clear(&notifiers, pages(0, 50_000).intersect(pages(4096, 9000)));
    let twin = clear(&notifiers, pages(4096, 9000));
    drop(first);
    assert!(!is_valid(&range));
    drop(second);
    assert!(!is_valid(&range));
    drop(twin);
    assert!(is_valid(&range));
    assert!(range.retry(seq) && !range.check(seq), "valid again, but not the same");
    assert!(!range.retry(range.begin()));
    assert!(elsewhere.check(other_seq), "what does not overlap is not disturbed");
}

#[test]
fn the_owner_of_a_migration_is_not_called_but_everybody_else_is() {
    let notifiers = Notifiers::new();
    let (own, other) = (Probe::new(), Probe::new());
    let (own_mirror, _other_mirror) = (mirror_with(&notifiers, &own), mirror_with(&notifiers, &other));
    let owner = Some(own_mirror.owner());
    for event in [Event::Migrate, Event::Exclusive] {
        drop(notifiers.invalidate(pages(0, 1), event, owner, Blocking::Yes).unwrap());
    }
    assert_eq!((own.calls(), other.calls()), (0, 2));
    drop(notifiers.invalidate(pages(0, 1), Event::Clear, owner, Blocking::Yes).unwrap());
    assert_eq!((own.calls(), other.calls()), (1, 3), "any other event is not the owner's own doing");
}

#[test]
fn a_service_that_invalidates_for_itself_stays_valid_and_its_rivals_do_not() {
    let notifiers = Notifiers::new();
    let (own, other) = (Probe::new(), Probe::new());
    let (mirror, other_mirror) = (mirror_with(&notifiers, &own), mirror_with(&notifiers, &other));
    let mine = mirror.range(pages(0, 8)).unwrap();
    let rival = mirror.range(pages(7, 9)).unwrap();
    let foreign = other_mirror.range(pages(0, 1)).unwrap();
    let seq = mine.begin();

    let bracket = mine.invalidate_others(mine.pages(), Event::Migrate, Blocking::Yes).unwrap();
    let late = mirror.range(pages(3, 4)).unwrap();
    assert!(!mine.retry(seq));
    assert!(!is_valid(&rival) && !is_valid(&foreign) && !is_valid(&late));
    assert_eq!((own.calls(), other.calls()), (0, 1));
    drop(bracket);
    assert!(!mine.retry(seq));
    assert!(is_valid(&rival) && is_valid(&foreign) && is_valid(&late));

    // Events without an owner too: it is the mirror's own doing.
    drop(mine.invalidate_others(mine.pages(), Event::ProtectionPage, Blocking::Yes).unwrap());
    assert_eq!((own.calls(), other.calls()), (0, 2));
    let from_outside = notifiers.invalidate(mine.pages(), Event::ProtectionPage, Some(mirror.owner()), Blocking::Yes);
    drop(from_outside.unwrap());
    assert_eq!((own.calls(), other.calls()), (1, 3));
}

#[test]
fn a_wait_ends_when_the_invalidation_does_and_not_before() {
    let (notifiers, probe) = (Notifiers::new(), Probe::new());
    let mirror = mirror_with(&notifiers, &probe);
    let range = mirror.range(pages(0, 4)).unwrap();
    let clock = RealClock::new();
    let bracket = clear(&notifiers, pages(2, 3));
    let short = range.wait_until_valid(Deadline::after(&clock, Duration::from_millis(5)));
    assert_eq!(short, Err(WaitError::Timeout { pages: range.pages() }));
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| {
            range.wait_until_valid(Deadline::after(&clock, Duration::from_secs(20))).unwrap();
            range.begin()
        });
        std::thread::sleep(Duration::from_millis(5));
        assert!(!waiter.is_finished());
        drop(bracket);
        assert!(range.check(waiter.join().unwrap()));
    });
}

#[test]
fn a_wait_follows_the_injected_clock() {
    let (notifiers, probe) = (Notifiers::new(), Probe::new());
    let mirror = mirror_with(&notifiers, &probe);
    let range = mirror.range(pages(0, 4)).unwrap();
    let clock = ManualClock::new();
    let _bracket = clear(&notifiers, pages(0, 4));
    std::thread::scope(|scope| {
        let deadline = Deadline::after(&clock, Duration::from_secs(3600));
        let waiter = scope.spawn({
            let range = &range;
            move || range.wait_until_valid(deadline)
        });
        clock.advance(Duration::from_secs(3601));
        assert!(matches!(waiter.join().unwrap(), Err(WaitError::Timeout { .. })));
    });
}

#[test]
fn a_wait_without_patience_asks_whether_the_range_is_valid() {
    let (notifiers, probe) = (Notifiers::new(), Probe::new());
    let mirror = mirror_with(&notifiers, &probe);
    let range = mirror.range(pages(0, 4)).unwrap();
    let clock = ManualClock::new();
    let at_once = || range.wait_until_valid(Deadline::after(&clock, Duration::ZERO));
    at_once().unwrap();
    let bracket = clear(&notifiers, pages(3, 9));
    assert!(matches!(at_once(), Err(WaitError::Timeout { .. })));
    drop(bracket);
    at_once().unwrap();
}

#[test]
fn nobody_is_subscribed_before_the_first_and_after_the_last() {
    let (notifiers, probe) = (Notifiers::new(), Probe::new());
    assert!(!notifiers.is_subscribed());
    let mirror = mirror_with(&notifiers, &probe);
    let subscription = notifiers.subscribe(pages(0, 1), Probe::new()).unwrap();
    drop(mirror);
    assert!(notifiers.is_subscribed());
    drop(subscription);
    assert!(!notifiers.is_subscribed());
}

#[test]
fn release_reaches_subscriptions_as_an_event_and_mirrors_once_and_nothing_attaches_afterwards() {
    let notifiers = Notifiers::new();
    let (ops, interval) = (Probe::new(), Probe::new());
    let mirror = mirror_with(&notifiers, &ops);
    let subscription = notifiers.subscribe(pages(3, 9), Arc::<Probe>::clone(&interval)).unwrap();
    let range = mirror.range(pages(0, 4)).unwrap();
    let seq = range.begin();

    notifiers.release().unwrap();
    notifiers.release().unwrap();

    assert_eq!(ops.releases(), 1);
    let heard = interval.heard.lock().unwrap().clone();
    assert_eq!(heard.len(), 1);
    assert_eq!((heard[0].event, heard[0].pages), (Event::Release, pages(3, 9)));
    assert!(range.retry(seq) && range.retry(range.begin()), "never valid again");
    let clock = RealClock::new();
    let wait = range.wait_until_valid(Deadline::after(&clock, Duration::from_secs(20)));
    assert_eq!(wait, Err(WaitError::Released { pages: range.pages() }));
    drop(range);

    assert!(matches!(mirror.range(pages(0, 1)), Err(HmmError::Released { .. })));
    assert!(matches!(notifiers.subscribe(pages(0, 1), Probe::new()), Err(HmmError::Released { .. })));
    let late = Probe::new();
    let refused = Mirror::register(&notifiers, OwnerId::unique(), "late", Arc::<Probe>::clone(&late));
    assert!(matches!(refused, Err(HmmError::Released { .. })));
    drop(clear(&notifiers, pages(0, 100)));
    assert_eq!((ops.calls(), interval.calls(), late.calls(), late.releases()), (0, 1, 0, 0));
    mirror.unregister().unwrap();
    drop(subscription);
    assert_eq!(ops.releases(), 1);
    assert!(!notifiers.is_subscribed());
}

#[test]
fn empty_and_backward_spans_are_refused() {
    let (notifiers, probe) = (Notifiers::new(), Probe::new());
    let mirror = mirror_with(&notifiers, &probe);
    let backward = PageRange { start: PageIndex(5), end: PageIndex(3) };
    for bad in [pages(3, 3), backward] {
        assert_eq!(mirror.range(bad).unwrap_err(), HmmError::BadRange { pages: bad });
        assert_eq!(notifiers.subscribe(bad, Probe::new()).unwrap_err(), HmmError::BadRange { pages: bad });
    }
    let error = notifiers.invalidate(backward, Event::Clear, None, Blocking::Yes).unwrap_err();
    assert_eq!(error, InvalidateError::BadRange { pages: backward });
    assert_eq!(clear(&notifiers, pages(3, 3)).pages(), None);
    assert_eq!(probe.calls(), 0, "no pages, nobody told");
}

#[test]
fn the_last_page_there_is_can_be_registered_and_invalidated() {
    let (notifiers, probe) = (Notifiers::new(), Probe::new());
    let mirror = mirror_with(&notifiers, &probe);
    let range = mirror.range(pages(u32::MAX - 1, u32::MAX)).unwrap();
    let bracket = clear(&notifiers, pages(0, u32::MAX));
    assert!(!is_valid(&range));
    drop(bracket);
    assert!(is_valid(&range));
    assert_eq!(probe.calls(), 1);
}

#[test]
fn ranges_of_one_mirror_may_overlap_and_be_equal() {
    let (notifiers, probe) = (Notifiers::new(), Probe::new());
    let mirror = mirror_with(&notifiers, &probe);
    let twins = [mirror.range(pages(0, 4)).unwrap(), mirror.range(pages(0, 4)).unwrap()];
    let _half = mirror.range(pages(2, 4)).unwrap();
    let bracket = clear(&notifiers, pages(3, 4));
    assert!(twins.iter().all(|range| !is_valid(range)));
    let [first, second] = twins;
    drop(first);
    drop(bracket);
    assert!(is_valid(&second));
    assert_eq!(probe.calls(), 1, "one mirror hears once");
}

#[test]
fn registering_twice_is_refused_by_owner_and_by_operations() {
    let (notifiers, probe) = (Notifiers::new(), Probe::new());
    let owner = OwnerId(7);
    let mirror = Mirror::register(&notifiers, owner, "first", Arc::<Probe>::clone(&probe)).unwrap();
    let expected = HmmError::AlreadyRegistered { name: "first".into(), owner };
    let same_owner = Mirror::register(&notifiers, owner, "second", Probe::new());
    assert_eq!(same_owner.unwrap_err(), expected);
    let same_ops = Mirror::register(&notifiers, OwnerId(8), "second", Arc::<Probe>::clone(&probe));
    assert_eq!(same_ops.unwrap_err(), expected);

    mirror.unregister().unwrap();
    let again = Mirror::register(&notifiers, owner, "again", Arc::<Probe>::clone(&probe)).unwrap();
    drop(clear(&notifiers, pages(0, 1)));
    assert_eq!(probe.calls(), 1);
    drop(again);
    assert_eq!(probe.releases(), 2, "once per registration");
}

#[test]
fn a_callback_that_panics_fails_its_invalidation_names_the_mirror_and_leaves_all_else_usable() {
    let notifiers = Notifiers::new();
    let broken =
        Probe::answering(|info| if info.pages.contains(PageIndex(5)) { panic!("lost the device") } else { Ok(()) });
    let mirror = Mirror::register(&notifiers, OwnerId::unique(), "gpu 3", Arc::<Probe>::clone(&broken)).unwrap();
    let healthy = mirror_with(&notifiers, &Probe::new());
    let range = healthy.range(pages(0, 10)).unwrap();

    let error = notifiers.invalidate(pages(5, 6), Event::Unmap, None, Blocking::Yes).unwrap_err();

    assert!(
        matches!(&error, InvalidateError::Panicked { notifier, message, .. }
        if notifier == "gpu 3" && message == "lost the device"),
        "{error}"
    );
    assert!(is_valid(&range), "nothing is left in flight");
    drop(clear(&notifiers, pages(6, 7)));
    mirror.unregister().unwrap();
    drop(clear(&notifiers, pages(5, 6)));
}

#[test]
fn a_refusal_without_reason_fails_the_invalidation_too() {
    let notifiers = Notifiers::new();
    let _stubborn = mirror_with(&notifiers, &Probe::answering(|_| Err(WouldBlock)));
    let error = notifiers.invalidate(pages(0, 1), Event::Clear, None, Blocking::Yes).unwrap_err();
    assert!(matches!(error, InvalidateError::Refused { .. }) && !error.is_would_block());
}

#[test]
fn a_release_callback_that_panics_is_contained_and_named() {
    struct Broken;
    impl MirrorOps for Broken {
        fn invalidate(&self, _: &InvalidateInfo) -> Result<(), WouldBlock> {
            Ok(())
        }
        fn release(&self) {
            panic!("no more queue");
        }
    }
    let notifiers = Notifiers::new();
    let register = |name: &str| Mirror::register(&notifiers, OwnerId::unique(), name, Arc::new(Broken)).unwrap();

    let error = register("left").unregister().unwrap_err();
    assert!(
        matches!(&error, UnregisterError::ReleasePanicked { name, message }
        if name == "left" && message == "no more queue"),
        "{error}"
    );

    let stays = register("stays");
    let healthy = Probe::new();
    let other = mirror_with(&notifiers, &healthy);
    let error = notifiers.release().unwrap_err();
    assert_eq!(error, HmmError::ReleasePanicked { notifiers: vec!["stays: no more queue".into()] });
    assert_eq!(healthy.releases(), 1, "the others are released all the same");
    drop((stays, other));
    assert!(!notifiers.is_subscribed());
}
