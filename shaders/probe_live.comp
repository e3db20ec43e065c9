#version 460
// Start-up probe for live faults: which invocations run while others wait?
// `test` 0: invocation 0 waits for the host. Otherwise invocation `waiter` waits for a word that `setter` stores.
#extension GL_EXT_buffer_reference : require
#extension GL_EXT_shader_explicit_arithmetic_types_int64 : require
layout(local_size_x = 128) in;
layout(buffer_reference, std430, buffer_reference_align = 8) buffer Words { uint announced; uint flag; uint outcome; };
layout(push_constant) uniform Push { uint64_t words; uint test; uint polls; uint waiter; uint setter; };

void main() {
    Words w = Words(words);
    uint me = gl_LocalInvocationIndex;
    if (me == waiter) {
        atomicExchange(w.announced, 1u);
        uint outcome = 2u;
        for (uint i = 0u; i < polls; i++) {
            if (atomicOr(w.flag, 0u) != 0u) {
                outcome = 1u;
                break;
            }
        }
        atomicExchange(w.outcome, outcome);
    } else if (test != 0u && me == setter) {
        atomicExchange(w.flag, 1u);
    }
}
