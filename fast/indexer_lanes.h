/* spec/indexer.md in vectors: scores, with keys side by side. A key's score is computed in a lane
 * of its own, channels and then heads in their order: it does not depend on the keys around it. */
#ifndef DSV4_FAST_INDEXER_LANES_H
#define DSV4_FAST_INDEXER_LANES_H

#include "fast/kernels.h"
#include "fast/lanes.h"

/* Of a tile, products of this many heads with two vectors of keys stand in registers. */
#if LANES == 16
enum { INDEXER_HEADS = 8 };
#else
enum { INDEXER_HEADS = 4 };
#endif
enum { INDEXER_KEYS = 2 * LANES };
enum { INDEXER_DEPTH = 128 }; /* channels that are turned at a time: all that Flash has */

/* a0 b0 a1 b1 .., and the same of the upper halves. */
static inline void indexer_interleave(lanes a, lanes b, lanes *low, lanes *high)
{
#if LANES == 16
    const __m512i first = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const __m512i last = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15,
                                           31);
    *low = (lanes)_mm512_permutex2var_ps((__m512)a, first, (__m512)b);
    *high = (lanes)_mm512_permutex2var_ps((__m512)a, last, (__m512)b);
#elif LANES == 8
    __m256 even = _mm256_unpacklo_ps((__m256)a, (__m256)b); /* of each half of the registers */
    __m256 odd = _mm256_unpackhi_ps((__m256)a, (__m256)b);
    *low = (lanes)_mm256_permute2f128_ps(even, odd, 0x20);
    *high = (lanes)_mm256_permute2f128_ps(even, odd, 0x31);
#else
    *low = (lanes){a[0], b[0], a[1], b[1]};
    *high = (lanes){a[2], b[2], a[3], b[3]};
#endif
}

/* Rows become columns: each of the rounds moves one bit of a row's number into the lane's. */
static inline void indexer_transpose(lanes v[LANES])
{
#pragma GCC unroll 4
    for (int round = 1; round < LANES; round *= 2) {
        lanes next[LANES];
#pragma GCC unroll 8
        for (int i = 0; i < LANES / 2; i++)
            indexer_interleave(v[i], v[i + LANES / 2], &next[2 * i], &next[2 * i + 1]);
#pragma GCC unroll 16
        for (int i = 0; i < LANES; i++)
            v[i] = next[i];
    }
}

/* Channels first .. first + depth - 1 of `count` keys -> turned [depth, INDEXER_KEYS]; keys that
 * are not there are 0. depth is rounded up to whole vectors. */
static inline void indexer_turn(const float *keys, int64_t d_i, int64_t count, int64_t first,
                                int64_t depth, float *turned)
{
    for (int64_t key = 0; key < INDEXER_KEYS; key += LANES)
        for (int64_t i = 0; i < depth; i += LANES) {
            lanes v[LANES];
            for (int j = 0; j < LANES; j++) {
                int64_t at = (key + j) * d_i + first + i;
                if (key + j >= count)
                    v[j] = (lanes){0};
                else if (depth - i >= LANES)
                    v[j] = lanes_load(keys + at);
                else
                    v[j] = lanes_load_some(keys + at, depth - i, 0);
            }
            indexer_transpose(v);
            for (int j = 0; j < LANES; j++)
                lanes_store(turned + (i + j) * INDEXER_KEYS + key, v[j]);
        }
}

/* Adds channels [depth] of some heads, which are d_i apart, times turned [depth, INDEXER_KEYS]. */
static inline __attribute__((always_inline)) void
indexer_multiply(const float *iq, int64_t d_i, int heads, int64_t depth, const float *turned,
                 lanes sum[INDEXER_HEADS][2])
{
    for (int64_t i = 0; i < depth; i++, turned += INDEXER_KEYS) {
        lanes low = lanes_load(turned), high = lanes_load(turned + LANES);
#pragma GCC unroll 8
        for (int h = 0; h < heads; h++) {
            lanes q = lanes_all(iq[h * d_i + i]);
            sum[h][0] = lanes_fma(q, low, sum[h][0]);
            sum[h][1] = lanes_fma(q, high, sum[h][1]);
        }
    }
}

/* score += w relu(product): indexer.score.1, indexer.score.2. A NaN stays. */
static inline lanes indexer_weigh(lanes product, float w, bool released, lanes score)
{
    if (released)
        product = lanes_bf16(product);
    product = w * lanes_select(product < 0, (lanes){0}, product);
    return score + (released ? lanes_bf16(product) : product);
}

/* A place for `turned`, and which channels of the keys stand there. */
typedef struct {
    const float *keys;
    int64_t d_i, count, first;
    _Alignas(64) float turned[INDEXER_DEPTH * INDEXER_KEYS];
} indexer_tile;

/* Adds what `heads` heads give the keys of a tile. */
static inline __attribute__((always_inline)) void
indexer_heads(indexer_tile *t, const float *iq, const float *w, int heads, bool released,
              lanes score[2])
{
    lanes sum[INDEXER_HEADS][2] = {{{0}}};
    for (int64_t first = 0; first < t->d_i; first += INDEXER_DEPTH) {
        int64_t depth = t->d_i - first < INDEXER_DEPTH ? t->d_i - first : INDEXER_DEPTH;
        if (t->first != first)
            indexer_turn(t->keys, t->d_i, t->count, first, depth, t->turned);
        t->first = first;
        indexer_multiply(iq + first, t->d_i, heads, depth, t->turned, sum);
    }
#pragma GCC unroll 8
    for (int h = 0; h < heads; h++)
#pragma GCC unroll 2
        for (int v = 0; v < 2; v++)
            score[v] = indexer_weigh(sum[h][v], w[h], released, score[v]);
}

static void indexer_scores(const float *iq, const float *w, const float *keys, int64_t n_i,
                           int64_t d_i, int64_t count, bool released, float *score)
{
    indexer_tile t = {.d_i = d_i};
    for (int64_t key = 0; key < count; key += INDEXER_KEYS) {
        lanes sum[2] = {{0}};
        int64_t h = 0, left = count - key;
        t.keys = keys + key * d_i;
        t.count = left;
        t.first = -1;
        for (; h + INDEXER_HEADS <= n_i; h += INDEXER_HEADS)
            indexer_heads(&t, iq + h * d_i, w + h, INDEXER_HEADS, released, sum);
        for (; h < n_i; h++)
            indexer_heads(&t, iq + h * d_i, w + h, 1, released, sum);
        for (int v = 0; v < 2 && left > v * LANES; v++) {
            lanes result = released ? lanes_bf16(sum[v]) : sum[v];
            int64_t some = left - v * LANES;
            lanes_store_some(score + key + v * LANES, some < LANES ? some : LANES, result);
        }
    }
}

#ifndef INDEXER_CODED
#define INDEXER_CODED NULL
#endif

const fast_indexer_kernels LEVEL_NAME(fast_indexer) = {indexer_scores, INDEXER_CODED};

#endif
