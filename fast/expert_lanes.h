/* The activation of spec/expert.md in vectors. */
#ifndef DSV4_FAST_EXPERT_LANES_H
#define DSV4_FAST_EXPERT_LANES_H

#include "fast/kernels.h"
#include "fast/lanes.h"

/* expert.act.1, from e^-|g|, which neither overflows nor loses a small result. */
static inline lanes expert_silu(lanes g)
{
    lanes e = lanes_exp(-lanes_abs(g));
    return g * lanes_select(g < 0, e, lanes_all(1)) / (1 + e);
}

/* expert.clamp.1, expert.act.2; a NaN stays. */
static inline lanes expert_activation(lanes g, lanes v, float weight, double limit, bool released)
{
    if (limit > 0) {
        lanes top = lanes_all((float)limit);
        v = lanes_select(v > top, top, v);
        v = lanes_select(v < -top, -top, v);
        g = lanes_select(g > top, top, g);
    }
    lanes activation = weight * expert_silu(g) * v;
    return released ? lanes_bf16(activation) : activation;
}

static void expert_swiglu(float *g, const float *v, float weight, double limit, int64_t I,
                          bool released)
{
    int64_t i = 0;
    for (; i + LANES <= I; i += LANES)
        lanes_store(g + i, expert_activation(lanes_load(g + i), lanes_load(v + i), weight, limit,
                                             released));
    if (i < I)
        lanes_store_some(g + i, I - i,
                         expert_activation(lanes_load_some(g + i, I - i, 0),
                                           lanes_load_some(v + i, I - i, 0), weight, limit,
                                           released));
}

const fast_expert_kernels LEVEL_NAME(fast_expert) = {.swiglu = expert_swiglu};

#endif
