/* spec/head.md: the streams collapse, and become logits. */
#include "ref.h"

#include <math.h>
#include <stdlib.h>

/* h [T, n, D] -> logits [T, V]. */
void ref_head(const ref_context *c, const dsv4_hc *hc, const dsv4_matrix *norm,
              const dsv4_matrix *head, const double *h, int64_t T, double *logits)
{
    int64_t n = c->config->hc_mult, D = c->config->hidden_size;
    double *m = ref_new(n), *pre = ref_new(n), *u = ref_new(T * D);
    double *base = ref_vector(c, &hc->base), *scale = ref_vector(c, &hc->scale);
    for (int64_t t = 0; t < T; t++) {
        const double *x = h + t * n * D;
        /* head.mix.1: m = (hc_head_fn f) / sqrt(mean(f^2) + rms_norm_eps), f the nD values of a
         * token's streams. Released: the reciprocal root and m are binary32 numbers. */
        ref_linear_f32(c, &hc->fn, x, 1, m);
        double squares = 0;
        for (int64_t i = 0; i < n * D; i++)
            squares += x[i] * x[i];
        double r = ref_f32(c, 1 / sqrt(squares / (double)(n * D) + c->config->rms_norm_eps));
        for (int64_t j = 0; j < n; j++)
            m[j] = ref_f32(c, m[j] * r);
        /* head.mix.2: pre[j] = sigmoid(m[j] hc_head_scale + hc_head_base[j]) + hc_eps. One scale
         * serves all streams. */
        for (int64_t j = 0; j < n; j++)
            pre[j] = 1 / (1 + exp(-(m[j] * scale[0] + base[j]))) + c->config->hc_eps;
        /* head.collapse.1: u = sum_j pre[j] x[j]. Released: rounded to bf16. */
        ref_mhc_pre(c, pre, x, u + t * D);
    }
    /* head.norm.1: u is normalised by RMSNorm with norm.weight: after the collapse, not before. */
    ref_rmsnorm(c, norm, u, T, u);
    /* head.logits.1: logits = head.weight u, a binary32 map (linear.f32.1). */
    ref_linear_f32(c, head, u, T, logits);
    free(m);
    free(pre);
    free(u);
    free(base);
    free(scale);
}
