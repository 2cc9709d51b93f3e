/* spec/moe.md */
#include <math.h>
#include <string.h>

#include "small.h"
#include "spy.h"

enum { E = 4 };

/* An expert of D = 1 that makes v x 50 / 64 of the input 1: silu(50) = 50. */
static dsv4_expert constant(small *s, double v)
{
    return (dsv4_expert){.w1 = small_f32(s, (double[]){50}, 1, 1),
                         .w3 = small_f32(s, (double[]){v}, 1, 1),
                         .w2 = small_f32(s, (double[]){1.0 / 64}, 1, 1)};
}

/* A layer whose expert e makes out[e], and whose shared expert makes out[E]. */
static dsv4_layer make_layer(small *s, const double *out)
{
    s->config.hidden_size = 1;
    s->config.n_routed_experts = E;
    s->config.num_experts_per_tok = 2;
    s->config.swiglu_limit = 0;
    dsv4_layer layer = {.ffn.experts = small_alloc(s, E, sizeof(dsv4_expert)),
                        .ffn.shared_experts = constant(s, out[E] * 64 / 50),
                        .ffn.gate.weight = small_f32(s, (double[]){1, 2, 3, 4}, E, 1),
                        .ffn.gate.bias = small_f32(s, (double[]){0, 0, 0, 0}, 1, E)};
    for (int e = 0; e < E; e++)
        layer.ffn.experts[e] = constant(s, out[e] * 64 / 50);
    return layer;
}

/* The mixture for input 1 and the experts `chosen` of these weights, whatever the gate says. */
static double mixture(small *s, const dsv4_layer *layer, int k, const double *chosen,
                      const double *weight)
{
    const double x = 1;
    const int64_t id = 0;
    double y;
    spy watch;
    s->config.num_experts_per_tok = k;
    spy_start(s, &watch);
    spy_give(&watch, "route_index", chosen, 0);
    spy_give(&watch, "route_weight", weight, 0);
    ref_moe(&s->c, layer, &id, 0, &x, 1, &y);
    return y;
}

/* covers: moe.sum.1 moe.shared.1 */
static void sum(void **state)
{
    small *s = *state;
    dsv4_layer layer = make_layer(s, (double[]){1, 10, 100, 1000, 0.25});
    double y = mixture(s, &layer, 2, (double[]){3, 1}, (double[]){2, 3});
    small_about(s, y, 2030.25, 1e-3);
    y = mixture(s, &layer, 4, (double[]){3, 1, 0, 2}, (double[]){2, 3, 4, 5});
    small_about(s, y, 2534.25, 1e-3);
    y = mixture(s, &layer, 1, (double[]){2}, (double[]){0});
    small_about(s, y, 0.25, 1e-6);
    y = mixture(s, &layer, 2, (double[]){1, 1}, (double[]){2, 3}); /* one expert twice */
    small_about(s, y, 50.25, 1e-4);
}

/* Sums of numbers that absorb each other show their order, in binary64 as well.
 * covers: moe.sum.1 moe.shared.1 */
static void order(void **state)
{
    small *s = *state;
    const double weight[3] = {1, 1, 1};
    dsv4_layer layer = make_layer(s, (double[]){50 * 0x1p90, 50, -50 * 0x1p90, 0, 0});
    double y = mixture(s, &layer, 3, (double[]){2, 0, 1}, weight); /* (2^90 + 1) - 2^90 */
    small_is(s, y, 0);
    layer = make_layer(s, (double[]){50 * 0x1p90, -50 * 0x1p90, 50, 0, 0});
    y = mixture(s, &layer, 3, (double[]){2, 0, 1}, weight); /* (2^90 - 2^90) + 50 */
    small_is(s, y, 50);
    layer = make_layer(s, (double[]){50 * 0x1p90, -50 * 0x1p90, 0, 0, 50});
    y = mixture(s, &layer, 2, (double[]){0, 1}, weight); /* the shared expert comes last */
    small_is(s, y, 50);
}

/* covers: moe.shared.1 */
static void shared(void **state)
{
    small *s = *state;
    dsv4_layer layer = make_layer(s, (double[]){0, 0, 0, 0, 1000});
    const double weight[2] = {3, 4};
    double y = mixture(s, &layer, 2, (double[]){0, 1}, weight);
    small_about(s, y, 1000, 1e-3);
    s->config.swiglu_limit = 2;
    y = mixture(s, &layer, 2, (double[]){0, 1}, weight);
    small_about(s, y, 2 * (2 / (1 + exp(-2))) / 64, 1e-12);
}

/* covers: moe.round.1 moe.sum.1 */
static void released(void **state)
{
    small *s = *state;
    const double weight[2] = {1, 1};
    dsv4_layer layer = make_layer(s, (double[]){200, 50, 0, 0, 6.25}); /* v = 256, 64, 8 */
    double y = mixture(s, &layer, 2, (double[]){0, 1}, weight);
    small_is(s, y, 256.25);
    s->c.numerics = DSV4_RELEASED;
    y = mixture(s, &layer, 2, (double[]){0, 1}, weight);
    small_is(s, y, 256);
    /* Rounded after each addition, 257.8125 would be 256. */
    layer = make_layer(s, (double[]){200, 56.25, 0.78125, 0, 0.78125});
    y = mixture(s, &layer, 3, (double[]){0, 1, 2}, (double[]){1, 1, 1});
    small_is(s, y, 258);
}

/* Every token has its own input, id, experts and row. The gate chooses here, by score and by id.
 * covers: moe.sum.1 */
static void tokens(void **state)
{
    small *s = *state;
    const double x[3] = {1, -1, 1}, v = 64.0 / 50;
    const int64_t ids[3] = {0, 1, 1}, table[4] = {0, 1, 2, 2};
    double index[10 * 2], weight[10 * 2], out[10], y[3];
    dsv4_layer layer = make_layer(s, (double[]){1, 10, 100, 1000, 0});
    for (int hash = 0; hash < 2; hash++) {
        layer.hash = hash;
        layer.ffn.gate.tid2eid = (dsv4_matrix){.dtype = DSV4_I64, .rows = 2, .cols = 2,
                                               .data = table};
        spy watch;
        spy_start(s, &watch);
        s->config.num_experts_per_tok = 2;
        spy_see(&watch, "route_index", index, 0);
        spy_see(&watch, "route_weight", weight, 0);
        spy_see(&watch, "ffn_out", out, 0);
        ref_moe(&s->c, &layer, ids, 7, x, 3, y);
        small_same(s, index + 14, hash ? ((double[]){0, 1, 2, 2, 2, 2})
                                       : ((double[]){3, 2, 0, 1, 3, 2}), 6);
        small_same(s, out + 7, y, 3);
        for (int t = 0; t < 3; t++) {
            double want = 0, silu = 50 * x[t] / (1 + exp(-50 * x[t]));
            for (int i = 0; i < 2; i++)
                want += weight[14 + 2 * t + i] * pow(10, index[14 + 2 * t + i]);
            want *= silu * v * x[t] / 64;
            small_about(s, y[t], want, 1e-6 * fabs(want));
        }
    }
}

/* The tap sees the choice before anything is computed with it: other experts in its place are
 * weighed by each token's own scores. */
static void replayed_choices_are_weighed(void **state)
{
    small *s = *state;
    const double x[2] = {1, 2}, others[4] = {0, 1, 0, 2};
    const int64_t ids[2] = {0, 0};
    double index[4], weight[4], y[2];
    dsv4_layer layer = make_layer(s, (double[]){1, 10, 100, 1000, 0});
    spy watch;
    spy_start(s, &watch);
    s->config.norm_topk_prob = true;
    s->config.routed_scaling_factor = 1.5;
    spy_give(&watch, "route_index", others, 0);
    spy_see(&watch, "route_index", index, 0);
    spy_see(&watch, "route_weight", weight, 0);
    ref_moe(&s->c, &layer, ids, 0, x, 2, y);
    small_same(s, index, others, 4);
    for (int t = 0; t < 2; t++) { /* the logit of expert e is (e + 1) x */
        double first = sqrt(log1p(exp(x[t]))), second = sqrt(log1p(exp((2 + t) * x[t])));
        small_about(s, weight[2 * t], 1.5 * first / (first + second), 1e-14);
        small_about(s, weight[2 * t + 1], 1.5 * second / (first + second), 1e-14);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        small_test(sum), small_test(order), small_test(shared), small_test(released),
        small_test(tokens), small_test(replayed_choices_are_weighed),
    };
    return cmocka_run_group_tests_name("moe", tests, NULL, NULL) != 0;
}
