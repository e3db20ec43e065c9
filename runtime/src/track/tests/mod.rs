//! The tracker's contract, as tests that every tracker passes. A test takes the kind of tracker;
//! `for_each_tracker!` makes one `#[test]` per kind of it.

mod contract;
mod fixture;
mod foreign;
mod processes;
mod stress;

/// Runs each named `fn(Case)` once per tracker.
macro_rules! for_each_tracker {
    ($($(#[$attribute:meta])* $name:ident),* $(,)?) => {
        $crate::track::tests::for_each_tracker! { @kind userfaultfd Userfaultfd $($(#[$attribute])* $name),* }
        $crate::track::tests::for_each_tracker! { @kind sigsegv Sigsegv $($(#[$attribute])* $name),* }
    };
    (@kind $module:ident $kind:ident $($(#[$attribute:meta])* $name:ident),*) => {
        mod $module {
            $(
                #[test]
                $(#[$attribute])*
                fn $name() {
                    let kind = $crate::track::TrackerKind::$kind;
                    let path = concat!(module_path!(), "::", stringify!($name));
                    $crate::track::tests::fixture::run(kind, path, super::$name);
                }
            )*
        }
    };
}
use for_each_tracker;
