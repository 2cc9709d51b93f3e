/* spec/mhc.md: mixes, Sinkhorn, collapse and spread, for 1, 3 and 4 streams. */
#include "small.h"

#include <math.h>

static const int64_t stream_counts[3] = {1, 3, 4};

/* Divides the n values at distance `step` by their sum + eps. */
static void normalise(long double *at, int64_t n, int64_t step, long double eps)
{
    long double sum = 0;
    for (int64_t i = 0; i < n; i++)
        sum += at[i * step];
    for (int64_t i = 0; i < n; i++)
        at[i * step] /= sum + eps;
}

/* Sinkhorn as 2 `iterations` half steps: even ones by rows, odd ones by columns; the first is the
 * softmax, whose eps is added to the quotient instead of the sum. */
static void sinkhorn_directly(const small *s, const double *logits, double *want)
{
    int64_t n = s->config.hc_mult, half_steps = 2 * s->config.hc_sinkhorn_iters;
    long double C[16], eps = s->config.hc_eps;
    for (int64_t i = 0; i < n * n; i++)
        C[i] = expl(logits[i]);
    for (int64_t step = 0; step < half_steps; step++) {
        for (int64_t line = 0; line < n; line++)
            normalise(C + (step % 2 ? line : line * n), n, step % 2 ? n : 1, step == 0 ? 0 : eps);
        for (int64_t i = 0; step == 0 && i < n * n; i++)
            C[i] += eps;
    }
    for (int64_t i = 0; i < n * n; i++)
        want[i] = (double)C[i];
}

/* covers: mhc.sinkhorn.1 mhc.sinkhorn.2 mhc.sinkhorn.3 */
static void sinkhorn_by_hand(void **state)
{
    small *s = *state;
    s->config.hc_eps = 0.01;
    s->config.hc_mult = 2;
    s->config.hc_sinkhorn_iters = 1;
    double even[4] = {7, 7, -7, -7}; /* rows alike: 1/2, + eps, / (2 (1/2 + eps) + eps) */
    ref_mhc_sinkhorn(&s->c, even);
    small_near(s, even, ((double[]){0.51 / 1.03, 0.51 / 1.03, 0.51 / 1.03, 0.51 / 1.03}), 4, 1e-15);

    double uneven[4] = {log(3), 0, 0, 0}; /* softmax 3/4, 1/4; 1/2, 1/2 */
    ref_mhc_sinkhorn(&s->c, uneven);
    const double want[4] = {0.76 / 1.28, 0.26 / 0.78, 0.51 / 1.28, 0.51 / 0.78};
    small_near(s, uneven, want, 4, 1e-15);

    s->config.hc_sinkhorn_iters = 2;
    double again[4] = {0, 0, 0, 0}, x = 0.51 / 1.03;
    x = x / (2 * x + 0.01);
    x = x / (2 * x + 0.01);
    ref_mhc_sinkhorn(&s->c, again);
    small_near(s, again, ((double[]){x, x, x, x}), 4, 1e-15);

    s->config.hc_mult = 1;
    s->config.hc_sinkhorn_iters = 1;
    double one = -50;
    ref_mhc_sinkhorn(&s->c, &one);
    small_about(s, one, 1.01 / 1.02, 1e-15);
}

/* Saturated rows: without the softmax's eps a column would vanish, and a division by 0 give NaN. */
/* covers: mhc.sinkhorn.1 mhc.sinkhorn.2 */
static void sinkhorn_saturated(void **state)
{
    small *s = *state;
    s->config.hc_eps = 0.01;
    s->config.hc_mult = 2;
    s->config.hc_sinkhorn_iters = 1;
    double C[4] = {1e4, -1e4, 1e4, -1e4}; /* softmax 1, 0; 1, 0 */
    ref_mhc_sinkhorn(&s->c, C);
    small_near(s, C, ((double[]){1.01 / 2.03, 0.01 / 0.03, 1.01 / 2.03, 0.01 / 0.03}), 4, 1e-15);
}

/* covers: mhc.sinkhorn.1 mhc.sinkhorn.2 mhc.sinkhorn.3 */
static void sinkhorn_directly_and_its_sums(void **state)
{
    static const int64_t iterations[3] = {1, 2, 20};
    static const double eps[2] = {1e-2, 1e-6};
    small *s = *state;
    for (int k = 0; k < 3 * 3 * 2; k++) {
        int64_t n = s->config.hc_mult = stream_counts[k % 3];
        s->config.hc_sinkhorn_iters = iterations[k / 3 % 3];
        s->config.hc_eps = eps[k / 9];
        double *C = small_randoms(s, n * n, 3), want[16];
        sinkhorn_directly(s, C, want);
        ref_mhc_sinkhorn(&s->c, C);
        small_near(s, C, want, n * n, 1e-14);
        for (int64_t i = 0; i < n && s->config.hc_eps < 1e-3; i++) {
            double row = 0, column = 0;
            for (int64_t j = 0; j < n; j++) {
                row += C[i * n + j];
                column += C[j * n + i];
            }
            small_about(s, column, 1, 1e-4);
            if (s->config.hc_sinkhorn_iters == 20)
                small_about(s, row, 1, 5e-2);
        }
    }
}

static double logistic(long double x)
{
    return (double)(0.5L + 0.5L * tanhl(x / 2));
}

/* covers: mhc.mix.1 mhc.mix.2 mhc.mix.3 mhc.mix.4 */
static void mixes(void **state)
{
    small *s = *state;
    enum { D = 10 };
    s->config.hidden_size = D;
    s->config.hc_eps = 1e-2;
    s->config.rms_norm_eps = 0.3;
    for (int k = 0; k < 6; k++) {
        int64_t n = s->config.hc_mult = stream_counts[k % 3], outputs = (2 + n) * n;
        s->c.numerics = k < 3 ? DSV4_EXACT : DSV4_RELEASED;
        dsv4_hc hc = {small_random_matrix(s, DSV4_F32, outputs, n * D, 1),
                      small_random_matrix(s, DSV4_F32, 1, outputs, 1),
                      small_f32(s, (double[]){1.5, -0.75, 2.25}, 1, 3)};
        double *fn = small_values(s, &hc.fn), *base = small_values(s, &hc.base);
        double *x = small_randoms(s, n * D, 1), z[24], want[24], got[24];
        for (int64_t i = 0; i < n * D; i++)
            x[i] *= 1 + i / D; /* streams of different size: one norm for all */
        for (int64_t o = 0; o < outputs; o++) {
            long double product = 0, squares = 0;
            for (int64_t i = 0; i < n * D; i++) {
                product += (long double)fn[o * n * D + i] * x[i];
                squares += (long double)x[i] * x[i];
            }
            int part = o < n ? 0 : o < 2 * n ? 1 : 2;
            double scale = part == 0 ? 1.5 : part == 1 ? -0.75 : 2.25;
            z[o] = (double)(product / sqrtl(squares / (n * D) + 0.3L) * scale + base[o]);
            if (part < 2)
                want[o] = part == 0 ? logistic(z[o]) + 0.01 : 2 * logistic(z[o]);
        }
        sinkhorn_directly(s, z + 2 * n, want + 2 * n);
        ref_mhc_mix(&s->c, &hc, x, got, got + n, got + 2 * n);
        small_near(s, got, want, outputs, k < 3 ? 1e-13 : 2e-6); /* released: binary32, not bf16 */
    }
}

/* covers: mhc.mix.1 */
static void released_mixes_are_binary32(void **state)
{
    small *s = *state;
    s->c.numerics = DSV4_RELEASED;
    s->config = (dsv4_config){.hidden_size = 1, .hc_mult = 1, .hc_sinkhorn_iters = 1};
    /* f = 1, so that m = fn, which has 24 bits; base takes the leading ones away. */
    double m = 1 + 0x1p-23, pre, post, comb;
    dsv4_hc hc = {small_f32(s, (double[]){m, m, m}, 3, 1),
                  small_f32(s, (double[]){-1, -1, 0}, 1, 3),
                  small_f32(s, (double[]){1, 1, 1}, 1, 3)};
    ref_mhc_mix(&s->c, &hc, (double[]){1}, &pre, &post, &comb);
    small_about(s, (pre - 0.5) / 0x1p-25, 1, 1e-6);
    small_about(s, (post - 1) / 0x1p-24, 1, 1e-6);
}

/* covers: mhc.pre.1 mhc.pre.2 */
static void collapse(void **state)
{
    small *s = *state;
    double u[2];
    s->config.hidden_size = 2;
    s->config.hc_mult = 3;
    const double pre[3] = {1, 10, 0.5}, x[6] = {1, 2, 3, 4, 5, 6.75};
    ref_mhc_pre(&s->c, pre, x, u);
    small_same(s, u, ((double[]){33.5, 45.375}), 2);
    s->c.numerics = DSV4_RELEASED;
    ref_mhc_pre(&s->c, pre, x, u);
    small_same(s, u, ((double[]){33.5, 45.5}), 2); /* a tie: 182 quarters */
    for (int k = 0; k < 3; k++) {
        int64_t n = s->config.hc_mult = stream_counts[k], D = s->config.hidden_size = 24;
        double *mix = small_randoms(s, n, 1), *streams = small_randoms(s, n * D, 1);
        double got[24], want[24];
        for (int64_t i = 0; i < D; i++) {
            long double sum = 0;
            for (int64_t j = n - 1; j >= 0; j--)
                sum += (long double)mix[j] * streams[j * D + i];
            want[i] = small_to_bf16((double)sum);
        }
        ref_mhc_pre(&s->c, mix, streams, got);
        small_same(s, got, want, D);
    }
}

/* covers: mhc.post.1 mhc.post.2 */
static void spread_by_hand(void **state)
{
    small *s = *state;
    s->config.hidden_size = 1;
    s->config.hc_mult = 2;
    const double C[4] = {1, 0.5, 0.25, 2}; /* not symmetric */
    double x[2] = {4, 8};
    ref_mhc_post(&s->c, (double[]){10, 100}, C, (double[]){1}, x);
    small_same(s, x, ((double[]){10 + 4 + 2, 100 + 2 + 16}), 2);
    s->c.numerics = DSV4_RELEASED;
    double y[2] = {1, 0x1p-8};
    ref_mhc_post(&s->c, (double[]){1, 3}, (double[]){1, 0, 0, 1}, y + 1, y);
    small_same(s, y, ((double[]){1, 0x1p-6}), 2);
}

/* covers: mhc.post.1 mhc.post.2 */
static void spread_directly(void **state)
{
    small *s = *state;
    int64_t D = s->config.hidden_size;
    for (int k = 0; k < 6; k++) {
        int64_t n = s->config.hc_mult = stream_counts[k % 3];
        s->c.numerics = k < 3 ? DSV4_EXACT : DSV4_RELEASED;
        double *post = small_randoms(s, n, 2), *C = small_randoms(s, n * n, 1);
        double *y = small_randoms(s, D, 1), *x = small_randoms(s, n * D, 1);
        double *want = small_array(s, n * D);
        for (int64_t i = 0; i < n * D; i++) {
            long double sum = 0;
            for (int64_t j = 0; j < n; j++)
                sum += (long double)C[j * n + i / D] * x[j * D + i % D];
            sum += (long double)post[i / D] * y[i % D];
            want[i] = small_bf16_point(s, (double)sum);
        }
        ref_mhc_post(&s->c, post, C, y, x);
        small_near(s, x, want, n * D, k < 3 ? 1e-14 : 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        small_test(sinkhorn_by_hand),
        small_test(sinkhorn_saturated),
        small_test(sinkhorn_directly_and_its_sums),
        small_test(mixes),
        small_test(released_mixes_are_binary32),
        small_test(collapse),
        small_test(spread_by_hand),
        small_test(spread_directly),
    };
    return cmocka_run_group_tests_name("mhc", tests, NULL, NULL) != 0;
}
