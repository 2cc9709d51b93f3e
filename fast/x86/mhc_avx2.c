/* Residual streams in AVX2 and FMA. */
#include "fast/mhc_lanes.h"
