/* spec/rmsnorm.md: with a weight, and per query head without. */
#include "small.h"

#include <math.h>

/* covers: rmsnorm.weight.1 rmsnorm.weight.2 */
static void weighted_by_hand(void **state)
{
    small *s = *state;
    double y[4];
    s->config.rms_norm_eps = 12.5; /* mean of squares 12.5 and 6: roots of 25 and 18.5 */
    dsv4_matrix w = small_f32(s, (double[]){1, -2}, 1, 2);
    ref_rmsnorm(&s->c, &w, (double[]){3, 4, 2, sqrt(8)}, 2, y);
    small_near(s, y, ((double[]){0.6, -1.6, 2 / sqrt(18.5), -2 * sqrt(8 / 18.5)}), 4, 1e-15);

    s->config.rms_norm_eps = 0;
    w = small_f32(s, (double[]){1, 1, 1, 1}, 1, 4);
    ref_rmsnorm(&s->c, &w, (double[]){-5, 5, 5, -5}, 1, y);
    small_near(s, y, ((double[]){-1, 1, 1, -1}), 4, 1e-15);
}

/* covers: rmsnorm.weight.1 rmsnorm.weight.2 */
static void weighted_in_binary32(void **state)
{
    small *s = *state;
    enum { width = 96, T = 40 };
    s->c.numerics = DSV4_RELEASED;
    dsv4_matrix w = small_random_matrix(s, DSV4_F32, 1, width, 2);
    double *weight = small_values(s, &w), *x = small_randoms(s, T * width, 3);
    double want[T * width], y[T * width];
    for (int64_t t = 0; t < T; t++) {
        long double squares = 0;
        for (int64_t i = 0; i < width; i++)
            squares += (long double)x[t * width + i] * x[t * width + i];
        float r = (float)(1 / sqrtl(squares / width + 1e-6L));
        for (int64_t i = 0; i < width; i++) {
            float scaled = (float)x[t * width + i] * r, weighted = scaled * (float)weight[i];
            want[t * width + i] = small_to_bf16((double)weighted);
        }
    }
    ref_rmsnorm(&s->c, &w, x, T, y);
    small_same(s, y, want, T * width);
    ref_rmsnorm(&s->c, &w, x, T, x); /* in place */
    small_same(s, x, want, T * width);
}

/* The first value of the normed vector (a, b), of weight w. */
static void first_value(small *s, double a, double b, double w, double want)
{
    double y[2];
    dsv4_matrix weight = small_f32(s, (double[]){w, 0}, 1, 2);
    ref_rmsnorm(&s->c, &weight, (double[]){a, b}, 1, y);
    small_is(s, y[0], want);
}

/* covers: rmsnorm.weight.2 */
static void each_product_is_binary32(void **state)
{
    small *s = *state;
    s->c.numerics = DSV4_RELEASED;
    s->config.rms_norm_eps = 0;
    /* A mean square of 1 makes r = 1. x r is 1 in binary32, and times the weight a tie of bf16. */
    double a = 1 + 33 * 0x1p-30, b = 0x1.001p0;
    first_value(s, a, sqrt(2 - a * a), 0x1.f1p0, 0x1.fp0);
    /* The product with the weight is less than 2^-24 above 1 + 2^-8, a tie: it is on it. */
    first_value(s, b, sqrt(2 - b * b), 0x1.00eff2p0, 1);
    /* r = 1 / x is rounded, so that x r is not 1. */
    first_value(s, 0x1.1ap0, 0x1.1ap0, 0x1.010002p0, 1);
}

/* covers: rmsnorm.head.1 */
static void heads_by_hand(void **state)
{
    small *s = *state;
    s->config.head_dim = 2;
    s->config.rms_norm_eps = 12.5;
    double x[6] = {3, 4, -3, 0, 0, 0};
    ref_rmsnorm_head(&s->c, x, 3);
    small_near(s, x, ((double[]){0.6, 0.8, -3 / sqrt(17), 0, 0, 0}), 6, 1e-15);
}

/* covers: rmsnorm.head.1 rmsnorm.head.2 */
static void heads_in_bf16(void **state)
{
    small *s = *state;
    enum { d = 64, heads = 300 };
    s->c.numerics = DSV4_RELEASED;
    s->config.head_dim = d;
    for (int pass = 0; pass < 2; pass++) {
        s->config.rms_norm_eps = pass == 0 ? 1e-6 : 0.03; /* the sum with eps is a rounding too */
        double *x = small_randoms(s, heads * d, 2), want[heads * d];
        for (int64_t h = 0; h < heads; h++) {
            long double sum = 0;
            for (int64_t i = 0; i < d; i++)
                sum += small_to_bf16(x[h * d + i] * x[h * d + i]);
            double mean = small_to_bf16((double)(sum / d));
            double shifted = small_to_bf16(mean + s->config.rms_norm_eps);
            double r = small_to_bf16((double)(1 / sqrtl(shifted)));
            for (int64_t i = 0; i < d; i++)
                want[h * d + i] = small_to_bf16(x[h * d + i] * r);
        }
        ref_rmsnorm_head(&s->c, x, heads);
        small_same(s, x, want, heads * d);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        small_test(weighted_by_hand),
        small_test(weighted_in_binary32),
        small_test(each_product_is_binary32),
        small_test(heads_by_hand),
        small_test(heads_in_bf16),
    };
    return cmocka_run_group_tests_name("rmsnorm", tests, NULL, NULL) != 0;
}
