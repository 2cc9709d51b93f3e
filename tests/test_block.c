/* spec/block.md, with one stream: then pre, post and C are one number each. */
#include <math.h>

#include "small.h"
#include "spy.h"

enum { D = 4, T = 3 };

static const double hc_eps = 0.25, rms_eps = 0.5;

static dsv4_hc hc(small *s)
{
    return (dsv4_hc){.fn = small_random_matrix(s, DSV4_F32, 3, D, 1),
                     .base = small_random_matrix(s, DSV4_F32, 1, 3, 1),
                     .scale = small_random_matrix(s, DSV4_F32, 1, 3, 2)};
}

static dsv4_layer make_layer(small *s)
{
    dsv4_config *c = &s->config;
    c->hidden_size = D, c->hc_mult = 1, c->hc_sinkhorn_iters = 1;
    c->num_attention_heads = 1, c->head_dim = D, c->q_lora_rank = D, c->qk_rope_head_dim = 2;
    c->o_groups = 1, c->o_lora_rank = 1, c->moe_intermediate_size = 1;
    c->n_routed_experts = 2, c->num_experts_per_tok = 2;
    c->norm_topk_prob = false, c->routed_scaling_factor = 1;
    c->hc_eps = hc_eps, c->rms_norm_eps = rms_eps;
    dsv4_expert expert = {.w1 = small_random_matrix(s, DSV4_F32, 1, D, 1),
                          .w3 = small_random_matrix(s, DSV4_F32, 1, D, 1),
                          .w2 = small_random_matrix(s, DSV4_F32, D, 1, 1)};
    dsv4_layer layer = {
        .index = 5,
        .attn = {.attn_sink = small_random_matrix(s, DSV4_F32, 1, 1, 1),
                 .wq_a = small_random_matrix(s, DSV4_F32, D, D, 1),
                 .q_norm = small_random_matrix(s, DSV4_F32, 1, D, 1),
                 .wq_b = small_random_matrix(s, DSV4_F32, D, D, 1),
                 .wkv = small_random_matrix(s, DSV4_F32, D, D, 1),
                 .kv_norm = small_random_matrix(s, DSV4_F32, 1, D, 1),
                 .wo_a = small_random_matrix(s, DSV4_F32, 1, D, 1),
                 .wo_b = small_random_matrix(s, DSV4_F32, D, 1, 1)},
        .ffn = {.gate.weight = small_random_matrix(s, DSV4_F32, 2, D, 1),
                .gate.bias = small_f32(s, (double[]){9, 0}, 1, 2), /* expert 0 comes first */
                .experts = small_alloc(s, 2, sizeof expert), .shared_experts = expert},
        .attn_norm = small_random_matrix(s, DSV4_F32, 1, D, 2),
        .ffn_norm = small_random_matrix(s, DSV4_F32, 1, D, 2)};
    layer.ffn.experts[0] = layer.ffn.experts[1] = expert;
    layer.hc_attn = hc(s);
    layer.hc_ffn = hc(s);
    return layer;
}

static double root_mean_square(const double *x)
{
    double squares = 0;
    for (int i = 0; i < D; i++)
        squares += x[i] * x[i];
    return sqrt(squares / D + rms_eps);
}

/* x of one token -> u, the collapsed input, and after, the stream after a sublayer that made y. */
static void mix(small *s, const dsv4_hc *w, const double *x, const double *y, double *u,
                double *after)
{
    const double *fn = small_values(s, &w->fn), *base = small_values(s, &w->base);
    const double *scale = small_values(s, &w->scale);
    double m[2] = {0, 0};
    for (int i = 0; i < 2 * D; i++)
        m[i / D] += fn[i] * x[i % D] / root_mean_square(x);
    double pre = 1 / (1 + exp(-(m[0] * scale[0] + base[0]))) + hc_eps;
    double post = 2 / (1 + exp(-(m[1] * scale[1] + base[1])));
    double C = (1 + hc_eps) / (1 + hc_eps + hc_eps); /* a softmax of one is 1; one column step */
    for (int i = 0; i < D; i++) {
        u[i] = pre * x[i];
        after[i] = post * y[i] + C * x[i];
    }
}

/* u passes RMSNorm with `norm`, then a row of `matrix`. */
static double through(small *s, const dsv4_matrix *norm, const dsv4_matrix *matrix, int row,
                      const double *u)
{
    const double *w = small_values(s, norm), *m = small_values(s, matrix);
    double sum = 0;
    for (int i = 0; i < D; i++)
        sum += m[row * D + i] * u[i] / root_mean_square(u) * w[i];
    return sum;
}

/* What the sublayers make is given here; what they take shows in kv and in the gate's scores.
 * covers: block.attention.1 block.moe.1 */
static void block(void **state)
{
    small *s = *state;
    dsv4_layer layer = make_layer(s);
    double attn_in[T * D], kv[T * D], mid[T * D], ffn_in[T * D], weight[T * 2], out[T * D];
    double h[T * D];
    const double *x = small_randoms(s, T * D, 2), *kv_norm = small_values(s, &layer.attn.kv_norm);
    const double *attn_out = small_randoms(s, T * D, 2), *ffn_out = small_randoms(s, T * D, 2);
    spy watch;
    spy_start(s, &watch);
    spy_see(&watch, "attn_in", attn_in, 0);
    spy_see(&watch, "kv", kv, 0);
    spy_give(&watch, "attn_out", attn_out, 0);
    spy_see(&watch, "mid", mid, 0);
    spy_see(&watch, "ffn_in", ffn_in, 0);
    spy_see(&watch, "route_weight", weight, 0);
    spy_give(&watch, "ffn_out", ffn_out, 0);
    spy_see(&watch, "out", out, 0);

    ref_layer_state state_of_layer = {.window = small_array(s, s->config.sliding_window * D)};
    for (int i = 0; i < T * D; i++)
        h[i] = x[i];
    ref_block(&s->c, &layer, &state_of_layer, (int64_t[]){0, 0, 0}, 0, h, T);
    small_same(s, h, out, T * D);
    for (int t = 0; t < T; t++) {
        double u[D], after[D], key[D], normed[2];
        mix(s, &layer.hc_attn, x + t * D, attn_out + t * D, u, after);
        small_near(s, attn_in + t * D, u, D, 1e-14);
        small_near(s, mid + t * D, after, D, 1e-14);
        for (int i = 0; i < D; i++)
            key[i] = through(s, &layer.attn_norm, &layer.attn.wkv, i, u);
        for (int i = 0; i < 2; i++) /* the first two are not rotated */
            normed[i] = key[i] / root_mean_square(key) * kv_norm[i];
        small_near(s, kv + t * D, normed, 2, 1e-13);

        mix(s, &layer.hc_ffn, mid + t * D, ffn_out + t * D, u, after);
        small_near(s, ffn_in + t * D, u, D, 1e-14);
        small_near(s, out + t * D, after, D, 1e-14);
        for (int e = 0; e < 2; e++) {
            double logit = through(s, &layer.ffn_norm, &layer.ffn.gate.weight, e, u);
            small_about(s, weight[2 * t + e], sqrt(log(1 + exp(logit))), 1e-13);
        }
    }
    assert_int_equal(s->c.layer, 5); /* the taps' layer */
}

int main(void)
{
    const struct CMUnitTest tests[] = {small_test(block)};
    return cmocka_run_group_tests_name("block", tests, NULL, NULL) != 0;
}
