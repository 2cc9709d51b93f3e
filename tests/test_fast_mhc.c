/* fast/mhc.c and its kernels, at every level of instructions, against the reference. Error model
 * as in test_fast_elements.c. */
#include "fast_small.h"

#include <math.h>
#include <string.h>

static const dsv4_numerics both[] = {DSV4_EXACT, DSV4_RELEASED};
static const int64_t streams[] = {1, 2, 3, 4, 5, 8, 17};
static const int64_t widths[] = {1, 7, 16, 24, 48, 75};
enum { T = 3, SHAPES = 7 * 6 };

static void shape(small *s, int k)
{
    s->config.hc_mult = streams[k % 7];
    s->config.hidden_size = widths[k / 7];
}

static void check(const fast_context *c, const float *got, const double *want, const double *bound,
                  int64_t count)
{
    if (c->released)
        fast_rounded(c, got, want, bound, count, 2 + count / 200);
    else
        fast_near(c, got, want, bound, count);
}

/* A change of the logarithms of C by at most e changes those of every later matrix by 4 e at
 * most: neither a division of rows nor one of columns lets the distance of two matrices grow. */
static void mixes(void **state)
{
    small *s = *state;
    for (int k = 0; k < 2 * SHAPES; k++) {
        s->c.numerics = both[k % 2];
        shape(s, k / 2);
        int64_t n = s->config.hc_mult, nD = n * s->config.hidden_size, m = (2 + n) * n;
        double amplitude = k % 3 == 0 ? 0.01 : 2;
        double *x = small_randoms(s, T * nD, amplitude), *fn = small_randoms(s, m * nD, 1);
        dsv4_hc hc = {.fn = small_f32(s, fn, m, nD),
                      .base = small_f32(s, small_randoms(s, m, 1), 1, m),
                      .scale = small_f32(s, small_randoms(s, 3, 1), 1, 3)};
        double *pre = small_array(s, T * n), *post = small_array(s, T * n);
        double *comb = small_array(s, T * n * n), *bound = small_array(s, T * n * n);
        double *value_bound = small_array(s, T * n);
        for (int64_t t = 0; t < T; t++) {
            const double *f = x + t * nD;
            double most = 0, squares = 0;
            ref_mhc_mix(&s->c, &hc, f, pre + t * n, post + t * n, comb + t * n * n);
            for (int64_t i = 0; i < nD; i++)
                squares += f[i] * f[i];
            for (int64_t o = 0; o < m; o++) {
                double sum = 0;
                for (int64_t i = 0; i < nD; i++)
                    sum += fabs(fn[o * nD + i] * f[i]);
                most = fmax(most, sum);
            }
            /* of m: the sum in any order, the norm, a product; |scale| is at most 1 */
            double off = ((double)nD + (double)nD / 32 + 10) * fast_unit * most /
                         sqrt(squares / (double)nD + 1e-6);
            for (int64_t i = 0; i < n; i++)
                value_bound[t * n + i] = off + 2 * fast_unit;
            for (int64_t i = 0; i < n * n; i++)
                bound[t * n * n + i] = (4 * expm1(off) + 2 * fast_unit) * comb[t * n * n + i];
        }
        fast_walk walk = {0};
        while (fast_small_next(&walk, s, 2)) {
            float *a = small_floats(s, pre, T * n), *b = small_floats(s, post, T * n);
            float *C = small_floats(s, comb, T * n * n);
            memset(a, 0, (size_t)(T * n) * sizeof *a);
            memset(b, 0, (size_t)(T * n) * sizeof *b);
            memset(C, 0, (size_t)(T * n * n) * sizeof *C);
            fast_mhc_mix(&walk.c, &hc, small_floats(s, x, T * nD), T, a, b, C);
            fast_near(&walk.c, a, pre, value_bound, T * n);
            fast_near(&walk.c, b, post, value_bound, T * n);
            fast_near(&walk.c, C, comb, bound, T * n * n);
        }
    }
    assert_string_equal(s->error.text, "");
}

/* Streams whose squares binary32 has not: weights of the mix that undo their magnitude. */
static void mixes_of_any_magnitude(void **state)
{
    small *s = *state;
    enum { n = 2, D = 9, M = (2 + n) * n };
    s->config.hc_mult = n;
    s->config.hidden_size = D;
    s->config.rms_norm_eps = 0;
    for (int exponent = -80; exponent <= 100; exponent += 20) {
        double x[n * D], fn[M * n * D], pre[n], post[n], comb[n * n], bound[n * n];
        for (int i = 0; i < n * D; i++)
            x[i] = ldexp(small_random(s), exponent);
        for (int i = 0; i < M * n * D; i++)
            fn[i] = small_random(s);
        for (int i = 0; i < n * n; i++)
            bound[i] = 1e-5;
        dsv4_hc hc = {.fn = small_f32(s, fn, M, n * D),
                      .base = small_f32(s, small_randoms(s, M, 1), 1, M),
                      .scale = small_f32(s, small_randoms(s, 3, 1), 1, 3)};
        ref_mhc_mix(&s->c, &hc, x, pre, post, comb);
        fast_walk walk = {0};
        while (fast_small_next(&walk, s, 1)) {
            float a[n], b[n], C[n * n];
            fast_mhc_mix(&walk.c, &hc, small_floats(s, x, n * D), 1, a, b, C);
            fast_near(&walk.c, a, pre, bound, n);
            fast_near(&walk.c, b, post, bound, n);
            fast_near(&walk.c, C, comb, bound, n * n);
        }
    }
}

static void a_bad_base_is_named(void **state)
{
    small *s = *state;
    s->config.hc_mult = 1;
    s->config.hidden_size = 2;
    double base[3] = {0, INFINITY, 0}, some[6] = {0};
    dsv4_hc hc = {.fn = small_f32(s, some, 3, 2), .base = small_f32(s, base, 1, 3),
                  .scale = small_f32(s, some, 1, 3)};
    fast_walk walk = {0};
    while (fast_small_next(&walk, s, 1)) {
        float x[2] = {1, 2}, pre, post, comb;
        s->error = (dsv4_error){{0}};
        fast_mhc_mix(&walk.c, &hc, x, 1, &pre, &post, &comb);
        assert_string_equal(s->error.text, "small.safetensors: small.weight: value [0, 1] is "
                                           "infinite, expected a finite number");
    }
}

/* From the same numbers, in binary64: only the result is rounded. */
static void iterations(void **state)
{
    small *s = *state;
    for (int k = 0; k < 7 * 6; k++) {
        int64_t n = s->config.hc_mult = streams[k % 7];
        s->config.hc_sinkhorn_iters = (int64_t[]){1, 2, 20}[k / 7 % 3];
        s->config.hc_eps = k % 2 ? 1e-6 : 0.01;
        double *C = small_randoms(s, T * n * n, k / 21 ? 50 : 2);
        double *want = small_copy(s, C, T * n * n), *bound = small_array(s, T * n * n);
        for (int64_t t = 0; t < T; t++)
            ref_mhc_sinkhorn(&s->c, want + t * n * n);
        for (int64_t i = 0; i < T * n * n; i++)
            bound[i] = 1.001 * fast_unit * want[i] + 0x1p-149;
        fast_walk walk = {0};
        while (fast_small_next(&walk, s, 2)) {
            float *got = small_floats(s, C, T * n * n);
            fast_mhc_sinkhorn(&walk.c, got, T);
            fast_near(&walk.c, got, want, bound, T * n * n);
        }
    }
}

static void collapse_and_spread(void **state)
{
    small *s = *state;
    for (int k = 0; k < 2 * SHAPES; k++) {
        s->c.numerics = both[k % 2];
        shape(s, k / 2);
        int64_t n = s->config.hc_mult, D = s->config.hidden_size;
        double *x = small_randoms(s, T * n * D, 2), *y = small_randoms(s, T * D, 2);
        double *pre = small_array(s, T * n), *post = small_array(s, T * n);
        double *comb = small_array(s, T * n * n);
        for (int64_t i = 0; i < T * n; i++) {
            pre[i] = small_random(s);
            post[i] = small_random(s);
        }
        for (int64_t i = 0; i < T * n * n; i++)
            comb[i] = small_random(s);
        double *u = small_array(s, T * D), *u_bound = small_array(s, T * D);
        double *next = small_copy(s, x, T * n * D), *next_bound = small_array(s, T * n * D);
        double part = (double)(n + 2) * fast_unit; /* products and sums */
        for (int64_t t = 0; t < T; t++) {
            ref_mhc_pre(&s->c, pre + t * n, x + t * n * D, u + t * D);
            ref_mhc_post(&s->c, post + t * n, comb + t * n * n, y + t * D, next + t * n * D);
            for (int64_t i = 0; i < D; i++)
                for (int64_t j = 0; j < n; j++) {
                    double value = fabs(x[(t * n + j) * D + i]);
                    u_bound[t * D + i] += part * fabs(pre[t * n + j]) * value;
                    next_bound[(t * n + j) * D + i] += part * fabs(post[t * n + j] * y[t * D + i]);
                    for (int64_t l = 0; l < n; l++)
                        next_bound[(t * n + l) * D + i] += part * value *
                                                           fabs(comb[(t * n + j) * n + l]);
                }
        }
        fast_walk walk = {0};
        while (fast_small_next(&walk, s, 1)) {
            float *got = small_alloc(s, T * D, sizeof *got), *h = small_floats(s, x, T * n * D);
            fast_mhc_pre(&walk.c, small_floats(s, pre, T * n), h, T, got);
            check(&walk.c, got, u, u_bound, T * D);
            fast_mhc_post(&walk.c, small_floats(s, post, T * n), small_floats(s, comb, T * n * n),
                          small_floats(s, y, T * D), T, h);
            check(&walk.c, h, next, next_bound, T * n * D);
        }
    }
}

/* As many streams as a configuration may have. */
static void most_streams(void **state)
{
    small *s = *state;
    enum { n = 256, D = 3 };
    s->config.hc_mult = n;
    s->config.hidden_size = D;
    s->config.hc_sinkhorn_iters = 2;
    double *x = small_randoms(s, n * D, 1), *post = small_randoms(s, n, 1);
    double *comb = small_randoms(s, n * n, 1), y[D] = {1, 2, 3};
    double *want = small_copy(s, x, n * D), *bound = small_array(s, n * n);
    for (int i = 0; i < n * n; i++)
        bound[i] = 260 * 256 * fast_unit;
    ref_mhc_sinkhorn(&s->c, comb);
    ref_mhc_post(&s->c, post, comb, y, want);
    fast_walk walk = {0};
    while (fast_small_next(&walk, s, 1)) {
        float *got = small_floats(s, x, n * D);
        fast_mhc_post(&walk.c, small_floats(s, post, n), small_floats(s, comb, n * n),
                      (float[]){1, 2, 3}, 1, got);
        fast_near(&walk.c, got, want, bound, n * D);
    }
}

static void rows_and_threads_change_nothing(void **state)
{
    small *s = *state;
    enum { ROWS = 700, D = 40, LARGEST = 4, M = (2 + LARGEST) * LARGEST };
    s->config.hidden_size = D;
    for (int k = 0; k < 4; k++) {
        s->c.numerics = both[k % 2];
        int64_t n = s->config.hc_mult = 3 + k / 2, m = (2 + n) * n;
        double *x = small_randoms(s, ROWS * n * D, 2), *y = small_randoms(s, ROWS * D, 2);
        dsv4_hc hc = {.fn = small_f32(s, small_randoms(s, m * n * D, 1), m, n * D),
                      .base = small_f32(s, small_randoms(s, m, 1), 1, m),
                      .scale = small_f32(s, small_randoms(s, 3, 1), 1, 3)};
        fast_walk walk = {0};
        while (fast_small_next(&walk, s, 3)) {
            fast_context alone = fast_small_open(s, walk.c.kernels, 1);
            float *h = small_floats(s, x, ROWS * n * D), *out = small_floats(s, y, ROWS * D);
            float *pre = small_alloc(s, ROWS * n, sizeof *pre), one_pre[LARGEST];
            float *post = small_alloc(s, ROWS * n, sizeof *post), one_post[LARGEST];
            float *comb = small_alloc(s, ROWS * n * n, sizeof *comb), one_comb[LARGEST * LARGEST];
            float *u = small_alloc(s, ROWS * D, sizeof *u), one_u[D];
            float *one = small_floats(s, x, ROWS * n * D);
            fast_mhc_mix(&walk.c, &hc, h, ROWS, pre, post, comb);
            fast_mhc_sinkhorn(&walk.c, comb, ROWS);
            fast_mhc_pre(&walk.c, pre, h, ROWS, u);
            fast_mhc_post(&walk.c, post, comb, out, ROWS, h);
            for (int64_t t = 0; t < ROWS; t++) {
                float *row = one + t * n * D;
                fast_mhc_mix(&alone, &hc, row, 1, one_pre, one_post, one_comb);
                fast_mhc_sinkhorn(&alone, one_comb, 1);
                fast_mhc_pre(&alone, one_pre, row, 1, one_u);
                fast_mhc_post(&alone, one_post, one_comb, out + t * D, 1, row);
                fast_bits(&walk.c, pre + t * n, one_pre, n);
                fast_bits(&walk.c, post + t * n, one_post, n);
                fast_bits(&walk.c, comb + t * n * n, one_comb, n * n);
                fast_bits(&walk.c, u + t * D, one_u, D);
            }
            fast_bits(&walk.c, h, one, ROWS * n * D);
            fast_small_close(&alone);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        small_test(mixes),
        small_test(mixes_of_any_magnitude),
        small_test(a_bad_base_is_named),
        small_test(iterations),
        small_test(collapse_and_spread),
        small_test(most_streams),
        small_test(rows_and_threads_change_nothing),
    };
    return cmocka_run_group_tests_name("fast_mhc", tests, NULL, NULL) != 0;
}
