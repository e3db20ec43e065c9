#version 460
// Follows rays through a tree that the CPU built, by the CPU's own pointers. Structures and arithmetic are those of
// samples/src/scene, in the same order; `precise` keeps the compiler from contracting or reordering any of it.
// It writes only its own pixel and reads nothing that it writes: idempotent.
#define VKSVM_ARGS uint64_t root; uint64_t view; uint64_t image; uint width; uint height;
#include "vksvm.glsl"
layout(local_size_x = 8, local_size_y = 8) in;

// Nodes and views are 64 bytes at multiples of 64, so none straddles two pages; triangles and vertices may.
struct Node {
    vec3 lo;
    uint count;
    vec3 hi;
    uint axis;
    uint64_t children[2];
    uint64_t triangles;
};
struct View {
    vec3 eye;
    vec3 corner;
    vec3 right;
    vec3 down;
    vec3 light;
    float floor_;
};
const uint TRIANGLE_BYTES = 24u;
const uint VEC3_BYTES = 12u;
const uint NORMAL = 12u;

layout(buffer_reference, scalar, buffer_reference_align = 8) readonly buffer NodeRef { Node value; };
layout(buffer_reference, scalar, buffer_reference_align = 8) readonly buffer TriangleRef { uint64_t corners[3]; };
layout(buffer_reference, scalar, buffer_reference_align = 4) readonly buffer Vec3Ref { vec3 value; };
layout(buffer_reference, scalar, buffer_reference_align = 4) readonly buffer ViewRef { View value; };

struct Hit {
    float t;
    float u;
    float v;
    bool back;
    uint64_t triangle;
};

const float NEAREST = 1e-4;
const float FAR = 1e6;
const float STEEPEST = 1e-12;
const float SLACK = 1e-5;
const uint STACK = 64u;

float dot_(vec3 a, vec3 b) {
    precise float r = a.x * b.x + a.y * b.y + a.z * b.z;
    return r;
}

vec3 cross_(vec3 a, vec3 b) {
    precise vec3 r = vec3(a.y * b.z - a.z * b.y, a.z * b.x - a.x * b.z, a.x * b.y - a.y * b.x);
    return r;
}

float reciprocal(float x) {
    precise float a = abs(x);
    precise float r = uintBitsToFloat(0x7ef311c7u - floatBitsToUint(a));
    r = r * (2.0 - a * r);
    r = r * (2.0 - a * r);
    r = r * (2.0 - a * r);
    return x < 0.0 ? -r : r;
}

float inverse_sqrt(float x) {
    precise float half_ = 0.5 * x;
    precise float r = uintBitsToFloat(0x5f3759dfu - (floatBitsToUint(x) >> 1));
    r = r * (1.5 - half_ * r * r);
    r = r * (1.5 - half_ * r * r);
    r = r * (1.5 - half_ * r * r);
    return r;
}

vec3 unit(vec3 a) {
    float square = dot_(a, a);
    precise vec3 r = vec3(0.0);
    if (square > 1e-24) r = a * vec3(inverse_sqrt(square));
    return r;
}

float component(vec3 a, uint axis) { return axis == 0u ? a.x : axis == 1u ? a.y : a.z; }

float inverse_component(float d) {
    if (abs(d) < STEEPEST) d = d < 0.0 ? -STEEPEST : STEEPEST;
    return reciprocal(d);
}

bool may_hit(Node node, vec3 origin, vec3 inverse_, float limit) {
    precise vec3 a = (node.lo - origin) * inverse_;
    precise vec3 b = (node.hi - origin) * inverse_;
    vec3 lo = min(a, b);
    vec3 hi = max(a, b);
    float near = max(max(max(0.0, lo.x), lo.y), lo.z);
    float far = min(min(min(limit, hi.x), hi.y), hi.z);
    precise float left = near - SLACK * near;
    precise float right = far + SLACK * far + SLACK;
    return left <= right;
}

// Positions (`at` 0) or normals (`at` NORMAL) of a triangle's three corners.
vec3[3] corners_of(uint64_t triangle, uint at) {
    uint64_t corners[3] = TriangleRef(vksvm_read(triangle, TRIANGLE_BYTES)).corners;
    vec3 values[3];
    for (uint k = 0u; k < 3u; k++) values[k] = Vec3Ref(vksvm_read(corners[k] + at, VEC3_BYTES)).value;
    return values;
}

void meet(uint64_t triangle, vec3 origin, vec3 direction, inout Hit best) {
    vec3 positions[3] = corners_of(triangle, 0u);
    vec3 a = positions[0];
    precise vec3 edge1 = positions[1] - a;
    precise vec3 edge2 = positions[2] - a;
    vec3 p = cross_(direction, edge2);
    float determinant = dot_(edge1, p);
    if (abs(determinant) < 1e-18) return;
    float inverse_ = reciprocal(determinant);
    precise vec3 from = origin - a;
    precise float u = dot_(from, p) * inverse_;
    if (!(u >= 0.0 && u <= 1.0)) return;
    vec3 q = cross_(from, edge1);
    precise float v = dot_(direction, q) * inverse_;
    precise float sum = u + v;
    if (v < 0.0 || sum > 1.0) return;
    precise float t = dot_(edge2, q) * inverse_;
    if (t > NEAREST && t < best.t) best = Hit(t, u, v, determinant < 0.0, triangle);
}

// The nearest hit, or any; its triangle is 0 if there is none. While pages are missing, nodes read as zero: their null
// children are passed over and the rest of the stack is followed all the same, so that one run reports many pages.
Hit trace(vec3 origin, vec3 direction, bool any_) {
    vec3 inverse_ = vec3(inverse_component(direction.x), inverse_component(direction.y), inverse_component(direction.z));
    Hit best = Hit(FAR, 0.0, 0.0, false, 0ul);
    uint64_t stack[STACK];
    uint top = 0u;
    uint64_t at = args.root;
    while (true) {
        if (at != 0ul) {
            Node node = NodeRef(vksvm_read(at)).value;
            if (may_hit(node, origin, inverse_, best.t)) {
                if (node.count == 0u) {
                    bool forward = component(direction, node.axis) >= 0.0;
                    if (top < STACK) stack[top++] = forward ? node.children[1] : node.children[0];
                    at = forward ? node.children[0] : node.children[1];
                    continue;
                }
                for (uint i = 0u; i < node.count; i++) {
                    meet(node.triangles + uint64_t(TRIANGLE_BYTES * i), origin, direction, best);
                    if (any_ && best.triangle != 0ul) return best;
                }
            }
        }
        if (top == 0u) return best;
        at = stack[--top];
    }
    return best;
}

const vec3 SKY0 = vec3(0.80, 0.82, 0.86);
const vec3 SKY1 = vec3(0.30, 0.42, 0.62);
const vec3 FLOOR = vec3(0.55, 0.53, 0.50);
const vec3 FUR = vec3(0.72, 0.55, 0.42);
const float LIFT = 1e-2;

vec3 mix_(vec3 a, vec3 b, float k) {
    precise vec3 r = a + (b - a) * vec3(k);
    return r;
}

vec3 along(vec3 origin, vec3 direction, float t) {
    precise vec3 r = origin + direction * vec3(t);
    return r;
}

// What an eye ray comes to: its colour with and without the light, and from where the light would have to be seen.
struct Seen {
    vec3 lit;
    vec3 dark;
    vec3 origin;
    bool faces_light;
};

Seen surface(View view, vec3 direction, Hit hit) {
    vec3 normals[3] = corners_of(hit.triangle, NORMAL);
    precise float w = 1.0 - hit.u - hit.v;
    precise vec3 sum = normals[0] * vec3(w) + normals[1] * vec3(hit.u);
    sum = sum + normals[2] * vec3(hit.v);
    vec3 normal = unit(sum);
    if (hit.back) normal = -normal;
    float facing = dot_(normal, view.light);
    precise float dark = 0.28 + 0.12 * normal.y;
    precise float lit = dark + 0.85 * facing;
    precise vec3 dark_colour = FUR * vec3(dark);
    precise vec3 lit_colour = FUR * vec3(lit);
    return Seen(lit_colour, dark_colour, along(along(view.eye, direction, hit.t), normal, LIFT), facing > 0.0);
}

Seen ground(View view, vec3 direction, float t) {
    vec3 point = along(view.eye, direction, t);
    precise float square = (point.x * point.x + point.z * point.z) * 0.04;
    float fade = min(square, 1.0);
    precise vec3 dark = FLOOR * vec3(0.4);
    return Seen(mix_(FLOOR, SKY0, fade), mix_(dark, SKY0, fade), along(point, vec3(0.0, 1.0, 0.0), LIFT), true);
}

Seen sky(vec3 direction) {
    precise float k = direction.y * 2.0;
    vec3 colour = mix_(SKY0, SKY1, clamp(k, 0.0, 1.0));
    return Seen(colour, colour, vec3(0.0), false);
}

Seen look(View view, vec3 direction, Hit hit) {
    precise float floor_ = FAR;
    if (direction.y < -1e-6) floor_ = (view.floor_ - view.eye.y) * reciprocal(direction.y);
    if (hit.triangle != 0ul && hit.t < floor_) return surface(view, direction, hit);
    if (floor_ < FAR) return ground(view, direction, floor_);
    return sky(direction);
}

uint channel(float value) {
    value = clamp(value, 1e-6, 1.0);
    precise float scaled = value * inverse_sqrt(value) * 255.0 + 0.5;
    return uint(min(scaled, 255.0));
}

void main() {
    if (!vksvm_begin()) return;
    uvec2 pixel = vksvm_global_id().xy;
    if (pixel.x < args.width && pixel.y < args.height) {
        View view = ViewRef(vksvm_read(args.view)).value;
        precise vec3 direction = view.corner + view.right * vec3(float(pixel.x)) + view.down * vec3(float(pixel.y));
        // Two rays, from the eye and towards the light, in a loop: compilers put every call's code in place, and
        // that of trace() is large.
        Hit hit = Hit(FAR, 0.0, 0.0, false, 0ul);
        Seen seen = Seen(vec3(0.0), vec3(0.0), view.eye, true);
        for (uint ray = 0u; ray < 2u && seen.faces_light; ray++) {
            hit = trace(seen.origin, ray == 0u ? direction : view.light, ray == 1u);
            if (ray == 0u) seen = look(view, direction, hit);
        }
        vec3 colour = seen.faces_light && hit.triangle == 0ul ? seen.lit : seen.dark;
        uint packed = channel(colour.x) | channel(colour.y) << 8 | channel(colour.z) << 16 | 0xff000000u;
        vksvm_store_u32(args.image + 4ul * (uint64_t(pixel.y) * args.width + pixel.x), packed);
    }
    vksvm_end();
}
