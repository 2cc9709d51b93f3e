/* Core attention by the tile instructions of AMX. */
#define TILES_NAME(stem) stem##_amx
#include "fast/x86/core_attn_tiles.h"
