//! What the device tests share: opening the runtime and failing on any message of the validation layers.

use std::ops::Deref;
use vksvm::{Builder, Placement, Svm};

/// The kernels under `tests/shaders`.
#[macro_export]
macro_rules! spirv {
    ($($name:literal),+) => {
        include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/shaders/spv/", $($name),+, ".spv"))
    };
}

/// A runtime whose drop fails the test if the validation layers had anything to say.
pub struct Fixture(Option<Svm>);

/// Opens the runtime as the environment says.
pub fn open() -> Fixture {
    with(|builder| builder)
}

/// Opens the runtime with options, and with pages that move to the device whatever is faster there: for tests of their moving.
pub fn moving(options: impl FnOnce(Builder) -> Builder) -> Fixture {
    with(|builder| options(builder.placement(Placement::Copy)))
}

/// Opens the runtime with options.
pub fn with(options: impl FnOnce(Builder) -> Builder) -> Fixture {
    let svm = options(Svm::builder())
        .build()
        .unwrap_or_else(|error| panic!("{error}\nrun the tests through `cargo xtask test`"));
    Fixture(Some(svm))
}

impl Deref for Fixture {
    type Target = Svm;
    fn deref(&self) -> &Svm {
        self.0.as_ref().expect("taken only by drop")
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        let Some(svm) = self.0.take() else { return };
        let messages = svm.validation_messages();
        if !messages.is_empty() && !std::thread::panicking() {
            panic!("the validation layers complain:\n{}", messages.join("\n"));
        }
    }
}
