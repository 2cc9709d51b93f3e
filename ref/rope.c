/* spec/rope.md: rotary positions on the last R values of a vector, and YaRN. */
#include "ref.h"

#include <math.h>

static const double pi = 3.14159265358979323846;

/* The index of the pair that turns `rotations` times over the original context. */
static double yarn_pair(const dsv4_config *config, double rotations)
{
    double R = (double)config->qk_rope_head_dim;
    return R * log(config->rope_scaling.original_max_position_embeddings / (2 * pi * rotations)) /
           (2 * log(config->compress_rope_theta));
}

void ref_rope_frequencies(const ref_context *c, bool compressed, double *freq)
{
    const dsv4_config *config = c->config;
    int64_t R = config->qk_rope_head_dim;
    /* rope.theta.1: SWA layers use rope_theta. CSA and HCA layers use compress_rope_theta for all
     * they rotate: queries, window keys, compressed entries, indexer queries and keys. */
    double theta = compressed ? config->compress_rope_theta : config->rope_theta;
    for (int64_t i = 0; i < R / 2; i++) {
        /* rope.freq.1: freq_i = 1 / p_i with p_i = theta^(2i/R), i = 0..R/2-1. Released: p_i is the
         * correctly rounded binary32 number, and the quotient is binary32. */
        double p = ref_f32(c, pow(theta, 2 * (double)i / (double)R));
        freq[i] = ref_f32(c, 1 / p);
    }
    /* rope.yarn.1: YaRN changes the frequencies of CSA and HCA layers, at every sequence length.
     * Without rope_scaling, or with an original length of 0, and in SWA layers, they stay as they
     * are. */
    if (!compressed || !config->rope_scaling.present) /* nor is an original length of 0: config.rope.3 */
        return;
    /* rope.yarn.2: lo = max(floor(c(beta_fast)), 0) and hi = min(ceil(c(beta_slow)), R - 1), though
     * there are R/2 pairs only; where hi - lo is 0 it is replaced by 0.001. */
    double lo = fmax(floor(yarn_pair(config, config->rope_scaling.beta_fast)), 0);
    double hi = fmin(ceil(yarn_pair(config, config->rope_scaling.beta_slow)), (double)(R - 1));
    double span = hi - lo != 0 ? hi - lo : 0.001;
    for (int64_t i = 0; i < R / 2; i++) {
        /* rope.yarn.3: ramp_i = (i - lo) / (hi - lo), clamped to [0, 1]. Released: in binary32. */
        double ramp = ref_f32(c, fmin(fmax(((double)i - lo) / span, 0), 1));
        /* rope.yarn.4: freq_i becomes (freq_i / factor) ramp_i + freq_i (1 - ramp_i). Released:
         * each operation in binary32. */
        double slow = ref_f32(c, ref_f32(c, freq[i] / config->rope_scaling.factor) * ramp);
        double fast = ref_f32(c, freq[i] * ref_f32(c, 1 - ramp));
        freq[i] = ref_f32(c, slow + fast);
    }
}

static void rotate(const ref_context *c, const double *freq, int64_t position, double direction,
                   double *x, int64_t width)
{
    int64_t R = c->config->qk_rope_head_dim;
    /* rope.last.1: The last R values of the vector are rotated; those before stay. */
    double *pair = x + width - R;
    for (int64_t i = 0; i < R / 2; i++, pair += 2) {
        /* rope.angle.1: angle_i = position freq_i. Released: the product, its cosine and its sine
         * are binary32 numbers. */
        double angle = ref_f32(c, (double)position * freq[i]);
        /* rope.angle.2: Cosine and sine are not scaled: there is no attention temperature (mscale)
         * anywhere. */
        double cosine = ref_f32(c, cos(angle));
        double sine = direction * ref_f32(c, sin(angle));
        /* rope.rotate.1: Pairs are interleaved: (x, y) = (x[2i], x[2i+1]) becomes (x cos - y sin, x
         * sin + y cos). */
        double first = pair[0] * cosine - pair[1] * sine;
        double second = pair[0] * sine + pair[1] * cosine;
        /* rope.rotate.2: Released: the rotated values are rounded to bf16. */
        pair[0] = ref_bf16(c, first);
        pair[1] = ref_bf16(c, second);
    }
}

/* x [width], in place; `position` is absolute. */
void ref_rope(const ref_context *c, const double *freq, int64_t position, double *x, int64_t width)
{
    rotate(c, freq, position, 1, x, width);
}

void ref_rope_inverse(const ref_context *c, const double *freq, int64_t position, double *x,
                      int64_t width)
{
    /* rope.inverse.1: The inverse rotation is the one by the negative angle. */
    rotate(c, freq, position, -1, x, width);
}
