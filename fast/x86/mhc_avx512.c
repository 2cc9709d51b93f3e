/* Residual streams in AVX-512. */
#include "fast/mhc_lanes.h"
