/* fast/indexer.c: against the reference, in widths of every kind. */
#include "small.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "fast/fast.h"

static float *floats(small *s, const double *x, int64_t count)
{
    float *y = small_alloc(s, count, sizeof *y);
    for (int64_t i = 0; i < count; i++)
        y[i] = (float)x[i];
    return y;
}

/* A context on `threads` threads. */
static fast_context begin(small *s, const fast_kernels *level, int threads)
{
    fast_context c = {.config = &s->config, .released = s->c.numerics == DSV4_RELEASED,
                      .kernels = level, .pool = fast_pool_new(threads, &s->error),
                      .memory = fast_memory_new(), .error = &s->error};
    assert_non_null(c.pool);
    return c;
}

static void end(const fast_context *c)
{
    assert_string_equal(c->error->text, "");
    fast_pool_free(c->pool);
    fast_memory_free(c->memory);
}

/* How far two bf16 numbers are apart, counted in numbers. */
static int64_t steps_apart(double a, double b)
{
    int64_t place[2];
    for (int i = 0; i < 2; i++) {
        float x = (float)(i == 0 ? a : b);
        int32_t bits;
        memcpy(&bits, &x, sizeof bits);
        assert_int_equal(bits & 0xffff, 0);
        place[i] = bits < 0 ? -(int64_t)((uint32_t)bits & 0x7fffffff) : bits;
    }
    return llabs(place[0] - place[1]) >> 16;
}

/* ---- queries ---- */

/* A matrix that hands its input on. */
static dsv4_matrix identity(small *s, int64_t width)
{
    double *values = small_array(s, width * width);
    for (int64_t i = 0; i < width; i++)
        values[i * width + i] = 1;
    return small_bf16(s, values, width, width);
}

/* EXACT: the sine and cosine, two products, log2 d_i sums and the scale, each within 2^-24 of
 * vectors whose length the rotation and the transform keep. RELEASED: where binary32 rounds a
 * rotated value or a sum of the transform to the other bf16 number, an E2M1 code next to a middle
 * may go to its neighbour, which is at most 2 units away, a unit being less than a third of the
 * largest magnitude of the block. */
static void compare_queries(small *s, const fast_context *c, int64_t T, const int64_t *position)
{
    int64_t n_i = s->config.index_n_heads, d_i = s->config.index_head_dim, width = n_i * d_i;
    int64_t R = s->config.qk_rope_head_dim, flips = 0;
    dsv4_layer layer = {.attn.indexer.wq_b = identity(s, width)};
    double *qr = small_randoms(s, T * width, 2), *want = small_array(s, T * width);
    double *freq = small_array(s, R / 2), *got = small_array(s, T * width);
    float *iq = floats(s, qr, T * width), *angles = small_alloc(s, T * R, sizeof *angles);
    ref_rope_frequencies(&s->c, true, freq);
    for (int64_t t = 0; t < T; t++)
        ref_index_query(&s->c, &layer, freq, position[t], qr + t * width, 1, want + t * width);
    fast_rope_angles(c, freq, position, T, angles);
    fast_index_query(c, angles, T, iq);
    for (int64_t i = 0; i < T * width; i++)
        got[i] = iq[i];
    if (!c->released) {
        small_near(s, got, want, T * width, 2 * sqrt((double)d_i) * 0x1p-24 * 16);
    } else {
        for (int64_t first = 0; first < T * width; first += 32) {
            double top = 0;
            for (int64_t i = first; i < first + 32; i++)
                top = fmax(top, fabs(want[i]));
            small_near(s, got + first, want + first, 32, 2 * top / 3);
            for (int64_t i = first; i < first + 32; i++)
                flips += got[i] != want[i];
        }
        assert_true(flips <= T * width / 100);
    }
    /* Each row alone: the same bits. */
    float *again = floats(s, qr, T * width);
    for (int64_t t = 0; t < T; t++)
        fast_index_query(c, angles + t * R, 1, again + t * width);
    assert_memory_equal(iq, again, (size_t)(T * width) * sizeof *iq);
}

static void query(void **state)
{
    static const struct { int64_t n_i, d_i, R; bool released; } sizes[] = {
        {1, 2, 2, false}, {3, 16, 6, false}, {2, 32, 8, true}, {3, 32, 6, true}, {5, 128, 64, true},
        {20, 8, 8, false}};
    static const int64_t position[7] = {0, 1, 2, 900, 1000000, 1048575, 31};
    small *s = *state;
    int levels;
    const fast_kernels *const *level = fast_levels(&levels);
    for (int l = 0; l < levels; l++)
        for (int i = 0; i < (int)(sizeof sizes / sizeof *sizes); i++)
            for (int released = 0; released <= sizes[i].released; released++) {
                s->c.numerics = released ? DSV4_RELEASED : DSV4_EXACT;
                s->config.index_n_heads = sizes[i].n_i;
                s->config.index_head_dim = sizes[i].d_i;
                s->config.qk_rope_head_dim = sizes[i].R;
                fast_context c = begin(s, level[l], 3);
                compare_queries(s, &c, 7, position);
                end(&c);
            }
}

/* ---- weights ---- */

static void weights(void **state)
{
    enum { T = 9 };
    small *s = *state;
    int levels;
    const fast_kernels *const *level = fast_levels(&levels);
    for (int l = 0; l < levels; l++)
        for (int64_t n_i = 1; n_i < 40; n_i += 2)
            for (int released = 0; released < 2; released++) {
                s->c.numerics = released ? DSV4_RELEASED : DSV4_EXACT;
                s->config.index_n_heads = n_i;
                dsv4_layer layer = {.attn.indexer.weights_proj = identity(s, n_i)};
                double *x = small_randoms(s, T * n_i, 3), *want = small_array(s, T * n_i);
                double *got = small_array(s, T * n_i);
                float *w = floats(s, x, T * n_i);
                fast_context c = begin(s, level[l], 2);
                ref_index_weights(&s->c, &layer, x, T, want);
                fast_index_weights(&c, T, w);
                for (int64_t i = 0; i < T * n_i; i++)
                    got[i] = w[i];
                small_near(s, got, want, T * n_i, released ? 0 : 3 * 0x1p-23); /* two roundings */
                end(&c);
            }
}

/* ---- scores ---- */

typedef struct {
    int64_t n_i, d_i, count;
    double *iq, *w, *keys;
    float *f_iq, *f_w;
    fast_entries entries;
    double *want;
} scoring;

/* Keys and queries as the contract has them, in entries of their own. */
static scoring make_scoring(small *s, const fast_context *c, int64_t n_i, int64_t d_i,
                            int64_t count)
{
    scoring k = {.n_i = n_i, .d_i = d_i, .count = count};
    s->config.index_n_heads = n_i;
    s->config.index_head_dim = d_i;
    k.iq = small_randoms(s, n_i * d_i, 2);
    k.w = small_randoms(s, n_i, 1);
    k.keys = small_randoms(s, count * d_i, 2);
    k.entries = (fast_entries){.index = true, .head = d_i};
    if (c->released) {
        for (int64_t h = 0; h < n_i; h++)
            ref_qdq_index(&s->c, k.iq + h * d_i);
        for (int64_t g = 0; g < count; g++)
            ref_qdq_index(&s->c, k.keys + g * d_i);
        k.entries.codes = small_alloc(s, count, (size_t)d_i / 2);
        k.entries.scales = small_alloc(s, count, (size_t)d_i / 32);
    } else {
        k.entries.values = small_alloc(s, count * d_i, sizeof(float));
    }
    float *keys = floats(s, k.keys, count * d_i);
    for (int64_t g = 0; g < count; g++)
        fast_entries_push(c, &k.entries, keys + g * d_i);
    k.f_iq = floats(s, k.iq, n_i * d_i);
    k.f_w = floats(s, k.w, n_i);
    k.want = small_array(s, count);
    ref_index_scores(&s->c, k.iq, k.w, k.keys, count, k.want);
    return k;
}

/* EXACT: a sum of d_i products and one of n_i: as many roundings, at most, of the sum of
 * magnitudes. RELEASED: products of E2M1 numbers and their sums are exact here; what is left to
 * binary32 is the sum over heads, whose bf16 rounding may go the other way. */
static void compare_scores(small *s, const scoring *k, bool released, const float *score)
{
    int64_t flips = 0;
    for (int64_t g = 0; g < k->count; g++) {
        double magnitude = 0;
        for (int64_t i = 0; i < k->n_i * k->d_i; i++)
            magnitude += fabs(k->w[i / k->d_i] * k->iq[i] * k->keys[g * k->d_i + i % k->d_i]);
        if (!released) {
            double bound = magnitude * (double)(k->d_i + k->n_i + 2) * 0x1p-24;
            small_about(s, score[g], k->want[g], bound);
        } else if (score[g] != k->want[g]) {
            assert_true(steps_apart(score[g], k->want[g]) <= 1);
            flips++;
        }
    }
    assert_true(flips <= 1 + k->count / 100);
}

static void score_one(const fast_context *c, const scoring *k, int64_t first, int64_t count,
                      float *score, float *scratch)
{
    const fast_index_rows row = {1, k->f_iq, k->f_w, &count, score, count};
    fast_index_scores(c, &row, &k->entries, first, scratch);
}

/* The score of a key is the same in any range of keys that it stands in. */
static void same_in_pieces(small *s, const fast_context *c, const scoring *k, const float *score)
{
    static const int64_t pieces[] = {1, 3, 16, 33, 64, 70};
    float *scratch = small_alloc(s, fast_index_scratch(c), sizeof *scratch);
    float *again = small_alloc(s, k->count + 1, sizeof *again);
    for (int i = 0; i < 6; i++) {
        memset(again, 0x55, (size_t)(k->count + 1) * sizeof *again);
        float untouched = again[0];
        for (int64_t g = 0; g < k->count; g += pieces[i]) {
            int64_t n = pieces[i] < k->count - g ? pieces[i] : k->count - g;
            score_one(c, k, g, n, again + g, scratch);
            assert_memory_equal(&again[g + n], &untouched, sizeof untouched);
        }
        assert_memory_equal(again, score, (size_t)k->count * sizeof *score);
    }
}

static void scores(void **state)
{
    static const struct { int64_t n_i, d_i, count; bool released; } sizes[] = {
        {1, 1, 5, false},   {3, 2, 17, false},  {5, 8, 33, false},   {8, 16, 100, false},
        {2, 32, 1, true},   {7, 32, 31, true},  {12, 64, 65, true},  {64, 128, 200, true},
        {9, 256, 40, true}, {3, 512, 70, true}, {33, 128, 130, true}};
    small *s = *state;
    int levels;
    const fast_kernels *const *level = fast_levels(&levels);
    for (int l = 0; l < levels; l++)
        for (int i = 0; i < (int)(sizeof sizes / sizeof *sizes); i++)
            for (int released = 0; released <= sizes[i].released; released++) {
                s->c.numerics = released ? DSV4_RELEASED : DSV4_EXACT;
                s->config.index_head_dim = sizes[i].d_i; /* for the sizes of codes */
                fast_context c = begin(s, level[l], 1);
                scoring k = make_scoring(s, &c, sizes[i].n_i, sizes[i].d_i, sizes[i].count);
                float *score = small_alloc(s, k.count, sizeof *score);
                float *scratch = small_alloc(s, fast_index_scratch(&c), sizeof *scratch);
                score_one(&c, &k, 0, k.count, score, scratch);
                compare_scores(s, &k, released, score);
                same_in_pieces(s, &c, &k, score);
                end(&c);
            }
}

/* By hand: each rounding, the relu before the weight, and a NaN that no relu hides. */
static void scores_by_hand(void **state)
{
    small *s = *state;
    int levels;
    const fast_kernels *const *level = fast_levels(&levels);
    for (int l = 0; l < levels; l++) {
        const fast_indexer_kernels *k = level[l]->indexer;
        float got[3];
        const float iq[4] = {1, 2, -3, 1}, w[2] = {0.5, -2}, keys[6] = {1, 1, 4, -1, -1, 0};
        k->scores(iq, w, keys, 2, 2, 3, false, got);
        small_is(s, got[0], 1.5);
        small_is(s, got[1], 1);
        small_is(s, got[2], -6);
        k->scores(iq, w, (float[]){NAN, 0}, 2, 2, 1, false, got);
        small_is(s, got[0], NAN);
        for (int released = 0; released < 2; released++) {
            /* q.k = 257 -> 256; 1.5 x 257 = 385.5 would be 386. */
            k->scores((float[]){1, 1}, (float[]){1.5}, (float[]){256, 1}, 1, 2, 1, released, got);
            small_is(s, got[0], released ? 384 : 385.5);
            /* 18.5 x 7 = 129.5 -> 130; 129.5 + 1 = 130.5 would be 130. */
            k->scores((float[]){7, 1}, (float[]){18.5, 1}, (float[]){1}, 2, 1, 1, released, got);
            small_is(s, got[0], released ? 131 : 130.5);
            k->scores((float[]){256, 1}, (float[]){1, 1}, (float[]){1}, 2, 1, 1, released, got);
            small_is(s, got[0], released ? 256 : 257);
        }
    }
}

/* ---- selection ---- */

static const float *compared; /* the scores that indices are sorted by */

static int by_score(const void *a, const void *b)
{
    int64_t i = *(const int64_t *)a, j = *(const int64_t *)b;
    if (compared[i] != compared[j])
        return compared[i] > compared[j] ? -1 : 1;
    return i < j ? -1 : 1;
}

/* Against a whole sort, and nothing behind the end is touched. */
static void compare_selection(small *s, const float *score, int64_t count, int64_t k)
{
    int64_t kept = k < count ? k : count;
    int64_t *want = malloc((size_t)(count + 1) * sizeof *want);
    int64_t *got = malloc((size_t)(kept + 1) * sizeof *got);
    uint32_t *scratch = malloc((size_t)count * sizeof *scratch + 1);
    assert_true(want != NULL && got != NULL && scratch != NULL);
    for (int64_t i = 0; i < count; i++)
        want[i] = i;
    compared = score;
    qsort(want, (size_t)count, sizeof *want, by_score);
    got[kept] = -7;
    int64_t n = fast_select(score, count, k, got, scratch);
    bool same = n == kept && got[kept] == -7 &&
                memcmp(got, want, (size_t)kept * sizeof *got) == 0;
    free(want);
    free(got);
    free(scratch);
    if (!same)
        fail_msg("the best %lld of %lld; seed %#llx", (long long)k, (long long)count,
                 (unsigned long long)s->seed);
}

static void compare_selections(small *s, const float *score, int64_t count)
{
    const int64_t k[] = {0, 1, 2, 7, count / 2, count - 1, count, count + 1, 3 * count, INT64_MAX};
    for (int i = 0; i < (int)(sizeof k / sizeof *k); i++)
        compare_selection(s, score, count, k[i] < 0 ? 0 : k[i]);
}

static void selection(void **state)
{
    enum { most = 3000 };
    static const int64_t counts[] = {0, 1, 2, 3, 17, 500, most};
    small *s = *state;
    float *score = small_alloc(s, most, sizeof *score);
    for (int i = 0; i < (int)(sizeof counts / sizeof *counts); i++)
        for (int kind = 0; kind < 7; kind++) {
            for (int64_t j = 0; j < counts[i]; j++) {
                double x = small_random(s);
                score[j] = (float)(kind == 0 ? x                      /* all different */
                         : kind == 1 ? floor(20 * x)                  /* many ties */
                         : kind == 2 ? (x > 0 ? 0.0 : -0.0)           /* all equal */
                         : kind == 3 ? fmax(0, floor(4 * x))          /* most are 0 */
                         : kind == 4 ? small_to_bf16(x)               /* as released */
                         : kind == 5 ? 1 + ldexp(floor(8 * x), -23)   /* last bits only */
                                     : ldexp(x, (int)(300 * x)));     /* subnormal, infinite */
            }
            compare_selections(s, score, counts[i]);
        }
}

static void a_long_selection(void **state)
{
    enum { count = 262144 };
    small *s = *state;
    float *score = small_alloc(s, count, sizeof *score);
    for (int64_t i = 0; i < count; i++)
        score[i] = (float)small_to_bf16(small_random(s));
    compare_selection(s, score, count, 512);
    compare_selection(s, score, count, count);
}

/* The named tensors are checked elsewhere: here a NaN must do no harm. */
static void not_a_number(void **state)
{
    (void)state;
    float score[9] = {1, NAN, 3, -NAN, NAN, 2, -1, NAN, 0};
    int64_t got[9], seen[9] = {0};
    uint32_t scratch[9];
    for (int64_t k = 0; k <= 9; k++) {
        assert_int_equal(fast_select(score, 9, k, got, scratch), k);
        for (int64_t i = 0; i < k; i++) {
            assert_in_range(got[i], 0, 8);
            assert_int_equal(seen[got[i]]++, 0); /* none twice */
        }
        memset(seen, 0, sizeof seen);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        small_test(query), small_test(weights), small_test(scores), small_test(scores_by_hand),
        small_test(selection), small_test(a_long_selection), small_test(not_a_number),
    };
    return cmocka_run_group_tests_name("fast_indexer", tests, NULL, NULL) != 0;
}
