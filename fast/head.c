/* spec/head.md: the streams collapse, and become logits. */
#include "fast/fast.h"

#include <math.h>

void fast_head(const fast_context *c, const dsv4_hc *hc, const dsv4_matrix *norm,
               const dsv4_matrix *head, const float *h, int64_t T, float *logits)
{
    fast_place mark = fast_mark(c->memory);
    int64_t n = c->config->hc_mult, D = c->config->hidden_size;
    float *m = FAST_TAKE(c, float, T * n), *u = FAST_TAKE(c, float, T * D);
    const float *base = fast_vector(c, &hc->base), *scale = fast_vector(c, &hc->scale);
    fast_linear_f32(c, &hc->fn, h, T, m);
    for (int64_t t = 0; t < T; t++) {
        /* head.mix.1 */
        double mean = fast_mean_square(c, h + t * n * D, n * D);
        float r = (float)(1 / sqrt(mean + c->config->rms_norm_eps));
        /* head.mix.2: one scale serves all streams. */
        for (int64_t j = 0; j < n; j++)
            m[t * n + j] = 1 / (1 + expf(-(m[t * n + j] * r * scale[0] + base[j]))) +
                           (float)c->config->hc_eps;
    }
    fast_mhc_pre(c, m, h, T, u); /* head.collapse.1 */
    fast_rmsnorm(c, norm, u, T, u); /* head.norm.1 */
    fast_linear_f32(c, head, u, T, logits); /* head.logits.1 */
    fast_release(c->memory, mark);
}
