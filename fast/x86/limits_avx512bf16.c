/* The machine's limits in the bf16 products of AVX-512. */
#include "fast/limits.h"

#include <immintrin.h>

enum { SUMS = 16 };

static void multiply(int64_t rounds)
{
    volatile int start = 0x3f003f00; /* 0.5, twice */
    __m512bh x = (__m512bh)_mm512_set1_epi32(start), y = (__m512bh)_mm512_set1_epi32(start);
    __m512 sum[SUMS], all = _mm512_setzero_ps();
    for (int s = 0; s < SUMS; s++)
        sum[s] = all;
    for (int64_t i = 0; i < rounds; i++)
#pragma GCC unroll 16
        for (int s = 0; s < SUMS; s++)
            sum[s] = _mm512_dpbf16_ps(sum[s], x, y);
    for (int s = 0; s < SUMS; s++)
        all = _mm512_add_ps(all, sum[s]);
    volatile float sink = _mm512_reduce_add_ps(all);
    (void)sink;
}

static const fast_peak peaks[] = {{"vdpbf16ps", "AVX-512 bf16", 2.0 * 32 * SUMS, multiply}};

const fast_limits fast_limits_avx512bf16 = {"avx512bf16", NULL, 1, peaks};
