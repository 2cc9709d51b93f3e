/* The scores of the indexer in AVX2 and FMA. */
#include "fast/x86/indexer_bytes.h"

#include "fast/indexer_lanes.h"
