/* fast/core_attn.c: against the formula and the reference, at every level of instructions. Those of tiles
 * (AMX) come twice: with the tile instructions replaced by C, and as they were compiled, with the
 * processor's own instructions or, where it has none, with answers to its complaints (trap_amx.h). */
#include "small.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "fast/fast.h"
#include "whole.h"

#ifdef __x86_64__
#include "emulated_amx.h"
#include "trap_amx.h"
#endif

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

/* ---- levels ---- */

static const fast_row_kernels *spied;
static int64_t taken, refused; /* heads, by tiles */

static void counted_end(const fast_softmax *softmax, void *scratch, bool *bad)
{
    spied->end(softmax, scratch, bad);
    for (int64_t h = 0; h < softmax->heads; h++) {
        taken += !bad[h];
        refused += bad[h];
    }
}

#ifdef __x86_64__
/* level[2], which has no tiles, with these. */
static void add_level(fast_kernels *level, int *levels, const char *name, const fast_row_kernels *tiles)
{
    level[*levels] = level[2];
    level[*levels].name = name;
    level[(*levels)++].core_attn_tiles = tiles;
}
#endif

/* The levels of this machine without tiles, and then those with. */
static const fast_kernels *every_level(small *s, int *levels)
{
    const fast_kernels *const *found = fast_levels(levels);
    fast_kernels *level = small_alloc(s, 6, sizeof *level);
    const int count = *levels;
    *levels = count < 3 ? count : 3;
    for (int i = 0; i < *levels; i++)
        level[i] = *found[i];
#ifdef __x86_64__
    if (count < 3)
        return level;
    if (trap_amx_needed())
        trap_amx_install();
    add_level(level, levels, "emulated tiles", &emulated_core_attn_amx);
    if (count > 3) /* whoever has amx has avx512bf16, too */
        add_level(level, levels, "tiles of vectors", &fast_core_attn_avx512bf16);
    if (!TRAP_AMX_TOO_SLOW)
        add_level(level, levels, "tiles", &fast_core_attn_amx);
#endif
    return level;
}

/* All heads, in items of `share`. */
static float *attend(small *s, const fast_kernels *kernels, const token *t, const fast_list *list,
                     int64_t share)
{
    fast_kernels level = *kernels;
    fast_row_kernels spy;
    if (level.core_attn_tiles != NULL) {
        spied = level.core_attn_tiles;
        spy = *spied;
        spy.end = counted_end;
        level.core_attn_tiles = &spy;
    }
    fast_context c = context(s, &level);
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
 * lost, and so is, by tiles, a product below. The numerator has count + blocks additions. Quotients:
 * as numerator and denominator together. In RELEASED a p near the middle between two bf16 numbers may
 * go to either. */
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
            bound[i] += (high - low) * shrink * fabs(e) + 0x1p-125 * (fabs(e) + 1) +
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

static const int64_t shapes[][2] = {{6, 16}, {1, 1}, {3, 48}, {5, 72}, {2, 130}, {9, 37}, {4, 64}, {2, 49}};
static const int64_t counts[] = {1, 2, 3, 4, 5, 31, 63, 64, 65, 128, 130, 200};

static void every_shape(small *s)
{
    int levels;
    const fast_kernels *level = every_level(s, &levels);
    tally n = {0};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (size_t j = 0; j < sizeof counts / sizeof *counts; j++)
            for (int gaps = 0; gaps < 2; gaps++) {
                double amplitude = (double[]){0.5, 4, 40}[(i + j) % 3];
                token t = make_token(s, shapes[i][0], shapes[i][1], counts[j], gaps, amplitude);
                fast_list list = list_of(&t);
                for (int l = 0; l < levels; l++)
                    check(s, &t, attend(s, &level[l], &t, &list, t.H), &n);
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
    const fast_kernels *level = every_level(s, &levels);
    for (int i = 0; i < 2; i++) {
        tally n = {0};
        s->c.numerics = i == 0 ? DSV4_EXACT : DSV4_RELEASED;
        token t = make_token(s, 8, 512, 640, false, 2);
        fast_list list = list_of(&t);
        for (int l = 0; l < levels; l++)
            check(s, &t, attend(s, &level[l], &t, &list, t.H), &n);
        assert_true(i == 0 || n.flips * 200 < n.values);
    }
}

/* Maxima that grow from block to block, and that do not. */
static void rising_and_falling(void **state)
{
    small *s = *state;
    static const double slopes[] = {0.05, -0.05, 1, -1, 20, -20};
    int levels;
    const fast_kernels *level = every_level(s, &levels);
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
            check(s, &t, attend(s, &level[l], &t, &list, t.H), &n);
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
    const fast_kernels *level = every_level(s, &levels);
    for (int i = 0; i < 12; i++) {
        s->c.numerics = i % 2 == 0 ? DSV4_EXACT : DSV4_RELEASED;
        token t = make_token(s, 13, (int64_t[]){64, 48, 131}[i % 3], 150, i % 4 < 2, 4);
        fast_list list = list_of(&t);
        for (int l = 0; l < levels; l++) {
            float *all = attend(s, &level[l], &t, &list, t.H);
            for (int j = 0; j < 8; j++)
                same_bits(attend(s, &level[l], &t, &list, shares[j]), all, t.H * t.d);
        }
    }
}

/* Entries of a cache, named by index, next to others that lie in a window. */
static void cached_entries(void **state)
{
    small *s = *state;
    enum { H = 5, R = 8, d = 128 + R, stored = 90, in_window = 70, count = 200 };
    int levels;
    const fast_kernels *level = every_level(s, &levels);
    s->config.qk_rope_head_dim = R;
    for (int l = 0; l < 2 * levels; l++) {
        s->c.numerics = l % 2 == 0 ? DSV4_EXACT : DSV4_RELEASED;
        token t = make_token(s, H, d, count, l >= levels, 3);
        fast_context c = context(s, &level[l / 2]);
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
    const fast_kernels *level = every_level(s, &levels);
    for (int i = 0; i < 8 * levels; i++) {
        token t = make_token(s, 1, 4, 2, false, 0);
        t.q32[0] = (float)cases[i % 8].q;
        t.sink32[0] = (float)cases[i % 8].sink;
        for (int j = 0; j < 8; j++)
            t.e32[j] = (float)e[j];
        fast_list list = list_of(&t);
        const float *out = attend(s, &level[i / 8], &t, &list, 1);
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
    const fast_kernels *level = every_level(s, &levels);
    for (int i = 0; i < 6 * levels; i++) {
        s->c.numerics = i % 2 == 0 ? DSV4_EXACT : DSV4_RELEASED;
        token t = make_token(s, 3, 20, 70, false, 1);
        fast_list list = list_of(&t);
        float bad = i / 2 % 3 == 2 ? INFINITY : NAN;
        if (i / 2 % 3 == 0)
            t.q32[1 * t.d + 17] = bad;
        else
            t.e32[66 * t.d + 3] = bad;
        const float *out = attend(s, &level[i / 6], &t, &list, t.H);
        assert_false(isfinite(out[1 * t.d + 3]));
        assert_true(i / 2 % 3 != 0 || isfinite(out[2 * t.d + 3]));
    }
}

#ifdef __x86_64__

/* ---- tiles ---- */

/* More heads than a tile has, and widths of whole tiles and of more. */
static void many_heads(void **state)
{
    small *s = *state;
    static const int64_t heads[] = {15, 16, 17, 32, 33, 48, 64};
    static const int64_t counts_of[] = {1, 15, 16, 17, 32, 33, 48, 63, 64, 97, 128, 161};
    int levels;
    const fast_kernels *level = every_level(s, &levels);
    tally n = {0};
    s->c.numerics = DSV4_RELEASED;
    taken = refused = 0;
    for (int i = 0; i < 12; i++) {
        int64_t d = (int64_t[]){32, 160, 512, 64, 96, 70}[i % 6];
        token t = make_token(s, heads[i % 7], d, counts_of[i], i % 3 == 0, i % 2 == 0 ? 4 : 40);
        fast_list list = list_of(&t);
        for (int l = 3; l < levels; l++)
            check(s, &t, attend(s, &level[l], &t, &list, t.H), &n);
    }
    assert_true(levels <= 3 || taken > 0);
    assert_int_equal(refused, 0);
    assert_true(n.flips * 200 <= n.values);
}

/* Equal logits, one that is far above all others, all far below 0, a sink that takes all or nothing. */
static void extremes(void **state)
{
    small *s = *state;
    int levels;
    const fast_kernels *level = every_level(s, &levels);
    s->c.numerics = DSV4_RELEASED;
    taken = refused = 0;
    for (int i = 0; i < 6; i++) {
        tally n = {0};
        token t = make_token(s, 18, 64, 150, false, i == 2 ? 30000 : i == 3 ? 0x1p-40 : 1);
        for (int64_t h = 0; h < t.H; h++) {
            if (i == 0)
                memset(t.q32 + h * t.d, 0, (size_t)t.d * sizeof *t.q32);
            if (i == 1)
                t.q32[h * t.d] = h % 2 == 0 ? 4096 : -4096;
            if (i == 4)
                t.sink32[h] = (float)(t.sink[h] = -INFINITY);
            if (i == 5)
                t.sink32[h] = (float)(t.sink[h] = h % 2 == 0 ? 1e4 : -1e4);
        }
        for (int64_t j = 0; j < t.count && i == 1; j++)
            t.e32[j * t.d] = (float)(t.e[j * t.d] = j == 77 ? 2 : 1);
        for (int64_t j = 0; j < t.H * t.d; j++)
            t.q[j] = t.q32[j];
        fast_list list = list_of(&t);
        for (int l = 3; l < levels; l++)
            check(s, &t, attend(s, &level[l], &t, &list, t.H), &n);
        assert_true(i == 5 || n.flips * 50 <= n.values);
    }
    assert_int_equal(refused, 0);
}

/* What tiles cannot represent goes by vectors: the same bits; and the other heads' are what they were. */
static void refusals(void **state)
{
    small *s = *state;
    enum { H = 18, d = 64, count = 70 };
    static const struct { bool of_q; float value, factor; bool good; } cases[] = {
        {true, 0x1p-130f, 1, false},   {true, 1 + 0x1p-10f, 1, false}, {true, 0x1p125f, 1, false},
        {true, 0x1p-110f, 1, false},   {true, 0x1p-90f, 1, true},      {true, 0x1p110f, 1, true},
        {false, 0x1p-127f, 1, false},  {false, 1 + 0x1p-9f, 1, false}, {false, 0x1p64f, 1, false},
        {false, 0x1p63f, 1, true},     {false, 0x1p-57f, 1, true},     {false, 0x1p-58f, 1, false},
        {false, 0, 1, true},           {true, 0, 1, true},             {true, 1, 0x1p-70f, true}};
    int levels;
    const fast_kernels *level = every_level(s, &levels);
    s->c.numerics = DSV4_RELEASED;
    for (int i = 0; i < (int)(sizeof cases / sizeof *cases); i++)
        for (int l = 3; l < levels; l++) {
            token t = make_token(s, H, d, count, i % 2 == 0, 1);
            fast_list list = list_of(&t);
            /* No number is nearer to 0 than those of the cases. */
            for (int64_t j = 0; j < H * d; j++)
                t.q32[j] = t.q32[j] == 0 ? 1 : t.q32[j];
            for (int64_t j = 0; j < count * d; j++)
                t.e32[j] = fabsf(t.e32[j]) < 0x1p-8f ? 0.5f : t.e32[j];
            float *before = attend(s, &level[l], &t, &list, H);
            for (int64_t j = 0; j < d; j++)
                t.q32[17 * d + j] *= cases[i].factor;
            if (cases[i].of_q)
                t.q32[17 * d + 33] = cases[i].value * cases[i].factor;
            else
                t.e32[66 * d + 40] = cases[i].value;
            taken = refused = 0;
            float *got = attend(s, &level[l], &t, &list, H);
            assert_int_equal(refused, cases[i].good ? 0 : cases[i].of_q ? 1 : H);
            float *want = attend(s, &level[2], &t, &list, H);
            if (!cases[i].good)
                same_bits(got + 17 * d, want + 17 * d, d);
            same_bits(got, cases[i].of_q ? before : cases[i].good ? got : want, 17 * d);
        }
}

/* Codes that are no numbers, and scales with which they are none that tiles know. */
static void codes_refused(void **state)
{
    small *s = *state;
    enum { H = 3, R = 32, d = 128 + R, count = 66 };
    static const struct { uint8_t code, scale; uint16_t rope; bool good; } cases[] = {
        {0x38, 127, 0x3f80, true},  {0x07, 90, 0x3f80, true},  {0x38, 72, 0x3f80, true},
        {0x38, 71, 0x3f80, false},  {0x7e, 182, 0x3f80, true}, {0x7e, 183, 0x3f80, false},
        {0x38, 9, 0x3f80, false},   {0x7f, 127, 0x3f80, false}, {0xff, 127, 0x3f80, false},
        {0x38, 127, 0x0001, false}, {0x38, 127, 0x7f80, false}, {0x00, 127, 0x0000, true}};
    int levels;
    const fast_kernels *level = every_level(s, &levels);
    s->config.qk_rope_head_dim = R;
    s->c.numerics = DSV4_RELEASED;
    for (int i = 0; i < (int)(sizeof cases / sizeof *cases); i++)
        for (int l = 3; l < levels; l++) {
            token t = make_token(s, H, d, count, false, 1);
            fast_entries entries = {.head = d, .count = count,
                                    .codes = small_alloc(s, count * (d - R), 1),
                                    .scales = small_alloc(s, count * 2, 1),
                                    .rope = small_alloc(s, count * R, sizeof(uint16_t))};
            int64_t index[count];
            memset(entries.scales, 127, 2 * count);
            for (int64_t j = 0; j < count; j++) {
                index[j] = count - 1 - j;
                for (int64_t k = 0; k < d - R; k++)
                    entries.codes[j * (d - R) + k] = (uint8_t)(0x28 + (j * 37 + k * 11) % 24);
            }
            entries.codes[5 * (d - R) + 70] = cases[i].code;
            entries.scales[11] = cases[i].scale;
            entries.rope[5 * R + 31] = cases[i].rope;
            fast_list list = {.count = count, .index = index, .slot = t.slot, .entries = &entries};
            taken = refused = 0;
            float *got = attend(s, &level[l], &t, &list, H);
            assert_int_equal(refused, cases[i].good ? 0 : H);
            if (!cases[i].good)
                same_bits(got, attend(s, &level[2], &t, &list, H), H * d);
        }
}

/* Every code times many scales is what it stands for: an only entry is the result, the sink being out. */
static void every_code(void **state)
{
    small *s = *state;
    enum { H = 1, R = 2, d = 256 + R };
    int levels;
    const fast_kernels *level = every_level(s, &levels);
    s->config.qk_rope_head_dim = R;
    s->c.numerics = DSV4_RELEASED;
    for (int scale = 72; scale <= 182; scale += 11)
        for (int l = 3; l < levels; l++) {
            token t = make_token(s, H, d, 1, false, 0);
            uint8_t codes[d - R], scales[(d - R) / 64];
            uint16_t rope[R] = {0x3f80, 0xc040};
            float want[d] = {[d - 2] = 1, -3};
            t.sink32[0] = -INFINITY;
            for (int i = 0; i < d - R; i++) {
                scales[i / 64] = (uint8_t)(scale - i / 64 % 2);
                codes[i] = (uint8_t)((i & 0x7f) == 0x7f ? 0 : i);
                want[i] = (float)(ref_decode_e4m3(codes[i]) * ref_decode_e8m0(scales[i / 64]));
            }
            fast_entries entries = {.head = d, .count = 1, .codes = codes, .scales = scales,
                                    .rope = rope};
            fast_list list = {.count = 1, .index = (int64_t[]){0}, .slot = t.slot,
                              .entries = &entries};
            refused = 0;
            float *got = attend(s, &level[l], &t, &list, H);
            assert_int_equal(refused, scale == 72); /* the half of which is too small */
            for (int i = 0; i < d; i++)
                assert_true(got[i] == want[i]);
        }
}

/* Rows that have been made beforehand, wherever they lie, change nothing. */
static void rows_beforehand(void **state)
{
    small *s = *state;
    enum { H = 20, d = 96, count = 150 };
    int levels;
    const fast_kernels *level = every_level(s, &levels);
    s->c.numerics = DSV4_RELEASED;
    for (int i = 0; i < 5; i++)
        for (int l = 3; l < levels; l++) {
            token t = make_token(s, H, d, count, i == 4, 2);
            fast_list list = list_of(&t);
            float *want = attend(s, &level[l], &t, &list, H);
            const fast_row_kernels *tiles = level[l].core_attn_tiles;
            int64_t size = tiles->row_size(d);
            uint16_t *rows = (uint16_t *)small_alloc(s, 2 * count * size + 1, sizeof *rows) + 1;
            const uint16_t **row = small_alloc(s, count, sizeof *row);
            const float **e = small_alloc(s, count, sizeof *e);
            for (int64_t j = 0; j < count; j++) {
                int64_t at = i == 0 ? j : i == 1 ? count - 1 - j : i == 2 ? 2 * j : j * 77 % count;
                row[j] = i == 3 && j % 3 == 0 ? NULL : rows + at * size;
                e[j] = row[j] == NULL ? t.at[j] : NULL;
                if (row[j] != NULL)
                    tiles->row(t.at[j], d, rows + at * size);
            }
            list.e = e;
            list.row = row;
            same_bits(attend(s, &level[l], &t, &list, H), want, H * d);
        }
}

/* What was compiled is what was meant. Trapped instructions give the same bits; those of a processor may
 * sum the halves of a pair in other ways. */
static void as_emulated(void **state)
{
    small *s = *state;
    int levels;
    const fast_kernels *level = every_level(s, &levels);
    if (levels <= 3 || TRAP_AMX_TOO_SLOW)
        skip();
    assert_true(emulated_core_attn_amx.works());
    assert_true(fast_core_attn_amx.works());
    assert_null(level[2].core_attn_tiles);
    s->c.numerics = DSV4_RELEASED;
    int64_t before = trap_amx_count();
    token t = make_token(s, 40, 512, 200, true, 2);
    fast_list list = list_of(&t);
    float *want = attend(s, &level[3], &t, &list, t.H);
    float *got = attend(s, &level[levels - 1], &t, &list, t.H);
    int64_t differing = 0;
    for (int64_t i = 0; i < t.H * t.d; i++)
        differing += memcmp(&got[i], &want[i], sizeof *got) != 0;
    assert_true(differing <= (trap_amx_needed() ? 0 : t.H * t.d / 200));
    if (trap_amx_needed())
        assert_true(trap_amx_count() > before);
}

/* ---- whole passes ---- */

/* A model's streams after the last layer, in calls of at most `most` rows. */
static float *streams(small *s, const whole *w, const fast_kernels *kernels, const int64_t *ids,
                      int64_t n, int64_t most, int threads)
{
    const dsv4_config *config = &w->model.config;
    const int64_t width = config->hc_mult * config->hidden_size;
    float *h = small_alloc(s, n * width, sizeof *h);
    fast_context c = {.config = config, .released = true, .kernels = kernels,
                      .pool = fast_pool_new(threads, &s->error), .memory = fast_memory_new(),
                      .error = &s->error};
    fast_state *state = fast_state_new(config, true, 0, n, &s->error);
    for (int64_t at = 0, rows; at < n; at += rows) {
        rows = n - at < most ? n - at : most;
        int64_t *position = small_alloc(s, rows, sizeof *position);
        for (int64_t i = 0; i < rows; i++)
            position[i] = at + i;
        fast_segment segment = {.state = state, .rows = rows, .position = at};
        fast_call call = {.T = rows, .segments = 1, .segment = &segment, .position = position};
        fast_forward(&c, &call, &w->model, ids + at, h + at * width);
    }
    assert_string_equal(s->error.text, "");
    fast_state_free(state);
    fast_memory_free(c.memory);
    fast_pool_free(c.pool);
    return h;
}

/* By tiles, though by vectors elsewhere: no bit depends on how many rows there are in a call, for which
 * some rows of entries are made at once, nor on threads, between which heads are divided. */
static void any_number_of_rows(void **state)
{
    small *s = *state;
    static const int64_t most[] = {1, 2, 3, 5, 8, 33, 100};
    int levels;
    const fast_kernels *level = every_level(s, &levels);
    for (int i = 0; i < 2; i++)
        for (int l = 3; l < levels && level[l].core_attn_tiles != &fast_core_attn_amx; l++) {
            whole w;
            whole_open(&w, DSV4_RELEASED, MAKE_RELEASED,
                       CHANGES("sliding_window", i == 0 ? "7" : "70"));
            int64_t n = 100, *ids = whole_ids(&w, n, 5);
            fast_kernels tiles = level[l];
            spied = tiles.core_attn_tiles;
            fast_row_kernels spy = *spied;
            spy.end = counted_end;
            tiles.core_attn_tiles = &spy;
            taken = refused = 0;
            float *want = streams(s, &w, &tiles, ids, n, n, 1);
            assert_true(taken > 0);
            assert_int_equal(refused, 0);
            tiles.core_attn_tiles = spied;
            int64_t count = n * w.model.config.hc_mult * w.model.config.hidden_size;
            for (int j = 0; j < (int)(sizeof most / sizeof *most); j++)
                same_bits(streams(s, &w, &tiles, ids, n, most[j], 1 + j % 4), want, count);
            free(ids);
            whole_close(&w);
        }
}

#endif

int main(void)
{
    const struct CMUnitTest tests[] = {
        small_test(exact), small_test(released), small_test(flash), small_test(rising_and_falling),
        small_test(company_changes_nothing), small_test(cached_entries), small_test(sinks),
        small_test(nan_stays),
#ifdef __x86_64__
        small_test(many_heads), small_test(extremes), small_test(refusals),
        small_test(codes_refused), small_test(every_code), small_test(rows_beforehand),
        small_test(as_emulated), small_test(any_number_of_rows),
#endif
    };
    return cmocka_run_group_tests_name("fast_core_attn", tests, NULL, NULL) != 0;
}
