/* Products of few tokens: what a group of rows ends with. */
#ifndef DSV4_FAST_LINEAR_FEW_H
#define DSV4_FAST_LINEAR_FEW_H

#include <immintrin.h>

#include "fast/kernels.h"

enum { GROUP = 4 /* rows at once */ };

/* Lanes are added halves first: 16, 8 and 4 of them, then the first two to the last two. */
static inline __m128 four_of(__m512 v)
{
    __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    return _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
}

/* Binary32 to bf16, ties to even; NaN stays. */
static inline __m128 to_bf16(__m128 value)
{
    __m128i bits = _mm_castps_si128(value);
    __m128i odd = _mm_and_si128(_mm_srli_epi32(bits, 16), _mm_set1_epi32(1));
    __m128i up = _mm_add_epi32(_mm_add_epi32(bits, _mm_set1_epi32(0x7fff)), odd);
    __m128 rounded = _mm_castsi128_ps(_mm_and_si128(up, _mm_set1_epi32((int)0xffff0000)));
    return _mm_blendv_ps(rounded, value, _mm_cmpunord_ps(value, value));
}

/* The sums of GROUP rows from row `row` on, or of that row alone, and token t -> y: linear.round.1 */
static inline void put_sums(const fast_product *p, int64_t t, int64_t row, int rows, const __m512 *sum)
{
    __m128 v[GROUP];
    for (int r = 0; r < GROUP; r++)
        v[r] = r < rows ? four_of(sum[r]) : _mm_setzero_ps();
    _MM_TRANSPOSE4_PS(v[0], v[1], v[2], v[3]);
    __m128 y = _mm_add_ps(_mm_add_ps(v[0], v[2]), _mm_add_ps(v[1], v[3]));
    float *to = p->y + t * p->y_stride + row - p->first;
    y = p->round ? to_bf16(y) : y;
    if (rows == GROUP)
        _mm_storeu_ps(to, y);
    else
        _mm_store_ss(to, y);
}

#endif
