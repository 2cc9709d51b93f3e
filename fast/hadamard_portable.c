/* The Hadamard transform in the instructions that every processor has. */
#include "fast/hadamard_lanes.h"
