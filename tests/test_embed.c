/* spec/embed.md: token ids to residual streams. */
#include "small.h"

#include <math.h>
#include <string.h>

/* covers: embed.row.1 embed.round.1 */
static void rows_by_id(void **state)
{
    static const dsv4_dtype dtype[3] = {DSV4_F32, DSV4_BF16, DSV4_F16};
    static const int64_t ids[5] = {0, 49, 7, 7, 1}; /* the first, the last, one twice */
    small *s = *state;
    int64_t D = s->config.hidden_size;
    for (int k = 0; k < 6; k++) {
        s->c.numerics = k < 3 ? DSV4_EXACT : DSV4_RELEASED;
        dsv4_matrix w = small_random_matrix(s, dtype[k % 3], 50, D, 1);
        double *values = small_values(s, &w), *want = small_array(s, 5 * D);
        double *e = small_array(s, 5 * D);
        for (int64_t i = 0; i < 5 * D; i++)
            want[i] = small_bf16_point(s, values[ids[i / D] * D + i % D]);
        ref_embed(&s->c, &w, ids, 5, e);
        small_same(s, e, want, 5 * D);
    }
}

/* covers: embed.round.1 */
static void rounding_by_hand(void **state)
{
    small *s = *state;
    double e[2];
    s->config.hidden_size = 2;
    dsv4_matrix w = small_f32(s, (double[]){9, 9, 1 + 3 * 0x1p-8, -0x1.0001p-3}, 2, 2);
    ref_embed(&s->c, &w, (int64_t[]){1}, 1, e);
    small_same(s, e, ((double[]){1 + 3 * 0x1p-8, -0x1.0001p-3}), 2);
    s->c.numerics = DSV4_RELEASED;
    ref_embed(&s->c, &w, (int64_t[]){1}, 1, e);
    small_same(s, e, ((double[]){1 + 0x1p-6, -0x1p-3}), 2);
}

/* covers: embed.streams.1 */
static void streams_are_copies(void **state)
{
    small *s = *state;
    const double e[6] = {1, 2, 3, 4, 5, 6};
    double h[24];
    s->config.hidden_size = 3;
    s->config.hc_mult = 1;
    ref_streams(&s->c, e, 2, h);
    small_same(s, h, e, 6);
    s->config.hc_mult = 4;
    ref_streams(&s->c, e, 2, h);
    for (int row = 0; row < 8; row++)
        small_same(s, h + row * 3, e + row / 4 * 3, 3);
}

/* Only the rows that are asked for are read: a NaN elsewhere is no error. */
static void nan_in_a_row(void **state)
{
    small *s = *state;
    double e[2];
    s->config.hidden_size = 1;
    dsv4_matrix w = small_f32(s, (double[]){1, NAN, 3}, 3, 1);
    ref_embed(&s->c, &w, (int64_t[]){2, 0}, 2, e);
    assert_string_equal(s->error.text, "");
    ref_embed(&s->c, &w, (int64_t[]){2, 1}, 2, e);
    assert_non_null(strstr(s->error.text, "small.weight"));
    assert_non_null(strstr(s->error.text, "[1, 0]"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        small_test(rows_by_id),
        small_test(rounding_by_hand),
        small_test(streams_are_copies),
        small_test(nan_in_a_row),
    };
    return cmocka_run_group_tests_name("embed", tests, NULL, NULL) != 0;
}
