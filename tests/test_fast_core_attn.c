/* fast/core_attn.c: against the formula and the reference, at every level of instructions. */
#include "small.h"

#include <math.h>
#include <string.h>

#include "fast/fast.h"

static const double u = 0x1p-24; /* the relative error of one rounding to binary32 */

/* One token's list, for both paths: entries are bf16 numbers, as the caches hold them. */
typedef struct {
    int64_t H, d, count;
    double *q, *sink, *e; /* [H, d], [H], [count, d] */
    int64_t *slot;
    float *q32, *sink32, *e32;
    const float **at;
} token;

static float *floats(small *s, const double *x, int64_t count)
{
    float *y = small_alloc(s, count, sizeof *y);
    for (int64_t i = 0; i < count; i++)
        y[i] = (float)x[i];
    return y;
}

/* Slots 0, 1, 2 .. or, with `gaps`, some of them left out, whole blocks too. */
static token make_token(small *s, int64_t H, int64_t d, int64_t count, bool gaps, double amplitude)
{
    token t = {.H = H, .d = d, .count = count, .q = small_randoms(s, H * d, amplitude),
               .sink = small_randoms(s, H, 3), .e = small_randoms(s, count * d, 1),
               .slot = small_alloc(s, count, sizeof *t.slot),
               .at = small_alloc(s, count, sizeof *t.at)};
    s->config.num_attention_heads = H;
    s->config.head_dim = d;
    for (int64_t j = 0, slot = 0; j < count; j++) {
        t.slot[j] = slot++;
        if (gaps && small_bits(s) % 5 == 0)
            slot += (int64_t)(small_bits(s) % 150);
    }
    t.q32 = floats(s, t.q, H * d);
    t.sink32 = floats(s, t.sink, H);
    t.e32 = floats(s, t.e, count * d);
    for (int64_t j = 0; j < count; j++)
        t.at[j] = t.e32 + j * d;
    return t;
}

static fast_context context(small *s, const fast_kernels *level)
{
    return (fast_context){.config = &s->config, .released = s->c.numerics == DSV4_RELEASED,
                          .kernels = level, .error = &s->error};
}

/* All heads, in items of `share`. */
static float *attend(small *s, const fast_kernels *level, const token *t, const fast_list *list,
                     int64_t share)
{
    fast_context c = context(s, level);
    float *out = small_alloc(s, t->H * t->d, sizeof *out);
    memset(out, 0xff, (size_t)(t->H * t->d) * sizeof *out);
    for (int64_t h = 0; h < t->H; h += share) {
        int64_t heads = h + share < t->H ? share : t->H - h;
        float *scratch = small_alloc(s, fast_core_attn_scratch(&c, heads), sizeof *scratch);
        fast_core_attn(&c, t->q32, t->sink32, list, h, heads, out, scratch);
    }
    return out;
}

static fast_list list_of(const token *t)
{
    return (fast_list){.count = t->count, .e = t->at, .slot = t->slot};
}

/* One head in binary64, unrounded -> out [d], and how far binary32 may be from it -> bound [d].
 *
 * A logit is a sum of d products, each within u, in any order: d + 3 roundings of the sum of
 * magnitudes at most. exp() gives the error of its argument, that of the subtraction and 4 u; each
 * rescaling as much again, with arguments that add up to the whole way; what is below 2^-126 is
 * lost. The numerator has count + blocks additions. Quotients: as numerator and denominator
 * together. In RELEASED a p near the middle between two bf16 numbers may go to either. */
static void formula(small *s, const token *t, int64_t h, double *out, double *bound)
{
    const double *q = t->q + h * t->d;
    double *logit = small_array(s, t->count), top = -INFINITY, error = 0;
    double *maximum = small_array(s, t->count); /* up to the end of the entry's block */
    int64_t blocks = 1;
    for (int64_t j = 0; j < t->count; j++) {
        double magnitude = 0;
        for (int64_t i = 0; i < t->d; i++) {
            logit[j] += q[i] * t->e[j * t->d + i];
            magnitude += fabs(q[i] * t->e[j * t->d + i]);
        }
        logit[j] /= sqrt((double)t->d);
        error = fmax(error, (double)(t->d + 3) * u * magnitude / sqrt((double)t->d));
        if (j > 0 && t->slot[j] / 64 != t->slot[j - 1] / 64)
            blocks++;
    }
    for (int64_t j = 0, next; j < t->count; j = next) {
        for (next = j; next < t->count && t->slot[next] / 64 == t->slot[j] / 64; next++)
            top = fmax(top, logit[next]);
        for (int64_t i = j; i < next; i++)
            maximum[i] = top;
    }
    error += 4 * u * (double)(blocks + 1) + 110 * u * 2;
    double denominator = exp(t->sink[h] - top);
    for (int64_t i = 0; i < t->d; i++)
        out[i] = bound[i] = 0;
    for (int64_t j = 0; j < t->count; j++) {
        double p = exp(logit[j] - maximum[j]), shrink = exp(maximum[j] - top);
        double low = small_bf16_point(s, p * (1 - 2 * error));
        double high = small_bf16_point(s, p * (1 + 2 * error));
        denominator += p * shrink;
        for (int64_t i = 0; i < t->d; i++) {
            double e = t->e[j * t->d + i];
            out[i] += small_bf16_point(s, p) * shrink * e;
            bound[i] += (high - low) * shrink * fabs(e) + 0x1p-125 * fabs(e) +
                        (2 * error + (double)(t->count + blocks + 4) * u) * p * shrink * fabs(e);
        }
    }
    for (int64_t i = 0; i < t->d; i++) {
        out[i] /= denominator;
        bound[i] = bound[i] / denominator +
                   (2 * error + (double)(t->count + blocks + 4) * u) * fabs(out[i]);
    }
}

typedef struct { int64_t values, flips; } tally;

/* Within the bound of the formula; in RELEASED what that range rounds to. Flips against the
 * reference are counted. */
static void check(small *s, const token *t, const float *got, tally *n)
{
    double *want = small_array(s, t->d), *bound = small_array(s, t->d);
    double *ref = small_array(s, t->H * t->d);
    ref_entry *list = small_alloc(s, t->count, sizeof *list);
    for (int64_t j = 0; j < t->count; j++)
        list[j] = (ref_entry){t->e + j * t->d, t->slot[j]};
    ref_core_attn(&s->c, t->q, t->sink, list, t->count, ref);
    for (int64_t h = 0; h < t->H; h++) {
        formula(s, t, h, want, bound);
        for (int64_t i = 0; i < t->d; i++) {
            int64_t at = h * t->d + i;
            double low = small_bf16_point(s, want[i] - bound[i]);
            double high = small_bf16_point(s, want[i] + bound[i]);
            if (!(got[at] >= low && got[at] <= high) || !(ref[at] >= low && ref[at] <= high))
                small_near(s, &(double){got[at]}, &ref[at], 1, bound[i]);
            n->values++;
            n->flips += got[at] != ref[at];
        }
    }
}

static const int64_t shapes[][2] = {{6, 16}, {1, 1}, {3, 48}, {5, 72}, {2, 130}, {9, 37}, {4, 64}};
static const int64_t counts[] = {1, 2, 3, 4, 5, 31, 63, 64, 65, 128, 130, 200};

static void every_shape(small *s)
{
    int levels;
    const fast_kernels *const *level = fast_levels(&levels);
    tally n = {0};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (size_t j = 0; j < sizeof counts / sizeof *counts; j++)
            for (int gaps = 0; gaps < 2; gaps++) {
                double amplitude = (double[]){0.5, 4, 40}[(i + j) % 3];
                token t = make_token(s, shapes[i][0], shapes[i][1], counts[j], gaps, amplitude);
                fast_list list = list_of(&t);
                for (int l = 0; l < levels; l++)
                    check(s, &t, attend(s, level[l], &t, &list, t.H), &n);
            }
    /* binary32 flips a rounding to bf16 once in thousands. */
    if (s->c.numerics == DSV4_RELEASED)
        assert_true(n.flips * 200 < n.values);
}

static void exact(void **state)
{
    every_shape(*state);
}

static void released(void **state)
{
    small *s = *state;
    s->c.numerics = DSV4_RELEASED;
    every_shape(s);
}

/* The list of a Flash token: 128 slots of the window, 512 chosen entries. */
static void flash(void **state)
{
    small *s = *state;
    int levels;
    const fast_kernels *const *level = fast_levels(&levels);
    for (int i = 0; i < 2; i++) {
        tally n = {0};
        s->c.numerics = i == 0 ? DSV4_EXACT : DSV4_RELEASED;
        token t = make_token(s, 8, 512, 640, false, 2);
        fast_list list = list_of(&t);
        for (int l = 0; l < levels; l++)
            check(s, &t, attend(s, level[l], &t, &list, t.H), &n);
        assert_true(i == 0 || n.flips * 200 < n.values);
    }
}

/* Maxima that grow from block to block, and that do not. */
static void rising_and_falling(void **state)
{
    small *s = *state;
    static const double slopes[] = {0.05, -0.05, 1, -1, 20, -20};
    int levels;
    const fast_kernels *const *level = fast_levels(&levels);
    for (int i = 0; i < 12; i++) {
        tally n = {0};
        s->c.numerics = i % 2 == 0 ? DSV4_EXACT : DSV4_RELEASED;
        token t = make_token(s, 3, 18, 300, false, 0.5);
        for (int64_t h = 0; h < t.H; h++)
            t.q32[h * t.d] = (float)(t.q[h * t.d] = 4);
        for (int64_t j = 0; j < t.count; j++)
            t.e32[j * t.d] = (float)(t.e[j * t.d] = small_to_bf16(slopes[i / 2] * (double)j));
        fast_list list = list_of(&t);
        for (int l = 0; l < levels; l++)
            check(s, &t, attend(s, level[l], &t, &list, t.H), &n);
    }
}

static void same_bits(const float *a, const float *b, int64_t count)
{
    assert_memory_equal(a, b, (size_t)count * sizeof *a);
}

static void company_changes_nothing(void **state)
{
    small *s = *state;
    static const int64_t shares[] = {1, 2, 3, 4, 5, 7, 8, 11};
    int levels;
    const fast_kernels *const *level = fast_levels(&levels);
    for (int i = 0; i < 12; i++) {
        s->c.numerics = i % 2 == 0 ? DSV4_EXACT : DSV4_RELEASED;
        token t = make_token(s, 13, (int64_t[]){64, 48, 131}[i % 3], 150, i % 4 < 2, 4);
        fast_list list = list_of(&t);
        for (int l = 0; l < levels; l++) {
            float *all = attend(s, level[l], &t, &list, t.H);
            for (int j = 0; j < 8; j++)
                same_bits(attend(s, level[l], &t, &list, shares[j]), all, t.H * t.d);
        }
    }
}

/* Entries of a cache, named by index, next to others that lie in a window. */
static void cached_entries(void **state)
{
    small *s = *state;
    enum { H = 5, R = 8, d = 128 + R, stored = 90, in_window = 70, count = 200 };
    int levels;
    const fast_kernels *const *level = fast_levels(&levels);
    s->config.qk_rope_head_dim = R;
    for (int l = 0; l < 2 * levels; l++) {
        s->c.numerics = l % 2 == 0 ? DSV4_EXACT : DSV4_RELEASED;
        token t = make_token(s, H, d, count, l >= levels, 3);
        fast_context c = context(s, level[l / 2]);
        c.pool = fast_pool_new(1, c.error);
        c.memory = fast_memory_new();
        fast_entries entries = {.head = d};
        if (c.released) {
            entries.codes = small_alloc(s, stored * (d - R), 1);
            entries.scales = small_alloc(s, stored * (d - R) / 64, 1);
            entries.rope = small_alloc(s, stored * R, sizeof *entries.rope);
        } else {
            entries.values = small_alloc(s, stored * d, sizeof *entries.values);
        }
        float *rows = floats(s, small_randoms(s, stored * d, 1), stored * d);
        for (int64_t g = 0; g < stored; g++) {
            fast_qdq_kv(&c, rows + g * d, 1);
            fast_entries_push(&c, &entries, rows + g * d);
        }
        /* Runs and single ones, forwards and backwards, across blocks; some point to the window. */
        const float **named = small_alloc(s, count, sizeof *named);
        int64_t *index = small_alloc(s, count, sizeof *index);
        for (int64_t j = in_window, g = 0; j < count; j++) {
            g = small_bits(s) % 4 != 0 ? (g + 1) % stored : (int64_t)(small_bits(s) % stored);
            index[j] = g;
            t.at[j] = rows + g * d;
        }
        t.at[100] = t.e32;
        t.at[111] = t.e32 + d;
        for (int64_t j = 0; j < count; j++)
            named[j] = j < in_window || j == 100 || j == 111 ? t.at[j] : NULL;
        fast_list by_address = list_of(&t), by_index = list_of(&t);
        by_index.e = named;
        by_index.index = index;
        by_index.entries = &entries;
        float *want = attend(s, c.kernels, &t, &by_address, H);
        same_bits(attend(s, c.kernels, &t, &by_index, H), want, H * d);
        same_bits(attend(s, c.kernels, &t, &by_index, 2), want, H * d);
        for (int64_t j = 0; j < count; j++) { /* all by index, without a list of addresses */
            index[j] = j * 7 % stored;
            t.at[j] = rows + index[j] * d;
        }
        by_index.e = NULL;
        same_bits(attend(s, c.kernels, &t, &by_index, H),
                  attend(s, c.kernels, &t, &by_address, H), H * d);
        fast_pool_free(c.pool);
        fast_memory_free(c.memory);
    }
}

/* core_attn.sink.1 and what lies at the ends of the range of exp(). */
static void sinks(void **state)
{
    small *s = *state;
    const double e[8] = {1, 8, 0, 0, 1, 0, 4, 0}; /* logits: q[0] / 2 */
    const struct { double q, sink, factor; } cases[] = {
        {2, 1, 2.0 / 3}, {2, -INFINITY, 1}, {2, 31, 2 * exp(-30)}, {2, 1e4, 0}, {-4000, 0, 0},
        {4000, 0, 1}, {4000, -1e4, 1}, {-4000, -2000, 2.0 / 3}};
    int levels;
    const fast_kernels *const *level = fast_levels(&levels);
    for (int i = 0; i < 8 * levels; i++) {
        token t = make_token(s, 1, 4, 2, false, 0);
        t.q32[0] = (float)cases[i % 8].q;
        t.sink32[0] = (float)cases[i % 8].sink;
        for (int j = 0; j < 8; j++)
            t.e32[j] = (float)e[j];
        fast_list list = list_of(&t);
        const float *out = attend(s, level[i / 8], &t, &list, 1);
        const double want[4] = {1, 4, 2, 0};
        for (int j = 0; j < 4; j++)
            small_about(s, out[j], want[j] * cases[i % 8].factor,
                        16 * u * want[j] * cases[i % 8].factor);
    }
}

/* What has no value is not lost on the way. */
static void nan_stays(void **state)
{
    small *s = *state;
    int levels;
    const fast_kernels *const *level = fast_levels(&levels);
    for (int i = 0; i < 6 * levels; i++) {
        s->c.numerics = i % 2 == 0 ? DSV4_EXACT : DSV4_RELEASED;
        token t = make_token(s, 3, 20, 70, false, 1);
        fast_list list = list_of(&t);
        float bad = i / 2 % 3 == 2 ? INFINITY : NAN;
        if (i / 2 % 3 == 0)
            t.q32[1 * t.d + 17] = bad;
        else
            t.e32[66 * t.d + 3] = bad;
        const float *out = attend(s, level[i / 6], &t, &list, t.H);
        assert_false(isfinite(out[1 * t.d + 3]));
        assert_true(i / 2 % 3 != 0 || isfinite(out[2 * t.d + 3]));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        small_test(exact), small_test(released), small_test(flash), small_test(rising_and_falling),
        small_test(company_changes_nothing), small_test(cached_entries), small_test(sinks),
        small_test(nan_stays),
    };
    return cmocka_run_group_tests_name("fast_core_attn", tests, NULL, NULL) != 0;
}
