#version 460
#include "duel.glsl"
