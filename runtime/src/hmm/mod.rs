//! The range protocol: notifiers, mirrors, ranges. Knows no device and no tracker.
