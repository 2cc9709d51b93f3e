/* The scores of the indexer from keys as they are stored, in what all kernels of x86 have in common. They
 * include fast/lanes.h first.
 *
 * Products with weights are rounded by additions that ask for normal numbers of less than 2^110; so every
 * row of queries has limits between which the scales of keys have to be. */
#ifndef DSV4_FAST_INDEXER_CODES_H
#define DSV4_FAST_INDEXER_CODES_H

#include <limits.h>

#include "fast/kernels.h"
#include "fast/lanes.h"

enum { FP4 = 32 }; /* codes that share a scale */

/* ---- limits ---- */

/* Numbers of a row: all are multiples of 2^bit and below 2^top. */
typedef struct { int bit, top; bool good; } extent;

static inline extent nothing_seen(void)
{
    return (extent){INT_MAX, INT_MIN, true};
}

static inline void widen(extent *e, int bit, int top)
{
    e->bit = bit < e->bit ? bit : e->bit;
    e->top = top > e->top ? top : e->top;
}

/* Of weights. Instead of their last bit the first of the smallest: what they multiply is left as large. */
static inline extent extent_of_weights(const float *w, int64_t n_i)
{
    extent e = nothing_seen();
    for (int64_t h = 0; h < n_i; h++) {
        uint32_t bits;
        memcpy(&bits, w + h, sizeof bits);
        int exponent = (int)(bits >> 23 & 255);
        if (exponent == 255 || (exponent == 0 && bits << 1 != 0))
            e.good = false;
        if (exponent != 0)
            widen(&e, exponent - 127, exponent - 126);
    }
    return e;
}

/* The scales of keys that a row can be multiplied with: none, if need be. */
typedef struct { uint8_t least, most; } scale_range;

static inline scale_range range_of(extent q, extent w, int64_t d_i)
{
    if (!q.good || !w.good)
        return (scale_range){255, 0};
    if (q.top == INT_MIN || w.top == INT_MIN) /* all scores are 0 */
        return (scale_range){2, 252};
    int log = 0;
    while (log < 62 && (int64_t)1 << log < d_i)
        log++;
    /* A key is a multiple of 2^(scale - 128) and at most 2^(scale - 124): no sum and no product of it
     * may be below 2^-126, or above 2^100. */
    int least = 3 - q.bit - (w.bit < 0 ? w.bit : 0);
    int most = 224 - log - q.top - (w.top > 0 ? w.top : 0);
    least = least < 2 ? 2 : least;
    most = most > 252 ? 252 : most;
    return least <= most ? (scale_range){(uint8_t)least, (uint8_t)most} : (scale_range){255, 0};
}

/* What stands before unpacked keys: the range of each one's scales. */
typedef struct { uint8_t least[FAST_KEYS], most[FAST_KEYS]; } key_scales;

static inline uint64_t outside(const key_scales *keys, scale_range range, int64_t count)
{
    uint64_t bad = 0;
#if LANES == 16
    __m512i least = _mm512_loadu_si512(keys->least), most = _mm512_loadu_si512(keys->most);
    bad = _mm512_cmplt_epu8_mask(least, _mm512_set1_epi8((char)range.least)) |
          _mm512_cmpgt_epu8_mask(most, _mm512_set1_epi8((char)range.most));
#else
    for (int i = 0; i < FAST_KEYS; i += 32) {
        __m256i least = _mm256_loadu_si256((const __m256i_u *)(keys->least + i));
        __m256i most = _mm256_loadu_si256((const __m256i_u *)(keys->most + i));
        __m256i low = _mm256_set1_epi8((char)range.least);
        __m256i high = _mm256_set1_epi8((char)range.most);
        __m256i good = _mm256_and_si256(_mm256_cmpeq_epi8(_mm256_max_epu8(least, low), least),
                                        _mm256_cmpeq_epi8(_mm256_min_epu8(most, high), most));
        bad |= (uint64_t)~(uint32_t)_mm256_movemask_epi8(good) << i;
    }
#endif
    return count >= FAST_KEYS ? bad : bad & ((1ull << count) - 1);
}

/* ---- keys ---- */

/* The scales of block `block`, of `blocks`, of some keys -> out; those that are not there are 1. */
static inline void gather_scales(const uint8_t *scales, int64_t blocks, int64_t block, int64_t count,
                                 key_scales *range, uint8_t out[FAST_KEYS])
{
#if LANES == 16
    if (blocks == 4 && count >= FAST_KEYS) {
        for (int i = 0; i < FAST_KEYS; i += 16) {
            __m512i four = _mm512_loadu_si512(scales + 4 * i);
            four = _mm512_srli_epi32(four, (unsigned)(8 * block));
            _mm_storeu_si128((__m128i_u *)(out + i), _mm512_cvtepi32_epi8(four));
        }
    } else
#endif
        for (int i = 0; i < FAST_KEYS; i++)
            out[i] = i < count ? scales[i * blocks + block] : 127;
    for (int i = 0; i < FAST_KEYS; i += LANES) {
        typedef uint8_t bytes __attribute__((vector_size(LANES)));
        bytes all, least, most;
        memcpy(&all, out + i, sizeof all);
        memcpy(&least, range->least + i, sizeof least);
        memcpy(&most, range->most + i, sizeof most);
        least = block == 0 ? all : (bytes)((least & (least < all)) | (all & ~(least < all)));
        most = block == 0 ? all : (bytes)((most & (most > all)) | (all & ~(most > all)));
        memcpy(range->least + i, &least, sizeof least);
        memcpy(range->most + i, &most, sizeof most);
    }
}

#if LANES == 16
typedef __m512i code_vector;
#define CODES(name) _mm512_##name
#define LOAD_CODES(p) _mm512_loadu_si512(p)
#define STORE_CODES(p, v) _mm512_storeu_si512(p, v)
#else
typedef __m256i code_vector;
#define CODES(name) _mm256_##name
#define LOAD_CODES(p) _mm256_loadu_si256((const __m256i_u *)(p))
#define STORE_CODES(p, v) _mm256_storeu_si256((__m256i_u *)(p), v)
#endif

/* 16 bytes at each of some places; 0 where there is none. */
static inline code_vector load_parts(const uint8_t *p, int64_t stride, int64_t count)
{
    __m128i part[4];
#pragma GCC unroll 4
    for (int j = 0; j < LANES / 4; j++)
        part[j] = 16 * j < count ? _mm_loadu_si128((const __m128i_u *)(p + 16 * j * stride))
                                 : _mm_setzero_si128();
#if LANES == 16
    __m512i v = _mm512_castsi128_si512(part[0]);
    v = _mm512_inserti32x4(v, part[1], 1);
    v = _mm512_inserti32x4(v, part[2], 2);
    return _mm512_inserti32x4(v, part[3], 3);
#else
    return _mm256_inserti128_si256(_mm256_castsi128_si256(part[0]), part[1], 1);
#endif
}

/* 16 bytes of each of FAST_KEYS keys, which are `stride` apart -> out [16, FAST_KEYS]: byte i of all keys in
 * row i. */
static inline void turn_codes(const uint8_t *codes, int64_t stride, int64_t count,
                              uint8_t out[16][FAST_KEYS])
{
    enum { TURNED = 4 * LANES };
    for (int first = 0; first < FAST_KEYS; first += TURNED) {
        code_vector v[16];
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++)
            v[i] = load_parts(codes + (first + i) * stride, stride, count - first - i);
        /* Each round moves one bit of a key's number into the place within a row. */
#pragma GCC unroll 4
        for (int round = 0; round < 4; round++) {
            code_vector next[16];
#pragma GCC unroll 8
            for (int i = 0; i < 8; i++) {
                next[2 * i] = CODES(unpacklo_epi8)(v[i], v[i + 8]);
                next[2 * i + 1] = CODES(unpackhi_epi8)(v[i], v[i + 8]);
            }
#pragma GCC unroll 16
            for (int i = 0; i < 16; i++)
                v[i] = next[i];
        }
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++)
            STORE_CODES(out[i] + first, v[i]);
    }
}

/* ---- the rest of a score ---- */

/* To bf16, ties to even, within the limits above: 1.5 2^16 times the number's power of two, added, leaves
 * no room for more bits. */
static inline lanes round_normal(lanes x)
{
    const lanes factor = lanes_all(0x1.8p16f);
    lanes power = (lanes)((lanes_int)x & 0x7f800000);
    return lanes_fma(power, -factor, lanes_fma(power, factor, x));
}

static inline lanes not_below_zero(lanes x)
{
#if LANES == 16
    return (lanes)_mm512_max_ps((__m512)x, _mm512_setzero_ps());
#else
    return (lanes)_mm256_max_ps((__m256)x, _mm256_setzero_ps());
#endif
}

/* score += w relu(product): indexer.score.1, indexer.score.2 */
static inline lanes add_weighed(lanes score, lanes product, float w)
{
    return score + round_normal(w * not_below_zero(round_normal(product)));
}

/* The sums of FAST_KEYS keys, of which `count` are there. */
static inline void put_scores(const lanes *sum, int64_t count, float *score)
{
    for (int64_t i = 0; i < count; i += LANES)
        if (count - i >= LANES)
            lanes_store(score + i, lanes_bf16(sum[i / LANES]));
        else
            lanes_store_some(score + i, count - i, lanes_bf16(sum[i / LANES]));
}

#endif
