/* The pooling of compressors in AVX-512. */
#include "fast/compressor_lanes.h"
