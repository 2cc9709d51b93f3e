/* spec/expert.md */
#include <math.h>

#include "small.h"

/* An expert of one input and `count` inner values: w1 and w3 are columns, w2 is the unit matrix. */
static dsv4_expert expert(small *s, const double *g, const double *v, int64_t count)
{
    double *unit = small_array(s, count * count);
    for (int64_t i = 0; i < count; i++)
        unit[i * count + i] = 1;
    return (dsv4_expert){.w1 = small_f32(s, g, count, 1), .w3 = small_f32(s, v, count, 1),
                         .w2 = small_f32(s, unit, count, count)};
}

static double silu(double g)
{
    return g / (1 + exp(-g));
}

/* covers: expert.in.1 expert.act.1 expert.act.2 expert.out.1 */
static void formula(void **state)
{
    small *s = *state;
    s->config.swiglu_limit = 0;
    dsv4_expert w = {.w1 = small_f32(s, (double[]){1, 2, -1, 0.5}, 2, 2), /* g = 5, 0 */
                     .w3 = small_f32(s, (double[]){3, 1, 0, 4}, 2, 2),    /* v = 5, 8 */
                     .w2 = small_f32(s, (double[]){1, 0, 2, 7, -1, 1}, 3, 2)};
    const double x[2] = {1, 2}, weight = 0.25;
    double y[3], a = 5 * silu(5);
    ref_expert(&s->c, &w, NULL, x, y);
    small_near(s, y, ((double[]){a, 2 * a, -a}), 3, 1e-13);
    ref_expert(&s->c, &w, &weight, x, y);
    small_near(s, y, ((double[]){a / 4, a / 2, -a / 4}), 3, 1e-13);
}

/* covers: expert.clamp.1 expert.act.1 */
static void clamp(void **state)
{
    small *s = *state;
    enum { count = 7 };
    const double g[count] = {3, 1, -3, -40, 1, 1, 2}, v[count] = {1, 1, 1, 1, 5, -5, 2};
    const double x = 1;
    double y[count];
    dsv4_expert w = expert(s, g, v, count);
    s->config.swiglu_limit = 2;
    ref_expert(&s->c, &w, NULL, &x, y);
    small_near(s, y, ((double[]){silu(2), silu(1), silu(-3), silu(-40), 2 * silu(1), -2 * silu(1),
                                 2 * silu(2)}), count, 1e-15);
    s->config.swiglu_limit = 0;
    ref_expert(&s->c, &w, NULL, &x, y);
    small_near(s, y, ((double[]){silu(3), silu(1), silu(-3), silu(-40), 5 * silu(1), -5 * silu(1),
                                 2 * silu(2)}), count, 1e-15);
    /* silu(-800) is -800 e^-800, 0 in binary64: no NaN on the way there. */
    w = expert(s, (double[]){-800}, (double[]){1}, 1);
    ref_expert(&s->c, &w, NULL, &x, y);
    small_about(s, y[0], 0, 1e-300);
}

/* What has no value is not clamped into one. covers: expert.clamp.1 */
static void nan_stays(void **state)
{
    small *s = *state;
    const dsv4_expert w = expert(s, (double[]){1}, (double[]){1}, 1);
    double y;
    s->config.swiglu_limit = 2;
    ref_expert(&s->c, &w, NULL, &(double){NAN}, &y);
    small_is(s, y, NAN);
}

/* covers: expert.in.1 expert.act.2 expert.out.1 */
static void released(void **state)
{
    small *s = *state;
    const double weight = 1.25, x = 1;
    double y;
    s->c.numerics = DSV4_RELEASED;
    s->config.swiglu_limit = 0;
    dsv4_expert w = expert(s, (double[]){42}, (double[]){13}, 1); /* silu(42) = 42 */
    w.w2 = small_f32(s, (double[]){1.25}, 1, 1);
    /* 1.25 x 42 x 13 = 682.5 -> 684; x 1.25 = 855 -> 856. Without the rounding before w2 it would
     * be 853.125 -> 852; with one before the weight, and with the weight after w2, 850 -> 848. */
    ref_expert(&s->c, &w, &weight, &x, &y);
    small_is(s, y, 856);
    ref_expert(&s->c, &w, NULL, &x, &y); /* 546 -> 544; x 1.25 = 680 */
    small_is(s, y, 680);
    /* g and v are bf16: 257 -> 256. 256 x 13 = 3328, but 257 x 13 = 3341 -> 3344. */
    w = expert(s, (double[]){256}, (double[]){13}, 1);
    w.w1 = small_f32(s, (double[]){256, 1}, 1, 2);
    w.w3 = small_f32(s, (double[]){13, 0}, 1, 2);
    ref_expert(&s->c, &w, NULL, (double[]){1, 1}, &y);
    small_is(s, y, 3328);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        small_test(formula), small_test(clamp), small_test(nan_stays), small_test(released),
    };
    return cmocka_run_group_tests_name("expert", tests, NULL, NULL) != 0;
}
