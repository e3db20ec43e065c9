#version 460
#include "fill.glsl"
