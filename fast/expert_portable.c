/* The activation of experts in the instructions that every processor has. */
#include "fast/expert_lanes.h"
