/* spec/expert.md: one expert, a clamped SwiGLU. */
#include "ref.h"

#include <math.h>
#include <stdlib.h>

/* x [D] -> y [D]. `weight` is the routing weight, NULL for the shared expert. */
void ref_expert(const ref_context *c, const dsv4_expert *w, const double *weight, const double *x,
                double *y)
{
    int64_t I = w->w1.rows;
    double limit = c->config->swiglu_limit;
    double *g = ref_new(I), *v = ref_new(I);
    /* expert.in.1: g = w1 x and v = w3 x. */
    ref_linear(c, &w->w1, x, 1, g);
    ref_linear(c, &w->w3, x, 1, v);
    for (int64_t i = 0; i < I; i++) {
        /* expert.clamp.1: Where swiglu_limit > 0: v is clamped to [-limit, limit], and g to at most
         * limit (not from below). A limit of 0 means no clamp. */
        if (limit > 0) {
            v[i] = v[i] > limit ? limit : v[i] < -limit ? -limit : v[i]; /* a NaN stays */
            g[i] = g[i] > limit ? limit : g[i];
        }
        /* expert.act.1: silu(g) = g / (1 + exp(-g)). */
        double silu = g[i] / (1 + exp(-g[i]));
        /* expert.act.2: The activation is weight silu(g) v. Released: product in binary32, then
         * rounded to bf16. */
        g[i] = ref_bf16(c, (weight != NULL ? *weight : 1) * silu * v[i]);
    }
    /* expert.out.1: The output is w2 applied to the activation. */
    ref_linear(c, &w->w2, g, 1, y);
    free(g);
    free(v);
}
