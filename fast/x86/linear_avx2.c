/* Products with stored weights in AVX2. */
#include "fast/kernels.h"
#include "fast/lanes.h"

/* An E4M3 code in a binary16 number is 2^-8 of what it stands for. */
#define FP8_FACTOR 0x1p8f
#define ARRANGE_FP4 arrange_fp4

static inline lanes_int widen_bytes(const uint8_t *p)
{
    return (lanes_int)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i_u *)p));
}

static inline lanes decode_bf16(const unsigned char *p)
{
    __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i_u *)p));
    return (lanes)_mm256_slli_epi32(wide, 16);
}

static inline lanes decode_f16(const unsigned char *p)
{
    return (lanes)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i_u *)p));
}

/* quant.e4m3.1, quant.fp8.1. By way of binary16, whose subnormals cost nothing. */
static inline void decode_fp8(const unsigned char *p, lanes w[4])
{
    for (int j = 0; j < 4; j += 2) {
        __m256i half = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i_u *)(p + 8 * j)));
        half = _mm256_and_si256(_mm256_slli_epi16(half, 7), _mm256_set1_epi16((short)0xbf80));
        w[j] = (lanes)_mm256_cvtph_ps(_mm256_castsi256_si128(half));
        w[j + 1] = (lanes)_mm256_cvtph_ps(_mm256_extracti128_si256(half, 1));
    }
}

/* quant.e2m1.1, quant.fp4.1. The two upper bytes of a binary32 number are looked up for each code,
 * and set side by side: bf16 numbers. Then those in the lower and in the upper halves of 32 bits
 * become vectors of their own, in the order that arrange_fp4 repeats. */
static inline void decode_fp4(const unsigned char *p, float scale, lanes w[4])
{
    const __m256i upper = _mm256_broadcastsi128_si256(_mm_setr_epi8(
        0, 0x3f, 0x3f, 0x3f, 0x40, 0x40, 0x40, 0x40,
        -0x80, -0x41, -0x41, -0x41, -0x40, -0x40, -0x40, -0x40));
    const __m256i lower = _mm256_broadcastsi128_si256(_mm_setr_epi8(
        0, 0, -0x80, -0x40, 0, 0x40, -0x80, -0x40,
        0, 0, -0x80, -0x40, 0, 0x40, -0x80, -0x40));
    __m256i bytes = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i_u *)p));
    __m256i codes = _mm256_and_si256(_mm256_srlv_epi64(bytes, _mm256_setr_epi64x(0, 0, 4, 4)),
                                     _mm256_set1_epi8(15));
    __m256i high = _mm256_shuffle_epi8(upper, codes), low = _mm256_shuffle_epi8(lower, codes);
    __m256i first = _mm256_unpacklo_epi8(low, high), second = _mm256_unpackhi_epi8(low, high);
    const __m256i mask = _mm256_set1_epi32((int)0xffff0000);
    w[0] = (lanes)_mm256_slli_epi32(first, 16) * scale;
    w[1] = (lanes)_mm256_and_si256(first, mask) * scale;
    w[2] = (lanes)_mm256_slli_epi32(second, 16) * scale;
    w[3] = (lanes)_mm256_and_si256(second, mask) * scale;
}

/* Vector j takes four even places of half j / 2 of the block, every other one, and behind them the
 * odd places that follow them. */
static void arrange_fp4(const float *x, int64_t cols, float *out)
{
    for (int64_t block = 0; block < cols; block += 32)
        for (int j = 0; j < 4; j++, out += 8)
            for (int i = 0; i < 4; i++) {
                const float *pair = x + block + 2 * (8 * (j / 2) + 2 * i + j % 2);
                out[i] = pair[0];
                out[i + 4] = pair[1];
            }
}

static inline lanes_codes larger_codes(lanes_codes a, lanes_codes b)
{
    return (lanes_codes)_mm256_max_epu8((__m256i)a, (__m256i)b);
}

/* Halves first, as lanes_sum. */
static inline float total(lanes v)
{
    __m128 four =
        _mm_add_ps(_mm256_castps256_ps128((__m256)v), _mm256_extractf128_ps((__m256)v, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

#include "fast/linear_lanes.h"
