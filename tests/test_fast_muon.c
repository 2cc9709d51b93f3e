/* fast/muon.c: against the reference. */
#include "small.h"

#include <math.h>
#include <string.h>

#include "fast/fast.h"

static fast_context begin(small *s, int threads)
{
    int levels;
    fast_context c = {.config = &s->config, .kernels = fast_levels(&levels)[0],
                      .pool = fast_pool_new(threads, &s->error), .memory = fast_memory_new(),
                      .error = &s->error};
    assert_non_null(c.pool);
    return c;
}

static void end(const fast_context *c)
{
    assert_string_equal(c->error->text, "");
    fast_pool_free(c->pool);
    fast_memory_free(c->memory);
}

typedef struct { float *G, *B, *M; } operands;

static operands make(small *s, int64_t count)
{
    operands o;
    float **part[3] = {&o.G, &o.B, &o.M};
    for (int i = 0; i < 3; i++) {
        *part[i] = small_alloc(s, count, sizeof(float));
        for (int64_t j = 0; j < count; j++)
            (*part[i])[j] = (float)small_random(s);
    }
    return o;
}

static double *doubles(small *s, const float *x, int64_t count)
{
    double *y = small_array(s, count);
    for (int64_t i = 0; i < count; i++)
        y[i] = x[i];
    return y;
}

/* Everything is binary64 up to the last rounding: half a unit of binary32, and what different
 * orders of binary64 sums make of it in ten steps that multiply small singular values with up to
 * 3.4. */
static void step(small *s, const fast_context *c, const fast_muon_options *options, int64_t rows,
                 int64_t cols, operands o)
{
    int64_t count = rows * cols;
    const ref_muon_options same = {options->momentum, options->learning_rate,
                                   options->weight_decay, options->rescale};
    double *G = doubles(s, o.G, count), *B = doubles(s, o.B, count), *M = doubles(s, o.M, count);
    ref_muon_step(&same, rows, cols, G, B, M);
    fast_muon_step(c, options, rows, cols, o.G, o.B, o.M);
    for (int64_t i = 0; i < count; i++) {
        small_about(s, o.B[i], B[i], 0x1.001p-25 * fabs(B[i]) * 2);
        small_about(s, o.M[i], M[i], 0x1.001p-25 * fabs(M[i]) * 2 + 1e-10);
    }
}

static const fast_muon_options training = {0.95, 0.02, 0.1, 0.18};
static const fast_muon_options other = {0.5, 1, 0.25, 2};

static void reference(void **state)
{
    small *s = *state;
    static const int64_t shapes[][2] = {{1, 1}, {1, 9}, {9, 1}, {2, 2}, {5, 7}, {7, 5}, {64, 64},
                                        {65, 63}, {30, 130}, {131, 67}, {24, 300}, {70, 261}};
    fast_context c = begin(s, 2);
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        int64_t rows = shapes[i][0], cols = shapes[i][1];
        operands o = make(s, rows * cols);
        step(s, &c, &training, rows, cols, o);
        for (int64_t j = 0; j < rows * cols; j++)
            o.G[j] = (float)small_random(s);
        step(s, &c, &other, rows, cols, o); /* with the momentum of the step before */
    }
    end(&c);
}

static void no_update(void **state)
{
    small *s = *state;
    fast_context c = begin(s, 1);
    const fast_muon_options half = {0.5, 0.25, 0.5, 1};
    float G[6] = {0}, B[6] = {0}, M[6] = {1, 2, 3, 4, 5, 6};
    fast_muon_step(&c, &half, 2, 3, G, B, M);
    for (int i = 0; i < 6; i++) {
        assert_true(M[i] == 0.875 * (i + 1));
        assert_true(B[i] == 0);
    }
    end(&c);
}

static void threads_change_nothing(void **state)
{
    small *s = *state;
    enum { rows = 150, cols = 90, count = rows * cols };
    operands first = make(s, count);
    float *B = small_alloc(s, count, sizeof *B), *M = small_alloc(s, count, sizeof *M);
    float *B1 = small_alloc(s, count, sizeof *B), *M1 = small_alloc(s, count, sizeof *M);
    for (int threads = 1; threads <= 5; threads += 2) {
        fast_context c = begin(s, threads);
        memcpy(B, first.B, count * sizeof *B);
        memcpy(M, first.M, count * sizeof *M);
        fast_muon_step(&c, &training, rows, cols, first.G, B, M);
        if (threads == 1) {
            memcpy(B1, B, count * sizeof *B);
            memcpy(M1, M, count * sizeof *M);
        }
        assert_memory_equal(B, B1, count * sizeof *B);
        assert_memory_equal(M, M1, count * sizeof *M);
        end(&c);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        small_test(reference), small_test(no_update), small_test(threads_change_nothing),
    };
    return cmocka_run_group_tests_name("fast_muon", tests, NULL, NULL) != 0;
}
