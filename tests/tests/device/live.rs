//! Live mode: CPU threads and a kernel that runs work on the same pages at the same time.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use vksvm::addr::{PageRange, VirtAddr};
use vksvm::device::vulkan::{CopiesBeside, CopyPath, VulkanDevice, VulkanOptions};
use vksvm::device::{Device, DeviceError, DeviceInfo, Dispatch, LiveUnit, PageCopy, SharedMemory, SharedUse, Slab};
use vksvm::hmm::{Blocking, Event};
use vksvm::kernel::KernelModule;
use vksvm::{FaultMode, LaunchError, Placement, Stats, ThrashOptions, ThrashPolicy};
use vksvm_tests::{Fixture, moving, spirv, with};

fn live_with(policy: ThrashPolicy, copies: CopyPath) -> Fixture {
    let thrash = ThrashOptions { policy, ..ThrashOptions::default() };
    let svm = moving(|builder| {
        builder.fault_mode(FaultMode::Live).time_limit(Duration::from_secs(100)).thrash(thrash).copy_path(copies)
    });
    let mode = svm.info().fault_mode;
    assert!(mode.starts_with("live"), "{mode}");
    assert_eq!(mode.contains("queue of their own"), copies == CopyPath::Staging, "{mode}");
    svm
}

/// Tells threads, when it goes, that nobody waits for what they do any more.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A word of the heap, as CPU threads access it while a kernel runs.
fn word(words: *mut u32, index: usize) -> &'static AtomicU32 {
    // SAFETY: callers name words of allocations that outlive the launch, accessed atomically by the CPU meanwhile.
    unsafe { AtomicU32::from_ptr(words.add(index)) }
}

#[test]
fn no_store_is_lost_to_pages_that_the_cpu_keeps_taking_back() {
    keep_taking_back(CopyPath::Auto, 1500, &STORING);
}

#[test]
fn no_store_is_lost_through_translations_that_invocations_keep() {
    let kernel =
        Storing { name: "keep_storing_cached", spirv: spirv!("keep_storing_cached"), stay: 8, limit: u32::MAX };
    keep_taking_back(CopyPath::Auto, 1500, &kernel);
}

#[test]
fn no_store_is_lost_through_translations_that_workgroups_make_together() {
    let kernel =
        Storing { name: "keep_storing_uniform", spirv: spirv!("keep_storing_uniform"), stay: 8, limit: 400_000 };
    keep_taking_back(CopyPath::Auto, 1500, &kernel);
}

/// Where frames are not mapped by the host, copies are commands, which must not wait for the kernel that waits for them.
#[test]
fn no_store_is_lost_either_where_copies_go_through_a_queue() {
    keep_taking_back(CopyPath::Staging, 300, &STORING);
}

/// A kernel that stores for ever, or for `limit` turns, staying on a page for `stay` of them.
struct Storing {
    name: &'static str,
    spirv: &'static [u8],
    stay: u32,
    limit: u32,
}

const STORING: Storing = Storing { name: "keep_storing", spirv: spirv!("keep_storing"), stay: 1, limit: u32::MAX };

fn keep_taking_back(copies: CopyPath, rounds: usize, &Storing { name, spirv, stay, limit }: &Storing) {
    // The policy would keep the pages from being taken.
    let svm = live_with(ThrashPolicy::Off, copies);
    let heap = svm.heap();
    let (pages, groups) = (8usize, 3u32);
    let invocations = groups as usize * 32;
    let mut data = heap.vec_zeroed::<[u32; 1024]>(pages).unwrap();
    let mut stop = heap.vec_from_slice(&[0u32]).unwrap();
    let mut turns = heap.vec_zeroed::<u32>(invocations).unwrap();
    // SAFETY: the kernel counts up words of its own in `data`, which holds them, and stores to `turns`; the CPU keeps to the last
    // word of each page and to `stop`.
    let kernel = unsafe { svm.kernel(name, spirv) }.unwrap();
    let (cells, flag) = (data.as_mut_ptr() as usize, stop.as_mut_ptr() as usize);
    let launch = kernel.launch([groups, 1, 1]).write(&mut data[..]).read(&stop[..]).write(&mut turns[..]);
    let launch = launch.value([pages as u32, limit]);
    let taken = std::thread::scope(|scope| {
        let running = scope.spawn(|| launch.run());
        // Its pipeline is made first.
        while svm.stats().device_faults < 2 && !running.is_finished() {
            std::thread::sleep(Duration::from_millis(1));
        }
        // On a busy machine the kernel may not come to it in a round.
        let (begun, mut taken) = (Instant::now(), 0u32);
        let enough = |stats: &Stats| stats.shootdowns as usize > rounds / 15;
        while !running.is_finished()
            && ((taken as usize) < rounds || !enough(&svm.stats()) && begun.elapsed() < HANG / 2)
        {
            let round = taken as usize;
            word(cells as *mut u32, round % pages * 1024 + 1023).fetch_add(1, Ordering::Relaxed);
            taken += 1;
            // The kernel takes it back meanwhile.
            std::thread::sleep(Duration::from_micros(20));
            if round.is_multiple_of(3) {
                word(cells as *mut u32, (round + 3) % pages * 1024).load(Ordering::Relaxed);
            }
        }
        word(flag as *mut u32, 0).store(1, Ordering::Release);
        running.join().unwrap().unwrap();
        taken
    });
    for (i, &turns) in turns.iter().enumerate() {
        for (page, words) in data.iter().enumerate() {
            let cycle = pages as u32 * stay;
            let expected = turns / cycle * stay + (turns % cycle).saturating_sub(page as u32 * stay).min(stay);
            assert_eq!(words[i], expected, "invocation {i}, page {page}, {turns} turns");
        }
    }
    assert_eq!(data.iter().map(|page| page[1023]).sum::<u32>(), taken);
    assert!(svm.stats().shootdowns as usize > rounds / 15, "{}", svm.stats());
}

/// Invalidations wait for a running kernel without a lock, so that several wait for the same epoch. Some come from CPU stores, which
/// hold page locks, some from outside, which do not.
#[test]
fn shootdowns_of_several_threads_share_epochs_and_lose_no_store() {
    let svm = live_with(ThrashPolicy::Off, CopyPath::Auto);
    let heap = svm.heap();
    let (pages, groups, threads) = (8usize, 2u32, 6usize);
    let mut data = heap.vec_zeroed::<[u32; 1024]>(pages).unwrap();
    let mut stop = heap.vec_from_slice(&[0u32]).unwrap();
    let mut turns = heap.vec_zeroed::<u32>(groups as usize * 32).unwrap();
    // SAFETY: as above.
    let kernel = unsafe { svm.kernel("keep_storing", spirv!("keep_storing")) }.unwrap();
    let (cells, flag) = (data.as_mut_ptr() as usize, stop.as_mut_ptr() as usize);
    let launch = kernel.launch([groups, 1, 1]).write(&mut data[..]).read(&stop[..]).write(&mut turns[..]);
    let launch = launch.value([pages as u32, u32::MAX]);
    let (over, taken) = (AtomicBool::new(false), AtomicU32::new(0));
    std::thread::scope(|scope| {
        let (svm, over, taken) = (&svm, &over, &taken);
        let ends = Ends(over);
        let running = scope.spawn(|| launch.run());
        let takers: Vec<_> = (0..threads)
            .map(|thread| {
                scope.spawn(move || {
                    let space = svm.address_space();
                    let views = &space.home().views;
                    for turn in (thread..).take_while(|_| !over.load(Ordering::Relaxed)) {
                        let page = turn % pages;
                        if thread % 2 == 0 {
                            word(cells as *mut u32, page * 1024 + 1023).fetch_add(1, Ordering::Relaxed);
                            taken.fetch_add(1, Ordering::Relaxed);
                        } else {
                            let index = views.page_of(VirtAddr(cells as u64 + page as u64 * 4096)).unwrap();
                            let pages = PageRange::single(index);
                            drop(space.notifiers().invalidate(pages, Event::Migrate, None, Blocking::Yes).unwrap());
                        }
                    }
                })
            })
            .collect();
        let begun = Instant::now();
        let shared = |stats: &Stats| stats.shootdowns >= 500 && stats.epochs < stats.shootdowns;
        while !shared(&svm.stats()) && begun.elapsed() < HANG && !running.is_finished() {
            std::thread::sleep(Duration::from_millis(5));
        }
        drop(ends);
        takers.into_iter().for_each(|taker| taker.join().unwrap());
        word(flag as *mut u32, 0).store(1, Ordering::Release);
        running.join().unwrap().unwrap();
    });
    let stats = svm.stats();
    assert!(stats.epochs < stats.shootdowns, "none was shared: {stats}");
    for (i, &turns) in turns.iter().enumerate() {
        for (page, words) in data.iter().enumerate() {
            let expected = turns / pages as u32 + u32::from((page as u32) < turns % pages as u32);
            assert_eq!(words[i], expected, "invocation {i}, page {page}, {turns} turns");
        }
    }
    assert_eq!(data.iter().map(|page| page[1023]).sum::<u32>(), taken.into_inner());
}

#[test]
fn a_million_numbers_go_to_a_running_kernel_and_back() {
    ring(ThrashPolicy::default(), CopyPath::Auto, 1_000_000);
}

/// Without the policy, which soon leaves the pages at home, where nothing can be lost.
#[test]
fn numbers_go_to_a_running_kernel_and_back_over_pages_that_move() {
    ring(ThrashPolicy::Off, CopyPath::Auto, 150_000);
}

#[test]
fn numbers_go_to_a_running_kernel_and_back_through_a_queue_for_copies() {
    ring(ThrashPolicy::Off, CopyPath::Staging, 30_000);
}

/// What is published before it is there would be read before it is there.
#[test]
fn numbers_go_to_a_running_kernel_and_back_where_copies_take_their_time() {
    let device = Faulty::open(Probe::AsItIs);
    device.dawdles.store(true, Ordering::Relaxed);
    let thrash = ThrashOptions { policy: ThrashPolicy::Off, ..ThrashOptions::default() };
    let svm = moving(|builder| {
        builder.with_device(device.clone()).fault_mode(FaultMode::Live).time_limit(HANG).thrash(thrash)
    });
    ring_on(&svm, 30_000);
    assert!(svm.stats().pages_in > 20, "nothing was copied: {}", svm.stats());
}

fn ring(policy: ThrashPolicy, copies: CopyPath, n: u32) {
    ring_on(&live_with(policy, copies), n);
}

fn ring_on(svm: &Fixture, n: u32) {
    const CAPACITY: usize = 1 << 16;
    let heap = svm.heap();
    let mut from = heap.vec_zeroed::<u32>(CAPACITY).unwrap();
    let mut to = heap.vec_zeroed::<u32>(CAPACITY).unwrap();
    let mut positions = heap.vec_zeroed::<[u32; 1024]>(4).unwrap();
    // SAFETY: the kernel reads `from`, stores to `to` and to two of the positions.
    let kernel = unsafe { svm.kernel("echo", spirv!("echo")) }.unwrap();
    let (source, sink, at) = (from.as_mut_ptr() as usize, to.as_mut_ptr() as usize, positions.as_mut_ptr() as usize);
    let position = |which: usize| word(at as *mut u32, 1024 * which);
    let launch = kernel.launch([1, 1, 1]).write(&mut from[..]).write(&mut to[..]).write(&mut positions[..]);
    let launch = launch.value([CAPACITY as u32, n]);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (over, _ends) = (&over, Ends(&over));
        let running = scope.spawn(|| launch.run());
        scope.spawn(move || {
            let mut put = 0u32;
            while put < n && !over.load(Ordering::Relaxed) {
                let room = position(1).load(Ordering::Acquire) + CAPACITY as u32 - put;
                let batch = room.min(n - put).min(CAPACITY as u32 / 2);
                for item in put..put + batch {
                    word(source as *mut u32, item as usize % CAPACITY).store(item, Ordering::Relaxed);
                }
                put += batch;
                position(0).store(put, Ordering::Release);
                std::thread::sleep(Duration::from_micros(300));
            }
        });
        let mut taken = 0u32;
        while taken < n && !running.is_finished() {
            let until = position(2).load(Ordering::Acquire);
            for item in taken..until {
                let found = word(sink as *mut u32, item as usize % CAPACITY).load(Ordering::Relaxed);
                assert_eq!(found, 3 * item + 1, "number {item}");
            }
            taken = until;
            position(3).store(taken, Ordering::Release);
            std::thread::sleep(Duration::from_micros(300));
        }
        running.join().unwrap().unwrap();
        assert_eq!(position(2).load(Ordering::Acquire), n);
    });
}

#[test]
fn updates_and_atomics_across_missing_pages_happen_once_in_both_modes() {
    // Nearly all reports find the queue full.
    for (mode, copies, capacity) in [
        (FaultMode::Live, CopyPath::Auto, 1),
        (FaultMode::Live, CopyPath::Staging, 5),
        (FaultMode::Replay, CopyPath::Auto, 5),
    ] {
        let svm = moving(|builder| builder.fault_mode(mode).frames(80).queue_capacity(capacity).copy_path(copies));
        let (pages, invocations) = (64usize, 128u32);
        let mut data = svm.heap().vec_zeroed::<[u32; 1024]>(pages).unwrap();
        let cells = data.as_mut_ptr() as usize;
        // SAFETY: the kernel changes words of its own and the pages' last words; the CPU keeps to the words between.
        let kernel = unsafe { svm.kernel("update_pages", spirv!("update_pages")) }.unwrap();
        let launch = kernel.launch([invocations / 32, 1, 1]).write(&mut data[..]).value([pages as u32, invocations]);
        std::thread::scope(|scope| {
            let running = scope.spawn(|| launch.run());
            let mut round = 0usize;
            while !running.is_finished() {
                round += 1;
                word(cells as *mut u32, round * 13 % pages * 1024 + 500).fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(Duration::from_micros(50));
            }
            running.join().unwrap().unwrap();
        });
        let sum: u32 = (1..=invocations).sum();
        for (page, words) in data.iter().enumerate() {
            assert!(
                words[..invocations as usize].iter().all(|&word| word == 7),
                "{mode:?}, page {page}: {:?}",
                &words[..4]
            );
            assert_eq!(words[1023], sum, "{mode:?}, page {page}");
        }
    }
}

#[test]
fn a_kernel_that_never_returns_is_cancelled_and_the_runtime_stays_usable() {
    let svm = with(|builder| builder.fault_mode(FaultMode::Live).time_limit(Duration::from_millis(300)));
    let flag = svm.heap().vec_from_slice(&[0u32]).unwrap();
    let mut out = svm.heap().vec_zeroed::<u32>(16).unwrap();
    // SAFETY: the kernel reads the flag and stores to `out`.
    let kernel = unsafe { svm.kernel("for_ever", spirv!("for_ever")) }.unwrap();
    let error = kernel.launch([2, 1, 1]).read(&flag[..]).write(&mut out[..]).run().unwrap_err();
    assert!(matches!(error, LaunchError::TimedOut { .. }), "{error}");
    assert!(out.iter().all(|&word| word == 0), "a cancelled kernel stored");
    let flag = svm.heap().vec_from_slice(&[1u32]).unwrap();
    kernel.launch([2, 1, 1]).read(&flag[..]).write(&mut out[..]).run().unwrap();
    assert!(out.iter().all(|&word| word == 1));
}

/// What the start-up probe says.
enum Probe {
    AsItIs,
    Fails,
    /// What it would say, had it not tried to copy beside a kernel.
    CopiesUntried,
}

/// The device, with faults to order.
struct Faulty {
    device: VulkanDevice,
    probe: Probe,
    dies: AtomicBool,
    /// Copies hang until the kernel is told to give up.
    hangs: AtomicBool,
    /// Copies take longer than any invocation waits.
    lags: AtomicBool,
    /// Copies take longer than a kernel takes to find a page.
    dawdles: AtomicBool,
    /// Times that kernels were told to give up by the device's own copies.
    stalls: Arc<AtomicU32>,
    give_up: Mutex<Option<Arc<dyn Fn() + Send + Sync>>>,
}

impl Faulty {
    fn open(probe: Probe) -> Arc<Self> {
        let validation = std::env::var("VKSVM_VALIDATION").is_ok_and(|value| value != "0");
        let mut options = VulkanOptions::default();
        (options.leave_processor, options.validation) = (true, validation);
        Self::open_with(probe, &options)
    }

    fn open_with(probe: Probe, options: &VulkanOptions) -> Arc<Self> {
        Arc::new(Self {
            device: VulkanDevice::open(options).unwrap(),
            probe,
            dies: AtomicBool::new(false),
            hangs: AtomicBool::new(false),
            lags: AtomicBool::new(false),
            dawdles: AtomicBool::new(false),
            stalls: Arc::default(),
            give_up: Mutex::new(None),
        })
    }
}

impl Device for Faulty {
    fn info(&self) -> &DeviceInfo {
        self.device.info()
    }
    fn shared_memory(&self, bytes: usize, usage: SharedUse) -> Result<Box<dyn SharedMemory>, DeviceError> {
        self.device.shared_memory(bytes, usage)
    }
    fn slab(&self, bytes: usize) -> Result<Arc<dyn Slab>, DeviceError> {
        self.device.slab(bytes)
    }
    unsafe fn copy_in(&self, copies: &[PageCopy]) -> Result<(), DeviceError> {
        assert!(!self.dies.load(Ordering::Relaxed), "the service thread dies, as the test asks");
        if self.hangs.load(Ordering::Relaxed) {
            (self.give_up.lock().unwrap().as_ref().unwrap())();
        }
        if self.hangs.load(Ordering::Relaxed) || self.lags.load(Ordering::Relaxed) {
            while !self.device.ended(Duration::from_millis(1))? {}
        }
        if self.dawdles.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(1));
        }
        // SAFETY: the caller's promise.
        unsafe { self.device.copy_in(copies) }
    }
    unsafe fn copy_out(&self, copies: &[PageCopy]) -> Result<(), DeviceError> {
        // SAFETY: the caller's promise.
        unsafe { self.device.copy_out(copies) }
    }
    unsafe fn fill_zero(&self, fills: &[PageCopy]) -> Result<(), DeviceError> {
        // SAFETY: the caller's promise.
        unsafe { self.device.fill_zero(fills) }
    }
    fn run(&self, dispatch: &Dispatch<'_>) -> Result<Duration, DeviceError> {
        self.device.run(dispatch)
    }
    fn probe_live(&self) -> Result<LiveUnit, String> {
        match self.probe {
            Probe::AsItIs => self.device.probe_live(),
            Probe::Fails => Err("loops end early, says the test".into()),
            Probe::CopiesUntried => Ok(LiveUnit::Workgroup),
        }
    }
    fn on_stall(&self, give_up: Box<dyn Fn() + Send + Sync>) {
        let give_up: Arc<dyn Fn() + Send + Sync> = give_up.into();
        *self.give_up.lock().unwrap() = Some(give_up.clone());
        let stalls = self.stalls.clone();
        self.device.on_stall(Box::new(move || {
            stalls.fetch_add(1, Ordering::Relaxed);
            give_up();
        }));
    }
    fn start(&self, dispatch: &Dispatch<'_>) -> Result<(), DeviceError> {
        assert!(!matches!(self.probe, Probe::Fails), "a dispatch is started for live mode, which does not work here");
        self.device.start(dispatch)
    }
    fn ended(&self, patience: Duration) -> Result<bool, DeviceError> {
        self.device.ended(patience)
    }
    fn prepare(&self, kernel: &KernelModule, variant: u32) -> Result<(), DeviceError> {
        self.device.prepare(kernel, variant)
    }
    fn forget(&self, kernel: &KernelModule) {
        self.device.forget(kernel);
    }
}

#[test]
fn where_the_probe_fails_launches_are_replayed_and_info_says_why() {
    let svm = with(|builder| builder.with_device(Faulty::open(Probe::Fails)).fault_mode(FaultMode::Live));
    let mode = svm.info().fault_mode;
    assert!(mode.starts_with("replay") && mode.contains("loops end early"), "{mode}");
    update_pages_once(&svm);
}

fn update_pages_once(svm: &Fixture) {
    let mut data = svm.heap().vec_zeroed::<[u32; 1024]>(4).unwrap();
    // SAFETY: the kernel changes words of the pages.
    let kernel = unsafe { svm.kernel("update_pages", spirv!("update_pages")) }.unwrap();
    kernel.launch([1, 1, 1]).write(&mut data[..]).value([4u32, 32]).run().unwrap();
    assert!(data.iter().all(|page| page[..32].iter().all(|&word| word == 7)));
}

#[test]
fn a_service_thread_that_dies_ends_the_kernel_that_waits_for_it() {
    let device = Faulty::open(Probe::AsItIs);
    // Left alone, it would wait for minutes.
    let svm = with(|builder| builder.with_device(device.clone()).fault_mode(FaultMode::Live).poll_limit(u32::MAX));
    let flag = svm.heap().vec_from_slice(&[1u32]).unwrap();
    let mut out = svm.heap().vec_zeroed::<u32>(16).unwrap();
    // SAFETY: the kernel reads the flag and stores to `out`.
    let kernel = unsafe { svm.kernel("for_ever", spirv!("for_ever")) }.unwrap();
    device.dies.store(true, Ordering::Relaxed);
    let error = kernel.launch([2, 1, 1]).read(&flag[..]).write(&mut out[..]).run().unwrap_err();
    assert!(matches!(error, LaunchError::Stopped { .. }), "{error}");
    // The heap stays what it was.
    assert_eq!((flag[0], out[0]), (1, 0));
}

#[test]
fn a_copy_that_waits_for_the_kernel_that_waits_for_it_ends_the_waiting() {
    let device = Faulty::open(Probe::AsItIs);
    let svm = with(|builder| builder.with_device(device.clone()).fault_mode(FaultMode::Live).time_limit(HANG));
    let flag = svm.heap().vec_from_slice(&[1u32]).unwrap();
    let mut out = svm.heap().vec_zeroed::<u32>(16).unwrap();
    // SAFETY: the kernel reads the flag and stores to `out`. Its stores may be repeated.
    let kernel = unsafe { svm.kernel("for_ever", spirv!("for_ever")) }.unwrap().idempotent();
    device.hangs.store(true, Ordering::Relaxed);
    // What gave up is replayed.
    kernel.launch([2, 1, 1]).read(&flag[..]).write(&mut out[..]).run().unwrap();
    assert!(out.iter().all(|&word| word == 1));
}

/// The way it is found out: a copy is a command behind the kernel on its own queue.
#[test]
fn a_copy_command_behind_the_kernel_that_waits_for_it_is_found_to_hang() {
    let mut options = staging_options(CopiesBeside::Never);
    options.copy_patience = Some(Duration::from_millis(300));
    let device = Faulty::open_with(Probe::CopiesUntried, &options);
    assert!(!device.device.copies_beside());
    // Left alone, the kernel would wait for minutes.
    let svm = moving(|builder| {
        builder.with_device(device.clone()).fault_mode(FaultMode::Live).poll_limit(u32::MAX).time_limit(HANG)
    });
    let flag = svm.heap().vec_from_slice(&[1u32]).unwrap();
    let mut out = svm.heap().vec_from_slice(&[7u32; 16]).unwrap();
    // SAFETY: the kernel reads the flag and stores to `out`. Its stores may be repeated.
    let kernel = unsafe { svm.kernel("for_ever", spirv!("for_ever")) }.unwrap().idempotent();
    let did = kernel.launch([2, 1, 1]).read(&flag[..]).write(&mut out[..]).run().unwrap();
    assert_eq!(*out, [1; 16], "{did}");
    assert!(did.dispatches >= 2, "none was replayed: {did}");
    assert!(device.stalls.load(Ordering::Relaxed) > 0, "nobody was told");
}

/// What gave up after it had stored must not run again: the launch ends with an error, and what was stored stands once.
#[test]
fn stores_before_a_wait_that_is_given_up_are_not_repeated() {
    let device = Faulty::open(Probe::AsItIs);
    let svm = moving(|builder| {
        builder.with_device(device.clone()).fault_mode(FaultMode::Live).poll_limit(u32::MAX).time_limit(HANG)
    });
    let mut data = svm.heap().vec_zeroed::<[u32; 1024]>(2).unwrap();
    // What was never written is not copied.
    data.iter_mut().for_each(|page| page[1000] = 1);
    // SAFETY: the kernel changes words of the pages.
    let kernel = unsafe { svm.kernel("update_pages", spirv!("update_pages")) }.unwrap();
    // It has the first page, ready to be stored to, and lacks the other.
    kernel.launch([1, 1, 1]).write(&mut data[..]).value([1u32, 32]).run().unwrap();
    device.hangs.store(true, Ordering::Relaxed);
    let result = kernel.launch([1, 1, 1]).write(&mut data[..]).value([2u32, 32]).run();
    device.hangs.store(false, Ordering::Relaxed);
    assert!(matches!(result, Err(LaunchError::LateFault(_))), "{result:?}");
    let words = &data[0][..32];
    assert!(words.iter().all(|word| [7, 5 * 7 + 7].contains(word)), "stores were repeated: {words:?}");
    assert!(words.contains(&(5 * 7 + 7)), "nothing was stored before the wait");
    update_pages_once(&svm);
}

/// The bound alone ends the waiting: nobody tells them to give up, and their pages come only once the kernel has ended.
#[test]
fn invocations_that_wait_longer_than_the_bound_give_up_and_are_replayed() {
    let device = Faulty::open(Probe::AsItIs);
    let svm = with(|builder| {
        builder.with_device(device.clone()).fault_mode(FaultMode::Live).placement(Placement::Copy).poll_limit(1000)
    });
    let mode = svm.info().fault_mode;
    assert!(mode.starts_with("live"), "{mode}");
    let flag = svm.heap().vec_from_slice(&[5u32]).unwrap();
    let mut out = svm.heap().vec_from_slice(&[7u32; 16]).unwrap();
    // SAFETY: the kernel reads the flag and stores to `out`. Its stores may be repeated.
    let kernel = unsafe { svm.kernel("for_ever", spirv!("for_ever")) }.unwrap().idempotent();
    device.lags.store(true, Ordering::Relaxed);
    let did = kernel.launch([2, 1, 1]).read(&flag[..]).write(&mut out[..]).run().unwrap();
    assert_eq!(*out, [1; 16], "{did}");
    assert!(did.dispatches >= 2, "none was replayed: {did}");
}

/// Far more than anything here takes.
const HANG: Duration = Duration::from_secs(100);

#[test]
fn whether_copies_go_on_beside_a_kernel_is_found_by_trying() {
    let open = |copies_beside| Arc::new(VulkanDevice::open(&staging_options(copies_beside)).unwrap());
    let beside = open(CopiesBeside::AllDevices);
    assert!(beside.copies_beside());
    assert_eq!(beside.try_copies_beside(), Ok(()));
    // On the kernel's own queue they do not.
    let without = open(CopiesBeside::Never);
    let found = without.try_copies_beside().unwrap_err();
    assert!(found.contains("wait for its end"), "{found}");
    let svm = with(|builder| builder.with_device(without).fault_mode(FaultMode::Live));
    let mode = svm.info().fault_mode;
    assert!(mode.starts_with("replay") && mode.contains("no queue for copies"), "{mode}");
}

#[test]
fn a_queue_for_copies_that_the_probe_finds_wrong_is_used_by_nothing() {
    let options = staging_options(CopiesBeside::AllDevices);
    let device = Arc::new(VulkanDevice::open_if(&options, |_| Err("pages arrive late, says the test".into())).unwrap());
    assert!(!device.copies_beside());
    let svm = with(|builder| builder.with_device(device).fault_mode(FaultMode::Live));
    let mode = svm.info().fault_mode;
    assert!(mode.starts_with("replay") && mode.contains("pages arrive late"), "{mode}");
    update_pages_once(&svm);
}

#[test]
fn replay_opens_no_queue_for_copies() {
    let device = VulkanDevice::open(&staging_options(CopiesBeside::Never)).unwrap();
    assert!(!device.copies_beside());
    // By default, only devices that are known to go live get one.
    let device = VulkanDevice::open(&staging_options(CopiesBeside::CpuDevices)).unwrap();
    assert_eq!(device.copies_beside(), device.info().is_cpu);
}

fn staging_options(copies_beside: CopiesBeside) -> VulkanOptions {
    let mut options = VulkanOptions::default();
    (options.leave_processor, options.copy_path, options.copies_beside) = (true, CopyPath::Staging, copies_beside);
    options.validation = std::env::var("VKSVM_VALIDATION").is_ok_and(|value| value != "0");
    options
}
