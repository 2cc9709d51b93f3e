/* spec/rope.md: rotary positions on the last R values of a vector, and YaRN. */
#include "fast/fast.h"

#include <math.h>

/* What is a binary32 number in RELEASED and is not rounded in EXACT, where a position of a
 * million leaves binary32 too few bits of an angle. */
static double binary32(const fast_context *c, double x)
{
    return c->released ? (double)(float)x : x;
}

/* The index, not whole, of the pair that turns `turns` times over the original context. */
static double pair_that_turns(const dsv4_config *config, double turns)
{
    static const double pi = 3.14159265358979323846;
    double length = config->rope_scaling.original_max_position_embeddings;
    return (double)config->qk_rope_head_dim * log(length / (2 * pi * turns)) /
           (2 * log(config->compress_rope_theta));
}

/* rope.yarn.2 to 4 */
static void slow_down(const fast_context *c, double *freq)
{
    int64_t R = c->config->qk_rope_head_dim;
    double lo = fmax(floor(pair_that_turns(c->config, c->config->rope_scaling.beta_fast)), 0);
    double hi = fmin(ceil(pair_that_turns(c->config, c->config->rope_scaling.beta_slow)),
                     (double)(R - 1));
    double span = hi == lo ? 0.001 : hi - lo;
    for (int64_t i = 0; i < R / 2; i++) {
        double ramp = binary32(c, fmax(0, fmin(1, ((double)i - lo) / span)));
        double slowed = binary32(c, freq[i] / c->config->rope_scaling.factor);
        double left = binary32(c, freq[i] * binary32(c, 1 - ramp));
        freq[i] = binary32(c, binary32(c, slowed * ramp) + left);
    }
}

void fast_rope_frequencies(const fast_context *c, bool compressed, double *freq)
{
    int64_t R = c->config->qk_rope_head_dim;
    double theta = compressed ? c->config->compress_rope_theta : c->config->rope_theta;
    for (int64_t i = 0; i < R / 2; i++) /* rope.freq.1 */
        freq[i] = binary32(c, 1 / binary32(c, pow(theta, (double)(2 * i) / (double)R)));
    if (compressed && c->config->rope_scaling.present) /* rope.yarn.1 */
        slow_down(c, freq);
}

typedef struct {
    const fast_context *c;
    const double *freq;
    const int64_t *position;
    int64_t T;
    float *angles;
} angle_loop;

enum { ROWS = 32 }; /* of an item of the pool */

/* rope.angle.1 and 2 */
static void angle_part(void *context, int64_t item, int worker)
{
    const angle_loop *loop = context;
    (void)worker;
    int64_t R = loop->c->config->qk_rope_head_dim;
    for (int64_t t = item * ROWS; t < (item + 1) * ROWS && t < loop->T; t++)
        for (int64_t i = 0; i < R / 2; i++) {
            double angle = binary32(loop->c, (double)loop->position[t] * loop->freq[i]);
            loop->angles[t * R + 2 * i] = (float)cos(angle);
            loop->angles[t * R + 2 * i + 1] = (float)sin(angle);
        }
}

void fast_rope_angles(const fast_context *c, const double *freq, const int64_t *position, int64_t T,
                      float *angles)
{
    angle_loop loop = {.c = c, .freq = freq, .position = position, .T = T, .angles = angles};
    fast_pool_run(c->pool, (T + ROWS - 1) / ROWS, angle_part, &loop);
}

void fast_rope(const fast_context *c, const float *angles, bool inverse, float *x, int64_t width,
               int64_t count)
{
    int64_t R = c->config->qk_rope_head_dim;
    for (int64_t i = 0; i < count; i++) /* rope.last.1 */
        c->kernels->rope->rotate(angles, inverse, R, c->released, x + i * width + (width - R));
}
