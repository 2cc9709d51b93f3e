/* Products with stored weights, for any processor. */
#include "fast/kernels.h"
#include "fast/lanes.h"

#define FP8_FACTOR 1.0f
#define ARRANGE_FP4 NULL

static inline lanes_int widen_bytes(const uint8_t *p)
{
    return (lanes_int){p[0], p[1], p[2], p[3]};
}

static inline lanes decode_bf16(const unsigned char *p)
{
    uint16_t v[LANES];
    memcpy(v, p, sizeof v);
    return (lanes)((lanes_int){v[0], v[1], v[2], v[3]} << 16);
}

/* The bits of a code are moved to where a binary32 number has them, and the difference of the
 * biases is made up for by a product, which is exact. */
static inline lanes decode_f16(const unsigned char *p)
{
    uint16_t v[LANES];
    memcpy(v, p, sizeof v);
    lanes_int bits = {v[0], v[1], v[2], v[3]}, magnitude = bits & 0x7fff;
    lanes number = (lanes)(magnitude << 13) * 0x1p112f;
    number = lanes_select(magnitude >= 0x7c00, (lanes)(magnitude << 13 | 0x7f800000), number);
    return (lanes)((lanes_int)number | (bits & 0x8000) << 16);
}

/* quant.e4m3.1, quant.fp8.1 */
static inline void decode_fp8(const unsigned char *p, lanes w[4])
{
    for (int j = 0; j < 4; j++) {
        lanes_int bits = widen_bytes(p + LANES * j);
        bits = (bits & 0x80) << 24 | (bits & 0x7f) << 20;
        w[j] = (lanes)bits * 0x1p120f;
    }
}

/* quant.e2m1.1, quant.fp4.1 */
static inline void decode_fp4(const unsigned char *p, float scale, lanes w[8])
{
    static const float value[16] = {0,   0.5f,  1,  1.5f,  2,  3,  4,  6,
                                    -0.f, -0.5f, -1, -1.5f, -2, -3, -4, -6};
    for (int j = 0; j < 8; j++, p += 2)
        w[j] = (lanes){value[p[0] & 15], value[p[0] >> 4], value[p[1] & 15], value[p[1] >> 4]} *
               scale;
}

static inline lanes_codes larger_codes(lanes_codes a, lanes_codes b)
{
    lanes_codes first = (lanes_codes)(a > b);
    return (a & first) | (b & ~first);
}

static inline float total(lanes v)
{
    return lanes_sum(v);
}

#include "fast/linear_lanes.h"
