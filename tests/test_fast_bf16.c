/* The fast path's products of bf16 numbers: against ref/linear.c, against the level without them, and
 * against themselves in other company. What is done by tiles (AMX) is tested with the instructions replaced
 * by C, and as it was compiled, with the processor's own or, where it has none, with answers to its
 * complaints (trap_amx.h). What is done by vectors (AVX-512 BF16) is tested where the processor has it.
 *
 * The error model: all products are exact, and the results of additions in a row are no larger than the sum
 * of all magnitudes, so that a sum is off by no more than their number times 2^-24 sum |w| |x|. By tiles
 * there are at most cols / 32 + 19: 16 of pairs, one between them, and one for each 32 columns. By vectors
 * there is one for each of 256 columns, and one for each 256; of few tokens, one for every 16 columns or
 * part of 64, and 4 between the lanes. */
#include "small.h"

#include <math.h>
#include <string.h>

#include "fast/fast.h"

#ifdef __x86_64__

#include "emulated_amx.h"
#include "trap_amx.h"

enum { DTYPES = 5 };
static const dsv4_dtype dtypes[DTYPES] = {DSV4_F32, DSV4_BF16, DSV4_F16, DSV4_F8_E4M3, DSV4_I8};

/* ---- a level whose tiles count how often they were taken ---- */

static const fast_tile_kernels *spied;
static _Thread_local int taken, refused; /* on the thread of the test */

static bool counted_product(const fast_product *p, int64_t begin, int64_t end, float *scratch)
{
    bool good = spied->product(p, begin, end, scratch);
    taken += good;
    refused += !good;
    return good;
}

typedef struct {
    small *s;
    fast_context tiles, plain; /* the same without them */
    bool slow;                 /* every instruction is trapped */
    double additions[3];       /* in a row, at most: alone, for each column of the first 256, for any column */
} pair;

typedef void test_of_pair(pair *t);

/* The level avx512, which has neither tiles nor few_fp8; NULL where the machine has not got it. */
static const fast_kernels *level_without(void)
{
    int count;
    const fast_kernels *const *levels = fast_levels(&count);
    if (count < 3)
        return NULL;
    assert_string_equal(levels[2]->name, "avx512");
    assert_null(levels[2]->tiles);
    assert_null(levels[2]->few_fp8);
    return levels[2];
}

static const fast_kernels *level_named(const char *name)
{
    int count;
    const fast_kernels *const *levels = fast_levels(&count);
    for (int i = 0; i < count; i++)
        if (strcmp(levels[i]->name, name) == 0)
            return levels[i];
    return NULL;
}

/* Where this processor has no tiles, but could run what stands around them, they are trapped. */
static bool trapped(void)
{
    if (!trap_amx_needed())
        return false;
    trap_amx_install();
    return true;
}

/* Runs a test with those kernels, `few` for few tokens, in place of those of avx512. */
static void run_with(small *s, const fast_tile_kernels *kernels, bool few, pair t, int threads,
                     test_of_pair *test)
{
    fast_kernels with = *level_without();
    spied = kernels;
    fast_tile_kernels spy = *spied;
    spy.product = counted_product;
    *(few ? &with.few_fp8 : &with.tiles) = &spy;
    s->error = (dsv4_error){{0}};
    s->c.numerics = DSV4_RELEASED;
    t.s = s;
    t.tiles = (fast_context){.config = &s->config, .released = true, .kernels = &with,
                             .pool = fast_pool_new(threads, &s->error), .memory = fast_memory_new(),
                             .error = &s->error};
    assert_non_null(t.tiles.pool);
    t.plain = t.tiles;
    t.plain.kernels = level_without();
    taken = refused = 0;
    test(&t);
    fast_memory_free(t.tiles.memory);
    fast_pool_free(t.tiles.pool);
}

/* All that take many tokens. */
static void each(void **state, int threads, test_of_pair *test)
{
    small *s = *state;
    if (level_without() == NULL)
        skip();
    const pair tiles = {.additions = {19, 0, 1.0 / 32}};
    run_with(s, &emulated_amx, false, tiles, threads, test);
    if (level_named("avx512bf16") != NULL) {
        const pair vectors = {.additions = {1, 1, 1.0 / 256}};
        run_with(s, level_named("avx512bf16")->tiles, false, vectors, threads, test);
    }
    if (TRAP_AMX_TOO_SLOW)
        return;
    pair compiled = tiles;
    compiled.slow = trapped();
    int64_t before = trap_amx_count();
    run_with(s, &fast_linear_amx, false, compiled, threads, test);
    if (threads == 1)
        assert_int_equal(trap_amx_count() > before, compiled.slow);
}

static void each_few(void **state, int threads, test_of_pair *test)
{
    if (level_named("avx512bf16") == NULL)
        skip();
    const pair few = {.additions = {4, 0, 1.0 / 16}};
    run_with(*state, level_named("avx512bf16")->few_fp8, true, few, threads, test);
}

static float *floats(small *s, int64_t count)
{
    return (float *)small_alloc(s, count + 1, sizeof(float)) + 1;
}

static fast_linear_job job_of(fast_linear_kind kind, const dsv4_matrix *w, const float *x, int64_t T,
                              float *y)
{
    return (fast_linear_job){.kind = kind, .w = w, .rows = w->rows, .x = x, .T = T,
                             .x_stride = w->cols, .y = y, .y_stride = w->rows};
}

static void run(const fast_context *c, fast_linear_job job)
{
    fast_linear_jobs(c, &job, 1);
}

/* bf16 numbers of magnitudes that differ from place to place. */
static float *inputs(small *s, int64_t T, int64_t cols)
{
    float *x = floats(s, T * cols);
    double *values = small_randoms(s, T * cols, 4);
    for (int64_t i = 0; i < T * cols; i++)
        x[i] = (float)values[i] * (i / 64 % 3 == 0 ? 1 : 0x1p-12f);
    return x;
}

/* ---- against the definition ---- */

static void expect(const pair *t, fast_linear_kind kind, const dsv4_matrix *w, const float *x,
                   int64_t T, const float *y)
{
    small *s = t->s;
    double *weights = small_values(s, w), *input = small_array(s, T * w->cols);
    for (int64_t i = 0; i < T * w->cols; i++)
        input[i] = x[i];
    if (kind == FAST_LINEAR && w->scale != NULL)
        small_act_quant(input, T * w->cols, 128);
    else if (kind != FAST_MAP)
        for (int64_t i = 0; i < w->rows * w->cols; i++)
            weights[i] = small_to_bf16(weights[i]);
    for (int64_t i = 0; i < T * w->rows; i++) {
        const double *row = weights + i % w->rows * w->cols, *in = input + i / w->rows * w->cols;
        double sum = 0, size = 0;
        for (int64_t k = 0; k < w->cols; k++) {
            sum += row[k] * in[k];
            size += fabs(row[k] * in[k]);
        }
        const double cols = (double)w->cols, first = cols < 256 ? cols : 256;
        const double additions = t->additions[0] + t->additions[1] * first + t->additions[2] * cols;
        double bound = additions * 0x1p-24 * size;
        double low = sum - bound, high = sum + bound;
        if (kind != FAST_MAP) {
            low = small_to_bf16(low);
            high = small_to_bf16(high);
        }
        if (!(low <= y[i] && y[i] <= high))
            fail_msg("dtype %d, kind %d, [%d, %d], %d tokens: value %d is %.9g, expected %.9g to "
                     "%.9g; seed %#llx", (int)w->dtype, (int)kind, (int)w->rows, (int)w->cols,
                     (int)T, (int)i, y[i], low, high, (unsigned long long)s->seed);
    }
}

/* linear.product.1, linear.plain.1, linear.grouped.2: all numbers of tokens around a tile or four. */
static void sizes(pair *t)
{
    static const struct { int64_t rows, cols; } size[] = {
        {1, 128}, {15, 256}, {16, 128}, {17, 128}, {63, 384}, {65, 128}, {130, 256}, {33, 1152}};
    static const struct { int64_t rows, cols; } odd[] = {
        {1, 1}, {5, 31}, {16, 32}, {17, 33}, {70, 48}, {64, 72}, {129, 127}, {31, 300}};
    small *s = t->s;
    for (int64_t T = 1; T <= 70; T += t->slow ? 9 : 1)
        for (int j = 0; j < DTYPES; j++) {
            bool codes = dtypes[j] == DSV4_F8_E4M3 || dtypes[j] == DSV4_I8;
            for (int kind = FAST_LINEAR; kind <= FAST_GROUPED; kind++) {
                int64_t at = (T + j + kind) % 8;
                bool fits = dtypes[j] != DSV4_I8 && (!codes || kind != FAST_LINEAR);
                int64_t rows = fits ? odd[at].rows : size[at].rows;
                int64_t cols = fits ? odd[at].cols : size[at].cols;
                if (dtypes[j] == DSV4_I8 && kind == FAST_MAP)
                    cols = 32 * (1 + T % 13);
                dsv4_matrix w = small_random_matrix(s, dtypes[j], rows, cols, 1);
                float *x = inputs(s, T, cols), *y = floats(s, T * rows);
                taken = 0;
                run(&t->tiles, job_of((fast_linear_kind)kind, &w, x, T, y));
                expect(t, (fast_linear_kind)kind, &w, x, T, y);
                bool exact = kind != FAST_MAP || (dtypes[j] != DSV4_F32 && dtypes[j] != DSV4_F16);
                assert_int_equal(taken > 0, T > 4 && exact);
            }
        }
    assert_int_equal(refused, 0);
    assert_string_equal(s->error.text, "");
}

static void every_size(void **state)
{
    each(state, 1, sizes);
}

/* Several panels of decoded weights, and scales in more than one vector. */
static void large(pair *t)
{
    small *s = t->s;
    for (int j = 0; j < DTYPES; j++) {
        dsv4_matrix w = small_random_matrix(s, dtypes[j], 200, 8320, 1);
        float *x = inputs(s, 21, w.cols), *y = floats(s, 21 * w.rows);
        run(&t->tiles, job_of(FAST_LINEAR, &w, x, 21, y));
        expect(t, FAST_LINEAR, &w, x, 21, y);
    }
    assert_true(taken > 0);
    assert_int_equal(refused, 0);
}

static void large_products(void **state)
{
    each(state, 1, large);
}

/* ---- every code ---- */

/* y = w times `unit`, a power of two, column by column, is exact: every product but one is 0. */
static void check_values(pair *t, const dsv4_matrix *w, double unit)
{
    int64_t rows = w->rows, cols = w->cols;
    float *x = floats(t->s, cols * cols), *y = floats(t->s, cols * rows);
    for (int64_t i = 0; i < cols; i++)
        x[i * cols + i] = (float)unit;
    run(&t->tiles, job_of(FAST_MAP, w, x, cols, y));
    double *want = small_values(t->s, w);
    for (int64_t i = 0; i < rows * cols; i++)
        if (y[i % cols * rows + i / cols] != (float)(want[i] * unit))
            fail_msg("dtype %d: weight %lld is %a, expected %a", (int)w->dtype, (long long)i,
                     y[i % cols * rows + i / cols], want[i] * unit);
}

/* Scales whose products with codes are normal bf16 numbers go by tiles, others do not; values are
 * right in any case, if a binary32 number holds them. */
static void fp8_codes(pair *t)
{
    enum { rows = 4, cols = 128 };
    static const int limit[] = {9, 10, 11, 60, 126, 127, 128, 200, 245, 246, 247};
    for (int i = 0; i < (int)(sizeof limit / sizeof *limit); i++) {
        uint8_t codes[rows * cols], scale = (uint8_t)limit[i];
        for (int j = 0; j < rows * cols; j++) {
            codes[j] = (uint8_t)(j * 3 % 256);
            double most = fabs(ref_decode_e4m3(codes[j])) * ref_decode_e8m0(scale);
            codes[j] = most < 0x1p128 ? codes[j] : 1;
        }
        dsv4_matrix w = small_fp8(t->s, codes, &scale, rows, cols);
        /* Sums of products below 2^-126 might be subnormal: x is a multiple of 2^-7, or 2^33. */
        for (int exponent = 0; exponent <= (scale < 127 ? 40 : 0); exponent += 40) {
            bool good = scale - 127 - 9 - 7 + exponent >= -126 && scale >= 10 && scale <= 246;
            taken = refused = 0;
            check_values(t, &w, ldexp(1, exponent));
            assert_int_equal(taken > 0, good);
            assert_int_equal(refused > 0, !good);
        }
    }
}

/* A block of normal numbers but for one. */
static void fp8_one_small(pair *t)
{
    enum { rows = 32, cols = 128 };
    uint8_t codes[rows * cols], scale = 130;
    for (int i = 0; i < rows * cols; i++)
        codes[i] = (uint8_t)(8 + i % 119 + (i % 3 == 0 ? 128 : 0));
    for (int row = 0; row < rows; row++)
        codes[row * cols + row * 4 + row / 8] = (uint8_t)(row % 8 + (row % 16 < 8 ? 0 : 128));
    dsv4_matrix w = small_fp8(t->s, codes, &scale, rows, cols);
    check_values(t, &w, 1);
    assert_true(taken > 0 && refused == 0);
}

static void fp4_codes(pair *t)
{
    enum { rows = 3, cols = 64, blocks = cols / 32 };
    for (int scale = 0; scale <= 254; scale += scale < 20 || scale >= 248 ? 1 : 19) {
        uint8_t bytes[rows * cols / 2], scales[rows * blocks];
        memset(scales, scale, sizeof scales);
        for (int j = 0; j < (int)sizeof bytes; j++) {
            int low = j % 16, high = (5 * j + 3 + j / 16) % 16;
            bool fits = scale < 253 || (low % 8 < (scale == 253 ? 6 : 4) &&
                                        high % 8 < (scale == 253 ? 6 : 4));
            bytes[j] = (uint8_t)(fits ? low | high << 4 : 0x91);
        }
        dsv4_matrix w = small_fp4(t->s, bytes, scales, rows, cols);
        for (int exponent = 0; exponent <= (scale < 127 ? 40 : 0); exponent += 40) {
            bool good = scale - 127 - 1 - 7 + exponent >= -126 && scale >= 2 && scale <= 252;
            taken = refused = 0;
            check_values(t, &w, ldexp(1, exponent));
            assert_int_equal(taken > 0, good);
            assert_int_equal(refused > 0, !good);
        }
    }
}

static void every_code(void **state)
{
    each(state, 1, fp8_codes);
    each(state, 1, fp8_one_small);
    each(state, 1, fp4_codes);
}

/* Numbers of two bytes that are normal, or 0, in bf16: all of them. */
static void short_codes(pair *t)
{
    enum { rows = 512, cols = 128 };
    for (int i = 0; i < 2; i++) {
        dsv4_matrix w = small_random_matrix(t->s, i == 0 ? DSV4_BF16 : DSV4_F16, rows, cols, 1);
        unsigned char *data = (unsigned char *)(uintptr_t)w.data;
        for (int j = 0; j < rows * cols; j++) {
            uint16_t code = (uint16_t)j, ends = i == 0 ? 0x7f80 : 0x7c00;
            bool good = i == 0 ? (code & 0x7fff) > 0x0780 : true; /* sums are no multiples of less */
            code = good && (code & ends) != ends ? code : 0;
            memcpy(data + 2 * j, &code, 2);
        }
        float *x = floats(t->s, cols * cols), *y = floats(t->s, cols * rows);
        for (int64_t k = 0; k < cols; k++)
            x[k * cols + k] = 1;
        taken = refused = 0;
        run(&t->tiles, job_of(FAST_GROUPED, &w, x, cols, y));
        double *want = small_values(t->s, &w);
        for (int64_t j = 0; j < rows * cols; j++)
            assert_true(y[j % cols * rows + j / cols] == small_to_bf16(want[j]));
        assert_true(taken > 0);
        assert_int_equal(refused, 0);
    }
}

static void every_short_number(void **state)
{
    each(state, 1, short_codes);
}

/* ---- what tiles cannot represent ---- */

/* The same bits as without tiles. */
static void expect_plain(pair *t, fast_linear_kind kind, const dsv4_matrix *w, const float *x,
                         int64_t T)
{
    float *y = floats(t->s, T * w->rows), *want = floats(t->s, T * w->rows);
    taken = refused = 0;
    run(&t->tiles, job_of(kind, w, x, T, y));
    run(&t->plain, job_of(kind, w, x, T, want));
    assert_memory_equal(y, want, (size_t)(T * w->rows) * sizeof *y);
    assert_int_equal(taken, 0);
}

static void refusals(pair *t)
{
    enum { rows = 20, cols = 256, T = 18 };
    small *s = t->s;
    float *x = inputs(s, T, cols);
    dsv4_matrix w = small_random_matrix(s, DSV4_BF16, rows, cols, 1);
    unsigned char *last = (unsigned char *)(uintptr_t)w.data + 2 * (rows * cols - 1);
    static const uint16_t bad[] = {0x0001, 0x807f};
    for (int i = 0; i < 2; i++) { /* a weight is subnormal */
        memcpy(last, &bad[i], 2);
        expect_plain(t, FAST_LINEAR, &w, x, T);
        assert_int_equal(refused, 1);
    }
    float *big = floats(s, T * cols);
    for (int64_t i = 0; i < T * cols; i++)
        big[i] = 0x1p60f;
    expect_plain(t, FAST_MAP, &w, big, T);
    assert_int_equal(refused, 1);
    memcpy(last, &(uint16_t){0x0080}, 2); /* a product would be */
    expect_plain(t, FAST_LINEAR, &w, x, T);
    assert_int_equal(refused, 1);
    memcpy(last, &(uint16_t){0x8000}, 2);
    float *y = floats(s, T * rows);
    taken = refused = 0;
    run(&t->tiles, job_of(FAST_LINEAR, &w, x, T, y));
    assert_true(taken == 1 && refused == 0);
    /* Inputs: of the last tile of tokens, the last channel. */
    static const float in[] = {0x1p-127f, 1 + 0x1p-8f, 0x1p-120f, -0x1.000002p1f};
    for (int i = 0; i < 4; i++) {
        x[T * cols - 1] = in[i];
        expect_plain(t, FAST_MAP, &w, x, T);
        assert_int_equal(refused, 1);
    }
    /* EXACT, --deterministic, and a map whose weights may not be rounded. */
    x[T * cols - 1] = 1;
    dsv4_matrix wide = small_random_matrix(s, DSV4_F32, rows, cols, 1);
    expect_plain(t, FAST_MAP, &wide, x, T);
    assert_int_equal(refused, 0);
    t->tiles.deterministic = true;
    expect_plain(t, FAST_LINEAR, &w, x, T);
    assert_int_equal(refused, 0);
    t->tiles.deterministic = false;
    t->tiles.released = t->plain.released = false;
    expect_plain(t, FAST_LINEAR, &w, x, T);
    assert_int_equal(refused, 0);
    t->tiles.released = t->plain.released = true;
    assert_string_equal(s->error.text, "");
}

/* Some items of a product, and some products of several, go without tiles. */
static void mixed(pair *t)
{
    enum { rows = 1000, cols = 256, T = 24, JOBS = 6 };
    small *s = t->s;
    float *x = inputs(s, T, cols), *y = floats(s, JOBS * T * rows);
    fast_linear_job jobs[JOBS];
    dsv4_matrix w[JOBS];
    for (int j = 0; j < JOBS; j++) {
        w[j] = small_random_matrix(s, dtypes[j % DTYPES], rows, cols, 1);
        jobs[j] = job_of(j == JOBS - 1 ? FAST_MAP : FAST_LINEAR, &w[j], x, T, y + j * T * rows);
    }
    unsigned char *data = (unsigned char *)(uintptr_t)w[1].data;
    for (int64_t row = 70; row < rows; row += 400)
        memcpy(data + 2 * row * cols, &(uint16_t){1}, 2);
    ((uint8_t *)(uintptr_t)w[3].scale)[2 * 5] = 1;
    ((uint8_t *)(uintptr_t)w[4].scale)[cols / 32 * 999] = 0;
    fast_linear_jobs(&t->tiles, jobs, JOBS);
    for (int j = 0; j < JOBS; j++)
        expect(t, jobs[j].kind, &w[j], x, T, jobs[j].y);
    assert_string_equal(s->error.text, "");
    /* Items are others with other threads; bits are not. */
    float *again = floats(s, JOBS * T * rows);
    fast_context other = t->tiles;
    const int taken_before = taken, refused_before = refused;
    other.pool = fast_pool_new(fast_pool_threads(t->tiles.pool) == 1 ? 5 : 1, &s->error);
    assert_non_null(other.pool);
    for (int j = 0; j < JOBS; j++)
        jobs[j].y = again + j * T * rows;
    fast_linear_jobs(&other, jobs, JOBS);
    assert_memory_equal(again, y, JOBS * T * rows * sizeof *y);
    fast_pool_free(other.pool);
    taken = taken_before;
    refused = refused_before;
    if (fast_pool_threads(t->tiles.pool) == 1) {
        assert_true(taken > 2 * refused);
        assert_true(refused >= 5);
    }
}

static void what_is_no_normal_number(void **state)
{
    each(state, 1, refusals);
    each(state, 1, mixed);
    each(state, 3, mixed);
}

/* quant.nan.1: the same line as the reference's. */
static void bad_weights(pair *t)
{
    enum { rows = 135, cols = 256, T = 18 };
    small *s = t->s;
    double *x = small_array(s, T * cols), *want = small_array(s, T * rows);
    float *input = floats(s, T * cols), *y = floats(s, T * rows);
    for (int64_t i = 0; i < T * cols; i++)
        x[i] = input[i] = 1;
    for (int64_t at = 77; at < rows * cols; at += 5003)
        for (int j = 0; j < DTYPES; j++) {
            dsv4_matrix w = small_random_matrix(s, dtypes[j], rows, cols, 1);
            unsigned char *data = (unsigned char *)(uintptr_t)w.data;
            int64_t bytes = dtypes[j] == DSV4_F32 ? 4 : dtypes[j] == DSV4_F8_E4M3 ? 1 : 2;
            if (dtypes[j] == DSV4_I8)
                ((uint8_t *)(uintptr_t)w.scale)[at / 32] = 255;
            else
                memset(data + bytes * at, 0x81, (size_t)bytes);
            if (dtypes[j] != DSV4_I8)
                data[bytes * at + bytes - 1] = at % 2 == 0 ? 0x7f : 0xff;
            dsv4_error error = {{0}};
            ref_context r = s->c;
            r.error = &error;
            s->error = (dsv4_error){{0}};
            ref_linear(&r, &w, x, T, want);
            run(&t->tiles, job_of(FAST_LINEAR, &w, input, T, y));
            assert_true(error.text[0] != '\0');
            assert_string_equal(s->error.text, error.text);
        }
}

static void weights_that_are_not_finite(void **state)
{
    each(state, 2, bad_weights);
}

/* ---- the order of sums ---- */

/* A row is the same at any place among any others, if there are enough for tiles; what lies beside the
 * outputs stays as it is. */
static void company(pair *t)
{
    enum { rows = 150, cols = 384, T = 70, STRIDE = rows + 3 };
    small *s = t->s;
    for (int j = 0; j < DTYPES; j++)
        for (int kind = FAST_LINEAR; kind <= FAST_GROUPED; kind++) {
            if (kind == FAST_MAP && (dtypes[j] == DSV4_F32 || dtypes[j] == DSV4_F16))
                continue;
            dsv4_matrix w = small_random_matrix(s, dtypes[j], rows, cols, 1);
            float *x = inputs(s, T, cols), *y = floats(s, T * rows), *part = floats(s, T * STRIDE);
            run(&t->tiles, job_of((fast_linear_kind)kind, &w, x, T, y));
            for (int64_t n = 5; n <= T; n += n < 36 && !t->slow ? 1 : 17) {
                int64_t first = (n * 7 + j) % (T - n + 1), row = n % 67, end = rows - n * 3 % 50;
                fast_linear_job job = {.kind = (fast_linear_kind)kind, .w = &w, .first = row,
                                       .rows = end - row, .x = x + first * cols, .T = n,
                                       .x_stride = cols, .y = part, .y_stride = STRIDE};
                memset(part, 0x55, T * STRIDE * sizeof *part);
                run(&t->tiles, job);
                for (int64_t i = 0; i < T * STRIDE; i++) {
                    int64_t token = i / STRIDE, o = i % STRIDE;
                    float want;
                    memset(&want, 0x55, sizeof want);
                    if (token < n && o < end - row)
                        want = y[(first + token) * rows + row + o];
                    assert_memory_equal(&part[i], &want, sizeof want);
                }
            }
        }
    assert_int_equal(refused, 0);
}

static void any_company(void **state)
{
    each(state, 1, company);
    each(state, 3, company);
}

/* ---- what was compiled, and what was meant ---- */

/* The same product by both. Trapped instructions give the same bits; those of a processor may sum the two
 * halves of a pair in other ways, but not where sums are exact. */
static void compare_with_emulation(small *s, dsv4_dtype dtype, int64_t rows, int64_t cols, int64_t T,
                                   bool integers, bool same)
{
    const int64_t size = emulated_amx.arranged_size(cols), tiles = (T + emulated_amx.tokens - 1) / emulated_amx.tokens;
    dsv4_matrix w = small_random_matrix(s, integers ? DSV4_F32 : dtype, rows, cols, 1);
    float *x = inputs(s, T, cols);
    for (int64_t i = 0; i < T * cols && integers; i++)
        x[i] = (float)(i * 37 % 255 - 127);
    for (int64_t i = 0; i < rows * cols && integers; i++)
        memcpy((char *)(uintptr_t)w.data + 4 * i, &(float){(float)(i * 53 % 255 - 127)}, 4);
    const fast_tile_kernels *const kernels[] = {&emulated_amx, &fast_linear_amx};
    uint16_t *arranged[2];
    float *y[2];
    for (int i = 0; i < 2; i++) {
        int *lowest = small_alloc(s, tiles, sizeof *lowest);
        arranged[i] = small_alloc(s, tiles * size, sizeof *arranged[i]);
        y[i] = floats(s, T * rows);
        for (int64_t tile = 0; tile < tiles; tile++)
            lowest[tile] = kernels[i]->arrange(
                x + tile * emulated_amx.tokens * cols, cols,
                T - tile * emulated_amx.tokens < emulated_amx.tokens ? T - tile * emulated_amx.tokens : emulated_amx.tokens, cols,
                arranged[i] + tile * size);
        fast_product p = {.w = &w, .as_bf16 = true, .T = T, .y = y[i], .y_stride = rows,
                          .arranged = arranged[i], .lowest_bit = lowest};
        float *scratch = small_alloc(s, kernels[i]->scratch_size(&p), sizeof *scratch);
        assert_true(kernels[i]->product(&p, 0, rows, scratch));
    }
    assert_memory_equal(arranged[0], arranged[1], (size_t)(tiles * size) * sizeof *arranged[0]);
    double *values = small_values(s, &w);
    for (int64_t i = 0; i < T * rows; i++) {
        double magnitude = 0, off = fabs((double)y[0][i] - y[1][i]);
        for (int64_t k = 0; k < cols; k++)
            magnitude += fabs(values[i % rows * cols + k] * x[i / rows * cols + k]);
        if (same || integers ? off != 0 : off > ((double)cols / 32 + 19) * 0x1p-23 * 1.01 * magnitude)
            fail_msg("dtype %d, [%d, %d]: value %d is %a, emulated %a; seed %#llx", (int)w.dtype,
                     (int)rows, (int)cols, (int)i, y[1][i], y[0][i], (unsigned long long)s->seed);
    }
}

static void as_emulated(void **state)
{
    small *s = *state;
    if (level_without() == NULL)
        skip();
    bool same = trapped();
    for (int i = 0; i < 2; i++)
        for (int j = 0; j < DTYPES; j++) {
            compare_with_emulation(s, dtypes[j], 70, 128, 16, i == 0, same);
            compare_with_emulation(s, dtypes[j], 65, 256, 39, i == 0, same);
        }
}

static void self_check(void **state)
{
    (void)state;
    if (level_without() == NULL)
        skip();
    assert_true(emulated_amx.works());
    trapped();
    assert_true(fast_linear_amx.works());
}

/* ---- few tokens: FP8 ---- */

/* covers: linear.product.1 linear.quant.1 linear.grouped.2 quant.fp8.1 */
static void few_sizes(pair *t)
{
    static const struct { int64_t rows, cols; } size[] = {
        {1, 128}, {3, 256}, {4, 128}, {5, 384}, {127, 128}, {129, 256}, {130, 1152}, {258, 640}};
    small *s = t->s;
    for (int64_t T = 1; T <= 5; T++)
        for (int kind = FAST_LINEAR; kind <= FAST_GROUPED; kind++)
            for (int at = 0; at < 8; at++) {
                int64_t rows = size[at].rows, cols = size[at].cols;
                dsv4_matrix w = small_random_matrix(s, DSV4_F8_E4M3, rows, cols, 1);
                float *x = inputs(s, T, cols), *y = floats(s, T * rows);
                taken = 0;
                run(&t->tiles, job_of((fast_linear_kind)kind, &w, x, T, y));
                expect(t, (fast_linear_kind)kind, &w, x, T, y);
                assert_int_equal(taken > 0, T <= 4);
            }
    assert_int_equal(refused, 0);
    /* Columns that are no whole blocks, and other weights, go the other way. */
    for (int j = 0; j < DTYPES; j++) {
        const bool fp8 = dtypes[j] == DSV4_F8_E4M3;
        dsv4_matrix w = small_random_matrix(s, dtypes[j], 9, fp8 ? 192 : 128, 1);
        float *x = inputs(s, 2, w.cols), *y = floats(s, 2 * w.rows);
        taken = 0;
        run(&t->tiles, job_of(fp8 ? FAST_GROUPED : FAST_LINEAR, &w, x, 2, y));
        expect(t, fp8 ? FAST_GROUPED : FAST_LINEAR, &w, x, 2, y);
        assert_int_equal(taken, 0);
    }
    assert_string_equal(s->error.text, "");
}

static void few_of_every_size(void **state)
{
    each_few(state, 1, few_sizes);
}

/* Every code at every place of a block, times 2^exponent, one column at a time: exact. */
static void few_codes(pair *t)
{
    enum { rows = 256, cols = 128, T = 4 };
    small *s = t->s;
    static const int limit[] = {0, 1, 9, 10, 11, 20, 26, 27, 60, 126, 127, 128, 200, 217, 218, 219, 246, 254};
    for (int i = 0; i < (int)(sizeof limit / sizeof *limit); i++) {
        uint8_t *codes = small_alloc(s, rows * cols, 1), scales[2];
        memset(scales, limit[i], sizeof scales);
        for (int j = 0; j < rows * cols; j++) {
            codes[j] = (uint8_t)(j / cols + j % cols * 3);
            double most = fabs(ref_decode_e4m3(codes[j])) * ref_decode_e8m0(scales[0]);
            codes[j] = most < 0x1p128 ? codes[j] : 1;
        }
        dsv4_matrix w = small_fp8(s, codes, scales, rows, cols);
        double *want = small_values(s, &w);
        float *x = floats(s, T * cols), *y = floats(s, T * rows);
        for (int exponent = -10; exponent <= (limit[i] < 127 ? 30 : 0); exponent += 40)
            for (int k = 0; k < cols; k += T) {
                memset(x, 0, T * cols * sizeof *x);
                for (int token = 0; token < T; token++)
                    x[token * cols + k + token] = (float)ldexp(token % 2 == 0 ? 1 : -1, exponent);
                taken = refused = 0;
                run(&t->tiles, job_of(FAST_MAP, &w, x, T, y));
                const int bit = exponent - 7 + limit[i] - 127 - 9, top = exponent + 1 + limit[i] - 127;
                const bool normal = limit[i] >= 10 && limit[i] <= 246;
                assert_int_equal(refused > 0, !normal || bit < -126 || top > 100);
                assert_int_equal(taken > 0, refused == 0);
                for (int j = 0; j < T * rows; j++) {
                    double exact = want[j % rows * cols + k + j / rows] * x[j / rows * cols + k + j / rows];
                    if (y[j] != (float)exact)
                        fail_msg("scale %d, exponent %d: row %d, column %d is %a, expected %a", limit[i],
                                 exponent, j % rows, k + j / rows, y[j], exact);
                }
            }
    }
    assert_string_equal(s->error.text, "");
}

static void few_of_every_code(void **state)
{
    each_few(state, 1, few_codes);
}

/* quant.nan.1: a weight that is NaN is found, whatever it meets. Inputs that are no normal bf16 numbers, EXACT
 * and --deterministic go the other way, and have its bits. */
static void few_refusals(pair *t)
{
    enum { rows = 36, cols = 256, T = 3 };
    small *s = t->s;
    dsv4_matrix w = small_random_matrix(s, DSV4_F8_E4M3, rows, cols, 1);
    unsigned char *codes = (unsigned char *)(uintptr_t)w.data;
    float *x = floats(s, T * cols), *y = floats(s, T * rows);
    for (int i = 0; i < 256; i++) {
        const int at = i * 977 % (rows * cols);
        const unsigned char before = codes[at];
        codes[at] = i % 2 == 0 ? 0x7f : 0xff;
        s->error = (dsv4_error){{0}};
        taken = 0;
        run(&t->tiles, job_of(FAST_GROUPED, &w, x, 1 + i % T, y));
        assert_non_null(strstr(s->error.text, "NaN"));
        assert_true(taken > 0);
        codes[at] = before;
    }
    s->error = (dsv4_error){{0}};
    run(&t->tiles, job_of(FAST_GROUPED, &w, x, T, y));
    for (int i = 0; i < T * rows; i++)
        assert_true(y[i] == 0);
    static const float bad[] = {0x1p-127f, 1 + 0x1p-8f, 0x1p-120f, 0x1p126f};
    x = inputs(s, T, cols);
    for (int i = 0; i < 4; i++) {
        x[T * cols - 1] = bad[i];
        expect_plain(t, FAST_MAP, &w, x, T);
        assert_int_equal(refused, 1);
    }
    /* Scales that do not leave all codes normal and finite, though inputs times them would be. */
    static const struct { uint8_t scale; float input; } extreme[] = {{9, 0x1p60f}, {247, 0x1p-60f}};
    uint8_t *scales = (uint8_t *)(uintptr_t)w.scale;
    for (int i = 0; i < 2; i++) {
        const uint8_t before = scales[1];
        float *far = floats(s, T * cols);
        for (int j = 0; j < T * cols; j++)
            far[j] = extreme[i].input;
        memset(codes, 1, rows * cols); /* of little size */
        scales[1] = extreme[i].scale;
        expect_plain(t, FAST_MAP, &w, far, T);
        assert_int_equal(refused, 1);
        scales[1] = before;
        taken = 0;
        run(&t->tiles, job_of(FAST_MAP, &w, far, T, y));
        assert_true(taken > 0 && refused == 1);
    }
    assert_string_equal(s->error.text, "");
    x[T * cols - 1] = 1;
    for (int i = 0; i < 2; i++) {
        t->tiles.deterministic = i == 0;
        t->tiles.released = t->plain.released = i == 0;
        expect_plain(t, FAST_MAP, &w, x, T);
        assert_int_equal(refused, 0);
    }
}

static void few_that_are_refused(void **state)
{
    each_few(state, 1, few_refusals);
}

/* A row and a token have the same bits in any company, on any number of threads. */
static void few_in_company(pair *t)
{
    enum { rows = 300, cols = 512, T = 4, STRIDE = rows + 3 };
    small *s = t->s;
    dsv4_matrix w = small_random_matrix(s, DSV4_F8_E4M3, rows, cols, 1);
    float *x = inputs(s, T, cols), *y = floats(s, T * rows), *part = floats(s, T * STRIDE);
    run(&t->tiles, job_of(FAST_LINEAR, &w, x, T, y));
    for (int i = 0; i < 100; i++) {
        const int64_t n = 1 + i % 4, token = i / 4 % (T - n + 1), row = i * 7 % 150, end = rows - i * 11 % 149;
        fast_linear_job job = {.kind = FAST_LINEAR, .w = &w, .first = row, .rows = end - row,
                               .x = x + token * cols, .T = n, .x_stride = cols, .y = part, .y_stride = STRIDE};
        memset(part, 0x55, T * STRIDE * sizeof *part);
        run(&t->tiles, job);
        for (int64_t j = 0; j < T * STRIDE; j++) {
            float want;
            memset(&want, 0x55, sizeof want);
            if (j / STRIDE < n && j % STRIDE < end - row)
                want = y[(token + j / STRIDE) * rows + row + j % STRIDE];
            assert_memory_equal(&part[j], &want, sizeof want);
        }
    }
    assert_int_equal(refused, 0);
}

static void few_in_any_company(void **state)
{
    each_few(state, 1, few_in_company);
    each_few(state, 3, few_in_company);
}

#else

static void no_tiles(void **state)
{
    (void)state;
    skip();
}

#endif

int main(void)
{
    const struct CMUnitTest tests[] = {
#ifdef __x86_64__
        small_test(every_size),
        small_test(large_products),
        small_test(every_code),
        small_test(every_short_number),
        small_test(what_is_no_normal_number),
        small_test(weights_that_are_not_finite),
        small_test(any_company),
        small_test(as_emulated),
        cmocka_unit_test(self_check),
        small_test(few_of_every_size),
        small_test(few_of_every_code),
        small_test(few_that_are_refused),
        small_test(few_in_any_company),
#else
        cmocka_unit_test(no_tiles),
#endif
    };
    return cmocka_run_group_tests_name("fast_bf16", tests, NULL, NULL) != 0;
}
