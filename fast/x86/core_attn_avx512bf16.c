/* Core attention by products of pairs of bf16 numbers, in place of tile instructions. */
#define DSV4_TILES_OF_VECTORS
#define TILES_NAME(stem) stem##_avx512bf16
#include "fast/x86/core_attn_tiles.h"
