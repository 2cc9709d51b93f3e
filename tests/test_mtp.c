/* spec/mtp.md */
#include <math.h>
#include <stdlib.h>

#include "direct.h"
#include "small.h"
#include "spy.h"
#include "trace.h"
#include "whole.h"

static const double eps = 0.001; /* rms_norm_eps of whole.c */

static void norm(small *s, const dsv4_matrix *weight, const double *x, double *y)
{
    const double *w = small_values(s, weight);
    double squares = 0;
    for (int64_t i = 0; i < weight->cols; i++)
        squares += x[i] * x[i];
    double r = small_f32_point(s, 1 / sqrt(squares / (double)weight->cols + eps));
    for (int64_t i = 0; i < weight->cols; i++)
        y[i] = small_bf16_point(s, small_f32_point(s, small_f32_point(s, x[i] * r) * w[i]));
}

/* A plain matrix: a BF16 linear in RELEASED. */
static void linear(small *s, const dsv4_matrix *m, const double *x, double *y)
{
    const double *w = small_values(s, m);
    for (int64_t o = 0; o < m->rows; o++) {
        double sum = 0;
        for (int64_t i = 0; i < m->cols; i++)
            sum += small_bf16_point(s, w[o * m->cols + i]) * x[i];
        y[o] = small_bf16_point(s, sum);
    }
}

/* The layer's input from given streams and next tokens, over two calls.
 * covers: mtp.embed.1 mtp.stream.1 mtp.stream.2 */
static void input(void **state)
{
    small *s = *state;
    enum { n = 3, T = 5, D = 20 };
    whole w; /* head_dim: RELEASED quantises 64 values of kv */
    whole_open(&w, DSV4_EXACT, MAKE_EXACT, CHANGES("hc_mult", "3", "head_dim", "70"));
    const dsv4_layer *layer = &w.model.mtp[0];
    const double *embed = small_values(s, &w.model.embed);
    const int64_t next[T] = {7, 30, 7, 0, 12};
    double *logits = small_array(s, T * w.model.config.vocab_size);
    s->c.config = &w.model.config;
    for (int released = 0; released < 2; released++) {
        s->c.numerics = released ? DSV4_RELEASED : DSV4_EXACT;
        const double *h = small_randoms(s, T * n * D, 2);
        double in[T * n * D];
        spy watch;
        spy_start(s, &watch);
        spy_see(&watch, "in", in, 0);
        ref_state *sequence = ref_state_new(&w.model.config, 1, T);
        ref_mtp(&s->c, &w.model, sequence, next, h, 2, logits);
        ref_mtp(&s->c, &w.model, sequence, next + 2, h + 2 * n * D, T - 2, logits);
        assert_int_equal(sequence->mtp_position, T);
        assert_int_equal(s->c.layer, 4); /* for the tap: after the model's layers */
        ref_state_free(sequence);
        for (int i = 0; i < T * n; i++) {
            double e[D], from_e[D], x[D], want[D];
            for (int j = 0; j < D; j++)
                e[j] = small_bf16_point(s, embed[next[i / n] * D + j]);
            norm(s, &layer->enorm, e, e);
            linear(s, &layer->e_proj, e, from_e);
            norm(s, &layer->hnorm, h + i * D, x);
            linear(s, &layer->h_proj, x, want);
            for (int j = 0; j < D; j++)
                want[j] = small_bf16_point(s, from_e[j] + want[j]);
            small_near(s, in + i * D, want, D, released ? 0 : 1e-13);
        }
    }
    whole_close(&w);
}

/* Block and head against direct.c, whose tensors of the layer show position, window and norms; in
 * pieces of 3, each MTP call one token behind.
 * covers: mtp.block.1 mtp.head.1 */
static void block_and_head(void **state)
{
    (void)state;
    static const char *const ratios[] = {"[0, 4, 0]", "[0, 4, 4]", "[0, 4, 6]"};
    enum { n = 26 };
    for (int i = 0; i < 3; i++) {
        whole w;
        trace t = {0};
        whole_open(&w, DSV4_EXACT, MAKE_EXACT, CHANGES("num_hidden_layers", "2", "num_hash_layers",
                                                       "2", "compress_ratios", ratios[i]));
        int64_t count = n * w.model.config.vocab_size, *ids = whole_ids(&w, n, 6);
        double *all = dsv4_alloc((size_t)(4 * count), sizeof *all);
        assert_false(w.model.mtp[0].hash); /* though all other layers are */
        dsv4_tap tap = trace_keeper(&t);
        direct_forward(&w.model, DSV4_EXACT, ids, n, all, all + count, &tap);
        tap = trace_comparer(&t);
        whole_pass(&w, ids, n, 3, &tap, all + 2 * count, all + 3 * count);
        trace_within(&t, ratios[i], 1e-11);
        for (int64_t j = 0; j < 2 * count; j++)
            if (!(fabs(all[j] - all[2 * count + j]) <= 1e-11))
                fail_msg("%s: logit %d differs", ratios[i], (int)j);
        trace_free(&t);
        free(all);
        free(ids);
        whole_close(&w);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {small_test(input), cmocka_unit_test(block_and_head)};
    return cmocka_run_group_tests_name("mtp", tests, NULL, NULL) != 0;
}
