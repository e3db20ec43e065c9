#version 460
#extension GL_EXT_buffer_reference : require
#extension GL_EXT_buffer_reference2 : require
#extension GL_EXT_buffer_reference_uvec2 : require
#extension GL_EXT_scalar_block_layout : require
#extension GL_EXT_shader_explicit_arithmetic_types : require
// Barriers within functions.
// glslc: -O0
layout(local_size_x = 32) in;
layout(buffer_reference, std430, buffer_reference_align = 4) buffer Words { uint at[]; };
shared uint part[32];
uint swap(uint value) {
    part[gl_LocalInvocationIndex] = value;
    barrier();
    uint other = part[gl_LocalInvocationIndex ^ 31u];
    barrier();
    return other;
}
layout(push_constant) uniform Push { Words src; Words dst; uint n; };

void main() {
    uint i = gl_GlobalInvocationID.x;
    dst.at[i] = swap(src.at[i]) + swap(i);
}
