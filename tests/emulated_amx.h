/* fast/x86/linear_amx.c and indexer_amx.c as a processor with AVX-512 alone can run it. */
#ifndef TESTS_EMULATED_AMX_H
#define TESTS_EMULATED_AMX_H

#include "fast/kernels.h"

extern const fast_tile_kernels emulated_amx;
extern const fast_coded_kernels emulated_indexer_amx;

#endif
