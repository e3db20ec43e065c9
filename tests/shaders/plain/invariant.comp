#version 460
#extension GL_EXT_buffer_reference : require
#extension GL_EXT_buffer_reference2 : require
#extension GL_EXT_buffer_reference_uvec2 : require
#extension GL_EXT_scalar_block_layout : require
#extension GL_EXT_shader_explicit_arithmetic_types : require
// A loop over what a structure says, whose members are loaded each time round because the loop stores.
layout(local_size_x = 32) in;
layout(buffer_reference, std430, buffer_reference_align = 4) buffer Words { uint at[]; };
layout(buffer_reference, std430, buffer_reference_align = 16) buffer Params { uint count; uint factor; uint addend; uint shift; };
struct Entry { Params p; };
layout(buffer_reference, std430, buffer_reference_align = 8) buffer Table { Entry at[]; };
layout(push_constant) uniform Push { Table src; Words dst; uint n; };

void main() {
    uint i = gl_GlobalInvocationID.x;
    if (i >= n) return;
    Params p = src.at[i & 7u].p;
    dst.at[i] = i;
    for (uint k = 0u; k < p.count; k++) {
        dst.at[i] = dst.at[i] * p.factor + p.addend;
        if ((dst.at[i] & 4u) != 0u) dst.at[i] ^= p.shift;
    }
}
