#version 460
// Start-up probe: how fast a kernel works on memory. Adds one to words, each invocation to one, `stride` words apart.
#extension GL_EXT_buffer_reference : require
#extension GL_EXT_shader_explicit_arithmetic_types_int64 : require
layout(local_size_x = 64) in;
layout(buffer_reference, std430, buffer_reference_align = 4) buffer Word { uint value; };
layout(push_constant) uniform Push { uint64_t words; uint stride; uint count; };

void main() {
    uint i = gl_GlobalInvocationID.x;
    if (i < count) Word(words + 4ul * uint64_t(stride) * uint64_t(i)).value += 1u;
}
