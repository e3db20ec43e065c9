#version 460
#include "tree.glsl"
