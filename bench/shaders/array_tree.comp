#version 460
#define ARRAYS
#include "tree.glsl"
