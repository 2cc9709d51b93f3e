/* The Hadamard transform in AVX2 and FMA. */
#include "fast/hadamard_lanes.h"
