/* Residual streams in the instructions that every processor has. */
#include "fast/mhc_lanes.h"
