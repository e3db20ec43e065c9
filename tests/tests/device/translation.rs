//! Translations that are kept, shared by a workgroup or looked up once for a part of an array: the same results as with one for each
//! access, in both modes, cold and warm, with few frames, and while the CPU takes pages back.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use vksvm::{FaultMode, Kernel, SvmVec};
use vksvm_tests::{Fixture, moving, spirv};

const MODES: [FaultMode; 2] = [FaultMode::Replay, FaultMode::Live];

/// A word that CPU threads and kernels use at the same time.
fn word(words: usize, index: usize) -> &'static AtomicU32 {
    // SAFETY: callers name words of allocations that outlive the launch, accessed atomically by the CPU meanwhile.
    unsafe { AtomicU32::from_ptr((words as *mut u32).add(index)) }
}

/// Words of a row, and one more: rows begin anywhere in a page and straddle its end.
const WIDTH: u32 = 333;
const ROWS: u32 = 200;

struct Rows {
    kernel: Kernel,
    data: SvmVec<u32>,
    more: SvmVec<u32>,
    expected: Vec<u32>,
}

impl Rows {
    fn new(svm: &Fixture) -> Self {
        let data: Vec<u32> = (0..WIDTH * ROWS).collect();
        let more: Vec<u32> = data.iter().map(|word| word % 77).collect();
        Self {
            // SAFETY: the kernel reads `more` and changes rows of `data` that it owns.
            kernel: unsafe { svm.kernel("rows", spirv!("rows")) }.unwrap(),
            data: svm.heap().vec_from_slice(&data).unwrap(),
            more: svm.heap().vec_from_slice(&more).unwrap(),
            expected: data,
        }
    }

    fn run(&mut self) -> vksvm::LaunchReport {
        for (word, more) in self.expected.iter_mut().zip(&self.more) {
            *word = word.wrapping_mul(5).wrapping_add(7).wrapping_add(*more);
        }
        let launch = self.kernel.launch([ROWS.div_ceil(32), 1, 1]).write(&mut self.data[..]).read(&self.more[..]);
        launch.value([WIDTH, ROWS]).run().unwrap()
    }

    fn check(&self) {
        let wrong = self.data.iter().zip(&self.expected).position(|(found, wanted)| found != wanted);
        assert_eq!(wrong, None, "{} for {}", self.data[wrong.unwrap_or(0)], self.expected[wrong.unwrap_or(0)]);
    }
}

#[test]
fn kept_translations_give_the_same_results_cold_warm_and_after_cpu_writes() {
    for mode in MODES {
        let svm = moving(|builder| builder.fault_mode(mode));
        let mut rows = Rows::new(&svm);
        // Warm ones change what the kernel stored before without anybody having looked.
        for _ in 0..3 {
            rows.run();
        }
        rows.check();
        for round in 0..3usize {
            for index in (round..rows.data.len()).step_by(1000) {
                rows.data[index] = index as u32;
                rows.expected[index] = index as u32;
                rows.more[index] += 1;
            }
            rows.run();
        }
        rows.check();
    }
}

#[test]
fn kept_translations_give_the_same_results_with_few_frames() {
    for mode in MODES {
        // A workgroup's rows lie on eleven pages of each array; all of the data on 66 of each.
        let svm = moving(|builder| builder.fault_mode(mode).frames(60));
        let mut rows = Rows::new(&svm);
        for _ in 0..2 {
            let report = rows.run();
            assert!(report.evictions > 0, "{report}");
            rows.check();
        }
    }
}

#[test]
fn what_was_kept_is_not_translated_again() {
    let svm = moving(|builder| builder.fault_mode(FaultMode::Replay).count_translations(true));
    let mut rows = Rows::new(&svm);
    rows.run();
    let warm = rows.run();
    rows.check();
    // Of three accesses for each word, in a probe and in the real pass, those that come to another page: at most two pages of each
    // array for each row, and once more where reading becomes storing. A probe keeps nothing that it would store through.
    let most = u64::from(ROWS) * (u64::from(WIDTH) + 2 * 2 * 2 * 2);
    assert!(warm.translations <= most, "{} translations, at most {most} expected", warm.translations);
}

/// What the CPU finds in pages which a kernel changed, through translations that it keeps, while the CPU changed other words there.
#[test]
fn kept_translations_end_when_the_cpu_takes_pages_while_the_kernel_runs() {
    for mode in MODES {
        let svm = moving(|builder| builder.fault_mode(mode).frames(100));
        let mut rows = Rows::new(&svm);
        let cells = rows.data.as_mut_ptr() as usize;
        rows.run();
        // The last rows are the CPU's from here on.
        let own = (WIDTH * (ROWS - 8)) as usize;
        for round in 1..6u32 {
            let (data, more) = (&mut rows.data, &rows.more);
            let launch = rows.kernel.launch([(ROWS - 8).div_ceil(32), 1, 1]).write(&mut data[..]).read(&more[..]);
            let launch = launch.value([WIDTH, ROWS - 8]);
            std::thread::scope(|scope| {
                let running = scope.spawn(|| launch.run());
                let mut turn = 0usize;
                while !running.is_finished() {
                    // Reads of what the kernel changes take its permission to store, stores beside it take the page.
                    std::hint::black_box(word(cells, turn * 4099 % own).load(Ordering::Relaxed));
                    word(cells, own + turn % 2000).store(round, Ordering::Relaxed);
                    turn += 1;
                    std::thread::sleep(Duration::from_micros(30));
                }
                running.join().unwrap().unwrap();
            });
            for index in 0..own {
                rows.expected[index] =
                    rows.expected[index].wrapping_mul(5).wrapping_add(7).wrapping_add(rows.more[index]);
            }
        }
        rows.data.truncate(own);
        rows.expected.truncate(own);
        rows.check();
    }
}

/// Nothing is kept of a null pointer, which poisoned invocations find everywhere, nor of the zero frame, which a store replaces.
#[test]
fn what_is_not_there_is_not_kept() {
    for mode in MODES {
        let svm = moving(|builder| builder.fault_mode(mode));
        let heap = svm.heap();
        let count = 500usize;
        let words = heap.vec_from_slice(&(0..count as u32 * 300).collect::<Vec<_>>()).unwrap();
        let places: Vec<u64> = (0..count).map(|i| words.as_ptr() as u64 + 1200 * i as u64).collect();
        let places = heap.vec_from_slice(&places).unwrap();
        let mut zeros = heap.vec_zeroed::<[u32; 1024]>(count).unwrap();
        let mut results = heap.vec_zeroed::<u32>(count).unwrap();
        // SAFETY: the kernel reads the places and where they point to, and changes zeros and results.
        let kernel = unsafe { svm.kernel("kept_again", spirv!("kept_again")) }.unwrap();
        // SAFETY: nobody changes the words meanwhile.
        let launch = unsafe { kernel.launch([count.div_ceil(32) as u32, 1, 1]).pointer(places.as_ptr()) };
        launch.write(&mut zeros[..]).write(&mut results[..]).value([count as u32, 0]).run().unwrap();
        for i in 0..count {
            assert_eq!(zeros[i][0], i as u32 + 5, "{mode:?}, {i}");
            assert_eq!(results[i], 300 * i as u32 + i as u32 + 5, "{mode:?}, {i}");
        }
    }
}

#[test]
fn workgroups_translate_together_and_are_poisoned_together() {
    for (mode, frames) in
        [(FaultMode::Replay, 1000), (FaultMode::Live, 1000), (FaultMode::Replay, 12), (FaultMode::Live, 12)]
    {
        let svm = moving(|builder| builder.fault_mode(mode).frames(frames));
        let heap = svm.heap();
        let (groups, turns) = (40usize, 5u32);
        let mut tiles = heap.vec_zeroed::<[u32; 1024]>(groups).unwrap();
        let mut expected = vec![[0u32; 64]; groups];
        for (group, tile) in tiles.iter_mut().enumerate() {
            tile[..64].iter_mut().enumerate().for_each(|(i, word)| *word = (group * 100 + i) as u32);
            tile[64] = group as u32 + 1;
            expected[group].copy_from_slice(&tile[..64]);
        }
        let base = tiles.as_ptr() as u64;
        let places: Vec<u64> = (0..groups).map(|group| base + 4096 * group as u64).collect();
        let directory = heap.vec_from_slice(&places).unwrap();
        // SAFETY: the kernel reads the directory and changes the tiles, each by one workgroup.
        let kernel = unsafe { svm.kernel("tiles", spirv!("tiles")) }.unwrap();
        for round in 0..3u32 {
            // SAFETY: the tiles are this launch's until it has ended.
            let launch = unsafe { kernel.launch([groups as u32, 1, 1]).pointer(directory.as_ptr()) };
            launch.value(turns).value(0u32).run().unwrap();
            for (group, words) in expected.iter_mut().enumerate() {
                for _ in 0..turns {
                    words.reverse();
                    words.iter_mut().for_each(|word| *word += group as u32 + 1);
                }
            }
            for (group, tile) in tiles.iter_mut().enumerate().filter(|(group, _)| *group as u32 % 3 == round) {
                assert_eq!(tile[..64], expected[group], "{mode:?}, {frames} frames, tile {group}, round {round}");
                tile[0] += 1;
                expected[group][0] += 1;
            }
        }
        assert!(tiles.iter().zip(&expected).all(|(tile, words)| tile[..64] == *words));
    }
}

#[test]
fn parts_of_arrays_are_looked_up_once_whether_all_is_there_or_not() {
    let n = 300_000u32;
    for (mode, frames, idempotent) in [
        (FaultMode::Replay, 4000, true),
        (FaultMode::Live, 4000, true),
        (FaultMode::Replay, 200, true),
        (FaultMode::Replay, 200, false),
    ] {
        let svm = moving(|builder| builder.fault_mode(mode).frames(frames).count_translations(true));
        let heap = svm.heap();
        let mut data = heap.vec_from_slice(&(0..n + 5).collect::<Vec<_>>()).unwrap();
        let mut out = heap.vec_from_slice(&vec![0u32; n as usize + 7]).unwrap();
        // SAFETY: the kernel reads the data and writes `out`.
        let kernel = unsafe { svm.kernel("spans", spirv!("spans")) }.unwrap();
        let kernel = if idempotent { kernel.idempotent() } else { kernel };
        for round in 0..4u32 {
            let width = [7, 20, 3, 13][round as usize];
            let grid = [n.div_ceil(width).div_ceil(32), 1, 1];
            let launch = kernel.launch(grid).read_array(&data[5..]).write_array(&mut out[7..]);
            let report = launch.value([width, n]).run().unwrap();
            let wrong = (0..n as usize).find(|&i| out[i + 7] != data[i + 5] + 3);
            assert_eq!(wrong, None, "{mode:?}, {frames} frames, width {width}");
            assert_eq!(out[..7], [0; 7], "what lies before the slice changed");
            // With few frames, how much is contiguous is up to what was evicted.
            assert!(frames < 1000 || report.translations == 0, "width {width}: {report}");
            data.iter_mut().step_by(900).for_each(|value| *value += 1);
        }
    }
}

/// The CPU has taken a few pages out of the middle of an array: the rest is still used by device address.
#[test]
fn an_array_with_a_hole_is_used_by_address_beside_the_hole() {
    let n = 200_000u32;
    for idempotent in [true, false] {
        let svm = moving(|builder| builder.count_translations(true));
        let heap = svm.heap();
        // What was never written has no frames of its own.
        let mut data = heap.vec_zeroed::<u32>(n as usize).unwrap();
        let half = n as usize / 3;
        data[half..].iter_mut().enumerate().for_each(|(i, value)| *value = i as u32);
        let mut out = heap.vec_from_slice(&vec![9u32; n as usize]).unwrap();
        // SAFETY: the kernel reads the data and writes `out`.
        let kernel = unsafe { svm.kernel("arrays", spirv!("arrays")) }.unwrap();
        let kernel = if idempotent { kernel.idempotent() } else { kernel };
        for round in 0..3 {
            out.fill(9);
            let launch = kernel.launch([n.div_ceil(64), 1, 1]).read_array(&data[..]).write_array(&mut out[..]);
            let report = launch.value([0u64; 2]).value(n).value(0u32).run().unwrap();
            assert!(out[..] == data[..], "the kernel stored something else");
            let passes = if idempotent { 1.0 } else { 2.0 };
            let share = report.translations as f64 / (passes * f64::from(2 * n));
            // A sixth of the accesses is to the hole. The first launch replays what missed there.
            let most = if round == 0 { 0.4 } else { 0.25 };
            assert!(share > 0.1 && share < most, "{share} translated in round {round}, {report}");
        }
    }
}
