/* Cases of mHC, gate, expert, MoE and head. */
#include "gen.h"

#include <math.h>
#include <stdio.h>

/* ---- mhc: n = T, D, streams, iterations; x = hc_eps, rms_norm_eps, gain of the mixes, size of x ---- */

static void hc_parameters(gen *g)
{
    gen_set(g, "hc_mult", (double)g->plan->n[2]);
    gen_set(g, "hc_sinkhorn_iters", (double)g->plan->n[3]);
    gen_set(g, "hc_eps", g->plan->x[0]);
}

/* Streams of different sizes: a norm over one of them differs from that over all. */
static void streams(gen *g, const char *name, int64_t T, int64_t n, int64_t D, double size)
{
    float *x = gen_values(g, name, GEN_DIMS(T, n, D), 0, size);
    for (int64_t i = 0; i < T * n * D; i++)
        x[i] = (float)ldexp(x[i], (int)(i / D % n) - (int)(i / (n * D) % 3) * 2);
}

static void mix(gen *g)
{
    const int64_t *n = g->plan->n;
    const int64_t T = n[0], D = n[1], s = n[2];
    hc_parameters(g);
    gen_set(g, "rms_norm_eps", g->plan->x[1]);
    streams(g, "x", T, s, D, g->plan->x[3]);
    if (n[4] != 0) {
        gen_matrix_recipe(g, "fn", PLAIN, (2 + s) * s, s * D);
        dsv4_array *fn = &g->c->in[g->c->ins - 1];
        snprintf(fn->name, sizeof fn->name, "fn"); /* a plain input, not a matrix slot */
    } else {
        gen_values_f32(g, "fn", GEN_DIMS((2 + s) * s, s * D), 0, 1 / sqrt((double)(s * D)));
    }
    gen_values_f32(g, "base", GEN_DIMS((2 + s) * s), 0, 0.5);
    float *scale = gen_values_f32(g, "scale", GEN_DIMS((int64_t)3), 0, 0.05);
    for (int i = 0; i < 3; i++) /* three scales that differ clearly */
        scale[i] = (float)gen_to_bf16((scale[i] + 0.5 + 0.375 * i) * g->plan->x[2]);
}

static void sinkhorn(gen *g)
{
    const int64_t *n = g->plan->n;
    hc_parameters(g);
    gen_values_f32(g, "logits", GEN_DIMS(n[0], n[2], n[2]), 0, g->plan->x[2]);
}

/* Matrices that Sinkhorn's iteration improves slowly: all rows prefer one column, but for one small
 * difference. */
static void sinkhorn_slow(gen *g)
{
    const int64_t *n = g->plan->n;
    const int64_t s = n[2];
    hc_parameters(g);
    float *x = gen_values(g, "logits", GEN_DIMS(n[0], s, s), 0, 0.25);
    for (int64_t i = 0; i < n[0] * s * s; i++) {
        int64_t row = i / s % s, col = i % s;
        double prefers = col == 0 ? g->plan->x[2] : row == col ? 0 : -g->plan->x[2] / 2;
        x[i] = (float)gen_to_bf16(x[i] + prefers);
    }
}

/* A column that no row prefers: its sum is of the size of eps. */
static void sinkhorn_empty_column(gen *g)
{
    const int64_t *n = g->plan->n;
    const int64_t s = n[2];
    hc_parameters(g);
    float *x = gen_values(g, "logits", GEN_DIMS(n[0], s, s), 0, 1);
    for (int64_t i = 0; i < n[0] * s * s; i++)
        if (i % s == i / (s * s) % s)
            x[i] = (float)gen_to_bf16(x[i] - g->plan->x[2]);
}

/* Weights of the kind that the mixes make, in binary32 in released: they come from a sigmoid. */
static void mhc_pre(gen *g)
{
    const int64_t *n = g->plan->n;
    gen_set(g, "hc_mult", (double)n[2]);
    gen_values_f32(g, "pre", GEN_DIMS(n[0], n[2]), 0.5, 0.13);
    gen_values(g, "x", GEN_DIMS(n[0], n[2], n[1]), 0, 1);
}

static void mhc_post(gen *g)
{
    const int64_t *n = g->plan->n;
    const int64_t s = n[2];
    gen_set(g, "hc_mult", (double)s);
    gen_values_f32(g, "post", GEN_DIMS(n[0], s), 1, 0.25);
    gen_values_f32(g, "comb", GEN_DIMS(n[0], s, s), 0.3, 0.08);
    gen_values(g, "y", GEN_DIMS(n[0], n[1]), 0, 1);
    gen_values(g, "x", GEN_DIMS(n[0], s, n[1]), 0, 1);
}

/* ---- gate: n = T, D, E, k, V, kind; x = scaling factor, gain of the bias ---- */

enum { ORDINARY, TIES, NOT_NORMALISED, RECIPE, DEEP };

static void gate_parameters(gen *g)
{
    const int64_t *n = g->plan->n;
    gen_set(g, "num_experts_per_tok", (double)n[3]);
    gen_set(g, "routed_scaling_factor", g->plan->x[0]);
    gen_set(g, "norm_topk_prob", n[5] != NOT_NORMALISED);
}

static float *gate_input(gen *g)
{
    const int64_t *n = g->plan->n;
    gate_parameters(g);
    float *x = gen_values(g, "x", GEN_DIMS(n[0], n[1]), 0, 1);
    for (int64_t t = 0; n[5] == DEEP && t < n[0]; t++) /* logits around -30 */
        x[t * n[1]] = 1;
    if (n[5] == RECIPE) {
        gen_matrix_recipe(g, "w", PLAIN, n[2], n[1]);
        dsv4_array *w = &g->c->in[g->c->ins - 1];
        snprintf(w->name, sizeof w->name, "weight");
        return NULL;
    }
    float *weight = gen_values(g, "weight", GEN_DIMS(n[2], n[1]), 0, 1.5 / sqrt((double)n[1]));
    for (int64_t e = 0; n[5] == DEEP && e < n[2]; e++)
        weight[e * n[1]] = -30;
    return weight;
}

static void gate_score(gen *g)
{
    const int64_t *n = g->plan->n;
    float *weight = gate_input(g);
    float *bias = gen_values_f32(g, "bias", GEN_DIMS(n[2]), 0, g->plan->x[1]);
    /* Ties: experts 2i and 2i + 1 have the same row and bias, so k odd cuts through a pair. */
    for (int64_t e = 1; n[5] == TIES && e < n[2]; e += 2) {
        bias[e] = bias[e - 1];
        for (int64_t i = 0; i < n[1]; i++)
            weight[e * n[1] + i] = weight[(e - 1) * n[1] + i];
    }
}

static void table_of(gen *g, const char *name, int64_t V, int64_t k, int64_t E)
{
    int64_t *table = gen_indices(g, name, GEN_DIMS(V, k));
    for (int64_t v = 0; v < V; v++, table += k)
        for (int64_t i = 0; i < k; i++)
            for (bool taken = true; taken;) {
                table[i] = gen_below(g, E);
                taken = false;
                for (int64_t j = 0; j < i; j++)
                    taken = taken || table[j] == table[i];
            }
}

static void gate_hash(gen *g)
{
    const int64_t *n = g->plan->n;
    gate_input(g);
    int64_t *ids = gen_indices(g, "token_ids", GEN_DIMS(n[0]));
    for (int64_t t = 0; t < n[0]; t++)
        ids[t] = t == 0 ? n[4] - 1 : gen_below(g, n[4]);
    table_of(g, "tid2eid", n[4], n[3], n[2]);
}

/* ---- expert: n = T, D, I, weighted, recipe; x = limit, size ---- */

/* Exact has no blocks of 128, and does with less. */
static int64_t sized(const gen *g, int64_t size)
{
    return size == 128 && !gen_released(g) ? 40 : size;
}

static void expert(gen *g)
{
    const int64_t *n = g->plan->n;
    const int64_t D = sized(g, n[1]), I = sized(g, n[2]);
    gen_set(g, "swiglu_limit", g->plan->x[0]);
    gen_values(g, "x", GEN_DIMS(n[0], D), 0, g->plan->x[1]);
    if (n[3] != 0)
        gen_values_f32(g, "weight", GEN_DIMS(n[0]), 0.6, 0.15);
    gen_weight kind = n[3] != 0 ? FP4 : FP8;
    const struct { const char *name; int64_t rows, cols; } matrix[3] = {
        {"w1", I, D}, {"w2", D, I}, {"w3", I, D}};
    for (int i = 0; i < 3; i++)
        if (n[4] != 0)
            gen_matrix_recipe(g, matrix[i].name, kind, matrix[i].rows, matrix[i].cols);
        else
            gen_quantised(g, matrix[i].name, kind, matrix[i].rows, matrix[i].cols, 1);
}

/* ---- moe: n = T, D, E, k, I, V, hash; x = limit, scaling factor ---- */

static void moe(gen *g)
{
    const int64_t *n = g->plan->n;
    const int64_t T = n[0], D = sized(g, n[1]), E = n[2], k = n[3], I = sized(g, n[4]), V = n[5];
    gen_set(g, "num_experts_per_tok", (double)k);
    gen_set(g, "routed_scaling_factor", g->plan->x[1]);
    gen_set(g, "norm_topk_prob", 1);
    gen_set(g, "hash", (double)n[6]);
    gen_set(g, "swiglu_limit", g->plan->x[0]);
    gen_values(g, "x", GEN_DIMS(T, D), 0, 1);
    int64_t *ids = gen_indices(g, "token_ids", GEN_DIMS(T));
    for (int64_t t = 0; t < T; t++)
        ids[t] = gen_below(g, V);
    gen_values(g, "ffn.gate.weight", GEN_DIMS(E, D), 0, 2 / sqrt((double)D));
    if (n[6] != 0)
        table_of(g, "ffn.gate.tid2eid", V, k, E);
    else
        gen_values_f32(g, "ffn.gate.bias", GEN_DIMS(E), 0, 0.25);
    for (int64_t e = 0; e <= E; e++) {
        static const char part[3][3] = {"w1", "w2", "w3"};
        for (int i = 0; i < 3; i++) {
            char name[DSV4_NAME];
            if (e < E)
                snprintf(name, sizeof name, "ffn.experts.%d.%s", (int)e, part[i]);
            else
                snprintf(name, sizeof name, "ffn.shared_experts.%s", part[i]);
            gen_quantised(g, name, e < E ? FP4 : FP8, i == 1 ? D : I, i == 1 ? I : D, 1);
        }
    }
}

/* ---- head: n = T, D, streams, V; x = hc_eps, rms_norm_eps ---- */

static void head(gen *g)
{
    const int64_t *n = g->plan->n;
    gen_set(g, "hc_mult", (double)n[2]);
    gen_set(g, "hc_eps", g->plan->x[0]);
    gen_set(g, "rms_norm_eps", g->plan->x[1]);
    streams(g, "h", n[0], n[2], n[1], 1);
    gen_values_f32(g, "hc_head_fn", GEN_DIMS(n[2], n[2] * n[1]), 0,
                   1 / sqrt((double)(n[1] * n[2])));
    /* Strongly negative: where a sigmoid is small, its eps shows. */
    gen_values_f32(g, "hc_head_base", GEN_DIMS(n[2]), g->plan->x[0] > 1e-3 ? -4 : 0, 0.75);
    gen_values_f32(g, "hc_head_scale", GEN_DIMS((int64_t)1), 0.75, 0.05);
    gen_values(g, "norm.weight", GEN_DIMS(n[1]), 1, 0.3);
    gen_values(g, "head.weight", GEN_DIMS(n[3], n[1]), 0, 1 / sqrt((double)n[1]));
}

const gen_plan gen_mixture[] = {
    {"mhc_mix", "tiny", "", "four streams", BOTH, mix, {4, 8, 4, 20}, {1e-6, 1e-6, 1, 1}},
    {"mhc_mix", "one-stream", "seam", "hc_mult 1: comb is one number", BOTH, mix, {2, 16, 1, 20},
     {1e-6, 1e-6, 1, 1}},
    {"mhc_mix", "two-streams", "", "hc_mult 2", BOTH, mix, {3, 12, 2, 20}, {1e-6, 1e-6, 1, 1}},
    {"mhc_mix", "eps", "magnified", "hc_eps 1e-2 and three iterations: each place of eps shows", BOTH,
     mix, {6, 8, 4, 3}, {1e-2, 1e-6, 1, 1}},
    {"mhc_mix", "saturated", "magnified", "mixes far from 0: sigmoids at their ends, where an eps is "
     "all that is left, and a comb of nearly one entry a row", BOTH, mix, {6, 8, 4, 3},
     {1e-2, 1e-6, 8, 1}},
    {"mhc_mix", "small-streams", "magnified", "streams near 1/32 beside an rms_norm_eps of 1e-2",
     BOTH, mix, {4, 8, 4, 20}, {1e-6, 1e-2, 1, 0.03125}},
    {"mhc_mix", "real", "real-size recipe", "four streams of 4096, as in Flash", BOTH, mix,
     {2, 4096, 4, 20, 1}, {1e-6, 1e-6, 0.03125, 1}},
    {"mhc_sinkhorn", "ordinary", "", "logits around 0", BOTH, sinkhorn, {6, 0, 4, 20},
     {1e-6, 0, 1}},
    {"mhc_sinkhorn", "one-iteration", "seam", "hc_sinkhorn_iters 1: softmax and columns only", BOTH,
     sinkhorn, {6, 0, 4, 1}, {1e-6, 0, 1.5}},
    {"mhc_sinkhorn", "two-iterations", "magnified", "two iterations, logits of size 3: one fewer or "
     "more shows", BOTH, sinkhorn, {6, 0, 4, 2}, {1e-6, 0, 3}},
    {"mhc_sinkhorn", "eps", "magnified", "hc_eps 1e-2", BOTH, sinkhorn, {6, 0, 4, 3}, {1e-2, 0, 2}},
    {"mhc_sinkhorn", "slow", "magnified", "all rows prefer one column: twenty iterations are not "
     "enough, and the twenty-first still changes it", BOTH, sinkhorn_slow, {4, 0, 4, 20},
     {1e-6, 0, 14}},
    {"mhc_sinkhorn", "empty-column", "magnified", "a column whose sum is of the size of eps", BOTH,
     sinkhorn_empty_column, {6, 0, 4, 4}, {1e-2, 0, 6}},
    {"mhc_sinkhorn", "three-streams", "", "hc_mult 3", BOTH, sinkhorn, {4, 0, 3, 3}, {1e-2, 0, 2}},
    {"mhc_pre", "tiny", "", "", BOTH, mhc_pre, {4, 8, 4}, {0}},
    {"mhc_pre", "one-stream", "seam", "hc_mult 1", BOTH, mhc_pre, {3, 8, 1}, {0}},
    {"mhc_pre", "real", "real-size", "four streams of 4096", BOTH, mhc_pre, {2, 4096, 4}, {0}},
    {"mhc_post", "tiny", "", "a comb that is not symmetric", BOTH, mhc_post, {4, 8, 4}, {0}},
    {"mhc_post", "one-stream", "seam", "hc_mult 1", BOTH, mhc_post, {3, 8, 1}, {0}},
    {"mhc_post", "real", "real-size", "four streams of 4096", BOTH, mhc_post, {1, 4096, 4}, {0}},

    {"gate_score", "tiny", "", "2 of 8 experts", BOTH, gate_score, {6, 32, 8, 2, 0, ORDINARY},
     {1.5, 0.5}},
    {"gate_score", "ties", "tie free-choice", "pairs of experts with equal scores; the third choice may be "
     "either of one", BOTH, gate_score, {5, 32, 8, 3, 0, TIES}, {1.5, 0.25}},
    {"gate_score", "all-experts", "seam", "k = E: no choice, weights only", BOTH, gate_score,
     {3, 32, 4, 4, 0, ORDINARY}, {2.5, 0.25}},
    {"gate_score", "one-expert", "seam", "k = 1: the normalised weight is the factor", BOTH,
     gate_score, {4, 32, 8, 1, 0, ORDINARY}, {1.5, 0.25}},
    {"gate_score", "small-scores", "seam", "logits around -30: scores below 1e-6, which the division by "
     "their sum makes ordinary", BOTH, gate_score, {4, 32, 8, 2, 0, DEEP}, {1.5, 0.5}},
    {"gate_score", "not-normalised", "", "norm_topk_prob false: no division by the sum", BOTH,
     gate_score, {4, 32, 8, 3, 0, NOT_NORMALISED}, {1.5, 0.25}},
    {"gate_score", "real", "real-size recipe", "6 of 256 experts from 4096 values, as in Flash", BOTH,
     gate_score, {1, 4096, 256, 6, 0, RECIPE}, {1.5, 0.25}},
    {"gate_hash", "tiny", "", "2 of 8 experts, by token id", BOTH, gate_hash,
     {6, 32, 8, 2, 11, ORDINARY}, {1.5}},
    {"gate_hash", "six-of-sixteen", "", "the number of Flash", BOTH, gate_hash,
     {4, 64, 16, 6, 7, ORDINARY}, {1.5}},

    {"expert", "routed", "", "no value is clamped", BOTH, expert, {3, 128, 128, 1}, {64, 1}},
    {"expert", "clamped", "magnified", "a limit of 0.5: gate and value are clamped often, on both "
     "sides", BOTH, expert, {4, 128, 128, 1}, {0.5, 1}},
    {"expert", "limit-0", "seam", "a limit of 0 is no clamp", BOTH, expert, {3, 128, 128, 1},
     {0, 2}},
    {"expert", "shared", "magnified", "the shared expert: no weight, FP8, clamped too", BOTH, expert,
     {3, 128, 128, 0}, {0.5, 1}},
    {"expert", "many-rows", "", "72 rows: enough for the root mean square to tell a rounding in the "
     "wrong place", RELEASED, expert, {72, 128, 128, 1}, {10, 1}},
    {"expert", "real", "real-size recipe", "4096 and 2048, as in Flash", BOTH, expert,
     {1, 4096, 2048, 1, 1}, {10, 0.0625}},
    {"moe", "score", "", "2 of 4 experts by score, and the shared one", BOTH, moe,
     {5, 128, 4, 2, 128, 9, 0}, {0.75, 1.5}},
    {"moe", "hash", "", "2 of 4 experts by token id", BOTH, moe, {5, 128, 4, 2, 128, 9, 1},
     {0.75, 1.5}},
    {"moe", "limit-0", "seam", "a limit of 0 is no clamp", BOTH, moe, {3, 128, 4, 2, 128, 9, 1},
     {0, 2.5}},

    {"head", "tiny", "", "", BOTH, head, {4, 16, 4, 20}, {1e-6, 1e-6}},
    {"head", "eps", "magnified", "hc_eps 1e-2 beside small sigmoids, rms_norm_eps 1e-2", BOTH, head,
     {6, 16, 4, 20}, {1e-2, 1e-2}},
    {"head", "one-stream", "seam", "hc_mult 1: the collapse is a factor, which the norm takes away "
     "but for eps", BOTH, head, {3, 16, 1, 10}, {1e-2, 1e-2}},
    {"head", "real-width", "real-size", "streams of 4096", BOTH, head, {1, 4096, 4, 24}, {1e-6, 1e-6}},
    {0},
};
