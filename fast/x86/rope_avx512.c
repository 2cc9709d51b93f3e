/* Rotation in AVX-512. */
#include "fast/rope_lanes.h"
