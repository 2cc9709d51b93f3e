/* Products of few tokens with FP8 weights, by instructions that multiply pairs of bf16 numbers and add them to
 * binary32 sums. Weights come from memory, once; what counts is how few instructions there are between. A
 * table turns codes into bf16 numbers, and the places in which these come out are those in which inputs are
 * arranged. The scales go to the inputs, for 128 rows alike.
 *
 * One output is summed in one order wherever it stands: lane l of a vector takes the pairs of the places
 * 16 (l / 4) + 2 (l % 4) of 64 columns, then those 8 further on; the lanes are added at the end. */
#include <immintrin.h>
#include <string.h>

#include "fast/kernels.h"
#include "fast/x86/bf16.h"
#include "fast/x86/linear_few.h"

enum {
    STEP = 64,    /* codes of one vector */
    BLOCK = 128,  /* rows, and columns, that have one scale */
    TOKENS = 4,   /* at once */
    LOW = 10,     /* of scales: weights are normal numbers .. */
    HIGH = 246,   /* .. and finite */
    HIGHEST = 100 /* of inputs times scales: no sum leaves binary32 */
};

/* ---- inputs: an extent, then the numbers ---- */

static int64_t arranged_size(int64_t cols)
{
    return DEPTH + cols;
}

static extent extent_of(const uint16_t *arranged)
{
    extent e;
    memcpy(&e, arranged, sizeof e);
    return e;
}

/* One token. */
static int arrange(const float *x, int64_t x_stride, int64_t tokens, int64_t cols, uint16_t *out)
{
    seen all = seen_none();
    __m512i lost = _mm512_setzero_si512();
    uint16_t *numbers = out + DEPTH;
    (void)x_stride;
    (void)tokens;
    for (int64_t i = 0; i < cols; i += STEP) {
        __m512i v[2];
        for (int j = 0; j < 2; j++) {
            __m512i low = _mm512_loadu_si512(x + i + j * DEPTH);
            __m512i high = _mm512_loadu_si512(x + i + j * DEPTH + 16);
            v[j] = upper_halves(low, high);
            lost = _mm512_or_si512(lost, _mm512_or_si512(low, high));
            see(&all, v[j]);
        }
        _mm512_storeu_si512(numbers + i, _mm512_shuffle_i32x4(v[0], v[1], _MM_SHUFFLE(2, 0, 2, 0)));
        _mm512_storeu_si512(numbers + i + DEPTH, _mm512_shuffle_i32x4(v[0], v[1], _MM_SHUFFLE(3, 1, 3, 1)));
    }
    bool exact = _mm512_test_epi32_mask(lost, _mm512_set1_epi32(0xffff)) == 0;
    extent e = exact ? extent_seen(&all) : unusable;
    memcpy(out, &e, sizeof e);
    return e.bit;
}

/* Inputs times the scales of the rows like `row` -> out [T, cols]. False where an operand or a product may not
 * be a normal number. quant.e8m0.1, quant.fp8.1 */
static bool scale_inputs(const fast_product *p, int64_t row, uint16_t *out)
{
    const int64_t cols = p->w->cols, count = cols / BLOCK;
    const uint8_t *scales = p->w->scale + row / BLOCK * count;
    const bytes_range range = range_of_bytes(scales, count);
    if (range.least < LOW || range.most > HIGH)
        return false;
    for (int64_t t = 0; t < p->T; t++) {
        const uint16_t *x = p->arranged + t * arranged_size(cols);
        const extent e = extent_of(x);
        if (e.bit == UNUSABLE || e.bit + range.least - 127 - 9 < LOWEST_NORMAL ||
            e.top + range.most - 127 > HIGHEST)
            return false;
        for (int64_t i = 0; i < cols; i += DEPTH) {
            const __m512i exponent = _mm512_set1_epi16((short)((scales[i / BLOCK] - 127) * 128));
            const __m512i v = _mm512_loadu_si512(x + DEPTH + i);
            const __mmask32 numbers = _mm512_test_epi16_mask(v, _mm512_set1_epi16(0x7fff));
            _mm512_storeu_si512(out + t * cols + i, _mm512_mask_add_epi16(v, numbers, v, exponent));
        }
    }
    return true;
}

/* ---- weights: quant.e4m3.1 ---- */

/* The upper and the lower bytes of the numbers that the 128 magnitudes stand for; NaN is one. */
typedef struct { __m512i upper[2], lower[2]; } fp8_table;

static fp8_table fp8_numbers(void)
{
    const __m512i one = _mm512_set1_epi16(127 << 7);
    const __m512i bias = _mm512_sub_epi16(one, _mm512_set1_epi16(7 << 7)), small = small_fp8(one);
    uint8_t codes[BLOCK], upper[BLOCK], lower[BLOCK];
    for (int i = 0; i < BLOCK; i++)
        codes[i] = (uint8_t)i;
    for (int i = 0; i < BLOCK; i += DEPTH) {
        __m512i v = any_fp8(_mm256_loadu_si256((const __m256i_u *)(codes + i)), bias, small);
        _mm256_storeu_si256((__m256i_u *)(upper + i), _mm512_cvtepi16_epi8(_mm512_srli_epi16(v, 8)));
        _mm256_storeu_si256((__m256i_u *)(lower + i), _mm512_cvtepi16_epi8(v));
    }
    upper[BLOCK - 1] = 0x7f;
    lower[BLOCK - 1] = 0xc0;
    return (fp8_table){{_mm512_loadu_si512(upper), _mm512_loadu_si512(upper + STEP)},
                       {_mm512_loadu_si512(lower), _mm512_loadu_si512(lower + STEP)}};
}

/* 64 codes -> 64 numbers: of every 16 the first 8, and the others. */
static inline void decode(const fp8_table *table, const unsigned char *data, __m512bh w[2])
{
    enum { A_OR_B_AND_C = 0xf8 };
    const __m512i codes = _mm512_loadu_si512(data), sign = _mm512_set1_epi8(-128);
    __m512i lower = _mm512_permutex2var_epi8(table->lower[0], codes, table->lower[1]);
    __m512i upper = _mm512_permutex2var_epi8(table->upper[0], codes, table->upper[1]);
    upper = _mm512_ternarylogic_epi32(upper, codes, sign, A_OR_B_AND_C);
    w[0] = (__m512bh)_mm512_unpacklo_epi8(lower, upper);
    w[1] = (__m512bh)_mm512_unpackhi_epi8(lower, upper);
}

/* `rows` rows from row `row` on and `tokens` tokens, constants both. x [tokens, cols] */
static inline __attribute__((always_inline)) void dots(const fast_product *p, const fp8_table *table, int rows,
                                                       int tokens, int64_t row, int64_t t, const uint16_t *x)
{
    const int64_t cols = p->w->cols;
    const unsigned char *data = (const unsigned char *)p->w->data + row * cols;
    const unsigned char *next = fast_ahead(data, rows * cols);
    __m512 sum[TOKENS][GROUP];
#pragma GCC unroll 4
    for (int i = 0; i < tokens; i++)
        for (int r = 0; r < rows; r++)
            sum[i][r] = _mm512_setzero_ps();
    for (int64_t k = 0; k < cols; k += STEP, next += rows * STEP) {
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++) {
            __m512bh w[2];
            __builtin_prefetch(next + r * STEP, 0, 2);
            decode(table, data + r * cols + k, w);
#pragma GCC unroll 4
            for (int i = 0; i < tokens; i++) {
                const uint16_t *from = x + i * cols + k;
                sum[i][r] = _mm512_dpbf16_ps(sum[i][r], w[0], (__m512bh)_mm512_loadu_si512(from));
                sum[i][r] = _mm512_dpbf16_ps(sum[i][r], w[1], (__m512bh)_mm512_loadu_si512(from + DEPTH));
            }
        }
    }
    for (int i = 0; i < tokens; i++)
        put_sums(p, t + i, row, rows, sum[i]);
}

/* ---- products ---- */

static void dots_of_group(const fast_product *p, const fp8_table *table, int64_t row, const uint16_t *x)
{
    const int64_t cols = p->w->cols;
    int64_t t = 0;
    for (; t + 4 <= p->T; t += 4)
        dots(p, table, GROUP, 4, row, t, x + t * cols);
    for (; t + 2 <= p->T; t += 2)
        dots(p, table, GROUP, 2, row, t, x + t * cols);
    for (; t < p->T; t++)
        dots(p, table, GROUP, 1, row, t, x + t * cols);
}

static bool product(const fast_product *p, int64_t begin, int64_t end, float *scratch)
{
    const fp8_table table = fp8_numbers();
    uint16_t *x = (uint16_t *)scratch;
    int64_t last;
    for (int64_t row = begin; row < end; row = last) {
        last = (row / BLOCK + 1) * BLOCK < end ? (row / BLOCK + 1) * BLOCK : end;
        if (!scale_inputs(p, row, x))
            return false;
        for (; row + GROUP <= last; row += GROUP)
            dots_of_group(p, &table, row, x);
        for (; row < last; row++)
            for (int64_t t = 0; t < p->T; t++)
                dots(p, &table, 1, 1, row, t, x + t * p->w->cols);
    }
    return true;
}

static int64_t scratch_size(const fast_product *p)
{
    return p->T * p->w->cols / 2;
}

const fast_tile_kernels fast_linear_avx512vbmi = {
    .tokens = 1, .arranged_size = arranged_size, .arrange = arrange, .product = product,
    .scratch_size = scratch_size};
