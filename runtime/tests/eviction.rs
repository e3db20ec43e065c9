//! Eviction by size of what is used: dense data leaves in blocks, sparse data page by page.

mod common;

use common::with_each_tracker;
use vksvm::Svm;
use vksvm::device::soft::SoftContext;

const PAGE: usize = 4096;

/// Adds one to the first word of every `stride`th of `pages` pages, in each of `rounds` rounds; says what that took.
fn sweep(svm: &Svm, pages: usize, stride: usize, rounds: u32) -> vksvm::Stats {
    let body = |invocation: &mut SoftContext<'_>| {
        let [base, stride] = invocation.arguments::<[u64; 2]>();
        invocation.atomic_add(base + u64::from(invocation.global_id()[0]) * stride * PAGE as u64, 1u32);
    };
    // SAFETY: it changes the pages it is launched with, with atomics only.
    let kernel = unsafe { svm.soft_kernel("add", [1, 1, 1], 16, body) }.unwrap();
    let data = svm.heap().vec_zeroed::<[u32; PAGE / 4]>(pages).unwrap();
    let before = svm.stats();
    for _ in 0..rounds {
        // SAFETY: the data outlives the launch, and nobody else uses it meanwhile.
        let launch = unsafe { kernel.launch([pages.div_ceil(stride) as u32, 1, 1]).pointer(data.as_ptr()) };
        launch.value(stride as u64).run().unwrap();
    }
    let stats = svm.stats().since(&before);
    for (page, words) in data.iter().enumerate() {
        assert_eq!(words[0], if page % stride == 0 { rounds } else { 0 }, "page {page}");
    }
    stats
}

#[test]
fn what_is_used_densely_leaves_in_blocks() {
    with_each_tracker(
        |builder| builder.frames(2048).prefetch(false),
        |svm| {
            let stats = sweep(svm, 3000, 1, 6);
            println!(
                "{} pages in {} rounds, {} early, {} too early",
                stats.evictions, stats.eviction_rounds, stats.evicted_early, stats.evicted_too_early
            );
            assert!(stats.evicted_early > 256, "{} of {} early", stats.evicted_early, stats.evictions);
            assert!(stats.evicted_too_early <= 512 + stats.evictions / 16, "{} too early", stats.evicted_too_early);
        },
    );
}

#[test]
fn what_is_used_here_and_there_leaves_page_by_page() {
    with_each_tracker(
        |builder| builder.frames(512).prefetch(false),
        |svm| {
            let stats = sweep(svm, 16 * 700, 16, 6);
            assert!(stats.evictions > 500, "{stats}");
            assert_eq!(stats.evicted_early, 0, "nothing beyond what is needed");
        },
    );
}
