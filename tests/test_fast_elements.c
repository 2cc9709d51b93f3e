/* The operators of fast/ that work value by value or row by row, at every level of instructions,
 * against the reference: normalisation, rotation, Hadamard transform, embedding, streams,
 * activation.
 *
 * Bounds are of rounding errors, u = 2^-24 each: a sum of positive terms in p partial sums is
 * off by (terms / p + log2 p) u of itself, and the operations that follow add one u each. In
 * RELEASED an error before a rounding point may turn the rounding (fast_rounded). */
#include "fast_small.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "fast/lanes.h"

static const dsv4_numerics both[] = {DSV4_EXACT, DSV4_RELEASED};

static void check(const fast_context *c, const float *got, const double *want, const double *bound,
                  int64_t count)
{
    if (c->released)
        fast_rounded(c, got, want, bound, count, 2 + count / 200);
    else
        fast_near(c, got, want, bound, count);
}

static double *magnitudes(small *s, const double *x, int64_t count, double factor)
{
    double *bound = small_array(s, count);
    for (int64_t i = 0; i < count; i++)
        bound[i] = factor * fabs(x[i]);
    return bound;
}

/* ---- lanes.h, at the level that tests are compiled for ---- */

static void exponentials(void **state)
{
    (void)state;
    static const float special[] = {0, -0.f, 1, -1, 88.7228f, 88.8f, 89, 1000, -87.4f, -100,
                                    -103.9f, -104, -1000, 0x1p-149f, -0x1p-30f, 0x1.fffffep127f,
                                    -0x1.fffffep127f, INFINITY, -INFINITY, NAN};
    float in[LANES], out[LANES];
    for (int64_t i = 0; i < 400000; i++) {
        for (int j = 0; j < LANES; j++) {
            uint32_t bits = (uint32_t)(i * LANES + j) * 2654435761u;
            memcpy(&in[j], &bits, sizeof bits);
        }
        if (i % 3 != 0)
            in[0] = -104 + (float)(i % 193001) * 0.001f;
        if (i < (int64_t)(sizeof special / sizeof *special))
            in[LANES - 1] = special[i];
        lanes_store(out, lanes_exp(lanes_load(in)));
        for (int j = 0; j < LANES; j++) {
            double want = exp(in[j]);
            double ulp = want < 0x1p-126 || !isfinite(want) ? 0x1p-149
                                                            : ldexp(1, ilogb(want) - 23);
            bool good = isnan(want) ? isnan(out[j])
                      : isinf((float)want) ? out[j] == INFINITY
                                           : fabs(out[j] - want) <= 1.1 * ulp;
            if (!good)
                fail_msg("e^%a is %a, expected %a", in[j], out[j], want);
        }
    }
}

static void lanes_of_every_count(void **state)
{
    small *s = *state;
    for (int64_t count = 0; count < 9 * LANES; count++) {
        double *x = small_randoms(s, count + 1, 2), sum = 0;
        for (int64_t i = 0; i < count; i++)
            sum += x[i] * x[i];
        small_about(s, lanes_squares(small_floats(s, x, count + 1), count), sum,
                    30 * fast_unit * sum);
    }
    float order[LANES], got[LANES];
    for (int i = 0; i < LANES; i++)
        order[i] = (float)i;
    lanes v = lanes_load(order);
    const lanes shuffled[] = {lanes_swap1(v), lanes_swap2(v), lanes_even(v), lanes_odd(v)};
    for (int k = 0; k < 4; k++) {
        lanes_store(got, shuffled[k]);
        for (int i = 0; i < LANES; i++)
            assert_int_equal((int)got[i], ((int[]){i ^ 1, i ^ 2, i & ~1, i | 1})[k]);
    }
    assert_true(signbit(lanes_all(-0.f)[0]));
}

/* ---- rmsnorm ---- */

static void rmsnorm_of_every_width(void **state)
{
    small *s = *state;
    enum { T = 3 };
    static const int64_t widths[] = {1,  2,  3,  5,  8,   15,  16,   17,
                                     31, 48, 63, 72, 130, 257, 1024, 4099};
    for (int k = 0; k < 2 * 16; k++) {
        int64_t width = widths[k / 2];
        s->c.numerics = both[k % 2];
        double *x = small_randoms(s, T * width, 5), *want = small_array(s, T * width);
        double *w = small_randoms(s, width, 2);
        dsv4_matrix weight = k % 4 < 2 ? small_bf16(s, w, 1, width) : small_f32(s, w, 1, width);
        ref_rmsnorm(&s->c, &weight, x, T, want);
        /* half of the mean's error, root, quotient, two products */
        double *bound = magnitudes(s, want, T * width, ((double)width / 32 + 10) * fast_unit);
        float *y = small_alloc(s, T * width, sizeof *y);
        fast_walk walk = {0};
        while (fast_small_next(&walk, s, 1)) {
            fast_rmsnorm(&walk.c, &weight, small_floats(s, x, T * width), T, y);
            check(&walk.c, y, want, bound, T * width);
            memcpy(y, small_floats(s, x, T * width), (size_t)(T * width) * sizeof *y);
            fast_rmsnorm(&walk.c, &weight, y, T, y); /* in place */
            check(&walk.c, y, want, bound, T * width);
        }
    }
}

/* Squares that binary32 has not, or not precisely. The weight has a place for the eps. */
static void rmsnorm_of_any_magnitude(void **state)
{
    small *s = *state;
    enum { WIDTH = 37 };
    for (int exponent = -100; exponent <= 120; exponent += 5)
        for (int k = 0; k < 2; k++) {
            s->config.rms_norm_eps = k == 0 ? 0 : 1e-6;
            double x[WIDTH], want[WIDTH];
            for (int i = 0; i < WIDTH; i++)
                x[i] = ldexp(small_random(s), exponent);
            dsv4_matrix weight = small_f32(s, small_randoms(s, WIDTH, 2), 1, WIDTH);
            ref_rmsnorm(&s->c, &weight, x, 1, want);
            double *bound = magnitudes(s, want, WIDTH, 12 * fast_unit);
            fast_walk walk = {0};
            while (fast_small_next(&walk, s, 1)) {
                float y[WIDTH];
                fast_rmsnorm(&walk.c, &weight, small_floats(s, x, WIDTH), 1, y);
                fast_near(&walk.c, y, want, bound, WIDTH);
            }
        }
}

static void rmsnorm_names_a_bad_weight(void **state)
{
    small *s = *state;
    double w[3] = {1, NAN, 1};
    dsv4_matrix weight = small_f32(s, w, 1, 3);
    fast_walk walk = {0};
    while (fast_small_next(&walk, s, 1)) {
        float x[3] = {1, 2, 3};
        s->error = (dsv4_error){{0}};
        fast_rmsnorm(&walk.c, &weight, x, 1, x);
        assert_string_equal(s->error.text, "small.safetensors: small.weight: value [0, 1] is NaN, "
                                           "expected a finite number");
    }
}

/* The heads of RELEASED have sums that are exact in any order: so every rounding is the same. */
static void rmsnorm_of_heads(void **state)
{
    small *s = *state;
    enum { COUNT = 40 };
    static const int64_t widths[] = {2, 7, 16, 24, 48, 128, 512};
    for (int k = 0; k < 4 * 7; k++) {
        int64_t d = s->config.head_dim = widths[k / 4];
        double scale = k % 4 < 2 ? 1 : 0x1p-11; /* squares beside the eps, too */
        s->c.numerics = both[k % 2];
        double *x = small_array(s, COUNT * d);
        for (int64_t i = 0; i < COUNT * d; i++)
            x[i] = s->c.numerics == DSV4_EXACT
                       ? scale * 3 * small_random(s)
                       : scale * ((double)(small_bits(s) % 255) * 0.0625 - 8);
        double *want = small_copy(s, x, COUNT * d);
        ref_rmsnorm_head(&s->c, want, COUNT);
        double *bound = magnitudes(s, want, COUNT * d, ((double)d / 32 + 10) * fast_unit);
        fast_walk walk = {0};
        while (fast_small_next(&walk, s, 1)) {
            float *y = small_floats(s, x, COUNT * d);
            fast_rmsnorm_head(&walk.c, y, COUNT);
            if (walk.c.released)
                fast_same(&walk.c, y, want, COUNT * d);
            else
                fast_near(&walk.c, y, want, bound, COUNT * d);
        }
    }
}

/* Of random heads the mean and the root may be rounded to a neighbour: two steps of bf16. */
static void rmsnorm_of_random_heads(void **state)
{
    small *s = *state;
    enum { COUNT = 300, WIDTH = 72 };
    s->config.head_dim = WIDTH;
    s->c.numerics = DSV4_RELEASED;
    double *x = small_randoms(s, COUNT * WIDTH, 3), *want = small_copy(s, x, COUNT * WIDTH);
    ref_rmsnorm_head(&s->c, want, COUNT);
    fast_walk walk = {0};
    while (fast_small_next(&walk, s, 1)) {
        float *y = small_floats(s, x, COUNT * WIDTH);
        fast_rmsnorm_head(&walk.c, y, COUNT);
        fast_rounded(&walk.c, y, want, magnitudes(s, want, COUNT * WIDTH, 0x1p-7), COUNT * WIDTH,
                     2 * WIDTH);
    }
}

/* ---- rope ---- */

static void frequencies_and_angles(void **state)
{
    static const int64_t position[] = {0, 1, 2, 127, 65535, 65536, 999999, 1048575, 77};
    enum { T = 9, LARGEST = 128 };
    small *s = *state;
    for (int k = 0; k < 24; k++) {
        int64_t R = s->config.qk_rope_head_dim = (int64_t[]){2, 8, 16, 18, 64, 128}[k % 6];
        bool compressed = k % 4 < 2;
        s->c.numerics = both[k / 12];
        s->config.rope_scaling.present = k % 5 != 0;
        s->config.rope_scaling.factor = k % 2 ? 16 : 3.7;
        double freq[LARGEST / 2], got[LARGEST / 2], want[LARGEST * T], bound[LARGEST * T];
        ref_rope_frequencies(&s->c, compressed, freq);
        for (int64_t i = 0; i < T * R; i++) {
            double angle = (double)position[i / R] * freq[i % R / 2];
            if (s->c.numerics == DSV4_RELEASED)
                angle = (float)angle;
            want[i] = i % 2 == 0 ? cos(angle) : sin(angle);
            bound[i] = fast_unit; /* of a binary64 angle there is nothing else to see */
        }
        fast_walk walk = {0};
        while (fast_small_next(&walk, s, 2)) {
            float angles[LARGEST * T];
            fast_rope_frequencies(&walk.c, compressed, got);
            small_same(s, got, freq, R / 2);
            fast_rope_angles(&walk.c, got, position, T, angles);
            fast_near(&walk.c, angles, want, bound, T * R);
        }
    }
}

static void rotations(void **state)
{
    static const int64_t position[] = {0, 1, 77, 4095, 1048575};
    enum { COUNT = 5 };
    small *s = *state;
    for (int k = 0; k < 40; k++) {
        int64_t R = s->config.qk_rope_head_dim = (int64_t[]){2, 6, 16, 20, 64}[k % 5];
        int64_t width = R + (k % 3) * 7, at = position[k % 7 % 5];
        bool inverse = k % 2;
        s->c.numerics = both[k / 20];
        double freq[32], *x = small_randoms(s, COUNT * width, 3);
        double *want = small_copy(s, x, COUNT * width), *bound = small_array(s, COUNT * width);
        ref_rope_frequencies(&s->c, k % 4 < 2, freq);
        for (int64_t i = 0; i < COUNT; i++) {
            (inverse ? ref_rope_inverse : ref_rope)(&s->c, freq, at, want + i * width, width);
            const double *pair = x + i * width + (width - R);
            for (int64_t j = 0; j < R; j++) /* cosines, products, sum */
                bound[i * width + (width - R) + j] = 3 * fast_unit *
                                                     (fabs(pair[j]) + fabs(pair[j ^ 1]));
        }
        fast_walk walk = {0};
        while (fast_small_next(&walk, s, 1)) {
            float angles[64], *y = small_floats(s, x, COUNT * width);
            fast_rope_angles(&walk.c, freq, &at, 1, angles);
            fast_rope(&walk.c, angles, inverse, y, width, COUNT);
            check(&walk.c, y, want, bound, COUNT * width);
        }
    }
}

/* ---- hadamard ---- */

static void transforms(void **state)
{
    small *s = *state;
    enum { ROWS = 5 };
    for (int64_t width = 1; width <= 1024; width *= 2)
        for (int k = 0; k < 2; k++) {
            s->c.numerics = both[k];
            double *x = small_randoms(s, ROWS * width, 2), *want = small_copy(s, x, ROWS * width);
            double *bound = small_array(s, ROWS * width);
            for (int64_t i = 0; i < ROWS; i++) {
                double sum = 0;
                for (int64_t j = 0; j < width; j++)
                    sum += fabs(x[i * width + j]);
                ref_hadamard(&s->c, want + i * width, width);
                for (int64_t j = 0; j < width; j++) /* log2(width) sums, the factor twice */
                    bound[i * width + j] = (log2((double)width) + 2) * fast_unit * sum /
                                           sqrt((double)width);
            }
            fast_walk walk = {0};
            while (fast_small_next(&walk, s, 1)) {
                float *y = small_floats(s, x, ROWS * width);
                fast_hadamard(&walk.c, y, width, ROWS);
                check(&walk.c, y, want, bound, ROWS * width);
            }
        }
}

/* Small whole numbers and a factor that is a power of two: nothing is rounded. */
static void transforms_of_whole_numbers(void **state)
{
    small *s = *state;
    double none[256] = {0};
    for (int64_t width = 1; width <= 256; width *= 4) {
        double *x = small_array(s, width), *want;
        for (int64_t i = 0; i < width; i++)
            x[i] = (double)(small_bits(s) % 9) - 4;
        want = small_copy(s, x, width);
        ref_hadamard(&s->c, want, width);
        fast_walk walk = {0};
        while (fast_small_next(&walk, s, 1)) {
            float *y = small_floats(s, x, width);
            fast_hadamard(&walk.c, y, width, 1);
            fast_near(&walk.c, y, want, none, width);
        }
    }
}

/* ---- embed ---- */

static void embeddings_and_streams(void **state)
{
    static const dsv4_dtype dtype[] = {DSV4_F32, DSV4_BF16, DSV4_F16, DSV4_F8_E4M3};
    static const int64_t ids[] = {0, 12, 5, 5, 11};
    enum { T = 5, V = 13, D = 75, n = 3 };
    small *s = *state;
    s->config.hidden_size = D;
    s->config.hc_mult = n;
    for (int k = 0; k < 8; k++) {
        s->c.numerics = both[k % 2];
        dsv4_matrix embed = small_random_matrix(s, dtype[k / 2], V, D, 3);
        double e[T * D], h[T * n * D];
        ref_embed(&s->c, &embed, ids, T, e);
        ref_streams(&s->c, e, T, h);
        fast_walk walk = {0};
        while (fast_small_next(&walk, s, 1)) {
            float got[T * D], streams[T * n * D];
            fast_embed(&walk.c, &embed, ids, T, got);
            fast_same(&walk.c, got, e, T * D);
            fast_streams(&walk.c, got, T, streams);
            fast_same(&walk.c, streams, h, T * n * D);
        }
    }
}

/* ---- expert: the activation ---- */

/* In RELEASED the product is a binary32 number: its error, in any association, is a few u. */
static void activations(void **state)
{
    small *s = *state;
    static const double limits[] = {10, 0, 0.75};
    for (int k = 0; k < 6 * 40; k++) {
        int64_t I = 1 + k;
        double limit = limits[k % 3], weight = k % 4 == 0 ? 1 : (float)(1 + small_random(s));
        double scale = k % 7 < 2 ? 30 : 3;
        s->c.numerics = both[k % 2];
        double *g = small_randoms(s, I, scale), *v = small_randoms(s, I, scale);
        double *want = small_array(s, I);
        for (int64_t i = 0; i < I; i++) {
            double a = g[i], b = v[i];
            if (limit > 0) {
                a = fmin(a, limit);
                b = fmax(fmin(b, limit), -limit);
            }
            want[i] = small_bf16_point(s, weight * (a / (1 + exp(-a))) * b);
        }
        double *bound = magnitudes(s, want, I, 8 * fast_unit);
        fast_walk walk = {0};
        while (fast_small_next(&walk, s, 1)) {
            float *y = small_floats(s, g, I);
            walk.c.kernels->expert->swiglu(y, small_floats(s, v, I), (float)weight, limit, I,
                                           walk.c.released);
            check(&walk.c, y, want, bound, I);
        }
    }
}

/* The reference's own expert, of diagonal matrices. */
static void activation_of_the_reference(void **state)
{
    small *s = *state;
    enum { I = 24 };
    s->config.hidden_size = s->config.moe_intermediate_size = I;
    double one[I * I] = {0}, diagonal[I * I] = {0};
    for (int i = 0; i < I; i++) {
        one[i * I + i] = 1;
        diagonal[i * I + i] = small_to_bf16(small_random(s));
    }
    for (int k = 0; k < 12; k++) {
        s->c.numerics = both[k % 2];
        s->config.swiglu_limit = k % 3 == 0 ? 0 : k % 3;
        dsv4_expert w = {.w1 = small_f32(s, one, I, I), .w2 = small_f32(s, one, I, I),
                         .w3 = small_f32(s, diagonal, I, I)};
        double *x = small_randoms(s, I, 6), want[I], weight = 0.375, v[I];
        ref_expert(&s->c, &w, &weight, x, want);
        ref_linear(&s->c, &w.w3, x, 1, v);
        fast_walk walk = {0};
        while (fast_small_next(&walk, s, 1)) {
            float *y = small_floats(s, x, I);
            walk.c.kernels->expert->swiglu(y, small_floats(s, v, I), (float)weight,
                                           s->config.swiglu_limit, I, walk.c.released);
            check(&walk.c, y, want, magnitudes(s, want, I, 8 * fast_unit), I);
        }
    }
}

static void activations_at_the_ends(void **state)
{
    small *s = *state;
    enum { I = 9 };
    const double g[I] = {-200, -100, -90, 1e30, NAN, 2, INFINITY, -INFINITY, 0};
    const double v[I] = {3, 1e30, 5, 2, 1, NAN, 1, 1, 7};
    double want[I], bound[I];
    for (int k = 0; k < 2; k++) {
        double limit = k == 0 ? 0 : 10;
        for (int i = 0; i < I; i++) {
            double a = limit > 0 && g[i] > limit ? limit : g[i];
            double b = limit > 0 && v[i] > limit ? limit : v[i];
            want[i] = a / (1 + exp(-a)) * b;
            bound[i] = 8 * fast_unit * fabs(want[i]) + 0x1p-148 * fabs(b) * fabs(a);
        }
        fast_walk walk = {0};
        while (fast_small_next(&walk, s, 1)) {
            float *y = small_floats(s, g, I);
            walk.c.kernels->expert->swiglu(y, small_floats(s, v, I), 1, limit, I, false);
            fast_near(&walk.c, y, want, bound, I);
        }
    }
}

/* ---- a row is a function of itself ---- */

static void rows_and_threads_change_nothing(void **state)
{
    small *s = *state;
    enum { T = 1100, D = 72, R = 16 };
    s->config.head_dim = D;
    s->config.qk_rope_head_dim = R;
    for (int k = 0; k < 2; k++) {
        s->c.numerics = both[k];
        double *x = small_randoms(s, T * D, 3), freq[R / 2];
        int64_t position[T];
        for (int64_t t = 0; t < T; t++)
            position[t] = (int64_t)(small_bits(s) % 1000000);
        dsv4_matrix w = small_f32(s, small_randoms(s, D, 1), 1, D);
        ref_rope_frequencies(&s->c, true, freq);
        fast_walk walk = {0};
        while (fast_small_next(&walk, s, 3)) {
            fast_context alone = fast_small_open(s, walk.c.kernels, 1);
            float *all = small_floats(s, x, T * D), *one = small_floats(s, x, T * D);
            float *angles = small_alloc(s, T * R, sizeof *angles), angle[R];
            fast_rmsnorm(&walk.c, &w, all, T, all);
            fast_rmsnorm_head(&walk.c, all, T);
            fast_hadamard(&walk.c, all, 8, T * D / 8);
            fast_rope_angles(&walk.c, freq, position, T, angles);
            for (int64_t t = 0; t < T; t++) {
                fast_rmsnorm(&alone, &w, one + t * D, 1, one + t * D);
                fast_rmsnorm_head(&alone, one + t * D, 1);
                fast_hadamard(&alone, one + t * D, 8, D / 8);
                fast_rope_angles(&alone, freq, position + t, 1, angle);
                fast_bits(&walk.c, angles + t * R, angle, R);
            }
            fast_bits(&walk.c, all, one, T * D);
            fast_small_close(&alone);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        small_test(exponentials),
        small_test(lanes_of_every_count),
        small_test(rmsnorm_of_every_width),
        small_test(rmsnorm_of_any_magnitude),
        small_test(rmsnorm_names_a_bad_weight),
        small_test(rmsnorm_of_heads),
        small_test(rmsnorm_of_random_heads),
        small_test(frequencies_and_angles),
        small_test(rotations),
        small_test(transforms),
        small_test(transforms_of_whole_numbers),
        small_test(embeddings_and_streams),
        small_test(activations),
        small_test(activation_of_the_reference),
        small_test(activations_at_the_ends),
        small_test(rows_and_threads_change_nothing),
    };
    return cmocka_run_group_tests_name("fast_elements", tests, NULL, NULL) != 0;
}
