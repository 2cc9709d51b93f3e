/* spec/core_attn.md, for AVX2 and FMA. */
#include "fast/kernels.h"
#include "fast/lanes.h"
#include "fast/core_attn_lanes.h"
