#version 460
#define ARRAYS
#include "saxpy.glsl"
