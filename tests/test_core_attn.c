/* spec/core_attn.md */
#include <math.h>

#include "small.h"

/* A window of d = 1 whose row holds its token's number, and entries of which g holds 100 + g. */
static ref_layer_state numbered(small *s, int64_t W, int64_t newest, int64_t entries)
{
    ref_layer_state state = {.window = small_array(s, W)};
    s->config.sliding_window = W;
    s->config.head_dim = 1;
    for (int64_t t = 0; t <= newest; t++)
        state.window[t % W] = (double)t;
    state.compressor.entries = small_array(s, entries);
    for (int64_t g = 0; g < entries; g++)
        state.compressor.entries[g] = (double)(100 + g);
    return state;
}

/* The list of token t of a window of W: tokens oldest..t in slots 0.., `chosen` from slot W on. */
static void lists(small *s, int64_t W, int64_t t, const int64_t *chosen, int64_t n)
{
    ref_layer_state state = numbered(s, W, t, 8);
    ref_entry *list = small_alloc(s, W + n + 9, sizeof *list); /* room for mistakes */
    int64_t in_window = t + 1 < W ? t + 1 : W;
    assert_int_equal(ref_list_entries(&s->c, &state, t, chosen, n, list), in_window + n);
    for (int64_t i = 0; i < in_window; i++) {
        small_is(s, *list[i].e, (double)(t + 1 - in_window + i));
        assert_int_equal(list[i].slot, i);
    }
    for (int64_t i = 0; i < n; i++) {
        small_is(s, *list[in_window + i].e, (double)(100 + chosen[i]));
        assert_int_equal(list[in_window + i].slot, W + i);
    }
}

/* covers: core_attn.list.1 core_attn.list.2 core_attn.list.3 */
static void list(void **state)
{
    small *s = *state;
    const int64_t by_score[4] = {5, 0, 7, 2}, ascending[3] = {0, 1, 2};
    static const int64_t windows[] = {1, 2, 7, 128};
    for (int i = 0; i < 4; i++) {
        int64_t W = windows[i];
        for (int64_t t = W - 3 > 0 ? W - 3 : 0; t <= W + 3; t++) {
            lists(s, W, t, NULL, 0);
            lists(s, W, t, by_score, 4);
            lists(s, W, t, ascending, 3);
        }
        lists(s, W, 0, by_score, 1);
        lists(s, W, 10 * W + W / 2, by_score, 4);
    }
}

/* One head over entries e [count, d] in slots slot[count] (NULL: 0, 1, 2 ...). */
static void attend(small *s, int64_t d, const double *q, double sink, const double *e,
                   int64_t count, const int64_t *slot, double *out)
{
    s->config.num_attention_heads = 1;
    s->config.head_dim = d;
    ref_entry *list = small_alloc(s, count, sizeof *list);
    for (int64_t i = 0; i < count; i++)
        list[i] = (ref_entry){e + i * d, slot != NULL ? slot[i] : i};
    ref_core_attn(&s->c, q, &sink, list, count, out);
}

/* The same without running anything. Every exponential is taken relative to the final maximum at
 * once; in RELEASED the p of the numerator is rounded relative to the largest logit up to the end
 * of its own block of slots, and that maximum is never below `floor` (minus infinity, or the
 * sink). */
static void formula(small *s, int64_t d, const double *q, double sink, const double *e,
                    int64_t count, const int64_t *slot, int64_t block, double floor, double *out)
{
    double *logit = small_array(s, count), top = floor;
    for (int64_t i = 0; i < count; i++) {
        for (int64_t j = 0; j < d; j++)
            logit[i] += q[j] * e[i * d + j];
        logit[i] /= sqrt((double)d);
        top = fmax(top, logit[i]);
    }
    double denominator = exp(sink - top), *numerator = small_array(s, d);
    for (int64_t i = 0; i < count; i++) {
        double up_to_here = floor;
        for (int64_t j = 0; j < count; j++)
            if ((slot != NULL ? slot[j] : j) / block <= (slot != NULL ? slot[i] : i) / block)
                up_to_here = fmax(up_to_here, logit[j]);
        double p = small_bf16_point(s, exp(logit[i] - up_to_here)) * exp(up_to_here - top);
        denominator += exp(logit[i] - top);
        for (int64_t j = 0; j < d; j++)
            numerator[j] += p * e[i * d + j];
    }
    for (int64_t j = 0; j < d; j++)
        out[j] = small_bf16_point(s, numerator[j] / denominator);
}

/* Entries whose logits for q = (1, 0) rise by `slope` from one to the next, and a value to mean. */
static double *slope(small *s, int64_t count, double by)
{
    double *e = small_array(s, 2 * count);
    for (int64_t i = 0; i < count; i++) {
        e[2 * i] = by * (double)i + 0.3 * small_random(s);
        e[2 * i + 1] = small_random(s);
    }
    return e;
}

/* covers: core_attn.logit.1 core_attn.block.2 core_attn.block.3 core_attn.sink.1 core_attn.out.1 */
static void exact_is_softmax(void **state)
{
    small *s = *state;
    static const int64_t lengths[] = {1, 2, 63, 64, 65, 127, 128, 129, 300};
    static const double slopes[] = {0, 0.05, -0.05, 1, -1, 20, -20}, sinks[] = {-3, 0, 4};
    const double q[2] = {1, 0.25};
    for (int l = 0; l < 9; l++)
        for (int i = 0; i < 7; i++)
            for (int j = 0; j < 3; j++) {
                double *e = slope(s, lengths[l], slopes[i]), got[2], want[2];
                attend(s, 2, q, sinks[j], e, lengths[l], NULL, got);
                formula(s, 2, q, sinks[j], e, lengths[l], NULL, 64, -INFINITY, want);
                for (int k = 0; k < 2; k++)
                    small_about(s, got[k], want[k], 1e-13 * (1 + fabs(want[k])));
            }
}

/* covers: core_attn.sink.1 core_attn.block.1 core_attn.logit.1 */
static void sinks(void **state)
{
    small *s = *state;
    const double q[4] = {2, 0, 0, 0}, e[8] = {1, 8, 0, 0, 1, 0, 4, 0}; /* logits 2 / sqrt(4) = 1 */
    double out[4];
    attend(s, 4, q, 1, e, 2, NULL, out); /* sink and entries weigh alike */
    small_near(s, out, ((double[]){2.0 / 3, 8.0 / 3, 4.0 / 3, 0}), 4, 1e-15);
    attend(s, 4, q, -INFINITY, e, 2, NULL, out);
    small_near(s, out, ((double[]){1, 4, 2, 0}), 4, 1e-15);
    attend(s, 4, q, 31, e, 2, NULL, out);
    small_near(s, out, ((double[]){2 * exp(-30), 8 * exp(-30), 4 * exp(-30), 0}), 4, 1e-24);
    attend(s, 4, q, 1e4, e, 2, NULL, out); /* nothing but the sink */
    small_same(s, out, ((double[]){0, 0, 0, 0}), 4);
    attend(s, 4, (double[]){-4000, 0, 0, 0}, 0, e, 2, NULL, out); /* logits -2000 */
    small_same(s, out, ((double[]){0, 0, 0, 0}), 4);
    attend(s, 4, (double[]){4000, 0, 0, 0}, 0, e, 2, NULL, out);
    small_near(s, out, ((double[]){1, 4, 2, 0}), 4, 1e-15);
}

/* covers: core_attn.sink.1 */
static void each_head_has_its_sink(void **state)
{
    small *s = *state;
    s->config.num_attention_heads = 3;
    s->config.head_dim = 1;
    const double entry = 6, q[3] = {0, 0, log(2) / 6}, sink[3] = {0, log(2), log(4)};
    double out[3];
    ref_core_attn(&s->c, q, sink, &(ref_entry){&entry, 0}, 1, out);
    small_near(s, out, ((double[]){3, 2, 2}), 3, 1e-14);
}

/* covers: core_attn.block.3 core_attn.out.1 */
static void released_by_hand(void **state)
{
    small *s = *state;
    s->c.numerics = DSV4_RELEASED;
    double out;
    /* p = 1 and 0.38, which is 0.380859375 in bf16. */
    const double e[2] = {1, -3}, q = log(0.38) / -4;
    attend(s, 1, &q, -INFINITY, e, 2, NULL, &out);
    small_is(s, out, -0.103515625); /* (1 - 3 x 0.380859375) / 1.38 = -0.10332 */
    /* p rounded in the denominator too: -0.10325 -> -0.10302734375; nowhere: -0.10145. */
}

/* covers: core_attn.block.1 core_attn.block.2 core_attn.block.3 core_attn.out.1 */
static void released_blocks(void **state)
{
    small *s = *state;
    static const double slopes[] = {0, 0.05, -0.05, 0.3};
    const double q[2] = {1, 0.25}, sink = 4.3;
    int other_blocks = 0, no_blocks = 0, sink_in_maximum = 0;
    s->c.numerics = DSV4_RELEASED;
    for (int64_t count = 1; count < 200; count += 7)
        for (int i = 0; i < 4; i++) {
            double *e = slope(s, count, slopes[i]), got[2], want[2], other[2];
            attend(s, 2, q, sink, e, count, NULL, got);
            formula(s, 2, q, sink, e, count, NULL, 64, -INFINITY, want);
            small_same(s, got, want, 2);
            /* How often would other rules have given something else? */
            formula(s, 2, q, sink, e, count, NULL, 32, -INFINITY, other);
            other_blocks += got[1] != other[1];
            formula(s, 2, q, sink, e, count, NULL, 1000, -INFINITY, other);
            no_blocks += got[1] != other[1];
            formula(s, 2, q, sink, e, count, NULL, 64, sink, other);
            sink_in_maximum += got[1] != other[1];
        }
    assert_true(other_blocks > 5 && no_blocks > 5 && sink_in_maximum > 5);
}

/* Slots, not places in the list, are what blocks of 64 are counted in.
 * covers: core_attn.list.2 core_attn.block.2 */
static void empty_slots(void **state)
{
    small *s = *state;
    const double q[2] = {1, 0.25};
    int by_place = 0;
    s->c.numerics = DSV4_RELEASED;
    for (int64_t t = 0; t < 100; t += 3) { /* a window of 100, and 40 entries behind it */
        int64_t slot[140], in_window = t + 1;
        for (int64_t i = 0; i < in_window + 40; i++)
            slot[i] = i < in_window ? i : 100 + i - in_window;
        double *e = slope(s, in_window + 40, 0.05), got[2], want[2], other[2];
        attend(s, 2, q, 0, e, in_window + 40, slot, got);
        formula(s, 2, q, 0, e, in_window + 40, slot, 64, -INFINITY, want);
        small_same(s, got, want, 2);
        formula(s, 2, q, 0, e, in_window + 40, NULL, 64, -INFINITY, other);
        by_place += got[1] != other[1];
    }
    assert_true(by_place > 5);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        small_test(list), small_test(exact_is_softmax), small_test(sinks),
        small_test(each_head_has_its_sink), small_test(released_by_hand),
        small_test(released_blocks), small_test(empty_slots),
    };
    return cmocka_run_group_tests_name("core_attn", tests, NULL, NULL) != 0;
}
