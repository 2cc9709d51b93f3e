/* spec/gate.md: which experts a token takes, and with which weights. */
#include "ref.h"

#include <math.h>
#include <stdlib.h>

static double softplus(double x)
{
    return fmax(x, 0) + log1p(exp(-fabs(x)));
}

/* x [D] of one token -> s [E]. */
void ref_gate_scores(const ref_context *c, const dsv4_layer *layer, const double *x, double *s)
{
    /* gate.score.1: s = sqrt(softplus(gate.weight u')), one positive score per expert. Released:
     * binary32 numbers. */
    ref_linear_f32(c, &layer->ffn.gate.weight, x, 1, s);
    for (int64_t e = 0; e < c->config->n_routed_experts; e++)
        s[e] = ref_f32(c, sqrt(softplus(s[e])));
}

/* s [E] of one token -> chosen [k]. */
void ref_gate_choose(const ref_context *c, const dsv4_layer *layer, const double *s, int64_t token,
                     int64_t *chosen)
{
    int64_t E = c->config->n_routed_experts, k = c->config->num_experts_per_tok;
    if (layer->hash) {
        /* gate.hash.1: Hash layers: the chosen experts are row token-id of tid2eid. An expert that
         * stands in it twice counts twice; a table entry that is no expert is an error. */
        for (int64_t i = 0; i < k; i++) {
            const dsv4_matrix *table = &layer->ffn.gate.tid2eid;
            chosen[i] = ref_integer(table, token, i);
            if (chosen[i] < 0 || chosen[i] >= E) {
                dsv4_fail(c->error,
                          "%s: %s: value [%lld, %lld] is %lld, expected an expert 0..%lld",
                          table->file, table->name, (long long)token, (long long)i,
                          (long long)chosen[i], (long long)(E - 1));
                chosen[i] = 0;
            }
        }
    } else {
        /* gate.topk.1: Score layers: the chosen experts are the k largest of s + gate.bias; of
         * equals the reference takes the lower index. Released: the sums are binary32 numbers. */
        double *bias = ref_vector(c, &layer->ffn.gate.bias), *biased = ref_new(E);
        for (int64_t e = 0; e < E; e++)
            biased[e] = ref_f32(c, s[e] + bias[e]);
        ref_select(biased, E, k, chosen);
        free(bias);
        free(biased);
    }
}

/* s [E], chosen [k] -> weight [k], whoever chose. */
void ref_gate_weigh(const ref_context *c, const double *s, const int64_t *chosen, double *weight)
{
    int64_t k = c->config->num_experts_per_tok;
    /* gate.weight.1: The weight of a chosen expert is its s, without the bias, divided by the sum
     * of the chosen s, times routed_scaling_factor. Hash layers weigh by s in the same way.
     * Released: a binary32 number. */
    double sum = 0;
    for (int64_t i = 0; i < k; i++)
        sum += s[chosen[i]];
    /* gate.weight.2: Where norm_topk_prob is false the division by the sum is left out. */
    if (!c->config->norm_topk_prob)
        sum = 1;
    for (int64_t i = 0; i < k; i++)
        weight[i] = ref_f32(c, s[chosen[i]] / sum * c->config->routed_scaling_factor);
}

/* x [D] of one token -> chosen [k], weight [k]. */
void ref_gate(const ref_context *c, const dsv4_layer *layer, const double *x, int64_t token,
              int64_t *chosen, double *weight)
{
    double *s = ref_new(c->config->n_routed_experts);
    ref_gate_scores(c, layer, x, s);
    ref_gate_choose(c, layer, s, token, chosen);
    ref_gate_weigh(c, s, chosen, weight);
    free(s);
}
