/* spec/indexer.md */
#include <math.h>

#include "small.h"

/* One indexer head as the chapter says it: rotation of the last pair, Hadamard, QDQ. At most 32
 * values, so one block of the QDQ. */
static void finish_head(const small *s, double *x, int64_t width, double angle)
{
    double y[32], amax = 0;
    double cosine = small_f32_point(s, cos(small_f32_point(s, angle)));
    double sine = small_f32_point(s, sin(small_f32_point(s, angle)));
    double *pair = x + width - 2, first = pair[0], second = pair[1];
    pair[0] = small_bf16_point(s, first * cosine - second * sine);
    pair[1] = small_bf16_point(s, first * sine + second * cosine);
    for (int64_t i = 0; i < width; i++) {
        y[i] = 0;
        for (int64_t j = 0; j < width; j++)
            y[i] += __builtin_parityll((unsigned long long)(i & j)) ? -x[j] : x[j];
        y[i] = small_bf16_point(s, y[i] / sqrt((double)width));
        amax = fmax(amax, fabs(y[i]));
    }
    double scale = exp2(ceil(log2(amax / 6)));
    for (int64_t i = 0; i < width; i++)
        x[i] = s->c.numerics == DSV4_EXACT ? y[i] : small_to_e2m1(y[i] / scale) * scale;
}

/* covers: indexer.query.1 indexer.query.2 indexer.query.3 */
static void query(void **state)
{
    small *s = *state;
    enum { tokens = 2, heads = 3, width = 32, in = 5, position = 4 };
    s->config.index_n_heads = heads;
    s->config.index_head_dim = width;
    s->config.qk_rope_head_dim = 2;
    const double freq[1] = {0.75};
    dsv4_layer layer = {
        .attn.indexer.wq_b = small_random_matrix(s, DSV4_BF16, heads * width, in, 2)};
    const double *w = small_values(s, &layer.attn.indexer.wq_b);
    const double *qr = small_randoms(s, tokens * in, 1);

    for (int released = 0; released < 2; released++) {
        s->c.numerics = released ? DSV4_RELEASED : DSV4_EXACT;
        double got[tokens * heads * width], want[tokens * heads * width];
        for (int i = 0; i < tokens * heads * width; i++) {
            want[i] = 0;
            for (int j = 0; j < in; j++)
                want[i] += w[i % (heads * width) * in + j] * qr[i / (heads * width) * in + j];
            want[i] = small_bf16_point(s, want[i]);
        }
        for (int h = 0; h < tokens * heads; h++)
            finish_head(s, want + h * width, width, (position + h / heads) * freq[0]);
        ref_index_query(&s->c, &layer, freq, position, qr, tokens, got);
        small_near(s, got, want, tokens * heads * width, released ? 0 : 1e-14);
    }
}

/* covers: indexer.weight.1 indexer.weight.2 */
static void weights(void **state)
{
    small *s = *state;
    s->config.index_n_heads = 2;
    s->config.index_head_dim = 32;
    dsv4_layer layer = {
        .attn.indexer.weights_proj = small_f32(s, (double[]){1, 2, 16, -1}, 2, 2)};
    const double x[4] = {3, 5, 16.125, 0.5};
    double w[4], w6[6];
    ref_index_weights(&s->c, &layer, x, 2, w);
    small_near(s, w, ((double[]){13.0 / 8, 43.0 / 8, 17.125 / 8, 257.5 / 8}), 4, 1e-15);

    /* 7 / sqrt(96) = 0.71443 lies between the bf16 numbers 0.7109375 and 0.71484375. 257 becomes
     * 256 first: 257 / sqrt(96) itself is nearest to 26.25. */
    s->c.numerics = DSV4_RELEASED;
    s->config.index_n_heads = 3;
    layer.attn.indexer.weights_proj = small_f32(s, (double[]){7, 1, 256}, 3, 1);
    ref_index_weights(&s->c, &layer, (double[]){1, 1.00390625}, 2, w6);
    small_is(s, w6[0], 0.71484375);
    small_is(s, w6[5], 26.125);

    /* 164 / sqrt(32 223) is so near to the middle of 1.9375 and 1.9453125 that the rounding of the
     * constant to binary32 decides: 1.94140627 with it unrounded, 1.94140623 rounded. */
    s->config.index_n_heads = 223;
    double column[223], many[223];
    for (int i = 0; i < 223; i++)
        column[i] = 164;
    layer.attn.indexer.weights_proj = small_f32(s, column, 223, 1);
    ref_index_weights(&s->c, &layer, (double[]){1}, 1, many);
    small_is(s, many[0], 1.9375);
}

/* The score of one key for `heads` query heads, all of width 1. */
static double score_of(small *s, int64_t heads, const double *iq, const double *w, double key)
{
    double score;
    s->config.index_n_heads = heads;
    s->config.index_head_dim = 1;
    ref_index_scores(&s->c, iq, w, &key, 1, &score);
    return score;
}

/* covers: indexer.score.1 */
static void score(void **state)
{
    small *s = *state;
    s->config.index_n_heads = 2;
    s->config.index_head_dim = 2;
    const double iq[4] = {1, 2, -3, 1}, w[2] = {0.5, -2};
    const double keys[6] = {1, 1, 4, -1, -1, 0}; /* q.k: 3 -2; 2 -13; -1 3 */
    double got[3] = {0, 0, 99};
    ref_index_scores(&s->c, iq, w, keys, 2, got);
    small_same(s, got, ((double[]){1.5, 1, 99}), 3); /* only the visible ones */
    ref_index_scores(&s->c, iq, w, keys, 3, got);
    small_same(s, got, ((double[]){1.5, 1, -6}), 3);
    const double nan_key[2] = {NAN, 0};
    ref_index_scores(&s->c, iq, w, nan_key, 1, got);
    small_is(s, got[0], NAN); /* the relu does not hide it */
}

/* covers: indexer.score.2 */
static void score_rounding(void **state)
{
    small *s = *state;
    s->config.index_n_heads = 1;
    s->config.index_head_dim = 2;
    double got;
    for (int released = 0; released < 2; released++) {
        s->c.numerics = released ? DSV4_RELEASED : DSV4_EXACT;
        s->config.index_n_heads = 1;
        s->config.index_head_dim = 2;
        /* q.k = 257 -> 256; 1.5 x 257 = 385.5 would be 386. */
        ref_index_scores(&s->c, (double[]){1, 1}, (double[]){1.5}, (double[]){256, 1}, 1, &got);
        small_is(s, got, released ? 384 : 385.5);
        /* 18.5 x 7 = 129.5 -> 130; 129.5 + 1 = 130.5 would be 130. */
        got = score_of(s, 2, (double[]){7, 1}, (double[]){18.5, 1}, 1);
        small_is(s, got, released ? 131 : 130.5);
        got = score_of(s, 2, (double[]){256, 1}, (double[]){1, 1}, 1);
        small_is(s, got, released ? 256 : 257);
    }
}

static void selects(const double *scores, int64_t count, int64_t k, const int64_t *want,
                    int64_t want_count)
{
    int64_t got[8] = {-7, -7, -7, -7, -7, -7, -7, -7};
    assert_int_equal(ref_select(scores, count, k, got), want_count);
    for (int64_t i = 0; i < 8; i++)
        assert_int_equal(got[i], i < want_count ? want[i] : -7);
}

/* covers: indexer.select.1 indexer.select.2 */
static void select_by_hand(void **state)
{
    (void)state;
    const double rising[5] = {-3, -2, 0, 1, 2}, ties[6] = {1, 3, 0, 3, 1, 3};
    const double zeros[3] = {0, -0.0, 0};
    selects(rising, 5, 3, (int64_t[]){4, 3, 2}, 3);
    selects(rising, 5, 1, (int64_t[]){4}, 1);
    selects(rising, 5, 5, (int64_t[]){4, 3, 2, 1, 0}, 5);
    selects(rising, 5, 512, (int64_t[]){4, 3, 2, 1, 0}, 5);
    selects(rising, 1, 512, (int64_t[]){0}, 1);
    selects(rising, 0, 3, NULL, 0);
    selects(ties, 6, 2, (int64_t[]){1, 3}, 2);
    selects(ties, 6, 4, (int64_t[]){1, 3, 5, 0}, 4);
    selects(ties, 6, 6, (int64_t[]){1, 3, 5, 0, 4, 2}, 6);
    selects(zeros, 3, 2, (int64_t[]){0, 1}, 2);
}

/* covers: indexer.select.1 indexer.select.2 */
static void select_among_many(void **state)
{
    small *s = *state;
    enum { count = 500, k = 77 };
    double scores[count];
    for (int i = 0; i < count; i++)
        scores[i] = floor(20 * small_random(s)); /* about 12 of each */
    int64_t got[count];
    assert_int_equal(ref_select(scores, count, k, got), k);
    for (int i = 0; i < count; i++) { /* i has the place that its betters leave it */
        int64_t betters = 0;
        for (int j = 0; j < count; j++)
            betters += scores[j] > scores[i] || (scores[j] == scores[i] && j < i);
        if (betters < k)
            assert_int_equal(got[betters], i);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        small_test(query), small_test(weights), small_test(score), small_test(score_rounding),
        small_test(select_by_hand), small_test(select_among_many),
    };
    return cmocka_run_group_tests_name("indexer", tests, NULL, NULL) != 0;
}
