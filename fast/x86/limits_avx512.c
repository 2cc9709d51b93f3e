/* The machine's limits in AVX-512. */
#include "fast/limits.h"
#include "fast/lanes.h"
#include "fast/limits_lanes.h"

const fast_limits fast_limits_avx512 = {"avx512", read_all, 1, peaks};
