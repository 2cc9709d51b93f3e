/* spec/head.md */
#include <math.h>

#include "small.h"

static double sigmoid(double x)
{
    return 1 / (1 + exp(-x));
}

/* Two streams of two values, by hand: f = (1, 3, 2, 0), mean(f^2) = 3.5, + eps 12.5 is 16.
 * covers: head.mix.1 head.mix.2 head.collapse.1 head.norm.1 head.logits.1 */
static void by_hand(void **state)
{
    small *s = *state;
    s->config.hidden_size = 2;
    s->config.hc_mult = 2;
    s->config.hc_eps = 0.125;
    s->config.rms_norm_eps = 12.5;
    const dsv4_hc hc = {.fn = small_f32(s, (double[]){1, 1, 0, 0, 0, 0, 8, 5}, 2, 4),
                        .base = small_f32(s, (double[]){-0.5, 1}, 1, 2),
                        .scale = small_f32(s, (double[]){0.5}, 1, 1)};
    const dsv4_matrix norm = small_f32(s, (double[]){2, -1}, 1, 2);
    const dsv4_matrix head = small_f32(s, (double[]){1, 0, 0, 1, 3, 2}, 3, 2);
    const double h[4] = {1, 3, 2, 0};
    /* m = (4, 16) / 4, times 0.5: 0.5, 2. */
    double pre[2] = {sigmoid(0) + 0.125, sigmoid(3) + 0.125};
    double u[2] = {pre[0] + 2 * pre[1], 3 * pre[0]};
    double r = 1 / sqrt((u[0] * u[0] + u[1] * u[1]) / 2 + 12.5);
    double y[2] = {u[0] * r * 2, -u[1] * r}, logits[3];
    ref_head(&s->c, &hc, &norm, &head, h, 1, logits);
    small_near(s, logits, ((double[]){y[0], y[1], 3 * y[0] + 2 * y[1]}), 3, 1e-14);
}

/* covers: head.mix.1 head.mix.2 head.collapse.1 head.norm.1 head.logits.1 */
static void formula(void **state)
{
    small *s = *state;
    enum { n = 3, D = 4, V = 5, T = 2 };
    s->config.hidden_size = D;
    s->config.hc_mult = n;
    s->config.hc_eps = 0.05;
    s->config.rms_norm_eps = 0.1;
    const dsv4_hc hc = {.fn = small_random_matrix(s, DSV4_F32, n, n * D, 1),
                        .base = small_random_matrix(s, DSV4_F32, 1, n, 1),
                        .scale = small_random_matrix(s, DSV4_F32, 1, 1, 2)};
    const dsv4_matrix norm = small_random_matrix(s, DSV4_F32, 1, D, 2);
    const dsv4_matrix head = small_random_matrix(s, DSV4_F32, V, D, 1);
    const double *fn = small_values(s, &hc.fn), *base = small_values(s, &hc.base);
    const double *scale = small_values(s, &hc.scale), *w = small_values(s, &norm);
    const double *rows = small_values(s, &head), *h = small_randoms(s, T * n * D, 2);
    for (int released = 0; released < 2; released++) {
        s->c.numerics = released ? DSV4_RELEASED : DSV4_EXACT;
        double logits[T * V];
        ref_head(&s->c, &hc, &norm, &head, h, T, logits);
        for (int t = 0; t < T; t++) {
            const double *f = h + t * n * D;
            double squares = 0, u[D] = {0}, of_u = 0, want[V] = {0};
            for (int i = 0; i < n * D; i++)
                squares += f[i] * f[i];
            for (int j = 0; j < n; j++) {
                double m = 0;
                for (int i = 0; i < n * D; i++)
                    m += fn[j * n * D + i] * f[i];
                m /= sqrt(squares / (n * D) + 0.1);
                for (int i = 0; i < D; i++)
                    u[i] += (sigmoid(m * scale[0] + base[j]) + 0.05) * f[j * D + i];
            }
            for (int i = 0; i < D; i++) {
                u[i] = small_bf16_point(s, u[i]);
                of_u += u[i] * u[i];
            }
            double r = small_f32_point(s, 1 / sqrt(of_u / D + 0.1));
            for (int i = 0; i < D; i++)
                u[i] = small_bf16_point(s, small_f32_point(s, small_f32_point(s, u[i] * r) * w[i]));
            for (int v = 0; v < V; v++)
                for (int i = 0; i < D; i++)
                    want[v] += rows[v * D + i] * u[i]; /* the head's F32 weights as they are */
            small_near(s, logits + t * V, want, V, released ? 1e-6 : 1e-14);
            for (int v = 0; v < V; v++)
                small_is(s, logits[t * V + v], small_f32_point(s, logits[t * V + v]));
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {small_test(by_hand), small_test(formula)};
    return cmocka_run_group_tests_name("head", tests, NULL, NULL) != 0;
}
