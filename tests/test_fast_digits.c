/* The fast path's products of few tokens with FP4 weights by whole numbers: against the definition, against
 * the level without them, and against themselves in other company.
 *
 * The error model: within a block of 128 the sums of whole numbers are exact; each lane then is rounded to
 * binary32, scaled and added, once for a block, and the lanes are added in 4 steps. So a sum is off by no
 * more than (2 blocks + 4) 2^-24 sum |w| |x|. */
#include "small.h"

#include <limits.h>
#include <math.h>
#include <string.h>

#include "fast/fast.h"

static const fast_tile_kernels *spied;
static int taken, refused; /* on the thread of the test */

static bool counted_product(const fast_product *p, int64_t begin, int64_t end, float *scratch)
{
    bool good = spied->product(p, begin, end, scratch);
    taken += good;
    refused += !good;
    return good;
}

typedef struct {
    small *s;
    fast_context digits, plain; /* the same without */
} pair;

static void with_digits(void **state, void test(pair *))
{
    small *s = *state;
    int count;
    const fast_kernels *const *levels = fast_levels(&count);
    if (count < 3 || levels[2]->few_fp4 == NULL)
        skip();
    fast_kernels kernels = *levels[2], without = *levels[2];
    spied = kernels.few_fp4;
    fast_tile_kernels spy = *spied;
    spy.product = counted_product;
    kernels.few_fp4 = &spy;
    without.few_fp4 = NULL;
    s->c.numerics = DSV4_RELEASED;
    pair t = {.s = s, .digits = {.config = &s->config, .released = true, .kernels = &kernels,
                                 .pool = fast_pool_new(1, &s->error),
                                 .memory = fast_memory_new(), .error = &s->error}};
    assert_non_null(t.digits.pool);
    t.plain = t.digits;
    t.plain.kernels = &without;
    taken = refused = 0;
    test(&t);
    fast_memory_free(t.digits.memory);
    fast_pool_free(t.digits.pool);
}

static float *floats(small *s, int64_t count)
{
    return (float *)small_alloc(s, count + 1, sizeof(float)) + 1;
}

static float *inputs(small *s, int64_t count)
{
    float *x = floats(s, count);
    double *values = small_randoms(s, count, 4);
    for (int64_t i = 0; i < count; i++)
        x[i] = (float)values[i] * (i / 64 % 3 == 0 ? 1 : 0x1p-12f);
    return x;
}

static void run(const fast_context *c, const dsv4_matrix *w, const float *x, int64_t T, float *y)
{
    fast_linear_job job = {.kind = FAST_LINEAR, .w = w, .rows = w->rows, .x = x, .T = T,
                           .x_stride = w->cols, .y = y, .y_stride = w->rows};
    fast_linear_jobs(c, &job, 1);
}

static void expect(small *s, const dsv4_matrix *w, const float *x, int64_t T, const float *y)
{
    double *weights = small_values(s, w), *input = small_array(s, T * w->cols);
    for (int64_t i = 0; i < T * w->cols; i++)
        input[i] = x[i];
    for (int64_t t = 0; t < T; t++)
        small_act_quant(input + t * w->cols, w->cols, 128);
    for (int64_t i = 0; i < T * w->rows; i++) {
        const double *row = weights + i % w->rows * w->cols, *in = input + i / w->rows * w->cols;
        double sum = 0, size = 0;
        for (int64_t k = 0; k < w->cols; k++) {
            sum += row[k] * in[k];
            size += fabs(row[k] * in[k]);
        }
        double bound = (2 * ((double)w->cols / 128 + 1) + 4) * 0x1p-24 * size;
        double low = small_to_bf16(sum - bound), high = small_to_bf16(sum + bound);
        if (!(low <= y[i] && y[i] <= high))
            fail_msg("[%d, %d], %d tokens: value %d is %.9g, expected %.9g to %.9g; seed %#llx",
                     (int)w->rows, (int)w->cols, (int)T, (int)i, y[i], low, high,
                     (unsigned long long)s->seed);
    }
}

/* covers: linear.quant.1 linear.round.1 quant.fp4.1 quant.e2m1.1 quant.e8m0.1 */
static void sizes(pair *t)
{
    static const int64_t rows[] = {1, 3, 4, 5, 66}, cols[] = {128, 256, 384, 640, 1152, 4096};
    for (int i = 0; i < 5; i++)
        for (int j = 0; j < 6; j++) {
            dsv4_matrix w = small_random_matrix(t->s, DSV4_I8, rows[i], cols[j], 1);
            float *x = inputs(t->s, 4 * cols[j]), *y = floats(t->s, 4 * rows[i]);
            float *alone = floats(t->s, rows[i]);
            for (int64_t T = 1; T <= 4; T++) {
                taken = refused = 0;
                run(&t->digits, &w, x, T, y);
                assert_true(taken > 0 && refused == 0);
                expect(t->s, &w, x, T, y);
                for (int64_t n = 0; n < T; n++) {
                    run(&t->digits, &w, x + n * cols[j], 1, alone);
                    assert_memory_equal(alone, y + n * rows[i], (size_t)rows[i] * sizeof *y);
                }
            }
            /* One row after the other. */
            for (int64_t row = 0; row < rows[i]; row++) {
                fast_linear_job one = {.kind = FAST_LINEAR, .w = &w, .first = row, .rows = 1,
                                       .x = x, .T = 1, .x_stride = cols[j], .y = alone + row,
                                       .y_stride = rows[i]};
                fast_linear_jobs(&t->digits, &one, 1);
            }
            assert_memory_equal(alone, y, (size_t)rows[i] * sizeof *y);
        }
    assert_string_equal(t->s->error.text, "");
}

static void against_the_definition(void **state)
{
    with_digits(state, sizes);
}

/* Every weight times every input, each at every place of a block. */
static void every_product(pair *t)
{
    enum { rows = 16, cols = 128 };
    small *s = t->s;
    dsv4_matrix w = small_random_matrix(s, DSV4_I8, rows, cols, 1);
    unsigned char *codes = (unsigned char *)(uintptr_t)w.data;
    uint8_t *scales = (uint8_t *)(uintptr_t)w.scale;
    for (int r = 0; r < rows; r++)
        memset(codes + r * cols / 2, r * 17, cols / 2);
    for (int i = 0; i < rows * cols / 32; i++)
        scales[i] = (uint8_t)(120 + i % 11);
    double *value = small_values(s, &w);
    float *x = floats(s, cols), *y = floats(s, rows);
    for (int code = 0; code < 256; code++) {
        int exponent = code >> 3 & 15, mantissa = code & 7, place = code * 37 % cols;
        if ((code & 0x7f) == 0x7f)
            continue;
        double input = exponent == 0 ? ldexp(mantissa, -9) : ldexp(8 + mantissa, exponent - 10);
        input = code >= 128 ? -input : input;
        memset(x, 0, cols * sizeof *x);
        x[(place + 1) % cols] = 448; /* the block's scale is 1: all inputs are codes */
        run(&t->digits, &w, x, 1, y);
        for (int r = 0; r < rows; r++)
            assert_true(y[r] == 448 * value[r * cols + (place + 1) % cols]);
        x[place] = (float)input;
        run(&t->digits, &w, x, 1, y);
        for (int r = 0; r < rows; r++) {
            double exact = input * value[r * cols + place] +
                           448 * value[r * cols + (place + 1) % cols];
            assert_true(y[r] == small_to_bf16(exact));
        }
    }
    assert_int_equal(refused, 0);
}

/* Numbers of all 18 bits, and of 15: the largest that two digits hold, and those that they do not. */
static void widest(pair *t)
{
    enum { rows = 4, cols = 128 };
    static const int whole[] = {0x3ffff, 0x3fff8, 0x7f7f << 3, 0x7f80 << 3, (0x7f7f << 3) - 4};
    small *s = t->s;
    dsv4_matrix w = small_random_matrix(s, DSV4_I8, rows, cols, 1);
    double *value = small_values(s, &w);
    float *x = floats(s, cols), *y = floats(s, rows);
    uint16_t *arranged = small_alloc(s, spied->arranged_size(cols), sizeof *arranged);
    float *scratch = floats(s, 4 * cols);
    int lowest = 0;
    fast_product p = {.w = &w, .T = 1, .arranged = arranged, .lowest_bit = &lowest, .y = y,
                      .y_stride = rows};
    for (int i = 0; i < 10; i++)
        for (int place = 0; place < cols; place++) {
            memset(x, 0, cols * sizeof *x);
            x[place] = ldexpf((float)(i < 5 ? whole[i] : -whole[i - 5]), -17);
            assert_int_equal(spied->arrange(x, cols, 1, cols, arranged), 0);
            assert_true(spied->product(&p, 0, rows, scratch));
            for (int r = 0; r < rows; r++)
                assert_true(y[r] == x[place] * value[r * cols + place]);
        }
}

static void every_width(void **state)
{
    with_digits(state, widest);
}

static void every_code(void **state)
{
    with_digits(state, every_product);
}

/* What has no digits goes the other way, and gives its bits. */
static void refusals(pair *t)
{
    enum { rows = 36, cols = 384 };
    small *s = t->s;
    float *x = inputs(s, cols), *y = floats(s, rows), *want = floats(s, rows);
    uint16_t *out = small_alloc(s, spied->arranged_size(cols) + 1, sizeof *out);
    dsv4_matrix w = small_random_matrix(s, DSV4_I8, rows, cols, 1);
    uint8_t *scales = (uint8_t *)(uintptr_t)w.scale;
    const uint8_t last = scales[rows * cols / 32 - 1];
    for (int64_t i = 0; i < cols; i++) /* blocks with the same unit */
        x[i] = (float)(1 + i % 3);
    int good = 0;
    for (int code = 0; code <= 210; code += code == 30 ? 170 : 1) {
        memset(scales + (rows - 1) * cols / 32, code, cols / 32); /* a row of such scales */
        refused = 0;
        run(&t->digits, &w, x, 1, y);
        run(&t->plain, &w, x, 1, want);
        if (refused == 0)
            expect(s, &w, x, 1, y);
        else
            assert_memory_equal(y, want, rows * sizeof *y);
        good += refused == 0;
        assert_string_equal(s->error.text, "");
    }
    assert_true(good > 5 && good < 37); /* of 42: both happen at both ends */
    memset(scales + (rows - 1) * cols / 32, last, cols / 32);
    scales[rows * cols / 32 - 1] = 255; /* quant.nan.1 */
    run(&t->digits, &w, x, 1, y);
    assert_non_null(strstr(s->error.text, "NaN"));
    s->error = (dsv4_error){{0}};
    scales[rows * cols / 32 - 1] = last;
    /* Numbers of more bits than quantised ones have, subnormal ones, and none. */
    static const float bad[] = {0x1p-20f, 1 + 0x1p-18f, 0x1p-130f, NAN, INFINITY};
    for (int64_t i = 0; i < cols; i++)
        x[i] = 1;
    assert_int_equal(spied->arrange(x, cols, 1, cols, out), 0);
    for (int i = 0; i < 5; i++) {
        x[cols - 1] = bad[i];
        assert_int_equal(spied->arrange(x, cols, 1, cols, out), INT_MIN);
    }
    memset(x, 0, cols * sizeof *x);
    x[3] = 0x1p-130f;
    assert_int_equal(spied->arrange(x, cols, 1, cols, out), INT_MIN);
    x[3] = 0;
    assert_int_equal(spied->arrange(x, cols, 1, cols, out), 0);
    run(&t->digits, &w, x, 1, y);
    for (int i = 0; i < rows; i++)
        assert_true(y[i] == 0);
    /* EXACT and --deterministic have no digits, nor have more tokens. */
    float *many = inputs(s, 5 * cols), *more = floats(s, 5 * rows), *wanted = floats(s, 5 * rows);
    for (int i = 0; i < 3; i++) {
        t->digits.released = t->plain.released = i != 0;
        t->digits.deterministic = i == 1;
        taken = refused = 0;
        run(&t->digits, &w, many, i == 2 ? 5 : 1, more);
        run(&t->plain, &w, many, i == 2 ? 5 : 1, wanted);
        assert_true(taken == 0 && refused == 0);
        assert_memory_equal(more, wanted, (size_t)(rows * (i == 2 ? 5 : 1)) * sizeof *more);
    }
}

static void what_has_no_digits(void **state)
{
    with_digits(state, refusals);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        small_test(against_the_definition),
        small_test(every_code),
        small_test(every_width),
        small_test(what_has_no_digits),
    };
    return cmocka_run_group_tests_name("fast_digits", tests, NULL, NULL) != 0;
}
