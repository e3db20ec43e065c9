#version 460
#extension GL_EXT_buffer_reference : require
#extension GL_EXT_buffer_reference2 : require
#extension GL_EXT_buffer_reference_uvec2 : require
#extension GL_EXT_scalar_block_layout : require
#extension GL_EXT_shader_explicit_arithmetic_types : require
// Atomics on one word, and a load and a store of it beside: each invocation has its own.
layout(local_size_x = 32) in;
layout(buffer_reference, std430, buffer_reference_align = 4) buffer Words { uint at[]; };
layout(push_constant) uniform Push { Words src; Words dst; uint n; };

void main() {
    uint i = gl_GlobalInvocationID.x;
    if (i >= n) return;
    uint found = atomicAdd(dst.at[i], src.at[i]);
    uint expected = found + src.at[i];
    while (atomicCompSwap(dst.at[i], expected, expected * 5u) != expected) expected = dst.at[i];
    dst.at[i] = dst.at[i] + found;
    atomicXor(dst.at[i], 0xFFFFu);
}
