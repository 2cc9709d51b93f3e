/* The same of the indexer. */
#define DSV4_EMULATE_AMX 1
#define fast_indexer_amx emulated_indexer_amx
#include "emulated_amx.h"
#include "fast/x86/indexer_amx.c"
