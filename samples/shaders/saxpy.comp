#version 460
#extension GL_EXT_buffer_reference : require
#extension GL_EXT_buffer_reference2 : require
#extension GL_EXT_scalar_block_layout : require
// y = a * x + y
layout(local_size_x = 64) in;

layout(buffer_reference, scalar, buffer_reference_align = 4) buffer Floats { float at[]; };
layout(push_constant, scalar) uniform Args { Floats x; Floats y; float a; uint n; };

void main() {
    uint i = gl_GlobalInvocationID.x;
    if (i < n) y.at[i] = a * x.at[i] + y.at[i];
}
