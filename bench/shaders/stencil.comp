#version 460
#include "stencil.glsl"
