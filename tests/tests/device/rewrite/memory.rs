//! What is accessed: scalars, vectors, matrices, structures, atomics.

use super::corpus::{Case, N, case, f};
use crate::plain;

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case {
            idempotent: true,
            ..case(plain!("copy"), 2, |s, d| {
                for i in 0..N {
                    d[i] = s[i].wrapping_add(1);
                }
            })
        },
        Case {
            idempotent: true,
            ..case(plain!("fill"), 1, |_, d| {
                for i in 0..N {
                    d[4 * i] = i as u32;
                }
            })
        },
        case(plain!("update"), 2, |s, d| {
            for i in 0..N {
                d[i] = d[i].wrapping_mul(3).wrapping_add(s[i]);
            }
        }),
        case(plain!("gather"), 9, |s, d| {
            for i in 0..N {
                d[i] = s[s[i].wrapping_mul(7) as usize % 8192];
            }
        }),
        case(plain!("scatter"), 2, |s, d| {
            for i in 0..N {
                d[(i * 8 + (i >> 7)) % 8192] = s[i];
            }
        }),
        case(plain!("vec2"), 2, |s, d| {
            for i in 0..N {
                d[2 * i] = s[2 * i + 1];
                d[2 * i + 1] = s[2 * i];
            }
        }),
        case(plain!("vec3_scalar"), 4, |s, d| {
            for i in 0..N {
                let t = 3 * i;
                (d[t], d[t + 1], d[t + 2]) = (s[t + 2], s[t], s[t + 1]);
            }
        }),
        case(plain!("vec4"), 2, |s, d| {
            for i in 0..N {
                for c in 0..4 {
                    d[4 * i + c] = s[4 * i + 3 - c];
                }
            }
        }),
        case(plain!("vec4_unaligned"), 4, |s, d| {
            for i in 0..N {
                for c in 1..5 {
                    d[4 * i + c] = s[4 * i + c].wrapping_add(1);
                }
            }
        }),
        case(plain!("vector_component"), 2, |s, d| {
            for i in 0..N {
                d[4 * i + (i & 3)] = s[4 * i + (i + 1 & 3)];
            }
        }),
        case(plain!("struct_load"), 3, |s, d| {
            for i in 0..N {
                d[i] = (0..5).fold(0, |x, c| x ^ s[5 * i + c]);
            }
        }),
        Case {
            idempotent: true,
            ..case(plain!("struct_store"), 2, |_, d| {
                for i in 0..N {
                    d[5 * i..5 * i + 5].copy_from_slice(&[
                        i as u32,
                        i as u32 + 1,
                        1f32.to_bits(),
                        i as u32 + 2,
                        i as u32 + 3,
                    ]);
                }
            })
        },
        case(plain!("struct_copy"), 4, |s, d| {
            for i in 0..N {
                d[5 * i..5 * i + 5].copy_from_slice(&s[5 * i..5 * i + 5]);
            }
        }),
        case(plain!("struct_members"), 4, |s, d| {
            for i in 0..N {
                d[5 * i + 1] = s[5 * i + 3];
                d[5 * i + 4] = s[5 * i];
            }
        }),
        case(plain!("nested_struct"), 3, |s, d| {
            for i in 0..N {
                let (o, k) = (12 * (i / 4), i & 1);
                d[i] = s[o + 1 + 5 * k + 2 + i % 3].wrapping_add(s[o + 1 + 5 * (1 - k) + 1]).wrapping_add(s[o + 11]);
            }
        }),
        case(plain!("nested_struct_load"), 3, |s, d| {
            for i in 0..N {
                let o = 12 * (i / 4);
                d[i] = s[o + 1 + 5 * (i & 1) + 2 + i % 3].wrapping_add(s[o]);
            }
        }),
        Case {
            fill: |_, s| {
                for (i, w) in s.iter_mut().enumerate() {
                    *w = ((i * 7 % 32) as f32).to_bits();
                }
            },
            ..case(plain!("mat4_columns"), 2, |s, d| {
                for i in 0..N {
                    for r in 0..4 {
                        d[4 * i + r] =
                            (0..4).map(|c| f(s[16 * (i / 8) + 4 * c + r]) * (c + 1) as f32).sum::<f32>().to_bits();
                    }
                }
            })
        },
        Case {
            fill: |_, s| {
                for (i, w) in s.iter_mut().enumerate() {
                    *w = ((i * 7 % 32) as f32).to_bits();
                }
            },
            ..case(plain!("mat4_rows"), 2, |s, d| {
                for i in 0..N {
                    for r in 0..4 {
                        d[4 * i + r] =
                            (0..4).map(|c| f(s[16 * (i / 8) + 4 * r + c]) * (c + 1) as f32).sum::<f32>().to_bits();
                    }
                }
            })
        },
        Case {
            fill: |_, s| {
                for (i, w) in s.iter_mut().enumerate() {
                    *w = ((i * 7 % 32) as f32).to_bits();
                }
            },
            ..case(plain!("mat4_row_major_column"), 2, |s, d| {
                for i in 0..N {
                    if i & 4 == 0 {
                        for r in 0..4 {
                            d[16 * (i / 8) + 4 * r + (i & 3)] = s[16 * (i / 8) + 4 * r + (i + 1 & 3)];
                        }
                    }
                }
            })
        },
        Case {
            fill: |_, s| {
                for (i, w) in s.iter_mut().enumerate() {
                    *w = ((i * 7 % 32) as f32).to_bits();
                }
            },
            ..case(plain!("mat_struct"), 4, |s, d| {
                for i in 0..N / 2 {
                    let o = 12 * i;
                    for r in 0..3 {
                        for c in 0..3 {
                            d[o + 3 * r + c] = s[o + 3 * c + r];
                        }
                        d[o + 9 + r] = (0..3).map(|c| f(s[o + 3 * r + c]) * f(s[o + 9 + c])).sum::<f32>().to_bits();
                    }
                }
            })
        },
        case(plain!("bytes"), 2, |s, d| {
            for i in 0..N {
                let [_, b, _, e] = s[i].to_le_bytes();
                let mut w = d[i].to_le_bytes();
                w[0] = e;
                w[2] = b.wrapping_add(1);
                d[i] = u32::from_le_bytes(w);
            }
        }),
        case(plain!("byte_vectors"), 4, |s, d| {
            let b: Vec<u8> = s.iter().flat_map(|w| w.to_le_bytes()).collect();
            for i in 0..N {
                let o = 12 * i + 3;
                for (k, c) in [2, 0, 1].into_iter().enumerate() {
                    let at = o + k;
                    let mut w = d[at / 4].to_le_bytes();
                    w[at % 4] = b[o + c];
                    d[at / 4] = u32::from_le_bytes(w);
                }
            }
        }),
        case(plain!("shorts"), 2, |s, d| {
            for i in 0..N {
                d[i] = d[i] & 0xFFFF | ((s[i] & 0xFFFF).wrapping_add(5) & 0xFFFF) << 16;
            }
        }),
        case(plain!("longs"), 2, |s, d| {
            for i in 0..N {
                let v = (u64::from(s[2 * i]) | u64::from(s[2 * i + 1]) << 32).wrapping_mul(3);
                (d[2 * i], d[2 * i + 1]) = (v as u32, (v >> 32) as u32);
            }
        }),
        case(plain!("longs_in_words"), 2, |s, d| {
            for i in 0..N {
                for c in 0..4 {
                    d[4 * i + c] = s[4 * i + (c + 2) % 4];
                }
            }
        }),
        Case {
            fill: |_, s| {
                for (i, pair) in s.chunks_exact_mut(2).enumerate() {
                    pair[0] = 0;
                    pair[1] = ((i as f64).to_bits() >> 32) as u32;
                }
            },
            ..case(plain!("doubles"), 2, |s, d| {
                for i in 0..N {
                    let v = (i as f64 * 0.5 + f64::from_bits(u64::from(s[4 * i]) | u64::from(s[4 * i + 1]) << 32))
                        .to_bits();
                    (d[2 * i], d[2 * i + 1]) = (v as u32, (v >> 32) as u32);
                }
            })
        },
        Case {
            fill: |_, s| s.fill(0x3C00),
            ..case(plain!("half_floats"), 2, |_, d| {
                for i in 0..N {
                    d[i] = d[i] & 0xFFFF_0000 | 0x3C00;
                }
            })
        },
        case(plain!("volatile"), 2, |s, d| {
            for i in 0..N {
                d[i] = s[i].wrapping_mul(2);
            }
        }),
        Case {
            idempotent: true,
            ..case(plain!("qualified"), 2, |s, d| {
                for i in 0..N {
                    d[i] = s[i] ^ 5;
                }
            })
        },
        case(plain!("vulkan_memory_model"), 3, |s, d| {
            for i in 0..N {
                d[i] = s[i].wrapping_add(9);
                d[4096] += 1;
            }
        }),
        case(plain!("atomic_add"), 5, |s, d| {
            for i in 0..N {
                d[i % 7 * 512] = d[i % 7 * 512].wrapping_add(s[i]);
            }
        }),
        case(plain!("atomic_kinds"), 2, |s, d| {
            for i in 0..N {
                d[0] = d[0].min(s[i]);
                d[1] = d[1].max(s[i]);
                d[2] &= s[i];
                d[3] |= s[i];
                d[4] ^= s[i];
            }
        }),
        case(plain!("atomic_signed"), 2, |s, d| {
            for i in 0..N {
                d[0] = (d[0] as i32).min(s[i] as i32) as u32;
                d[1] = (d[1] as i32).max(s[i] as i32) as u32;
            }
        }),
        case(plain!("atomic_exchange"), 3, |s, d| {
            for i in 0..N {
                d[i] = d[i + 4096];
                d[i + 4096] = s[i];
            }
        }),
        case(plain!("atomic_compare"), 1, |_, d| {
            for i in 0..N {
                d[i % 5] += 3;
            }
        }),
        case(plain!("atomic_compare_again"), 1, |_, d| {
            for i in 0..N {
                d[i % 5] += 3;
            }
        }),
        case(plain!("atomic_longs"), 2, |s, d| {
            for i in 0..N {
                let k = 2 * (i % 3);
                let v = (u64::from(d[k]) | u64::from(d[k + 1]) << 32).wrapping_add(u64::from(s[i]));
                (d[k], d[k + 1]) = (v as u32, (v >> 32) as u32);
            }
        }),
        case(plain!("atomic_load_store"), 2, |s, d| {
            for i in 0..N {
                d[i] = s[i].wrapping_add(1);
            }
        }),
    ]
}
