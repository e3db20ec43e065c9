#version 460
#include "search.glsl"
