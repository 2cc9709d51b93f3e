/* Stored weights as bf16 numbers, row by row: for kernels whose instructions multiply such. E4M3 and E2M1
 * codes times powers of two are bf16 numbers, so all products of them are exact, as long as no operand,
 * product or sum is subnormal: the instructions take such for zero. */
#ifndef DSV4_FAST_LINEAR_BF16_H
#define DSV4_FAST_LINEAR_BF16_H

#include <immintrin.h>
#include <limits.h>
#include <string.h>

#include "fast/kernels.h"
#include "fast/x86/bf16.h"

/* Binary32 to bf16, ties to even, in place. A NaN stays one, or becomes infinite. */
static inline __m512i round_up(__m512i bits)
{
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i sum = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
    __mmask16 nan = _mm512_cmpgt_epi32_mask(_mm512_and_si512(bits, _mm512_set1_epi32(INT_MAX)),
                                            _mm512_set1_epi32(0x7f800000));
    return _mm512_mask_mov_epi32(sum, nan, bits);
}

/* The least of some scales of a row; UNUSABLE where one is out of [low, high], so that codes times it may
 * not be normal numbers. */
static int least_scale(const uint8_t *scales, int64_t count, int low, int high)
{
    const bytes_range range = range_of_bytes(scales, count);
    return range.least >= low && range.most <= high ? range.least : UNUSABLE;
}

/* Decoders of columns [from, to) of a row -> out, filled up with zeros to a multiple of 32; they return the
 * lowest bit. `from` is a multiple of 128. */

/* Adds a scale's exponent to each of a table's numbers but for 0: quant.e8m0.1. */
static inline __m512i scaled(__m512i table, __mmask32 numbers, __m512i exponent)
{
    return _mm512_mask_add_epi16(table, numbers, table, exponent);
}

/* Weights come from memory: the next row's are asked for, 64 bytes at a time. */
static inline void prefetch(const unsigned char *p)
{
    enum { AHEAD = 4096 };
    _mm_prefetch((const char *)((uintptr_t)p + AHEAD), _MM_HINT_T0);
}

/* quant.e2m1.1, quant.fp4.1. Of an index only 5 bits count; the fifth is of the byte's other code, so
 * the table stands there twice. */
static int decode_fp4(const dsv4_matrix *w, int64_t row, int64_t from, int64_t to, uint16_t *out)
{
    static const uint16_t codes[DEPTH] = { /* with a scale of 2^0, which stands for 2^-127 */
        0,      0xff80, 0,      0x0040, 0x0080, 0x00c0, 0x0100, 0x0140,
        0x8000, 0x7f80, 0x8000, 0x8040, 0x8080, 0x80c0, 0x8100, 0x8140,
        0,      0xff80, 0,      0x0040, 0x0080, 0x00c0, 0x0100, 0x0140,
        0x8000, 0x7f80, 0x8000, 0x8040, 0x8080, 0x80c0, 0x8100, 0x8140};
    const __m512i table = _mm512_loadu_si512(codes);
    const int64_t count = (to - from) / DEPTH;
    const unsigned char *data = (const unsigned char *)w->data + (row * w->cols + from) / 2;
    const uint8_t *scales = w->scale + (row * w->cols + from) / DEPTH;
    int least = least_scale(scales, count, 2, 252);
    if (least == UNUSABLE)
        return UNUSABLE;
    for (int64_t i = 0; i < count; i += 16) {
        int some = count - i < 16 ? (int)(count - i) : 16;
        __m128i bytes = _mm_maskz_loadu_epi8((__mmask16)first_of(some), scales + i);
        __m512i exponent = _mm512_slli_epi32(_mm512_cvtepu8_epi32(bytes), 7);
        uint32_t twice[16]; /* for both halves of a word */
        _mm512_storeu_si512(twice, _mm512_or_si512(exponent, _mm512_slli_epi32(exponent, 16)));
        for (int j = 0; j < 256; j += 64)
            prefetch(data + j);
        for (int j = 0; j < some; j++, data += 16, out += DEPTH) {
            __m512i index = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i_u *)data));
            index = _mm512_or_si512(index, _mm512_slli_epi32(index, 12));
            __m512i values = scaled(table, 0xfefefefe, _mm512_set1_epi32((int)twice[j]));
            _mm512_storeu_si512(out, _mm512_permutexvar_epi16(index, values));
        }
    }
    return least - 127 - 1;
}

static int decode_fp8(const dsv4_matrix *w, int64_t row, int64_t from, int64_t to, uint16_t *out)
{
    const __m512i magnitude = _mm512_set1_epi8(0x7f);
    const int64_t cols = to - from;
    const unsigned char *data = (const unsigned char *)w->data + row * w->cols + from;
    const uint8_t *scales = w->scale + row / 128 * ((w->cols + 127) / 128) + from / 128;
    __m512i largest = _mm512_setzero_si512();
    int least = least_scale(scales, (cols + 127) / 128, 10, 246);
    if (least == UNUSABLE)
        return UNUSABLE;
    for (int64_t i = 0; i < cols; i += 128) {
        const __m512i exponent = _mm512_set1_epi16((short)(scales[i / 128] << 7));
        const __m512i bias = _mm512_sub_epi16(exponent, _mm512_set1_epi16(7 << 7));
        const int64_t end = cols - i < 128 ? cols : i + 128;
        bool plain = end - i == 128; /* a whole block, of normal numbers only */
        for (int64_t j = i; j < end; j += 64) {
            __mmask64 mask = end - j >= 64 ? ~0ull : (1ull << (end - j)) - 1;
            __m512i bytes = _mm512_and_si512(_mm512_maskz_loadu_epi8(mask, data + j), magnitude);
            largest = _mm512_max_epu8(largest, bytes);
            plain = plain && _mm512_cmplt_epu8_mask(bytes, _mm512_set1_epi8(8)) == 0;
            prefetch(data + j);
        }
        if (plain) {
            for (int j = 0; j < 128; j += DEPTH)
                _mm512_storeu_si512(
                    out + i + j,
                    normal_fp8(_mm256_loadu_si256((const __m256i_u *)(data + i + j)), bias));
            continue;
        }
        const __m512i small = small_fp8(exponent);
        for (int64_t j = i; j < end; j += DEPTH) {
            __m256i bytes = _mm256_maskz_loadu_epi8(first_of(cols - j), data + j);
            _mm512_storeu_si512(out + j, any_fp8(bytes, bias, small));
        }
    }
    if (_mm512_cmpeq_epi8_mask(largest, magnitude) != 0) /* NaN */
        return UNUSABLE;
    return least - 127 - 9;
}

/* 32 weights as bf16 numbers, which not all of them are: linear.plain.1, linear.grouped.2 */
static inline __m512i load_plain(dsv4_dtype dtype, const unsigned char *p, __mmask32 mask)
{
    if (dtype == DSV4_F32)
        return upper_halves(round_up(load_floats(p, mask, 0)), round_up(load_floats(p, mask, 1)));
    __m512i halves = _mm512_maskz_loadu_epi16(mask, p);
    if (dtype == DSV4_BF16)
        return halves;
    __m512 low = _mm512_cvtph_ps(_mm512_castsi512_si256(halves));
    __m512 high = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(halves, 1));
    return upper_halves(round_up((__m512i)low), round_up((__m512i)high));
}

static int decode_plain(const dsv4_matrix *w, int64_t row, int64_t from, int64_t to, uint16_t *out)
{
    const int64_t cols = to - from, bytes = w->dtype == DSV4_F32 ? 4 : 2;
    const unsigned char *data = (const unsigned char *)w->data + (row * w->cols + from) * bytes;
    seen all = seen_none();
    for (int64_t i = 0; i < cols; i += DEPTH) {
        __m512i values = load_plain(w->dtype, data + i * bytes, first_of(cols - i));
        see(&all, values);
        _mm512_storeu_si512(out + i, values);
    }
    return lowest_bit(&all);
}

static int decode_row(const dsv4_matrix *w, int64_t row, int64_t from, int64_t to, uint16_t *out)
{
    return w->dtype == DSV4_I8           ? decode_fp4(w, row, from, to, out)
           : w->dtype == DSV4_F8_E4M3    ? decode_fp8(w, row, from, to, out)
                                         : decode_plain(w, row, from, to, out);
}

#endif
