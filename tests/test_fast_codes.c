/* The indexer's scores from stored codes, by every kernel that there is: against those from the same keys in
 * binary32. Those of tiles run emulated, and as they were compiled (trap_amx.h).
 *
 * Where keys and queries have scales that are not too far apart, sums over channels are exact in any
 * order; what follows, all kernels do in the same order. So all bits have to be the same. */
#include "small.h"

#include <math.h>
#include <string.h>

#include "fast/fast.h"

#ifdef __x86_64__
#include "emulated_amx.h"
#include "trap_amx.h"
#endif

static const fast_coded_kernels *spied;
static int64_t left_over; /* keys that kernels did not want */
static int begun;

static uint64_t counted_scores(const void *query, const void *keys, int64_t count, float *score)
{
    uint64_t left = spied->scores(query, keys, count, score);
    left_over += __builtin_popcountll(left);
    assert_true(count >= FAST_KEYS || left >> count == 0);
    assert_int_equal(begun, spied->begin != NULL);
    return left;
}

static void counted_begin(void)
{
    spied->begin();
    begun++;
}

static void counted_end(void)
{
    spied->end();
    begun--;
}

typedef struct {
    small *s;
    const char *name;
    fast_context coded, values; /* one thread each */
} pair;

typedef void test_of_pair(pair *t);

static void run_with(small *s, const char *name, const fast_kernels *level, bool tiles,
                     const fast_coded_kernels *coded, test_of_pair *test)
{
    fast_coded_kernels spy = *coded;
    spied = coded;
    spy.scores = counted_scores;
    if (coded->begin != NULL) {
        spy.begin = counted_begin;
        spy.end = counted_end;
    }
    fast_indexer_kernels plain = *level->indexer, other = plain;
    plain.coded = NULL;
    other.coded = tiles ? NULL : &spy;
    fast_kernels with = *level, without = *level;
    with.indexer = &other;
    with.index_tiles = tiles ? &spy : NULL;
    without.indexer = &plain;
    without.index_tiles = NULL;
    s->c.numerics = DSV4_RELEASED;
    pair t = {.s = s, .name = name,
              .coded = {.config = &s->config, .released = true, .kernels = &with,
                        .pool = fast_pool_new(1, &s->error), .memory = fast_memory_new(),
                        .error = &s->error}};
    assert_non_null(t.coded.pool);
    t.values = t.coded;
    t.values.kernels = &without;
    left_over = 0;
    test(&t);
    assert_string_equal(s->error.text, "");
    fast_memory_free(t.coded.memory);
    fast_pool_free(t.coded.pool);
}

static void each(void **state, test_of_pair *test)
{
    small *s = *state;
    int count;
    const fast_kernels *const *level = fast_levels(&count);
    for (int i = 0; i < count && i < 3; i++)
        if (level[i]->indexer->coded != NULL)
            run_with(s, level[i]->name, level[i], false, level[i]->indexer->coded, test);
#ifdef __x86_64__
    if (count < 3)
        return;
    run_with(s, "emulated tiles", level[2], true, &emulated_indexer_amx, test);
    if (trap_amx_needed())
        trap_amx_install();
    int64_t before = trap_amx_count();
    run_with(s, "tiles", level[2], true, &fast_indexer_amx, test);
    assert_int_equal(trap_amx_count() > before, trap_amx_needed());
#endif
}

/* ---- rows and keys ---- */

typedef struct {
    int64_t n_i, d_i, rows, keys;
    float *iq, *w;
    int64_t *count;
    fast_entries entries;
} scoring;

static int64_t whole(small *s, int64_t end)
{
    return (int64_t)((small_random(s) + 1) / 2 * (double)end) % end;
}

/* Numbers of E2M1 times powers of two from a range of 5, around 2^q_scale and 2^k_scale. */
static scoring make(pair *t, int64_t n_i, int64_t d_i, int64_t rows, int64_t keys, int q_scale,
                    int k_scale)
{
    static const float value[8] = {0, 0.5, 1, 1.5, 2, 3, 4, 6};
    small *s = t->s;
    scoring k = {n_i, d_i, rows, keys, .entries = {.index = true, .head = d_i, .count = keys}};
    k.iq = (float *)small_alloc(s, rows * n_i * d_i + 1, sizeof *k.iq) + 1;
    k.w = (float *)small_alloc(s, rows * n_i + 1, sizeof *k.w) + 1;
    k.count = small_alloc(s, rows, sizeof *k.count);
    s->config.index_n_heads = n_i;
    s->config.index_head_dim = d_i;
    for (int64_t i = 0; i < rows * n_i * d_i; i++) {
        int64_t code = whole(s, 16);
        k.iq[i] = ldexpf(code < 8 ? value[code] : -value[code - 8], q_scale + (int)(i / 32 * 7 % 5));
    }
    for (int64_t i = 0; i < rows * n_i; i++)
        k.w[i] = (float)small_random(s) * (i % 7 == 3 ? 0 : 1);
    for (int64_t i = 0; i < rows; i++)
        k.count[i] = keys;
    k.entries.codes = (uint8_t *)small_alloc(s, keys * d_i / 2 + 1, 1) + 1;
    k.entries.scales = (uint8_t *)small_alloc(s, keys * d_i / 32 + 1, 1) + 1;
    for (int64_t i = 0; i < keys * d_i / 2; i++)
        k.entries.codes[i] = (uint8_t)whole(s, 256);
    for (int64_t i = 0; i < keys * d_i / 32; i++)
        k.entries.scales[i] = (uint8_t)(127 + k_scale + whole(s, 5));
    return k;
}

static float *score(const pair *t, const fast_context *c, const scoring *k, int64_t stride)
{
    float *y = small_alloc(t->s, k->rows * stride, sizeof *y);
    float *scratch = small_alloc(t->s, fast_index_scratch(c), sizeof *scratch);
    memset(y, 0x55, (size_t)(k->rows * stride) * sizeof *y);
    const fast_index_rows rows = {k->rows, k->iq, k->w, k->count, y, stride};
    fast_index_scores(c, &rows, &k->entries, 0, scratch);
    return y;
}

static void expect_same(const pair *t, const scoring *k)
{
    const int64_t stride = k->keys + 3;
    float *got = score(t, &t->coded, k, stride), *want = score(t, &t->values, k, stride);
    for (int64_t i = 0; i < k->rows * stride; i++)
        if (memcmp(&got[i], &want[i], sizeof *got) != 0)
            fail_msg("%s: %d heads of %d, row %d of %d, key %d of %d: %a, expected %a; seed %#llx",
                     t->name, (int)k->n_i, (int)k->d_i, (int)(i / stride), (int)k->rows,
                     (int)(i % stride), (int)k->keys, got[i], want[i],
                     (unsigned long long)t->s->seed);
}

static const struct { int64_t n_i, d_i, rows, keys; } sizes[] = {
    {1, 32, 1, 1},    {4, 64, 2, 15},  {5, 128, 1, 16}, {31, 32, 3, 17},  {33, 160, 1, 31},
    {64, 128, 1, 33}, {3, 256, 2, 64}, {70, 96, 1, 65}, {64, 128, 9, 130}, {2, 512, 1, 97}};
enum { SIZES = sizeof sizes / sizeof *sizes };

/* indexer.score.1, indexer.score.2 */
static void same_bits(pair *t)
{
    for (int i = 0; i < SIZES; i++) {
        scoring k = make(t, sizes[i].n_i, sizes[i].d_i, sizes[i].rows, sizes[i].keys, 0, -3);
        expect_same(t, &k);
        for (int64_t j = 0; j < k.rows * k.n_i * k.d_i; j++)
            k.iq[j] = 0;
        expect_same(t, &k);
    }
    assert_int_equal(left_over, 0);
}

static void every_kernel(void **state)
{
    each(state, same_bits);
}

/* Each code by itself, times each scale that no kernel may refuse. */
static void codes(pair *t)
{
    scoring k = make(t, 4, 64, 1, 64, 0, 0);
    for (int64_t i = 0; i < 64; i++)
        for (int64_t j = 0; j < 32; j++)
            k.entries.codes[i * 32 + j] = (uint8_t)(i * 4 + j);
    for (int scale = 30; scale < 210; scale += 9)
        for (int h = 0; h < 4; h++) {
            memset(k.iq, 0, (size_t)(4 * 64) * sizeof *k.iq);
            k.iq[h * 64 + (scale * 7 + h * 21) % 64] = 1;
            k.w[h] = -1.5;
            memset(k.entries.scales, scale, 64 * 2);
            expect_same(t, &k);
        }
    assert_int_equal(left_over, 0);
}

static void every_code(void **state)
{
    each(state, codes);
}

/* Rows that see less, or nothing, of what others see; more rows than share keys. */
static void fewer(pair *t)
{
    scoring k = make(t, 12, 64, 19, 150, 0, 0);
    for (int64_t i = 0; i < k.rows; i++)
        k.count[i] = i % 5 == 4 ? -3 : i * 8 + (i == 18 ? 6 : 0);
    expect_same(t, &k);
    /* A row alone, and keys from another place on. */
    float *all = score(t, &t->coded, &k, k.keys);
    for (int64_t i = 0; i < k.rows; i++) {
        scoring one = k;
        one.rows = 1;
        one.iq += i * k.n_i * k.d_i;
        one.w += i * k.n_i;
        one.count += i;
        float *alone = score(t, &t->coded, &one, k.keys);
        assert_memory_equal(alone, all + i * k.keys, (size_t)k.keys * sizeof *alone);
        if (k.count[i] < 30)
            continue;
        int64_t rest = k.count[i] - 29;
        one.count = &rest;
        one.entries.codes += 29 * k.d_i / 2;
        one.entries.scales += 29 * k.d_i / 32;
        float *later = score(t, &t->coded, &one, k.keys);
        assert_memory_equal(later, all + i * k.keys + 29, (size_t)rest * sizeof *later);
    }
    assert_int_equal(left_over, 0);
}

static void rows_of_several(void **state)
{
    each(state, fewer);
}

/* Numbers that kernels of codes do not take: the same keys, and only they, go another way. */
static void beyond(pair *t)
{
    static const uint8_t scale[] = {0, 1, 2, 3, 60, 200, 251, 252, 253, 254};
    for (int q_scale = -100; q_scale <= 60; q_scale += 20) {
        scoring k = make(t, 5, 64, 2, 70, q_scale, 0);
        for (int64_t g = 0; g < 10; g++)
            memset(k.entries.scales + 2 * (7 * g), scale[g], 2);
        left_over = 0;
        expect_same(t, &k);
        assert_true(left_over > 0 && left_over <= 2 * 10);
    }
    scoring k = make(t, 5, 64, 2, 70, 0, 0);
    static const float bad_weight[] = {0x1p-126f, 0x1p-140f, 0x1p120f, INFINITY};
    for (int i = 0; i < 4; i++) { /* of the second row */
        k.w[5 + 2] = bad_weight[i];
        left_over = 0;
        expect_same(t, &k);
        assert_true(i == 0 ? left_over > 0 : left_over == 70);
    }
    static const float bad_query[] = {0x1p-130f, 1 + 0x1p-10f, 0x1p127f, INFINITY, NAN};
    for (int i = 0; i < 5; i++) { /* of the first */
        k = make(t, 5, 64, 2, 70, 0, 0);
        k.iq[4 * 64 + 63] = bad_query[i];
        left_over = 0;
        expect_same(t, &k);
        assert_int_equal(left_over, 70);
    }
}

static void numbers_out_of_range(void **state)
{
    each(state, beyond);
}

/* --deterministic asks for one order of sums. */
static void no_tiles(pair *t)
{
    if (t->coded.kernels->index_tiles == NULL)
        return;
    scoring k = make(t, 5, 64, 1, 20, 0, 0);
    k.iq[0] = INFINITY;
    t->coded.deterministic = true;
    expect_same(t, &k);
    assert_int_equal(left_over, 0);
    t->coded.deterministic = false;
    expect_same(t, &k);
    assert_int_equal(left_over, 20);
}

static void deterministic(void **state)
{
    each(state, no_tiles);
}

/* Scales so far apart that sums are rounded: within 24 bits of the sum of magnitudes, then 3 roundings
 * to bf16; the selection would be the same. */
static void rounded_sums(pair *t)
{
    scoring k = make(t, 64, 128, 2, 100, 0, 0);
    for (int64_t i = 0; i < k.keys * 4; i++)
        k.entries.scales[i] = (uint8_t)(127 + (i % 2 == 0 ? 30 : 0));
    float *got = score(t, &t->coded, &k, 100), *want = score(t, &t->values, &k, 100);
    for (int64_t i = 0; i < 200; i++) {
        double magnitude = 0;
        for (int64_t h = 0; h < 64; h++)
            magnitude += fabs(k.w[i / 100 * 64 + h]);
        magnitude *= 128.0 * 6 * 6 * 16 * 16 * 0x1p30;
        small_about(t->s, got[i], want[i], magnitude * 0x1p-7);
    }
    assert_int_equal(left_over, 0);
}

static void scales_far_apart(void **state)
{
    each(state, rounded_sums);
}

static void self_check(void **state)
{
    (void)state;
#ifdef __x86_64__
    int count;
    fast_levels(&count);
    if (count < 3)
        skip();
    assert_true(emulated_indexer_amx.works());
    if (trap_amx_needed())
        trap_amx_install();
    assert_true(fast_indexer_amx.works());
#endif
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        small_test(every_kernel), small_test(every_code), small_test(rows_of_several),
        small_test(numbers_out_of_range), small_test(deterministic), small_test(scales_far_apart),
        cmocka_unit_test(self_check),
    };
    return cmocka_run_group_tests_name("fast_codes", tests, NULL, NULL) != 0;
}
