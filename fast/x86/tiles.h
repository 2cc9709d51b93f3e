/* Tile registers (AMX), 0 to 7, each of 16 rows of 64 bytes here: the instructions or, with
 * DSV4_EMULATE_AMX, plain C with the semantics that their manual gives, so that kernels can be tested on
 * machines without them. With DSV4_TILES_OF_VECTORS, what AVX-512 BF16 can do for machines that have that only.
 * Registers are named by literals.
 *
 *     tiles_begin()               at the start of a piece of work, on the thread that does it
 *     TILE_ZERO(c)
 *     TILE_LOAD(t, from, stride)  16 rows of 64 bytes, `stride` bytes apart
 *     TILE_STORE(t, to, stride)
 *     TILE_BF16(c, a, b)          c += a b, binary32: 16 rows of 32 bf16 numbers times 32 x 16, b with
 *                                 the rows 2i and 2i + 1 in turn in its row i
 *     tiles_end()
 *
 * Between stores to memory and TILE_LOAD, and between TILE_STORE and loads, has to be a
 * tiles_fence(): to some compilers these are instructions that touch no memory. */
#ifndef DSV4_FAST_TILES_H
#define DSV4_FAST_TILES_H

#include <stdint.h>

enum { TILE_ROWS = 16, TILE_BYTES = 64 };

typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t bytes[16]; /* of a row */
    uint8_t rows[16];
} tile_config;

#define TILE_EACH(x) {x, x, x, x, x, x, x, x}
static const tile_config tile_shapes = {
    .palette = 1, .bytes = TILE_EACH(TILE_BYTES), .rows = TILE_EACH(TILE_ROWS)};
_Static_assert(sizeof tile_shapes == 64, "what the instruction reads");

static inline void tiles_fence(void)
{
    __asm__ volatile("" ::: "memory");
}

#if defined DSV4_TILES_OF_VECTORS

#include <immintrin.h>
#include <string.h>

/* Tiles without tile instructions, by those that multiply pairs of bf16 numbers: sums stay in the first
 * cache, and operands are read from where they were to be loaded from. Order of summing: that of the pairs. */
enum { SUMS = 4 }; /* tiles 0 .. SUMS - 1; the others are operands */

static _Thread_local struct {
    __m512 sum[SUMS][TILE_ROWS];
    struct { const char *at; int64_t stride; } operand[8];
} tile_state;

static inline void vectors_zero(int t)
{
    for (int i = 0; i < TILE_ROWS; i++)
        tile_state.sum[t][i] = _mm512_setzero_ps();
}

static inline void vectors_load(int t, const void *from, int64_t stride)
{
    if (t >= SUMS) {
        tile_state.operand[t].at = from;
        tile_state.operand[t].stride = stride;
        return;
    }
    for (int i = 0; i < TILE_ROWS; i++)
        tile_state.sum[t][i] = _mm512_loadu_ps((const char *)from + i * stride);
}

static inline void vectors_store(int t, void *to, int64_t stride)
{
    for (int i = 0; i < TILE_ROWS; i++)
        _mm512_storeu_ps((char *)to + i * stride, tile_state.sum[t][i]);
}

static inline void vectors_multiply(int c, int a, int b)
{
    const char *left = tile_state.operand[a].at, *right = tile_state.operand[b].at;
    const int64_t stride = tile_state.operand[a].stride, next = tile_state.operand[b].stride;
    __m512 sum[TILE_ROWS];
#pragma GCC unroll 16
    for (int i = 0; i < TILE_ROWS; i++)
        sum[i] = tile_state.sum[c][i];
    for (int k = 0; k < TILE_ROWS; k++) {
        const __m512bh row = (__m512bh)_mm512_loadu_si512(right + k * next);
#pragma GCC unroll 16
        for (int i = 0; i < TILE_ROWS; i++) {
            int pair;
            memcpy(&pair, left + i * stride + 4 * k, sizeof pair);
            sum[i] = _mm512_dpbf16_ps(sum[i], (__m512bh)_mm512_set1_epi32(pair), row);
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < TILE_ROWS; i++)
        tile_state.sum[c][i] = sum[i];
}

#define tiles_begin() ((void)0)
#define tiles_end() ((void)0)
#define TILE_ZERO(c) vectors_zero(c)
#define TILE_LOAD(t, from, stride) vectors_load(t, from, stride)
#define TILE_STORE(t, to, stride) vectors_store(t, to, stride)
#define TILE_BF16(c, a, b) vectors_multiply(c, a, b)

#elif !defined DSV4_EMULATE_AMX

#include <immintrin.h>

/* The fence and the constant: gcc 12 believes that only 8 bytes are read. */
static inline void tiles_begin(void)
{
    tiles_fence();
    _tile_loadconfig(&tile_shapes);
}

static inline void tiles_end(void)
{
    _tile_release();
}

#define TILE_ZERO(c) _tile_zero(c)
#define TILE_LOAD(t, from, stride) _tile_loadd(t, from, stride)
#define TILE_STORE(t, to, stride) _tile_stored(t, to, stride)
#define TILE_BF16(c, a, b) _tile_dpbf16ps(c, a, b)

#else

#include <math.h>
#include <stdlib.h>
#include <string.h>

static _Thread_local struct {
    tile_config config;
    unsigned char tile[8][TILE_ROWS][TILE_BYTES];
} tile_state;

static inline void emulated_begin(void)
{
    memset(&tile_state, 0, sizeof tile_state);
    tile_state.config = tile_shapes;
}

static inline void emulated_end(void)
{
    memset(&tile_state, 0, sizeof tile_state);
}

/* What would be an invalid instruction. */
static inline void tile_demand(int good)
{
    if (!good)
        abort();
}

static inline void tile_zero(int t)
{
    tile_demand(tile_state.config.palette == 1);
    memset(tile_state.tile[t], 0, sizeof tile_state.tile[t]);
}

static inline void tile_load(int t, const void *from, int64_t stride)
{
    tile_zero(t);
    for (int i = 0; i < tile_state.config.rows[t]; i++)
        memcpy(tile_state.tile[t][i], (const char *)from + i * stride, tile_state.config.bytes[t]);
}

static inline void tile_store(int t, void *to, int64_t stride)
{
    tile_demand(tile_state.config.palette == 1);
    for (int i = 0; i < tile_state.config.rows[t]; i++)
        memcpy((char *)to + i * stride, tile_state.tile[t][i], tile_state.config.bytes[t]);
}

/* Subnormal numbers are zero, going in and coming out, whatever the thread's settings. */
static inline float tile_flush(float x)
{
    return fabsf(x) < 0x1p-126f ? copysignf(0, x) : x;
}

static inline float tile_bf16(int t, int row, int i)
{
    uint16_t half;
    memcpy(&half, tile_state.tile[t][row] + 2 * i, sizeof half);
    uint32_t bits = (uint32_t)half << 16;
    float x;
    memcpy(&x, &bits, sizeof x);
    return tile_flush(x);
}

/* Of every output the even products and the odd ones are summed by themselves, then together, then
 * added to what was there. */
static inline void tile_multiply(int c, int a, int b)
{
    const tile_config *config = &tile_state.config;
    int rows = config->rows[c], pairs = config->bytes[a] / 4, outputs = config->bytes[c] / 4;
    tile_demand(config->palette == 1 && rows == config->rows[a] && pairs == config->rows[b] &&
                config->bytes[c] == config->bytes[b]);
    float right[TILE_BYTES / 2][TILE_ROWS];
    for (int k = 0; k < 2 * pairs; k++)
        for (int n = 0; n < outputs; n++)
            right[k][n] = tile_bf16(b, k / 2, 2 * n + k % 2);
    for (int m = 0; m < rows; m++) {
        float sum[2][TILE_ROWS] = {{0}}, y[TILE_ROWS];
        memcpy(y, tile_state.tile[c][m], sizeof y);
        for (int k = 0; k < 2 * pairs; k++) {
            float left = tile_bf16(a, m, k);
            for (int n = 0; n < outputs; n++)
                sum[k % 2][n] = tile_flush(fmaf(left, right[k][n], sum[k % 2][n]));
        }
        for (int n = 0; n < outputs; n++)
            y[n] = tile_flush(tile_flush(y[n]) + tile_flush(sum[0][n] + sum[1][n]));
        memcpy(tile_state.tile[c][m], y, sizeof y);
    }
}

#define tiles_begin emulated_begin
#define tiles_end emulated_end
#define TILE_ZERO(c) tile_zero(c)
#define TILE_LOAD(t, from, stride) tile_load(t, from, stride)
#define TILE_STORE(t, to, stride) tile_store(t, to, stride)
#define TILE_BF16(c, a, b) tile_multiply(c, a, b)

#endif

#endif
