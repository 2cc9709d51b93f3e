/* spec/rmsnorm.md in vectors. */
#ifndef DSV4_FAST_RMSNORM_LANES_H
#define DSV4_FAST_RMSNORM_LANES_H

#include <math.h>

#include "fast/kernels.h"
#include "fast/lanes.h"

/* The mean of the squares. Where squares leave the range in which binary32 is precise, which
 * only an eps of 0 or a huge activation shows, they are summed in binary64. */
static double rmsnorm_mean(const float *x, int64_t width)
{
    double sum = lanes_squares(x, width);
    if (!(sum > 0x1p-80 && isfinite(sum))) {
        sum = 0;
        for (int64_t i = 0; i < width; i++)
            sum += (double)x[i] * x[i];
    }
    return sum / (double)width;
}

/* rmsnorm.weight.1 and 2 */
static void rmsnorm_weighted(const float *x, const float *w, int64_t width, double eps,
                             bool released, float *y)
{
    float r = (float)(1 / sqrt(rmsnorm_mean(x, width) + eps));
    for (int64_t i = 0; i < width; i += LANES) {
        bool whole = i + LANES <= width;
        lanes v = whole ? lanes_load(x + i) : lanes_load_some(x + i, width - i, 0);
        lanes weight = whole ? lanes_load(w + i) : lanes_load_some(w + i, width - i, 0);
        v = v * r * weight;
        v = released ? lanes_bf16(v) : v;
        if (whole)
            lanes_store(y + i, v);
        else
            lanes_store_some(y + i, width - i, v);
    }
}

/* The sum of the squares, each rounded to bf16. */
static float rmsnorm_rounded_squares(const float *x, int64_t width)
{
    lanes sum[2] = {{0}};
    for (int64_t i = 0, j = 0; i < width; i += LANES, j ^= 1) {
        lanes v = i + LANES <= width ? lanes_load(x + i) : lanes_load_some(x + i, width - i, 0);
        sum[j] += lanes_bf16(v * v);
    }
    return lanes_sum(sum[0] + sum[1]);
}

/* rmsnorm.head.1 and 2 */
static void rmsnorm_head(float *x, int64_t width, double eps, bool released)
{
    float r;
    if (released) {
        float mean = lanes_bf16_one(rmsnorm_rounded_squares(x, width) / (float)width);
        r = lanes_bf16_one((float)(1 / sqrt(lanes_bf16_one((float)(mean + eps)))));
    } else {
        r = (float)(1 / sqrt(rmsnorm_mean(x, width) + eps));
    }
    for (int64_t i = 0; i < width; i += LANES) {
        bool whole = i + LANES <= width;
        lanes v = (whole ? lanes_load(x + i) : lanes_load_some(x + i, width - i, 0)) * r;
        v = released ? lanes_bf16(v) : v;
        if (whole)
            lanes_store(x + i, v);
        else
            lanes_store_some(x + i, width - i, v);
    }
}

const fast_rmsnorm_kernels LEVEL_NAME(fast_rmsnorm) = {.rmsnorm = rmsnorm_weighted,
                                                       .head = rmsnorm_head};

#endif
