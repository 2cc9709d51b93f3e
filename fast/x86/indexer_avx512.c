/* The scores of the indexer in AVX-512. */
#include "fast/indexer_lanes.h"
