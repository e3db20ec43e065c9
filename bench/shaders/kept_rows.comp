#version 460
#define KEEP
#include "rows.glsl"
