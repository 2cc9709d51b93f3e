/* The pooling of compressors in AVX2 and FMA. */
#include "fast/compressor_lanes.h"
