/* spec/compressor.md in vectors: the pooling of one entry, channels side by side. */
#ifndef DSV4_FAST_COMPRESSOR_LANES_H
#define DSV4_FAST_COMPRESSOR_LANES_H

#include "fast/kernels.h"
#include "fast/lanes.h"

#include <math.h>

/* A whole vector, or the first `count` channels of one. */
static inline lanes compressor_load(const float *p, int64_t count)
{
    return count >= LANES ? lanes_load(p) : lanes_load_some(p, count, 0);
}

/* `vectors` vectors of channels from `channel` on; the last may reach beyond the end. Items are
 * added in their order, whatever the vectors. compressor.softmax.1 */
static inline __attribute__((always_inline)) void
compressor_pool_part(const float *const *a, const float *const *z, int64_t items, int64_t head,
                     int64_t channel, int vectors, float *entry)
{
    lanes top[4], sum[4] = {{0}}, pooled[4] = {{0}};
#pragma GCC unroll 4
    for (int v = 0; v < vectors; v++)
        top[v] = lanes_all(-INFINITY);
    for (int64_t i = 0; i < items; i++)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) {
            int64_t at = channel + v * LANES;
            top[v] = lanes_max(compressor_load(z[i] + at, head - at), top[v]); /* passes NaN over */
        }
    for (int64_t i = 0; i < items; i++)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) {
            int64_t at = channel + v * LANES;
            lanes p = lanes_exp(compressor_load(z[i] + at, head - at) - top[v]);
            sum[v] += p;
            pooled[v] = lanes_fma(p, compressor_load(a[i] + at, head - at), pooled[v]);
        }
#pragma GCC unroll 4
    for (int v = 0; v < vectors; v++) {
        int64_t at = channel + v * LANES;
        lanes_store_some(entry + at, head - at < LANES ? head - at : LANES, pooled[v] / sum[v]);
    }
}

static void compressor_pool(const float *const *a, const float *const *z, int64_t items,
                            int64_t head, float *entry)
{
    int64_t channel = 0;
    for (; channel + 4 * LANES <= head; channel += 4 * LANES) /* whole cache lines of every item */
        compressor_pool_part(a, z, items, head, channel, 4, entry);
    for (; channel < head; channel += LANES)
        compressor_pool_part(a, z, items, head, channel, 1, entry);
}

const fast_compressor_kernels LEVEL_NAME(fast_compressor) = {compressor_pool};

#endif
