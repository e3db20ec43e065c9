//! Counters: what the runtime did, in total and per launch.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $name:ident,)*) => {
        /// Totals since the runtime was created, updated without a lock.
        #[derive(Debug, Default)]
        pub struct Counters { $($(#[doc = $doc])+ pub $name: AtomicU64,)* }

        /// A snapshot of the totals, or a difference of two.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Stats { $($(#[doc = $doc])+ pub $name: u64,)* }

        impl Counters {
            /// The totals now.
            pub fn snapshot(&self) -> Stats {
                Stats { $($name: self.$name.load(Ordering::Relaxed),)* }
            }
        }

        impl Stats {
            /// What was added since `earlier`.
            pub fn since(&self, earlier: &Stats) -> Stats {
                Stats { $($name: self.$name.wrapping_sub(earlier.$name),)* }
            }
        }
    };
}

counters! {
    /// Launches that ended, also those that failed.
    launches,
    /// Dispatches, including probes and replays.
    dispatches,
    /// Of these, those of kernels' fast variants, which report nothing: all they use is expected to be on the device.
    fast_dispatches,
    /// And those without any check, of kernels that are confined to what they are given.
    direct_dispatches,
    /// Plain shaders that were rewritten.
    modules_made,
    /// And those that were taken from the cache.
    modules_kept,
    /// Variants that kernels were cut down to.
    variants_made,
    /// And those that were taken from the cache.
    variants_kept,
    /// Entries drained from fault queues.
    device_faults,
    /// Entries that named a page already named.
    duplicates,
    /// Entries that found the queue full; their workgroups were replayed.
    lost_faults,
    /// Ranges serviced.
    ranges,
    /// Pages mapped on a device because a kernel asked for them, or made writable because it was about to.
    pages_faulted,
    /// Pages mapped on a device because their neighbours were asked for.
    pages_filled,
    /// Pages mapped ahead of a stream of misses, or because their neighbours were asked for, counted once it is known whether they were used.
    prefetched,
    /// Of these, those that kernels used.
    prefetched_used,
    /// Pages mapped on a device because the program asked: prefetch, and `AccessedBy`. They count as faulted too.
    pages_brought,
    /// Pages copied to a device.
    pages_in,
    /// Pages copied home.
    pages_out,
    /// Pages mapped on a device that nobody had written: no copy.
    pages_zero,
    /// Home pages that a device maps themselves: no copy.
    pages_remote,
    /// Of those that were mapped so because they looked as if little of them were read, once: pages that were used again, to be copied then.
    pages_sparse_again,
    /// Frames taken from pages to make room for others.
    evictions,
    /// Of these, frames of pages that were dirty still, and copied home while somebody waited.
    evicted_dirty,
    /// And those taken before they were needed, together with others.
    evicted_early,
    /// And of those, pages that were asked for again before what they made room for was.
    evicted_too_early,
    /// Times that pages were evicted together.
    eviction_rounds,
    /// Dirty pages copied home before their frames were needed.
    written_ahead,
    /// Changes of a granule's ownership, and refaults of what was just evicted, that came too soon after the last.
    bounces,
    /// Times that a side had to wait because the other kept a granule for its minimum residency.
    throttles,
    /// Granules pinned at home because they were fought over.
    pins,
    /// Granules whose pin ended.
    unpins,
    /// Commits that were undone because an invalidation came between.
    collisions,
    /// CPU faults caught by the tracker.
    cpu_faults,
    /// CPU faults raised by threads of the device's driver: kernels that do not translate.
    driver_cpu_faults,
    /// Translations made by kernels, where they are counted.
    translations,
    /// Nanoseconds in dispatches.
    kernel_nanos,
    /// Nanoseconds in fault service, copies included.
    service_nanos,
    /// Nanoseconds in copies, both ways.
    copy_nanos,
    /// Times that running kernels had to let go of translations.
    shootdowns,
    /// Epoch changes that this took: fewer, where several shared one.
    epochs,
    /// Nanoseconds of waiting for it.
    shootdown_nanos,
}

impl Counters {
    /// Adds to a counter.
    pub(crate) fn add(counter: &AtomicU64, count: u64) {
        counter.fetch_add(count, Ordering::Relaxed);
    }

    /// Adds a time to a counter of nanoseconds.
    pub(crate) fn add_time(counter: &AtomicU64, time: Duration) {
        // 584 years fit.
        Self::add(counter, time.as_nanos() as u64);
    }
}

impl Stats {
    /// Bytes copied to devices.
    pub fn bytes_in(&self) -> u64 {
        self.pages_in * crate::addr::PAGE_SIZE as u64
    }

    /// Bytes copied home.
    pub fn bytes_out(&self) -> u64 {
        self.pages_out * crate::addr::PAGE_SIZE as u64
    }

    /// Time in dispatches.
    pub fn kernel_time(&self) -> Duration {
        Duration::from_nanos(self.kernel_nanos)
    }

    /// Time in fault service, copies included.
    pub fn service_time(&self) -> Duration {
        Duration::from_nanos(self.service_nanos)
    }

    /// Time in copies, both ways.
    pub fn copy_time(&self) -> Duration {
        Duration::from_nanos(self.copy_nanos)
    }
}

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "  dispatches {:>10}   faults     {:>10}   duplicates {:>10}",
            self.dispatches, self.device_faults, self.duplicates
        )?;
        writeln!(
            f,
            "  ranges     {:>10}   evictions  {:>10}   CPU faults {:>10}",
            self.ranges, self.evictions, self.cpu_faults
        )?;
        writeln!(
            f,
            "  pages in   {:>10}   pages out  {:>10}   zero pages {:>10}",
            self.pages_in, self.pages_out, self.pages_zero
        )?;
        writeln!(
            f,
            "  bytes in   {:>10}   bytes out  {:>10}   driver's CPU faults {}",
            self.bytes_in(),
            self.bytes_out(),
            self.driver_cpu_faults
        )?;
        writeln!(
            f,
            "  rewritten  {:>10}   kept before {:>9}   variants   {:>10}   kept before {:>9}",
            self.modules_made, self.modules_kept, self.variants_made, self.variants_kept
        )?;
        write!(
            f,
            "  kernel {:>11.3?}   service {:>11.3?}   of it copies {:>11.3?}",
            self.kernel_time(),
            self.service_time(),
            self.copy_time()
        )
    }
}
