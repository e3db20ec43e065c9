#version 460
#define RAW
#include "gather.glsl"
