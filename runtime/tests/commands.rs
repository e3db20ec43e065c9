//! The commands of Linux's `test_hmm`, each with what it does to pages, and to whoever else has them.

mod common;

use common::{soft, with_each_tracker};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use vksvm::addr::VirtAddr;
use vksvm::device::soft::SoftOptions;
use vksvm::device::{CommandError, Commands, Seen};
use vksvm::hmm::{Event, IntervalNotifier, InvalidateInfo, WouldBlock};
use vksvm::mm::ops::Span;
use vksvm::{Mapping, Permission, Svm, TrackerKind};

const PAGE: usize = 4096;
const OWNED: Seen = Seen::Here { write: true, dirty: false };
const DIRTY: Seen = Seen::Here { write: true, dirty: true };
const COPY: Seen = Seen::Here { write: false, dirty: false };
const HOME: Seen = Seen::Home { write: true };

fn commands(svm: &Svm) -> Commands {
    Commands::soft(svm, SoftOptions::default(), 64).unwrap()
}

/// Pages whose first byte is their number, from one.
fn numbered(svm: &Svm, pages: usize) -> Mapping {
    let mut mapping = svm.map(pages * PAGE, Permission::ReadWrite).unwrap();
    for (page, bytes) in mapping.as_mut_slice().unwrap().chunks_mut(PAGE).enumerate() {
        bytes[0] = page as u8 + 1;
    }
    mapping
}

fn span(mapping: &Mapping, from: usize, to: usize) -> Span {
    Span { start: at(mapping, from), bytes: ((to - from) * PAGE) as u64 }
}

fn at(mapping: &Mapping, page: usize) -> VirtAddr {
    VirtAddr(mapping.start().0 + (page * PAGE) as u64)
}

fn byte(mapping: &Mapping, page: usize) -> u8 {
    mapping.as_slice()[page * PAGE]
}

#[test]
fn read_sees_what_the_cpu_wrote_across_pages_and_takes_nothing_from_it() {
    with_each_tracker(
        |builder| builder,
        |svm| {
            let (mapping, device) = (numbered(svm, 40), commands(svm));
            let mut all = vec![0; 40 * PAGE];
            device.read(mapping.start(), &mut all).unwrap();
            assert_eq!(all, mapping.as_slice());
            let mut odd = [9; 3];
            device.read(VirtAddr(at(&mapping, 7).0 - 2), &mut odd).unwrap();
            assert_eq!(odd, [0, 0, 8]);
            assert_eq!(device.snapshot(span(&mapping, 0, 2)).unwrap(), [COPY; 2]);
            assert_eq!(byte(&mapping, 39), 40);
            device.read(mapping.start(), &mut []).unwrap();
        },
    );
}

#[test]
fn write_comes_home_when_the_cpu_looks_and_changes_no_byte_around() {
    with_each_tracker(
        |builder| builder,
        |svm| {
            let (mapping, device) = (numbered(svm, 3), commands(svm));
            device.write(VirtAddr(at(&mapping, 1).0 - 1), &[70, 71, 72]).unwrap();
            assert_eq!(device.snapshot(span(&mapping, 0, 3)).unwrap(), [DIRTY, DIRTY, HOME]);
            assert_eq!(mapping.as_slice()[PAGE - 2..PAGE + 3], [0, 70, 71, 72, 0]);
            assert_eq!((byte(&mapping, 0), byte(&mapping, 2)), (1, 3));
            assert_eq!(device.snapshot(span(&mapping, 0, 2)).unwrap(), [COPY; 2], "reading leaves the frames");
        },
    );
}

#[test]
fn buffers_may_lie_in_the_heap_even_in_the_pages_that_are_used() {
    with_each_tracker(
        |builder| builder,
        |svm| {
            let (mut mapping, device) = (numbered(svm, 4), commands(svm));
            let start = mapping.start();
            let (low, high) = mapping.as_mut_slice().unwrap().split_at_mut(2 * PAGE);
            device.read(start, high).unwrap();
            device.write(VirtAddr(start.0 + PAGE as u64), &high[..PAGE]).unwrap();
            assert_eq!((low[0], low[PAGE], high[0], high[PAGE]), (1, 1, 1, 2));
        },
    );
}

#[test]
fn migrating_to_the_device_and_back_changes_owners_and_no_contents() {
    with_each_tracker(
        |builder| builder,
        |svm| {
            let (mapping, device) = (numbered(svm, 4), commands(svm));
            device.migrate_to_device(span(&mapping, 1, 3)).unwrap();
            assert_eq!(device.snapshot(span(&mapping, 0, 4)).unwrap(), [HOME, OWNED, OWNED, HOME]);
            device.migrate_back(span(&mapping, 0, 2)).unwrap();
            assert_eq!(device.snapshot(span(&mapping, 0, 4)).unwrap(), [HOME, HOME, OWNED, HOME]);
            device.write(at(&mapping, 2), &[33]).unwrap();
            device.migrate_back(span(&mapping, 2, 3)).unwrap();
            assert_eq!(device.snapshot(span(&mapping, 2, 3)).unwrap(), [HOME]);
            assert_eq!([0, 1, 2, 3].map(|page| byte(&mapping, page)), [1, 2, 33, 4]);
        },
    );
}

#[test]
fn a_snapshot_tells_every_kind_of_page_and_moves_none() {
    with_each_tracker(
        |builder| builder,
        |svm| {
            let (mut mapping, device, other) =
                (svm.map(7 * PAGE, Permission::ReadWrite).unwrap(), commands(svm), commands(svm));
            mapping.as_mut_slice().unwrap()[2 * PAGE] = 1;
            mapping.as_mut_slice().unwrap()[3 * PAGE] = 1;
            mapping.protect(3 * PAGE..4 * PAGE, Permission::ReadOnly).unwrap();
            device.read(at(&mapping, 1), &mut [0]).unwrap();
            device.write(at(&mapping, 4), &[1]).unwrap();
            other.write(at(&mapping, 5), &[1]).unwrap();
            let rest = mapping.split_off(6 * PAGE).unwrap();
            let all = Span { start: mapping.start(), bytes: 7 * PAGE as u64 };
            rest.unmap().unwrap();
            let read_only = Seen::Home { write: false };
            let expected = [Seen::Nothing, Seen::Zero, HOME, read_only, DIRTY, Seen::Elsewhere, Seen::Unmapped];
            for _ in 0..2 {
                assert_eq!(device.snapshot(all).unwrap(), expected);
            }
            assert_eq!(other.snapshot(all).unwrap()[4..6], [Seen::Elsewhere, DIRTY]);
        },
    );
}

#[test]
fn a_touch_of_the_cpu_revokes_exclusive_pages_one_by_one() {
    with_each_tracker(
        |builder| builder,
        |svm| {
            let (mut mapping, device) = (numbered(svm, 4), commands(svm));
            device.make_exclusive(span(&mapping, 0, 4)).unwrap();
            assert_eq!(device.check_exclusive(span(&mapping, 0, 4)).unwrap(), [true; 4]);
            device.write(at(&mapping, 3), &[44]).unwrap();
            assert_eq!(device.check_exclusive(span(&mapping, 0, 4)).unwrap(), [true; 4], "its own use revokes nothing");
            assert_eq!(byte(&mapping, 1), 2, "a load");
            mapping.as_mut_slice().unwrap()[2 * PAGE] = 30;
            assert_eq!(device.check_exclusive(span(&mapping, 0, 4)).unwrap(), [true, false, false, true]);
            assert_eq!([0, 1, 2, 3].map(|page| byte(&mapping, page)), [1, 2, 30, 44]);
            assert_eq!(device.check_exclusive(span(&mapping, 0, 4)).unwrap(), [false; 4]);
        },
    );
}

#[test]
fn another_devices_touch_revokes_exclusive_pages_and_so_does_an_operation() {
    with_each_tracker(
        |builder| builder,
        |svm| {
            let (mut mapping, device, other) = (numbered(svm, 4), commands(svm), commands(svm));
            device.make_exclusive(span(&mapping, 0, 4)).unwrap();
            other.read(at(&mapping, 0), &mut [0]).unwrap();
            other.make_exclusive(span(&mapping, 1, 2)).unwrap();
            mapping.protect(2 * PAGE..3 * PAGE, Permission::ReadOnly).unwrap();
            assert_eq!(device.check_exclusive(span(&mapping, 0, 4)).unwrap(), [false, false, false, true]);
            assert_eq!(other.check_exclusive(span(&mapping, 0, 4)).unwrap(), [false, true, false, false]);
            // A page that came back as an ordinary one is not exclusive again.
            device.write(at(&mapping, 0), &[5]).unwrap();
            assert_eq!(device.check_exclusive(span(&mapping, 0, 1)).unwrap(), [false]);
        },
    );
}

/// What a listener to the whole mapping was told: the event, and whether somebody gave a name.
struct Listener(Mutex<Vec<(Event, bool)>>);

impl IntervalNotifier for Listener {
    fn invalidate(&self, info: &InvalidateInfo) -> Result<(), WouldBlock> {
        self.0.lock().unwrap().push((info.event, info.owner.is_some()));
        Ok(())
    }
}

#[test]
fn others_are_told_of_exclusive_and_migrate_with_the_owner_who_is_not_told_itself() {
    with_each_tracker(
        |builder| builder,
        |svm| {
            let (mapping, device, other) = (numbered(svm, 2), commands(svm), commands(svm));
            let listener = Arc::new(Listener(Mutex::default()));
            let pages = svm.address_space().home().views.page_of(mapping.start()).unwrap();
            let pages = vksvm::addr::PageRange::of_len(pages, 2);
            let heard = || std::mem::take(&mut *listener.0.lock().unwrap());
            let _subscription = svm.address_space().notifiers().subscribe(pages, listener.clone()).unwrap();

            device.make_exclusive(span(&mapping, 0, 2)).unwrap();
            assert_eq!(heard(), [(Event::Exclusive, true)]);
            device.make_exclusive(span(&mapping, 0, 2)).unwrap();
            assert_eq!(heard(), [(Event::Exclusive, true)]);
            // Had it been told itself, it would have let go.
            assert_eq!(device.snapshot(span(&mapping, 0, 2)).unwrap(), [OWNED; 2]);
            assert_eq!(device.check_exclusive(span(&mapping, 0, 2)).unwrap(), [true; 2]);
            other.write(at(&mapping, 0), &[7]).unwrap();
            assert_eq!(heard(), [(Event::Migrate, true)]);
            assert_eq!(byte(&mapping, 0), 7);
            assert_eq!(heard(), [(Event::ProtectionPage, false)]);
        },
    );
}

#[test]
fn devices_that_read_share_a_page_and_one_that_writes_has_it_alone() {
    with_each_tracker(
        |builder| builder,
        |svm| {
            let (mapping, device, other) = (numbered(svm, 3), commands(svm), commands(svm));
            let all = span(&mapping, 0, 3);
            device.read(at(&mapping, 0), &mut [0; 2 * PAGE]).unwrap();
            device.write(at(&mapping, 1), &[22]).unwrap();
            let mut seen = [0; 3 * PAGE];
            other.read(at(&mapping, 0), &mut seen).unwrap();
            assert_eq!([0, 1, 2].map(|page| seen[page * PAGE]), [1, 22, 3]);
            assert_eq!(other.snapshot(all).unwrap(), [COPY; 3]);
            assert_eq!(
                device.snapshot(all).unwrap(),
                [COPY, COPY, Seen::Home { write: false }],
                "it keeps what it had"
            );
            device.read(at(&mapping, 1), &mut [0]).unwrap();
            assert_eq!(byte(&mapping, 1), 22);
            other.write(at(&mapping, 1), &[23]).unwrap();
            let kept = [COPY, Seen::Elsewhere, Seen::Home { write: false }];
            assert_eq!(device.snapshot(all).unwrap(), kept, "only the page that was written");
            device.read(at(&mapping, 1), &mut seen[..1]).unwrap();
            assert_eq!((seen[0], byte(&mapping, 1)), (23, 23));
        },
    );
}

#[test]
fn release_brings_everything_home_and_the_device_goes_on() {
    with_each_tracker(
        |builder| builder,
        |svm| {
            let (mapping, device) = (numbered(svm, 3), commands(svm));
            device.write(at(&mapping, 1), &[22]).unwrap();
            device.make_exclusive(span(&mapping, 2, 3)).unwrap();
            device.release();
            assert_eq!(device.snapshot(span(&mapping, 0, 3)).unwrap(), [HOME; 3]);
            assert_eq!(device.check_exclusive(span(&mapping, 0, 3)).unwrap(), [false; 3]);
            assert_eq!([0, 1, 2].map(|page| byte(&mapping, page)), [1, 22, 3]);
            device.write(at(&mapping, 0), &[11]).unwrap();
            drop(device);
            assert_eq!(byte(&mapping, 0), 11);
        },
    );
}

#[test]
fn what_may_not_be_is_refused_and_named() {
    with_each_tracker(
        |builder| builder,
        |svm| {
            let (mut mapping, device) = (numbered(svm, 4), Commands::soft(svm, SoftOptions::default(), 2).unwrap());
            mapping.protect(PAGE..2 * PAGE, Permission::ReadOnly).unwrap();
            let refused = device.write(VirtAddr(at(&mapping, 1).0 - 1), &[1, 2]).unwrap_err().to_string();
            assert!(refused.contains("read-only") && refused.contains(&at(&mapping, 1).to_string()), "{refused}");
            device.read(at(&mapping, 1), &mut [0]).unwrap();
            assert!(matches!(device.make_exclusive(span(&mapping, 0, 4)), Err(CommandError::Refused { .. })));
            assert!(matches!(device.migrate_to_device(span(&mapping, 2, 3)), Ok(())));
            let four = numbered(svm, 4);
            assert!(matches!(device.migrate_to_device(span(&four, 0, 4)), Err(CommandError::NoFrames { .. })));
            let odd = Span { start: VirtAddr(mapping.start().0 + 1), bytes: 4096 };
            assert!(matches!(device.snapshot(odd), Err(CommandError::Span(_))));
            assert!(matches!(device.read(VirtAddr(8), &mut [0]), Err(CommandError::Span(_))));
            let gone = at(&four, 0);
            drop(four);
            assert!(device.read(gone, &mut [0]).unwrap_err().to_string().contains("nothing is mapped"));
        },
    );
}

#[test]
fn exclusive_pages_that_the_cpu_fights_for_are_granted_in_the_end() {
    let svm = soft(TrackerKind::Sigsegv, |builder| builder).unwrap();
    let (mapping, device) = (numbered(&svm, 8), commands(&svm));
    let (stop, stopped) = channel::<()>();
    std::thread::scope(|scope| {
        let mapping = &mapping;
        scope.spawn(move || {
            while stopped.try_recv().is_err() {
                // SAFETY: in bounds; only this thread looks.
                (0..8).for_each(|page| _ = unsafe { mapping.as_ptr().add(page * PAGE).read_volatile() });
            }
        });
        for _ in 0..20 {
            device.make_exclusive(span(mapping, 0, 8)).unwrap();
        }
        stop.send(()).unwrap();
    });
}
