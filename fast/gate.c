/* spec/gate.md: which experts a token takes, and with which weights. */
#include "fast/fast.h"

#include <math.h>
#include <stdio.h>

/* sqrt(softplus(x)). Far below 0 softplus is e^x to the last bit; its root is taken in the
 * exponent, to keep its precision where e^x itself leaves the normal numbers. A NaN stays. */
static float score(float x)
{
    return x < -18 ? expf(x / 2) : sqrtf((x > 0 ? x : 0) + log1pf(expf(-fabsf(x))));
}

typedef struct { float *s; int64_t E; } score_rows;

static void score_row(void *context, int64_t row, int worker)
{
    const score_rows *all = context;
    float *s = all->s + row * all->E;
    (void)worker;
    for (int64_t e = 0; e < all->E; e++)
        s[e] = score(s[e]);
}

/* gate.score.1: binary32 in both contracts. */
void fast_gate_scores(const fast_context *c, const dsv4_layer *layer, const float *x, int64_t T,
                      float *s)
{
    score_rows all = {s, c->config->n_routed_experts};
    fast_linear_f32(c, &layer->ffn.gate.weight, x, T, s);
    fast_pool_run(c->pool, T, score_row, &all);
    /* A choice among scores of which one is NaN would hide it. */
    char what[64];
    snprintf(what, sizeof what, "layer %lld: gate score", (long long)c->layer);
    fast_check_finite(c, what, 0, all.E, s, T * all.E);
}

/* gate.hash.1 */
static void choose_by_id(const fast_context *c, const dsv4_matrix *table, int64_t id,
                         int64_t *chosen)
{
    int64_t E = c->config->n_routed_experts;
    for (int64_t i = 0; i < c->config->num_experts_per_tok; i++) {
        chosen[i] = fast_integer(table, id, i);
        if (chosen[i] < 0 || chosen[i] >= E) {
            dsv4_fail(c->error, "%s: %s: value [%lld, %lld] is %lld, expected an expert 0..%lld",
                      table->file, table->name, (long long)id, (long long)i, (long long)chosen[i],
                      (long long)(E - 1));
            chosen[i] = 0;
        }
    }
}

/* gate.topk.1: of equals the lower index. No expert is taken twice, whatever is NaN. */
static void choose_by_score(const float *biased, int64_t E, int64_t k, int64_t *chosen)
{
    int64_t kept = 0;
    for (int64_t e = 0; e < E; e++) {
        if (kept == k && !(biased[e] > biased[chosen[k - 1]]))
            continue;
        int64_t at = kept < k ? kept++ : k - 1;
        for (; at > 0 && biased[e] > biased[chosen[at - 1]]; at--)
            chosen[at] = chosen[at - 1];
        chosen[at] = e;
    }
}

void fast_gate_choose(const fast_context *c, const dsv4_layer *layer, const float *s,
                      const int64_t *ids, int64_t T, int64_t *chosen)
{
    int64_t E = c->config->n_routed_experts, k = c->config->num_experts_per_tok;
    if (layer->hash) {
        for (int64_t t = 0; t < T; t++)
            choose_by_id(c, &layer->ffn.gate.tid2eid, ids[t], chosen + t * k);
        return;
    }
    fast_place mark = fast_mark(c->memory);
    const float *bias = fast_vector(c, &layer->ffn.gate.bias);
    float *biased = FAST_TAKE(c, float, E);
    for (int64_t t = 0; t < T; t++) {
        for (int64_t e = 0; e < E; e++)
            biased[e] = s[t * E + e] + bias[e];
        choose_by_score(biased, E, k, chosen + t * k);
    }
    fast_release(c->memory, mark);
}

/* gate.weight.1, gate.weight.2. Sum and quotient are binary64, rounded once. */
void fast_gate_weigh(const fast_context *c, const float *s, const int64_t *chosen, int64_t T,
                     float *weight)
{
    int64_t E = c->config->n_routed_experts, k = c->config->num_experts_per_tok;
    for (int64_t t = 0; t < T; t++, s += E, chosen += k, weight += k) {
        double sum = 0;
        for (int64_t i = 0; i < k; i++)
            sum += s[chosen[i]];
        if (!c->config->norm_topk_prob)
            sum = 1;
        for (int64_t i = 0; i < k; i++)
            weight[i] = (float)(s[chosen[i]] / sum * c->config->routed_scaling_factor);
    }
}
