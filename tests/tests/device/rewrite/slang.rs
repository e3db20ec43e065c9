//! Kernels as another compiler writes them: Slang, which has pointers in its language. Sources and what its compiler made of them are in
//! `tests/shaders/slang`, as text, which the SPIR-V tools assemble here.

use super::corpus::{Case, N, case};
use std::path::{Path, PathBuf};
use std::process::Command;

pub(super) fn cases() -> Option<Vec<Case>> {
    let load = |name: &'static str| assemble(name).map(|spirv| (name, &*spirv.leak()));
    Some(vec![
        Case {
            fill: |base, s| {
                for k in 0..2000usize {
                    let next = if k + 61 < 2000 { base + 16 * (k as u64 + 61) } else { 0 };
                    s[4 * k..4 * k + 4].copy_from_slice(&[next as u32, (next >> 32) as u32, k as u32, 0]);
                }
            },
            ..case(load("list")?, 9, |_, d| {
                for i in 0..N {
                    d[i] = (i..2000).step_by(61).map(|k| k as u32 + 1).sum();
                }
            })
        },
        case(load("structs")?, 2, |s, d| {
            for i in 0..N {
                let pair = &s[6 * i..6 * i + 6];
                let mut last = [pair[3], pair[4], pair[5]];
                last[i % 3] = last[i % 3].wrapping_add(7);
                let tail = if i % 2 == 0 { pair[4] } else { pair[5] };
                let terms =
                    [pair[0], pair[1].wrapping_mul(3), pair[2], last[0], last[1].wrapping_mul(5), last[2], tail];
                d[i] = terms.into_iter().fold(0, u32::wrapping_add);
            }
        }),
        case(load("addresses")?, 2, |s, d| {
            for i in 0..N {
                d[i] = s[i + 2] ^ s[N - i + i % 4];
            }
        }),
        case(load("shared")?, 2, |s, d| {
            for i in 0..N {
                let bin = &mut d[(s[i] % 16) as usize];
                *bin = bin.wrapping_add(1);
            }
        }),
        case(load("generic")?, 2, |s, d| {
            for i in 0..N {
                d[i] = s[i].wrapping_add(s[2 * i] ^ s[2 * i + 1]);
            }
            for i in 0..N / 2 {
                d[N + i] = (i as u32 * 6) & 0xFFFF | ((i as u32 * 6 + 3) & 0xFFFF) << 16;
            }
        }),
    ])
}

/// The module of that name; none where there is no assembler.
fn assemble(name: &str) -> Option<Vec<u8>> {
    let text = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("shaders/slang/{name}.spvasm"));
    let binary = std::env::temp_dir().join(format!("vksvm-slang-{}-{name}.spv", std::process::id()));
    let mut command = assembler();
    command.args(["--target-env", "spv1.5", "-o"]).arg(&binary).arg(text);
    let Ok(output) = command.output() else {
        eprintln!("SKIPPED: there is no spirv-as here (package `spirv-tools`)");
        return None;
    };
    assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    let spirv = std::fs::read(&binary).unwrap();
    std::fs::remove_file(&binary).unwrap();
    Some(spirv)
}

/// spirv-as: the private driver folder's, under whose loader this process runs then, or the system's.
fn assembler() -> Command {
    match std::env::var_os("VKSVM_RUNNER").map(PathBuf::from) {
        Some(runner) if runner.with_file_name("usr/bin/spirv-as").is_file() => {
            let mut command = Command::new(&runner);
            command.arg(runner.with_file_name("usr/bin/spirv-as"));
            command
        }
        _ => Command::new("spirv-as"),
    }
}
