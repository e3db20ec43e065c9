#version 460
#include "chase.glsl"
