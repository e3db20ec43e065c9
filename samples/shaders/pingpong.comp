#version 460
#extension GL_EXT_buffer_reference : require
#extension GL_EXT_buffer_reference2 : require
#extension GL_EXT_scalar_block_layout : require
// Takes up to `batch` tasks from a queue that CPU threads take tasks from at the same time, and stores what each comes to.
layout(local_size_x = 1) in;

struct Task {
    uint claims; // how often it was taken: once, if all is well
    uint result;
};

layout(buffer_reference, scalar, buffer_reference_align = 4) buffer Queue { uint next; };
layout(buffer_reference, scalar, buffer_reference_align = 4) buffer Tasks { Task at[]; };
layout(buffer_reference, scalar, buffer_reference_align = 4) buffer Count { uint taken; };
layout(push_constant, scalar) uniform Args { Queue queue; Tasks tasks; Count count; uint n; uint batch; uint work; };

void main() {
    uint taken = 0;
    for (uint turn = 0; turn < batch; turn++) {
        uint task = atomicAdd(queue.next, 1);
        if (task >= n) break;
        uint value = task;
        for (uint i = 0; i < work; i++) {
            value = value * 1664525u + 1013904223u;
            value ^= value >> 15;
        }
        tasks.at[task].result = value;
        atomicAdd(tasks.at[task].claims, 1);
        taken++;
    }
    atomicAdd(count.taken, taken);
}
