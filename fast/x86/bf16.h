/* Numbers of few bits on their way to products: what the kernels for them have in common. */
#ifndef DSV4_FAST_BF16_H
#define DSV4_FAST_BF16_H

#include <immintrin.h>
#include <limits.h>
#include <stdint.h>
#include <string.h>

enum {
    DEPTH = 32,             /* bf16 numbers of a tile's row */
    LOWEST_NORMAL = -126,   /* no product or sum of multiples of 2 to this is subnormal */
    UNUSABLE = INT_MIN / 4, /* the lowest bit of numbers some of which are no good */
    NO_BIT = 1 << 16        /* .. or all of which are 0 */
};

/* ---- bf16 numbers ---- */

/* The magnitudes of numbers that have been seen: the largest, and the smallest but for 0, less 1. */
typedef struct { __m512i largest, smallest; } seen;

static inline seen seen_none(void)
{
    return (seen){_mm512_setzero_si512(), _mm512_set1_epi16(-1)};
}

static inline void see(seen *s, __m512i numbers)
{
    __m512i magnitude = _mm512_and_si512(numbers, _mm512_set1_epi16(0x7fff));
    s->largest = _mm512_max_epu16(s->largest, magnitude);
    s->smallest = _mm512_min_epu16(s->smallest, _mm512_sub_epi16(magnitude, _mm512_set1_epi16(1)));
}

/* All numbers that have been seen are multiples of 2^bit, and their magnitudes are below 2^top. */
typedef struct { int bit, top; } extent;

/* Of the one, no number is good for products; there was no number but 0 in the other. */
static const extent unusable = {UNUSABLE, NO_BIT}, nothing = {NO_BIT, -NO_BIT};

static inline extent both(extent a, extent b)
{
    return (extent){a.bit < b.bit ? a.bit : b.bit, a.top > b.top ? a.top : b.top};
}

static inline int least_of(__m512i words)
{
    __m256i v = _mm256_min_epu16(_mm512_castsi512_si256(words), _mm512_extracti64x4_epi64(words, 1));
    __m128i w = _mm_min_epu16(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    return _mm_extract_epi16(_mm_minpos_epu16(w), 0);
}

static inline extent extent_seen(const seen *s)
{
    enum { INFINITE = 0x7f80, LEAST_NORMAL = 0x0080 };
    int largest = 0xffff - least_of(_mm512_xor_si512(s->largest, _mm512_set1_epi16(-1)));
    int smallest = least_of(s->smallest);
    if (smallest == 0xffff)
        return nothing;
    if (largest >= INFINITE || smallest + 1 < LEAST_NORMAL)
        return unusable;
    return (extent){(smallest + 1) / 0x80 - 127 - 7, largest / 0x80 - 126};
}

static inline int lowest_bit(const seen *s)
{
    return extent_seen(s).bit;
}

/* The first `count` of places, if not all. */
static inline __mmask32 first_of(int64_t count)
{
    return count >= 32 ? 0xffffffffu : (1u << count) - 1;
}

static inline __m512i upper_halves(__m512i low, __m512i high)
{
    const __m512i odd = _mm512_set_epi16(63, 61, 59, 57, 55, 53, 51, 49, 47, 45, 43, 41, 39, 37, 35,
                                         33, 31, 29, 27, 25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3,
                                         1);
    return _mm512_permutex2var_epi16(low, odd, high);
}

static inline __m512i load_floats(const void *p, __mmask32 mask, int half)
{
    return _mm512_maskz_loadu_epi32((__mmask16)(mask >> 16 * half), (const char *)p + 64 * half);
}

/* ---- scales ---- */

static inline int least_byte(__m512i bytes)
{
    __m256i v = _mm256_min_epu8(_mm512_castsi512_si256(bytes), _mm512_extracti64x4_epi64(bytes, 1));
    __m128i w = _mm_min_epu8(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    w = _mm_min_epu8(w, _mm_srli_epi16(w, 8)); /* the even ones, of both */
    return _mm_extract_epi16(_mm_minpos_epu16(_mm_and_si128(w, _mm_set1_epi16(255))), 0);
}

/* Of no bytes, least is 255 and most 0. */
typedef struct { int least, most; } bytes_range;

static inline bytes_range range_of_bytes(const uint8_t *bytes, int64_t count)
{
    const __m512i ones = _mm512_set1_epi8(-1);
    __m512i small = ones, large = _mm512_setzero_si512();
    for (int64_t i = 0; i < count; i += 64) {
        __mmask64 mask = count - i >= 64 ? ~0ull : (1ull << (count - i)) - 1;
        __m512i some = _mm512_maskz_loadu_epi8(mask, bytes + i);
        small = _mm512_mask_min_epu8(small, mask, small, some);
        large = _mm512_max_epu8(large, some);
    }
    return (bytes_range){least_byte(small), 255 - least_byte(_mm512_xor_si512(large, ones))};
}

/* ---- codes ---- */

/* quant.e4m3.1, quant.fp8.1. The bits of a normal number, its sign aside, are moved to where bf16 has
 * them. `bias` is the scale's exponent less that of E4M3. */
static inline __m512i normal_fp8(__m256i bytes, __m512i bias)
{
    __m512i moved = _mm512_slli_epi16(_mm512_cvtepi8_epi16(bytes), 4);
    return _mm512_add_epi16(_mm512_and_si512(moved, _mm512_set1_epi16((short)0x87f0)), bias);
}

/* Subnormal numbers and 0 come from a table. */
static inline __m512i any_fp8(__m256i bytes, __m512i bias, __m512i small)
{
    __m512i code = _mm512_cvtepi8_epi16(bytes);
    __mmask32 subnormal = _mm512_testn_epi16_mask(code, _mm512_set1_epi16(0x78));
    __m512i value = _mm512_mask_permutexvar_epi16(normal_fp8(bytes, bias), subnormal, code, small);
    __m512i sign = _mm512_and_si512(code, _mm512_set1_epi16((short)0x8000));
    return _mm512_or_si512(value, sign);
}

/* 0 to 7, which are subnormal, or 0, times 2^exponent. */
static inline __m512i small_fp8(__m512i exponent)
{
    static const uint16_t codes[DEPTH] = { /* with a scale of 2^0, which stands for 2^-127 */
        0,      0xfb80, 0xfc00, 0xfc40, 0xfc80, 0xfca0, 0xfcc0, 0xfce0};
    const __m512i table = _mm512_loadu_si512(codes);
    return _mm512_mask_add_epi16(table, 0xfe, table, exponent);
}

/* ---- rows and columns ---- */

static inline void exchange(__m512i v[16])
{
    const __m512i first = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const __m512i last = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15,
                                           31);
    /* Each round moves one bit of a row's number into the column's. */
#pragma GCC unroll 4
    for (int round = 0; round < 4; round++) {
        __m512i next[16];
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++) {
            next[2 * i] = _mm512_permutex2var_epi32(v[i], first, v[i + 8]);
            next[2 * i + 1] = _mm512_permutex2var_epi32(v[i], last, v[i + 8]);
        }
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++)
            v[i] = next[i];
    }
}

#endif
