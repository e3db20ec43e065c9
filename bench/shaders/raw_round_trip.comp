#version 460
// Asks the host `trips` times and waits for each answer: what waiting inside a kernel costs at least.
#extension GL_EXT_buffer_reference : require
#extension GL_EXT_shader_explicit_arithmetic_types_int64 : require
layout(local_size_x = 1) in;
layout(buffer_reference, std430, buffer_reference_align = 64) buffer Words { uint asked; uint pad[15]; uint answered; };
layout(push_constant) uniform Push { uint64_t words; uint trips; uint polls; };

void main() {
    Words w = Words(words);
    for (uint trip = 1u; trip <= trips; trip++) {
        atomicExchange(w.asked, trip);
        for (uint i = 0u; i < polls; i++)
            if (atomicOr(w.answered, 0u) >= trip) break;
    }
}
