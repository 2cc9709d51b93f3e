/* The pooling of compressors in the instructions that every processor has. */
#include "fast/compressor_lanes.h"
