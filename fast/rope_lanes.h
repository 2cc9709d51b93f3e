/* spec/rope.md in vectors. */
#ifndef DSV4_FAST_ROPE_LANES_H
#define DSV4_FAST_ROPE_LANES_H

#include "fast/kernels.h"
#include "fast/lanes.h"

/* A lane of x, y, x, y .. with cos, sin, cos, sin ..: x cos + y (-sin), y cos + x sin. The
 * inverse turns the signs. rope.rotate.1, rope.rotate.2, rope.inverse.1 */
static inline lanes rope_turn(lanes angles, lanes v, lanes sign, bool released)
{
    lanes turned = lanes_fma(v, lanes_even(angles), lanes_swap1(v) * (lanes_odd(angles) * sign));
    return released ? lanes_bf16(turned) : turned;
}

static void rope_rotate(const float *angles, bool inverse, int64_t R, bool released, float *x)
{
    lanes sign;
    for (int i = 0; i < LANES; i++)
        sign[i] = (i % 2 == 0) != inverse ? -1 : 1;
    int64_t i = 0;
    for (; i + LANES <= R; i += LANES)
        lanes_store(x + i, rope_turn(lanes_load(angles + i), lanes_load(x + i), sign, released));
    if (i < R)
        lanes_store_some(x + i, R - i,
                         rope_turn(lanes_load_some(angles + i, R - i, 0),
                                   lanes_load_some(x + i, R - i, 0), sign, released));
}

const fast_rope_kernels LEVEL_NAME(fast_rope) = {.rotate = rope_rotate};

#endif
