/* The scores of the indexer in AVX-512. */
#include "fast/x86/indexer_bytes.h"

#include "fast/indexer_lanes.h"
