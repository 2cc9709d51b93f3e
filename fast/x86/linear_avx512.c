/* Products with stored weights in AVX-512. */
#include "fast/kernels.h"
#include "fast/lanes.h"

/* An E4M3 code in a binary16 number is 2^-8 of what it stands for. */
#define FP8_FACTOR 0x1p8f
#define ARRANGE_FP4 arrange_fp4

static inline lanes_int widen_bytes(const uint8_t *p)
{
    return (lanes_int)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i_u *)p));
}

static inline lanes decode_bf16(const unsigned char *p)
{
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i_u *)p));
    return (lanes)_mm512_slli_epi32(wide, 16);
}

static inline lanes decode_f16(const unsigned char *p)
{
    return (lanes)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i_u *)p));
}

/* quant.e4m3.1, quant.fp8.1. By way of binary16, whose subnormals cost nothing. */
static inline void decode_fp8(const unsigned char *p, lanes w[4])
{
    for (int j = 0; j < 4; j += 2) {
        __m512i half = _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i_u *)(p + 16 * j)));
        half = _mm512_and_si512(_mm512_slli_epi16(half, 7), _mm512_set1_epi16((short)0xbf80));
        w[j] = (lanes)_mm512_cvtph_ps(_mm512_castsi512_si256(half));
        w[j + 1] = (lanes)_mm512_cvtph_ps(_mm512_extracti64x4_epi64(half, 1));
    }
}

/* quant.e2m1.1, quant.fp4.1. The table takes the scale; of an index only 4 bits count. Places 0, 2,
 * .. of the block, then 1, 3, .. */
static inline void decode_fp4(const unsigned char *p, float scale, lanes w[2])
{
    const lanes value = {0,   0.5f,  1,  1.5f,  2,  3,  4,  6,
                         -0.f, -0.5f, -1, -1.5f, -2, -3, -4, -6};
    const __m512 table = (__m512)(value * scale);
    __m512i bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i_u *)p));
    w[0] = (lanes)_mm512_permutexvar_ps(bytes, table);
    w[1] = (lanes)_mm512_permutexvar_ps(_mm512_srli_epi32(bytes, 4), table);
}

static void arrange_fp4(const float *x, int64_t cols, float *out)
{
    const __m512i even =
        _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
    for (int64_t i = 0; i < cols; i += 32) {
        __m512 low = _mm512_loadu_ps(x + i), high = _mm512_loadu_ps(x + i + 16);
        _mm512_storeu_ps(out + i, _mm512_permutex2var_ps(low, even, high));
        _mm512_storeu_ps(out + i + 16, _mm512_permutex2var_ps(low, odd, high));
    }
}

static inline lanes_codes larger_codes(lanes_codes a, lanes_codes b)
{
    return (lanes_codes)_mm512_max_epu8((__m512i)a, (__m512i)b);
}

/* Halves first, as lanes_sum. */
static inline float total(lanes v)
{
    __m256 eight = _mm256_add_ps(_mm512_castps512_ps256((__m512)v),
                                 _mm512_extractf32x8_ps((__m512)v, 1));
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

#include "fast/linear_lanes.h"
