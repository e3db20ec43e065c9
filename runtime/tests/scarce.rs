//! Each thing that the system may refuse is refused in turn: nothing is lost, every error says what to do, the runtime goes on, and all is given back.
//!
//! The memory of Rust's own allocator is not among them; see `scarce.rs`. Debug builds only.
#![cfg(debug_assertions)]

mod common;

use common::{passed_in_own_process, soft, trackers};
use std::collections::BTreeSet;
use std::fmt::Display;
use std::sync::Mutex;
use vksvm::device::soft::SoftContext;
use vksvm::{Hint, Kernel, Permission, Placement, Svm, TrackerKind, scarce};

const PAGE: usize = 4096;
const WORDS: usize = PAGE / 4;
/// What an error may tell the user to do.
const REMEDIES: [&str; 5] = ["free", "raise", "lower", "close", "smaller"];

/// Sets the first word of each page of an array.
fn assign(svm: &Svm) -> Kernel {
    let body = |invocation: &mut SoftContext<'_>| {
        let [base, value] = invocation.arguments::<[u64; 2]>();
        invocation.store(base + (PAGE as u64) * u64::from(invocation.global_id()[0]), value as u32);
    };
    // SAFETY: it changes the array it is launched with.
    unsafe { svm.soft_kernel("assign", [1, 1, 1], 16, body) }.unwrap()
}

/// Does something until it is not refused, and checks what is said meanwhile.
fn insist<T, E: Display>(what: &str, mut tried: impl FnMut() -> Result<T, E>) -> T {
    for _ in 0..100 {
        match tried() {
            Ok(done) => return done,
            Err(error) => {
                let text = error.to_string();
                let lower = text.to_lowercase();
                if !REMEDIES.iter().any(|remedy| lower.contains(remedy)) {
                    UNCLEAR.lock().unwrap().insert(format!("{what}: {text}"));
                }
            }
        }
    }
    panic!("{what} is refused for ever");
}

/// Errors that say nothing to do.
static UNCLEAR: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// A little of everything, whatever is refused.
fn run(tracker: TrackerKind, placement: Placement) {
    let svm = insist("opening", || soft(tracker, |builder| builder.placement(placement).frames(40)));
    let heap = svm.heap();
    let kernel = assign(&svm);
    let mut data = insist("allocating", || heap.vec_zeroed::<[u32; WORDS]>(60));
    for value in 1..3u32 {
        data.iter_mut().for_each(|page| page[1] += 1);
        insist("launching", || {
            let launch = kernel.launch([60, 1, 1]).write(&mut data[..]);
            launch.value(u64::from(value)).run()
        });
        for (number, page) in data.iter().enumerate() {
            assert_eq!(page[..3], [value, value, 0], "page {number} in round {value}");
        }
    }
    // Hints, and what is done for them.
    let device = svm.location();
    insist("advising", || svm.advise_and_wait(&data[..10], Hint::ReadMostly(true)));
    insist("prefetching", || svm.prefetch_and_wait(&data[..30], device));
    insist("fetching back", || svm.prefetch_and_wait(&data[..30], vksvm::Location::Cpu));
    let copy = insist("taking a snapshot", || svm.snapshot_of(&raw const data[..]));
    assert!(copy.iter().all(|page| page[..3] == [2, 2, 0]));
    insist("discarding", || svm.discard(&mut data[50..]));
    assert!(data.iter().enumerate().all(|(number, page)| page[1] == if number < 50 { 2 } else { 0 }));
    // Mappings.
    let mut mapping = insist("mapping", || svm.map(16 * PAGE, Permission::ReadWrite));
    insist("storing", || mapping.as_mut_slice().map(|bytes| bytes.fill(7)));
    // SAFETY: the mapping has 16 pages and lives.
    insist("launching", || unsafe { kernel.launch([16, 1, 1]).pointer(mapping.as_ptr()) }.value(9u64).run());
    insist("moving", || mapping.move_to(None));
    let right = |bytes: &[u8]| bytes.chunks(PAGE).all(|page| page[..5] == [9, 0, 0, 0, 7]);
    assert!(right(mapping.as_slice()), "moved wrongly");
    insist("protecting", || mapping.protect(0..PAGE, Permission::ReadOnly));
    assert!(right(mapping.as_slice()), "protected wrongly");
    insist("unmapping", || mapping.split_off(8 * PAGE).map(drop));
    drop(mapping);
    svm.set_budget(8 * PAGE as u64);
    insist("launching", || kernel.launch([60, 1, 1]).write(&mut data[..]).value(5u64).run());
    assert!(data.iter().all(|page| page[0] == 5));
    assert_eq!(svm.lost(), vksvm::service::LostPages::default());
}

/// Open files, mappings, and threads of this process.
fn held() -> [usize; 3] {
    let count = |folder: &str| std::fs::read_dir(folder).unwrap().count();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let heap = maps.lines().filter(|line| line.contains("vksvm")).count();
    [count("/proc/self/fd"), heap, count("/proc/self/task")]
}

/// Threads of drivers and handlers end a little after who asked them to.
fn settled(expected: [usize; 3]) -> [usize; 3] {
    for _ in 0..200 {
        if held() == expected {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    held()
}

#[test]
fn whatever_the_system_refuses_nothing_is_lost_and_every_error_says_what_to_do() {
    let name = "whatever_the_system_refuses_nothing_is_lost_and_every_error_says_what_to_do";
    if passed_in_own_process(name) {
        return;
    }
    let mut places = BTreeSet::new();
    for tracker in trackers() {
        for placement in [Placement::Copy, Placement::Remote] {
            // What is made once a process, and caches.
            run(tracker, placement);
            let before = settled(held());
            for times in [1, 20] {
                // Single refusals of each question there is; rows of them, which overlap, from every third on.
                let step = if times == 1 { 1 } else { 3 };
                let mut last = 0;
                for number in (1..).step_by(step) {
                    scarce::refuse(number, times);
                    run(tracker, placement);
                    let asked = scarce::relent();
                    let refused = asked.iter().filter(|(_, refused)| *refused).map(|(place, _)| *place);
                    let Some(first) = refused.clone().next() else { break };
                    places.extend(refused);
                    last = number;
                    let after = settled(before);
                    assert_eq!(
                        after, before,
                        "files, mappings and threads after {first} was refused {times} times, question {number}"
                    );
                }
                println!("{tracker}, {placement:?}: {last} questions refused, {times} at a time");
            }
        }
    }
    println!("refused: {places:?}");
    let unclear = UNCLEAR.lock().unwrap();
    assert!(unclear.is_empty(), "errors that do not say what to do: {unclear:#?}");
    assert!(places.len() >= 15, "too little was refused: {places:?}");
}
