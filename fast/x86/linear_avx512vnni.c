/* Products of few tokens with FP4 weights, by instructions that multiply bytes (VNNI). An E2M1 code is
 * a whole number of halves; what was quantised to E4M3 is, within a block of 128, a power of two times
 * a whole number of 18 bits and a sign. That number is written with three digits of base 256, each of
 * -128 .. 127; most often two will do, for a block seldom holds numbers that are so much smaller than
 * its largest. So sums are those of integers, exact, until a block's scale turns them into binary32.
 *
 * The bytes of one side have no sign: 12 is added to every weight, and 12 times the sum of the inputs
 * taken away at the end.
 *
 * One output is summed in one order wherever it stands: lane l of a vector takes 8 weights of every
 * block of 128, from place 8 l on; the blocks follow one another; the lanes are added at the end.
 * There are whole blocks only, for quantised inputs have no others. */
#include <immintrin.h>
#include <limits.h>
#include <string.h>

#include "fast/kernels.h"
#include "fast/x86/bf16.h"
#include "fast/x86/linear_few.h"

enum {
    BLOCK = 128,     /* weights: 64 bytes. Of inputs, what has one scale: linear.quant.1 */
    OFFSET = 12,     /* of weights, in halves */
    BITS = 18,       /* of the largest input */
    DIGITS = 3,
    SPARE = 3,       /* the lowest bits, without which two digits are enough .. */
    TWO_MOST = 0x7f7f << SPARE /* .. up to here; E4M3 has no more than 15 x 2^14 */
};

/* A block of inputs. Bytes of `even` meet the low halves of a block's bytes, those of `odd` the high. */
typedef struct {
    struct { int8_t even[64], odd[64]; } digit[DIGITS]; /* the highest first */
    int32_t offset[16];
} input_block;

/* After the blocks of an input come the exponents of their units, each four times, as a block has four
 * scales of weights, and then the numbers of their digits. */
static int64_t blocks(int64_t cols)
{
    return cols / BLOCK;
}

static int64_t arranged_size(int64_t cols)
{
    return blocks(cols) * (int64_t)(sizeof(input_block) + 5 * sizeof(int32_t)) / 2;
}

static const int32_t *exponents(const uint16_t *arranged, int64_t cols)
{
    return (const int32_t *)((const input_block *)arranged + blocks(cols));
}

static const int32_t *digits_of(const uint16_t *arranged, int64_t cols)
{
    return exponents(arranged, cols) + 4 * blocks(cols);
}

/* The exponent of the largest of a block's values; INT_MIN where all are 0, INT_MAX where one is no
 * number that can be used. */
static int largest_exponent(const __m512 v[8])
{
    const __m512i magnitude = _mm512_set1_epi32(INT_MAX);
    __m512i largest = _mm512_setzero_si512();
    for (int i = 0; i < 8; i++)
        largest = _mm512_max_epu32(largest, _mm512_and_si512((__m512i)v[i], magnitude));
    unsigned bits = _mm512_reduce_max_epu32(largest);
    if (bits == 0)
        return INT_MIN;
    return bits < 0x00800000 || bits >= 0x7f800000 ? INT_MAX : (int)(bits >> 23) - 127;
}

/* 16 whole numbers to their digits; carries go up. */
static void split(__m512i x, __m128i digit[DIGITS])
{
    for (int i = DIGITS; i-- > 0;) {
        digit[i] = _mm512_cvtepi32_epi8(x);
        x = _mm512_srai_epi32(_mm512_add_epi32(x, _mm512_set1_epi32(128)), 8);
    }
}

/* A block's values -> out; the number of digits, or 0 where they are not whole numbers of units. */
static int arrange_block(const __m512 v[8], int exponent, input_block *out)
{
    const __m512i even =
        _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
    const __m512 to_units = _mm512_set1_ps((float)(BITS - 1 - exponent));
    __mmask16 inexact = 0, large = 0;
    __m512i bits = _mm512_setzero_si512();
    int32_t whole[BLOCK];
    for (int i = 0; i < 8; i++) {
        __m512 units = _mm512_scalef_ps(v[i], to_units);
        __m512i number = _mm512_cvtps_epi32(units);
        inexact |= _mm512_cmp_ps_mask(_mm512_cvtepi32_ps(number), units, _CMP_NEQ_UQ);
        bits = _mm512_or_si512(bits, number);
        large |= _mm512_cmpgt_epi32_mask(_mm512_abs_epi32(number), _mm512_set1_epi32(TWO_MOST));
        _mm512_storeu_si512(whole + 16 * i, number);
    }
    const bool two =
        large == 0 && _mm512_test_epi32_mask(bits, _mm512_set1_epi32((1 << SPARE) - 1)) == 0;
    for (int i = 0; i < BLOCK && two; i++)
        whole[i] /= 1 << SPARE;
    for (int i = 0; i < 4; i++) {
        __m512i low = _mm512_loadu_si512(whole + 32 * i), high = _mm512_loadu_si512(whole + 32 * i + 16);
        __m128i digit[DIGITS];
        split(_mm512_permutex2var_epi32(low, even, high), digit);
        for (int j = 0; j < DIGITS; j++)
            _mm_storeu_si128((__m128i_u *)(out->digit[j].even + 16 * i), digit[j]);
        split(_mm512_permutex2var_epi32(low, odd, high), digit);
        for (int j = 0; j < DIGITS; j++)
            _mm_storeu_si128((__m128i_u *)(out->digit[j].odd + 16 * i), digit[j]);
    }
    for (int i = 0; i < 16; i++) {
        int32_t sum = 0;
        for (int j = 0; j < 8; j++)
            sum += whole[8 * i + j];
        out->offset[i] = -OFFSET * sum;
    }
    return inexact != 0 ? 0 : two ? 2 : DIGITS;
}

/* One token. */
static int arrange(const float *x, int64_t x_stride, int64_t tokens, int64_t cols, uint16_t *arranged)
{
    input_block *out = (input_block *)arranged;
    int32_t *exponent = (int32_t *)(out + blocks(cols)), *digits = exponent + 4 * blocks(cols);
    (void)x_stride;
    (void)tokens;
    for (int64_t i = 0; i < cols; i += BLOCK, out++, exponent += 4, digits++) {
        __m512 v[8];
        for (int j = 0; j < 8; j++)
            v[j] = _mm512_loadu_ps(x + i + 16 * j);
        int largest = largest_exponent(v);
        if (largest == INT_MAX)
            return INT_MIN;
        if (largest == INT_MIN)
            largest = 0;
        *digits = arrange_block(v, largest, out);
        if (*digits == 0)
            return INT_MIN;
        for (int j = 0; j < 4; j++) /* weights are counted in halves */
            exponent[j] = largest - (BITS - 1) - 1 + (*digits == 2 ? SPARE : 0);
    }
    return 0;
}

/* Whether all of the scales of rows begin .. end - 1 times a token's units are normal numbers that
 * cannot lead out of binary32. */
static bool scales_fit(const dsv4_matrix *w, int64_t begin, int64_t end, const int32_t *unit)
{
    enum { LEAST = 1, MOST = 254 - 64, NOT_A_NUMBER = 255 };
    const uint8_t *scales = w->scale + begin * (w->cols / 32);
    const bytes_range range = range_of_bytes(scales, (end - begin) * (w->cols / 32));
    int least = unit[0], most = unit[0];
    for (int64_t i = 0; i < w->cols / 32; i++) {
        least = unit[i] < least ? unit[i] : least;
        most = unit[i] > most ? unit[i] : most;
    }
    return range.least + least >= LEAST && range.most + most <= MOST && range.most != NOT_A_NUMBER;
}

/* A row's scales times the units of a token -> out [cols / 32]. quant.e8m0.1 */
static void scale_units(const dsv4_matrix *w, int64_t row, const int32_t *unit, float *out)
{
    const int64_t count = w->cols / 32;
    const uint8_t *scales = w->scale + row * count;
    int64_t i = 0;
    for (; i + 16 <= count; i += 16) {
        __m512i code = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i_u *)(scales + i)));
        __m512i sum = _mm512_add_epi32(code, _mm512_loadu_si512(unit + i));
        _mm512_storeu_si512(out + i, _mm512_slli_epi32(sum, 23));
    }
    for (; i < count; i++) {
        int32_t bits = (scales[i] + unit[i]) << 23;
        memcpy(out + i, &bits, sizeof bits);
    }
}

/* The sums of a block, quant.e2m1.1, quant.fp4.1. `digits`: a constant, 2 or 3. */
static inline __attribute__((always_inline)) __m512i sums(__m512i bytes, const input_block *x, int digits)
{
    const __m512i table = _mm512_broadcast_i32x4(
        _mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0));
    const __m512i half = _mm512_set1_epi8(15);
    __m512i even = _mm512_shuffle_epi8(table, _mm512_and_si512(bytes, half));
    __m512i odd = _mm512_shuffle_epi8(table, _mm512_and_si512(_mm512_srli_epi16(bytes, 4), half));
    /* Short chains, one for each digit. */
    __m512i sum[DIGITS] = {_mm512_setzero_si512(), _mm512_setzero_si512(),
                           _mm512_loadu_si512(x->offset)};
#pragma GCC unroll 3
    for (int i = DIGITS - digits; i < DIGITS; i++)
        sum[i] = _mm512_dpbusd_epi32(sum[i], even, _mm512_loadu_si512(x->digit[i].even));
#pragma GCC unroll 3
    for (int i = DIGITS - digits; i < DIGITS; i++)
        sum[i] = _mm512_dpbusd_epi32(sum[i], odd, _mm512_loadu_si512(x->digit[i].odd));
    sum[2] = _mm512_add_epi32(sum[2], _mm512_slli_epi32(sum[1], 8));
    return digits == 2 ? sum[2] : _mm512_add_epi32(sum[2], _mm512_slli_epi32(sum[0], 16));
}

/* The scales of a block's four parts, each for four lanes. */
static inline __m512 spread(const float *scales)
{
    const __m512i place = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
    return _mm512_permutexvar_ps(place, _mm512_broadcast_f32x4(_mm_loadu_ps(scales)));
}

/* What a block of `rows` rows adds to their sums. Rows follow one another: the next group is one stretch,
 * of which every step fetches its share. `rows` and `digits` are constants. */
static inline __attribute__((always_inline)) void add_block(const unsigned char *data, int64_t bytes,
                                                            int rows, const input_block *x,
                                                            int digits, const float *scales,
                                                            int64_t room, __m512 *sum)
{
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++) {
        __m512i codes = _mm512_loadu_si512(data + r * bytes);
        sum[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums(codes, x, digits)),
                                 spread(scales + r * room), sum[r]);
    }
}

/* `rows` rows, a constant, from row `row` on, and one token. scales [rows, cols / 32]. */
static inline __attribute__((always_inline)) void dots(const fast_product *p, int rows, int64_t row,
                                                       int64_t t, const uint16_t *arranged,
                                                       const float *scales)
{
    const int64_t cols = p->w->cols, bytes = cols / 2, room = cols / 32;
    const unsigned char *data = (const unsigned char *)p->w->data + row * bytes;
    const unsigned char *next = fast_ahead(data, rows * bytes);
    const input_block *x = (const input_block *)arranged;
    const int32_t *digits = digits_of(arranged, cols);
    __m512 sum[GROUP];
    for (int r = 0; r < rows; r++)
        sum[r] = _mm512_setzero_ps();
    for (int64_t i = 0; i < blocks(cols); i++, data += 64, next += 64 * rows, scales += 4) {
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++)
            __builtin_prefetch(next + 64 * r, 0, 2);
        if (digits[i] == 2)
            add_block(data, bytes, rows, x + i, 2, scales, room, sum);
        else
            add_block(data, bytes, rows, x + i, DIGITS, scales, room, sum);
    }
    put_sums(p, t, row, rows, sum);
}

static bool product(const fast_product *p, int64_t begin, int64_t end, float *scales)
{
    const int64_t cols = p->w->cols, room = cols / 32, size = arranged_size(cols);
    for (int64_t t = 0; t < p->T; t++)
        if (p->lowest_bit[t] == INT_MIN ||
            !scales_fit(p->w, begin, end, exponents(p->arranged + t * size, cols)))
            return false;
    int rows;
    for (int64_t row = begin; row < end; row += rows) {
        rows = row + GROUP <= end ? GROUP : 1;
        for (int64_t t = 0; t < p->T; t++) {
            const uint16_t *x = p->arranged + t * size;
            for (int r = 0; r < rows; r++)
                scale_units(p->w, row + r, exponents(x, cols), scales + r * room);
            if (rows == GROUP)
                dots(p, GROUP, row, t, x, scales);
            else
                dots(p, 1, row, t, x, scales);
        }
    }
    return true;
}

static int64_t scratch_size(const fast_product *p)
{
    return GROUP * (p->w->cols / 32);
}

const fast_tile_kernels fast_linear_avx512vnni = {
    .tokens = 1, .arranged_size = arranged_size, .arrange = arrange, .product = product,
    .scratch_size = scratch_size};
