#version 460
// Follows a pointer, which may be on a missing page, and reads a page before and after it stores there for the first time; all through
// translations that are kept.
#define VKSVM_ARGS uint64_t places; uint64_t zeros; uint64_t results; uint count; uint pad;
#include "vksvm.glsl"
layout(local_size_x = 32) in;

layout(buffer_reference, scalar, buffer_reference_align = 8) buffer Place { uint64_t value; };

void main() {
    uint i = vksvm_global_id().x;
    if (i >= args.count) return;
    VksvmCached place = vksvm_cached();
    VksvmCached word = vksvm_cached();
    VksvmCached page = vksvm_cached();
    // A poisoned invocation finds a zero here.
    uint64_t at = Place(vksvm_cached_read(place, args.places + 8ul * i)).value;
    uint found = VksvmU32(vksvm_cached_read(word, at)).value;
    uint64_t zero = args.zeros + 4096ul * i;
    uint before = VksvmU32(vksvm_cached_read(page, zero)).value;
    vksvm_store_u32(zero, i + 5u);
    uint after = VksvmU32(vksvm_cached_read(page, zero)).value;
    vksvm_store_u32(args.results + 4ul * i, found + 1000u * before + after);
}
