/* spec/hadamard.md: against the matrix itself. */
#include "small.h"

#include <math.h>

/* y = H x of H[i, j] = (-1)^(number of bits that i and j share), not yet scaled. */
static void multiply(const double *x, int64_t width, double *y)
{
    for (int64_t i = 0; i < width; i++) {
        long double sum = 0;
        for (int64_t j = 0; j < width; j++)
            sum += __builtin_popcountll((uint64_t)(i & j)) % 2 == 0 ? x[j] : -x[j];
        y[i] = (double)sum;
    }
}

/* covers: hadamard.order.1 hadamard.scale.1 */
static void by_hand(void **state)
{
    small *s = *state;
    double one[1] = {3}, two[2] = {3, 1}, four[4] = {1, 2, 4, 8}, third[4] = {0, 0, 2, 0};
    ref_hadamard(&s->c, one, 1);
    small_is(s, one[0], 3);
    ref_hadamard(&s->c, two, 2);
    small_near(s, two, ((double[]){4 / sqrt(2), 2 / sqrt(2)}), 2, 1e-15);
    ref_hadamard(&s->c, four, 4);
    small_same(s, four, ((double[]){7.5, -2.5, -4.5, 1.5}), 4);
    ref_hadamard(&s->c, third, 4);
    small_same(s, third, ((double[]){1, 1, -1, -1}), 4); /* no other order of the rows */
}

/* covers: hadamard.order.1 hadamard.scale.1 */
static void by_the_matrix(void **state)
{
    small *s = *state;
    for (s->c.numerics = DSV4_EXACT; s->c.numerics <= DSV4_RELEASED; s->c.numerics++)
        for (int64_t width = 1; width <= 512; width *= 2) {
            double *x = small_randoms(s, width, 5), want[512];
            multiply(x, width, want);
            for (int64_t i = 0; i < width; i++) /* one rounding, of the scaled sum */
                want[i] = small_bf16_point(s, want[i] / sqrt((double)width));
            ref_hadamard(&s->c, x, width);
            small_near(s, x, want, width, s->c.numerics == DSV4_EXACT ? 1e-13 : 0);
        }
}

/* covers: hadamard.scale.1 */
static void orthogonal(void **state)
{
    small *s = *state;
    double *q = small_randoms(s, 128, 1), *k = small_randoms(s, 128, 1), before = 0, after = 0;
    double *q_before = small_copy(s, q, 128);
    for (int i = 0; i < 128; i++)
        before += q[i] * k[i];
    ref_hadamard(&s->c, q, 128);
    ref_hadamard(&s->c, k, 128);
    for (int i = 0; i < 128; i++)
        after += q[i] * k[i];
    small_about(s, after, before, 1e-13); /* no score changes */
    ref_hadamard(&s->c, q, 128);
    small_near(s, q, q_before, 128, 1e-14); /* H is its own inverse */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        small_test(by_hand),
        small_test(by_the_matrix),
        small_test(orthogonal),
    };
    return cmocka_run_group_tests_name("hadamard", tests, NULL, NULL) != 0;
}
