/* spec/hadamard.md in vectors. */
#ifndef DSV4_FAST_HADAMARD_LANES_H
#define DSV4_FAST_HADAMARD_LANES_H

#include <math.h>

#include "fast/kernels.h"
#include "fast/lanes.h"

/* Sums and differences of lanes `half` apart: `swapped` has lane i ^ half, and the lane whose
 * bit is set is the one to be taken off. */
static inline lanes hadamard_step(lanes v, lanes swapped, int half)
{
    lanes_int minus;
    for (int i = 0; i < LANES; i++)
        minus[i] = (i & half) != 0 ? INT32_MIN : 0;
    return swapped + (lanes)((lanes_int)v ^ minus);
}

static inline lanes hadamard_within(lanes v)
{
    v = hadamard_step(v, lanes_swap1(v), 1);
    v = hadamard_step(v, lanes_swap2(v), 2);
#if LANES >= 8
    v = hadamard_step(v, lanes_swap4(v), 4);
#endif
#if LANES >= 16
    v = hadamard_step(v, lanes_swap8(v), 8);
#endif
    return v;
}

static void hadamard_narrow(float *x, int64_t width)
{
    for (int64_t half = 1; half < width; half *= 2)
        for (int64_t first = 0; first < width; first += 2 * half)
            for (int64_t i = first; i < first + half; i++) {
                float a = x[i], b = x[i + half];
                x[i] = a + b;
                x[i + half] = a - b;
            }
}

static void hadamard_wide(float *x, int64_t width)
{
    for (int64_t i = 0; i < width; i += LANES)
        lanes_store(x + i, hadamard_within(lanes_load(x + i)));
    for (int64_t half = LANES; half < width; half *= 2)
        for (int64_t first = 0; first < width; first += 2 * half)
            for (int64_t i = first; i < first + half; i += LANES) {
                lanes a = lanes_load(x + i), b = lanes_load(x + i + half);
                lanes_store(x + i, a + b);
                lanes_store(x + i + half, a - b);
            }
}

/* hadamard.order.1, hadamard.scale.1 */
static void hadamard_transform(float *x, int64_t width, bool released)
{
    float factor = (float)(1 / sqrt((double)width));
    if (width < LANES) {
        hadamard_narrow(x, width);
        for (int64_t i = 0; i < width; i++)
            x[i] = released ? lanes_bf16_one(x[i] * factor) : x[i] * factor;
        return;
    }
    hadamard_wide(x, width);
    for (int64_t i = 0; i < width; i += LANES) {
        lanes v = lanes_load(x + i) * factor;
        lanes_store(x + i, released ? lanes_bf16(v) : v);
    }
}

const fast_hadamard_kernels LEVEL_NAME(fast_hadamard) = {.transform = hadamard_transform};

#endif
