/* spec/core_attn.md, in vectors of four, for any processor. */
#include "fast/kernels.h"
#include "fast/lanes.h"
#include "fast/core_attn_lanes.h"
