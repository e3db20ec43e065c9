#version 460
// A compute shader that knows nothing of vksvm.
layout(local_size_x = 1) in;
layout(push_constant) uniform Push { uint x; };
layout(std430, binding = 0) buffer Out { uint value; };
void main() { value = x; }
