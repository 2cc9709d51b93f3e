/* spec/mhc.md: manifold-constrained hyper-connections: n residual streams around each sublayer.
 * All functions work on one token, x [n, D]. */
#include "ref.h"

#include <math.h>
#include <stdlib.h>

static double sigmoid(double x)
{
    return 1 / (1 + exp(-x));
}

/* -> pre [n], post [n], comb [n, n]. */
void ref_mhc_mix(const ref_context *c, const dsv4_hc *hc, const double *x, double *pre,
                 double *post, double *comb)
{
    int64_t n = c->config->hc_mult, nD = n * c->config->hidden_size;
    double hc_eps = c->config->hc_eps;
    double *m = ref_new((2 + n) * n);
    double *base = ref_vector(c, &hc->base), *scale = ref_vector(c, &hc->scale);

    /* mhc.mix.1: m = (fn f) / sqrt(mean(f^2) + rms_norm_eps): one norm over all nD values, without
     * a weight. Its (2 + n) n values are n for pre, n for post, and n n for C, row-major [j, k];
     * base has the same layout. Released: the reciprocal root and m are binary32 numbers. */
    ref_linear_f32(c, &hc->fn, x, 1, m);
    double squares = 0;
    for (int64_t i = 0; i < nD; i++)
        squares += x[i] * x[i];
    double r = ref_f32(c, 1 / sqrt(squares / (double)nD + c->config->rms_norm_eps));
    for (int64_t i = 0; i < (2 + n) * n; i++)
        m[i] = ref_f32(c, m[i] * r);
    /* mhc.mix.2: pre[j] = sigmoid(m[j] scale[0] + base[j]) + hc_eps. */
    for (int64_t j = 0; j < n; j++)
        pre[j] = sigmoid(m[j] * scale[0] + base[j]) + hc_eps;
    /* mhc.mix.3: post[j] = 2 sigmoid(m[n + j] scale[1] + base[n + j]): a factor 2, and no eps. */
    for (int64_t j = 0; j < n; j++)
        post[j] = 2 * sigmoid(m[n + j] * scale[1] + base[n + j]);
    /* mhc.mix.4: C[j, k] starts as m[2n + n j + k] scale[2] + base[2n + n j + k]. */
    for (int64_t i = 0; i < n * n; i++)
        comb[i] = m[2 * n + i] * scale[2] + base[2 * n + i];
    ref_mhc_sinkhorn(c, comb);

    free(m);
    free(base);
    free(scale);
}

static void divide_rows(double *C, int64_t n, double eps)
{
    for (int64_t j = 0; j < n; j++) {
        double sum = eps;
        for (int64_t k = 0; k < n; k++)
            sum += C[j * n + k];
        for (int64_t k = 0; k < n; k++)
            C[j * n + k] /= sum;
    }
}

static void divide_columns(double *C, int64_t n, double eps)
{
    for (int64_t k = 0; k < n; k++) {
        double sum = eps;
        for (int64_t j = 0; j < n; j++)
            sum += C[j * n + k];
        for (int64_t j = 0; j < n; j++)
            C[j * n + k] /= sum;
    }
}

/* comb [n, n], in place: logits -> a matrix whose columns sum to 1 and whose rows nearly do. */
void ref_mhc_sinkhorn(const ref_context *c, double *comb)
{
    int64_t n = c->config->hc_mult;
    double hc_eps = c->config->hc_eps;
    /* mhc.sinkhorn.1: Each row j of C becomes its softmax over k, plus hc_eps on every element. */
    for (int64_t j = 0; j < n; j++) {
        double *row = comb + j * n, top = row[0], sum = 0;
        for (int64_t k = 1; k < n; k++)
            top = fmax(top, row[k]);
        for (int64_t k = 0; k < n; k++)
            sum += row[k] = exp(row[k] - top);
        for (int64_t k = 0; k < n; k++)
            row[k] = row[k] / sum + hc_eps;
    }
    /* mhc.sinkhorn.2: Then C[j, k] is divided by its column's sum over j, plus hc_eps. */
    divide_columns(comb, n, hc_eps);
    /* mhc.sinkhorn.3: Then, hc_sinkhorn_iters - 1 times: each element is divided by its row's sum +
     * hc_eps, then by its column's sum + hc_eps. */
    for (int64_t i = 1; i < c->config->hc_sinkhorn_iters; i++) {
        divide_rows(comb, n, hc_eps);
        divide_columns(comb, n, hc_eps);
    }
}

/* -> u [D]. */
void ref_mhc_pre(const ref_context *c, const double *pre, const double *x, double *u)
{
    int64_t n = c->config->hc_mult, D = c->config->hidden_size;
    for (int64_t i = 0; i < D; i++) {
        double sum = 0;
        /* mhc.pre.1: The sublayer's input before its norm is u = sum_j pre[j] x[j]. */
        for (int64_t j = 0; j < n; j++)
            sum += pre[j] * x[j * D + i];
        /* mhc.pre.2: Released: u is rounded to bf16. */
        u[i] = ref_bf16(c, sum);
    }
}

/* y [D], the sublayer's output; x [n, D], the streams before it, replaced by those after it. */
void ref_mhc_post(const ref_context *c, const double *post, const double *comb, const double *y,
                  double *x)
{
    int64_t n = c->config->hc_mult, D = c->config->hidden_size;
    double *before = ref_new(n);
    for (int64_t i = 0; i < D; i++) {
        for (int64_t j = 0; j < n; j++)
            before[j] = x[j * D + i];
        for (int64_t k = 0; k < n; k++) {
            /* mhc.post.1: The new stream k is post[k] y + sum_j C[j, k] x[j]: the sum runs over the
             * first index of C (C transposed times x), over the streams as they were before the
             * sublayer. */
            double sum = post[k] * y[i];
            for (int64_t j = 0; j < n; j++)
                sum += comb[j * n + k] * before[j];
            /* mhc.post.2: Released: the new streams are rounded to bf16. */
            x[k * D + i] = ref_bf16(c, sum);
        }
    }
    free(before);
}
