/* Normalisation in AVX-512. */
#include "fast/rmsnorm_lanes.h"
