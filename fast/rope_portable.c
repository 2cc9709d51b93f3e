/* Rotation in the instructions that every processor has. */
#include "fast/rope_lanes.h"
