/* The scores of the indexer by tile instructions. A left operand is 16 heads of 32 channels, as bf16
 * numbers; a right one the same channels of 16 keys, decoded with their scales. So a result has heads one
 * below the other, and keys side by side: the weighed sum over heads is one of whole vectors.
 *
 * All products are exact, and so are most sums: numbers of E2M1 have few bits. Heads are summed in their
 * order. While tiles are multiplied, the results of those before are weighed. */
#include "fast/x86/indexer_codes.h"
#include "fast/x86/tiles.h"

enum {
    PAIRS = FP4 / 2,
    BLOCK = TILE_ROWS * FP4,          /* numbers of a tile */
    HEADS = 2 * TILE_ROWS,            /* that are multiplied at a time, with .. */
    SIDE = 2 * TILE_ROWS,             /* .. so many keys */
    GROUPS = FAST_KEYS / TILE_ROWS
};

/* ---- rows ---- */

/* An arranged row begins with this; then come weights [heads] and tiles [heads / 16, blocks]. */
typedef struct {
    int64_t heads, blocks; /* heads: rounded up */
    scale_range range;
    char unused[46];
} tile_query;
_Static_assert(sizeof(tile_query) == 64, "tiles stand in whole cache lines");

static int64_t heads_rounded(int64_t n_i)
{
    return (n_i + HEADS - 1) / HEADS * HEADS;
}

static int64_t query_size(int64_t n_i, int64_t d_i)
{
    int64_t heads = heads_rounded(n_i);
    return (int64_t)sizeof(tile_query) + heads * 4 + heads * d_i * 2;
}

static float *weights_of(const void *query)
{
    return (float *)((char *)(uintptr_t)query + sizeof(tile_query));
}

static uint16_t *tiles_of(const void *query)
{
    return (uint16_t *)(weights_of(query) + ((const tile_query *)query)->heads);
}

/* The extent of bf16 numbers, given the largest magnitude and the smallest but for 0, less 1. */
static extent extent_of(__m512i largest, __m512i smallest, bool exact)
{
    uint32_t top = _mm512_reduce_max_epu32(largest), bottom = _mm512_reduce_min_epu32(smallest);
    extent e = nothing_seen();
    if (top == 0)
        return e;
    int first = (int)((bottom + 1) >> 23), last = (int)(top >> 23);
    e.good = exact && first > 0 && last < 255;
    widen(&e, first - 127 - 7, last - 126);
    return e;
}

static void arrange(const float *iq, const float *w, int64_t n_i, int64_t d_i, void *query)
{
    tile_query *q = query;
    *q = (tile_query){.heads = heads_rounded(n_i), .blocks = d_i / FP4};
    uint16_t *tiles = tiles_of(query);
    __m512i largest = _mm512_setzero_si512(), smallest = _mm512_set1_epi32(-1), lost = largest;
    memset(tiles, 0, (size_t)(q->heads * d_i) * sizeof *tiles);
    for (int64_t h = 0; h < n_i; h++)
        for (int64_t i = 0; i < d_i; i += TILE_ROWS) {
            __m512i x = _mm512_loadu_si512(iq + h * d_i + i);
            __m512i magnitude = _mm512_and_si512(x, _mm512_set1_epi32(INT_MAX));
            lost = _mm512_or_si512(lost, x);
            largest = _mm512_max_epu32(largest, magnitude);
            smallest = _mm512_min_epu32(smallest,
                                        _mm512_sub_epi32(magnitude, _mm512_set1_epi32(1)));
            int64_t tile = h / TILE_ROWS * q->blocks + i / FP4;
            uint16_t *out = tiles + tile * BLOCK + h % TILE_ROWS * FP4 + i % FP4;
            _mm256_storeu_si256((__m256i_u *)out, _mm512_cvtepi32_epi16(_mm512_srli_epi32(x, 16)));
        }
    bool exact = _mm512_test_epi32_mask(lost, _mm512_set1_epi32(0xffff)) == 0;
    float *weight = weights_of(query);
    memset(weight, 0, (size_t)q->heads * sizeof *weight);
    memcpy(weight, w, (size_t)n_i * sizeof *w);
    q->range = range_of(extent_of(largest, smallest, exact), extent_of_weights(w, n_i), d_i);
}

/* ---- keys ---- */

static int64_t keys_size(int64_t d_i)
{
    return (int64_t)sizeof(key_scales) + FAST_KEYS * d_i * 2;
}

/* 16 keys, a byte of each -> a row of a tile: quant.e2m1.1, quant.fp4.1. The table has the largest scale,
 * 2^125, from which the others are counted down; 0 stays what it is. Of an index only 5 bits count, the
 * fifth of which is of the byte's other code: so the table stands there twice. */
static inline __m512i decode_pairs(const uint8_t *bytes, __m512i table, __m512i down)
{
    __m512i index = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i_u *)bytes));
    index = _mm512_or_si512(index, _mm512_slli_epi32(index, 12));
    return _mm512_subs_epu16(_mm512_permutexvar_epi16(index, table), down);
}

/* -> tiles [GROUPS, blocks] */
static void unpack(const uint8_t *codes, const uint8_t *scales, int64_t d_i, int64_t count, void *keys)
{
    static const uint16_t values[FP4] = {
#define E2M1(sign) \
    0, sign | 0x7d80, sign | 0x7e00, sign | 0x7e40, sign | 0x7e80, sign | 0x7ec0, sign | 0x7f00, \
        sign | 0x7f40
        E2M1(0), E2M1(0x8000), E2M1(0), E2M1(0x8000)
#undef E2M1
    };
    enum { LARGEST = 252 };
    const __m512i table = _mm512_loadu_si512(values);
    const int64_t blocks = d_i / FP4;
    uint16_t *tiles = (uint16_t *)((char *)keys + sizeof(key_scales));
    for (int64_t b = 0; b < blocks; b++) {
        uint8_t bytes[PAIRS][FAST_KEYS], scale[FAST_KEYS];
        turn_codes(codes + b * PAIRS, d_i / 2, count, bytes);
        gather_scales(scales, blocks, b, count, keys, scale);
        for (int g = 0; g < GROUPS; g++) {
            uint16_t *out = tiles + (g * blocks + b) * BLOCK;
            __m512i down = _mm512_cvtepu8_epi32(
                _mm_loadu_si128((const __m128i_u *)(scale + g * TILE_ROWS)));
            down = _mm512_slli_epi32(_mm512_sub_epi32(_mm512_set1_epi32(LARGEST), down), 7);
            down = _mm512_or_si512(_mm512_and_si512(down, _mm512_set1_epi32(0xffff)),
                                   _mm512_slli_epi32(down, 16));
            for (int i = 0; i < PAIRS; i++)
                _mm512_storeu_si512(out + i * FP4,
                                    decode_pairs(bytes[i] + g * TILE_ROWS, table, down));
        }
    }
}

/* ---- scores ---- */

/* Products of HEADS heads with SIDE keys: four tiles, those of the first 16 heads first. */
typedef float products[2][2][TILE_ROWS][TILE_ROWS];

/* Adds what heads [begin, end) of these give their keys. */
static inline void weigh(products y, const float *w, int64_t begin, int64_t end, lanes score[2])
{
    lanes low = score[0], high = score[1];
    for (int64_t h = begin; h < end; h++) {
        low = add_weighed(low, lanes_load(y[h / TILE_ROWS][0][h % TILE_ROWS]), w[h]);
        high = add_weighed(high, lanes_load(y[h / TILE_ROWS][1][h % TILE_ROWS]), w[h]);
    }
    score[0] = low;
    score[1] = high;
}

static inline void multiply(const uint16_t *q, const uint16_t *keys, int64_t next)
{
    TILE_LOAD(4, q, TILE_BYTES);
    TILE_LOAD(6, keys, TILE_BYTES);
    TILE_LOAD(7, keys + next, TILE_BYTES);
    TILE_LOAD(5, q + next, TILE_BYTES);
    TILE_BF16(0, 4, 6);
    TILE_BF16(1, 4, 7);
    TILE_BF16(2, 5, 6);
    TILE_BF16(3, 5, 7);
}

/* Units of HEADS heads and SIDE keys. A unit is multiplied while the one before is weighed, a block's share
 * at a time, so that both kinds of instructions are at hand. */
static uint64_t scores(const void *query, const void *keys, int64_t count, float *score)
{
    const tile_query *q = query;
    const float *w = weights_of(query);
    const uint16_t *left = tiles_of(query);
    const uint16_t *right = (const uint16_t *)((const char *)keys + sizeof(key_scales));
    const int64_t blocks = q->blocks, next = blocks * BLOCK;
    const int64_t sides = count > SIDE ? 2 : 1, units = q->heads / HEADS * sides;
    _Alignas(64) products y[2];
    lanes sum[FAST_KEYS / LANES] = {{0}};
    tiles_fence();
    for (int64_t unit = 0; unit <= units; unit++) {
        const uint16_t *a = left + 2 * (unit / sides) * next, *b = right + 2 * (unit % sides) * next;
        const int64_t before = unit - 1;
        if (unit < units) {
            TILE_ZERO(0);
            TILE_ZERO(1);
            TILE_ZERO(2);
            TILE_ZERO(3);
        }
        for (int64_t i = 0; i < blocks; i++) {
            if (unit < units)
                multiply(a + i * BLOCK, b + i * BLOCK, next);
            if (unit > 0)
                weigh(y[before % 2], w + before / sides * HEADS, HEADS * i / blocks,
                      HEADS * (i + 1) / blocks, sum + 2 * (before % sides));
        }
        if (unit < units) {
            TILE_STORE(0, y[unit % 2][0][0], TILE_BYTES);
            TILE_STORE(1, y[unit % 2][0][1], TILE_BYTES);
            TILE_STORE(2, y[unit % 2][1][0], TILE_BYTES);
            TILE_STORE(3, y[unit % 2][1][1], TILE_BYTES);
        }
        tiles_fence();
    }
    put_scores(sum, count, score);
    return outside(keys, q->range, count);
}

/* ---- the self-check ---- */

/* Small integers, in halves: sums are exact in any order, and roundings are done by hand. */
static bool works(void)
{
    enum { n_i = 40, d_i = 64, count = 51 };
    static const int8_t halves[8] = {0, 1, 2, 3, 4, 6, 8, 12};
    _Alignas(64) char query[64 + 64 * 4 + 64 * d_i * 2];
    _Alignas(64) char unpacked[sizeof(key_scales) + FAST_KEYS * d_i * 2];
    uint8_t codes[count * d_i / 2], scales[count * d_i / FP4];
    int key[count][d_i];
    float iq[n_i * d_i], w[n_i], score[count];
    for (int g = 0; g < count; g++)
        for (int i = 0; i < d_i; i += 2) {
            int low = (g * 7 + i * 5 + i / 16) % 16, high = (g * 3 + i * 11 + 1) % 16;
            int scale = (g + i / FP4) % 3;
            codes[(g * d_i + i) / 2] = (uint8_t)(low | high << 4);
            scales[g * d_i / FP4 + i / FP4] = (uint8_t)(127 + scale);
            key[g][i] = (low < 8 ? 1 : -1) * (halves[low % 8] << scale);
            key[g][i + 1] = (high < 8 ? 1 : -1) * (halves[high % 8] << scale);
        }
    for (int i = 0; i < n_i * d_i; i++)
        iq[i] = (float)(i * 29 % 13 - 6);
    for (int h = 0; h < n_i; h++)
        w[h] = (float)(h * 37 % 64 - 20) / 64;
    arrange(iq, w, n_i, d_i, query);
    unpack(codes, scales, d_i, count, unpacked);
    tiles_begin();
    uint64_t left = scores(query, unpacked, count, score);
    tiles_end();
    for (int g = 0; g < count; g++) {
        float sum = 0;
        for (int h = 0; h < n_i; h++) {
            int product = 0;
            for (int i = 0; i < d_i; i++)
                product += (int)iq[h * d_i + i] * key[g][i];
            sum += lanes_bf16_one(w[h] * lanes_bf16_one(product > 0 ? (float)product / 2 : 0));
        }
        if (score[g] != lanes_bf16_one(sum))
            return false;
    }
    return left == 0;
}

const fast_coded_kernels fast_indexer_amx = {
    .query_size = query_size, .arrange = arrange, .keys_size = keys_size, .unpack = unpack,
    .scores = scores, .begin = tiles_begin, .end = tiles_end, .works = works};
