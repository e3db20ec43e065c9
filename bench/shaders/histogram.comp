#version 460
#include "histogram.glsl"
