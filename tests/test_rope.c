/* spec/rope.md: frequencies, YaRN and the rotation, in both contracts. */
#include "small.h"

#include <math.h>
#include <string.h>

static const long double pi = 3.141592653589793238462643383279502884L;

/* covers: rope.theta.1 rope.freq.1 */
static void frequencies_by_hand(void **state)
{
    small *s = *state;
    double freq[4];
    s->config.rope_scaling.present = false;
    s->config.rope_theta = 10000;
    s->config.compress_rope_theta = 160000;
    ref_rope_frequencies(&s->c, false, freq);
    small_near(s, freq, ((double[]){1, 0.1, 0.01, 0.001}), 4, 1e-16);
    ref_rope_frequencies(&s->c, true, freq);
    small_near(s, freq, ((double[]){1, 0.05, 0.0025, 0.000125}), 4, 1e-16);
    s->c.numerics = DSV4_RELEASED;
    ref_rope_frequencies(&s->c, false, freq);
    small_same(s, freq, ((double[]){1, 0.1f, 0.01f, 0.001f}), 4);
}

/* covers: rope.freq.1 */
static void released_frequencies(void **state)
{
    static const double theta[3] = {10000, 160000, 40000};
    static const int64_t R[3] = {64, 64, 46}; /* 2i/46 is no binary number */
    small *s = *state;
    s->c.numerics = DSV4_RELEASED;
    for (int k = 0; k < 3; k++) {
        double freq[32], want[32];
        s->config.rope_theta = theta[k];
        s->config.qk_rope_head_dim = R[k];
        for (int64_t i = 0; i < R[k] / 2; i++) {
            float p = (float)expl(logl(theta[k]) * 2 * i / R[k]);
            want[i] = 1.0f / p;
        }
        ref_rope_frequencies(&s->c, false, freq);
        small_same(s, freq, want, R[k] / 2);
    }
}

/* Flash: c(32) = 15.45 and c(1) = 24.71, so lo = 15 and hi = 25. */
/* covers: rope.yarn.1 rope.yarn.2 rope.yarn.3 rope.yarn.4 */
static void yarn_of_flash(void **state)
{
    small *s = *state;
    double freq[32], plain[32];
    s->config.qk_rope_head_dim = 64;
    for (s->c.numerics = DSV4_EXACT; s->c.numerics <= DSV4_RELEASED; s->c.numerics++) {
        s->config.rope_scaling.present = true;
        ref_rope_frequencies(&s->c, true, freq);
        s->config.rope_scaling.present = false;
        ref_rope_frequencies(&s->c, true, plain);
        small_same(s, freq, plain, 16);
        for (int i = 16; i < 25; i++) {
            double slow = (i - 15) / 10.0;
            small_about(s, freq[i] / plain[i], slow / 16 + (1 - slow), 3e-7);
        }
        for (int i = 25; i < 32; i++)
            small_is(s, freq[i], plain[i] / 16);
        small_about(s, freq[20], 0.53125 * pow(160000, -0.625), 1e-10);
    }
}

/* The definition in long double, or, where released, in the machine's binary32. */
static void yarn_directly(const small *s, double *freq)
{
    const dsv4_config *config = &s->config;
    int R = (int)config->qk_rope_head_dim;
    long double theta = config->compress_rope_theta;
    long double original = config->rope_scaling.original_max_position_embeddings;
    long double fast = log2l(original / (2 * pi * config->rope_scaling.beta_fast)) / log2l(theta);
    long double slow = log2l(original / (2 * pi * config->rope_scaling.beta_slow)) / log2l(theta);
    double lo = (double)floorl(fast * R / 2), hi = (double)ceill(slow * R / 2);
    lo = lo < 0 ? 0 : lo;
    hi = hi > R - 1 ? R - 1 : hi;
    for (int i = 0; i < R / 2; i++) {
        long double p = expl(logl(theta) * 2 * i / R), ramp = (i - lo) / (long double)(hi - lo);
        if (hi == lo)
            ramp = (i - lo) / 0.001L;
        ramp = ramp < 0 ? 0 : ramp > 1 ? 1 : ramp;
        long double factor = config->rope_scaling.factor;
        freq[i] = (double)(1 / p / factor * ramp + 1 / p * (1 - ramp));
        if (s->c.numerics == DSV4_RELEASED) {
            float f = 1.0f / (float)p, share = (float)ramp;
            float slowed = f / (float)factor * share, kept = f * (1.0f - share);
            freq[i] = slowed + kept;
        }
    }
}

/* covers: rope.yarn.1 rope.yarn.2 rope.yarn.3 rope.yarn.4 */
static void yarn_at_its_edges(void **state)
{
    static const struct { int64_t R; double theta, factor, original, fast, slow; } edge[] = {
        {64, 160000, 16, 65536, 32, 1},  /* Flash */
        {64, 10000, 40, 4096, 32, 1},
        {64, 40000, 3, 32768, 20, 1},    /* factors that are no powers of two */
        {64, 160000, 10, 65536, 64, 0.5},
        {8, 160000, 16, 6, 32, 1},       /* both clamped to 0: hi == lo */
        {16, 100, 16, 100, 1.5, 1.5},    /* c = 4.1 twice: one pair apart */
        {64, 160000, 16, 1, 32, 1},      /* shorter than a turn: hi < lo, nothing is slowed */
        {8, 160000, 16, 1e12, 1e10, 1},  /* hi clamped to R - 1 = 7, beyond the last pair */
        {8, 160000, 16, 1e12, 32, 1},    /* hi == lo == 7 */
        {2, 160000, 16, 65536, 32, 1}};
    small *s = *state;
    for (size_t k = 0; k < sizeof edge / sizeof *edge; k++) {
        double freq[32], want[32];
        s->config.qk_rope_head_dim = edge[k].R;
        s->config.compress_rope_theta = edge[k].theta;
        s->config.rope_scaling.factor = edge[k].factor;
        s->config.rope_scaling.original_max_position_embeddings = edge[k].original;
        s->config.rope_scaling.beta_fast = edge[k].fast;
        s->config.rope_scaling.beta_slow = edge[k].slow;
        for (s->c.numerics = DSV4_EXACT; s->c.numerics <= DSV4_RELEASED; s->c.numerics++) {
            ref_rope_frequencies(&s->c, true, freq);
            yarn_directly(s, want);
            small_near(s, freq, want, edge[k].R / 2, s->c.numerics == DSV4_EXACT ? 1e-15 : 0);
        }
    }
}

/* covers: rope.theta.1 rope.yarn.1 */
static void layers_without_yarn(void **state)
{
    small *s = *state;
    double plain[4], freq[4];
    s->config.rope_theta = s->config.compress_rope_theta = 500;
    s->config.rope_scaling.original_max_position_embeddings = 40;
    ref_rope_frequencies(&s->c, false, plain); /* SWA, though rope_scaling is there */
    for (int i = 0; i < 4; i++)
        small_about(s, plain[i], pow(500, -i / 4.0), 1e-15);
    ref_rope_frequencies(&s->c, true, freq);
    assert_true(freq[3] != plain[3]);
    s->config.rope_scaling.original_max_position_embeddings = 0;
    ref_rope_frequencies(&s->c, true, freq);
    small_same(s, freq, plain, 4);
    s->config.rope_scaling.present = false;
    s->config.rope_scaling.original_max_position_embeddings = 40;
    ref_rope_frequencies(&s->c, true, freq);
    small_same(s, freq, plain, 4);
}

/* x [width] rotated as complex numbers times e^(i angle). */
static void rotate_directly(const small *s, const double *freq, int64_t position, int sign,
                            double *x, int64_t width)
{
    int64_t R = s->config.qk_rope_head_dim;
    for (int64_t i = width - R; i < width; i += 2) {
        double f = freq[(i - width + R) / 2];
        long double angle = (long double)position * f, cosine = cosl(angle), sine = sinl(angle);
        if (s->c.numerics == DSV4_RELEASED) {
            float rounded = (float)position * (float)f;
            cosine = (float)cosl(rounded);
            sine = (float)sinl(rounded);
        }
        double real = (double)(x[i] * cosine - sign * x[i + 1] * sine);
        double imaginary = (double)(sign * x[i] * sine + x[i + 1] * cosine);
        x[i] = small_bf16_point(s, real);
        x[i + 1] = small_bf16_point(s, imaginary);
    }
}

/* covers: rope.last.1 rope.angle.1 rope.rotate.1 rope.rotate.2 rope.inverse.1 */
static void rotations_at_all_positions(void **state)
{
    static const int64_t position[] = {0, 1, 2, 127, 65535, 65536, 1048575};
    small *s = *state;
    enum { R = 64 };
    s->config.qk_rope_head_dim = R;
    for (s->c.numerics = DSV4_EXACT; s->c.numerics <= DSV4_RELEASED; s->c.numerics++)
        for (int64_t k = 0; k < 7 * 3; k++) {
            double freq[R / 2];
            int64_t width = k % 3 == 0 ? R : k % 3 == 1 ? R + 2 : 200;
            double *x = small_randoms(s, width, 3), *want = small_copy(s, x, width);
            double *back = small_copy(s, x, width), *turned = small_copy(s, x, width);
            ref_rope_frequencies(&s->c, k % 2, freq);
            rotate_directly(s, freq, position[k / 3], 1, want, width);
            rotate_directly(s, freq, position[k / 3], -1, back, width);
            ref_rope(&s->c, freq, position[k / 3], turned, width);
            ref_rope_inverse(&s->c, freq, position[k / 3], x, width);
            /* A binary64 angle of 10^6 is good to 10^-10. */
            double bound = s->c.numerics == DSV4_EXACT ? 1e-9 : 0;
            small_near(s, turned, want, width, bound);
            small_near(s, x, back, width, bound);
        }
}

/* Numbers that cosine or sine take next to a tie of bf16: their own rounding decides. */
/* covers: rope.angle.1 */
static void released_cosines_are_binary32(void **state)
{
    small *s = *state;
    s->c.numerics = DSV4_RELEASED;
    s->config.qk_rope_head_dim = 2;
    for (int64_t position = 1; position < 200; position++) {
        double cosine = (float)cosl(position), sine = (float)sinl(position);
        double x[2] = {(float)((1 + 0x1p-8) / cosine), 0}, y[2] = {(float)((1 + 0x1p-8) / sine), 0};
        double want_x = small_to_bf16(x[0] * cosine), want_y = small_to_bf16(y[0] * sine);
        ref_rope(&s->c, (double[]){1}, position, x, 2);
        ref_rope(&s->c, (double[]){1}, position, y, 2);
        small_is(s, x[0], want_x);
        small_is(s, y[1], want_y);
    }
}

/* covers: rope.rotate.1 rope.last.1 rope.inverse.1 */
static void quarter_turns(void **state)
{
    small *s = *state;
    s->config.qk_rope_head_dim = 4;
    const double freq[2] = {(double)(pi / 2), (double)pi};
    double x[5] = {7, 1, 2, 3, 4};
    ref_rope(&s->c, freq, 1, x, 5);
    small_near(s, x, ((double[]){7, -2, 1, -3, -4}), 5, 1e-15);
    ref_rope_inverse(&s->c, freq, 2, x, 5);
    small_near(s, x, ((double[]){7, 2, -1, -3, -4}), 5, 1e-14);
    ref_rope(&s->c, freq, 0, x + 1, 4);
    small_near(s, x, ((double[]){7, 2, -1, -3, -4}), 5, 1e-14);
}

/* covers: rope.inverse.1 rope.rotate.1 */
/* covers: rope.angle.2 */
static void rotations_keep_norms_and_distances(void **state)
{
    small *s = *state;
    double freq[4], *q = small_randoms(s, 8, 1), *k = small_randoms(s, 8, 1);
    ref_rope_frequencies(&s->c, true, freq); /* with YaRN: no factor on cosine and sine */
    double product[2] = {0}, norm[2] = {0}, first[8];
    for (int shift = 0; shift < 2; shift++) {
        double a[8], b[8];
        memcpy(a, q, sizeof a);
        memcpy(b, k, sizeof b);
        ref_rope(&s->c, freq, 100000 * shift + 17, a, 8);
        ref_rope(&s->c, freq, 100000 * shift + 5, b, 8);
        for (int i = 0; i < 8; i++) {
            product[shift] += a[i] * b[i];
            norm[0] += a[i] * a[i];
            norm[1] += q[i] * q[i];
        }
        ref_rope_inverse(&s->c, freq, 100000 * shift + 17, a, 8);
        small_near(s, a, memcpy(first, q, sizeof first), 8, 1e-14);
    }
    small_about(s, product[1], product[0], 1e-10);
    small_about(s, norm[0], norm[1], 1e-14);
}

/* covers: rope.angle.1 */
static void released_angles_are_binary32(void **state)
{
    small *s = *state;
    double x[2][64], freq[32], worst = 0;
    s->config.qk_rope_head_dim = 64;
    for (s->c.numerics = DSV4_EXACT; s->c.numerics <= DSV4_RELEASED; s->c.numerics++) {
        for (int i = 0; i < 64; i++)
            x[s->c.numerics][i] = i % 2 == 0;
        ref_rope_frequencies(&s->c, false, freq);
        ref_rope(&s->c, freq, 1048575, x[s->c.numerics], 64);
    }
    for (int i = 0; i < 64; i += 2)
        worst = fmax(worst, hypot(x[0][i] - x[1][i], x[0][i + 1] - x[1][i + 1]));
    assert_true(worst > 0.01 && worst < 0.05); /* radians at the far end of the context */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        small_test(frequencies_by_hand),
        small_test(released_frequencies),
        small_test(yarn_of_flash),
        small_test(yarn_at_its_edges),
        small_test(layers_without_yarn),
        small_test(rotations_at_all_positions),
        small_test(released_cosines_are_binary32),
        small_test(quarter_turns),
        small_test(rotations_keep_norms_and_distances),
        small_test(released_angles_are_binary32),
    };
    return cmocka_run_group_tests_name("rope", tests, NULL, NULL) != 0;
}
