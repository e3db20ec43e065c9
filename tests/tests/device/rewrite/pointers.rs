//! Where pointers come from and how they are kept.

use super::corpus::{Case, N, case};
use crate::plain;

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case {
            fill: |base, s| {
                for k in 0..2000usize {
                    let next = if k + 61 < 2000 { base + 16 * (k as u64 + 61) } else { 0 };
                    s[4 * k..4 * k + 4].copy_from_slice(&[next as u32, (next >> 32) as u32, k as u32, 0]);
                }
            },
            ..case(plain!("list"), 9, |_, d| {
                for i in 0..N {
                    let mut k = i;
                    d[i] = 0;
                    while k < 2000 {
                        d[i] += k as u32;
                        k += 61;
                    }
                }
            })
        },
        Case {
            fill: |base, s| {
                for k in 0..2000usize {
                    let next = if k + 61 < 2000 { base + 16 * (k as u64 + 61) } else { 0 };
                    s[4 * k..4 * k + 4].copy_from_slice(&[next as u32, (next >> 32) as u32, k as u32, 0]);
                }
            },
            ..case(plain!("list_unoptimised"), 9, |_, d| {
                for i in 0..N {
                    let mut k = i;
                    d[i] = 0;
                    while k < 2000 {
                        d[i] += k as u32;
                        k += 61;
                    }
                }
            })
        },
        Case {
            fill: |base, s| {
                for k in 0..2000usize {
                    let next = if k + 61 < 2000 { base + 16 * (k as u64 + 61) } else { 0 };
                    s[4 * k..4 * k + 4].copy_from_slice(&[next as u32, (next >> 32) as u32, k as u32, 0]);
                }
            },
            ..case(plain!("list_for_ever"), 9, |_, d| {
                for i in 0..N {
                    let mut k = i;
                    d[i] = 0;
                    while k < 2000 {
                        d[i] += k as u32;
                        k += 61;
                    }
                }
            })
        },
        Case {
            fill: |base, s| {
                for k in 0..2000usize {
                    let next = if k + 61 < 2000 { base + 16 * (k as u64 + 61) } else { 0 };
                    s[4 * k..4 * k + 4].copy_from_slice(&[next as u32, (next >> 32) as u32, k as u32, 0]);
                }
            },
            ..case(plain!("list_do_while"), 9, |_, d| {
                for i in 0..N {
                    let mut k = i;
                    d[i] = 0;
                    while k < 2000 {
                        d[i] += k as u32;
                        k += 61;
                    }
                }
            })
        },
        Case {
            fill: |base, s| {
                for k in 0..2000usize {
                    let next = if k + 61 < 2000 { base + 16 * (k as u64 + 61) } else { 0 };
                    s[4 * k..4 * k + 4].copy_from_slice(&[next as u32, (next >> 32) as u32, k as u32, 0]);
                }
            },
            ..case(plain!("list_break_deep"), 9, |_, d| {
                for i in 0..N {
                    let (mut k, mut steps) = (i, 0);
                    d[i] = 0;
                    while k < 2000 {
                        d[i] += k as u32;
                        k += 61;
                        steps += 1;
                    }
                    d[i] += if steps % 2 == 0 { 1_000_000 } else { 2_000_000 };
                }
            })
        },
        Case {
            fill: |base, s| {
                for k in 0..2000usize {
                    let next = if k + 61 < 2000 { base + 16 * (k as u64 + 61) } else { 0 };
                    s[4 * k..4 * k + 4].copy_from_slice(&[next as u32, (next >> 32) as u32, k as u32, 0]);
                }
            },
            ..case(plain!("list_flags"), 9, |_, d| {
                for i in 0..N {
                    let mut k = i;
                    d[i] = 0;
                    while k < 2000 {
                        d[i] += k as u32;
                        k += 61;
                    }
                }
            })
        },
        Case {
            fill: |base, s| {
                for k in 0..1024usize {
                    let to = base + 4 * (2048 + (k as u64 * 37) % 6144);
                    s[2 * k] = to as u32;
                    s[2 * k + 1] = (to >> 32) as u32;
                }
            },
            ..case(plain!("table"), 5, |s, d| {
                for i in 0..N {
                    d[i] = s[2048 + i * 37 % 6144];
                }
            })
        },
        Case {
            fill: |base, s| {
                for k in 0..1024usize {
                    let to = base + 4 * (2048 + (k as u64 * 37) % 6144);
                    s[2 * k] = to as u32;
                    s[2 * k + 1] = (to >> 32) as u32;
                }
            },
            ..case(plain!("integer_pointers"), 5, |s, d| {
                for i in 0..N {
                    d[i] = s[2048 + i * 37 % 6144];
                }
            })
        },
        Case {
            fill: |base, s| {
                for k in 0..1024usize {
                    let to = base + 4 * (2048 + (k as u64 * 37) % 6144);
                    s[2 * k] = to as u32;
                    s[2 * k + 1] = (to >> 32) as u32;
                }
            },
            ..case(plain!("uvec2_pointers"), 5, |s, d| {
                for i in 0..N {
                    d[i] = s[2048 + i * 37 % 6144];
                }
            })
        },
        Case {
            fill: |base, s| {
                for k in 0..1024usize {
                    let to = base + 4 * (2048 + (k as u64 * 37) % 6144);
                    s[2 * k] = to as u32;
                    s[2 * k + 1] = (to >> 32) as u32;
                }
            },
            ..case(plain!("pointer_in_struct"), 5, |s, d| {
                for i in 0..N {
                    d[i] = s[2048 + i * 37 % 6144];
                }
            })
        },
        case(plain!("pointer_arithmetic"), 2, |s, d| {
            for i in 0..N {
                for c in 0..4 {
                    d[4 * i + c] = s[4 * i + c];
                }
            }
        }),
        case(plain!("pointer_parameter"), 2, |s, d| {
            for i in 0..N {
                d[i] = (0..5).fold(0u32, |x, k| x.wrapping_add(s[i + k]));
            }
        }),
        case(plain!("pointer_result"), 3, |s, d| {
            for i in 0..N {
                d[i] = s[i + if i & 1 == 0 { 0 } else { 2048 }];
            }
        }),
        case(plain!("pointer_select"), 3, |s, d| {
            for i in 0..N {
                d[i] = s[i + if i & 1 == 0 { 0 } else { 2048 }];
            }
        }),
        case(plain!("pointer_phi"), 3, |s, d| {
            for i in 0..N {
                d[i] = (0..6).fold(0u32, |x, k| x.wrapping_mul(3).wrapping_add(s[i + 128 * k]));
            }
        }),
        case(plain!("pointer_locals"), 4, |s, d| {
            for i in 0..N {
                d[i] = s[i + 1024 * (i % 3)].wrapping_add(s[i + 1024 * ((i + 1) % 3)]);
            }
        }),
        case(plain!("pointer_shared"), 2, |s, d| {
            for i in 0..N {
                d[i] = s[i ^ 1];
            }
        }),
        Case {
            fill: |base, s| {
                fn key(k: usize, low: u32, high: u32, base: u64, s: &mut [u32]) {
                    if k >= 1023 {
                        return;
                    }
                    let mid = low + (high - low) / 2;
                    for c in 0..2 {
                        let child = 2 * k + 1 + c;
                        let to = if child < 1023 { base + 24 * child as u64 } else { 0 };
                        s[6 * k + 2 * c] = to as u32;
                        s[6 * k + 2 * c + 1] = (to >> 32) as u32;
                    }
                    s[6 * k + 4] = mid;
                    s[6 * k + 5] = mid * 5 + 1;
                    key(2 * k + 1, low, mid, base, s);
                    key(2 * k + 2, mid + 1, high, base, s);
                }
                key(0, 0, 1023, base, s);
            },
            ..case(plain!("tree"), 6, |_, d| {
                for i in 0..N {
                    d[i] = i as u32 * 5 + 1;
                }
            })
        },
        Case {
            fill: |base, s| {
                for k in 0..1024usize {
                    let to = base + 4 * (2048 + (k as u64 * 37) % 2000);
                    s[2 * k] = to as u32;
                    s[2 * k + 1] = (to >> 32) as u32;
                }
                (s[4096], s[4097]) = (base as u32, (base >> 32) as u32);
            },
            ..case(plain!("double_indirection"), 5, |s, d| {
                for i in 0..N {
                    d[i] = s[2048 + i * 37 % 2000];
                }
            })
        },
        case(plain!("push_struct"), 2, |s, d| {
            for i in 0..N {
                d[i] = s[i].wrapping_mul(1000);
            }
        }),
        case(plain!("push_whole"), 2, |s, d| {
            for i in 0..N {
                d[i] = s[i].wrapping_add(4);
            }
        }),
        case(plain!("push_both"), 2, |s, d| {
            for i in 0..N {
                d[i] = s[i].wrapping_mul(4);
            }
        }),
    ]
}
