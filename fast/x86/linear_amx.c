/* Products of many tokens with stored weights, by tile instructions: bf16 numbers times bf16 numbers,
 * summed in binary32.
 *
 * A left operand is 16 rows of weights, decoded row by row as they are stored; a right one is 16
 * tokens, arranged once for all rows. So no weight ever has to change its place; of the results,
 * which are few, rows and columns are exchanged.
 *
 * One output is summed in one order wherever it stands: 32 channels after 32, in the order of the
 * instruction within. Zeros fill up tiles. */
#include <immintrin.h>
#include <limits.h>
#include <string.h>

#include "fast/kernels.h"
#include "fast/x86/linear_bf16.h"
#include "fast/x86/tiles.h"

enum {
    BLOCK = TILE_ROWS * DEPTH,
    ROWS = 4 * TILE_ROWS,   /* of weights, at least, that are decoded at a time */
    PANEL = 17 << 15,       /* decoded weights that are kept, if they are more: 1 MB, of 2 that a core has */
    STAGGER = DEPTH         /* between decoded rows: they fall into different cache sets */
};

static int64_t blocks(int64_t cols)
{
    return (cols + DEPTH - 1) / DEPTH;
}

/* ---- inputs ---- */

static int64_t arranged_size(int64_t cols)
{
    return blocks(cols) * BLOCK;
}

static int arrange(const float *x, int64_t x_stride, int64_t tokens, int64_t cols, uint16_t *out)
{
    seen all = seen_none();
    __m512i lost = _mm512_setzero_si512();
    for (int64_t k = 0; k < cols; k += DEPTH, out += BLOCK) {
        __mmask32 mask = first_of(cols - k);
        __m512i v[16];
        for (int t = 0; t < TILE_ROWS; t++) {
            v[t] = _mm512_setzero_si512();
            if (t >= tokens)
                continue;
            __m512i low = load_floats(x + t * x_stride + k, mask, 0);
            __m512i high = load_floats(x + t * x_stride + k, mask, 1);
            lost = _mm512_or_si512(lost, _mm512_or_si512(low, high));
            v[t] = upper_halves(low, high);
            see(&all, v[t]);
        }
        exchange(v);
        for (int i = 0; i < TILE_ROWS; i++)
            _mm512_storeu_si512(out + i * DEPTH, v[i]);
    }
    bool exact = _mm512_test_epi32_mask(lost, _mm512_set1_epi32(0xffff)) == 0;
    return exact ? lowest_bit(&all) : UNUSABLE;
}

/* ---- weights ---- */

static int64_t panel_stride(const dsv4_matrix *w)
{
    return blocks(w->cols) * DEPTH + STAGGER;
}

static int64_t panel_rows(const dsv4_matrix *w)
{
    int64_t most = (w->rows + ROWS - 1) / ROWS, rows = PANEL / panel_stride(w) / ROWS;
    rows = rows > most ? most : rows;
    return ROWS * (rows > 1 ? rows : 1);
}

/* Up to whole ROWS, zeros. */
static void fill_up(const dsv4_matrix *w, int64_t rows, uint16_t *panel)
{
    const int64_t stride = panel_stride(w);
    for (; rows % ROWS != 0; rows++)
        memset(panel + rows * stride, 0, (size_t)stride * sizeof *panel);
}

/* Rows [begin, end), at most a panel; their lowest bit. */
static int decode(const dsv4_matrix *w, int64_t begin, int64_t end, uint16_t *panel)
{
    int least = NO_BIT;
    for (int64_t row = begin; row < end; row++) {
        int bit = decode_row(w, row, 0, w->cols, panel + (row - begin) * panel_stride(w));
        if (bit == UNUSABLE)
            return UNUSABLE;
        least = bit < least ? bit : least;
    }
    fill_up(w, end - begin, panel);
    return least;
}

/* ---- products ---- */

/* Results of a tile, before rows and columns are exchanged. */
typedef float results[TILE_ROWS][TILE_ROWS];

static inline void clear_sums(void)
{
    TILE_ZERO(0);
    TILE_ZERO(1);
    TILE_ZERO(2);
    TILE_ZERO(3);
}

static inline void store_sums(results y[4])
{
    TILE_STORE(0, y[0], TILE_BYTES);
    TILE_STORE(1, y[1], TILE_BYTES);
    TILE_STORE(2, y[2], TILE_BYTES);
    TILE_STORE(3, y[3], TILE_BYTES);
    tiles_fence();
}

/* To the sums of 32 rows of weights and 32 tokens, `count` times DEPTH channels. Strides count values. */
static inline void add_square(const uint16_t *w, int64_t stride, const uint16_t *x, int64_t x_stride,
                              int64_t count)
{
    const uint16_t *w1 = w + TILE_ROWS * stride, *x1 = x + x_stride;
    for (int64_t k = 0; k < count; k++) {
        TILE_LOAD(4, w + k * DEPTH, 2 * stride);
        TILE_LOAD(6, x + k * BLOCK, TILE_BYTES);
        TILE_LOAD(5, w1 + k * DEPTH, 2 * stride);
        TILE_LOAD(7, x1 + k * BLOCK, TILE_BYTES);
        TILE_BF16(0, 4, 6);
        TILE_BF16(1, 5, 6);
        TILE_BF16(2, 4, 7);
        TILE_BF16(3, 5, 7);
    }
}

/* The same of 64 rows of weights and 16 tokens. */
static inline void add_column(const uint16_t *w, int64_t stride, const uint16_t *x, int64_t count)
{
    const int64_t next = TILE_ROWS * stride;
    for (int64_t k = 0; k < count; k++, w += DEPTH, x += BLOCK) {
        TILE_LOAD(7, x, TILE_BYTES);
        TILE_LOAD(4, w, 2 * stride);
        TILE_LOAD(5, w + next, 2 * stride);
        TILE_LOAD(6, w + 2 * next, 2 * stride);
        TILE_BF16(0, 4, 7);
        TILE_LOAD(4, w + 3 * next, 2 * stride);
        TILE_BF16(1, 5, 7);
        TILE_BF16(2, 6, 7);
        TILE_BF16(3, 4, 7);
    }
}

/* The results of rows row .. end - 1, at most 16, and of tokens from t on. linear.round.1 */
static void put(const fast_product *p, const float *y, int64_t row, int64_t end, int64_t t)
{
    if (row >= end)
        return;
    const __mmask16 mask = (__mmask16)first_of(end - row < TILE_ROWS ? end - row : TILE_ROWS);
    int64_t tokens = p->T - t < TILE_ROWS ? p->T - t : TILE_ROWS;
    __m512i v[16];
    for (int i = 0; i < TILE_ROWS; i++)
        v[i] = _mm512_loadu_si512(y + i * TILE_ROWS);
    exchange(v);
    for (int64_t i = 0; i < tokens; i++) {
        __m512i value = v[i];
        if (p->round)
            value = _mm512_and_si512(round_up(value), _mm512_set1_epi32(INT_MIN >> 15));
        _mm512_mask_storeu_epi32(p->y + (t + i) * p->y_stride + row - p->first, mask, value);
    }
}

static inline void put_square(const fast_product *p, results y[4], int64_t row, int64_t end, int64_t t)
{
    for (int i = 0; i < 4; i++)
        put(p, y[i][0], row + i % 2 * TILE_ROWS, end, t + i / 2 * TILE_ROWS);
}

static inline void put_column(const fast_product *p, results y[4], int64_t row, int64_t end, int64_t t)
{
    for (int i = 0; i < 4; i++)
        put(p, y[i][0], row + i * TILE_ROWS, end, t);
}

/* Rows [begin, end), which stand in a panel. */
static void multiply(const fast_product *p, const uint16_t *panel, int64_t begin, int64_t end)
{
    const int64_t stride = panel_stride(p->w), count = blocks(p->w->cols);
    const int64_t x_stride = arranged_size(p->w->cols);
    _Alignas(64) results y[4];
    int64_t t = 0;
    tiles_fence();
    for (; t + TILE_ROWS < p->T; t += 2 * TILE_ROWS)
        for (int64_t row = begin; row < end; row += 2 * TILE_ROWS) {
            clear_sums();
            add_square(panel + (row - begin) * stride, stride,
                       p->arranged + t / TILE_ROWS * x_stride, x_stride, count);
            store_sums(y);
            put_square(p, y, row, end, t);
        }
    if (t >= p->T)
        return;
    for (int64_t row = begin; row < end; row += ROWS) {
        clear_sums();
        add_column(panel + (row - begin) * stride, stride, p->arranged + t / TILE_ROWS * x_stride,
                   count);
        store_sums(y);
        put_column(p, y, row, end, t);
    }
}

/* Few tokens: decoding takes longer than multiplying, and memory longer than both, so the three go side by
 * side. While a group of ROWS is decoded, the one before is multiplied, some steps after each row; sums
 * stay in their registers from one step to the next. */
enum { FEW = 2 * TILE_ROWS };

/* A group that is being multiplied. */
typedef struct {
    const fast_product *p;
    const uint16_t *panel;
    int64_t begin, end; /* its rows */
    int64_t row, k;     /* what comes next: rows from `row` on, block k */
} group;

static void advance(group *g, int64_t steps)
{
    const fast_product *p = g->p;
    const int64_t stride = panel_stride(p->w), count = blocks(p->w->cols);
    const bool column = p->T <= TILE_ROWS;
    _Alignas(64) results y[4];
    tiles_fence();
    while (steps > 0 && g->row < g->end) {
        const int64_t some = count - g->k < steps ? count - g->k : steps;
        const uint16_t *w = g->panel + (g->row - g->begin) * stride + g->k * DEPTH;
        const uint16_t *x = p->arranged + g->k * BLOCK;
        if (g->k == 0)
            clear_sums();
        if (column)
            add_column(w, stride, x, some);
        else
            add_square(w, stride, x, arranged_size(p->w->cols), some);
        g->k += some;
        steps -= some;
        if (g->k < count)
            break;
        store_sums(y);
        if (column)
            put_column(p, y, g->row, g->end, 0);
        else
            put_square(p, y, g->row, g->end, 0);
        g->row += column ? ROWS : 2 * TILE_ROWS;
        g->k = 0;
    }
    tiles_fence();
}

static bool multiply_few(const fast_product *p, int64_t begin, int64_t end, int input, uint16_t *panels)
{
    const int64_t stride = panel_stride(p->w), count = blocks(p->w->cols);
    const int64_t steps = (count * (p->T <= TILE_ROWS ? 1 : 2) + ROWS - 1) / ROWS;
    group before = {.p = p};
    bool second = false;
    for (int64_t row = begin; row < end; row += ROWS, second = !second) {
        uint16_t *panel = panels + (second ? ROWS * stride : 0);
        const int64_t last = end - row < ROWS ? end : row + ROWS;
        for (int64_t i = row; i < last; i++) {
            int bit = decode_row(p->w, i, 0, p->w->cols, panel + (i - row) * stride);
            if (bit == UNUSABLE || bit + input < LOWEST_NORMAL)
                return false;
            advance(&before, steps);
        }
        fill_up(p->w, last - row, panel);
        advance(&before, INT64_MAX);
        before = (group){p, panel, row, last, row, 0};
    }
    advance(&before, INT64_MAX);
    return true;
}

static bool multiply_many(const fast_product *p, int64_t begin, int64_t end, int input, uint16_t *panel)
{
    const int64_t most = panel_rows(p->w);
    for (int64_t row = begin; row < end; row += most) {
        int64_t last = end - row < most ? end : row + most;
        int bit = decode(p->w, row, last, panel);
        if (bit == UNUSABLE || bit + input < LOWEST_NORMAL)
            return false;
        multiply(p, panel, row, last);
    }
    return true;
}

static bool product(const fast_product *p, int64_t begin, int64_t end, float *scratch)
{
    int input = NO_BIT;
    for (int64_t i = 0; i < (p->T + TILE_ROWS - 1) / TILE_ROWS; i++)
        input = p->lowest_bit[i] < input ? p->lowest_bit[i] : input;
    if (input == UNUSABLE)
        return false;
    tiles_begin();
    bool good = p->T <= FEW ? multiply_few(p, begin, end, input, (uint16_t *)scratch)
                            : multiply_many(p, begin, end, input, (uint16_t *)scratch);
    tiles_end();
    return good;
}

static int64_t scratch_size(const fast_product *p)
{
    int64_t rows = panel_rows(p->w), few = p->w->rows > ROWS ? 2 * ROWS : ROWS;
    return (p->T <= FEW ? few : rows) * panel_stride(p->w) / 2;
}

/* ---- the self-check: integers, whose sums are exact in any order ---- */

enum { MOST_WEIGHTS = 1 << 16, MOST_ROWS = 128, MOST_COLS = 544, MOST_TOKENS = 48 };

/* Weight `i` of a row whose scale is 2^doublings, as stored and in units of 2^-9 (FP8), 1/2 (FP4), 1. */
static int store_weight(dsv4_dtype dtype, int64_t row, int64_t i, int64_t cols, unsigned char *data,
                        int doublings)
{
    static const int8_t halves[8] = {0, 1, 2, 3, 4, 6, 8, 12};
    const int64_t at = row * cols + i;
    const int number = (int)((uint32_t)at * 29 % 101 + (uint32_t)row);
    const int sign = number % 2 == 0 ? 1 : -1;
    if (dtype == DSV4_I8) {
        int code = number % 8, half = (code | (sign < 0 ? 8 : 0)) << (i % 2 == 0 ? 0 : 4);
        data[at / 2] = (unsigned char)(i % 2 == 0 ? half : data[at / 2] | half);
        return sign * (halves[code] << doublings);
    }
    if (dtype == DSV4_F8_E4M3) {
        int code = number % 64, exponent = code >> 3, part = code & 7;
        data[at] = (unsigned char)(code | (sign < 0 ? 0x80 : 0));
        return sign * ((exponent == 0 ? part : (8 + part) << (exponent - 1)) << doublings);
    }
    float value = (float)(sign * number);
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    uint16_t half = (uint16_t)(bits >> 16);
    memcpy(data + 2 * at, &half, sizeof half);
    return sign * number;
}

static bool rounds_to(float y, float exact, bool round)
{
    uint32_t bits;
    memcpy(&bits, &exact, sizeof bits);
    if (round)
        bits = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000;
    memcpy(&exact, &bits, sizeof exact);
    return y == exact;
}

static bool multiplies(dsv4_dtype dtype, int rows, int cols, int tokens, bool round)
{
    static const float unit_of[] = {[DSV4_BF16] = 1, [DSV4_F8_E4M3] = 0x1p-9f, [DSV4_I8] = 0.5f};
    unsigned char data[MOST_WEIGHTS] = {0};
    uint8_t scale[MOST_ROWS * MOST_COLS / DEPTH];
    int8_t x_of[MOST_TOKENS][MOST_COLS];
    int16_t weights[MOST_COLS];
    uint16_t arranged[(MOST_TOKENS / TILE_ROWS) * MOST_COLS * TILE_ROWS];
    float x[TILE_ROWS * MOST_COLS], y[MOST_ROWS * MOST_TOKENS];
    _Alignas(64) float scratch[MOST_WEIGHTS / 2];
    int lowest[MOST_TOKENS / TILE_ROWS];
    const int64_t block = dtype == DSV4_I8 ? DEPTH : 128, scales = (cols + block - 1) / block;
    dsv4_matrix w = {.dtype = dtype, .rows = rows, .cols = cols, .data = data,
                     .scale = dtype == DSV4_BF16 ? NULL : scale};
    for (int i = 0; i < (int)sizeof scale; i++)
        scale[i] = (uint8_t)(127 + i % 2);
    for (int64_t row = 0; row < rows; row++)
        for (int64_t i = 0; i < cols; i++)
            store_weight(dtype, row, i, cols, data, 0);
    for (int t = 0; t < tokens; t++)
        for (int i = 0; i < cols; i++)
            x_of[t][i] = (int8_t)((t * cols + i) * 31 % 27 - 13);
    fast_product p = {.w = &w, .round = round, .T = tokens, .y = y, .y_stride = rows,
                      .arranged = arranged, .lowest_bit = lowest};
    if (scratch_size(&p) > MOST_WEIGHTS / 2)
        return false;
    for (int t = 0; t < tokens; t += TILE_ROWS) {
        int some = tokens - t < TILE_ROWS ? tokens - t : TILE_ROWS;
        for (int i = 0; i < some * cols; i++)
            x[i] = x_of[t + i / cols][i % cols];
        lowest[t / TILE_ROWS] = arrange(x, cols, some, cols,
                                        arranged + t / TILE_ROWS * arranged_size(cols));
    }
    if (!product(&p, 0, rows, scratch))
        return false;
    for (int64_t row = 0; row < rows; row++) {
        for (int64_t i = 0; i < cols; i++) {
            int64_t at = (dtype == DSV4_I8 ? row : row / 128) * scales + i / block;
            weights[i] = (int16_t)store_weight(dtype, row, i, cols, data,
                                               w.scale == NULL ? 0 : scale[at] - 127);
        }
        for (int t = 0; t < tokens; t++) {
            int sum = 0;
            for (int i = 0; i < cols; i++)
                sum += weights[i] * x_of[t][i];
            if (!rounds_to(y[t * rows + row], (float)sum * unit_of[dtype], round))
                return false;
        }
    }
    return true;
}

/* Each way to store weights; squares and columns of tiles, alone and together; one step and many. */
static bool works(void)
{
    return multiplies(DSV4_BF16, 70, 40, 35, false) && multiplies(DSV4_BF16, 33, 32, 16, true) &&
           multiplies(DSV4_F8_E4M3, 40, 300, 17, false) && multiplies(DSV4_F8_E4M3, 128, 128, 5, true) &&
           multiplies(DSV4_I8, 34, 544, 20, false) && multiplies(DSV4_I8, 80, 96, 48, true);
}

const fast_tile_kernels fast_linear_amx = {
    .tokens = TILE_ROWS, .arranged_size = arranged_size, .arrange = arrange, .product = product,
    .scratch_size = scratch_size, .works = works};
