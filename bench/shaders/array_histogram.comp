#version 460
#define ARRAYS
#include "histogram.glsl"
