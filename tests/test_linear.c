/* spec/linear.md: y = M x for every stored format, in both contracts. */
#include "small.h"

#include <math.h>

/* y [T, rows] from given weights and inputs, each row summed backwards in long double. */
static double *product(small *s, const double *weights, int64_t rows, int64_t cols, const double *x,
                       int64_t T)
{
    double *y = small_array(s, T * rows);
    for (int64_t i = 0; i < T * rows; i++) {
        long double sum = 0;
        for (int64_t j = cols - 1; j >= 0; j--)
            sum += (long double)weights[i % rows * cols + j] * x[i / rows * cols + j];
        y[i] = (double)sum;
    }
    return y;
}

static void round_all(small *s, double (*point)(const small *, double), double *x, int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        x[i] = point(s, x[i]);
}

/* covers: linear.product.1 */
static void rows_times_input(void **state)
{
    small *s = *state;
    double y[4];
    dsv4_matrix w = small_f32(s, (double[]){1, 2, 3, -4, 5, 6}, 2, 3);
    ref_linear(&s->c, &w, (double[]){1, 10, 100, 0.5, 0, -1}, 2, y);
    small_same(s, y, ((double[]){321, 646, -2.5, -8}), 4);
    w = small_f32(s, (double[]){1 + 0x1p-20}, 1, 1);
    ref_linear(&s->c, &w, (double[]){1 + 0x1p-30}, 1, y);
    small_is(s, y[0], (1 + 0x1p-20) * (1 + 0x1p-30)); /* exact: nothing is rounded */
}

/* covers: linear.product.1 linear.quant.1 linear.plain.1 linear.round.1 */
static void every_format(void **state)
{
    static const dsv4_dtype dtype[] = {DSV4_F32, DSV4_BF16, DSV4_F16, DSV4_F8_E4M3, DSV4_I8};
    small *s = *state;
    enum { rows = 131, cols = 256, T = 3 };
    for (int i = 0; i < 5; i++) {
        dsv4_matrix w = small_random_matrix(s, dtype[i], rows, cols, 1);
        double *weights = small_values(s, &w), *x = small_randoms(s, T * cols, 4), y[T * rows];
        for (int64_t j = 0; j < T * cols; j++) /* some halves of blocks are small */
            x[j] *= j / 64 % 3 == 0 ? 1 : 0x1p-12;
        ref_linear(&s->c, &w, x, T, y);
        small_near(s, y, product(s, weights, rows, cols, x, T), T * rows, 1e-10);

        s->c.numerics = DSV4_RELEASED;
        double *input = small_copy(s, x, T * cols);
        if (w.scale != NULL)
            small_act_quant(input, T * cols, 128);
        else
            round_all(s, small_bf16_point, weights, rows * cols);
        double *want = product(s, weights, rows, cols, input, T);
        round_all(s, small_bf16_point, want, T * rows);
        double *before = small_copy(s, x, T * cols);
        ref_linear(&s->c, &w, x, T, y);
        small_same(s, y, want, T * rows);
        small_same(s, x, before, T * cols); /* the caller's input stays */
        s->c.numerics = DSV4_EXACT;
    }
}

/* covers: linear.product.1 */
static void exact_takes_any_width(void **state)
{
    static const int64_t size[][2] = {{1, 1}, {5, 127}, {129, 130}, {2, 300}};
    small *s = *state;
    for (int i = 0; i < 4; i++) {
        int64_t rows = size[i][0], cols = size[i][1];
        dsv4_matrix w = small_random_matrix(s, DSV4_F8_E4M3, rows, cols, 1);
        double *x = small_randoms(s, cols, 1), *y = small_array(s, rows);
        ref_linear(&s->c, &w, x, 1, y);
        small_near(s, y, product(s, small_values(s, &w), rows, cols, x, 1), rows, 1e-12);
    }
    dsv4_matrix w = small_random_matrix(s, DSV4_I8, 3, 96, 1);
    double *x = small_randoms(s, 96, 1), y[3];
    ref_linear(&s->c, &w, x, 1, y);
    small_near(s, y, product(s, small_values(s, &w), 3, 96, x, 1), 3, 1e-12);
}

/* covers: linear.quant.1 linear.plain.1 linear.round.1 */
static void released_rounding_points(void **state)
{
    small *s = *state;
    s->c.numerics = DSV4_RELEASED;
    uint8_t codes[128] = {0x38}, scale = 127; /* picks the first input */
    double x[128] = {1 + 0x1p-4, [5] = 256}, y;
    dsv4_matrix w = small_fp8(s, codes, &scale, 1, 128);
    ref_linear(&s->c, &w, x, 1, &y);
    small_is(s, y, 1); /* E4M3 has 4 bits: a tie to even */
    w = small_f32(s, (double[]){1 + 0x1p-8 - 0x1p-20}, 1, 1); /* 1 in bf16 */
    ref_linear(&s->c, &w, (double[]){1 + 0x1p-4}, 1, &y);
    small_is(s, y, 1 + 0x1p-4); /* the input of a plain matrix is not quantised */
    w = small_f32(s, (double[]){1, 1}, 1, 2);
    ref_linear(&s->c, &w, (double[]){1, 0x1p-9}, 1, &y);
    small_is(s, y, 1);
}

/* covers: linear.f32.1 */
static void binary32_maps(void **state)
{
    static const dsv4_dtype dtype[] = {DSV4_F32, DSV4_BF16, DSV4_F8_E4M3};
    small *s = *state;
    for (int i = 0; i < 3; i++) {
        dsv4_matrix w = small_random_matrix(s, dtype[i], 7, 128, 1);
        double *x = small_array(s, 2 * 128), y[2 * 7];
        for (int64_t j = 0; j < 2 * 128; j++)
            x[j] = small_random(s); /* not bf16 numbers */
        double *want = product(s, small_values(s, &w), 7, 128, x, 2);
        s->c.numerics = DSV4_EXACT;
        ref_linear_f32(&s->c, &w, x, 2, y);
        small_near(s, y, want, 2 * 7, 1e-13);
        s->c.numerics = DSV4_RELEASED;
        round_all(s, small_f32_point, want, 2 * 7);
        ref_linear_f32(&s->c, &w, x, 2, y);
        small_same(s, y, want, 2 * 7);
    }
}

/* covers: linear.grouped.1 */
static void groups_by_hand(void **state)
{
    small *s = *state;
    double y[8];
    /* Three groups of one row and two inputs; then two groups of two rows, two tokens. */
    dsv4_matrix w = small_f32(s, (double[]){1, 2, 3, 4, 5, 6}, 3, 2);
    ref_linear_grouped(&s->c, &w, 3, (double[]){1, 10, 100, 1000, 0.5, 0.25}, 1, y);
    small_same(s, y, ((double[]){21, 4300, 4}), 3);
    w = small_f32(s, (double[]){1, 2, 3, 4}, 4, 1);
    ref_linear_grouped(&s->c, &w, 2, (double[]){1, 10, 100, 1000}, 2, y);
    small_same(s, y, ((double[]){1, 2, 30, 40, 100, 200, 3000, 4000}), 8);
}

/* covers: linear.grouped.1 linear.grouped.2 */
static void groups_of_every_format(void **state)
{
    static const dsv4_dtype dtype[] = {DSV4_F32, DSV4_BF16, DSV4_F8_E4M3};
    small *s = *state;
    enum { groups = 3, out = 43, in = 128, T = 2 };
    for (int i = 0; i < 6; i++) {
        s->c.numerics = i < 3 ? DSV4_EXACT : DSV4_RELEASED;
        dsv4_matrix w = small_random_matrix(s, dtype[i % 3], groups * out, in, 1);
        double *weights = small_values(s, &w), *x = small_randoms(s, T * groups * in, 4);
        double want[T * groups * out], y[T * groups * out];
        round_all(s, small_bf16_point, weights, groups * out * in);
        for (int64_t t = 0; t < T; t++)
            for (int64_t g = 0; g < groups; g++) {
                double *part = product(s, weights + g * out * in, out, in,
                                       x + (t * groups + g) * in, 1);
                for (int64_t o = 0; o < out; o++)
                    want[(t * groups + g) * out + o] = small_bf16_point(s, part[o]);
            }
        ref_linear_grouped(&s->c, &w, groups, x, T, y);
        small_near(s, y, want, T * groups * out, i < 3 ? 1e-12 : 0);
    }

    /* Even an FP8 matrix is rounded: 9 2^-136 has too many bits for bf16. */
    double y;
    dsv4_matrix w = small_fp8(s, &(uint8_t){0x09}, &(uint8_t){0}, 1, 1);
    ref_linear_grouped(&s->c, &w, 1, (double[]){0x1p100}, 1, &y);
    small_is(s, y, 0x1p-33);
}

/* A NaN in the weights is reported, whichever map reads them. */
static void nan_in_a_map(void **state)
{
    void (*map[2])(const ref_context *, const dsv4_matrix *, const double *, int64_t, double *) = {
        ref_linear, ref_linear_f32};
    small *s = *state;
    double y[2];
    dsv4_matrix w = small_f32(s, (double[]){1, NAN}, 2, 1);
    for (int i = 0; i < 3; i++) {
        s->error = (dsv4_error){{0}};
        if (i < 2)
            map[i](&s->c, &w, (double[]){1}, 1, y);
        else
            ref_linear_grouped(&s->c, &w, 2, (double[]){1, 1}, 1, y);
        assert_string_equal(s->error.text, "small.safetensors: small.weight: value [1, 0] is NaN, "
                                           "expected a finite number");
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        small_test(rows_times_input),
        small_test(every_format),
        small_test(exact_takes_any_width),
        small_test(released_rounding_points),
        small_test(binary32_maps),
        small_test(groups_by_hand),
        small_test(groups_of_every_format),
        small_test(nan_in_a_map),
    };
    return cmocka_run_group_tests_name("linear", tests, NULL, NULL) != 0;
}
