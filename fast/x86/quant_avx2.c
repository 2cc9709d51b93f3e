/* Codes and quantisation in AVX2 and FMA. */
#include "fast/quant_lanes.h"
