#version 460
#define RAW
#include "chase.glsl"
