/* Normalisation in the instructions that every processor has. */
#include "fast/rmsnorm_lanes.h"
