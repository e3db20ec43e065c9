#version 460
#include "grid.glsl"
