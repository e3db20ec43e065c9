#version 460
#define RAW
#include "tree.glsl"
