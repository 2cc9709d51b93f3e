/* The scores of the indexer in AVX2 and FMA. */
#include "fast/indexer_lanes.h"
