#version 460
#define RAW
#include "grid.glsl"
