#version 460
#define RAW
#include "saxpy.glsl"
