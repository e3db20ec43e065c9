#version 460
#define RAW
#include "touch.glsl"
