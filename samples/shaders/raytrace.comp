#version 460
#extension GL_EXT_buffer_reference : require
#extension GL_EXT_buffer_reference2 : require
#extension GL_EXT_scalar_block_layout : require
#extension GL_EXT_shader_explicit_arithmetic_types_int64 : require
// Follows rays through a tree that the CPU built, by the CPU's own pointers. Structures and arithmetic are those of
// samples/src/scene, in the same order; `precise` keeps the compiler from contracting or reordering any of it.
// It writes only its own pixel and reads nothing that it writes: idempotent.
layout(local_size_x = 8, local_size_y = 8) in;

// samples/src/scene/node.rs's structures.
layout(buffer_reference, scalar, buffer_reference_align = 4) buffer Vertex {
    vec3 position;
    vec3 normal;
};
layout(buffer_reference, scalar, buffer_reference_align = 8) buffer Triangle { Vertex corners[3]; };
layout(buffer_reference) buffer Node;
layout(buffer_reference, scalar, buffer_reference_align = 64) buffer Node {
    vec3 lo;
    uint count;
    vec3 hi;
    uint axis;
    Node children[2];
    Triangle triangles;
};
// samples/src/scene/frame.rs's.
struct View {
    vec3 eye;
    vec3 corner;
    vec3 right;
    vec3 down;
    vec3 light;
    float floor_;
};
layout(buffer_reference, scalar, buffer_reference_align = 64) buffer ViewRef { View value; };
layout(buffer_reference, scalar, buffer_reference_align = 4) buffer Image { uint pixels[]; };
layout(push_constant, scalar) uniform Args { Node root; ViewRef view_; Image image; uint width; uint height; };

struct Hit {
    float t;
    float u;
    float v;
    bool back;
    Triangle triangle;
};

const float NEAREST = 1e-4;
const float FAR = 1e6;
const float STEEPEST = 1e-12;
const float SLACK = 1e-5;
const uint STACK = 64u;

bool found(Hit hit) { return uint64_t(hit.triangle) != 0ul; }

Hit no_hit() {
    Hit none;
    none.t = FAR;
    none.triangle = Triangle(0ul);
    return none;
}

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

bool may_hit(vec3 node_lo, vec3 node_hi, vec3 origin, vec3 inverse_, float limit) {
    precise vec3 a = (node_lo - origin) * inverse_;
    precise vec3 b = (node_hi - origin) * inverse_;
    vec3 lo = min(a, b);
    vec3 hi = max(a, b);
    float near = max(max(max(0.0, lo.x), lo.y), lo.z);
    float far = min(min(min(limit, hi.x), hi.y), hi.z);
    precise float left = near - SLACK * near;
    precise float right = far + SLACK * far + SLACK;
    return left <= right;
}

void meet(Triangle triangle, vec3 origin, vec3 direction, inout Hit best) {
    vec3 a = triangle.corners[0].position;
    precise vec3 edge1 = triangle.corners[1].position - a;
    precise vec3 edge2 = triangle.corners[2].position - a;
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

// The nearest hit, or any; its triangle is null if there is none.
Hit trace(vec3 origin, vec3 direction, bool any_) {
    vec3 inverse_ = vec3(inverse_component(direction.x), inverse_component(direction.y), inverse_component(direction.z));
    Hit best = no_hit();
    Node stack[STACK];
    uint top = 0u;
    Node node = root;
    while (true) {
        if (uint64_t(node) != 0ul && may_hit(node.lo, node.hi, origin, inverse_, best.t)) {
            if (node.count == 0u) {
                bool forward = component(direction, node.axis) >= 0.0;
                if (top < STACK) stack[top++] = node.children[forward ? 1 : 0];
                node = node.children[forward ? 0 : 1];
                continue;
            }
            for (uint i = 0u; i < node.count; i++) {
                meet(node.triangles + i, origin, direction, best);
                if (any_ && found(best)) return best;
            }
        }
        if (top == 0u) return best;
        node = stack[--top];
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
    precise float w = 1.0 - hit.u - hit.v;
    Vertex corners[3] = hit.triangle.corners;
    precise vec3 sum = corners[0].normal * vec3(w) + corners[1].normal * vec3(hit.u);
    sum = sum + corners[2].normal * vec3(hit.v);
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
    if (found(hit) && hit.t < floor_) return surface(view, direction, hit);
    if (floor_ < FAR) return ground(view, direction, floor_);
    return sky(direction);
}

uint channel(float value) {
    value = clamp(value, 1e-6, 1.0);
    precise float scaled = value * inverse_sqrt(value) * 255.0 + 0.5;
    return uint(min(scaled, 255.0));
}

void main() {
    uvec2 pixel = gl_GlobalInvocationID.xy;
    if (pixel.x >= width || pixel.y >= height) return;
    View view = view_.value;
    precise vec3 direction = view.corner + view.right * vec3(float(pixel.x)) + view.down * vec3(float(pixel.y));
    // Two rays, from the eye and towards the light, in a loop: compilers put every call's code in place, and
    // that of trace() is large.
    Hit hit = no_hit();
    Seen seen = Seen(vec3(0.0), vec3(0.0), view.eye, true);
    for (uint ray = 0u; ray < 2u && seen.faces_light; ray++) {
        hit = trace(seen.origin, ray == 0u ? direction : view.light, ray == 1u);
        if (ray == 0u) seen = look(view, direction, hit);
    }
    vec3 colour = seen.faces_light && !found(hit) ? seen.lit : seen.dark;
    uint packed = channel(colour.x) | channel(colour.y) << 8 | channel(colour.z) << 16 | 0xff000000u;
    image.pixels[pixel.y * width + pixel.x] = packed;
}
