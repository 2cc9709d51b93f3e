/* spec/numerics.md: the rounding points of both contracts. */
#include "small.h"

#include <float.h>
#include <math.h>
#include <string.h>

/* covers: numerics.exact.1 */
static void exact_rounds_nothing(void **state)
{
    small *s = *state;
    const double x[6] = {0.1, -1e300, 0x1p-1000, 448.0625, INFINITY, 1 + 0x1p-52};
    double y[6], head[64 + 8] = {0.1, -1e9};
    for (int i = 0; i < 6; i++) {
        small_is(s, ref_f32(&s->c, x[i]), x[i]);
        small_is(s, ref_bf16(&s->c, x[i]), x[i]);
    }
    memcpy(y, x, sizeof y);
    ref_f32_all(&s->c, y, 6);
    ref_bf16_all(&s->c, y, 6);
    small_same(s, y, x, 6);

    s->config.head_dim = 64 + 8;
    s->config.index_head_dim = 64;
    ref_qdq_kv(&s->c, head);
    ref_qdq_index(&s->c, head);
    small_is(s, head[0], 0.1);
    small_is(s, head[1], -1e9);

    dsv4_matrix w = small_fp8(s, (uint8_t[]){0x38}, (uint8_t[]){127}, 1, 1); /* 1 */
    ref_linear(&s->c, &w, x, 1, y);
    small_is(s, y[0], 0.1);
}

/* covers: numerics.round.1 */
static void nearest_and_ties_to_even(void **state)
{
    small *s = *state;
    /* p = 4: the numbers from 8 to 16 are integers, those from 16 to 32 even. */
    static const double pairs[][2] = {
        {8.25, 8}, {8.5, 8}, {8.75, 9}, {9.5, 10}, {10.5, 10}, {15.5, 16}, {15.4999, 15},
        {16.5, 16}, {17, 16}, {17.0001, 18}, {19, 20}, {21, 20}, {31, 32}, {33.9, 32}, {1000, 1024},
        {7.75, 8}, {7.25, 7}, {0, 0}, {INFINITY, INFINITY}};
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++) {
        small_is(s, ref_round_to(pairs[i][0], 4, -6), pairs[i][1]);
        small_is(s, ref_round_to(-pairs[i][0], 4, -6), -pairs[i][1]);
    }
    /* q = -6: below 2^-6 the spacing stays 2^-9. */
    static const double units[][2] = {{0.5, 0}, {0.51, 1}, {1.5, 2}, {2.5, 2}, {6.5, 6}, {7.5, 8},
                                      {8.4, 8}, {8.5, 8}, {15.5, 16}, {0.1, 0}};
    for (size_t i = 0; i < sizeof units / sizeof *units; i++)
        small_is(s, ref_round_to(units[i][0] * 0x1p-9, 4, -6), units[i][1] * 0x1p-9);
    assert_true(isnan(ref_round_to(NAN, 4, -6)));
}

/* covers: numerics.f32.1 numerics.overflow.1 */
static void binary32_is_the_machines(void **state)
{
    small *s = *state;
    s->c.numerics = DSV4_RELEASED;
    for (int i = 0; i < 200000; i++) { /* all magnitudes, and near the ends of the range */
        double x = ldexp(1 + small_random(s) / 2, (int)(small_bits(s) % 320) - 170);
        x = x * (1 + small_random(s) * 0x1p-24);
        small_is(s, ref_f32(&s->c, x), (float)x);
        double tie = (float)x + ldexp(1, (ilogb(x) > -126 ? ilogb(x) : -126) - 24);
        small_is(s, ref_f32(&s->c, tie), (float)tie);
        small_is(s, ref_f32(&s->c, -tie), -(float)tie);
    }
    small_is(s, ref_f32(&s->c, FLT_MAX), FLT_MAX);
    small_is(s, ref_f32(&s->c, 0x1.fffffefp127), FLT_MAX);
    small_is(s, ref_f32(&s->c, 0x1.ffffffp127), INFINITY);
    small_is(s, ref_f32(&s->c, -0x1p128), -INFINITY);
    small_is(s, ref_f32(&s->c, 0x1p-149), 0x1p-149);
    small_is(s, ref_f32(&s->c, 0x1p-150), 0);
    assert_true(isnan(ref_f32(&s->c, NAN)));
}

/* The number that a bf16 code stands for: the upper half of a binary32 number. */
static double bf16_of(uint32_t code)
{
    uint32_t bits = code << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

static void bf16_case(const small *s, double x, double want)
{
    small_is(s, ref_bf16(&s->c, x), want);
    small_is(s, ref_bf16(&s->c, -x), -want);
}

/* covers: numerics.bf16.1 numerics.round.1 numerics.overflow.1 */
static void bf16_between_all_neighbours(void **state)
{
    small *s = *state;
    s->c.numerics = DSV4_RELEASED;
    for (uint32_t code = 0; code < 0x7f80; code++) {
        double low = bf16_of(code), high = code == 0x7f7f ? 0x1p128 : bf16_of(code + 1);
        double middle = low + (high - low) / 2, above = code == 0x7f7f ? INFINITY : high;
        bf16_case(s, low, low);
        bf16_case(s, middle, code % 2 == 0 ? low : above);
        bf16_case(s, middle * (1 - 0x1p-52), low); /* no detour over binary32 */
        bf16_case(s, middle * (1 + 0x1p-52), above);
    }
    bf16_case(s, 0x1p128, INFINITY);
    bf16_case(s, INFINITY, INFINITY);
    assert_true(isnan(ref_bf16(&s->c, NAN)));
    assert_true(signbit(ref_bf16(&s->c, -0x1p-140)));
}

/* covers: numerics.f32.1 numerics.bf16.1 */
static void arrays_are_rounded_whole(void **state)
{
    small *s = *state;
    s->c.numerics = DSV4_RELEASED;
    double x[3] = {0.1, 1 + 0x1p-30, -3.01}, y[3] = {0.1, 1 + 0x1p-30, -3.01};
    ref_f32_all(&s->c, x, 3);
    small_same(s, x, ((double[]){0.1f, 1, -3.01f}), 3);
    ref_bf16_all(&s->c, y, 3);
    small_same(s, y, ((double[]){205 * 0x1p-11, 1, -3.015625}), 3);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        small_test(exact_rounds_nothing),
        small_test(nearest_and_ties_to_even),
        small_test(binary32_is_the_machines),
        small_test(bf16_between_all_neighbours),
        small_test(arrays_are_rounded_whole),
    };
    return cmocka_run_group_tests_name("numerics", tests, NULL, NULL) != 0;
}
