/* The scores of the indexer in the instructions that every processor has. */
#include "fast/indexer_lanes.h"
