/* spec/moe.md: the mixture of experts of one layer. */
#include "ref.h"

#include <stdlib.h>

/* Adds to y [D] what the chosen experts and the shared one make of x [D]. */
static void mixture(const ref_context *c, const dsv4_layer *layer, const int64_t *chosen,
                    const double *weight, const double *x, double *y)
{
    int64_t D = c->config->hidden_size, E = c->config->n_routed_experts;
    double *part = ref_new(D);
    /* moe.sum.1: The outputs of the chosen experts are added in the order of increasing expert
     * index (released: in binary32). */
    for (int64_t e = 0; e < E; e++)
        for (int64_t i = 0; i < c->config->num_experts_per_tok; i++)
            if (chosen[i] == e) {
                ref_expert(c, &layer->ffn.experts[e], &weight[i], x, part);
                for (int64_t j = 0; j < D; j++)
                    y[j] += part[j];
            }
    /* moe.shared.1: Then the output of the shared expert is added. It has the shape of the others,
     * takes every token, has no routing weight, and is clamped too. */
    ref_expert(c, &layer->ffn.shared_experts, NULL, x, part);
    for (int64_t j = 0; j < D; j++)
        y[j] += part[j];
    free(part);
}

/* x [T, D], ids [T] -> y [T, D]. */
void ref_moe(ref_context *c, const dsv4_layer *layer, const int64_t *ids, int64_t position,
             const double *x, int64_t T, double *y)
{
    int64_t D = c->config->hidden_size, k = c->config->num_experts_per_tok;
    int64_t E = c->config->n_routed_experts;
    int64_t *chosen = dsv4_alloc((size_t)(T * k), sizeof *chosen);
    double *s = ref_new(T * E), *weight = ref_new(T * k);
    for (int64_t t = 0; t < T; t++) {
        ref_gate_scores(c, layer, x + t * D, s + t * E);
        ref_gate_choose(c, layer, s + t * E, ids[t], chosen + t * k);
    }
    /* The tap may put other experts in place; they are weighed by the scores found here. */
    ref_tap_indices(c, "route_index", position, T, k, chosen);
    for (int64_t t = 0; t < T; t++)
        ref_gate_weigh(c, s + t * E, chosen + t * k, weight + t * k);
    ref_tap(c, "route_weight", position, T, k, 0, weight);
    for (int64_t t = 0; t < T; t++) {
        for (int64_t j = 0; j < D; j++)
            y[t * D + j] = 0;
        mixture(c, layer, chosen + t * k, weight + t * k, x + t * D, y + t * D);
        /* moe.round.1: Released: the sum is rounded to bf16. */
        ref_bf16_all(c, y + t * D, D);
    }
    ref_tap(c, "ffn_out", position, T, D, 0, y);
    free(chosen);
    free(s);
    free(weight);
}
