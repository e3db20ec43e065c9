#version 460
#extension GL_EXT_buffer_reference : require
#extension GL_EXT_buffer_reference2 : require
#extension GL_EXT_buffer_reference_uvec2 : require
#extension GL_EXT_scalar_block_layout : require
#extension GL_EXT_shader_explicit_arithmetic_types : require
// Objects are accessed before and after waiting for the CPU, which takes their pages meanwhile and changes them: what was
// translated before is void. All wait for one word: no more of them than any subgroup holds.
layout(local_size_x = 4) in;
struct Stored { uint before; uint after; uint heard; uint sum; };
layout(buffer_reference, std430, buffer_reference_align = 16) buffer Stores { Stored at[]; };
layout(buffer_reference, std430, buffer_reference_align = 4) buffer Words { uint at[]; };
layout(buffer_reference, std430, buffer_reference_align = 4) buffer Go { uint turn; };
layout(push_constant) uniform Push { Stores stored; Words loaded; Words counted; Go go; uint turns; };

void main() {
    uint i = gl_GlobalInvocationID.x;
    for (uint turn = 1u; turn <= turns; turn++) {
        uint said = loaded.at[i];
        atomicAdd(counted.at[i], 1u);
        stored.at[i].before = turn;
        while (atomicOr(go.turn, 0u) < turn) {}
        memoryBarrierBuffer();
        // Loaded before anything else of it is stored to: what is beside it was translated before the wait.
        uint heard = stored.at[i].before;
        stored.at[i].after = turn;
        stored.at[i].heard = heard;
        stored.at[i].sum = said + loaded.at[i];
        atomicAdd(counted.at[i], 1u);
    }
}
