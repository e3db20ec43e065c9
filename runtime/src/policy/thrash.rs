//! Thrashing: what to do when CPU and devices, or a kernel and eviction, fight over a granule of 64 KiB.
//!
//! A *bounce* is a change of ownership, or a refault of what was just evicted, that comes within a lapse of the change before it.
//! After a few of them the granule is *throttled*: who got it keeps it for a minimum residency, which doubles with each bounce
//! that follows all the same, up to a bound, with jitter. Who waited is exempt next: others let it go first, so that the turn rotates.
//! After repeated throttling the granule is *pinned* to where both sides reach it, for a time that doubles, too. A granule whose neighbour
//! is pinned, or that was pinned itself before it was last quiet, is pinned after a few bounces, without being throttled first: a fight that goes
//! over many granules would else be learned anew in each of them. After quiet, everything is forgotten.
//!
//! ```text
//!            bounces            waited, and bounced again        throttled often
//!   calm ───────────▶ watched ─────────▶ throttled(level) ──────────────────────▶ pinned
//!    ▲                                     │     ▲  │ level + 1                    │ time is up
//!    └──────────── quiet, or a change after the lapse ◀──────────────────────────────┘ (watched again)
//! ```
//!
//! Here are pure functions from a record, a touch and the time to a record and a verdict; `mm/thrash.rs` keeps the records. A record fits
//! an atomic word, so that the fault paths need no lock. Times are unsigned and in microseconds; differences saturate at zero, since
//! threads that raced for a record may hand in times out of order.

use std::time::Duration;

#[cfg(test)]
mod tests;

/// How far the policy goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ThrashPolicy {
    /// Nothing is watched.
    Off,
    /// Owners keep granules for a while.
    Throttle,
    /// And what is throttled again and again is pinned, where devices reach home pages.
    #[default]
    Full,
}

/// The policy's constants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ThrashOptions {
    /// How far the policy goes. Default: [`ThrashPolicy::Full`].
    pub policy: ThrashPolicy,
    /// Changes of ownership further apart than this are no bounce; time that the policy itself makes somebody wait does not count.
    /// Default: 10 ms.
    pub lapse: Duration,
    /// Bounces until a granule is throttled, 1 to 7. Default: 3.
    pub bounces: u8,
    /// The first minimum residency. Default: 100 µs.
    pub residency: Duration,
    /// The longest minimum residency, without jitter. Default: 2 ms.
    pub max_residency: Duration,
    /// Residencies and pins are longer by a random part of this share of theirs, in percent, so that granules do not stay in step.
    /// Default: 25.
    pub jitter: u8,
    /// Residencies until a granule is pinned, up to 11. Default: 3.
    pub throttles: u8,
    /// Bounces until a granule is pinned that has a pinned neighbour, or was pinned of late, 1 to 7. Default: 2.
    pub relapse: u8,
    /// How long a granule is pinned at first. Default: 300 ms.
    pub pin: Duration,
    /// How long at most. Default: 5 s.
    pub max_pin: Duration,
    /// A granule that did not change for so long, and is not pinned, is forgotten. Default: 1 s.
    pub quiet: Duration,
}

impl Default for ThrashOptions {
    fn default() -> Self {
        Self {
            policy: ThrashPolicy::Full,
            lapse: Duration::from_millis(10),
            bounces: 3,
            residency: Duration::from_micros(100),
            max_residency: Duration::from_millis(2),
            jitter: 25,
            throttles: 3,
            relapse: 2,
            pin: Duration::from_millis(300),
            max_pin: Duration::from_secs(5),
            quiet: Duration::from_secs(1),
        }
    }
}

/// Who wants or has a granule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Side(u8);

impl Side {
    /// All CPU threads.
    pub const CPU: Self = Self(1);

    /// A device. Those from the 62nd on count as one.
    pub fn device(number: u8) -> Self {
        Self(number.saturating_add(2).min(SIDES))
    }
}

const SIDES: u8 = 63;
const TIME_BITS: u32 = 34;
const TIME_MASK: u64 = (1 << TIME_BITS) - 1;
const MAX_BOUNCES: u8 = 7;
const MAX_LEVEL: u8 = 12;
const MAX_PINS: u8 = 7;

/// What is known of a granule. Zeros: nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GranuleRecord {
    /// When it last changed, in microseconds modulo 2^34 (five hours: what is that old may be taken for young, once).
    changed: u64,
    /// Who has it; 0: nobody known.
    owner: u8,
    /// Who had it before.
    previous: u8,
    /// Who waits and is exempt from waiting behind others; 0: nobody.
    next: u8,
    bounces: u8,
    /// 0: not throttled. Residency is the first one times 2^(level - 1).
    level: u8,
    pinned: bool,
    /// How often it was pinned since it was last quiet.
    pins: u8,
}

impl GranuleRecord {
    /// The record as a word.
    pub fn pack(self) -> u64 {
        self.changed & TIME_MASK
            | u64::from(self.owner & SIDES) << 34
            | u64::from(self.previous & SIDES) << 40
            | u64::from(self.next & SIDES) << 46
            | u64::from(self.bounces & MAX_BOUNCES) << 52
            | u64::from(self.level & 15) << 55
            | u64::from(self.pinned) << 59
            | u64::from(self.pins & MAX_PINS) << 60
    }

    /// The record in a word.
    pub fn unpack(word: u64) -> Self {
        Self {
            changed: word & TIME_MASK,
            owner: (word >> 34) as u8 & SIDES,
            previous: (word >> 40) as u8 & SIDES,
            next: (word >> 46) as u8 & SIDES,
            bounces: (word >> 52) as u8 & MAX_BOUNCES,
            level: (word >> 55) as u8 & 15,
            pinned: word >> 59 & 1 != 0,
            pins: (word >> 60) as u8 & MAX_PINS,
        }
    }

    /// Whether it is pinned, or was when this was last decided.
    pub fn is_pinned(self) -> bool {
        self.pinned
    }

    /// Whether it bounced of late, as far as is known.
    pub fn is_contested(self) -> bool {
        self.pinned || self.bounces > 0 || self.level > 0
    }

    /// How long ago it last changed; zero if that lies ahead.
    pub fn age(self, now: Duration) -> Duration {
        let age = (micros(now).wrapping_sub(self.changed)) & TIME_MASK;
        // The upper half is what a negative difference looks like.
        if age > TIME_MASK / 2 { Duration::ZERO } else { Duration::from_micros(age) }
    }

    fn given_to(self, side: Side, now: Duration) -> Self {
        let next = if self.next == side.0 { 0 } else { self.next };
        let previous = if self.owner == side.0 { self.previous } else { self.owner };
        Self { owner: side.0, previous, changed: micros(now) & TIME_MASK, next, ..self }
    }
}

fn micros(time: Duration) -> u64 {
    // Half a million years fit.
    time.as_micros() as u64
}

/// What is to be done about a touch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The page moves.
    Go,
    /// Its owner keeps it for so much longer; ask again then.
    Wait(Duration),
    /// The granule has just been pinned: it stays at home, and devices map it there.
    Pin,
}

/// What a touch came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The granule from now on.
    pub record: GranuleRecord,
    /// What is to be done.
    pub verdict: Verdict,
    /// Whether the touch is a bounce.
    pub bounced: bool,
}

impl ThrashOptions {
    /// Decides about a touch by `side` that would take the page from another. `can_pin`: whether devices reach home pages. `near`: whether
    /// a neighbouring granule is pinned. `seed` tells granules apart.
    pub fn touch(
        &self,
        record: GranuleRecord,
        side: Side,
        now: Duration,
        can_pin: bool,
        near: bool,
        seed: u32,
    ) -> Decision {
        let go = |record: GranuleRecord, bounced| Decision {
            record: record.given_to(side, now),
            verdict: Verdict::Go,
            bounced,
        };
        if record.pinned || record.owner == side.0 {
            // A pinned granule's pages go home or are mapped there without further ado.
            return Decision { record, verdict: Verdict::Go, bounced: false };
        }
        let age = record.age(now);
        if let Some(calmer) = self.calmed(record, age, seed) {
            return go(calmer, false);
        }
        if record.owner == 0 {
            return go(record, false);
        }
        let mut record = record;
        if record.level == 0 {
            record.bounces = (record.bounces + 1).min(MAX_BOUNCES);
            if can_pin
                && self.policy == ThrashPolicy::Full
                && (near || record.pins > 0)
                && record.bounces >= self.relapse
            {
                return Self::pinned(record.given_to(side, now));
            }
            if record.bounces < self.bounces {
                return go(record, true);
            }
            record.level = 1;
        }
        let residency = self.residency_of(record, seed);
        let turn = if record.next == 0 || record.next == side.0 {
            residency
        } else {
            Duration::from_micros(micros(residency) * 3 / 2)
        };
        if age < turn {
            // Who had it last stands behind all others.
            let next = if record.next == 0 || record.next == record.previous { side.0 } else { record.next };
            return Decision {
                record: GranuleRecord { next, ..record },
                verdict: Verdict::Wait(turn - age),
                bounced: false,
            };
        }
        self.escalate(record.given_to(side, now), can_pin)
    }

    /// Decides about a refault of `side`'s own, of a page that was evicted within the lapse. It never waits.
    pub fn refault(&self, record: GranuleRecord, side: Side, now: Duration, can_pin: bool, seed: u32) -> Decision {
        if record.pinned {
            return Decision { record, verdict: Verdict::Go, bounced: false };
        }
        let calmer = self.calmed(record, record.age(now), seed);
        let mut record = calmer.unwrap_or(record).given_to(side, now);
        record.bounces = (record.bounces + 1).min(MAX_BOUNCES);
        if record.level == 0 && record.bounces < self.bounces {
            return Decision { record, verdict: Verdict::Go, bounced: true };
        }
        self.escalate(record, can_pin)
    }

    /// The granule changes hands without a fight: no kernel runs, or none did when it last changed.
    pub fn hand_over(&self, record: GranuleRecord, side: Side, now: Duration) -> GranuleRecord {
        if record.pinned {
            return record;
        }
        let calm = if record.age(now) > self.quiet { GranuleRecord::default() } else { record };
        GranuleRecord { bounces: 0, level: 0, next: 0, ..calm }.given_to(side, now)
    }

    /// Whether eviction should take other pages first: the granule was refaulted of late, and its residency is not over.
    pub fn spares(&self, record: GranuleRecord, now: Duration, seed: u32) -> bool {
        record.level > 0 && record.age(now) < self.residency_of(record, seed)
    }

    /// How long a granule that was just pinned stays so.
    pub fn pin_time(&self, record: GranuleRecord, seed: u32) -> Duration {
        let doublings = u32::from(record.pins.saturating_sub(1));
        self.jittered(self.pin.saturating_mul(1 << doublings).min(self.max_pin), record, seed)
    }

    /// The granule after its pin: watched again, and pinned for longer if it goes on.
    pub fn unpin(&self, record: GranuleRecord, now: Duration) -> GranuleRecord {
        let fresh = GranuleRecord { changed: micros(now) & TIME_MASK, pins: record.pins, ..GranuleRecord::default() };
        if record.pinned { fresh } else { record }
    }

    /// One level up, or pinned.
    fn escalate(&self, mut record: GranuleRecord, can_pin: bool) -> Decision {
        record.level = (record.level + 1).min(MAX_LEVEL);
        if can_pin && self.policy == ThrashPolicy::Full && record.level > self.throttles {
            return Self::pinned(record);
        }
        Decision { record, verdict: Verdict::Go, bounced: true }
    }

    fn pinned(record: GranuleRecord) -> Decision {
        let pins = (record.pins + 1).min(MAX_PINS);
        Decision { record: GranuleRecord { pinned: true, pins, ..record }, verdict: Verdict::Pin, bounced: true }
    }

    /// What is left of the history if the last change is too long ago for this to be a bounce.
    fn calmed(&self, record: GranuleRecord, age: Duration, seed: u32) -> Option<GranuleRecord> {
        // Who was made to wait comes late through no merit of its own.
        let waited = if record.level > 0 { self.residency_of(record, seed) * 3 / 2 } else { Duration::ZERO };
        if age > self.quiet + waited {
            Some(GranuleRecord::default())
        } else if age > self.lapse + waited {
            Some(GranuleRecord { bounces: 0, level: record.level.saturating_sub(1), next: 0, ..record })
        } else {
            None
        }
    }

    fn residency_of(&self, record: GranuleRecord, seed: u32) -> Duration {
        let doublings = u32::from(record.level.saturating_sub(1));
        self.jittered(self.residency.saturating_mul(1 << doublings).min(self.max_residency), record, seed)
    }

    /// The same for the same record, so that whoever asks again is told the same. In whole microseconds, as records are.
    fn jittered(&self, time: Duration, record: GranuleRecord, seed: u32) -> Duration {
        let mixed = (record.changed ^ u64::from(seed) << 20 | 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56;
        Duration::from_micros(micros(time + time * u32::from(self.jitter) * (mixed as u32) / 25_600))
    }
}
