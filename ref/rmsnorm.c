/* spec/rmsnorm.md: root-mean-square normalisation, with a weight, and per query head without. */
#include "ref.h"

#include <math.h>
#include <stdlib.h>

/* x [T, cols], y [T, cols]; w is a vector [cols]. */
void ref_rmsnorm(const ref_context *c, const dsv4_matrix *w, const double *x, int64_t T, double *y)
{
    int64_t width = w->cols;
    double *weight = ref_vector(c, w);
    for (int64_t t = 0; t < T; t++, x += width, y += width) {
        /* rmsnorm.weight.1: r is 1 / sqrt(mean(x^2) + rms_norm_eps), the mean of the squares: the
         * eps stands inside the root. */
        double squares = 0;
        for (int64_t i = 0; i < width; i++)
            squares += x[i] * x[i];
        double r = ref_f32(c, 1 / sqrt(squares / (double)width + c->config->rms_norm_eps));
        /* rmsnorm.weight.2: y_i = (x_i r) w_i. Released: r, x_i r and the product with w_i are
         * binary32, and only the last is then rounded to bf16. */
        for (int64_t i = 0; i < width; i++)
            y[i] = ref_bf16(c, ref_f32(c, ref_f32(c, x[i] * r) * weight[i]));
    }
    free(weight);
}

/* x [count, d], in place. */
void ref_rmsnorm_head(const ref_context *c, double *x, int64_t count)
{
    int64_t d = c->config->head_dim;
    for (int64_t h = 0; h < count; h++, x += d) {
        /* rmsnorm.head.1: Each query head x becomes x / sqrt(mean(x^2) + rms_norm_eps), without a
         * weight. */
        /* rmsnorm.head.2: Released: each square, their mean (of a binary32 sum), mean + eps, the
         * reciprocal root, and each product are rounded to bf16. */
        double squares = 0;
        for (int64_t i = 0; i < d; i++)
            squares += ref_bf16(c, x[i] * x[i]);
        double mean = ref_bf16(c, squares / (double)d);
        double r = ref_bf16(c, 1 / sqrt(ref_bf16(c, mean + c->config->rms_norm_eps)));
        for (int64_t i = 0; i < d; i++)
            x[i] = ref_bf16(c, x[i] * r);
    }
}
