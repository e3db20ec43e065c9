#version 460
#define RAW
#include "fill.glsl"
