#version 460
#define RAW
#include "rows.glsl"
