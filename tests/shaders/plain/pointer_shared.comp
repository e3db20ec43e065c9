#version 460
#extension GL_EXT_buffer_reference : require
#extension GL_EXT_buffer_reference2 : require
#extension GL_EXT_buffer_reference_uvec2 : require
#extension GL_EXT_scalar_block_layout : require
#extension GL_EXT_shader_explicit_arithmetic_types : require
// Pointers kept in shared memory.
layout(local_size_x = 32) in;
layout(buffer_reference, std430, buffer_reference_align = 4) buffer Words { uint at[]; };
shared uint64_t kept[32];
layout(push_constant) uniform Push { Words src; Words dst; uint n; };

void main() {
    uint i = gl_GlobalInvocationID.x;
    kept[gl_LocalInvocationIndex] = uint64_t(src) + 4ul * i;
    barrier();
    if (i < n) dst.at[i] = Words(kept[gl_LocalInvocationIndex ^ 1u]).at[0];
}
