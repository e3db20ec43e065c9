#version 460
// Looks at versioned words while others change them, and brings out versions of its own: see `tests/device/versions.rs`. A word
// is `tag << 20 | version`, with the tag that its place gives it, or, where that is allowed, all zeros.
//
// Every invocation has a job: WATCHED addresses to look at; a flag (or none) with the data that must not be older than it says; two
// words of its own on different pages, of which the second follows the first; one to add to. `stop` ends it.
#define VKSVM_ARGS uint64_t jobs; uint64_t reports; uint64_t stop; uint64_t base; uint turns; uint add; uint busy;
#include "vksvm.glsl"
layout(local_size_x = 16) in;

const uint WATCHED = 6u;
const uint MASK = 0xFFFFFu;
const uint64_t MAY_BE_ZERO = 1ul << 63;

layout(buffer_reference, scalar, buffer_reference_align = 4) buffer Word { volatile uint value; };
// Offsets in a job.
const uint64_t FLAG = 48ul, DATA = 56ul, OWN = 64ul, COUNTER = 80ul, VERSION = 88ul, NEWEST = 92ul;
const uint JOB_BYTES = 120u;
// A report: the newest version of its own, how often it added, what it found wrong first and beside what, the newest seen.
const uint REPORT_BYTES = 48u;

uint wrong_;
uint before_;
uint seen_;

uint look(uint64_t p) { return Word(vksvm_read(p)).value; }

// The tag of a word's place.
uint tag_of(uint64_t p) { return (uint((p - args.base) >> 2) * 2654435761u) >> 20; }

// Checks a word that was found and returns its version. `kind` and the place among its kind are told if it is wrong.
uint check(uint64_t p, bool may_be_zero, uint seen, uint least, uint kind) {
    if (may_be_zero && seen == 0u) return least;
    uint version = seen & MASK;
    if (((seen >> 20) != tag_of(p) || version < least) && wrong_ == 0u && !vksvm_poisoned()) {
        wrong_ = kind;
        before_ = least;
        seen_ = seen;
    }
    return version;
}

void main() {
    if (!vksvm_begin()) return;
    // With fewer invocations a workgroup needs fewer pages at a time.
    if (gl_LocalInvocationIndex >= args.busy) {
        vksvm_end();
        return;
    }
    uint i = vksvm_workgroup_id().x * args.busy + gl_LocalInvocationIndex;
    uint64_t job = args.jobs + uint64_t(JOB_BYTES * i);
    wrong_ = 0u;
    before_ = 0u;
    seen_ = 0u;
    uint newest[WATCHED];
    for (uint w = 0u; w < WATCHED; w++) newest[w] = vksvm_load_u32(job + NEWEST + 4ul * w);
    uint flagged = 0u;
    uint added = 0u;
    uint version = vksvm_load_u32(job + VERSION);
    uint turn = 0u;
    while (turn < args.turns && !vksvm_poisoned()) {
        for (uint w = 0u; w < WATCHED; w++) {
            uint64_t p = vksvm_load_u64(job + 8ul * w);
            bool may_be_zero = (p & MAY_BE_ZERO) != 0ul;
            p &= ~MAY_BE_ZERO;
            newest[w] = check(p, may_be_zero, look(p), newest[w], 16u + w);
        }
        // The flag says how new the data is at least.
        uint64_t flag = vksvm_load_u64(job + FLAG);
        if (flag != 0ul) {
            flagged = check(flag, false, look(flag), flagged, 1u);
            memoryBarrierBuffer();
            uint64_t data = vksvm_load_u64(job + DATA);
            check(data, false, look(data), flagged, 2u);
        }
        // What it stored last is still there; the second word is stored after the first.
        for (uint k = 0u; k < 2u; k++) {
            uint64_t p = vksvm_load_u64(job + OWN + 8ul * k);
            uint seen = look(p);
            if (seen != (tag_of(p) << 20 | version) && wrong_ == 0u && !vksvm_poisoned()) {
                wrong_ = 4u + k;
                before_ = version;
                seen_ = seen;
            }
        }
        for (uint k = 0u; k < 2u; k++) {
            uint64_t p = vksvm_load_u64(job + OWN + 8ul * k);
            memoryBarrierBuffer();
            Word(vksvm_write(p)).value = tag_of(p) << 20 | (version + 1u);
        }
        version++;
        vksvm_atomic_add_u32(vksvm_load_u64(job + COUNTER), args.add);
        added++;
        turn++;
        if (look(args.stop) != 0u) break;
    }
    uint64_t report = args.reports + uint64_t(REPORT_BYTES * i);
    vksvm_store_u32(report, version);
    vksvm_store_u32(report + 4ul, added);
    vksvm_store_u32(report + 8ul, wrong_);
    vksvm_store_u32(report + 12ul, before_);
    vksvm_store_u32(report + 16ul, seen_);
    for (uint w = 0u; w < WATCHED; w++) vksvm_store_u32(report + 20ul + 4ul * w, newest[w]);
    vksvm_end();
}
