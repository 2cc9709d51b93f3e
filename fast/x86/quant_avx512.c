/* Codes and quantisation in AVX-512. */
#include "fast/quant_lanes.h"
