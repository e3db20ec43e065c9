//! Control flow, barriers and built-ins around accesses.

use super::corpus::{Case, N, case};
use crate::plain;

pub(super) fn cases() -> Vec<Case> {
    vec![
        case(plain!("used_after_loop"), 2, |s, d| {
            for i in 0..N {
                let [two, four, six] = [2, 4, 6].map(|k| d[8 * i + k]);
                d[8 * i + 6] = s[i].wrapping_add(two).wrapping_add(four).wrapping_add(six);
            }
        }),
        case(plain!("loop_once_unoptimised"), 3, |s, d| {
            for i in 0..N {
                let walk = |most: usize| {
                    let mut sum = 0u32;
                    for k in 0..most {
                        let value = s[i + 32 * k];
                        sum = sum.wrapping_mul(3).wrapping_add(value);
                        if value & 64 != 0 {
                            break;
                        }
                    }
                    sum
                };
                d[i] = walk(1) ^ walk(4);
            }
        }),
        case(plain!("reduction"), 2, |s, d| {
            for g in 0..N.div_ceil(32) {
                d[g] = (32 * g..(32 * g + 32).min(N)).fold(0u32, |x, i| x.wrapping_add(s[8 * i]));
            }
        }),
        case(plain!("barrier_loop"), 6, |s, d| {
            for i in 0..1024 {
                let rounds = s[i / 32 * 128] as usize % 5 + 1;
                d[i] = (0..rounds).fold(0u32, |x, k| x.wrapping_add(s[(i / 32 * 32 + (i % 32 ^ 3) + 1024 * k) % 8192]));
            }
        }),
        Case {
            fill: |base, s| {
                for k in 0..2000usize {
                    let next = if k + 61 < 2000 { base + 16 * (k as u64 + 61) } else { 0 };
                    s[4 * k..4 * k + 4].copy_from_slice(&[next as u32, (next >> 32) as u32, k as u32, 0]);
                }
            },
            ..case(plain!("barrier_wait"), 9, |_, d| {
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
        case(plain!("barrier_function"), 2, |s, d| {
            for i in 0..1024 {
                d[i] = s[i ^ 31].wrapping_add(i as u32 ^ 31);
            }
        }),
        case(plain!("histogram"), 2, |s, d| {
            for i in 0..N {
                d[s[i] as usize & 15] += 1;
            }
        }),
        Case {
            groups: [3, 5, 3],
            ..case(plain!("grid"), 2, |s, d| {
                for at in 0..12 * 10 * 6 {
                    let (x, y, z) = (at % 12, at / 12 % 10, at / 120);
                    d[at] = s[at].wrapping_add((x + 100 * y + 10_000 * z + 3_000_000) as u32);
                }
            })
        },
        case(plain!("invocation_index"), 2, |s, d| {
            for i in 0..N {
                d[i] = s[i].wrapping_add(i as u32 % 32 * 1001);
            }
        }),
        case(plain!("nested_loops"), 3, |s, d| {
            for i in 0..N {
                let mut sum = 0u32;
                for a in 0..8 {
                    if s[i + a] & 3 == 0 {
                        continue;
                    }
                    let mut b = 0;
                    loop {
                        let v = s[i + a * 8 + b];
                        sum = sum.wrapping_add(v);
                        if v & 1 == 0 {
                            break;
                        }
                        b += 1;
                        if b > 6 {
                            break;
                        }
                    }
                }
                d[i] = sum;
            }
        }),
        case(plain!("switch"), 2, |s, d| {
            for i in 0..N {
                d[i] = match s[i] & 3 {
                    0 => s[i + 1],
                    1 | 2 => s[i + 3].wrapping_mul(3),
                    _ => 7,
                };
            }
        }),
        Case {
            fill: |_, s| {
                for w in s.iter_mut() {
                    *w |= 1;
                    *w %= 1000;
                }
            },
            ..case(plain!("collatz"), 2, |s, d| {
                for i in 0..N {
                    let (mut x, mut steps) = (s[i] % 1000, 0);
                    while x != 1 {
                        x = if x & 1 == 0 { x / 2 } else { 3 * x + 1 };
                        steps += 1;
                    }
                    d[i] = steps;
                }
            })
        },
        Case {
            fill: |_, s| {
                for k in 0..1025usize {
                    s[k] = (k * 3 + k % 2) as u32;
                }
            },
            ..case(plain!("bounds_from_memory"), 4, |s, d| {
                for i in 0..N {
                    d[i] = (s[i]..s[i + 1]).fold(0u32, |x, k| x.wrapping_add(s[2048 + k as usize]));
                }
            })
        },
        Case {
            fill: |_, s| {
                for k in 0..1024usize {
                    s[k] = 1 + (k % 9) as u32;
                }
            },
            ..case(plain!("underflow_bound"), 3, |s, d| {
                for i in 0..N {
                    d[i] = (0..s[i] - 1).map(|k| s[2048 + k as usize] & 255).sum();
                }
            })
        },
        Case {
            groups: [4, 1, 1],
            ..case(plain!("grid_stride"), 2, |s, d| {
                for i in 0..N {
                    d[i] = s[i].wrapping_add(2);
                }
            })
        },
        case(plain!("early_return"), 2, |s, d| {
            for i in 0..N {
                if i & 3 != 1 {
                    if let Some(k) = (0..20).find(|k| s[i + k] % 7 == 0) {
                        d[i] = k as u32;
                    }
                }
            }
        }),
        case(plain!("early_return_optimised"), 2, |s, d| {
            for i in 0..N {
                if i & 3 != 1 {
                    if let Some(k) = (0..20).find(|k| s[i + k] % 7 == 0) {
                        d[i] = k as u32;
                    }
                }
            }
        }),
        Case {
            groups: [1000, 1, 1],
            ..case(plain!("alone"), 8, |s, d| {
                for i in 0..N {
                    let sum = (0..s[i] as usize & 7).fold(0u32, |x, k| x.wrapping_add(s[i + 1000 * k]));
                    d[i] = if sum & 1 != 0 { d[i].wrapping_add(sum) } else { d[i].wrapping_mul(3) };
                }
            })
        },
        Case {
            groups: [1000, 1, 1],
            ..case(plain!("alone_twice"), 3, |s, d| {
                for i in 0..N {
                    d[i] = d[i].wrapping_add(s[i]);
                    d[i + 4096] += 1;
                }
            })
        },
        Case {
            groups: [1000, 1, 1],
            ..case(plain!("alone_loop"), 4, |_, d| {
                for i in 0..N {
                    for k in 0..4 {
                        d[i + 1000 * k] = d[i + 1000 * ((k + 1) & 3)].wrapping_add(1);
                    }
                }
            })
        },
        case(plain!("minimum"), 2, |_, d| {
            for i in 0..N {
                d[i & 7] = d[i & 7].min(5000 - 3 * i as u32);
                d[1024 + (i & 7)] |= 1 << (i & 31);
            }
        }),
        Case {
            groups: [31, 1, 1],
            ..case(plain!("ticket"), 4, |_, d| {
                for i in 0..992 {
                    let ticket = i % 32;
                    d[1024 * (ticket >> 3) + 32 * (i / 32) + ticket] = i as u32 / 32;
                }
            })
        },
        case(plain!("debug_information"), 2, |s, d| {
            for i in 0..N {
                d[i] = s[i].wrapping_mul(5);
            }
        }),
        case(plain!("subgroup"), 2, |s, d| {
            for i in 0..N {
                d[i] = s[i];
            }
        }),
        case(plain!("private_globals"), 2, |s, d| {
            for i in 0..N {
                d[i] = (0..4).fold(3u32, |x, k| x.wrapping_add(s[i + k]));
            }
        }),
    ]
}
