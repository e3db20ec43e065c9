#version 460
#include "contend.glsl"
