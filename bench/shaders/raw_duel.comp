#version 460
#define RAW
#include "duel.glsl"
