/* The activation of experts in AVX2 and FMA. */
#include "fast/expert_lanes.h"
