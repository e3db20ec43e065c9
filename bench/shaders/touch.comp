#version 460
#include "touch.glsl"
