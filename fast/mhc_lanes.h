/* Collapse and spread of the streams, spec/mhc.md, in vectors. */
#ifndef DSV4_FAST_MHC_LANES_H
#define DSV4_FAST_MHC_LANES_H

#include "fast/kernels.h"
#include "fast/lanes.h"

enum { MHC_STREAMS = 256 }; /* as many as a configuration may have */

static inline lanes mhc_load(const float *p, int64_t count)
{
    return count >= LANES ? lanes_load(p) : lanes_load_some(p, count, 0);
}

static inline void mhc_store(float *p, int64_t count, lanes v, bool released)
{
    v = released ? lanes_bf16(v) : v;
    if (count >= LANES)
        lanes_store(p, v);
    else
        lanes_store_some(p, count, v);
}

/* mhc.pre.1 and 2; where n is a constant the loop over the streams vanishes. */
static inline void mhc_collapse(const float *pre, const float *x, int64_t n, int64_t D,
                                bool released, float *u)
{
    for (int64_t i = 0; i < D; i += LANES) {
        lanes sum = pre[0] * mhc_load(x + i, D - i);
        for (int64_t j = 1; j < n; j++)
            sum = lanes_fma(lanes_all(pre[j]), mhc_load(x + j * D + i, D - i), sum);
        mhc_store(u + i, D - i, sum, released);
    }
}

/* mhc.post.1 and 2 */
static inline void mhc_spread(const float *post, const float *comb, const float *y, int64_t n,
                              int64_t D, bool released, float *x)
{
    lanes before[MHC_STREAMS];
    for (int64_t i = 0; i < D; i += LANES) {
        lanes out = mhc_load(y + i, D - i);
        for (int64_t j = 0; j < n; j++)
            before[j] = mhc_load(x + j * D + i, D - i);
        for (int64_t k = 0; k < n; k++) {
            lanes sum = post[k] * out;
            for (int64_t j = 0; j < n; j++)
                sum = lanes_fma(lanes_all(comb[j * n + k]), before[j], sum);
            mhc_store(x + k * D + i, D - i, sum, released);
        }
    }
}

static void mhc_pre(const float *pre, const float *x, int64_t n, int64_t D, bool released, float *u)
{
    if (n == 4)
        mhc_collapse(pre, x, 4, D, released, u);
    else
        mhc_collapse(pre, x, n, D, released, u);
}

static void mhc_post(const float *post, const float *comb, const float *y, int64_t n, int64_t D,
                     bool released, float *x)
{
    if (n == 4)
        mhc_spread(post, comb, y, 4, D, released, x);
    else
        mhc_spread(post, comb, y, n, D, released, x);
}

const fast_mhc_kernels LEVEL_NAME(fast_mhc) = {.squares = lanes_squares, .pre = mhc_pre,
                                               .post = mhc_post};

#endif
