/* The whole pass, MTP included, against direct.c: every tensor on the way, over geometries of all
 * kinds. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <math.h>
#include <stdlib.h>

#include "direct.h"
#include "trace.h"
#include "whole.h"

/* Logits of both heads [2, n, V], to be freed. */
typedef struct { double *ref, *direct; } both;

/* direct.c over n tokens, then ref, whose tensors are compared with (`feed`: and replaced by) those
 * of direct.c. */
static both run(const whole *w, int64_t n, trace *t, bool feed)
{
    int64_t V = w->model.config.vocab_size, *ids = whole_ids(w, n, 1);
    both logits = {dsv4_alloc((size_t)(2 * n * V), sizeof(double)),
                   dsv4_alloc((size_t)(2 * n * V), sizeof(double))};
    bool mtp = w->model.mtp != NULL;
    dsv4_tap tap = trace_keeper(t);
    assert_int_equal(direct_forward(&w->model, w->numerics, ids, n, logits.direct,
                                    mtp ? logits.direct + n * V : NULL, &tap), 0);
    tap = feed ? trace_feeder(t) : trace_comparer(t);
    whole_pass(w, ids, n, n, &tap, logits.ref, mtp ? logits.ref + n * V : NULL);
    free(ids);
    return logits;
}

static void compare_logits(const char *what, const both *logits, int64_t count, double bound)
{
    double scale = 0, worst = 0;
    for (int64_t i = 0; i < count; i++) {
        double error = fabs(logits->ref[i] - logits->direct[i]);
        scale = fmax(scale, fabs(logits->direct[i]));
        worst = error <= worst ? worst : error; /* a NaN stays */
    }
    if (!(worst <= bound * scale))
        fail_msg("%s: logits differ by %g of %g", what, worst, scale);
}

static void exact(const char *what, int64_t n, make_style style, const char *const changes[])
{
    whole w;
    trace t = {0};
    whole_open(&w, DSV4_EXACT, style, changes);
    both logits = run(&w, n, &t, false);
    trace_within(&t, what, 1e-11);
    compare_logits(what, &logits, 2 * n * w.model.config.vocab_size, 1e-11);
    free(logits.ref);
    free(logits.direct);
    trace_free(&t);
    whole_close(&w);
}

/* covers: forward.embed.1 forward.layers.1 forward.head.1 */
static void exact_geometries(void **state)
{
    (void)state;
    exact("base", 40, MAKE_EXACT, NULL);
    exact("mixed dtypes", 40, MAKE_MIXED,
          CHANGES("hidden_size", "32", "moe_intermediate_size", "32"));
    exact("released layout", 40, MAKE_RELEASED,
          CHANGES("hidden_size", "64", "moe_intermediate_size", "32"));
    exact("one stream", 20, MAKE_EXACT, CHANGES("hc_mult", "1"));
    exact("three streams", 20, MAKE_EXACT, CHANGES("hc_mult", "3"));
    exact("one Sinkhorn step", 20, MAKE_EXACT, CHANGES("hc_sinkhorn_iters", "1"));
    exact("three groups", 20, MAKE_EXACT, CHANGES("o_groups", "3", "num_attention_heads", "6"));
    exact("all rotary", 20, MAKE_EXACT,
          CHANGES("qk_rope_head_dim", "8", "head_dim", "8", "index_head_dim", "8"));
    exact("no limit", 20, MAKE_EXACT, CHANGES("swiglu_limit", "0"));
    exact("all selected", 40, MAKE_EXACT, CHANGES("index_topk", "100"));
    exact("one selected", 40, MAKE_EXACT, CHANGES("index_topk", "1"));
    exact("no YaRN", 20, MAKE_EXACT, CHANGES("rope_scaling", "null"));
    exact("all hash", 20, MAKE_EXACT, CHANGES("num_hash_layers", "4"));
    exact("no hash", 20, MAKE_EXACT, CHANGES("num_hash_layers", "0"));
    exact("all experts", 20, MAKE_EXACT, CHANGES("num_experts_per_tok", "9"));
    exact("unnormed weights", 20, MAKE_EXACT, CHANGES("norm_topk_prob", "false"));
    exact("window of 1", 20, MAKE_EXACT, CHANGES("sliding_window", "1"));
    exact("window beyond all", 20, MAKE_EXACT, CHANGES("sliding_window", "128"));
    exact("one token", 1, MAKE_EXACT, NULL);
    exact("shorter than any ratio", 3, MAKE_EXACT, NULL);
    exact("MTP of CSA", 40, MAKE_EXACT, CHANGES("compress_ratios", "[0, 4, 8, 4, 4]"));
    exact("MTP of HCA", 40, MAKE_EXACT, CHANGES("compress_ratios", "[0, 4, 8, 4, 6]"));
    exact("MTP not listed", 20, MAKE_EXACT, CHANGES("compress_ratios", "[0, 4, 8, 4]"));
    exact("no MTP", 20, MAKE_EXACT, CHANGES("num_nextn_predict_layers", "0"));
    exact("[5]", 23, MAKE_EXACT, CHANGES("compress_ratios", "[5]", "num_hidden_layers", "1"));
    exact("[4, 4]", 23, MAKE_EXACT, CHANGES("compress_ratios", "[4, 4]", "num_hidden_layers", "2"));
    exact("[128, 0, 4, 7]", 140, MAKE_EXACT, CHANGES("compress_ratios", "[128, 0, 4, 7]"));
}

/* Every step is fed with direct.c's tensor before it. The two add in another order and precision: a
 * rounding flips here and there, to the neighbouring bf16 value or, ahead of a quantised product,
 * to another code, which moves a row by less than an E4M3 step, 1/8. A rule that is broken changes
 * most values of some tensor. */
static void released(const char *what, const char *const changes[])
{
    whole w;
    trace t = {0};
    whole_open(&w, DSV4_RELEASED, MAKE_RELEASED, changes);
    both logits = run(&w, 20, &t, true);
    trace_mostly(&t, what, 0.99, 0.125);
    compare_logits(what, &logits, 2 * 20 * w.model.config.vocab_size, 0x1p-8);
    free(logits.ref);
    free(logits.direct);
    trace_free(&t);
    whole_close(&w);
}

/* covers: forward.embed.1 forward.layers.1 forward.head.1 */
static void released_geometries(void **state)
{
    (void)state;
    released("base", NULL);
    released("one stream, no hash", CHANGES("hc_mult", "1", "num_hash_layers", "0",
                                            "compress_ratios", "[4, 8, 4, 0, 4]"));
    released("blocks of 64", CHANGES("sliding_window", "70", "o_groups", "1", "o_lora_rank", "128",
                                     "num_hidden_layers", "2", "compress_ratios", "[4, 8, 0]"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(exact_geometries),
        cmocka_unit_test(released_geometries),
    };
    return cmocka_run_group_tests_name("forward", tests, NULL, NULL) != 0;
}
