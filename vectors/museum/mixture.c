/* Streams, gate, experts and head: spec/mhc.md, gate.md, expert.md, moe.md, head.md. */
#include "museum.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static double *new_array(int64_t count)
{
    return dsv4_alloc((size_t)count, sizeof(double));
}

static double *copy_of(const double *x, int64_t count)
{
    double *copy = new_array(count);
    memcpy(copy, x, (size_t)count * sizeof *copy);
    return copy;
}

/* A value that a rule calls a binary32 number. */
static double named(museum *m, double x)
{
    return m_mid(m, m_f32(m, x));
}

static double sigmoid(museum *m, double z)
{
    return m_fn(m, 1 / m_op(m, 1 + m_fn(m, exp(-z))));
}

static void softmax(museum *m, double *z, int64_t count, int64_t stride)
{
    double largest = z[0];
    for (int64_t i = 1; i < count; i++)
        largest = fmax(largest, z[i * stride]);
    for (int64_t i = 0; i < count; i++)
        z[i * stride] = m_fn(m, exp(m_op(m, z[i * stride] - largest)));
    double sum = m_sum(m, z, count, stride);
    for (int64_t i = 0; i < count; i++)
        z[i * stride] = m_op(m, z[i * stride] / sum);
}

/* ---- mhc ---- */

static double reciprocal_rms(museum *m, const double *f, int64_t count, double eps)
{
    double mean = m_op(m, m_dot(m, f, f, count) / (double)count);
    return m_f32(m, m_fn(m, 1 / sqrt(m_op(m, mean + eps))));
}

/* z [fn->rows] = (fn f) r */
static void mix(museum *m, const dsv4_matrix *fn, const double *f, double r, double *z)
{
    m_linear_f32(m, fn, f, 1, z);
    for (int64_t o = 0; o < fn->rows; o++)
        z[o] = named(m, z[o] * r);
}

static void scale_and_shift(museum *m, double *z, int64_t count, double scale, const double *base)
{
    for (int64_t i = 0; i < count; i++)
        z[i] = m_op(m, m_op(m, z[i] * scale) + base[i]);
}

static double mhc_norm(museum *m, const double *x)
{
    int64_t n = m->config->hc_mult, D = m->config->hidden_size;
    int64_t count = bug(m, MHC_NORM_ONE_STREAM) ? D : n * D;
    double eps = bug(m, MHC_NORM_EPS_MISSING) ? 0 : m->config->rms_norm_eps;
    return bug(m, MHC_NORM_MISSING) ? 1 : reciprocal_rms(m, x, count, eps);
}

/* z [n] -> pre, in place */
static void mhc_weigh_pre(museum *m, double *z)
{
    int64_t n = m->config->hc_mult;
    double eps = bug(m, MHC_PRE_NO_EPS) ? 0 : m->config->hc_eps;
    if (bug(m, MHC_PRE_SOFTMAX))
        softmax(m, z, n, 1);
    for (int64_t j = 0; j < n; j++) {
        double open = bug(m, MHC_PRE_SOFTMAX) ? z[j] : sigmoid(m, z[j]);
        z[j] = m_mid(m, m_op(m, (bug(m, MHC_PRE_FACTOR_2) ? 2 : 1) * open + eps));
    }
}

static void mhc_weigh_post(museum *m, double *z)
{
    double factor = bug(m, MHC_POST_NO_FACTOR) ? 1 : 2;
    double eps = bug(m, MHC_POST_EPS) ? m->config->hc_eps : 0;
    if (bug(m, MHC_POST_EPS_FOR_TWO)) {
        factor = 1;
        eps = m->config->hc_eps;
    }
    for (int64_t k = 0; k < m->config->hc_mult; k++)
        z[k] = m_mid(m, m_op(m, factor * sigmoid(m, z[k]) + eps));
}

void m_mhc_mix(museum *m, const dsv4_hc *hc, const double *x, double *pre, double *post,
               double *comb)
{
    int64_t n = m->config->hc_mult, all = (2 + n) * n;
    double *z = new_array(all), *base = m_vector(m, &hc->base), *scale = m_vector(m, &hc->scale);
    double *f = copy_of(x, n * m->config->hidden_size);
    for (int64_t i = 0; i < n * m->config->hidden_size && bug(m, MHC_CHANNELS_FIRST); i++)
        f[i] = x[i % n * m->config->hidden_size + i / n];
    for (int64_t j = 0; j < n && bug(m, MHC_NORM_EACH_STREAM); j++) {
        double r = reciprocal_rms(m, x + j * m->config->hidden_size, m->config->hidden_size,
                                  m->config->rms_norm_eps);
        for (int64_t i = 0; i < m->config->hidden_size; i++)
            f[j * m->config->hidden_size + i] = m_op(m, f[j * m->config->hidden_size + i] * r);
    }
    mix(m, &hc->fn, f, bug(m, MHC_NORM_EACH_STREAM) ? 1 : mhc_norm(m, x), z);
    free(f);

    if (bug(m, MHC_STATIC))
        memset(z, 0, (size_t)all * sizeof *z);
    if (bug(m, MHC_BASE_MISSING))
        memset(base, 0, (size_t)all * sizeof *base);
    double scale_pre = scale[bug(m, MHC_SCALES_SWAPPED) ? 1 : 0];
    double scale_post = scale[bug(m, MHC_SCALES_SWAPPED) || bug(m, MHC_ONE_SCALE) ? 0 : 1];
    double scale_comb = scale[bug(m, MHC_ONE_SCALE) ? 0 : 2];
    int64_t at_pre = bug(m, MHC_LAYOUT_COMB_FIRST) ? n * n : 0, at_post = at_pre + n;
    int64_t at_comb = bug(m, MHC_LAYOUT_COMB_FIRST) ? 0 : 2 * n;

    scale_and_shift(m, z + at_pre, n, scale_pre, base + at_pre);
    mhc_weigh_pre(m, z + at_pre);
    memcpy(pre, z + at_pre, (size_t)n * sizeof *pre);
    scale_and_shift(m, z + at_post, n, scale_post, base + at_post);
    mhc_weigh_post(m, z + at_post);
    memcpy(post, z + at_post, (size_t)n * sizeof *post);
    scale_and_shift(m, z + at_comb, n * n, scale_comb, base + at_comb);
    for (int64_t i = 0; i < n * n; i++)
        comb[i] = m_mid(m, z[at_comb + i]);
    m_mhc_sinkhorn(m, comb);
    free(z);
    free(base);
    free(scale);
}

/* Divides every column, or every row, by its sum + eps. */
static void sinkhorn_step(museum *m, bool columns, double eps, double *comb)
{
    int64_t n = m->config->hc_mult, next = columns ? 1 : n, stride = columns ? n : 1;
    for (int64_t line = 0; line < n; line++) {
        double *c = comb + line * next;
        double sum = m_op(m, m_sum(m, c, n, stride) + eps);
        for (int64_t i = 0; i < n; i++)
            c[i * stride] = m_op(m, c[i * stride] / sum);
    }
}

static void transpose_square(double *x, int64_t n)
{
    for (int64_t j = 0; j < n; j++)
        for (int64_t k = 0; k < j; k++) {
            double kept = x[j * n + k];
            x[j * n + k] = x[k * n + j];
            x[k * n + j] = kept;
        }
}

void m_mhc_sinkhorn(museum *m, double *comb)
{
    int64_t n = m->config->hc_mult, iterations = m->config->hc_sinkhorn_iters;
    bool columns = bug(m, SINKHORN_SOFTMAX_COLUMNS), opens = bug(m, SINKHORN_SIGMOID_START);
    if (bug(m, SINKHORN_COLUMN_MAJOR))
        transpose_square(comb, n);
    double eps = bug(m, SINKHORN_EPS_MISSING) ? 0 : m->config->hc_eps;
    for (int64_t line = 0; line < n && !bug(m, SINKHORN_PLAIN_EXP) && !opens; line++)
        softmax(m, comb + line * (columns ? 1 : n), n, columns ? n : 1);
    for (int64_t i = 0; i < n * n; i++) {
        double c = bug(m, SINKHORN_PLAIN_EXP) ? m_fn(m, exp(comb[i])) : comb[i];
        c = opens ? sigmoid(m, c) : c;
        comb[i] = m_op(m, c + (bug(m, SINKHORN_NO_SOFTMAX_EPS) ? 0 : eps));
    }

    iterations += bug(m, SINKHORN_ONE_MORE) - bug(m, SINKHORN_ONE_FEWER);
    int64_t steps = 2 * iterations - 1; /* the softmax was the first */
    if (bug(m, SINKHORN_ROWS_LAST)) /* rounds of columns, rows: the paper's order */
        steps++;
    if (opens) /* and all rounds are rows, then columns */
        sinkhorn_step(m, false, eps, comb);
    for (int64_t step = 0; step < steps; step++)
        sinkhorn_step(m, step % 2 == 0, eps, comb);
    for (int64_t i = 0; i < n * n; i++)
        comb[i] = m_mid(m, comb[i]);
}

static void collapse(museum *m, const double *pre, const double *x, double *u)
{
    int64_t n = m->config->hc_mult, D = m->config->hidden_size;
    double *column = new_array(n);
    for (int64_t i = 0; i < D; i++) {
        for (int64_t j = 0; j < n; j++)
            column[j] = x[j * D + i];
        u[i] = m_bf16(m, m_dot(m, pre, column, n));
    }
    free(column);
}

void m_mhc_pre(museum *m, const double *pre, const double *x, double *u)
{
    int64_t n = m->config->hc_mult;
    double *weight = copy_of(pre, n);
    for (int64_t j = 0; j < n && bug(m, MHC_PRE_MEAN); j++)
        weight[j] = 1 / (double)n;
    collapse(m, weight, x, u);
    free(weight);
}

void m_mhc_post(museum *m, const double *post, const double *comb, const double *y, double *x)
{
    int64_t n = m->config->hc_mult, D = m->config->hidden_size;
    double *before = copy_of(x, n * D), *weight = new_array(n + 1), *value = new_array(n + 1);
    const double *from = bug(m, MHC_POST_IN_PLACE) ? x : before;
    for (int64_t k = 0; k < n; k++) {
        weight[0] = post[k];
        for (int64_t j = 0; j < n; j++) {
            weight[1 + j] = comb[bug(m, COMB_NOT_TRANSPOSED) ? k * n + j : j * n + k];
            if (bug(m, MHC_POST_NO_RESIDUAL_MIX))
                weight[1 + j] = j == k;
        }
        for (int64_t i = 0; i < D; i++) {
            value[0] = y[i];
            for (int64_t j = 0; j < n; j++)
                value[1 + j] = from[j * D + i];
            x[k * D + i] = m_bf16(m, m_dot(m, weight, value, n + 1));
        }
    }
    free(before);
    free(weight);
    free(value);
}

/* ---- gate ---- */

static double gate_score(museum *m, double z)
{
    if (bug(m, GATE_SIGMOID))
        return sigmoid(m, z);
    double softplus = m_op(m, fmax(z, 0) + m_fn(m, log1p(m_fn(m, exp(-fabs(z))))));
    return bug(m, GATE_NO_ROOT) ? softplus : m_fn(m, sqrt(softplus));
}

static double *gate_scores(museum *m, const dsv4_matrix *weight, const double *x)
{
    double *s = new_array(weight->rows);
    m_linear_f32(m, weight, x, 1, s);
    for (int64_t e = 0; e < weight->rows && bug(m, GATE_BF16_SCORES); e++)
        s[e] = m_to_bf16(s[e]);
    if (bug(m, GATE_SOFTMAX))
        softmax(m, s, weight->rows, 1);
    for (int64_t e = 0; e < weight->rows; e++)
        s[e] = named(m, bug(m, GATE_SOFTMAX) ? s[e] : gate_score(m, s[e]));
    return s;
}

/* The k largest, descending; of equals the lower index first. */
static void top_k(const double *score, int64_t count, int64_t k, int64_t *chosen)
{
    bool *taken = dsv4_alloc((size_t)count, sizeof *taken);
    for (int64_t i = 0; i < k; i++) {
        int64_t best = -1;
        for (int64_t e = 0; e < count; e++)
            if (!taken[e] && (best < 0 || score[e] > score[best]))
                best = e;
        taken[best] = true;
        chosen[i] = best;
    }
    free(taken);
}

/* In the order of experts: a routing is a set. */
static void note_routing(museum *m, const int64_t *chosen, int64_t k, int64_t E)
{
    for (int64_t e = 0; e < E; e++)
        for (int64_t i = 0; i < k; i++)
            if (chosen[i] == e)
                m_choose(m, e);
}

/* weight [k]: scores of the chosen -> their routing weights, in place */
static void weigh(museum *m, bool hash, double sum_of_all, double *weight)
{
    int64_t k = m->config->num_experts_per_tok;
    double factor = bug(m, GATE_SCALE_MISSING) ? 1 : m->config->routed_scaling_factor;
    bool divided = m->config->norm_topk_prob || bug(m, GATE_ALWAYS_NORMALISED);
    double sum = divided && !bug(m, GATE_NOT_NORMALISED) ? m_sum(m, weight, k, 1) : 1;
    if (bug(m, GATE_SUM_OF_ALL))
        sum = sum_of_all;
    if (bug(m, GATE_SUM_FLOOR))
        sum = fmax(sum, 1e-6);
    for (int64_t i = 0; i < k; i++) {
        double share = m_op(m, weight[i] / sum);
        if (hash && bug(m, HASH_UNIFORM))
            share = 1 / (double)k;
        weight[i] = named(m, m_op(m, share * factor));
    }
}

void m_gate(museum *m, const dsv4_layer *layer, const double *x, int64_t token, int64_t *chosen,
            double *weight, double *biased)
{
    const dsv4_matrix *table = &layer->ffn.gate.tid2eid;
    int64_t E = layer->ffn.gate.weight.rows, k = m->config->num_experts_per_tok;
    double *s = gate_scores(m, &layer->ffn.gate.weight, x), *ranked = copy_of(s, E);
    if (!layer->hash && !bug(m, GATE_BIAS_IGNORED)) {
        double *bias = m_vector(m, &layer->ffn.gate.bias);
        for (int64_t e = 0; e < E; e++)
            ranked[e] = e < layer->ffn.gate.bias.cols ? named(m, s[e] + bias[e]) : NAN;
        free(bias);
    }

    if (!layer->hash || bug(m, HASH_BY_SCORE))
        top_k(ranked, E, k, chosen);
    else
        for (int64_t i = 0; i < k; i++)
            chosen[i] = token >= 0 && token < table->rows ? m_integer(table, token, i) : -1;
    note_routing(m, chosen, k, E);

    const double *weighing = bug(m, GATE_BIAS_IN_WEIGHT) ? ranked : s;
    for (int64_t i = 0; i < k; i++) {
        bool exists = chosen[i] >= 0 && chosen[i] < E && !isnan(ranked[chosen[i]]);
        weight[i] = exists ? weighing[chosen[i]] : NAN; /* so a bad table or bias shows */
        chosen[i] = exists ? chosen[i] : 0;
    }
    weigh(m, layer->hash, m_sum(m, s, E, 1), weight);
    if (biased != NULL)
        memcpy(biased, ranked, (size_t)E * sizeof *biased);
    free(s);
    free(ranked);
}

/* ---- expert, moe ---- */

static double at_most(double limit, double x) /* a NaN stays one */
{
    return x > limit ? limit : x;
}

static double at_least(double limit, double x)
{
    return x < limit ? limit : x;
}

static double gelu(museum *m, double g)
{
    return m_op(m, g * m_fn(m, (1 + erf(g / sqrt(2))) / 2));
}

static double activate(museum *m, bool shared, double weight, double g, double v)
{
    double limit = m->config->swiglu_limit;
    bool clamps = limit > 0 || bug(m, LIMIT_0_CLAMPS);
    if (bug(m, LIMIT_MISSING) || (shared && bug(m, SHARED_UNCLAMPED)))
        clamps = false;
    if (clamps && !bug(m, LIMIT_ON_PRODUCT)) {
        double clamped = at_most(limit, bug(m, LIMIT_V_ONE_SIDE) ? v : at_least(-limit, v));
        v = bug(m, LIMIT_G_ONLY) ? v : clamped;
        g = bug(m, LIMIT_ON_SILU) || bug(m, LIMIT_V_ONLY) ? g : at_most(limit, g);
        g = bug(m, LIMIT_G_BOTH_SIDES) ? at_least(-limit, g) : g;
    }
    if (bug(m, EXPERT_SWIGLU_OAI)) /* of another open model */
        return m_op(m, m_op(m, g * sigmoid(m, 1.702 * g)) * (v + 1) * weight);
    double silu = bug(m, EXPERT_GELU) ? gelu(m, g) : m_mid(m, g * m_mid(m, sigmoid(m, g)));
    if (clamps && bug(m, LIMIT_ON_PRODUCT))
        return m_op(m, weight * at_most(limit, at_least(-limit, silu * v)));
    if (clamps && bug(m, LIMIT_ON_SILU))
        silu = at_most(limit, silu);
    if (m->engine->seed / 2 % 2 == 0)
        return m_op(m, m_op(m, silu * v) * weight);
    return m_op(m, m_op(m, weight * silu) * v); /* as good */
}

void m_expert(museum *m, const dsv4_expert *w, const double *weight, const double *x, double *y)
{
    bool swapped = bug(m, EXPERT_W1_W3_SWAPPED), shared = weight == NULL;
    bool early = bug(m, WEIGHT_ON_INPUT), late = bug(m, WEIGHT_AFTER_W2);
    int64_t D = w->w1.cols, I = w->w1.rows;
    double *in = copy_of(x, D), *g = new_array(I), *v = new_array(I);
    for (int64_t i = 0; i < D && !shared && early; i++)
        in[i] = m_bf16(m, x[i] * *weight);
    m_linear(m, swapped ? &w->w3 : &w->w1, in, 1, g);
    m_linear(m, swapped ? &w->w1 : &w->w3, in, 1, v);
    for (int64_t i = 0; i < I; i++)
        g[i] = m_bf16(m, activate(m, shared, shared || early || late ? 1 : *weight, g[i], v[i]));
    m_linear(m, &w->w2, g, 1, y);
    for (int64_t i = 0; i < D && !shared && late; i++)
        y[i] = m_op(m, y[i] * *weight);
    free(in);
    free(g);
    free(v);
}

static void sort_by_expert(int64_t *chosen, double *weight, int64_t k)
{
    for (int64_t i = 1; i < k; i++)
        for (int64_t j = i; j > 0 && chosen[j] < chosen[j - 1]; j--) {
            int64_t expert = chosen[j];
            double its = weight[j];
            chosen[j] = chosen[j - 1];
            weight[j] = weight[j - 1];
            chosen[j - 1] = expert;
            weight[j - 1] = its;
        }
}

void m_moe(museum *m, const dsv4_layer *layer, const int64_t *ids, const double *x, int64_t T,
           double *y)
{
    int64_t D = layer->ffn.gate.weight.cols, k = m->config->num_experts_per_tok;
    int64_t *chosen = dsv4_alloc((size_t)k, sizeof *chosen);
    double *weight = new_array(k), *term = new_array((k + 1) * D);
    const double *routed_factor = &m->config->routed_scaling_factor;
    int64_t terms = bug(m, SHARED_MISSING) ? k : k + 1;
    for (int64_t t = 0; t < T; t++) {
        const double *in = x + t * D;
        m_gate(m, layer, in, bug(m, MOE_HASH_IGNORED) ? 0 : ids[t], chosen, weight, NULL);
        sort_by_expert(chosen, weight, k);
        for (int64_t i = 0; i < k; i++)
            m_expert(m, &layer->ffn.experts[chosen[i]], &weight[i], in, term + i * D);
        m_expert(m, &layer->ffn.shared_experts, bug(m, SHARED_WEIGHTED) ? routed_factor : NULL, in,
                 term + k * D);
        for (int64_t i = 0; i < D; i++)
            y[t * D + i] = m_bf16(m, m_sum(m, term + i, terms, D));
    }
    free(chosen);
    free(weight);
    free(term);
}

/* ---- head ---- */

/* pre [n] of one token's streams */
static void head_mix(museum *m, const dsv4_hc *hc, const double *x, double *pre)
{
    int64_t n = m->config->hc_mult, D = m->config->hidden_size;
    double *base = m_vector(m, &hc->base), *scale = m_vector(m, &hc->scale);
    double eps = bug(m, HEAD_NO_EPS) ? 0 : m->config->hc_eps;
    mix(m, &hc->fn, x, reciprocal_rms(m, x, n * D, m->config->rms_norm_eps), pre);
    scale_and_shift(m, pre, n, bug(m, HEAD_SCALE_MISSING) ? 1 : scale[0], base);
    if (bug(m, HEAD_SINKHORN_MIX))
        softmax(m, pre, n, 1);
    for (int64_t j = 0; j < n; j++) {
        double open = bug(m, HEAD_SINKHORN_MIX) ? pre[j] : sigmoid(m, pre[j]);
        pre[j] = m_mid(m, m_op(m, (bug(m, HEAD_FACTOR_2) ? 2 : 1) * open + eps));
        pre[j] = bug(m, HEAD_MEAN) ? 1 / (double)n : pre[j];
        pre[j] = bug(m, HEAD_FIRST_STREAM) ? j == 0 : pre[j];
    }
    free(base);
    free(scale);
}

void m_head_input(museum *m, const dsv4_hc *hc, const dsv4_matrix *norm, const double *h, int64_t T,
                  double *in)
{
    int64_t n = m->config->hc_mult, D = m->config->hidden_size;
    bool first = bug(m, HEAD_NORM_FIRST); /* streams normalised one by one; their sum is not */
    double *pre = new_array(n), *x = new_array(n * D), *u = new_array(T * D);
    for (int64_t t = 0; t < T; t++) {
        head_mix(m, hc, h + t * n * D, pre);
        memcpy(x, h + t * n * D, (size_t)(n * D) * sizeof *x);
        if (first)
            m_rmsnorm(m, norm, h + t * n * D, n, x);
        collapse(m, pre, x, u + t * D);
    }
    memcpy(in, u, (size_t)(T * D) * sizeof *in);
    if (!first && !bug(m, HEAD_NORM_LEFT_OUT))
        m_rmsnorm(m, norm, u, T, in);
    free(pre);
    free(x);
    free(u);
}

void m_head(museum *m, const dsv4_hc *hc, const dsv4_matrix *norm, const dsv4_matrix *head,
            const double *h, int64_t T, double *logits)
{
    double *in = new_array(T * m->config->hidden_size);
    m_head_input(m, hc, norm, h, T, in);
    m_linear_f32(m, head, in, T, logits);
    free(in);
}

/* ---- cases ---- */

static int64_t dim(const dsv4_case *c, const char *name, int i)
{
    return dsv4_case_in(c, name)->shape[i];
}

/* A new output [T, a] or, where b is not 0, [T, a, b]. */
static double *add_out(dsv4_case *answer, const char *name, int64_t T, int64_t a, int64_t b)
{
    return dsv4_case_add_out(answer, name, DSV4_FORMAT_F64, b != 0 ? 3 : 2,
                             (int64_t[]){T, a, b})->data;
}

static void answer_mix(museum *m, const dsv4_case *c, dsv4_case *answer)
{
    int64_t T = dim(c, "x", 0), n = dim(c, "x", 1), D = dim(c, "x", 2);
    const dsv4_hc hc = {dsv4_case_matrix(c, "fn"), dsv4_case_matrix(c, "base"),
                        dsv4_case_matrix(c, "scale")};
    double *x = dsv4_case_values(c, "x");
    double *pre = add_out(answer, "pre", T, n, 0), *post = add_out(answer, "post", T, n, 0);
    double *comb = add_out(answer, "comb", T, n, n);
    for (int64_t t = 0; t < T; t++)
        m_mhc_mix(m, &hc, x + t * n * D, pre + t * n, post + t * n, comb + t * n * n);
    free(x);
}

static void answer_sinkhorn(museum *m, const dsv4_case *c, dsv4_case *answer)
{
    int64_t T = dim(c, "logits", 0), n = dim(c, "logits", 1);
    double *logits = dsv4_case_values(c, "logits"), *comb = add_out(answer, "comb", T, n, n);
    memcpy(comb, logits, (size_t)(T * n * n) * sizeof *comb);
    for (int64_t t = 0; t < T; t++)
        m_mhc_sinkhorn(m, comb + t * n * n);
    free(logits);
}

static void answer_pre(museum *m, const dsv4_case *c, dsv4_case *answer)
{
    int64_t T = dim(c, "x", 0), n = dim(c, "x", 1), D = dim(c, "x", 2);
    double *pre = dsv4_case_values(c, "pre"), *x = dsv4_case_values(c, "x");
    double *u = add_out(answer, "u", T, D, 0);
    for (int64_t t = 0; t < T; t++)
        m_mhc_pre(m, pre + t * n, x + t * n * D, u + t * D);
    free(pre);
    free(x);
}

static void answer_post(museum *m, const dsv4_case *c, dsv4_case *answer)
{
    int64_t T = dim(c, "x", 0), n = dim(c, "x", 1), D = dim(c, "x", 2);
    double *post = dsv4_case_values(c, "post"), *comb = dsv4_case_values(c, "comb");
    double *y = dsv4_case_values(c, "y"), *x = dsv4_case_values(c, "x");
    double *x_new = add_out(answer, "x_new", T, n, D);
    memcpy(x_new, x, (size_t)(T * n * D) * sizeof *x);
    for (int64_t t = 0; t < T; t++)
        m_mhc_post(m, post + t * n, comb + t * n * n, y + t * D, x_new + t * n * D);
    free(post);
    free(comb);
    free(y);
    free(x);
}

static void answer_gate(museum *m, const dsv4_case *c, dsv4_case *answer)
{
    bool hash = dsv4_case_in(c, "tid2eid") != NULL;
    dsv4_layer layer = {.hash = hash};
    layer.ffn.gate.weight = dsv4_case_matrix(c, "weight");
    layer.ffn.gate.bias = dsv4_case_matrix(c, "bias");
    layer.ffn.gate.tid2eid = dsv4_case_matrix(c, "tid2eid");
    int64_t T = dim(c, "x", 0), D = dim(c, "x", 1), E = layer.ffn.gate.weight.rows;
    int64_t k = m->config->num_experts_per_tok;
    double *x = dsv4_case_values(c, "x");
    int64_t *ids = hash ? dsv4_case_indices(c, "token_ids") : NULL;
    int64_t *chosen = dsv4_case_add_out(answer, "route_index", DSV4_FORMAT_I64, 2,
                                        (int64_t[]){T, k})->data;
    double *weight = add_out(answer, "route_weight", T, k, 0);
    double *biased = hash ? NULL : add_out(answer, "biased", T, E, 0);
    for (int64_t t = 0; t < T; t++)
        m_gate(m, &layer, x + t * D, hash ? ids[t] : 0, chosen + t * k, weight + t * k,
               hash ? NULL : biased + t * E);
    free(x);
    free(ids);
}

static void answer_expert(museum *m, const dsv4_case *c, dsv4_case *answer)
{
    int64_t T = dim(c, "x", 0), D = dim(c, "x", 1);
    const dsv4_expert w = {dsv4_case_matrix(c, "w1"), dsv4_case_matrix(c, "w2"),
                           dsv4_case_matrix(c, "w3")};
    double *x = dsv4_case_values(c, "x"), *y = add_out(answer, "y", T, D, 0);
    double *weight = dsv4_case_in(c, "weight") != NULL ? dsv4_case_values(c, "weight") : NULL;
    for (int64_t t = 0; t < T; t++)
        m_expert(m, &w, weight != NULL ? &weight[t] : NULL, x + t * D, y + t * D);
    free(x);
    free(weight);
}

static void answer_moe(museum *m, const dsv4_case *c, dsv4_case *answer)
{
    int64_t T = dim(c, "x", 0), D = dim(c, "x", 1);
    int64_t *ids = dsv4_case_indices(c, "token_ids");
    double *x = dsv4_case_values(c, "x");
    dsv4_layer layer;
    dsv4_case_layer(c, m->config, &layer);
    m_moe(m, &layer, ids, x, T, add_out(answer, "y", T, D, 0));
    dsv4_case_layer_free(&layer);
    free(ids);
    free(x);
}

static void answer_head(museum *m, const dsv4_case *c, dsv4_case *answer)
{
    const dsv4_hc hc = {dsv4_case_matrix(c, "hc_head_fn"), dsv4_case_matrix(c, "hc_head_base"),
                        dsv4_case_matrix(c, "hc_head_scale")};
    dsv4_matrix norm = dsv4_case_matrix(c, "norm"), head = dsv4_case_matrix(c, "head");
    int64_t T = dim(c, "h", 0);
    double *h = dsv4_case_values(c, "h");
    m_head(m, &hc, &norm, &head, h, T, add_out(answer, "logits", T, head.rows, 0));
    free(h);
}

static const struct {
    const char *name;
    void (*answer)(museum *m, const dsv4_case *c, dsv4_case *answer);
    const char *gate; /* its inputs' prefix, where there is a routing */
} mine[] = {
    {"mhc_mix", answer_mix, NULL},   {"mhc_sinkhorn", answer_sinkhorn, NULL},
    {"mhc_pre", answer_pre, NULL},   {"mhc_post", answer_post, NULL},
    {"gate_score", answer_gate, ""}, {"gate_hash", answer_gate, ""},
    {"expert", answer_expert, NULL}, {"moe", answer_moe, "ffn.gate."},
    {"head", answer_head, NULL},
};

static dsv4_matrix gate_part(const dsv4_case *c, const char *prefix, const char *part)
{
    char name[DSV4_NAME];
    snprintf(name, sizeof name, "%s%s", prefix, part);
    return dsv4_case_matrix(c, name);
}

/* What the table of operators does not say: there is a way to choose, and it leads to experts. */
static int check_routing(const museum *m, const dsv4_case *c, const char *prefix, dsv4_error *err)
{
    dsv4_matrix weight = gate_part(c, prefix, "weight"), table = gate_part(c, prefix, "tid2eid");
    bool hash = dsv4_case_param(c, "hash", dsv4_case_in(c, "tid2eid") != NULL) != 0;
    int64_t k = m->config->num_experts_per_tok;
    if (k < 1 || k > weight.rows)
        return dsv4_fail(err, "%s: num_experts_per_tok: expected 1 to %lld, got %lld", c->name,
                         (long long)weight.rows, (long long)k);
    if (!hash && gate_part(c, prefix, "bias").cols != weight.rows)
        return dsv4_fail(err, "%s: %sbias: expected %lld values, got %lld", c->name, prefix,
                         (long long)weight.rows, (long long)gate_part(c, prefix, "bias").cols);
    if (hash && table.cols != k)
        return dsv4_fail(err, "%s: %stid2eid: expected %lld columns, got %lld", c->name, prefix,
                         (long long)k, (long long)table.cols);
    const dsv4_array *ids = dsv4_case_in(c, "token_ids");
    for (int64_t t = 0; hash && t < ids->count; t++)
        if (dsv4_array_value(ids, t) < 0 || dsv4_array_value(ids, t) >= (double)table.rows)
            return dsv4_fail(err, "%s: token_ids: expected 0 to %lld, got %.0f", c->name,
                             (long long)table.rows - 1, dsv4_array_value(ids, t));
    for (int64_t i = 0; hash && i < table.rows * k; i++) {
        int64_t expert = m_integer(&table, i / k, i % k);
        if (expert < 0 || expert >= weight.rows)
            return dsv4_fail(err, "%s: %stid2eid: expected 0 to %lld, got %lld", c->name, prefix,
                             (long long)weight.rows - 1, (long long)expert);
    }
    return 0;
}

int m_answer_mixture(museum *m, const dsv4_case *c, dsv4_case *answer, dsv4_error *err)
{
    for (size_t i = 0; i < sizeof mine / sizeof *mine; i++) {
        if (strcmp(mine[i].name, c->op->name) != 0)
            continue;
        if (mine[i].gate != NULL && check_routing(m, c, mine[i].gate, err) != 0)
            return -1;
        mine[i].answer(m, c, answer);
        return 0;
    }
    return 1;
}
