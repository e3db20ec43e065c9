//! The policy on a simulated clock.

use super::*;
use proptest::prelude::*;

const DEVICE: Side = Side(2);
const OTHER: Side = Side(3);

fn us(micros: u64) -> Duration {
    Duration::from_micros(micros)
}

/// One granule and a clock.
struct Simulation {
    options: ThrashOptions,
    record: GranuleRecord,
    now: Duration,
    can_pin: bool,
    near: bool,
}

impl Simulation {
    fn new(policy: ThrashPolicy) -> Self {
        let options = ThrashOptions { policy, ..ThrashOptions::default() };
        Self { options, record: GranuleRecord::default(), now: Duration::from_secs(5), can_pin: true, near: false }
    }

    fn touch(&mut self, side: Side) -> Verdict {
        let packed = GranuleRecord::unpack(self.record.pack());
        assert_eq!(packed, self.record, "a record survives its word");
        let decision = self.options.touch(self.record, side, self.now, self.can_pin, self.near, 7);
        self.record = decision.record;
        decision.verdict
    }

    /// Touches until it need not wait; says how long it waited, and whether the granule was pinned.
    fn take(&mut self, side: Side) -> (Duration, bool) {
        let start = self.now;
        for _ in 0..4 {
            match self.touch(side) {
                Verdict::Go => return (self.now - start, false),
                Verdict::Pin => return (self.now - start, true),
                Verdict::Wait(time) => self.now += time,
            }
        }
        panic!("{side:?} is kept waiting");
    }

    /// Both sides in turn, `apart` from each other, until it is pinned; how many turns that took.
    fn fight(&mut self, apart: Duration, most: usize) -> Option<usize> {
        (0..most).find(|turn| {
            self.now += apart;
            self.take(if turn % 2 == 0 { DEVICE } else { Side::CPU }).1
        })
    }

    /// The longest that anybody may wait.
    fn bound(&self) -> Duration {
        self.options.max_residency * (100 + u32::from(self.options.jitter)) / 100 * 3 / 2
    }
}

#[test]
fn a_few_changes_cost_nothing() {
    let mut granule = Simulation::new(ThrashPolicy::Full);
    for side in [DEVICE, Side::CPU, DEVICE] {
        granule.now += us(20);
        assert_eq!(granule.touch(side), Verdict::Go);
    }
}

#[test]
fn changes_that_lie_apart_are_never_throttled() {
    let mut granule = Simulation::new(ThrashPolicy::Full);
    for turn in 0..1000 {
        granule.now += granule.options.lapse + us(1);
        assert_eq!(granule.touch(if turn % 2 == 0 { DEVICE } else { Side::CPU }), Verdict::Go);
    }
}

#[test]
fn handing_over_between_launches_is_no_bounce() {
    let mut granule = Simulation::new(ThrashPolicy::Full);
    for turn in 0..1000 {
        granule.now += us(10);
        let side = if turn % 2 == 0 { DEVICE } else { Side::CPU };
        granule.record = granule.options.hand_over(granule.record, side, granule.now);
    }
    granule.now += us(10);
    assert_eq!(granule.touch(DEVICE), Verdict::Go);
}

#[test]
fn residency_doubles_up_to_its_bound_and_no_further() {
    let mut granule = Simulation::new(ThrashPolicy::Throttle);
    let mut waits = Vec::new();
    for turn in 0..10_000 {
        granule.now += us(5);
        let (waited, pinned) = granule.take(if turn % 2 == 0 { DEVICE } else { Side::CPU });
        assert!(!pinned, "it only throttles");
        assert!(waited <= granule.bound(), "waited {waited:?}");
        waits.push(waited);
    }
    assert!(waits[..3].iter().all(|wait| wait.is_zero()));
    assert!(waits[3] >= granule.options.residency - us(5) && waits[3] <= granule.options.residency * 5 / 4);
    assert!(waits[4] > waits[3] && waits[5] > waits[4]);
    assert!(waits[5000] >= granule.options.max_residency - us(5));
    let mut last: Vec<_> = waits[9000..].to_vec();
    last.sort_unstable();
    last.dedup();
    assert!(last.len() > 20, "jitter makes residencies differ, there are {}", last.len());
}

#[test]
fn throttling_goes_on_although_it_spreads_the_changes_beyond_the_lapse() {
    let mut granule = Simulation::new(ThrashPolicy::Throttle);
    granule.options.max_residency = granule.options.lapse * 4;
    for turn in 0..1000 {
        granule.now += us(5);
        granule.take(if turn % 2 == 0 { DEVICE } else { Side::CPU });
    }
    assert!(granule.record.level > 6, "the policy took its own waiting for quiet");
}

#[test]
fn repeated_throttling_pins_where_devices_reach_home() {
    let mut granule = Simulation::new(ThrashPolicy::Full);
    let turns = granule.fight(us(20), 100).expect("pinned");
    assert!(turns <= 8, "it took {turns} turns");
    assert!(granule.record.is_pinned());
    assert_eq!(granule.touch(DEVICE), Verdict::Go);
    assert_eq!(granule.touch(Side::CPU), Verdict::Go);
    let mut unreachable = Simulation::new(ThrashPolicy::Full);
    unreachable.can_pin = false;
    assert_eq!(unreachable.fight(us(20), 1000), None, "then throttling goes on at its bound");
}

#[test]
fn a_pin_ends_and_comes_back_for_longer_while_the_fight_goes_on() {
    let mut granule = Simulation::new(ThrashPolicy::Full);
    let mut times = Vec::new();
    for _ in 0..12 {
        granule.fight(us(20), 100).expect("pinned");
        let time = granule.options.pin_time(granule.record, 7);
        times.push(time);
        granule.now += time;
        granule.record = granule.options.unpin(granule.record, granule.now);
        assert!(!granule.record.is_pinned());
    }
    assert!(times[0] >= granule.options.pin && times[0] <= granule.options.pin * 5 / 4);
    assert!(times[1] > times[0] && times[2] > times[1]);
    assert!(times.iter().all(|&time| time <= granule.options.max_pin * 5 / 4), "growth is bounded");
}

#[test]
fn beside_a_pinned_granule_and_after_a_pin_the_fight_need_not_be_learned_again() {
    let relapse = ThrashOptions::default().relapse;
    let mut granule = Simulation::new(ThrashPolicy::Full);
    granule.near = true;
    let start = granule.now;
    // The first touch is none that takes it from anybody.
    assert_eq!(granule.fight(us(20), 100), Some(usize::from(relapse)));
    assert_eq!(granule.now - start, us(20) * (u32::from(relapse) + 1), "nobody waited");
    granule.near = false;
    granule.now += granule.options.pin_time(granule.record, 7);
    granule.record = granule.options.unpin(granule.record, granule.now);
    assert_eq!(granule.fight(us(20), 100), Some(usize::from(relapse)), "it was pinned before");

    let mut slow = Simulation::new(ThrashPolicy::Full);
    slow.near = true;
    assert_eq!(slow.fight(slow.options.lapse + us(1), 1000), None, "what does not bounce is not pinned");
    for policy in [ThrashPolicy::Throttle, ThrashPolicy::Full] {
        let mut kept = Simulation::new(policy);
        (kept.near, kept.can_pin) = (true, policy != ThrashPolicy::Full);
        assert_eq!(kept.fight(us(20), 1000), None, "where nothing may be pinned, nothing is");
    }
}

#[test]
fn after_quiet_all_is_forgotten() {
    let mut granule = Simulation::new(ThrashPolicy::Full);
    granule.fight(us(20), 100).expect("pinned");
    granule.now += granule.options.pin_time(granule.record, 7);
    granule.record = granule.options.unpin(granule.record, granule.now);
    granule.now += granule.options.quiet + granule.bound() + us(1);
    assert_eq!(granule.touch(DEVICE), Verdict::Go);
    assert_eq!((granule.record.pins, granule.record.level, granule.record.bounces), (0, 0, 0));
    granule.fight(us(20), 100).expect("pinned");
    let time = granule.options.pin_time(granule.record, 7);
    assert!(time <= granule.options.pin * 5 / 4, "it is as if it were the first time");
}

#[test]
fn a_slower_fight_calms_down_level_by_level() {
    let mut granule = Simulation::new(ThrashPolicy::Throttle);
    for turn in 0..20 {
        granule.now += us(5);
        granule.take(if turn % 2 == 0 { DEVICE } else { Side::CPU });
    }
    let level = granule.record.level;
    granule.now += granule.options.lapse + granule.bound();
    assert_eq!(granule.take(DEVICE).0, Duration::ZERO);
    assert_eq!(granule.record.level, level - 1);
}

#[test]
fn three_sides_take_turns_and_nobody_starves() {
    let mut granule = Simulation::new(ThrashPolicy::Throttle);
    // All ask all the time, in an order that always lets the first in line ask first.
    let sides = [Side::CPU, DEVICE, OTHER];
    let mut ready = [granule.now; 3];
    let mut had = [Duration::ZERO; 3];
    let mut owner = None;
    let end = granule.now + Duration::from_secs(2);
    while granule.now < end {
        let (asks, &at) = ready.iter().enumerate().min_by_key(|(index, time)| (**time, *index)).unwrap();
        let at = at.max(granule.now);
        if let Some(owner) = owner {
            had[owner] += at - granule.now;
        }
        granule.now = at;
        if owner == Some(asks) {
            ready[asks] = at + us(3);
            continue;
        }
        match granule.touch(sides[asks]) {
            Verdict::Wait(time) => ready[asks] = at + time,
            _ => {
                owner = Some(asks);
                ready[asks] = at + us(3);
            }
        }
    }
    let (least, most) = (had.iter().min().unwrap(), had.iter().max().unwrap());
    assert!(*least * 4 >= *most, "the granule's time was shared as {had:?}");
}

#[test]
fn who_was_exempt_is_not_once_it_had_its_turn() {
    let mut granule = Simulation::new(ThrashPolicy::Throttle);
    // With two sides, nobody ever stands behind a third: a residency with its jitter is all that either waits.
    let most = granule.options.max_residency * (100 + u32::from(granule.options.jitter)) / 100;
    for turn in 0..1000 {
        granule.now += us(5);
        let (waited, _) = granule.take(if turn % 2 == 0 { DEVICE } else { Side::CPU });
        assert!(waited <= most, "turn {turn} waited {waited:?}");
    }
    // The CPU has it. Of two that wait, the first is exempt; when it had its turn, the second is, and who had it before stands behind.
    let wait = |granule: &mut Simulation, side| match granule.touch(side) {
        Verdict::Wait(time) => time,
        verdict => panic!("{verdict:?}"),
    };
    let (first, second) = (wait(&mut granule, OTHER), wait(&mut granule, DEVICE));
    assert!(second > first, "{second:?}, {first:?}");
    granule.now += first;
    assert_eq!(granule.touch(OTHER), Verdict::Go);
    let (second, last) = (wait(&mut granule, DEVICE), wait(&mut granule, Side::CPU));
    assert!(last > second && second <= most, "{last:?}, {second:?}");
}

#[test]
fn refaults_of_what_was_evicted_count_and_are_never_kept_waiting() {
    let mut granule = Simulation::new(ThrashPolicy::Full);
    let mut verdicts = Vec::new();
    for _ in 0..10 {
        granule.now += us(50);
        let decision = granule.options.refault(granule.record, DEVICE, granule.now, true, 7);
        granule.record = decision.record;
        verdicts.push(decision.verdict);
        if decision.verdict == Verdict::Pin {
            break;
        }
        let throttled = verdicts.len() >= usize::from(granule.options.bounces);
        assert_eq!(granule.options.spares(granule.record, granule.now + us(1), 7), throttled);
    }
    assert_eq!(verdicts.last(), Some(&Verdict::Pin));
    assert!(verdicts.iter().all(|verdict| !matches!(verdict, Verdict::Wait(_))));
}

#[test]
fn times_out_of_order_are_no_time_apart() {
    let mut granule = Simulation::new(ThrashPolicy::Full);
    granule.touch(DEVICE);
    granule.now -= us(40);
    assert_eq!(granule.touch(Side::CPU), Verdict::Go);
    assert_eq!(granule.record.bounces, 1, "a negative difference is not a long time");
}

#[test]
fn records_work_across_the_wrap_of_their_time() {
    let mut granule = Simulation::new(ThrashPolicy::Full);
    granule.now = us((1 << TIME_BITS) - 10);
    assert!(granule.fight(us(5), 100).is_some());
}

proptest! {
    /// Whoever asks, whenever, in whatever state: nobody waits longer than the bound, and asking again after the wait said succeeds.
    #[test]
    fn nobody_waits_for_long(touches in prop::collection::vec((1u8..6, 0u64..3_000_000), 1..300), can_pin: bool) {
        let mut granule = Simulation::new(ThrashPolicy::Full);
        granule.can_pin = can_pin;
        for (side, apart) in touches {
            granule.now += us(apart % 10_000);
            if apart % 97 == 0 {
                granule.now += us(apart);
            }
            let (waited, _) = granule.take(Side(side));
            prop_assert!(waited <= granule.bound(), "{waited:?}");
            if apart % 31 == 0 {
                granule.record = granule.options.unpin(granule.record, granule.now);
            }
        }
    }
}
