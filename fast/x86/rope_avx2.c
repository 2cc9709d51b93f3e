/* Rotation in AVX2 and FMA. */
#include "fast/rope_lanes.h"
