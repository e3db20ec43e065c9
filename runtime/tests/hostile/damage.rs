//! Modules that were good: damaged in ways that keep much of them whole, so that the damage gets far.

use rand::Rng;
use rand::rngs::SmallRng;

/// Words before the first instruction.
const HEADER: usize = 5;

pub(crate) fn words(bytes: &[u8]) -> Vec<u32> {
    bytes.chunks_exact(4).map(|word| u32::from_le_bytes(word.try_into().unwrap())).collect()
}

pub(crate) fn bytes(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// Where instructions start.
fn starts(words: &[u32]) -> Vec<usize> {
    let mut starts = Vec::new();
    let mut at = HEADER;
    while at < words.len() {
        starts.push(at);
        at += ((words[at] >> 16) as usize).max(1);
    }
    starts
}

/// A kernel of the corpus with some damage.
pub(crate) fn damaged(corpus: &[Vec<u8>], random: &mut SmallRng) -> Vec<u8> {
    let one = |random: &mut SmallRng| words(&corpus[random.random_range(0..corpus.len())]);
    let mut words = one(random);
    for _ in 0..random.random_range(1..5) {
        let starts = starts(&words);
        if starts.len() < 2 {
            break;
        }
        let start = starts[random.random_range(0..starts.len())];
        let count = ((words[start] >> 16) as usize).clamp(1, words.len() - start);
        let operand = start + random.random_range(0..count);
        match random.random_range(0..14) {
            0 => words[operand] = random.random(),
            1 => words[operand] ^= 1 << random.random_range(0..32),
            // Another id, or another small literal.
            2 | 3 => words[operand] = random.random_range(0..words[3].clamp(1, 10_000)),
            4 => words[operand] = words[random.random_range(0..words.len())],
            5 => drop(words.remove(operand)),
            6 => words.insert(operand, random.random_range(0..64)),
            // An instruction that does something else with the same operands, is gone, is there twice, or elsewhere.
            7 => words[start] = words[start] & 0xFFFF_0000 | random.random_range(0..420),
            8 => drop(words.drain(start..start + count)),
            9 | 10 => {
                let copied: Vec<u32> = words[start..start + count].to_vec();
                let to = starts[random.random_range(0..starts.len())];
                words.splice(to..to, copied);
            }
            // Another capability.
            11 => {
                words.splice(HEADER..HEADER, [2 << 16 | 17, random.random_range(0..70)]);
            }
            // The end of another kernel.
            12 => {
                let other = one(random);
                let from = random.random_range(HEADER..other.len());
                words.truncate(start);
                words.extend(&other[from..]);
            }
            _ => words[random.random_range(0..HEADER)] = random.random_range(0..0x50_0000),
        }
    }
    let mut module = bytes(&words);
    if random.random_range(0..20) == 0 {
        module.truncate(random.random_range(0..=module.len()));
    }
    module
}
