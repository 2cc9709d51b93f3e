/* The Hadamard transform in AVX-512. */
#include "fast/hadamard_lanes.h"
