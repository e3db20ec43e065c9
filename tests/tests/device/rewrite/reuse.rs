//! Accesses that need no look at the page table of their own: on the page of one before them, or at an address that a loop does not change.

use super::corpus::{Case, N, case};
use crate::plain;

/// Writes a pointer to the source's word `to`.
fn point(s: &mut [u32], at: usize, base: u64, to: usize) {
    let address = base + 4 * to as u64;
    (s[at], s[at + 1]) = (address as u32, (address >> 32) as u32);
}

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case {
            idempotent: true,
            ..case(plain!("again_members"), 2, |s, d| {
                for t in (0..N).map(|i| 4 * i) {
                    d[t] = s[t].wrapping_add(1);
                    d[t + 1] = s[t + 1] ^ d[t];
                    if s[t + 2] & 1 != 0 {
                        d[t + 3] = s[t + 3].wrapping_mul(3);
                    } else {
                        d[t + 2] = s[t + 3].wrapping_add(d[t + 1]);
                    }
                }
            })
        },
        Case {
            idempotent: true,
            ..case(plain!("again_after_miss"), 9, |s, d| {
                for i in 0..N {
                    d[2 * i] = s[s[i * 37 & 8191] as usize & 8191];
                }
            })
        },
        Case {
            idempotent: true,
            ..case(plain!("again_backwards"), 2, |s, d| {
                for t in (0..N).map(|i| 4 * i) {
                    d[t] = s[t + 1].wrapping_mul(3).wrapping_add(s[t]);
                    d[t + 1] = s[t + 2];
                }
            })
        },
        Case {
            idempotent: true,
            ..case(plain!("again_less_aligned"), 4, |s, d| {
                for t in (0..N).map(|i| 4 * i + 2) {
                    d[t] = s[t].wrapping_add(1);
                    d[t + 1] = s[t + 1].wrapping_add(d[t]);
                    d[t + 3] = s[t + 3].wrapping_add(2);
                    d[t + 2] = s[t + 2].wrapping_add(d[t + 3]);
                }
            })
        },
        case(plain!("again_barrier"), 2, |s, d| {
            for i in (0..1024).step_by(2) {
                let (x, y) = (d[i], d[i + 1]);
                d[i] = s[i + 1].wrapping_add(y).wrapping_mul(3).wrapping_add(y);
                d[i + 1] = s[i].wrapping_add(x).wrapping_mul(3).wrapping_add(x);
            }
        }),
        case(plain!("again_atomic"), 2, |s, d| {
            for i in 0..N {
                let found = d[i];
                d[i] = found.wrapping_add(s[i]).wrapping_mul(5).wrapping_add(found) ^ 0xFFFF;
            }
        }),
        Case {
            fill: |base, s| {
                for k in 0..8 {
                    point(s, 2 * k, base, 4096 + 4 * k);
                    let k = k as u32;
                    s[4096 + 4 * k as usize..][..4].copy_from_slice(&[k % 5, k + 3, 1000 * k, 0x10101 * k]);
                }
            },
            idempotent: true,
            ..case(plain!("invariant"), 3, |s, d| {
                for i in 0..N {
                    let [count, factor, addend, shift] = s[4096 + 4 * (i & 7)..][..4] else { unreachable!() };
                    d[i] = i as u32;
                    for _ in 0..count {
                        d[i] = d[i].wrapping_mul(factor).wrapping_add(addend);
                        if d[i] & 4 != 0 {
                            d[i] ^= shift;
                        }
                    }
                }
            })
        },
        Case {
            fill: |base, s| {
                for i in 0..N {
                    s[4096 + i] = 77 * i as u32;
                    match i % 3 {
                        0 => point(s, 2 * i, base, 4096 + i),
                        1 => s[2 * i..2 * i + 2].fill(0),
                        _ => s[2 * i..2 * i + 2].fill(0xDEAD_BEEC),
                    }
                }
            },
            idempotent: true,
            ..case(plain!("invariant_null"), 3, |s, d| {
                for i in 0..N {
                    let rounds = i as u32 & 15;
                    let value = if i % 3 == 0 { s[4096 + i] } else { 0 };
                    d[i] = value.wrapping_mul(rounds * rounds.saturating_sub(1) / 2);
                }
            })
        },
        Case {
            fill: |base, s| {
                point(s, 0, base, 1024);
                for row in 0..4 {
                    point(s, 1024 + 4 * row, base, 2048 + 512 * row);
                    (s[1024 + 4 * row + 2], s[1024 + 4 * row + 3]) = (2 + 3 * row as u32, 7 * row as u32);
                }
                s[1040] = 11;
                for k in 2048..4096 {
                    s[k] = k as u32 * 3;
                }
            },
            idempotent: true,
            ..case(plain!("invariant_nested"), 5, |s, d| {
                for i in 0..N {
                    d[i] = 0;
                    for row in 0..4 {
                        for k in i & 3..2 + 3 * row {
                            d[i] = d[i].wrapping_add(s[2048 + 512 * row + 7 * row + k].wrapping_mul(11));
                        }
                    }
                }
            })
        },
    ]
}
