/* spec/gate.md */
#include <math.h>
#include <string.h>

#include "small.h"

static dsv4_matrix table(small *s, dsv4_dtype dtype, const int64_t *ids, int64_t rows, int64_t cols)
{
    int64_t size = dtype == DSV4_I64 ? 8 : 4;
    char *data = (char *)small_alloc(s, rows * cols * size + 1, 1) + 1;
    for (int64_t i = 0; i < rows * cols; i++) {
        int32_t narrow = (int32_t)ids[i];
        memcpy(data + i * size, size == 8 ? (const void *)&ids[i] : &narrow, (size_t)size);
    }
    return (dsv4_matrix){.name = "layers.0.ffn.gate.tid2eid", .file = "some.safetensors",
                         .dtype = dtype, .rows = rows, .cols = cols, .data = data};
}

/* A gate of D = 1 whose experts' logits, for the input 1, are `logits`. */
static dsv4_layer gate(small *s, const double *logits, const double *bias, int64_t E, int64_t k)
{
    s->config.hidden_size = 1;
    s->config.n_routed_experts = E;
    s->config.num_experts_per_tok = k;
    return (dsv4_layer){.ffn.gate.weight = small_f32(s, logits, E, 1),
                        .ffn.gate.bias = small_f32(s, bias, 1, E)};
}

static void route(small *s, const dsv4_layer *layer, const int64_t *want)
{
    int64_t chosen[8];
    double weight[8];
    ref_gate(&s->c, layer, (double[]){1}, 0, chosen, weight);
    for (int64_t i = 0; i < s->config.num_experts_per_tok; i++)
        assert_int_equal(chosen[i], want[i]);
    assert_string_equal(s->error.text, "");
}

static const double zeros[16] = {0};

/* covers: gate.score.1 gate.weight.2 */
static void score(void **state)
{
    small *s = *state;
    enum { E = 9 };
    const double logits[E] = {0, 1, -1, 20, -20, 40, -40, 3000, -600};
    /* softplus(x) = log(1 + e^x), x itself or e^x where the other term is below rounding. */
    const double softplus[E] = {log(2), log(1 + exp(1)), log(1 + exp(-1)), 20 + exp(-20), exp(-20),
                                40, exp(-40), 3000, exp(-600)};
    dsv4_layer layer = gate(s, logits, zeros, E, E);
    layer.hash = true;
    layer.ffn.gate.tid2eid = table(s, DSV4_I64, (int64_t[]){0, 1, 2, 3, 4, 5, 6, 7, 8}, 1, E);
    s->config.norm_topk_prob = false;
    s->config.routed_scaling_factor = 1;
    int64_t chosen[E];
    double weight[E];
    ref_gate(&s->c, &layer, (double[]){1}, 0, chosen, weight);
    for (int e = 0; e < E; e++)
        small_about(s, weight[e], sqrt(softplus[e]), 2e-9 * sqrt(softplus[e]));
    small_about(s, weight[2], 0.5596978537731, 1e-13); /* s of -1 */
    small_about(s, weight[4], exp(-10), 1e-13);
    small_about(s, weight[8], exp(-300), 1e-143);

    s->c.numerics = DSV4_RELEASED;
    ref_gate(&s->c, &layer, (double[]){1}, 0, chosen, weight);
    small_is(s, weight[1], small_to_f32(sqrt(log(1 + exp(1)))));
    small_is(s, weight[7], small_to_f32(sqrt(3000))); /* 3000 is no bf16 number */
}

/* Two logits that are neighbours in binary32 have the same s there. */
static void released_scores_are_binary32(void **state)
{
    small *s = *state;
    dsv4_layer layer = gate(s, (double[]){100, nextafterf(100, 101)}, zeros, 2, 1);
    route(s, &layer, (int64_t[]){1});
    s->c.numerics = DSV4_RELEASED;
    route(s, &layer, (int64_t[]){0});

    double x[3] = {1, 1, 1}, weight[2]; /* the sum of products, too: 2^25 + 1 = 2^25 */
    int64_t chosen[2];
    layer = gate(s, zeros, zeros, 2, 1);
    layer.ffn.gate.weight = small_f32(s, (double[]){0x1p25, 0, 0, 0x1p25, 1, 0}, 2, 3);
    ref_gate(&s->c, &layer, x, 0, chosen, weight);
    assert_int_equal(chosen[0], 0);
}

/* covers: gate.topk.1 */
static void topk(void **state)
{
    small *s = *state;
    dsv4_layer layer = gate(s, (double[]){1, 3, 2, 0}, zeros, 4, 2);
    route(s, &layer, (int64_t[]){1, 2});
    layer = gate(s, (double[]){1, 3, 2, 0}, zeros, 4, 4);
    route(s, &layer, (int64_t[]){1, 2, 0, 3});
    layer = gate(s, (double[]){1, 3, 2, 0}, zeros, 4, 1);
    route(s, &layer, (int64_t[]){1});
    layer = gate(s, (double[]){1, 3, 2, 0}, (double[]){0, 0, 0, 5}, 4, 2);
    route(s, &layer, (int64_t[]){3, 1});
    layer = gate(s, (double[]){1, 3, 2, 0}, (double[]){-1, -9, -9, -1}, 4, 2);
    route(s, &layer, (int64_t[]){0, 3});
    /* The bias joins s, not the logit: s(3) = 1.746, s(1) + 0.5 = 1.646. */
    layer = gate(s, (double[]){1, 3}, (double[]){0.5, 0}, 2, 1);
    route(s, &layer, (int64_t[]){1});
    /* Of equals the lower index. */
    layer = gate(s, (double[]){1, 2, 1, 2, 1, 2}, zeros, 6, 4);
    route(s, &layer, (int64_t[]){1, 3, 5, 0});
}

/* covers: gate.weight.1 gate.weight.2 gate.topk.1 gate.hash.1 */
static void weights(void **state)
{
    small *s = *state;
    const double logits[4] = {1, 3, 2, 0}, bias[4] = {-5, 0, 0, 7};
    const double of[4] = {sqrt(log(1 + exp(1))), sqrt(log(1 + exp(3))), sqrt(log(1 + exp(2))),
                          sqrt(log(2))};
    const double sum = of[3] + of[1], hash_sum = of[2] + of[0];
    dsv4_layer layer = gate(s, logits, bias, 4, 2);
    dsv4_layer hash = layer;
    int64_t chosen[2];
    double weight[2];
    hash.hash = true;
    hash.ffn.gate.bias = (dsv4_matrix){0}; /* hash layers have none */
    hash.ffn.gate.tid2eid = table(s, DSV4_I64, (int64_t[]){3, 3, 2, 0}, 2, 2);
    for (int released = 0; released < 2; released++) {
        s->c.numerics = released ? DSV4_RELEASED : DSV4_EXACT;
        double bound = released ? 1e-7 : 1e-14;
        s->config.norm_topk_prob = true;
        s->config.routed_scaling_factor = 2.5;
        ref_gate(&s->c, &layer, (double[]){1}, 1, chosen, weight);
        small_near(s, weight, ((double[]){2.5 * of[3] / sum, 2.5 * of[1] / sum}), 2, bound);
        assert_true(!released || weight[0] == small_to_f32(weight[0]));
        ref_gate(&s->c, &hash, (double[]){1}, 1, chosen, weight);
        small_near(s, weight, ((double[]){2.5 * of[2] / hash_sum, 2.5 * of[0] / hash_sum}), 2,
                   bound);
        s->config.norm_topk_prob = false;
        ref_gate(&s->c, &layer, (double[]){1}, 1, chosen, weight);
        small_near(s, weight, ((double[]){2.5 * of[3], 2.5 * of[1]}), 2, 2 * bound);
    }
}

/* Experts that somebody else chose are weighed by this gate's scores.
 * covers: gate.weight.1 */
static void choices_of_others(void **state)
{
    small *s = *state;
    const double x = 1;
    double scores[4], weight[2], both[2];
    int64_t chosen[2];
    dsv4_layer layer = gate(s, (double[]){1, 3, 2, 0}, (double[]){-5, 0, 0, 7}, 4, 2);
    s->config.norm_topk_prob = true;
    s->config.routed_scaling_factor = 2;
    ref_gate_scores(&s->c, &layer, &x, scores);
    small_near(s, scores, ((double[]){sqrt(log(1 + exp(1))), sqrt(log(1 + exp(3))),
                                      sqrt(log(1 + exp(2))), sqrt(log(2))}), 4, 1e-15);
    ref_gate_choose(&s->c, &layer, scores, 0, chosen);
    assert_int_equal(chosen[0], 3);
    assert_int_equal(chosen[1], 1);
    ref_gate_weigh(&s->c, scores, chosen, weight);
    ref_gate(&s->c, &layer, &x, 0, chosen, both);
    small_same(s, weight, both, 2);
    ref_gate_weigh(&s->c, scores, (int64_t[]){0, 2}, weight);
    const double sum = scores[0] + scores[2];
    small_near(s, weight, ((double[]){2 * scores[0] / sum, 2 * scores[2] / sum}), 2, 1e-15);
}

/* covers: gate.hash.1 */
static void hash(void **state)
{
    small *s = *state;
    const int64_t rows[6] = {2, 0, 1, 2, 0, 0}; /* tokens 0, 1, 2; the last: one twice */
    dsv4_layer layer = gate(s, (double[]){9, 1, 0}, zeros, 3, 2);
    layer.hash = true;
    for (int wide = 0; wide < 2; wide++) {
        layer.ffn.gate.tid2eid = table(s, wide ? DSV4_I64 : DSV4_I32, rows, 3, 2);
        for (int64_t token = 0; token < 3; token++) {
            int64_t chosen[2];
            double weight[2];
            ref_gate(&s->c, &layer, (double[]){1}, token, chosen, weight);
            assert_int_equal(chosen[0], rows[2 * token]);
            assert_int_equal(chosen[1], rows[2 * token + 1]);
            if (token == 2)
                small_near(s, weight, ((double[]){0.75, 0.75}), 2, 1e-15);
        }
    }
    assert_string_equal(s->error.text, "");
}

static void refuse(small *s, dsv4_dtype dtype, int64_t entry, const char *message)
{
    int64_t chosen[2];
    double weight[2];
    dsv4_layer layer = gate(s, (double[]){9, 1, 0}, zeros, 3, 2);
    layer.hash = true;
    layer.ffn.gate.tid2eid = table(s, dtype, (int64_t[]){7, 0, 1, entry}, 2, 2);
    s->error.text[0] = '\0';
    ref_gate(&s->c, &layer, (double[]){1}, 1, chosen, weight);
    assert_string_equal(s->error.text, message);
}

/* covers: gate.hash.1 */
static void hash_entry_that_is_no_expert(void **state)
{
    small *s = *state;
    refuse(s, DSV4_I64, 3, "some.safetensors: layers.0.ffn.gate.tid2eid: value [1, 1] is 3, "
                           "expected an expert 0..2");
    refuse(s, DSV4_I32, -1, "some.safetensors: layers.0.ffn.gate.tid2eid: value [1, 1] is -1, "
                            "expected an expert 0..2");
    refuse(s, DSV4_I64, (int64_t)1 << 32, "some.safetensors: layers.0.ffn.gate.tid2eid: value "
                                          "[1, 1] is 4294967296, expected an expert 0..2");
    refuse(s, DSV4_I64, 2, ""); /* the 7 is in the row of another token */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        small_test(score), small_test(released_scores_are_binary32), small_test(topk),
        small_test(weights), small_test(choices_of_others), small_test(hash),
        small_test(hash_entry_that_is_no_expert),
    };
    return cmocka_run_group_tests_name("gate", tests, NULL, NULL) != 0;
}
