/* spec/core_attn.md, for AVX-512. */
#include "fast/kernels.h"
#include "fast/lanes.h"
#include "fast/core_attn_lanes.h"
