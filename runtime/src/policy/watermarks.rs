//! Watermarks: when to write dirty pages home ahead of need, and how many.
//!
//! A frame is *ready* if it is free, or if its page would go next and is clean: both can be had without a copy. When fewer frames are ready
//! than the low watermark says, dirty pages are written home in the order in which they would go, until as many are ready as the
//! high one says. The low one is no less than what goes together at most (`victims.rs`), so that a whole block finds itself clean; the distance
//! between the two is what is written at a time. Both are shares of the frames: what is cleaned too early is dirtied again, and was
//! written for nothing.

/// How many frames should be ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watermarks {
    /// With fewer, writing begins.
    pub low: u32,
    /// With as many, it ends.
    pub high: u32,
}

impl Watermarks {
    /// For a device with `frames` frames: a sixteenth and an eighth of them.
    pub fn of(frames: u32) -> Self {
        Self { low: frames / 16, high: frames / 8 }
    }

    /// How many dirty pages are to be cleaned while `ready` frames are ready.
    pub fn to_clean(self, ready: u32) -> u32 {
        if ready < self.low { self.high - ready } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MARKS: Watermarks = Watermarks { low: 64, high: 128 };

    #[test]
    fn writing_begins_below_the_low_mark_and_goes_up_to_the_high_one() {
        assert_eq!(MARKS.to_clean(64), 0);
        assert_eq!(MARKS.to_clean(63), 65);
        assert_eq!(MARKS.to_clean(0), 128);
        assert_eq!(MARKS.to_clean(200), 0);
    }

    #[test]
    fn few_frames_are_left_alone() {
        for frames in 0..16 {
            assert_eq!(Watermarks::of(frames).to_clean(0), 0, "{frames} frames");
        }
        assert_eq!(Watermarks::of(1024), MARKS);
    }

    /// A kernel dirties a page with each miss, and each `1 / pace`th of a miss a page is written home. What is dirty when it must go is copied
    /// then, while the kernel waits.
    fn waits(pace: f64, writes_ahead: bool) -> (u32, u32) {
        let marks = if writes_ahead { MARKS } else { Watermarks { low: 0, high: 0 } };
        let (mut ready, mut planned, mut written) = (0u32, 0u32, 0.0f64);
        let (mut waits, mut times) = (0, 0);
        for _ in 0..100_000 {
            if planned == 0 {
                planned = marks.to_clean(ready);
                times += u32::from(planned > 0);
            }
            written += pace.min(f64::from(planned));
            let done = (written as u32).min(planned);
            (written, planned, ready) = (written - f64::from(done), planned - done, ready + done);
            if ready > 0 { ready -= 1 } else { waits += 1 }
        }
        (waits, times)
    }

    #[test]
    fn a_writer_that_keeps_pace_leaves_no_dirty_victims_and_works_in_batches() {
        assert_eq!(waits(2.0, false), (100_000, 0));
        let (waits, times) = waits(2.0, true);
        assert!(waits <= 100 && times <= 100_000 / (MARKS.high - MARKS.low), "{waits} waits, {times} batches");
    }

    #[test]
    fn a_writer_that_is_slower_saves_what_it_can() {
        let (waits, _) = waits(0.5, true);
        assert!((45_000..55_000).contains(&waits), "{waits}");
    }
}
