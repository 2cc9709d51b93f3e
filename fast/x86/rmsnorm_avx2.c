/* Normalisation in AVX2 and FMA. */
#include "fast/rmsnorm_lanes.h"
