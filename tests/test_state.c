/* spec/state.md: a sequence in pieces, and sequences beside each other. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "direct.h"
#include "small.h"
#include "trace.h"
#include "whole.h"

/* covers: state.window.1 */
static void window(void **state)
{
    small *s = *state;
    enum { d = 3, W = 4 };
    s->config.head_dim = d;
    s->config.sliding_window = W;
    ref_layer_state layer = {.window = small_array(s, W * d)};
    double want[W * d] = {0};
    for (int64_t t = 0; t < 3 * W + 1; t++) {
        double *kv = small_randoms(s, d, 1);
        ref_window_push(&s->c, &layer, t, kv);
        memcpy(want + t % W * d, kv, sizeof(double[d]));
        small_same(s, layer.window, want, W * d);
    }
}

/* CSA keeps two groups, HCA one. covers: state.compressor.1 */
static void items(void **state)
{
    small *s = *state;
    for (int64_t halves = 1; halves <= 2; halves++) {
        int64_t r = halves == 2 ? 4 : 6, width = 5 * halves, slots = halves * r;
        ref_compressor_state c = {.ratio = r, .head = 5, .halves = halves};
        c.a = small_array(s, slots * width);
        c.z = small_array(s, slots * width);
        double *a = small_randoms(s, 30 * width, 1), *z = small_randoms(s, 30 * width, 1);
        for (int64_t t = 0; t < 30; t++) {
            ref_compressor_push(&c, t, a + t * width, z + t * width);
            for (int64_t u = t / r * r - (halves - 1) * r; u <= t; u++)
                if (u >= 0) { /* of the unfinished group and, in CSA, the one before */
                    small_same(s, c.a + u % slots * width, a + u * width, width);
                    small_same(s, c.z + u % slots * width, z + u * width, width);
                }
        }
    }
}

static void same_bits(const char *what, int64_t chunk, const double *got, const double *want,
                      int64_t count)
{
    if (memcmp(got, want, (size_t)count * sizeof *got) != 0)
        fail_msg("%s in pieces of %d: other logits", what, (int)chunk);
}

/* All tensors and logits of one pass, and of passes in pieces of every size, are the same bits. */
static void in_pieces(const char *what, dsv4_numerics numerics, int64_t n,
                      const char *const changes[])
{
    whole w;
    trace t = {0};
    whole_open(&w, numerics, MAKE_EXACT, changes);
    int64_t count = n * w.model.config.vocab_size, *ids = whole_ids(&w, n, 2);
    double *want = dsv4_alloc((size_t)(4 * count), sizeof *want), *got = want + 2 * count;
    dsv4_tap tap = trace_keeper(&t);
    whole_pass(&w, ids, n, n, &tap, want, want + count);
    static const int64_t sizes[] = {1, 2, 3, 5, 7, 8, 11};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        tap = trace_comparer(&t);
        whole_pass(&w, ids, n, sizes[i], &tap, got, got + count);
        trace_within(&t, what, 0);
        same_bits(what, sizes[i], got, want, 2 * count);
    }
    trace_free(&t);
    free(want);
    free(ids);
    whole_close(&w);
}

/* covers: state.window.1 state.compressor.1 state.compressor.2 state.mtp.1 forward.position.1 */
static void pieces(void **state)
{
    (void)state;
    in_pieces("exact", DSV4_EXACT, 31, NULL);
    in_pieces("exact, MTP of CSA", DSV4_EXACT, 22, CHANGES("compress_ratios", "[5, 0, 4, 6, 4]"));
    in_pieces("exact, window of 1", DSV4_EXACT, 22, CHANGES("sliding_window", "1"));
    in_pieces("released", DSV4_RELEASED, 18, CHANGES("num_hidden_layers", "3", "compress_ratios",
                                                     "[4, 0, 5, 0]"));
}

/* Windows of 127, 128 and 129 tokens, groups of 128 and 129: token by token, and in pieces around
 * the border, against direct.c, which has no ring and no groups to continue.
 * covers: state.window.1 state.compressor.1 state.compressor.2 forward.position.1 */
static void borders(void **state)
{
    (void)state;
    static const int64_t sizes[] = {1, 127, 128, 129};
    static const char *const windows[] = {"127", "128", "129"};
    const int64_t n = 262;
    for (int i = 0; i < 3; i++) {
        whole w;
        whole_open(&w, DSV4_EXACT, MAKE_EXACT,
                   CHANGES("sliding_window", windows[i], "num_hidden_layers", "3",
                           "compress_ratios", i == 1 ? "[0, 4, 129]" : "[0, 4, 128]",
                           "hidden_size", "8", "num_attention_heads", "2", "hc_mult", "1",
                           "n_routed_experts", "3", "num_nextn_predict_layers", "0"));
        int64_t count = n * w.model.config.vocab_size, *ids = whole_ids(&w, n, 3);
        double *want = dsv4_alloc((size_t)(2 * count), sizeof *want), *got = want + count;
        assert_int_equal(direct_forward(&w.model, DSV4_EXACT, ids, n, want, NULL, NULL), 0);
        for (int j = 0; j < 4; j++) {
            whole_pass(&w, ids, n, sizes[j], NULL, got, NULL);
            for (int64_t k = 0; k < count; k++)
                if (!(fabs(got[k] - want[k]) <= 1e-11))
                    fail_msg("window %s, pieces of %d: token %d differs", windows[i], (int)sizes[j],
                             (int)(k / w.model.config.vocab_size));
        }
        free(want);
        free(ids);
        whole_close(&w);
    }
}

/* Two sequences in turn, MTP of one of them, and a third where one has ended: each as if alone.
 * covers: state.sequence.1 state.mtp.1 */
static void sequences(void **state)
{
    (void)state;
    enum { n = 18 };
    whole w;
    whole_open(&w, DSV4_EXACT, MAKE_EXACT, NULL);
    int64_t V = w.model.config.vocab_size, count = n * V;
    double *alone = dsv4_alloc((size_t)(4 * count), sizeof *alone), *mtp = alone + 2 * count;
    double *got = alone + 3 * count, *got_mtp = dsv4_alloc((size_t)count, sizeof *got_mtp);
    int64_t *ids[2] = {whole_ids(&w, n, 4), whole_ids(&w, n, 5)};
    whole_pass(&w, ids[0], n, n, NULL, alone, mtp);
    whole_pass(&w, ids[1], n, n, NULL, alone + count, NULL);

    dsv4_error err = {{0}};
    dsv4_run *run[2];
    for (int i = 0; i < 2; i++)
        run[i] = dsv4_path_ref.open(&w.model, DSV4_EXACT, n, NULL, &err);
    for (int64_t t = 0; t < n; t += 3)
        for (int i = 0; i < 2; i++) {
            assert_int_equal(dsv4_path_ref.forward(run[i], ids[i] + t, 3, got, &err), 0);
            same_bits("two sequences", 3, got, alone + i * count + t * V, 3 * V);
            const int64_t next[3] = {ids[0][t + 1], ids[0][t + 2], ids[0][(t + 3) % n]};
            if (i == 0)
                assert_int_equal(dsv4_path_ref.mtp(run[0], next, 3, got_mtp + t * V, &err), 0);
        }
    same_bits("MTP", 3, got_mtp, mtp, count);
    dsv4_path_ref.close(run[0]);
    dsv4_path_ref.close(run[1]);
    whole_pass(&w, ids[1], n, n, NULL, got, NULL);
    same_bits("a third sequence", n, got, alone + count, count);
    for (int i = 0; i < 2; i++)
        free(ids[i]);
    free(alone);
    free(got_mtp);
    whole_close(&w);
}

/* covers: state.sequence.1 state.mtp.1 */
static void starts_empty(void **state)
{
    small *s = *state;
    int64_t ratios[4] = {0, 4, 7, 4};
    s->config.num_hidden_layers = 3;
    s->config.compress_ratios = ratios;
    ref_state *r = ref_state_new(&s->config, 1, 20);
    assert_true(r->position == 0 && r->mtp_position == 0);
    assert_true(r->layers == 3 && r->mtp_layers == 1);
    const ref_layer_state *all[4] = {&r->layer[0], &r->layer[1], &r->layer[2], &r->mtp[0]};
    for (int i = 0; i < 4; i++) {
        assert_int_equal(all[i]->compressor.ratio, ratios[i]);
        assert_int_equal(all[i]->compressor.halves, ratios[i] == 0 ? 0 : ratios[i] == 4 ? 2 : 1);
        assert_int_equal(all[i]->index.ratio, ratios[i] == 4 ? 4 : 0);
        assert_true(all[i]->compressor.count == 0 && all[i]->index.count == 0);
    }
    ref_state_free(r);
    ref_state_free(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        small_test(window), small_test(items), cmocka_unit_test(pieces),
        cmocka_unit_test(borders), cmocka_unit_test(sequences), small_test(starts_empty),
    };
    return cmocka_run_group_tests_name("state", tests, NULL, NULL) != 0;
}
