#version 460
// Start-up probe: common software drivers stop every invocation after 65,535 loop iterations, silently.
#extension GL_EXT_buffer_reference : require
#extension GL_EXT_shader_explicit_arithmetic_types_int64 : require
layout(local_size_x = 1) in;
layout(buffer_reference, std430, buffer_reference_align = 8) buffer Result { uint value; };
layout(push_constant) uniform Push { uint64_t result; uint iterations; };

void main() {
    uint x = 1u;
    for (uint i = 0u; i < iterations; i++) x = x * 1664525u + 1013904223u;
    Result(result).value = x;
}
