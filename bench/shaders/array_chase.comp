#version 460
#define ARRAYS
#include "chase.glsl"
