/* Core attention by tiles, for the heads of one token. A block's logits have entries one below
 * the other and heads side by side, so that maxima, exponentials and sums are those of whole vectors.
 *
 * Entries are rows of bf16 numbers: as such they are a left operand of the logits. For the numerators they
 * are paired, two of them value by value, with columns in the order in which that is done fastest; the
 * numerators get their own order back at the end.
 *
 * Every logit and every numerator is one sum in an order of its own, whatever other heads there are. All
 * products of q and e are exact, or the head is refused. A product of p and e below 2^-126 is 0 here: e is
 * 2^LEAST at least, so that p is 2^-62 at most, and some other p of the same list is 1. */
#ifndef DSV4_FAST_CORE_ATTN_TILES_H
#define DSV4_FAST_CORE_ATTN_TILES_H

#include <immintrin.h>
#include <string.h>

#include "fast/kernels.h"
#include "fast/lanes.h"
#include "fast/x86/bf16.h"
#include "fast/x86/tiles.h"

enum {
    ENTRIES = FAST_ENTRIES,     /* of a block, at most */
    STRIPE = 2 * TILE_ROWS,     /* of them, that are multiplied at a time */
    TILE = TILE_ROWS * DEPTH,   /* bf16 numbers of a tile */
    SQUARE = TILE_ROWS * LANES, /* binary32 numbers of a tile */
    TAIL = DEPTH                /* behind a row: its extent; rows fall into different cache sets */
};
enum { LEAST = -64, MOST = 64 }; /* exponents of entries */

static int64_t rounded(int64_t count, int64_t unit)
{
    return (count + unit - 1) / unit * unit;
}

/* ---- rows ---- */

static int64_t row_size(int64_t d)
{
    return rounded(d, DEPTH) + TAIL;
}

static void put_extent(uint16_t *row, int64_t d, extent e)
{
    memcpy(row + rounded(d, DEPTH), &e, sizeof e);
}

static extent extent_of(const uint16_t *row, int64_t d)
{
    extent e;
    memcpy(&e, row + rounded(d, DEPTH), sizeof e);
    return e;
}

static void make_row(const float *x, int64_t d, uint16_t *row)
{
    seen all = seen_none();
    __m512i lost = _mm512_setzero_si512();
    for (int64_t i = 0; i < d; i += DEPTH) {
        __m512i low = load_floats(x + i, first_of(d - i), 0);
        __m512i high = load_floats(x + i, first_of(d - i), 1);
        __m512i numbers = upper_halves(low, high);
        lost = _mm512_or_si512(lost, _mm512_or_si512(low, high));
        see(&all, numbers);
        _mm512_storeu_si512(row + i, numbers);
    }
    bool exact = _mm512_test_epi32_mask(lost, _mm512_set1_epi32(0xffff)) == 0;
    put_extent(row, d, exact ? extent_seen(&all) : unusable);
}

/* 64 codes; `largest` grows to their magnitudes. */
static inline void decode(const uint8_t *codes, uint8_t scale, uint16_t *row, __m512i *largest)
{
    const __m512i exponent = _mm512_set1_epi16((short)(scale << 7));
    const __m512i bias = _mm512_sub_epi16(exponent, _mm512_set1_epi16(7 << 7));
    __m512i magnitude = _mm512_and_si512(_mm512_loadu_si512(codes), _mm512_set1_epi8(0x7f));
    __m256i low = _mm256_loadu_si256((const __m256i_u *)codes);
    __m256i high = _mm256_loadu_si256((const __m256i_u *)(codes + DEPTH));
    *largest = _mm512_max_epu8(*largest, magnitude);
    if (_mm512_cmplt_epu8_mask(magnitude, _mm512_set1_epi8(8)) == 0) {
        _mm512_storeu_si512(row, normal_fp8(low, bias));
        _mm512_storeu_si512(row + DEPTH, normal_fp8(high, bias));
    } else {
        const __m512i small = small_fp8(exponent);
        _mm512_storeu_si512(row, any_fp8(low, bias, small));
        _mm512_storeu_si512(row + DEPTH, any_fp8(high, bias, small));
    }
}

static void make_coded_row(const uint8_t *codes, const uint8_t *scales, const uint16_t *rope,
                           int64_t values, int64_t R, uint16_t *row)
{
    const __m512i nan = _mm512_set1_epi8(0x7f);
    seen all = seen_none();
    __m512i largest = _mm512_setzero_si512();
    int least = 255, most = 0;
    for (int64_t i = 0; i < values; i += 64) {
        uint8_t scale = scales[i / 64];
        least = scale < least ? scale : least;
        most = scale > most ? scale : most;
        decode(codes + i, scale, row + i, &largest);
    }
    for (int64_t i = 0; i < R; i += DEPTH) {
        __m512i numbers = _mm512_maskz_loadu_epi16(first_of(R - i), rope + i);
        see(&all, numbers);
        _mm512_storeu_si512(row + values + i, numbers);
    }
    extent e = extent_seen(&all);
    if (values > 0) /* with LEAST and MOST all codes times scales are normal numbers */
        e = both(e, (extent){least - 127 - 9, most - 127 + 9});
    put_extent(row, values + R, _mm512_cmpeq_epi8_mask(largest, nan) == 0 ? e : unusable);
}

/* ---- scratch ---- */

/* What is kept of an item from block to block, and where a block is worked on. Heads come 16 at a time;
 * those that are not there have zeros for q. */
typedef struct {
    extent entries;       /* all so far */
    int64_t blocks_done;
} progress;

typedef struct {
    progress *so_far;
    extent *of_q;         /* [heads] */
    float *maximum, *denominator; /* [heads] */
    uint16_t *q;          /* tiles [groups, steps] */
    uint16_t *rows;       /* [ENTRIES, row_size], in place of those that lie anywhere */
    uint16_t *pairs;      /* tiles [2, 2 steps] of 16 pairs of entries, 16 columns */
    uint16_t *p;          /* tiles [groups, 2] of 16 heads, 32 entries */
    float *logits;        /* [groups, ENTRIES, 16] */
    float *out;           /* tiles [groups, 2 steps] of 16 heads, 16 columns */
    int64_t heads, groups, steps, size, bytes;
} room;

/* The next array, of whole cache lines. */
static void *take(uintptr_t *end, int64_t bytes)
{
    uintptr_t begin = *end;
    *end += (uintptr_t)rounded(bytes, 64);
    return (void *)begin;
}

static room place(void *scratch, int64_t heads, int64_t d)
{
    room r = {.heads = rounded(heads, TILE_ROWS), .size = 2 * row_size(d)};
    const uintptr_t begin = ((uintptr_t)scratch + 63) / 64 * 64;
    uintptr_t end = begin;
    r.groups = r.heads / TILE_ROWS;
    r.steps = rounded(d, DEPTH) / DEPTH;
    r.so_far = take(&end, (int64_t)sizeof *r.so_far);
    r.of_q = take(&end, r.heads * (int64_t)sizeof *r.of_q);
    r.maximum = take(&end, r.heads * 4);
    r.denominator = take(&end, r.heads * 4);
    r.q = take(&end, r.groups * r.steps * TILE * 2);
    r.rows = take(&end, ENTRIES * r.size);
    r.pairs = take(&end, 4 * r.steps * TILE * 2);
    r.p = take(&end, 2 * r.groups * TILE * 2);
    r.logits = take(&end, r.groups * ENTRIES * LANES * 4);
    r.out = take(&end, r.groups * 2 * r.steps * SQUARE * 4);
    r.bytes = (int64_t)(end - begin);
    return r;
}

static int64_t scratch_size(int64_t heads, int64_t d)
{
    return (place(NULL, heads, d).bytes + 64) / 4; /* wherever it begins */
}

/* ---- queries ---- */

static void arrange_group(const room *r, const fast_softmax *s, int64_t group)
{
    const int64_t size = row_size(s->d), first = group * TILE_ROWS;
    for (int64_t h = 0; h < TILE_ROWS; h++) {
        uint16_t *row = r->rows + h * size;
        memset(row, 0, (size_t)r->size);
        if (first + h < s->heads)
            make_row(s->q + (first + h) * s->d, s->d, row);
        r->of_q[first + h] = extent_of(row, s->d);
    }
    for (int64_t k = 0; k < r->steps; k++) {
        uint16_t *tile = r->q + (group * r->steps + k) * TILE;
        __m512i v[16];
        for (int h = 0; h < 16; h++)
            v[h] = _mm512_loadu_si512(r->rows + h * size + k * DEPTH);
        exchange(v);
        for (int i = 0; i < 16; i++)
            _mm512_storeu_si512(tile + i * DEPTH, v[i]);
    }
}

static void begin(const fast_softmax *s, void *scratch)
{
    const room r = place(scratch, s->heads, s->d);
    *r.so_far = (progress){.entries = nothing};
    for (int64_t h = 0; h < r.heads; h++) {
        r.maximum[h] = -__builtin_inff(); /* core_attn.block.1 */
        r.denominator[h] = 0;
    }
    for (int64_t group = 0; group < r.groups; group++)
        arrange_group(&r, s, group);
    tiles_begin();
}

/* ---- the entries of a block ---- */

/* 16 rows for a tile to be loaded from; the stride in bytes. */
typedef struct { const uint16_t *row; int64_t stride; } rows_of_tile;

/* As they are, if they lie at equal distances; else side by side. */
static rows_of_tile line_up(const room *r, const uint16_t *const *row, int64_t first)
{
    const uintptr_t at = (uintptr_t)row[first], step = (uintptr_t)row[first + 1] - at;
    bool even = true;
    for (int64_t i = 2; i < TILE_ROWS && even; i++)
        even = (uintptr_t)row[first + i] == at + (uintptr_t)i * step;
    if (even)
        return (rows_of_tile){row[first], (int64_t)step};
    uint16_t *to = r->rows + first * (r->size / 2);
    for (int64_t i = 0; i < TILE_ROWS; i++)
        for (int64_t k = 0; k < r->steps; k++)
            _mm512_storeu_si512(to + i * (r->size / 2) + k * DEPTH,
                                _mm512_loadu_si512(row[first + i] + k * DEPTH));
    return (rows_of_tile){to, r->size};
}

/* Rows a and b -> row i of tiles of 16 columns: of every 32 those whose place is 0 to 3 mod 8, and the
 * others. */
static void pair_up(const room *r, const uint16_t *a, const uint16_t *b, int64_t pair)
{
    uint16_t *tile = r->pairs + pair / TILE_ROWS * 2 * r->steps * TILE + pair % TILE_ROWS * DEPTH;
    for (int64_t k = 0; k < r->steps; k++, tile += 2 * TILE) {
        __m512i x = _mm512_loadu_si512(a + k * DEPTH), y = _mm512_loadu_si512(b + k * DEPTH);
        _mm512_storeu_si512(tile, _mm512_unpacklo_epi16(x, y));
        _mm512_storeu_si512(tile + TILE, _mm512_unpackhi_epi16(x, y));
    }
}

/* ---- probabilities ---- */

static inline lanes larger(lanes a, lanes b)
{
    return (lanes)_mm512_max_ps((__m512)a, (__m512)b);
}

/* Two that are not negative, to bf16, ties to even: side by side. */
static inline __m512i rounded_pair(lanes a, lanes b)
{
    lanes_bits low = (lanes_bits)a, high = (lanes_bits)b;
    low += 0x7fff + (low >> 16 & 1);
    high += 0x7fff + (high >> 16 & 1);
    return (__m512i)(low >> 16 | (high & 0xffff0000));
}

/* The numerators of heads whose maximum has grown: core_attn.block.2 */
static void rescale(const room *r, int64_t group, uint32_t grown, const float *shrink)
{
    for (; grown != 0; grown &= grown - 1) {
        const int h = __builtin_ctz(grown);
        const lanes factor = lanes_all(shrink[h]);
        float *out = r->out + group * 2 * r->steps * SQUARE + h * LANES;
        for (int64_t k = 0; k < 2 * r->steps; k++)
            lanes_store(out + k * SQUARE, lanes_load(out + k * SQUARE) * factor);
    }
}

/* Groups of heads whose logits become p, step by step, so that it can be done while tiles are multiplied. */
typedef struct {
    const room *r;
    float scale;
    int64_t count;      /* entries */
    int64_t group, end; /* in progress, and behind the last */
    int64_t done;       /* entries of this group */
    lanes old, top, sum[2];
    __m512i pair[16];   /* since the last tile of p */
} softening;

/* core_attn.block.2 */
static void open_group(softening *w)
{
    const float *logits = w->r->logits + w->group * ENTRIES * LANES;
    lanes part[4];
    for (int i = 0; i < 4; i++)
        part[i] = lanes_all(-__builtin_inff());
    for (int64_t j = 0; j < w->count; j++)
        part[j % 4] = larger(part[j % 4], lanes_load(logits + j * LANES));
    lanes top = larger(larger(part[0], part[1]), larger(part[2], part[3]));
    w->old = lanes_load(w->r->maximum + w->group * LANES);
    w->top = larger(w->old, top * w->scale);
    w->sum[0] = w->sum[1] = (lanes){0};
    w->done = 0;
}

static void close_group(softening *w)
{
    const room *r = w->r;
    const lanes shrink = lanes_exp(w->old - w->top); /* 0 in the first block: nothing was before */
    const lanes before = lanes_load(r->denominator + w->group * LANES);
    float factor[LANES];
    lanes_store(factor, shrink);
    lanes_store(r->denominator + w->group * LANES, before * shrink + (w->sum[0] + w->sum[1]));
    lanes_store(r->maximum + w->group * LANES, w->top);
    if (r->so_far->blocks_done > 0)
        rescale(r, w->group, _mm512_cmp_ps_mask((__m512)w->old, (__m512)w->top, _CMP_NEQ_UQ), factor);
}

/* The pairs so far, and none behind them, as a tile of 16 heads. */
static void put_pairs(softening *w, int64_t count)
{
    uint16_t *tile = w->r->p + (w->group * 2 + (w->done - 1) / STRIPE) * TILE;
    for (int64_t i = count; i < 16; i++)
        w->pair[i] = _mm512_setzero_si512();
    exchange(w->pair);
    for (int i = 0; i < 16; i++)
        _mm512_storeu_si512(tile + i * DEPTH, w->pair[i]);
}

/* Two entries: core_attn.block.3 */
static void soften_pair(softening *w)
{
    const float *logits = w->r->logits + (w->group * ENTRIES + w->done) * LANES;
    const int64_t at = w->done / 2 % 16;
    lanes low = lanes_exp(lanes_load(logits) * w->scale - w->top), high = {0};
    if (w->done + 1 < w->count)
        high = lanes_exp(lanes_load(logits + LANES) * w->scale - w->top);
    w->sum[0] += low;
    w->sum[1] += high;
    w->pair[at] = rounded_pair(low, high);
    w->done += 2;
    if (at == 15 || w->done >= w->count)
        put_pairs(w, at + 1);
}

static void soften(softening *w, int64_t pairs)
{
    for (; pairs > 0 && w->group < w->end; pairs--) {
        soften_pair(w);
        if (w->done < w->count)
            continue;
        close_group(w);
        if (++w->group < w->end)
            open_group(w);
    }
}

/* These come next; those before are finished now. Their logits are there. */
static void soften_next(softening *w, int64_t first, int64_t end)
{
    soften(w, INT64_MAX);
    w->group = first;
    w->end = end;
    if (first < end)
        open_group(w);
}

/* So many pairs at each of some steps, that all are done in the end. */
static int64_t pairs_of_step(const softening *w, int64_t steps)
{
    int64_t pairs = (w->end - w->group) * ((w->count + 1) / 2);
    return steps > 0 ? (pairs + steps - 1) / steps : 0;
}

/* ---- logits ---- */

/* A stripe of entries and two groups of heads -> two tiles of logits of each group. With each step some
 * pairs of other groups are softened. */
static void multiply_two(const room *r, const rows_of_tile *e, const uint16_t *q, float *y,
                         softening *w, int64_t pairs)
{
    const uint16_t *q1 = q + r->steps * TILE;
    float *y1 = y + ENTRIES * LANES;
    TILE_ZERO(0);
    TILE_ZERO(1);
    TILE_ZERO(2);
    TILE_ZERO(3);
    for (int64_t k = 0; k < r->steps; k++) {
        TILE_LOAD(4, e[0].row + k * DEPTH, e[0].stride);
        TILE_LOAD(6, q + k * TILE, TILE_BYTES);
        TILE_LOAD(5, e[1].row + k * DEPTH, e[1].stride);
        TILE_LOAD(7, q1 + k * TILE, TILE_BYTES);
        TILE_BF16(0, 4, 6);
        TILE_BF16(1, 5, 6);
        TILE_BF16(2, 4, 7);
        TILE_BF16(3, 5, 7);
        soften(w, pairs);
    }
    TILE_STORE(0, y, TILE_BYTES);
    TILE_STORE(1, y + SQUARE, TILE_BYTES);
    TILE_STORE(2, y1, TILE_BYTES);
    TILE_STORE(3, y1 + SQUARE, TILE_BYTES);
}

static void multiply_one(const room *r, const rows_of_tile *e, const uint16_t *q, float *y)
{
    TILE_ZERO(0);
    TILE_ZERO(1);
    for (int64_t k = 0; k < r->steps; k++) {
        TILE_LOAD(6, q + k * TILE, TILE_BYTES);
        TILE_LOAD(4, e[0].row + k * DEPTH, e[0].stride);
        TILE_LOAD(5, e[1].row + k * DEPTH, e[1].stride);
        TILE_BF16(0, 4, 6);
        TILE_BF16(1, 5, 6);
    }
    TILE_STORE(0, y, TILE_BYTES);
    TILE_STORE(1, y + SQUARE, TILE_BYTES);
}

/* All logits, without the factor of core_attn.logit.1. Of the last groups p is left to do. */
static void multiply_logits(const room *r, const rows_of_tile *e, softening *w)
{
    const int64_t stripes = (w->count + STRIPE - 1) / STRIPE;
    for (int64_t group = 0; group < r->groups; group += 2) {
        const uint16_t *q = r->q + group * r->steps * TILE;
        float *y = r->logits + group * ENTRIES * LANES;
        const int64_t pairs = pairs_of_step(w, stripes * r->steps);
        for (int64_t j = 0; j < stripes; j++)
            if (group + 1 < r->groups)
                multiply_two(r, e + 2 * j, q, y + j * 2 * SQUARE, w, pairs);
            else
                multiply_one(r, e + 2 * j, q, y + j * 2 * SQUARE);
        tiles_fence();
        soften_next(w, group, group + 2 < r->groups ? group + 2 : r->groups);
    }
}

/* ---- numerators ---- */

static inline const uint16_t *tile_of_pairs(const room *r, int64_t half, int64_t k)
{
    return r->pairs + (half * 2 * r->steps + 2 * k) * TILE;
}

/* 32 columns of two groups of heads; of one, below. */
static void add_two(const room *r, int64_t group, int64_t k, int64_t halves)
{
    float *y = r->out + (group * r->steps + k) * 2 * SQUARE, *y1 = y + 2 * r->steps * SQUARE;
    if (r->so_far->blocks_done == 0) {
        TILE_ZERO(0);
        TILE_ZERO(1);
        TILE_ZERO(2);
        TILE_ZERO(3);
    } else {
        TILE_LOAD(0, y, TILE_BYTES);
        TILE_LOAD(1, y + SQUARE, TILE_BYTES);
        TILE_LOAD(2, y1, TILE_BYTES);
        TILE_LOAD(3, y1 + SQUARE, TILE_BYTES);
    }
    for (int64_t half = 0; half < halves; half++) {
        const uint16_t *p = r->p + (group * 2 + half) * TILE, *e = tile_of_pairs(r, half, k);
        TILE_LOAD(4, p, TILE_BYTES);
        TILE_LOAD(6, e, TILE_BYTES);
        TILE_LOAD(7, e + TILE, TILE_BYTES);
        TILE_LOAD(5, p + 2 * TILE, TILE_BYTES);
        TILE_BF16(0, 4, 6);
        TILE_BF16(1, 4, 7);
        TILE_BF16(2, 5, 6);
        TILE_BF16(3, 5, 7);
    }
    TILE_STORE(0, y, TILE_BYTES);
    TILE_STORE(1, y + SQUARE, TILE_BYTES);
    TILE_STORE(2, y1, TILE_BYTES);
    TILE_STORE(3, y1 + SQUARE, TILE_BYTES);
}

static void add_one(const room *r, int64_t group, int64_t k, int64_t halves)
{
    float *y = r->out + (group * r->steps + k) * 2 * SQUARE;
    if (r->so_far->blocks_done == 0) {
        TILE_ZERO(0);
        TILE_ZERO(1);
    } else {
        TILE_LOAD(0, y, TILE_BYTES);
        TILE_LOAD(1, y + SQUARE, TILE_BYTES);
    }
    for (int64_t half = 0; half < halves; half++) {
        const uint16_t *p = r->p + (group * 2 + half) * TILE, *e = tile_of_pairs(r, half, k);
        TILE_LOAD(4, p, TILE_BYTES);
        TILE_LOAD(6, e, TILE_BYTES);
        TILE_LOAD(7, e + TILE, TILE_BYTES);
        TILE_BF16(0, 4, 6);
        TILE_BF16(1, 4, 7);
    }
    TILE_STORE(0, y, TILE_BYTES);
    TILE_STORE(1, y + SQUARE, TILE_BYTES);
}

/* The groups whose p is there come first. */
static void add_numerators(const room *r, softening *w)
{
    const int64_t halves = (w->count + STRIPE - 1) / STRIPE, last = (r->groups - 1) / 2 * 2;
    const int64_t pairs = pairs_of_step(w, last / 2 * r->steps);
    for (int64_t k = 0; k < r->steps; k++)
        for (int64_t group = 0; group < last; group += 2) {
            add_two(r, group, k, halves);
            soften(w, pairs);
        }
    soften_next(w, r->groups, r->groups);
    tiles_fence();
    for (int64_t k = 0; k < r->steps; k++)
        if (last + 1 < r->groups)
            add_two(r, last, k, halves);
        else
            add_one(r, last, k, halves);
}

static void block(const fast_softmax *s, const uint16_t *const *rows, int64_t count, void *scratch)
{
    const room r = place(scratch, s->heads, s->d);
    const int64_t all = rounded(count, STRIPE);
    const uint16_t *row[ENTRIES];
    rows_of_tile e[ENTRIES / TILE_ROWS];
    for (int64_t j = 0; j < all; j++) {
        row[j] = rows[j < count ? j : 0]; /* for one that is not there any other stands in: p is 0 */
        r.so_far->entries = both(r.so_far->entries, extent_of(row[j], s->d));
    }
    for (int64_t j = 0; j < all; j += TILE_ROWS)
        e[j / TILE_ROWS] = line_up(&r, row, j);
    for (int64_t j = 0; j < all; j += 2)
        pair_up(&r, row[j], row[j + 1], j / 2);
    softening w = {.r = &r, .scale = s->scale, .count = count};
    tiles_fence();
    multiply_logits(&r, e, &w);
    tiles_fence();
    add_numerators(&r, &w);
    tiles_fence();
    r.so_far->blocks_done++;
}

/* ---- the end ---- */

/* No sum of products of q and e is subnormal or infinite, and numerators are as above. */
static bool is_good(extent q, extent e, int64_t d)
{
    int log = 0;
    while (log < 62 && (int64_t)1 << log < d)
        log++;
    return q.bit + e.bit >= -126 && q.top + e.top + log <= 126 && e.bit >= LEAST && e.top <= MOST;
}

/* Numerators of a head, their columns in order again. */
static void put_out(const room *r, int64_t head, int64_t d, float *out)
{
    const __m512i first = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
    const __m512i last = _mm512_setr_epi32(8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30,
                                           31);
    const float *from = r->out + head / TILE_ROWS * 2 * r->steps * SQUARE + head % TILE_ROWS * LANES;
    for (int64_t i = 0; i < d; i += DEPTH, from += 2 * SQUARE) {
        __m512i low = _mm512_loadu_si512(from), high = _mm512_loadu_si512(from + SQUARE);
        __mmask32 mask = first_of(d - i);
        _mm512_mask_storeu_epi32(out + i, (__mmask16)mask, _mm512_permutex2var_epi32(low, first, high));
        if (mask >> 16 != 0)
            _mm512_mask_storeu_epi32(out + i + 16, (__mmask16)(mask >> 16),
                                     _mm512_permutex2var_epi32(low, last, high));
    }
}

static void end(const fast_softmax *s, void *scratch, bool *refused)
{
    const room r = place(scratch, s->heads, s->d);
    tiles_end();
    memcpy(s->maximum, r.maximum, (size_t)s->heads * sizeof *s->maximum);
    memcpy(s->denominator, r.denominator, (size_t)s->heads * sizeof *s->denominator);
    for (int64_t h = 0; h < s->heads; h++) {
        refused[h] = r.so_far->blocks_done == 0 || !is_good(r.of_q[h], r.so_far->entries, s->d);
        put_out(&r, h, s->d, s->out + h * s->d);
    }
}

/* ---- the self-check ---- */

enum { HEADS = 33, WIDTH = 72, LISTED = ENTRIES + 37 };

/* Small integers; the formula, in the order of the list. */
static bool head_is_good(const float *q, float (*e)[WIDTH], const fast_softmax *s, int64_t head)
{
    float logit[LISTED], top = -__builtin_inff(), denominator = 0, sum[WIDTH] = {0};
    for (int j = 0; j < LISTED; j++) {
        logit[j] = 0;
        for (int i = 0; i < WIDTH; i++)
            logit[j] += q[i] * e[j][i] * s->scale;
        top = logit[j] > top ? logit[j] : top;
    }
    for (int j = 0; j < LISTED; j++) {
        float p = lanes_exp(lanes_all(logit[j] - top))[0];
        denominator += p;
        for (int i = 0; i < WIDTH; i++)
            sum[i] += p * e[j][i];
    }
    float off = s->denominator[head] / denominator - 1;
    bool good = s->maximum[head] == top && off < 0x1p-16f && off > -0x1p-16f;
    for (int i = 0; i < WIDTH; i++) {
        off = (s->out[head * WIDTH + i] - sum[i]) / denominator; /* numbers of e are below 8 */
        good = good && off < 0x1p-5f && off > -0x1p-5f;
    }
    return good;
}

static bool works(void)
{
    enum { ROW = 3 * DEPTH + TAIL, SCRATCH = 1 << 15 };
    static const float factor = 0.125f;
    float q[HEADS * WIDTH], e[LISTED][WIDTH], out[HEADS * WIDTH];
    float maximum[HEADS], denominator[HEADS], scratch[SCRATCH];
    uint16_t rows[LISTED][ROW];
    const uint16_t *row[LISTED];
    bool refused[HEADS];
    const fast_softmax s = {.q = q, .heads = HEADS, .d = WIDTH, .scale = factor, .released = true,
                            .maximum = maximum, .denominator = denominator, .out = out};
    if (scratch_size(HEADS, WIDTH) > SCRATCH || row_size(WIDTH) > ROW)
        return false;
    for (int i = 0; i < HEADS * WIDTH; i++)
        q[i] = (float)(i * 29 % 13 - 6) / 4;
    for (int j = 0; j < LISTED; j++) {
        for (int i = 0; i < WIDTH; i++)
            e[j][i] = (float)((j * WIDTH + i) * 31 % 17 % 15 - 7);
        make_row(e[j], WIDTH, rows[j]);
        row[j] = rows[j * 5 % LISTED];
    }
    begin(&s, scratch);
    block(&s, row, ENTRIES, scratch);
    block(&s, row + ENTRIES, LISTED - ENTRIES, scratch);
    end(&s, scratch, refused);
    bool good = true;
    for (int h = 0; h < HEADS && good; h++)
        good = !refused[h] && head_is_good(q + h * WIDTH, e, &s, h);
    return good;
}

const fast_row_kernels TILES_NAME(fast_core_attn) = {
    .row_size = row_size, .row = make_row, .coded_row = make_coded_row, .scratch_size = scratch_size,
    .begin = begin, .block = block, .end = end, .works = works};

#endif
