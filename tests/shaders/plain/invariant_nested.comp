#version 460
#extension GL_EXT_buffer_reference : require
#extension GL_EXT_buffer_reference2 : require
#extension GL_EXT_buffer_reference_uvec2 : require
#extension GL_EXT_scalar_block_layout : require
#extension GL_EXT_shader_explicit_arithmetic_types : require
// What an inner loop does not change, and what the outer one does not.
layout(local_size_x = 32) in;
layout(buffer_reference, std430, buffer_reference_align = 4) buffer Words { uint at[]; };
struct Row { Words words; uint count; uint first; };
layout(buffer_reference, std430, buffer_reference_align = 8) buffer Matrix { Row rows[4]; uint factor; };
layout(buffer_reference, std430, buffer_reference_align = 8) buffer Start { Matrix matrix; };
layout(push_constant) uniform Push { Start src; Words dst; uint n; };

void main() {
    uint i = gl_GlobalInvocationID.x;
    if (i >= n) return;
    Matrix m = src.matrix;
    dst.at[i] = 0u;
    for (uint row = 0u; row < 4u; row++) {
        for (uint k = i & 3u; k < m.rows[row].count; k++) {
            dst.at[i] += m.rows[row].words.at[m.rows[row].first + k] * m.factor;
        }
    }
}
