#version 460
#define ARRAYS
#include "grid.glsl"
