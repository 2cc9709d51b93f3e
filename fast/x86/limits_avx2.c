/* The machine's limits in AVX2. */
#include "fast/limits.h"
#include "fast/lanes.h"
#include "fast/limits_lanes.h"

const fast_limits fast_limits_avx2 = {"avx2", read_all, 1, peaks};
