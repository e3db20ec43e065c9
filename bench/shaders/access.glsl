// One kernel source, compiled several times: with every access translated (no macro), with translations that invocations keep (KEEP), with
// array arguments (ARRAYS), and on raw device addresses (RAW), as a hand-written Vulkan kernel would be. A kernel defines ARGS, includes this file and uses
// the macros below.
#ifdef RAW

#extension GL_EXT_buffer_reference : require
#extension GL_EXT_buffer_reference2 : require
#extension GL_EXT_buffer_reference_uvec2 : require
#extension GL_EXT_shader_explicit_arithmetic_types_int64 : require
#extension GL_EXT_scalar_block_layout : require

#define ARRAY uint64_t
layout(push_constant, std430) uniform Push { ARGS } args;
layout(buffer_reference, scalar, buffer_reference_align = 4) buffer F32 { float value; };
layout(buffer_reference, scalar, buffer_reference_align = 4) buffer U32 { uint value; };
#define BEGIN() true
#define END()
#define GLOBAL_ID gl_GlobalInvocationID
#define POISONED() false
#define READ(p) (p)
#define READ_OBJECT(p, bytes) (p)
#define WRITE(p) (p)
#define ATOMIC(p) (p)
#define READ_AT(array, offset) ((array) + (offset))
#define WRITE_AT(array, offset) ((array) + (offset))
#define START(array) (array)
#define READ_NEAR(array, p) (p)
#define KEPT(name)
#define RANGE(name, array, offset, bytes)
#define READ_ROW(range, kept, array, offset, at) ((array) + (offset) + (at))

#else

#ifdef ARRAYS
#define ARRAY VksvmArray
#else
#define ARRAY uint64_t
#endif
#define VKSVM_ARGS ARGS
#include "vksvm.glsl"
#define F32 VksvmF32
#define U32 VksvmU32
#define BEGIN() vksvm_begin()
#define END() vksvm_end()
#define GLOBAL_ID vksvm_global_id()
#define POISONED() vksvm_poisoned()
#define READ(p) vksvm_read(p)
#define READ_OBJECT(p, bytes) vksvm_read(p, bytes)
#define WRITE(p) vksvm_write(p)
#define ATOMIC(p) vksvm_atomic(p)
#ifdef ARRAYS
#define READ_AT(array, offset) vksvm_array_read(array, offset)
#define WRITE_AT(array, offset) vksvm_array_write(array, offset)
#define START(array) (array).va
#define READ_NEAR(array, p) vksvm_near_read(array, p)
#define KEPT(name)
#define RANGE(name, array, offset, bytes) VksvmSpan name = vksvm_span_read(array, offset, bytes);
#define READ_ROW(range, kept, array, offset, at) vksvm_in_span_read(range, at)
#else
#define READ_AT(array, offset) vksvm_read((array) + (offset))
#define WRITE_AT(array, offset) vksvm_write((array) + (offset))
#define START(array) (array)
#define READ_NEAR(array, p) vksvm_read(p)
#define RANGE(name, array, offset, bytes)
#ifdef KEEP
#define KEPT(name) VksvmCached name = vksvm_cached();
#define READ_ROW(range, kept, array, offset, at) vksvm_cached_read(kept, (array) + (offset) + (at))
#else
#define KEPT(name)
#define READ_ROW(range, kept, array, offset, at) vksvm_read((array) + (offset) + (at))
#endif
#endif

#endif
