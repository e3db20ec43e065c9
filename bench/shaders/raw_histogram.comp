#version 460
#define RAW
#include "histogram.glsl"
