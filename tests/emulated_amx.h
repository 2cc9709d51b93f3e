/* fast/x86/linear_amx.c, indexer_amx.c and core_attn_amx.c as a processor with AVX-512 alone can run it. */
#ifndef TESTS_EMULATED_AMX_H
#define TESTS_EMULATED_AMX_H

#include "fast/kernels.h"

extern const fast_tile_kernels emulated_amx;
extern const fast_coded_kernels emulated_indexer_amx;
extern const fast_row_kernels emulated_core_attn_amx;

#endif
