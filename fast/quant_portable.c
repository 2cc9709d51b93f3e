/* Codes and quantisation in the instructions that every processor has. */
#include "fast/quant_lanes.h"
