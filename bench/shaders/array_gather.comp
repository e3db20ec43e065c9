#version 460
#define ARRAYS
#include "gather.glsl"
