/* spec/compressor.md: against pooling over the whole sequence at once, in calls of any size. */
#include "small.h"

#include <math.h>
#include <string.h>

/* A compressor with its weights, an input sequence, and where its entries go. */
typedef struct {
    dsv4_compressor w;
    ref_compressor_state state;
    int64_t T;
    double *x, *freq; /* [T, D] */
} fixture;

/* An empty state. What has not been written yet is NaN, so that no test can pass by reading it. */
static void forget(small *s, fixture *f)
{
    ref_compressor_state *state = &f->state;
    int64_t items = state->halves * state->ratio * state->halves * state->head;
    int64_t values = (f->T + 1) * state->head; /* too many, for whoever emits too many */
    state->count = 0;
    state->a = small_array(s, items);
    state->z = small_array(s, items);
    state->entries = small_array(s, values);
    for (int64_t i = 0; i < items; i++)
        state->a[i] = state->z[i] = NAN;
    for (int64_t i = 0; i < values; i++)
        state->entries[i] = NAN;
}

static fixture make(small *s, int64_t ratio, bool index, int64_t T)
{
    int64_t head = index ? s->config.index_head_dim : s->config.head_dim;
    int64_t D = s->config.hidden_size, halves = ratio == 4 ? 2 : 1;
    fixture f = {
        .w = {small_random_matrix(s, DSV4_F32, ratio, halves * head, 2),
              small_random_matrix(s, DSV4_F32, 1, head, 1),
              small_random_matrix(s, DSV4_F32, halves * head, D, 1),
              small_random_matrix(s, DSV4_F32, halves * head, D, 1)},
        .state = {.index = index, .ratio = ratio, .head = head, .halves = halves},
        .T = T, .x = small_array(s, T * D),
        .freq = small_array(s, s->config.qk_rope_head_dim / 2)};
    for (int64_t i = 0; i < T * D; i++)
        f.x[i] = small_random(s); /* binary32: the maps round no input */
    ref_rope_frequencies(&s->c, true, f.freq);
    forget(s, &f);
    return f;
}

/* Calls of `piece` tokens each; the last may be shorter. */
static void run(small *s, fixture *f, int64_t piece)
{
    int64_t D = s->config.hidden_size;
    for (int64_t t = 0; t < f->T; t += piece) {
        int64_t n = piece < f->T - t ? piece : f->T - t;
        ref_compress(&s->c, &f->w, &f->state, f->freq, t, f->x + t * D, n);
        assert_int_equal(f->state.count, (t + n) / f->state.ratio); /* no group early, none late */
    }
    assert_true(isnan(f->state.entries[f->T / f->state.ratio * f->state.head]));
}

/* One channel of one token's item: out of `row` of a map. */
static long double item(const small *s, const double *row, const double *x)
{
    long double sum = 0;
    for (int64_t i = 0; i < s->config.hidden_size; i++)
        sum += (long double)row[i] * x[i];
    return s->c.numerics == DSV4_EXACT ? sum : (long double)(float)sum;
}

/* The pooled value of entry g in one channel, by the definition: weights exp(z) / sum of exp(z). */
static double pooled(const small *s, const fixture *f, const double *wkv, const double *wgate,
                     const double *ape, int64_t g, int64_t channel)
{
    int64_t D = s->config.hidden_size, r = f->state.ratio, head = f->state.head;
    int64_t width = f->w.ape.cols;
    bool csa = r == 4;
    long double numerator = 0, denominator = 0;
    for (int64_t t = (g + 1) * r - 1; t >= 0 && t >= (csa ? g - 1 : g) * r; t--) {
        int64_t at = csa && t / r == g ? head + channel : channel;
        long double z = item(s, wgate + at * D, f->x + t * D) + ape[t % r * width + at];
        numerator += expl(z) * item(s, wkv + at * D, f->x + t * D);
        denominator += expl(z);
    }
    return small_bf16_point(s, (double)(numerator / denominator));
}

/* All entries; what follows the pooling is by the functions of other chapters. */
static double *directly(small *s, const fixture *f)
{
    int64_t groups = f->T / f->state.ratio, head = f->state.head;
    double *wkv = small_values(s, &f->w.wkv), *wgate = small_values(s, &f->w.wgate);
    double *ape = small_values(s, &f->w.ape), *entries = small_array(s, groups * head);
    for (int64_t g = 0; g < groups; g++) {
        double *entry = entries + g * head;
        for (int64_t channel = 0; channel < head; channel++)
            entry[channel] = pooled(s, f, wkv, wgate, ape, g, channel);
        ref_rmsnorm(&s->c, &f->w.norm, entry, 1, entry);
        ref_rope(&s->c, f->freq, g * f->state.ratio, entry, head);
        if (f->state.index) {
            ref_hadamard(&s->c, entry, head);
            ref_qdq_index(&s->c, entry);
        } else {
            ref_qdq_kv(&s->c, entry);
        }
    }
    return entries;
}

/* Sizes for which released can quantise, in both contracts. */
static small *sized(void **state)
{
    small *s = *state;
    s->config.hidden_size = 12;
    s->config.head_dim = 64 + 8;
    s->config.index_head_dim = 32;
    return s;
}

/* In one call, and in calls that begin and end in the middle of groups. */
static void in_pieces(small *s, int64_t ratio, bool index, int64_t T)
{
    static const int64_t pieces[] = {1000, 1, 2, 3, 5, 7};
    for (s->c.numerics = DSV4_EXACT; s->c.numerics <= DSV4_RELEASED; s->c.numerics++) {
        fixture f = make(s, ratio, index, T);
        double *want = directly(s, &f);
        for (int i = 0; i < 6; i++) {
            forget(s, &f);
            run(s, &f, pieces[i]);
            small_near(s, f.state.entries, want, T / ratio * f.state.head,
                       s->c.numerics == DSV4_EXACT ? 1e-13 : 0);
        }
    }
}

/* covers: compressor.items.1 compressor.items.2 compressor.group.1 compressor.csa.1 */
/* covers: compressor.csa.2 compressor.softmax.1 compressor.entry.1 compressor.entry.2 */
/* covers: compressor.entry.3 compressor.entry.4 */
static void csa_in_pieces(void **state)
{
    small *s = sized(state);
    in_pieces(s, 4, false, 23);
    in_pieces(s, 4, true, 23);
}

/* covers: compressor.items.1 compressor.items.2 compressor.group.1 compressor.hca.1 */
/* covers: compressor.softmax.1 compressor.entry.1 compressor.entry.2 compressor.entry.3 */
/* covers: compressor.entry.4 */
static void hca_in_pieces(void **state)
{
    small *s = sized(state);
    in_pieces(s, 6, false, 23);
    in_pieces(s, 128, false, 2 * 128 + 1);
    in_pieces(s, 8, true, 17); /* no released layer, but the rules allow it */
}

/* covers: compressor.group.1 compressor.visible.1 */
static void around_the_ratio(void **state)
{
    static const int64_t ratios[3] = {4, 5, 128};
    small *s = sized(state);
    for (int i = 0; i < 3; i++) {
        int64_t r = ratios[i];
        for (int64_t T = r - 1; T <= r + 1; T++) {
            fixture f = make(s, r, false, T);
            run(s, &f, T);
            assert_int_equal(f.state.count, T < r ? 0 : 1);
        }
        for (int64_t t = 0; t < 3 * r + 2; t++) {
            int64_t groups = 0; /* those whose last token is t or before it */
            while (groups * r + r - 1 <= t)
                groups++;
            assert_int_equal(ref_visible(t, r), groups);
        }
    }
}

/* Entries of head size 2 without rotation (the frequency is 0). a = (x[0], x[1]), in CSA's second
 * half ten times that; z = ape. The norm leaves the direction: value 1 over value 0 -> entries. */
static void pool_by_hand(small *s, int64_t ratio, int64_t T, const double *ape, const double *x,
                         double *entries)
{
    int64_t halves = ratio == 4 ? 2 : 1, width = 2 * halves;
    double zero[1] = {0}, *wkv = small_array(s, width * 2), *wgate = small_array(s, width * 2);
    for (int64_t o = 0; o < width; o++)
        wkv[o * 2 + o % 2] = o < 2 ? 1 : 10;
    s->config.hidden_size = s->config.head_dim = s->config.qk_rope_head_dim = 2;
    s->config.rms_norm_eps = 0;
    dsv4_compressor w = {small_f32(s, ape, ratio, width), small_f32(s, (double[]){1, 1}, 1, 2),
                         small_f32(s, wkv, width, 2), small_f32(s, wgate, width, 2)};
    fixture f = {.w = w, .T = T, .freq = zero, .x = small_copy(s, x, T * 2),
                 .state = {.ratio = ratio, .head = 2, .halves = halves}};
    forget(s, &f);
    run(s, &f, T);
    for (int64_t g = 0; g < T / ratio; g++)
        entries[g] = f.state.entries[2 * g + 1] / f.state.entries[2 * g];
}

/* covers: compressor.hca.1 compressor.items.2 compressor.softmax.1 */
static void hca_by_hand(void **state)
{
    small *s = *state;
    /* Channel 0 weighs its two tokens 3 : 1, channel 1 evenly: (5, 15) and (2, 8). */
    const double ape[4] = {log(3), 1000, 0, 1000}, x[8] = {4, 10, 8, 20, 1, 6, 5, 10};
    double entries[2];
    pool_by_hand(s, 2, 4, ape, x, entries);
    small_near(s, entries, ((double[]){3, 4}), 2, 1e-6); /* ape is binary32 */
}

/* covers: compressor.csa.1 compressor.csa.2 compressor.softmax.1 */
static void csa_by_hand(void **state)
{
    small *s = *state;
    double ape[16] = {0}, x[16], entries[2];
    for (int t = 0; t < 8; t++) {
        x[2 * t] = 1;
        x[2 * t + 1] = t;
    }
    /* Group 0 pools 10 (1, t) of t = 0..3: (40, 60) / 4. Group 1 pools (1, t) of t = 0..3 and
     * 10 (1, t) of t = 4..7: (4 + 40, 6 + 220) / 8. */
    pool_by_hand(s, 4, 8, ape, x, entries);
    small_near(s, entries, ((double[]){1.5, 226.0 / 44}), 2, 1e-14);
}

/* What the tap sees: the entries of this call, by their place in the run. */
static void remember(void *context, const dsv4_point *point)
{
    dsv4_point *seen = context;
    *seen = *point;
}

static void the_tap_sees_new_entries(void **state)
{
    small *s = sized(state);
    dsv4_point seen = {0};
    dsv4_tap tap = {remember, &seen};
    s->c.tap = &tap;
    s->c.layer = 7;
    for (int index = 0; index < 2; index++) {
        fixture f = make(s, 4, index, 13);
        ref_compress(&s->c, &f.w, &f.state, f.freq, 0, f.x, 5);
        ref_compress(&s->c, &f.w, &f.state, f.freq, 5, f.x + 5 * s->config.hidden_size, 8);
        assert_string_equal(seen.name, index ? "index_k" : "compressed");
        assert_int_equal(seen.layer, 7);
        assert_int_equal(seen.row, 1);
        assert_int_equal(seen.rows, 2);
        assert_int_equal(seen.dim[0], f.state.head);
        assert_ptr_equal(seen.values, f.state.entries + f.state.head);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        small_test(csa_in_pieces),
        small_test(hca_in_pieces),
        small_test(around_the_ratio),
        small_test(hca_by_hand),
        small_test(csa_by_hand),
        small_test(the_tap_sees_new_entries),
    };
    return cmocka_run_group_tests_name("compressor", tests, NULL, NULL) != 0;
}
