/* The fast path's products: against ref/linear.c, and against themselves in other company. Every
 * level of instructions that the machine has.
 *
 * The error model: every term of a sum is rounded once as a product (or not at all, where products
 * are fused), and once for each addition that follows: at most cols / 4 + 1 in its lane and 4
 * between lanes. Weights and inputs are exact. So a sum is off by no more than
 * (cols / 4 + 8) 2^-24 sum |w| |x|; RELEASED outputs are what such a sum can be rounded to. */
#include "small.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "fast/fast.h"

enum { FIRST_DTYPE, DTYPES = 5 };
static const dsv4_dtype dtypes[DTYPES] = {DSV4_F32, DSV4_BF16, DSV4_F16, DSV4_F8_E4M3, DSV4_I8};

typedef void operator(small *s, const fast_context *c);

/* Runs a test for every level with `threads`, in both contracts; where --deterministic makes a
 * difference, with and without. */
static void each_level(small *s, int threads, operator *test)
{
    int count;
    const fast_kernels *const *levels = fast_levels(&count);
    for (int i = 0; i < 4 * count; i++) {
        const bool released = i % 2 == 1, deterministic = i / 2 % 2 == 0;
        if (!deterministic && levels[i / 4]->tiles == NULL && levels[i / 4]->few_fp4 == NULL &&
            levels[i / 4]->few_fp8 == NULL)
            continue;
        s->error = (dsv4_error){{0}};
        s->c.numerics = released ? DSV4_RELEASED : DSV4_EXACT;
        fast_context c = {.config = &s->config, .released = released,
                          .deterministic = deterministic, .kernels = levels[i / 4],
                          .pool = fast_pool_new(threads, &s->error),
                          .memory = fast_memory_new(), .error = &s->error};
        assert_non_null(c.pool);
        test(s, &c);
        fast_memory_free(c.memory);
        fast_pool_free(c.pool);
    }
}

/* Not at the start of a cache line. */
static float *floats(small *s, int64_t count)
{
    return (float *)small_alloc(s, count + 1, sizeof(float)) + 1;
}

static float *to_floats(small *s, const double *x, int64_t count)
{
    float *y = floats(s, count);
    for (int64_t i = 0; i < count; i++)
        y[i] = (float)x[i];
    return y;
}

/* Rounding points of a product. */
static void prepare(const small *s, fast_linear_kind kind, const dsv4_matrix *w, double *weights,
                    int64_t rows, double *x, int64_t T)
{
    if (s->c.numerics == DSV4_EXACT || kind == FAST_MAP)
        return;
    if (kind == FAST_LINEAR && w->scale != NULL)
        small_act_quant(x, T * w->cols, 128);
    else
        for (int64_t i = 0; i < rows * w->cols; i++)
            weights[i] = small_to_bf16(weights[i]);
}

/* One output is what the error model allows: weights [cols], x [cols]. */
static void check_sum(const small *s, bool rounded, const char *level, const double *weights,
                      const double *x, int64_t cols, double got, double want)
{
    double sum = 0, size = 0;
    for (int64_t i = 0; i < cols; i++) {
        sum += weights[i] * x[i];
        size += fabs(weights[i] * x[i]);
    }
    double bound = ((double)cols / 4 + 8) * (0x1p-24 * size + 0x1p-149);
    double low = sum - bound, high = sum + bound;
    if (rounded) {
        low = small_to_bf16(low);
        high = small_to_bf16(high);
    }
    if (!(low <= got && got <= high) || !(low <= want && want <= high))
        fail_msg("%s: %lld columns: got %.9g, reference %.9g, expected %.9g to %.9g; seed %#llx",
                 level, (long long)cols, got, want, low, high, (unsigned long long)s->seed);
}

/* linear.product.1, linear.quant.1, linear.plain.1, linear.round.1, linear.f32.1: one product
 * against the reference, then for fewer tokens against itself. */
static void check_product(small *s, const fast_context *c, fast_linear_kind kind,
                          const dsv4_matrix *w, int64_t T)
{
    int64_t rows = w->rows, cols = w->cols;
    double *x = small_randoms(s, T * cols, 4), *want = small_array(s, T * rows);
    for (int64_t i = 0; i < T * cols; i++)
        x[i] *= i / 64 % 3 == 0 ? 1 : 0x1p-12;
    float *input = to_floats(s, x, T * cols), *same = to_floats(s, x, T * cols);
    float *y = floats(s, T * rows), *few = floats(s, T * rows);
    if (kind == FAST_LINEAR) {
        ref_linear(&s->c, w, x, T, want);
        fast_linear(c, w, input, T, y);
    } else {
        ref_linear_f32(&s->c, w, x, T, want);
        fast_linear_f32(c, w, input, T, y);
    }
    assert_memory_equal(input, same, (size_t)(T * cols) * sizeof *input);
    double *weights = small_values(s, w);
    prepare(s, kind, w, weights, rows, x, T);
    for (int64_t i = 0; i < T * rows; i++)
        check_sum(s, c->released && kind != FAST_MAP, c->kernels->name,
                  weights + i % rows * cols, x + i / rows * cols, cols, y[i], want[i]);
    for (int64_t n = 1; n < T && c->deterministic; n++) {
        fast_linear_job job = {.kind = kind, .w = w, .rows = rows, .x = input + (T - n) * cols,
                               .T = n, .x_stride = cols, .y = few, .y_stride = rows};
        fast_linear_jobs(c, &job, 1);
        if (memcmp(few, y + (T - n) * rows, (size_t)(n * rows) * sizeof *y) != 0)
            fail_msg("%s: dtype %d, %lld columns: a row is not the same among %lld tokens",
                     c->kernels->name, (int)w->dtype, (long long)cols, (long long)n);
    }
    assert_string_equal(s->error.text, "");
}

/* Inputs of FP8 and FP4 are multiples of 128 in RELEASED. */
static bool fits(const fast_context *c, dsv4_dtype dtype, int64_t cols)
{
    bool fp8 = dtype == DSV4_F8_E4M3, fp4 = dtype == DSV4_I8;
    return c->released ? !(fp8 || fp4) || cols % 128 == 0 : !fp4 || cols % 32 == 0;
}

static void formats(small *s, const fast_context *c)
{
    static const struct { int64_t rows, cols, T; } size[] = {
        {1, 1, 3},   {5, 3, 6},    {4, 17, 2},   {7, 48, 9},   {9, 72, 14}, {131, 96, 5},
        {3, 127, 8}, {29, 130, 7}, {130, 128, 5}, {21, 256, 40}, {6, 300, 13}, {135, 384, 4},
        {11, 640, 3}};
    for (int i = 0; i < (int)(sizeof size / sizeof *size); i++)
        for (int j = FIRST_DTYPE; j < DTYPES; j++) {
            if (!fits(c, dtypes[j], size[i].cols))
                continue;
            dsv4_matrix w = small_random_matrix(s, dtypes[j], size[i].rows, size[i].cols, 1);
            check_product(s, c, FAST_LINEAR, &w, size[i].T);
            if (i % 3 == 0)
                check_product(s, c, FAST_MAP, &w, size[i].T);
        }
}

static void every_format(void **state)
{
    each_level(*state, 1, formats);
}

/* More items than threads, and more rows than a panel of decoded ones has. */
static void large(small *s, const fast_context *c)
{
    for (int j = FIRST_DTYPE; j < DTYPES; j++) {
        dsv4_matrix w = small_random_matrix(s, dtypes[j], 61, 4352, 1);
        check_product(s, c, FAST_LINEAR, &w, 7);
    }
}

static void large_products(void **state)
{
    each_level(*state, 3, large);
}

/* linear.grouped.1, linear.grouped.2 */
static void groups(small *s, const fast_context *c)
{
    enum { groups_count = 3, out = 43, in = 128, T = 6, rows = groups_count * out };
    for (int j = FIRST_DTYPE; j < DTYPES; j++) {
        dsv4_matrix w = small_random_matrix(s, dtypes[j], rows, in, 1);
        double *x = small_randoms(s, T * groups_count * in, 4), want[T * rows];
        float *input = to_floats(s, x, T * groups_count * in), y[T * rows];
        ref_linear_grouped(&s->c, &w, groups_count, x, T, want);
        fast_linear_grouped(c, &w, groups_count, input, T, y);
        double *weights = small_values(s, &w);
        prepare(s, FAST_GROUPED, &w, weights, rows, NULL, 0);
        for (int64_t i = 0; i < T * rows; i++)
            check_sum(s, c->released, c->kernels->name, weights + i % rows * in,
                      x + (i / rows * groups_count + i % rows / out) * in, in, y[i], want[i]);
        for (int64_t t = 0; t < T && c->deterministic; t++) {
            float alone[rows];
            fast_linear_grouped(c, &w, groups_count, input + t * groups_count * in, 1, alone);
            assert_memory_equal(alone, y + t * rows, sizeof alone);
        }
    }
}

static void grouped_products(void **state)
{
    each_level(*state, 2, groups);
}

/* y = w times `unit`, a power of two, column by column, is exact: every product but one is 0. With
 * `chunk` tokens at a time. */
static void check_values(small *s, const fast_context *c, fast_linear_kind kind,
                         const dsv4_matrix *w, double unit, int64_t chunk)
{
    int64_t rows = w->rows, cols = w->cols;
    float *x = floats(s, cols * cols), *y = floats(s, cols * rows);
    for (int64_t i = 0; i < cols; i++)
        x[i * cols + i] = (float)unit;
    for (int64_t t = 0; t < cols; t += chunk) {
        fast_linear_job job = {.kind = kind, .w = w, .rows = rows, .x = x + t * cols,
                               .T = t + chunk < cols ? chunk : cols - t, .x_stride = cols,
                               .y = y + t * rows, .y_stride = rows};
        fast_linear_jobs(c, &job, 1);
    }
    double *want = small_values(s, w);
    for (int64_t i = 0; i < rows * cols; i++) {
        double value = kind == FAST_GROUPED ? small_bf16_point(s, want[i]) : want[i];
        value *= unit;
        if (y[i % cols * rows + i / cols] != (float)value)
            fail_msg("%s: dtype %d: weight %lld is %a, expected %a", c->kernels->name,
                     (int)w->dtype, (long long)i, y[i % cols * rows + i / cols], value);
    }
    assert_string_equal(s->error.text, "");
}

static double largest_of(double a, double b)
{
    return a > b ? a : b;
}

/* Every code times every scale, where a binary32 number holds the product. */
static void fp8_codes(small *s, const fast_context *c)
{
    enum { rows = 5, cols = 256 };
    static const uint8_t scale[][2] = {{0, 1}, {2, 3}, {4, 60}, {127, 128}, {200, 245}, {246, 247},
                                       {248, 253}, {254, 5}};
    for (int i = 0; i < (int)(sizeof scale / sizeof *scale); i++) {
        uint8_t codes[rows * cols];
        double unit = scale[i][0] < 3 ? 0x1p100 : 1; /* roundings of subnormal weights show */
        for (int j = 0; j < rows * cols; j++)
            codes[j] = (uint8_t)(j * 7 % 256); /* each code in both blocks of some row */
        for (int pass = 0; pass < 2; pass++) {
            for (int j = 0; j < rows * cols; j++) {
                if (pass == 1)
                    codes[j] ^= 0x80;
                double size = fabs(ref_decode_e4m3(codes[j]));
                if (!(size * ref_decode_e8m0(scale[i][j % cols / 128]) < 0x1p128))
                    codes[j] = 0;
            }
            dsv4_matrix w = small_fp8(s, codes, scale[i], rows, cols);
            for (int64_t chunk = 1; chunk <= 7; chunk += chunk < 3 ? 1 : 2) {
                check_values(s, c, FAST_MAP, &w, unit, chunk);
                check_values(s, c, FAST_GROUPED, &w, unit, chunk);
            }
        }
    }
}

static void fp4_codes(small *s, const fast_context *c)
{
    enum { rows = 16, cols = 512, blocks = cols / 32 };
    uint8_t bytes[rows * cols / 2], scales[rows * blocks];
    for (int i = 0; i < rows * blocks; i++) {
        scales[i] = (uint8_t)(i < 255 ? i : 254);
        for (int j = 0; j < 16; j++) {
            int low = (j + i) % 16, high = (5 * j + 3 * i + 1) % 16;
            double most = ref_decode_e8m0(scales[i]) * largest_of(fabs(ref_decode_e2m1(low)),
                                                                  fabs(ref_decode_e2m1(high)));
            bytes[16 * i + j] = (uint8_t)(most < 0x1p128 ? low | high << 4 : 0x91);
        }
    }
    dsv4_matrix w = small_fp4(s, bytes, scales, rows, cols);
    for (int64_t chunk = 1; chunk <= 5; chunk++) {
        check_values(s, c, FAST_MAP, &w, 1, chunk);
        check_values(s, c, FAST_GROUPED, &w, 1, chunk);
    }
}

/* Rows of two blocks that are in hand at once: one with scales at either end of their range. */
static void border_of_blocks(small *s, const fast_context *c)
{
    enum { first = 1, rows = 130, cols = 128 };
    static const uint8_t scale[][2] = {{127, 250}, {250, 127}, {127, 1}, {1, 127}};
    static const float unit[] = {1, 0x1p100f};
    for (int i = 0; i < 4; i++) {
        uint8_t codes[rows * cols] = {0};
        float y[rows], x[cols] = {unit[i / 2]};
        for (int j = 0; j < rows; j++)
            codes[j * cols] = (uint8_t)(j % 17); /* up to 17 2^-9 */
        dsv4_matrix w = small_fp8(s, codes, scale[i], rows, cols);
        double *values = small_values(s, &w);
        fast_linear_job job = {.kind = FAST_GROUPED, .w = &w, .first = first, .rows = rows - first,
                               .x = x, .T = 1, .x_stride = cols, .y = y, .y_stride = rows};
        fast_linear_jobs(c, &job, 1);
        for (int j = first; j < rows; j++)
            assert_true(y[j - first] == small_bf16_point(s, values[j * cols]) * x[0]);
    }
}

/* Finite numbers of two bytes: all of them. */
static void short_codes(small *s, const fast_context *c)
{
    enum { rows = 512, cols = 128 };
    for (int i = 0; i < 2; i++) {
        dsv4_dtype dtype = i == 0 ? DSV4_BF16 : DSV4_F16;
        uint16_t ends = i == 0 ? 0x7f80 : 0x7c00;
        dsv4_matrix w = small_random_matrix(s, dtype, rows, cols, 1);
        unsigned char *data = small_alloc(s, 2 * rows * cols + 1, 1);
        w.data = data + 1;
        for (int j = 0; j < rows * cols; j++) {
            uint16_t code = (uint16_t)j;
            code = (code & ends) == ends ? 0 : code;
            memcpy(data + 1 + 2 * j, &code, 2);
        }
        check_values(s, c, FAST_MAP, &w, 1, 4);
        check_values(s, c, FAST_GROUPED, &w, 1, 64);
    }
}

static void every_code(void **state)
{
    each_level(*state, 1, fp8_codes);
    each_level(*state, 1, fp4_codes);
    each_level(*state, 2, short_codes);
    each_level(*state, 1, border_of_blocks);
}

/* A row is the same whoever computes it, among whatever else; rows between are not touched. */
static void company(small *s, const fast_context *c)
{
    enum { rows = 70, cols = 256, T = 5, NARROW = 3 * DTYPES, JOBS = 4 * DTYPES };
    fast_linear_job jobs[JOBS], turned[JOBS];
    float *x = to_floats(s, small_randoms(s, T * (cols + 3), 2), T * (cols + 3));
    float *alone[JOBS], *together[JOBS];
    dsv4_matrix w[DTYPES], narrow[DTYPES];
    for (int i = 0; i < JOBS; i++) {
        if (i < DTYPES) {
            w[i] = small_random_matrix(s, dtypes[i], rows, cols, 1);
            narrow[i] = small_random_matrix(s, dtypes[i], rows, cols / 2, 1);
        }
        alone[i] = floats(s, T * (rows + 2));
        together[i] = floats(s, T * (rows + 2));
        jobs[i] = (fast_linear_job){
            .kind = i < NARROW ? (fast_linear_kind)(i / DTYPES) : FAST_LINEAR,
            .w = i < NARROW ? &w[i % DTYPES] : &narrow[i % DTYPES], .first = i % 7,
            .rows = rows - 5 * (i % 7), .x = x, .T = 1 + i % T, .x_stride = cols + 3,
            .y = alone[i], .y_stride = rows + 2};
        fast_linear_jobs(c, &jobs[i], 1);
    }
    for (int i = 0; i < JOBS; i++) {
        turned[i] = jobs[JOBS - 1 - i];
        turned[i].y = together[JOBS - 1 - i];
    }
    for (int threads = 1; threads <= 3; threads++) {
        fast_context other = *c;
        other.pool = fast_pool_new(threads, c->error);
        fast_linear_jobs(&other, turned, JOBS);
        fast_pool_free(other.pool);
        for (int i = 0; i < JOBS; i++) {
            assert_memory_equal(alone[i], together[i], T * (rows + 2) * sizeof(float));
            for (int64_t t = 0; t < T; t++)
                for (int64_t o = t < jobs[i].T ? jobs[i].rows : 0; o < rows + 2; o++)
                    assert_true(together[i][t * (rows + 2) + o] == 0);
            memset(together[i], 0, T * (rows + 2) * sizeof(float));
        }
    }
    /* The rows of the whole product. */
    for (int i = 0; i < JOBS; i++) {
        float y[T * rows];
        fast_linear_job job = jobs[i];
        job.first = 0;
        job.rows = rows;
        job.y = y;
        job.y_stride = rows;
        fast_linear_jobs(c, &job, 1);
        for (int64_t t = 0; t < job.T; t++)
            assert_memory_equal(y + t * rows + jobs[i].first, alone[i] + t * (rows + 2),
                                (size_t)jobs[i].rows * sizeof *y);
    }
}

static void any_company(void **state)
{
    each_level(*state, 1, company);
}

/* quant.nan.1: the same line as the reference's, for few tokens and for many. */
static void check_named(small *s, const fast_context *c, const dsv4_matrix *w)
{
    enum { MOST_TOKENS = 6 };
    double *x = small_array(s, MOST_TOKENS * w->cols);
    double *want = small_array(s, MOST_TOKENS * w->rows);
    float *input = floats(s, MOST_TOKENS * w->cols), *y = floats(s, MOST_TOKENS * w->rows);
    for (int64_t i = 0; i < MOST_TOKENS * w->cols; i++)
        x[i] = input[i] = 1;
    for (int64_t T = 1; T <= MOST_TOKENS; T++)
        for (int i = 0; i < 3; i++) {
            dsv4_error error = {{0}};
            ref_context r = s->c;
            r.error = &error;
            s->error = (dsv4_error){{0}};
            if (i == 0) {
                ref_linear(&r, w, x, T, want);
                fast_linear(c, w, input, T, y);
            } else if (i == 1) {
                ref_linear_f32(&r, w, x, T, want);
                fast_linear_f32(c, w, input, T, y);
            } else {
                ref_linear_grouped(&r, w, 1, x, T, want);
                fast_linear_grouped(c, w, 1, input, T, y);
            }
            assert_true(error.text[0] != '\0');
            assert_string_equal(s->error.text, error.text);
        }
    s->error = (dsv4_error){{0}};
}

static void bad_weights(small *s, const fast_context *c)
{
    enum { rows = 135, cols = 256 };
    for (int64_t at = 77; at < rows * cols; at += 5003)
        for (int j = FIRST_DTYPE; j < DTYPES; j++) {
            dsv4_matrix w = small_random_matrix(s, dtypes[j], rows, cols, 1);
            unsigned char *data = (unsigned char *)(uintptr_t)w.data;
            int64_t bytes = dtypes[j] == DSV4_F32 ? 4 : dtypes[j] == DSV4_F8_E4M3 ? 1 : 2;
            if (dtypes[j] == DSV4_I8) {
                ((uint8_t *)(uintptr_t)w.scale)[at / 32] = 255;
                check_named(s, c, &w);
                continue;
            }
            data[bytes * at + bytes - 1] = at % 2 == 0 ? 0x7f : 0xff;
            if (bytes > 1)
                data[bytes * at + bytes - 2] = dtypes[j] == DSV4_F16 ? 0x01 : 0x81;
            check_named(s, c, &w);
            if (bytes > 1) { /* infinite */
                memset(data + bytes * at, 0, (size_t)bytes);
                data[bytes * at + bytes - 1] = dtypes[j] == DSV4_F16 ? 0xfc : 0xff;
                data[bytes * at + bytes - 2] = dtypes[j] == DSV4_F16 ? 0x00 : 0x80;
                check_named(s, c, &w);
            } else {
                data[at] = 0;
                ((uint8_t *)(uintptr_t)w.scale)[at % 4] = 255;
                check_named(s, c, &w);
            }
        }
    if (c->released)
        return;
    /* At the end of a row that is no whole vector. */
    dsv4_matrix w = small_random_matrix(s, DSV4_F8_E4M3, 6, 133, 1);
    ((unsigned char *)(uintptr_t)w.data)[4 * 133 + 132] = 0x7f;
    check_named(s, c, &w);
}

/* A weight that is not read, and an input or a sum that is not finite, are no bad weights. */
static void no_bad_weights(small *s, const fast_context *c)
{
    dsv4_matrix w = small_f32(s, (double[]){1, NAN, 3, 4}, 4, 1);
    float x = 1, y[4];
    fast_linear_job job = {.kind = FAST_MAP, .w = &w, .first = 2, .rows = 2, .x = &x, .T = 1,
                           .x_stride = 1, .y = y, .y_stride = 2};
    fast_linear_jobs(c, &job, 1);
    assert_true(y[0] == 3 && y[1] == 4);
    x = INFINITY;
    fast_linear_jobs(c, &job, 1);
    assert_true(y[0] == INFINITY);
    x = 0x1p127f;
    fast_linear_jobs(c, &job, 1);
    assert_true(y[0] == INFINITY);
    assert_string_equal(s->error.text, "");
    job.T = 0;
    fast_linear_jobs(c, &job, 1);
    fast_linear_jobs(c, &job, 0);
    /* The first thing that went wrong stays. */
    job.T = 1;
    job.first = 0;
    dsv4_fail(c->error, "earlier");
    fast_linear_jobs(c, &job, 1);
    assert_string_equal(s->error.text, "earlier");
}

static void weights_that_are_not_finite(void **state)
{
    each_level(*state, 2, bad_weights);
    each_level(*state, 1, no_bad_weights);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        small_test(every_format),
        small_test(large_products),
        small_test(grouped_products),
        small_test(every_code),
        small_test(any_company),
        small_test(weights_that_are_not_finite),
    };
    return cmocka_run_group_tests_name("fast_linear", tests, NULL, NULL) != 0;
}
