#version 460
// Start-up probe for live faults where copies have a queue of their own: the host copies to one frame and from the other while this waits.
#extension GL_EXT_buffer_reference : require
#extension GL_EXT_shader_explicit_arithmetic_types_int64 : require
layout(local_size_x = 128) in;
layout(buffer_reference, std430, buffer_reference_align = 8) buffer Words { uint announced; uint outcome; uint right; uint wrong; };
layout(buffer_reference, std430, buffer_reference_align = 4) buffer Frame { uint words[]; };
layout(push_constant) uniform Push { uint64_t words; uint64_t frames; uint polls; };

const uint OLD = 1u, NEW = 2u, STORED = 3u;

void main() {
    Words w = Words(words);
    uint me = gl_LocalInvocationIndex;
    // Into whatever caches there are.
    uint before = Frame(frames).words[me];
    if (before != OLD && before != NEW) atomicAdd(w.wrong, 1u);
    if (me == 0u && gl_WorkGroupID.x == 0u) {
        Frame(frames + 4096ul).words[0] = STORED;
        memoryBarrierBuffer();
        atomicExchange(w.announced, 1u);
    }
    uint outcome = 0u;
    for (uint i = 0u; i < polls && outcome == 0u; i++) outcome = atomicOr(w.outcome, 0u);
    memoryBarrierBuffer();
    if (outcome != 1u) return;
    if (Frame(frames).words[me] == NEW) atomicAdd(w.right, 1u);
    else atomicAdd(w.wrong, 1u);
}
