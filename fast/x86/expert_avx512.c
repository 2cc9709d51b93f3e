/* The activation of experts in AVX-512. */
#include "fast/expert_lanes.h"
