#version 460
#include "rows.glsl"
