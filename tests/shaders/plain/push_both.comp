#version 460
#extension GL_EXT_buffer_reference : require
#extension GL_EXT_buffer_reference2 : require
#extension GL_EXT_buffer_reference_uvec2 : require
#extension GL_EXT_scalar_block_layout : require
#extension GL_EXT_shader_explicit_arithmetic_types : require
// Pointers in the push constants are used from there, and from a copy of the whole.
// glslc: -O0
layout(local_size_x = 32) in;
layout(buffer_reference, std430, buffer_reference_align = 4) buffer Words { uint at[]; };
struct Job { Words from; Words to; uint n; };
layout(push_constant, scalar) uniform Push { Job job; };

void main() {
    Job mine = job;
    uint i = gl_GlobalInvocationID.x;
    if (i >= job.n) return;
    job.to.at[i] = job.from.at[i];
    mine.to.at[i] = mine.to.at[i] * 3u + mine.from.at[i];
}
