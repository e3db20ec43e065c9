#version 460
#include "gather.glsl"
