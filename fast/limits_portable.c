/* The machine's limits in plain vectors. */
#include "fast/limits.h"
#include "fast/lanes.h"
#include "fast/limits_lanes.h"

const fast_limits fast_limits_portable = {"portable", read_all, 1, peaks};
