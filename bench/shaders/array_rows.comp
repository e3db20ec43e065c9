#version 460
#define ARRAYS
#include "rows.glsl"
