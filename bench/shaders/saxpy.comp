#version 460
#include "saxpy.glsl"
