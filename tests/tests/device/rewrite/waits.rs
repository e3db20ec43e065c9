//! A plain kernel that waits for the CPU between accesses to the same objects, while their pages go.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use vksvm::{FaultMode, ThrashOptions, ThrashPolicy};
use vksvm_tests::{moving, spirv};

const TURNS: u32 = 20;
/// All in one subgroup: others might not start before it is done waiting.
const INVOCATIONS: usize = 4;

/// A word of the heap, as the CPU accesses it while the kernel runs.
fn word(words: usize, index: usize) -> &'static AtomicU32 {
    // SAFETY: callers name words of allocations that outlive the launch, accessed atomically by the CPU meanwhile.
    unsafe { AtomicU32::from_ptr((words as *mut u32).add(index)) }
}

/// What the CPU tells an invocation in a turn: in the word that is only loaded, and in that which was stored to before.
fn says(turn: u32, i: usize) -> (u32, u32) {
    (1000 * turn + i as u32, 5_000_000 + 1000 * turn + i as u32)
}

#[test]
fn what_is_done_to_an_object_after_a_wait_is_done_where_its_page_is_then() {
    // The policy would keep the pages from being taken.
    let thrash = ThrashOptions { policy: ThrashPolicy::Off, ..ThrashOptions::default() };
    let limit = Duration::from_secs(100);
    let svm = moving(|builder| builder.fault_mode(FaultMode::Live).thrash(thrash).time_limit(limit));
    assert!(svm.info().fault_mode.starts_with("live"), "{}", svm.info().fault_mode);
    let heap = svm.heap();
    let mut stored = heap.vec_zeroed::<[u32; 1024]>(1).unwrap();
    let mut loaded = heap.vec_zeroed::<[u32; 1024]>(1).unwrap();
    let mut counted = heap.vec_zeroed::<[u32; 1024]>(1).unwrap();
    let mut go = heap.vec_zeroed::<[u32; 1024]>(1).unwrap();
    // SAFETY: the kernel changes the first words of `stored` and `counted` and reads `loaded` and `go`, which with atomics. What the CPU
    // changes of them meanwhile it changes while the kernel waits for `go`.
    let kernel = unsafe { svm.kernel("again_wait", spirv!("../plain/spv/again_wait")) }.unwrap();
    let stats = kernel.module().rewritten.unwrap();
    assert_eq!(stats.covered, 6, "nothing is put to the test: {stats:?}");
    let at = [&mut stored, &mut loaded, &mut counted, &mut go].map(|vec| vec.as_mut_ptr() as usize);
    let [stores, loads, counts, turn_word] = at;
    let launch = kernel.launch([1, 1, 1]).write(&mut stored[..]).read(&loaded[..]).write(&mut counted[..]);
    let launch = launch.write(&mut go[..]).value(TURNS);
    let taken_before = svm.stats().shootdowns;
    let wrong = std::thread::scope(|scope| {
        let running = scope.spawn(|| launch.run());
        let mut wrong = None;
        for turn in 1..=TURNS {
            // The last of what comes before the wait.
            while (0..INVOCATIONS).any(|i| word(stores, 4 * i).load(Ordering::Acquire) != turn)
                && !running.is_finished()
            {
                std::thread::sleep(Duration::from_micros(50));
            }
            wrong = (0..INVOCATIONS).find_map(|i| found_wrong(turn - 1, i, stores, counts, 1));
            if wrong.is_some() {
                break;
            }
            // All pages are taken, and those that the kernel stores to are at home alone.
            for i in 0..INVOCATIONS {
                let (told, instead) = says(turn, i);
                word(stores, 4 * i).store(instead, Ordering::Relaxed);
                word(loads, i).store(told, Ordering::Relaxed);
                word(counts, i).fetch_add(100, Ordering::Relaxed);
            }
            word(turn_word, 0).store(turn, Ordering::Release);
        }
        // Whatever happened, it does not wait any more.
        word(turn_word, 0).store(TURNS, Ordering::Release);
        running.join().unwrap().unwrap();
        wrong
    });
    assert_eq!(wrong, None);
    assert_eq!((0..INVOCATIONS).find_map(|i| found_wrong(TURNS, i, stores, counts, 0)), None);
    let taken = svm.stats().shootdowns - taken_before;
    assert!(taken >= u64::from(TURNS), "pages were taken {taken} times only");
}

/// What an invocation did wrong up to the end of a turn; of the next it has counted `more`.
fn found_wrong(turn: u32, i: usize, stores: usize, counts: usize, more: u32) -> Option<String> {
    let found = |which| word(stores, 4 * i + which).load(Ordering::Relaxed);
    let (told, instead) = says(turn, i);
    let told_before = if turn > 1 { says(turn - 1, i).0 } else { 0 };
    let should = if turn == 0 { [0; 3] } else { [turn, instead, told_before + told] };
    let is = [found(1), found(2), found(3)];
    let (count, counts_to) = (word(counts, i).load(Ordering::Relaxed), 102 * turn + more);
    (is != should || count != counts_to).then(|| {
        format!(
            "turn {turn}, invocation {i}: stored, heard and summed up {is:?}, should be {should:?}; counted {count}, \
             should be {counts_to}"
        )
    })
}
