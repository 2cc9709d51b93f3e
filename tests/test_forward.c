/* The whole pass, MTP included, against direct.c over geometries of all kinds. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "direct.h"
#include "whole.h"

static void compare(const char *what, const double *got, const double *want, int64_t count)
{
    double scale = 0, worst = 0;
    for (int64_t i = 0; i < count; i++) {
        double error = fabs(got[i] - want[i]);
        scale = fmax(scale, fabs(want[i]));
        worst = error <= worst ? worst : error; /* NaN stays */
    }
    if (getenv("SHOW")) print_message("%s %g / %g\n", what, worst, scale);
    if (!(worst <= 1e-11 * scale))
        fail_msg("%s: differs by %g of %g", what, worst, scale);
}

static void exact(const char *what, int64_t n, make_style style, const char *const changes[])
{
    whole w;
    whole_open(&w, DSV4_EXACT, style, changes);
    int64_t V = w.model.config.vocab_size, *ids = whole_ids(&w, n, 1);
    double *got = calloc((size_t)(4 * n * V), sizeof *got), *want = got + 2 * n * V;
    bool mtp = w.model.mtp != NULL;
    whole_pass(&w, ids, n, n, NULL, got, mtp ? got + n * V : NULL);
    assert_int_equal(direct_forward(&w.model, DSV4_EXACT, ids, n, want, mtp ? want + n * V : NULL,
                                    NULL), 0);
    compare(what, got, want, n * V);
    if (mtp)
        compare(what, got + n * V, want + n * V, n * V);
    free(got);
    free(ids);
    whole_close(&w);
}

/* covers: forward.embed.1 forward.layers.1 forward.head.1 block.attention.1 block.moe.1 */
static void geometries(void **state)
{
    (void)state;
    exact("base", 40, MAKE_EXACT, CHANGES("vocab_size", "31"));
    exact("mixed dtypes", 40, MAKE_MIXED, CHANGES("hidden_size", "32", "moe_intermediate_size", "32"));
    exact("released layout", 40, MAKE_RELEASED, CHANGES("hidden_size", "64", "moe_intermediate_size", "32"));
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
    exact("unnormed weights", 20, MAKE_EXACT, CHANGES("norm_topk_prob", "false"));
    exact("window of 1", 20, MAKE_EXACT, CHANGES("sliding_window", "1"));
    exact("window beyond all", 20, MAKE_EXACT, CHANGES("sliding_window", "128"));
    exact("one token", 1, MAKE_EXACT, CHANGES("vocab_size", "31"));
    exact("shorter than any ratio", 3, MAKE_EXACT, CHANGES("vocab_size", "31"));
    exact("MTP of CSA", 40, MAKE_EXACT, CHANGES("compress_ratios", "[0, 4, 8, 4, 4]"));
    exact("MTP not listed", 20, MAKE_EXACT, CHANGES("compress_ratios", "[0, 4, 8, 4]"));
    exact("no MTP", 20, MAKE_EXACT, CHANGES("num_nextn_predict_layers", "0"));
    exact("[5]", 23, MAKE_EXACT, CHANGES("compress_ratios", "[5]", "num_hidden_layers", "1"));
    exact("[4, 4]", 23, MAKE_EXACT, CHANGES("compress_ratios", "[4, 4]", "num_hidden_layers", "2"));
    exact("[128, 0, 4, 7]", 140, MAKE_EXACT, CHANGES("compress_ratios", "[128, 0, 4, 7]"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(geometries),
    };
    return cmocka_run_group_tests_name("forward", tests, NULL, NULL) != 0;
}
