/* Products of many tokens with stored weights, by instructions that multiply pairs of bf16 numbers and add
 * them to binary32 sums.
 *
 * 32 rows of weights stand side by side, two columns of a row in one lane: of each token the same two are
 * spread over all lanes. So weights change their place, once for all tokens, and neither inputs nor results
 * do; there may be any number of tokens without a lane being idle.
 *
 * One output is summed in one order wherever it stands: the pairs of 256 columns one after another, in the
 * order of the instruction, and such sums one after another. Weights are decoded for as many columns, which
 * the first cache holds beside the inputs of 12 tokens. */
#include <immintrin.h>
#include <string.h>

#include "fast/kernels.h"
#include "fast/x86/linear_bf16.h"

enum {
    SLICE = 256,     /* columns that are decoded at a time */
    LANES = 16,
    ROWS = 2 * LANES, /* in one go */
    PASS = 2 * ROWS,  /* of inputs over all slices */
    TOKENS = 12,     /* whose sums fit into registers */
    MANY = 64,       /* from which on a pass over the inputs takes longer than decoding */
    STAGGER = DEPTH, /* between decoded rows: they fall into different cache sets */
    CHUNK = 128      /* weights of FP4 in one vector */
};

static int64_t least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* To whole vectors of bf16 numbers. */
static int64_t padded(int64_t cols)
{
    return (cols + DEPTH - 1) / DEPTH * DEPTH;
}

/* ---- inputs: slices of 12 tokens, one after another ---- */

static int64_t arranged_size(int64_t cols)
{
    return TOKENS * ((cols + SLICE - 1) / SLICE * SLICE);
}

static int arrange(const float *x, int64_t x_stride, int64_t tokens, int64_t cols, uint16_t *out)
{
    seen all = seen_none();
    __m512i lost = _mm512_setzero_si512();
    for (int64_t first = 0; first < cols; first += SLICE) {
        const int64_t end = least(first + SLICE, cols);
        for (int64_t t = 0; t < tokens; t++)
            for (int64_t k = first; k < end; k += DEPTH) {
                __m512i low = load_floats(x + t * x_stride + k, first_of(end - k), 0);
                __m512i high = load_floats(x + t * x_stride + k, first_of(end - k), 1);
                __m512i numbers = upper_halves(low, high);
                lost = _mm512_or_si512(lost, _mm512_or_si512(low, high));
                see(&all, numbers);
                _mm512_storeu_si512(out + TOKENS * first + t * SLICE + k - first, numbers);
            }
    }
    bool exact = _mm512_test_epi32_mask(lost, _mm512_set1_epi32(0xffff)) == 0;
    return exact ? lowest_bit(&all) : UNUSABLE;
}

/* ---- weights ---- */

/* Where rows are worked on. Behind the last row of a matrix it stands again; nobody looks at it there. */
typedef struct {
    const fast_product *p;
    int64_t first, last; /* rows: where it begins, and the last there is */
    int64_t count;       /* of them: LANES, ROWS or PASS */
    uint32_t *pairs;     /* [PASS / ROWS, SLICE / 2, ROWS]: two columns of a row in one */
    uint32_t *shifts;    /* FP4: [blocks of 32 columns, PASS] */
    uint16_t *decoded;   /* others: [LANES, SLICE + STAGGER] */
    float *sums;         /* [PASS / ROWS, T, ROWS] */
} room;

static int64_t row_of(const room *r, int64_t i)
{
    return least(r->first + i, r->last);
}

static int64_t shifts_size(const dsv4_matrix *w)
{
    enum { ALL = 64 };
    return w->dtype == DSV4_I8 ? (w->cols / DEPTH + ALL - 1) / ALL * ALL * PASS : 0;
}

static int64_t scratch_size(const fast_product *p)
{
    return SLICE / 2 * PASS + shifts_size(p->w) + LANES * (SLICE + STAGGER) / 2 + p->T * PASS;
}

/* Where a vector of pairs begins: of columns 2 k and 2 k + 1, and of 16 rows from row i on. */
static uint32_t *pairs_at(const room *r, int64_t k, int64_t i)
{
    return r->pairs + i / ROWS * (SLICE / 2) * ROWS + k * ROWS + i % ROWS;
}

/* Of token t and 16 rows from row i on. */
static float *sums_at(const room *r, int64_t t, int64_t i)
{
    return r->sums + i / ROWS * r->p->T * ROWS + t * ROWS + i % ROWS;
}

static room place(const fast_product *p, float *scratch)
{
    room r = {.p = p, .pairs = (uint32_t *)scratch};
    r.shifts = r.pairs + SLICE / 2 * PASS;
    r.decoded = (uint16_t *)(r.shifts + shifts_size(p->w));
    r.sums = (float *)(r.decoded + LANES * (SLICE + STAGGER));
    return r;
}

/* Weights that are no FP4: rows as they are decoded, then two columns at a time. */
static int decode_pairs(const room *r, int64_t from, int64_t to)
{
    const int64_t stride = SLICE + STAGGER;
    int lowest = NO_BIT;
    for (int64_t i = 0; i < r->count; i += LANES) {
        for (int64_t j = 0; j < LANES; j++) {
            int bit = decode_row(r->p->w, row_of(r, i + j), from, to, r->decoded + j * stride);
            lowest = bit < lowest ? bit : lowest;
        }
        for (int64_t k = 0; k < to - from; k += DEPTH) {
            __m512i v[16];
            for (int j = 0; j < LANES; j++)
                v[j] = _mm512_loadu_si512(r->decoded + j * stride + k);
            exchange(v);
            for (int j = 0; j < LANES; j++)
                _mm512_storeu_si512(pairs_at(r, k / 2 + j, i), v[j]);
        }
    }
    return lowest;
}

/* What has to be taken from the exponents of the table below, for both numbers of a pair: quant.e8m0.1.
 * Returns the lowest bit of all weights. */
static int take_shifts(const room *r)
{
    const dsv4_matrix *w = r->p->w;
    const int64_t count = w->cols / DEPTH;
    int lowest = NO_BIT;
    for (int64_t i = 0; i < r->count; i += LANES) {
        for (int64_t k = 0; k < count; k += 64) {
            const __mmask64 mask = count - k >= 64 ? ~0ull : (1ull << (count - k)) - 1;
            __m512i v[16];
            for (int j = 0; j < LANES; j++)
                v[j] = _mm512_maskz_loadu_epi8(mask, w->scale + row_of(r, i + j) * count + k);
            exchange(v);
            for (int j = 0; j < 64; j++) {
                __m512i scale = _mm512_and_si512(_mm512_srli_epi32(v[j / 4], (unsigned)(j % 4 * 8)),
                                                 _mm512_set1_epi32(255));
                __m512i shift = _mm512_slli_epi32(_mm512_sub_epi32(_mm512_set1_epi32(252), scale), 7);
                _mm512_storeu_si512(r->shifts + (k + j) * PASS + i,
                                    _mm512_or_si512(shift, _mm512_slli_epi32(shift, 16)));
            }
        }
        for (int64_t j = 0; j < LANES; j++) {
            int scale = least_scale(w->scale + row_of(r, i + j) * count, count, 2, 252);
            lowest = scale - 127 - 1 < lowest ? scale - 127 - 1 : lowest;
        }
    }
    return lowest;
}

/* ---- FP4: quant.e2m1.1, quant.fp4.1 ---- */

/* The bytes of 128 columns of 16 rows, from row i on: 4 bytes of each row in one vector of `out`. Rows follow
 * one another: those of the next time are one stretch, of which every step fetches its share. */
static inline void take_bytes(const room *r, int64_t i, int64_t from, int64_t to, __m512i out[16])
{
    const dsv4_matrix *w = r->p->w;
    const char *next = (const char *)((uintptr_t)w->data + (uintptr_t)((r->first + r->count) * w->cols / 2 +
                                                           from / 2 * r->count + i * CHUNK / 2));
    const __mmask64 mask = to - from >= CHUNK ? ~0ull : (1ull << (to - from) / 2) - 1;
    __m512i v[16];
    for (int j = 0; j < LANES; j++) {
        const unsigned char *p = (const unsigned char *)w->data + (row_of(r, i + j) * w->cols + from) / 2;
        v[j] = _mm512_maskz_loadu_epi8(mask, p);
        _mm_prefetch(next + j * CHUNK / 2, _MM_HINT_T1);
    }
    exchange(v);
    for (int j = 0; j < LANES; j++)
        out[j] = v[j];
}

/* What is needed to decode: the numbers, with exponents 125 too high, and where the codes of a lane's byte n
 * begin, as two bytes each. Of an index only 5 bits count; the fifth is of another code, so the numbers stand
 * there twice. */
typedef struct { __m512i numbers, begin[4]; } fp4_table;

static inline fp4_table fp4_numbers(void)
{
    static const uint16_t numbers[DEPTH] = {
        0, 0x7d80, 0x7e00, 0x7e40, 0x7e80, 0x7ec0, 0x7f00, 0x7f40,
        0, 0xfd80, 0xfe00, 0xfe40, 0xfe80, 0xfec0, 0xff00, 0xff40,
        0, 0x7d80, 0x7e00, 0x7e40, 0x7e80, 0x7ec0, 0x7f00, 0x7f40,
        0, 0xfd80, 0xfe00, 0xfe40, 0xfe80, 0xfec0, 0xff00, 0xff40};
    return (fp4_table){_mm512_loadu_si512(numbers),
                       {_mm512_set1_epi64(0x2424202004040000), _mm512_set1_epi64(0x2c2c28280c0c0808),
                        _mm512_set1_epi64(0x3434303014141010), _mm512_set1_epi64(0x3c3c38381c1c1818)}};
}

/* The two numbers of byte n of each lane. 0 stays 0 when more is taken from it than there is. */
static inline __m512i fp4_pair(const fp4_table *table, __m512i bytes, int n, __m512i shift)
{
    __m512i codes = _mm512_multishift_epi64_epi8(table->begin[n], bytes);
    return _mm512_subs_epu16(_mm512_permutexvar_epi16(codes, table->numbers), shift);
}

static inline __m512i shift_of(const room *r, int64_t i, int64_t k)
{
    return _mm512_loadu_si512(r->shifts + k / DEPTH * PASS + i);
}

static void decode_fp4_pairs(const room *r, int64_t from, int64_t to)
{
    const fp4_table table = fp4_numbers();
    for (int64_t k = from; k < to; k += CHUNK)
        for (int64_t i = 0; i < r->count; i += LANES) {
            __m512i bytes[16];
            take_bytes(r, i, k, to, bytes);
            uint32_t *out = pairs_at(r, (k - from) / 2, i);
            for (int j = 0; j < 16 && k + 8 * j < to; j++, out += 4 * ROWS) {
                const __m512i shift = shift_of(r, i, k + 8 * j);
#pragma GCC unroll 4
                for (int n = 0; n < 4; n++)
                    _mm512_storeu_si512(out + n * ROWS, fp4_pair(&table, bytes[j], n, shift));
            }
        }
}

/* ---- products ---- */

/* Two columns of an input, in all lanes. */
static inline __m512bh spread(const uint16_t *x)
{
    int pair;
    memcpy(&pair, x, sizeof pair);
    return (__m512bh)_mm512_set1_epi32(pair);
}

/* Of a slice to the sums of those before, if there are. */
static inline void add_up(__m512 sum, bool begun, float *to)
{
    _mm512_storeu_ps(to, begun ? _mm512_add_ps(_mm512_loadu_ps(to), sum) : sum);
}

/* `width` columns of a slice and `tokens` tokens, a constant. next: the inputs that come after these. */
static inline __attribute__((always_inline)) void add(const uint32_t *w, const uint16_t *x, int64_t width,
                                                      int tokens, const uint16_t *next, bool begun,
                                                      float *sums)
{
    __m512 sum[TOKENS][2];
#pragma GCC unroll 12
    for (int t = 0; t < tokens; t++)
        sum[t][0] = sum[t][1] = _mm512_setzero_ps();
    for (int64_t k = 0; k < width; k += 2, w += ROWS) {
        const __m512bh low = (__m512bh)_mm512_loadu_si512(w);
        const __m512bh high = (__m512bh)_mm512_loadu_si512(w + LANES);
        _mm_prefetch((const char *)(next + k / 2 * TOKENS * 2), _MM_HINT_T0);
#pragma GCC unroll 12
        for (int t = 0; t < tokens; t++) {
            const __m512bh pair = spread(x + t * SLICE + k);
            sum[t][0] = _mm512_dpbf16_ps(sum[t][0], low, pair);
            sum[t][1] = _mm512_dpbf16_ps(sum[t][1], high, pair);
        }
    }
#pragma GCC unroll 12
    for (int t = 0; t < tokens; t++)
        for (int i = 0; i < 2; i++)
            add_up(sum[t][i], begun, sums + t * ROWS + i * LANES);
}

/* The same of FP4 weights that are not decoded before: 16 rows, from row i on. */
static inline __attribute__((always_inline)) void add_fp4(const room *r, int64_t i, int64_t from, int64_t to,
                                                          const uint16_t *x, int tokens, float *sums)
{
    const fp4_table table = fp4_numbers();
    __m512 sum[TOKENS];
#pragma GCC unroll 12
    for (int t = 0; t < tokens; t++)
        sum[t] = _mm512_setzero_ps();
    for (int64_t k = from; k < to; k += CHUNK) {
        __m512i bytes[16];
        take_bytes(r, i, k, to, bytes);
        for (int j = 0; j < 16 && k + 8 * j < to; j++, x += 8) {
            const __m512i shift = shift_of(r, i, k + 8 * j);
#pragma GCC unroll 4
            for (int n = 0; n < 4; n++) {
                const __m512bh pair = (__m512bh)fp4_pair(&table, bytes[j], n, shift);
#pragma GCC unroll 12
                for (int t = 0; t < tokens; t++)
                    sum[t] = _mm512_dpbf16_ps(sum[t], pair, spread(x + t * SLICE + 2 * n));
            }
        }
    }
#pragma GCC unroll 12
    for (int t = 0; t < tokens; t++)
        add_up(sum[t], from > 0, sums + t * ROWS);
}

/* What is inlined for each number of tokens. */
#define FOR_TOKENS(tokens, CALL) \
    switch (tokens) { \
    case 1: CALL(1); break; \
    case 2: CALL(2); break; \
    case 3: CALL(3); break; \
    case 4: CALL(4); break; \
    case 5: CALL(5); break; \
    case 6: CALL(6); break; \
    case 7: CALL(7); break; \
    case 8: CALL(8); break; \
    case 9: CALL(9); break; \
    case 10: CALL(10); break; \
    case 11: CALL(11); break; \
    default: CALL(TOKENS); \
    }

static void add_tokens(const uint32_t *w, const uint16_t *x, int64_t width, int64_t tokens,
                       const uint16_t *next, bool begun, float *sums)
{
#define ADD(count) add(w, x, width, count, next, begun, sums)
    FOR_TOKENS(tokens, ADD)
}

static void add_fp4_tokens(const room *r, int64_t i, int64_t from, int64_t to, const uint16_t *x,
                           int64_t tokens, float *sums)
{
#define ADD_FP4(count) add_fp4(r, i, from, to, x, count, sums)
    FOR_TOKENS(tokens, ADD_FP4)
}

/* linear.round.1 */
static void put(const room *r)
{
    const fast_product *p = r->p;
    for (int64_t t = 0; t < p->T; t++)
        for (int64_t i = 0; i < r->count && r->first + i <= r->last; i += LANES) {
            __mmask16 mask = (__mmask16)first_of(least(r->last + 1 - r->first - i, LANES));
            __m512i value = _mm512_loadu_si512(sums_at(r, t, i));
            if (p->round)
                value = _mm512_and_si512(round_up(value), _mm512_set1_epi32(INT_MIN >> 15));
            _mm512_mask_storeu_epi32(p->y + t * p->y_stride + r->first + i - p->first, mask, value);
        }
}

/* FP4 weights that are used once stay in registers between decoding and multiplying. */
static bool fused(const fast_product *p)
{
    return p->w->dtype == DSV4_I8 && p->T <= TOKENS;
}

static void multiply_slice(const room *r, int64_t from, int64_t to)
{
    const fast_product *p = r->p;
    const int64_t size = arranged_size(p->w->cols);
    if (p->w->dtype == DSV4_I8 && !fused(p))
        decode_fp4_pairs(r, from, to);
    for (int64_t t = 0; t < p->T; t += TOKENS) {
        const uint16_t *x = p->arranged + t / TOKENS * size + from * TOKENS;
        const uint16_t *next = t + TOKENS < p->T ? x + size : x;
        const int64_t tokens = least(p->T - t, TOKENS);
        if (fused(p))
            add_fp4_tokens(r, 0, from, to, x, tokens, sums_at(r, t, 0));
        else
            for (int64_t i = 0; i < r->count; i += ROWS)
                add_tokens(pairs_at(r, 0, i), x, padded(to - from), tokens, next, from > 0,
                           sums_at(r, t, i));
    }
}

static bool multiply(const room *r, int input)
{
    const fast_product *p = r->p;
    const int64_t cols = p->w->cols;
    const bool fp4 = p->w->dtype == DSV4_I8;
    int lowest = fp4 ? take_shifts(r) : NO_BIT;
    for (int64_t from = 0; from < cols; from += SLICE) {
        const int64_t to = least(from + SLICE, cols);
        if (!fp4)
            lowest = decode_pairs(r, from, to);
        if (lowest + input < LOWEST_NORMAL)
            return false;
        multiply_slice(r, from, to);
    }
    return true;
}

static bool product(const fast_product *p, int64_t begin, int64_t end, float *scratch)
{
    int input = NO_BIT;
    for (int64_t i = 0; i < (p->T + TOKENS - 1) / TOKENS; i++)
        input = p->lowest_bit[i] < input ? p->lowest_bit[i] : input;
    if (input == UNUSABLE)
        return false;
    room r = place(p, scratch);
    r.last = end - 1;
    for (r.first = begin; r.first < end; r.first += r.count) {
        r.count = fused(p) ? LANES : p->T > MANY && end - r.first > ROWS ? PASS : ROWS;
        if (!multiply(&r, input))
            return false;
        put(&r);
    }
    return true;
}

const fast_tile_kernels fast_linear_avx512bf16 = {
    .tokens = TOKENS, .arranged_size = arranged_size, .arrange = arrange, .product = product,
    .scratch_size = scratch_size};
