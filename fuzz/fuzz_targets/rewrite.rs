//! libFuzzer over what a program may hand to `Svm::kernel`. Needs a nightly toolchain and `cargo install cargo-fuzz`; from the repository's root:
//!
//! ```text
//! mkdir -p fuzz/corpus/rewrite
//! cargo +nightly fuzz run rewrite fuzz/corpus/rewrite tests/shaders/plain/spv tests/shaders/spv -- -timeout=20 -rss_limit_mb=2048 -max_len=65536
//! ```
//!
//! What it finds stands in `fuzz/artifacts/rewrite`; `cargo +nightly fuzz run rewrite FILE` repeats it. The same target runs without any of that, on
//! damaged kernels of the corpus and on modules that are large in one way, as the test `hostile` of the runtime.

#![no_main]

#[path = "../target.rs"]
mod target;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    target::hostile(data);
});
