/* Scores from codes in integers: an E2M1 number is half an integer of -12 to 12, so the products of a block
 * of 32 and their sum are integers of 16 bits. Keys are made positive by adding 12, because the instruction
 * multiplies bytes without a sign by bytes with one; what that adds to the sum is known beforehand.
 *
 * Sums are exact within a block; those of blocks are added in binary32, in their order. */
#ifndef DSV4_FAST_INDEXER_BYTES_H
#define DSV4_FAST_INDEXER_BYTES_H

#include "fast/x86/indexer_codes.h"

enum {
    PAIRS = FP4 / 2,         /* bytes, and instructions, of a block */
    SIDE = 2 * LANES,        /* keys side by side in a vector */
    GROUPS = FAST_KEYS / SIDE,
    HEADS = 4,               /* that are multiplied at a time .. */
    AT_ONCE = LANES == 16 ? 2 : 1, /* .. with so many vectors: what fits in registers */
    ZERO = 12
};

/* An arranged row. Each array is [heads, blocks]. */
typedef struct {
    int64_t heads, blocks;   /* heads: rounded up */
    scale_range range;
    float *w;                /* [heads] */
    float *scale;            /* of a block, a quarter of it: both factors are twice what they stand for */
    uint32_t *shift;         /* what a sum starts with, twice */
    uint32_t (*pair)[PAIRS]; /* two integers, twice */
} byte_query;

static int64_t heads_rounded(int64_t n_i)
{
    return (n_i + HEADS - 1) / HEADS * HEADS;
}

static byte_query place_query(void *room, int64_t n_i, int64_t d_i)
{
    byte_query q = {.heads = heads_rounded(n_i), .blocks = d_i / FP4};
    q.pair = (uint32_t (*)[PAIRS])((char *)room + 64);
    q.shift = q.pair[q.heads * q.blocks];
    q.scale = (float *)(q.shift + q.heads * q.blocks);
    q.w = q.scale + q.heads * q.blocks;
    return q;
}

static int64_t query_size(int64_t n_i, int64_t d_i)
{
    int64_t heads = heads_rounded(n_i);
    return 64 + (heads * (d_i / FP4) * (PAIRS + 2) * 4 + heads * 4 + 63) / 64 * 64;
}

/* 32 numbers become integers times a power of two, as far as that loses nothing. */
static inline void arrange_block(const float *x, extent *e, float *scale, uint32_t *shift,
                                 uint32_t pair[PAIRS])
{
    typedef int8_t bytes __attribute__((vector_size(LANES)));
    typedef uint16_t words __attribute__((vector_size(2 * PAIRS)));
    typedef uint32_t wide __attribute__((vector_size(4 * PAIRS)));
    lanes top = {0};
    for (int i = 0; i < FP4; i += LANES)
        top = lanes_max(lanes_abs(lanes_load(x + i)), top); /* a NaN shows below */
    float largest = lanes_largest(top);
    uint32_t bits;
    memcpy(&bits, &largest, sizeof bits);
    /* the smallest power of two by which the largest number is no more than 6 */
    int exponent = (int)((bits + 0x3fffff) >> 23) - 2 - 127;
    bool zero = largest == 0;
    if (!zero && (exponent < -110 || exponent > 110))
        e->good = false;
    uint32_t inverse_bits = (uint32_t)(zero || !e->good ? 127 : 128 - exponent) << 23;
    uint32_t quarter = (uint32_t)(zero || !e->good ? 0 : exponent + 125) << 23;
    float inverse;
    memcpy(&inverse, &inverse_bits, sizeof inverse);
    memcpy(scale, &quarter, sizeof *scale);
    if (!zero)
        widen(e, exponent - 1, exponent + 3);
    int8_t value[FP4];
    lanes_bits sum = {0};
    lanes_int lost = {0};
    for (int i = 0; i < FP4; i += LANES) {
        lanes number = lanes_load(x + i) * inverse;
        lanes_int integer = __builtin_convertvector(number, lanes_int);
        lost |= __builtin_convertvector(integer, lanes) != number;
        sum += (lanes_bits)integer;
        bytes narrow = __builtin_convertvector(integer, bytes);
        memcpy(value + i, &narrow, sizeof narrow);
    }
    uint32_t total = 0, any = 0;
    for (int i = 0; i < LANES; i++) {
        total += sum[i];
        any |= (uint32_t)lost[i];
    }
    e->good = e->good && any == 0;
    *shift = (uint16_t)(0 - ZERO * total) * 0x10001u;
    words two;
    memcpy(&two, value, sizeof two);
    wide both = __builtin_convertvector(two, wide) * 0x10001u;
    memcpy(pair, &both, sizeof both);
}

static void arrange(const float *iq, const float *w, int64_t n_i, int64_t d_i, void *room)
{
    byte_query q = place_query(room, n_i, d_i);
    int64_t used = n_i * q.blocks, all = q.heads * q.blocks;
    extent e = nothing_seen();
    for (int64_t i = 0; i < used; i++)
        arrange_block(iq + i * FP4, &e, &q.scale[i], &q.shift[i], q.pair[i]);
    memset(q.scale + used, 0, (size_t)(all - used) * sizeof *q.scale);
    memset(q.shift + used, 0, (size_t)(all - used) * sizeof *q.shift);
    memset(q.pair + used, 0, (size_t)(all - used) * sizeof *q.pair);
    memset(q.w, 0, (size_t)q.heads * sizeof *q.w);
    memcpy(q.w, w, (size_t)n_i * sizeof *w);
    q.range = range_of(e, extent_of_weights(w, n_i), d_i);
    int64_t head[2] = {n_i, d_i};
    memcpy(room, head, sizeof head);
    memcpy((char *)room + sizeof head, &q.range, sizeof q.range);
}

static byte_query read_query(const void *room)
{
    int64_t head[2];
    memcpy(head, room, sizeof head);
    byte_query q = place_query((void *)(uintptr_t)room, head[0], head[1]);
    memcpy(&q.range, (const char *)room + sizeof head, sizeof q.range);
    return q;
}

/* Unpacked keys: their scales' ranges, then of each block the scales and the numbers. */
typedef struct {
    float scale[FAST_KEYS];
    uint8_t pair[GROUPS][PAIRS][2 * SIDE];
} byte_keys;

static int64_t keys_size(int64_t d_i)
{
    return (int64_t)sizeof(key_scales) + d_i / FP4 * (int64_t)sizeof(byte_keys);
}

/* quant.e2m1.1, quant.fp4.1 */
static void unpack(const uint8_t *codes, const uint8_t *scales, int64_t d_i, int64_t count, void *keys)
{
    static const uint8_t values[64] = {
#define E2M1 12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0
        E2M1, E2M1, E2M1, E2M1
#undef E2M1
    };
    const code_vector table = LOAD_CODES(values);
    byte_keys *out = (byte_keys *)((char *)keys + sizeof(key_scales));
    const int64_t blocks = d_i / FP4;
    for (int64_t b = 0; b < blocks; b++, out++) {
        uint8_t bytes[PAIRS][FAST_KEYS], scale[FAST_KEYS];
        turn_codes(codes + b * PAIRS, d_i / 2, count, bytes);
        gather_scales(scales, blocks, b, count, keys, scale);
        for (int i = 0; i < FAST_KEYS; i += LANES) {
            typedef uint8_t some __attribute__((vector_size(LANES)));
            some narrow;
            memcpy(&narrow, scale + i, sizeof narrow);
            lanes_store(out->scale + i, (lanes)(__builtin_convertvector(narrow, lanes_int) << 23));
        }
        for (int i = 0; i < PAIRS; i++)
#pragma GCC unroll 4
            for (int g = 0; g < GROUPS; g++) {
#if LANES == 16
                code_vector code = _mm512_cvtepu8_epi16(
                    _mm256_loadu_si256((const __m256i_u *)(bytes[i] + g * SIDE)));
#else
                code_vector code = _mm256_cvtepu8_epi16(
                    _mm_loadu_si128((const __m128i_u *)(bytes[i] + g * SIDE)));
#endif
                code = code | CODES(slli_epi16)(code, 4); /* each code in a byte of its own */
                code = code & CODES(set1_epi8)(15);
                code = CODES(shuffle_epi8)(table, code);
                STORE_CODES(out->pair[g][i], code);
            }
    }
}

static inline lanes lower_sums(code_vector v)
{
#if LANES == 16
    return (lanes)_mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(_mm512_castsi512_si256(v)));
#else
    return (lanes)_mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(_mm256_castsi256_si128(v)));
#endif
}

static inline lanes upper_sums(code_vector v)
{
#if LANES == 16
    return (lanes)_mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(_mm512_extracti64x4_epi64(v, 1)));
#else
    return (lanes)_mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(_mm256_extracti128_si256(v, 1)));
#endif
}

/* Adds to the scores of the keys of AT_ONCE vectors what HEADS heads from h on give them. */
static inline void score_heads(const byte_query *q, int64_t h, const byte_keys *keys, int64_t group,
                               lanes *score)
{
    lanes sum[HEADS][2 * AT_ONCE] = {{{0}}};
    for (int64_t b = 0; b < q->blocks; b++) {
        const int64_t at = h * q->blocks + b;
        code_vector count[HEADS][AT_ONCE];
#pragma GCC unroll 8
        for (int i = 0; i < HEADS; i++)
#pragma GCC unroll 2
            for (int v = 0; v < AT_ONCE; v++)
                count[i][v] = CODES(set1_epi32)((int)q->shift[at + i * q->blocks]);
#pragma GCC unroll 2
        for (int j = 0; j < PAIRS; j++) {
            code_vector key[AT_ONCE];
#pragma GCC unroll 2
            for (int v = 0; v < AT_ONCE; v++)
                key[v] = LOAD_CODES(keys[b].pair[group + v][j]);
#pragma GCC unroll 8
            for (int i = 0; i < HEADS; i++) {
                code_vector both = CODES(set1_epi32)((int)q->pair[at + i * q->blocks][j]);
#pragma GCC unroll 2
                for (int v = 0; v < AT_ONCE; v++)
                    count[i][v] = CODES(add_epi16)(count[i][v],
                                                   CODES(maddubs_epi16)(key[v], both));
            }
        }
        const float *scale = keys[b].scale + group * SIDE;
#pragma GCC unroll 8
        for (int i = 0; i < HEADS; i++) {
            const float quarter = q->scale[at + i * q->blocks];
#pragma GCC unroll 2
            for (int v = 0; v < AT_ONCE; v++) {
                lanes *to = &sum[i][2 * v];
                to[0] = lanes_fma(lower_sums(count[i][v]) * quarter,
                                  lanes_load(scale + v * SIDE), to[0]);
                to[1] = lanes_fma(upper_sums(count[i][v]) * quarter,
                                  lanes_load(scale + v * SIDE + LANES), to[1]);
            }
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < HEADS; i++)
#pragma GCC unroll 4
        for (int v = 0; v < 2 * AT_ONCE; v++)
            score[v] = add_weighed(score[v], sum[i][v], q->w[h + i]);
}

static uint64_t scores(const void *query, const void *keys, int64_t count, float *score)
{
    const byte_query q = read_query(query);
    const byte_keys *of_blocks = (const byte_keys *)((const char *)keys + sizeof(key_scales));
    lanes sum[FAST_KEYS / LANES] = {{0}};
    for (int64_t group = 0; group * SIDE < count; group += AT_ONCE)
        for (int64_t h = 0; h < q.heads; h += HEADS)
            score_heads(&q, h, of_blocks, group, sum + 2 * group);
    put_scores(sum, count, score);
    return outside(keys, q.range, count);
}

static const fast_coded_kernels by_bytes = {
    .query_size = query_size, .arrange = arrange, .keys_size = keys_size, .unpack = unpack,
    .scores = scores};

#define INDEXER_CODED &by_bytes

#endif
